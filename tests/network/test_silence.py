"""A lab does not touch its host: what guests send tells the host nothing, and the host says nothing to them.

Each attack is shown to work on a bridge made by hand first, so that a kernel where it cannot is no proof.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from daemons import WiredDaemon, lines_of, wait_for
from frames import (
    BROADCAST,
    Capture,
    Seen,
    Station,
    arp,
    echo,
    ipv4,
    membership_query,
    octets,
    router_advertisement,
    udp,
    within,
)

from vmessd.core.models.wires import Step, StepKind
from vmessd.network import netlink_requests
from vmessd.network.changes import Change
from vmessd.network.links import Network
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import Access

pytestmark = pytest.mark.qemu

MakeWired = Callable[..., WiredDaemon]

FORGED = "2001:db8:bad:"
UPLINK, BEYOND = "198.51.100.1", "203.0.113.9"


def addresses(daemon: WiredDaemon, link: str) -> list[str]:
    shown = daemon.namespace.run("ip", "-json", "address", "show", "dev", link).stdout
    return [address["local"] for found in json.loads(shown) for address in found.get("addr_info", ())]


def learned(daemon: WiredDaemon) -> str:
    """Return what a router advertisement has left in the host: addresses and routes."""
    shown = [daemon.namespace.run("ip", "-6", what, "show").stdout for what in ("address", "route")]
    lines = "".join(shown).splitlines()
    return "\n".join(line for line in lines if FORGED in line or line.startswith("default"))


@contextlib.contextmanager
def station(daemon: WiredDaemon, tap: str) -> Iterator[Station]:
    with Station(daemon.namespace.name, tap, "02:00:00:00:0a:01") as found:
        yield found


def a_bridge_by_hand(daemon: WiredDaemon, name: str = "byhand", tap: str = "tap0") -> None:
    daemon.ip(
        f"link add {name} address 06:00:00:00:00:07 up type bridge forward_delay 0",
        f"tuntap add {tap} mode tap user root",
        f"link set {tap} master {name} up",
    )


def an_earlier_bridge(daemon: WiredDaemon, name: str, *ports: str) -> None:
    """Make a bridge as earlier versions did."""
    daemon.ip(
        f"link add {name} type bridge forward_delay 0 stp_state 0",
        f"link set {name} alias vmess",
        f"link set {name} addrgenmode none",
        f"link set {name} up",
        *(f"link set {port} master {name} up" for port in ports),
    )


def advertise(daemon: WiredDaemon, tap: str, bridge: str) -> None:
    """Send a router advertisement into a TAP and see that it works on the host."""
    with station(daemon, tap) as guest:

        def works() -> bool:
            guest.send(*router_advertisement())
            return any(address.startswith(FORGED) for address in addresses(daemon, bridge))

        wait_for(works, what="the forged address")
    assert "default" in learned(daemon)


def until_heard(guest: Station, other: Station, frame: tuple[str, int, bytes]) -> None:
    """Send a frame again and again until it passes: a port takes a moment to be one (linkwatch)."""
    whole = octets(frame[0]) + guest.mac + frame[1].to_bytes(2) + frame[2]

    def passes() -> bool:
        guest.send(*frame)
        return whole in other.received()

    wait_for(passes, what=f"a frame of {len(whole)} bytes at the other end")


# What guests send


def test_c41_a_routers_advertisement_by_a_guest_leaves_the_host_as_it_was(wired: WiredDaemon) -> None:
    a_bridge_by_hand(wired)
    advertise(wired, "tap0", "byhand")
    wired.ip("link delete byhand", "link delete tap0")
    assert learned(wired) == ""
    wired.make("leaf0")
    wired.make("spine0")
    wired.done("leaf", "spine", "ifadd", "1", "lab")
    with station(wired, "leaf0e0") as guest, station(wired, "spine0e0") as other:
        until_heard(guest, other, router_advertisement())
        assert learned(wired) == ""
        assert addresses(wired, "lab") == []
    wired.done("leaf", "spine", "start")
    assert addresses(wired, "lab") == []


@pytest.mark.parametrize("size", [60, 1500, 9000])
def test_c41_frames_pass_in_their_full_size(wired: WiredDaemon, size: int) -> None:
    wired.done("net", "vlan", "lab", "leaf0e0", "spine0e0")
    assert wired.links()["lab"]["mtu"] < 1280
    assert wired.links()["leaf0e0"]["mtu"] == 65000
    with station(wired, "leaf0e0") as guest, station(wired, "spine0e0") as other:
        frames = [
            (BROADCAST, 0x88B5, bytes(size)),
            ("33:33:00:00:00:05", 0x8847, bytes(size)),
            ipv4("02:00:00:00:0b:01", "10.0.0.5", "10.0.0.6", 17, udp(4444, bytes(size - 28))),
        ]
        for to, ether_type, payload in frames:
            assert len(payload) == size
            until_heard(guest, other, (to, ether_type, payload))
    assert wired.links()["lab"]["mtu"] < 1280


def test_c41_what_is_in_no_bridge_is_down_and_so_its_guest_unheard(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "2", "-", "lab")
    with station(wired, "leaf0e0") as guest, pytest.raises(OSError, match="Input/output error"):
        guest.send(*router_advertisement())
    wired.done("leaf", "start")
    assert "UP" not in wired.links()["leaf0e0"]["flags"]
    info = lines_of(wired, "leaf", "info")
    assert not [line for line in info if line.startswith("Note: leaf0")]
    assert [line for line in info if line.startswith("leaf0e0: in no bridge, ")]
    wired.done("leaf", "connect", "0", "lab")
    assert "UP" in wired.links()["leaf0e0"]["flags"]
    wired.done("leaf", "connect", "0", "-")
    assert "UP" not in wired.links()["leaf0e0"]["flags"]
    wired.ip("link set leaf0e0 up")  # as earlier versions had it
    wired.done("leaf", "stop")
    wired.done("leaf", "start")
    assert "UP" not in wired.links()["leaf0e0"]["flags"]
    wired.ip("link set leaf0e1 down")
    assert [line for line in lines_of(wired, "leaf", "info") if line.startswith("Note: leaf0")] == [
        "Note: leaf0e1 is down and passes no frames: ip link set leaf0e1 up"
    ]


def test_c41_a_tap_that_the_host_has_an_address_on_stays_as_it_is(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.ip(
        "tuntap add leaf0e0 mode tap user root", "address add 192.0.2.1/24 dev leaf0e0", "link set leaf0e0 up"
    )
    wired.done("leaf", "start")
    assert "UP" in wired.links()["leaf0e0"]["flags"]
    assert "192.0.2.1" in addresses(wired, "leaf0e0")


def test_c41_a_guest_that_is_moved_is_not_the_hosts_to_hear_in_between(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "1", "lab")
    wired.done("net", "vlan", "core")
    over = threading.Event()
    with station(wired, "leaf0e0") as guest:

        def flood() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError):
                    guest.send(*router_advertisement())

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for bridge in ("core", "-", "lab", "core"):
                wired.done("leaf", "connect", "0", bridge)
        finally:
            over.set()
            thread.join()
    assert learned(wired) == ""
    assert [name for name in wired.links() if addresses(wired, name)] == []


def test_c41_the_loose_end_of_a_pair_is_down_until_it_is_plugged_in(wired: WiredDaemon) -> None:
    wired.done("net", "vlan", "lab", "leaf0e0", "vethA0")
    wired.done("net", "add", "vxlan7")
    links = wired.links()
    assert {name for name, link in links.items() if "UP" not in link["flags"]} == {"vethB0", "vxlan7"}
    with station(wired, "leaf0e0") as guest:
        guest.send(*router_advertisement())
        assert learned(wired) == ""
        wired.done("net", "vlan", "core", "vethB0", "vxlan7", "spine0e0")
        assert all("UP" in link["flags"] for link in wired.links().values())
        with station(wired, "spine0e0") as other:
            until_heard(guest, other, router_advertisement())
    assert learned(wired) == ""


def test_c41_a_bridge_of_an_earlier_version_is_silent_when_it_is_used_next(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.ip("tuntap add leaf0e0 mode tap user root")
    an_earlier_bridge(wired, "lab", "leaf0e0")
    an_earlier_bridge(wired, "core")
    advertise(wired, "leaf0e0", "lab")
    wired.done("leaf", "start")
    assert (learned(wired), addresses(wired, "lab")) == ("", [])
    links = wired.links()
    assert [links[name]["ifalias"] for name in ("lab", "leaf0e0")] == [wired.mark()] * 2
    assert links["core"]["ifalias"] == "vmess"
    wired.done("leaf", "connect", "0", "core")
    assert (wired.links()["core"]["ifalias"], addresses(wired, "core")) == (wired.mark(), [])


def test_c41_prune_sees_through_addresses_that_the_kernel_formed(wired: WiredDaemon) -> None:
    wired.ip("tuntap add tap0 mode tap user root")
    an_earlier_bridge(wired, "lab", "tap0")
    an_earlier_bridge(wired, "station")
    wired.ip("address add fe80::1/64 dev station")
    advertise(wired, "tap0", "lab")
    wired.ip("link set tap0 nomaster")
    assert addresses(wired, "lab")[0].startswith(FORGED)
    assert lines_of(wired, "net", "prune") == ["Deleted lab"]
    assert set(wired.links()) == {"tap0", "station"}


# What the host says


@pytest.fixture
def routing(make_wired: MakeWired) -> WiredDaemon:
    """A daemon whose host is a router with one link of its own, `uplink`, to `outside`."""
    daemon = make_wired()
    daemon.ip(
        "link add uplink type veth peer name outside",
        "link set uplink up",
        "link set outside up",
        f"address add {UPLINK}/24 dev uplink",
        "route add default via 198.51.100.254",
        "neigh add 198.51.100.254 lladdr 02:00:00:00:00:fe dev uplink nud permanent",
    )
    daemon.namespace.run(
        *("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.icmp_echo_ignore_broadcasts=0"),
        *("net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.forwarding=1"),
    )
    daemon.start()
    return daemon


def probe(guest: Station, bridge_mac: str) -> None:
    """Send what a host may answer, take or pass on."""
    for source in ("10.0.0.5", "198.51.100.7", "0.0.0.0"):  # noqa: S104 -- a probe's, and DHCP's
        guest.send(*arp(guest, source, UPLINK))
        guest.send(*ipv4(bridge_mac, source, UPLINK, 1, echo()))
        guest.send(*ipv4(bridge_mac, source, UPLINK, 17, udp(4444, b"to the host")))
        guest.send(*ipv4(bridge_mac, source, BEYOND, 17, udp(4444, b"passed on")))
        guest.send(*ipv4(BROADCAST, source, "255.255.255.255", 1, echo()))
        guest.send(*ipv4("01:00:5e:00:00:01", source, "224.0.0.1", 1, echo()))
        guest.send(*ipv4("01:00:5e:00:00:01", source, "224.0.0.1", 2, membership_query()))
    guest.send(*router_advertisement())


def of_the_host(seen: list[Seen], links: set[str], guests: set[bytes]) -> list[str]:
    """Return what was sent on these links and does not come from a guest."""
    return [
        f"{link}: {frame.hex()}"
        for link, sent, frame in seen
        if link in links and sent and frame[6:12] not in guests
    ]


def passed_on(seen: list[Seen]) -> list[Seen]:
    return [one for one in seen if one.link == "uplink" and b"passed on" in one.frame]


def test_c42_a_segment_without_an_address_of_the_host_is_silent(routing: WiredDaemon) -> None:
    wired, name = routing, routing.namespace.name
    for vm in ("leaf0", "spine0"):
        wired.make(vm)
    with Capture(name) as capture:
        a_bridge_by_hand(wired)
        with station(wired, "tap0") as guest:
            seen: list[Seen] = []

            def is_heard() -> bool:
                probe(guest, "06:00:00:00:00:07")
                seen.extend(capture.seen())
                return bool(of_the_host(seen, {"byhand"}, {guest.mac}) and passed_on(seen))

            wait_for(is_heard, what="the host on a bridge made by hand")
        wired.ip("link delete byhand", "link delete tap0")
        capture.seen()

        wired.done("leaf", "ifadd", "2", "lab", "-")
        wired.done("net", "vlan", "lab", "vethA0", "vxlan7")
        wired.done("net", "vlan", "core", "vethB0")
        wired.done("spine", "ifadd", "1", "lab")
        with station(wired, "leaf0e0") as guest, station(wired, "spine0e0") as other:
            until_heard(guest, other, (BROADCAST, 0x88B5, bytes(60)))
            wired.done("leaf", "connect", "1", "lab")
            wired.done("leaf", "connect", "1", "-")
            group = within(name, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with group:
                group.bind(("", 4444))
                group.setblocking(False)
                wanted = socket.inet_aton("239.1.2.3")
                group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, wanted + bytes(4))
                probe(guest, wired.links()["lab"]["address"])
                wired.namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
                wired.namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
                wired.namespace.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=0")
                wired.namespace.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
                probe(guest, wired.links()["lab"]["address"])
                time.sleep(1.5)  # an answer, or a report of groups, would be there by now
                heard = [group.recvfrom(100)[1][0]] if _has_come(group) else []
            seen = capture.seen()
            assert of_the_host(seen, set(wired.links()) - {"uplink", "outside"}, {guest.mac}) == []
            assert passed_on(seen) == []
            assert heard in ([], ["0.0.0.0"])  # noqa: S104 -- a broadcast without a source, as DHCP's is
            assert other.received(), "the guests hear each other"


def _has_come(receiver: socket.socket) -> bool:
    with contextlib.suppress(BlockingIOError):
        return bool(receiver.recv(100, socket.MSG_PEEK))
    return False


def test_c42_an_address_given_by_hand_makes_the_host_a_station_and_a_router(routing: WiredDaemon) -> None:
    wired, name = routing, routing.namespace.name
    wired.done("net", "vlan", "lab", "leaf0e0")
    mac = wired.links()["lab"]["address"]
    wired.ip("address add 10.0.0.1/24 dev lab")
    answers: list[bytes] = []
    with Capture(name) as capture, station(wired, "leaf0e0") as guest:
        seen: list[Seen] = []

        def is_routed() -> bool:
            guest.send(*arp(guest, "10.0.0.5", "10.0.0.1"))
            guest.send(*arp(guest, "10.0.0.5", UPLINK))
            guest.send(*ipv4(mac, "10.0.0.5", BEYOND, 17, udp(4444, b"passed on")))
            answers.extend(frame for frame in guest.received() if frame[12:14] == b"\x08\x06")
            seen.extend(capture.seen())
            return bool(answers and passed_on(seen))

        wait_for(is_routed, what="the host as a router")
        assert {frame[28:32] for frame in answers if frame[21] == 2} == {socket.inet_aton("10.0.0.1")}
    wired.ip("link set lab mtu 1500", "address add 2001:db8::1/64 dev lab")
    wired.make("spine0")
    wired.done("spine", "ifadd", "1", "lab")
    assert {"10.0.0.1", "2001:db8::1"} <= set(addresses(wired, "lab"))
    assert wired.links()["lab"]["mtu"] == 1500
    wired.ip("address flush dev lab")
    wired.done("net", "vlan", "lab")
    assert (wired.links()["lab"]["mtu"], addresses(wired, "lab")) == (1279, [])


def test_c42_a_bridge_of_an_earlier_version_with_an_address_is_left_as_it_is(wired: WiredDaemon) -> None:
    an_earlier_bridge(wired, "lab")
    wired.ip("address add 2001:db8::1/64 dev lab")
    wired.done("net", "vlan", "lab", "leaf0e0")
    links: dict[str, dict[str, Any]] = wired.links()
    assert (links["lab"]["mtu"], links["lab"]["ifalias"]) == (1500, wired.mark())
    assert "2001:db8::1" in addresses(wired, "lab")


PLAIN: dict[str, Any] = {
    "master": 0,
    "attached": False,
    "loopback": False,
    "mac": "",
    "alias": "",
    "group": 0,
    "tap": False,
    "owner": None,
    "multi_queue": False,
}


class Recorded:
    """A kernel that has one link, and notes what it is asked to do."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.requests: list[netlink_requests.Request] = []

    def link_at(self, index: int) -> Link:
        assert index == self.link.index
        return self.link

    def do(self, requests: Iterable[netlink_requests.Request], *, tolerate: int = 0) -> None:
        self.requests += requests


@pytest.mark.parametrize("carries", [False, True])
def test_c41_a_vlan_waits_until_what_it_lives_on_is_plugged_in(*, carries: bool) -> None:
    base = Link(**PLAIN, index=7, name="vethA0", kind="veth", parent=0, up=carries)
    vlan = Link(**PLAIN, index=8, name="vethA0.5", kind="vlan", parent=7, up=False, mtu=1500)
    kernel = Recorded(base)
    network = Network(Access(0))
    change = Change(network.kernel)
    bridge = Link(**PLAIN, index=3, name="lab", kind="bridge", parent=0, up=True)
    network.plug(kernel, change, vlan, bridge, ())  # type: ignore[arg-type]
    is_set_up = (
        netlink_requests.change(8, up=True) in kernel.requests
    )  # which the kernel refuses over one that is down
    assert is_set_up is carries
    assert change.steps == ([] if carries else [Step(StepKind.waiting, "vethA0")])
