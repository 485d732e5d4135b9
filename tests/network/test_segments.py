"""Bridges of vmess as network segments: what they let pass, what they learn, and how long frames may be."""

import json
import socket
from collections.abc import Callable, Iterator

import pytest
from daemons import WiredDaemon, refused, wait_for
from frames import BROADCAST, EVERY_KIND, Station, octets, received, until_heard, with_mark, within
from wired_vms import nics

LEAF, SPINE = "02:00:00:00:0a:01", "02:00:00:00:0b:01"
NOT_BY_A_BRIDGE = {"PAUSE", "reserved 01"}

pytestmark = pytest.mark.qemu


@pytest.fixture
def lab(wired: WiredDaemon) -> Iterator[tuple[WiredDaemon, Station, Station]]:
    """A segment with two TAPs, and who is there."""
    wired.done("net", "vlan", "lab", "leaf0e0", "spine0e0")
    name = wired.namespace.name
    with Station(name, "leaf0e0", LEAF) as leaf, Station(name, "spine0e0", SPINE) as spine:
        until_heard(leaf, spine)
        yield wired, leaf, spine


def port(daemon: WiredDaemon, name: str) -> dict[str, object]:
    found: dict[str, object] = daemon.links()[name]["linkinfo"]["info_slave_data"]
    return found


def test_c113_a_bridge_forwards_what_linux_lets_it_forward(lab: tuple[WiredDaemon, Station, Station]) -> None:
    wired, leaf, spine = lab
    firewall = wired.namespace.run("cat", "/proc/sys/net/bridge/bridge-nf-call-iptables", check=False).stdout
    dropped = NOT_BY_A_BRIDGE | ({"malformed IPv4"} if firewall.strip() == "1" else set())
    assert ("bridge-nf-call-iptables is 1" in wired.vmess("net").stderr) is (firewall.strip() == "1")
    for bridge in ("lab", "core"):  # a port forgets what it was told when it moves
        wired.done("net", "vlan", bridge, "leaf0e0", "spine0e0")
        until_heard(leaf, spine)
        sent = {kind: with_mark(leaf, kind, number) for number, kind in enumerate(EVERY_KIND)}
        for size in (1500, 1508, 9216, 64000):
            sent[f"{size} bytes"] = with_mark(leaf, "PPPoE", size, size - 8)
        for frame in sent.values():
            leaf.send_whole(frame)
        got = received(spine, len(sent) - len(dropped))
        assert {kind for kind, frame in sent.items() if frame not in got} == dropped


def test_info_says_as_net_does_that_the_firewall_sees_what_passes_a_bridge(wired: WiredDaemon) -> None:
    wired.make("oak0")
    wired.ip("link add theirs type bridge", "link set theirs up")
    wired.done("oak", "ifadd", "4", "lab", "theirs", "-", "core")
    settings = [
        f"/proc/sys/net/bridge/bridge-nf-call-{name}" for name in ("iptables", "ip6tables", "arptables")
    ]
    if wired.namespace.run("test", "-e", settings[0], check=False).returncode:
        pytest.skip("the module br_netfilter is not loaded")
    for value, seen in ((1, True), (0, False)):
        wired.namespace.run("sh", "-c", f"for file in {' '.join(settings)}; do echo {value} >$file; done")
        remarks = [nic["remark"] for nic in nics(wired, "oak0")]
        assert [remark is not None for remark in remarks] == [seen, False, False, seen]
        said = "Note: bridge-nf-call-iptables is 1: the host's firewall sees what passes a bridge"
        assert wired.done("oak", "info").count(said) == seen
        assert (f"{remarks[0]}\n" in wired.vmess("net").stderr) is seen


def test_lacp_passes_between_a_guest_and_a_card_that_is_allowed(make_wired: Callable[..., WiredDaemon]) -> None:
    wired = make_wired("--allow-links", "card*")
    wired.ip(
        "link add card0 type veth peer name outside",
        "link set outside up",
        "link add card1 type veth peer name other",
    )
    wired.start()
    wired.done("net", "vlan", "lab", "leaf0e0", "card0")
    frame = octets("01:80:c2:00:00:02") + octets(SPINE) + b"\x88\x09" + bytes(50)
    with (
        Station(wired.namespace.name, "leaf0e0", LEAF) as leaf,
        within(wired.namespace.name, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as outside,
    ):
        outside.bind(("outside", 0))

        def passes() -> bool:
            outside.send(frame)
            return frame in leaf.received()

        wait_for(passes, what="LACP from the card")
    # One that is in the bridge without what it needs, for example since an earlier version, gets it as well.
    wired.ip("link set card1 master lab")
    wired.done("net", "vlan", "lab", "vethA0")
    assert port(wired, "card1")["group_fwd_mask"] == "0xfffd"
    wired.ip("link add theirs type bridge")
    wired.ip("link set card0 master theirs")
    assert port(wired, "card0")["group_fwd_mask"] == "0"


@pytest.mark.long
def test_the_tools_of_the_kernel_see_what_a_bridge_and_its_ports_were_told(wired: WiredDaemon) -> None:
    def shown(*words: str) -> dict[str, object]:
        [found] = json.loads(wired.namespace.run(*words).stdout)
        assert isinstance(found, dict)
        return found

    def learns(tap: str) -> object:
        return shown("bridge", "-details", "-json", "link", "show", "dev", tap)["learning"]

    for vm in ("leaf0", "spine0", "oak0"):
        wired.make(vm)
    wired.done("leaf", "spine", "ifadd", "1", "lab")
    assert [learns(tap) for tap in ("leaf0e0", "spine0e0")] == [False, False]
    wired.done("oak", "ifadd", "1", "lab")
    assert [learns(tap) for tap in ("leaf0e0", "spine0e0", "oak0e0")] == [True] * 3
    told = {"mcast_snooping": 0, "group_fwd_mask": "0xfff8", "stp_state": 0, "forward_delay": 0}
    bridge = wired.links()["lab"]["linkinfo"]["info_data"]
    assert {key: bridge[key] for key in told} == told
    assert {port(wired, tap)["group_fwd_mask"] for tap in ("leaf0e0", "spine0e0", "oak0e0")} == {"0xfffd"}
    wired.done("net", "vlan", "lab", "--hub")
    assert wired.links()["lab"]["linkinfo"]["info_data"]["ageing_time"] == 0


def test_c114_a_station_that_moved_without_a_word_is_reached(lab: tuple[WiredDaemon, Station, Station]) -> None:
    wired, leaf, spine = lab
    moved = octets("02:00:00:00:0c:01")
    leaf.send_whole(octets(BROADCAST) + moved + b"\x88\xb5I was here" + bytes(40))
    received(spine, 1)
    leaf.send_whole(moved + leaf.mac + b"\x88\xb5where are you?" + bytes(40))
    assert received(spine, 1)[0].startswith(moved)
    # With a third port there is something to learn; when it is gone, there is not.
    wired.make("oak0")
    wired.done("oak", "ifadd", "1", "lab")
    assert [port(wired, tap)["learning"] for tap in ("leaf0e0", "spine0e0", "oak0e0")] == [True] * 3
    wired.done("oak", "ifdel")
    assert [port(wired, tap)["learning"] for tap in ("leaf0e0", "spine0e0")] == [False] * 2
    wired.done("net", "vlan", "lab", "vethA0")
    assert port(wired, "leaf0e0")["learning"] is True
    assert port(wired, "vethA0")["group_fwd_mask"] == "0xfffd"
    wired.done("net", "delete", "vethA0")
    assert [port(wired, tap)["learning"] for tap in ("leaf0e0", "spine0e0")] == [False] * 2


def test_a_hub_and_the_mtu_of_a_segment(lab: tuple[WiredDaemon, Station, Station]) -> None:
    wired, *_ = lab
    wired.done("net", "vlan", "lab", "--hub", "--mtu", "9000", "vethA0")
    links = wired.links()
    assert links["lab"]["linkinfo"]["info_data"]["ageing_time"] == 0
    assert {links[name]["mtu"] for name in ("leaf0e0", "spine0e0", "vethA0")} == {9000}
    assert "vmess net vlan lab --hub --mtu 9000 leaf0e0 spine0e0 vethA0" in wired.done("net").splitlines()
    wired.make("oak0")
    wired.done("oak", "ifadd", "1", "lab")
    assert wired.links()["oak0e0"]["mtu"] == 9000
    wired.done("net", "vlan", "lab", "--switch", "--mtu", "65000")
    assert "vmess net vlan lab leaf0e0 oak0e0 spine0e0 vethA0" in wired.done("net").splitlines()
    assert wired.links()["oak0e0"]["mtu"] == 65000
    for line, why in (
        ("net vlan lab --mtu 575", "MTU '575' is not a number of bytes from 576 to 65000"),
        ("net vlan lab --mtu 65001", "MTU '65001' is not"),
        ("net vlan lab --mtu many", "MTU 'many' is not a whole number"),
        ("net vlan lab --hub --switch", "--hub and --switch exclude each other"),
    ):
        assert why in refused(wired, 2, *line.split())


def test_a_bridge_of_somebody_else_is_left_as_it_is(wired: WiredDaemon) -> None:
    wired.ip("link add theirs mtu 1400 type bridge", "link set theirs up")
    before = wired.links()["theirs"]
    wired.make("oak0")
    wired.done("oak", "ifadd", "1", "theirs")
    assert wired.links()["oak0e0"]["mtu"] == wired.links()["theirs"]["mtu"] == 1400
    assert port(wired, "oak0e0")["group_fwd_mask"] == "0"
    assert "theirs is not vmess's own" in refused(wired, 1, "net", "vlan", "theirs", "--hub")
    after = wired.links()["theirs"]
    for settings in (before["linkinfo"]["info_data"], after["linkinfo"]["info_data"]):
        timers = ("hello_timer", "gc_timer", "tcn_timer", "topology_change_timer")
        for changing in (*timers, "bridge_id", "root_id"):
            settings.pop(changing)
    assert {key for key in before if before[key] != after[key]} <= {"flags", "operstate", "address"}
    wired.done("oak", "connect", "0", "lab")
    assert wired.links()["oak0e0"]["mtu"] == 65000
