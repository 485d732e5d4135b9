"""VXLANs with peers: two hosts, each a network namespace with a daemon, and a wire between them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import UNIT, WiredDaemon, lines_of, refused, wait_for
from frames import BROADCAST, Station

TO_LEFT, TO_RIGHT = "06:00:00:00:00:01", "06:00:00:00:00:02"
TYPE = 0x88B5  # for local experiments, IEEE 802


def flooding(daemon: WiredDaemon, link: str = "vxlan7") -> list[str]:
    """Where a VXLAN floods, as bridge(8) says."""
    words = ["bridge", "-n", daemon.namespace.name, "-json", "fdb", "show", "dev", link]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30 * UNIT)
    entries = json.loads(shown.stdout)
    return sorted(
        f"{one['dst']} {one['state']} {' '.join(one['flags'])}"
        for one in entries
        if one["mac"] == "00:00:00:00:00:00"
    )


def state(daemon: WiredDaemon) -> object:
    """All that a repeated command could change."""
    kept = ("ifindex", "mtu", "master", "flags", "ifalias", "address")
    links = {name: [link.get(key) for key in kept] for name, link in daemon.links().items()}
    return links, flooding(daemon), (daemon.root / "NET_PEERS").read_text()


@pytest.fixture
def hosts(make_wired: Callable[..., WiredDaemon], tmp_path: Path) -> tuple[WiredDaemon, WiredDaemon]:
    """Two hosts, 192.0.2.1 and 192.0.2.2, also 2001:db8::1 and ::2, with a wire of 1500 bytes between them."""
    made = []
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        made.append(make_wired(directory=tmp_path / name))
    left, right = made
    left.ip(f"link add wire type veth peer name wire netns {right.namespace.name}")
    for number, daemon in enumerate(made, 1):
        daemon.ip(
            f"address add 192.0.2.{number}/24 dev wire",
            f"address add 2001:db8::{number}/64 dev wire nodad",
            "link set wire mtu 1500 up",
        )
        daemon.start()
    return left, right


def send_until_heard(one: Station, to: str, payload: bytes, other: Station) -> None:
    """Send a frame again and again: a bridge drops those before it has noticed the carrier of a port."""

    def heard() -> bool:
        one.send(to, TYPE, payload)
        return any(frame.endswith(payload) for frame in other.received())

    wait_for(heard)


def exchanges(left: WiredDaemon, right: WiredDaemon) -> None:
    """Expect frames between two stations, a broadcast and an answer to it of nearly the MTU."""
    with (
        Station(left.namespace.name, "newvm0e0", TO_LEFT) as one,
        Station(right.namespace.name, "newvm1e0", TO_RIGHT) as other,
    ):
        send_until_heard(one, BROADCAST, b"who is there".ljust(100), other)
        send_until_heard(other, TO_LEFT, b"I am".ljust(1400), one)


def test_c210_frames_pass_between_hosts_that_name_each_other(hosts: tuple[WiredDaemon, WiredDaemon]) -> None:
    left, right = hosts
    left.done("net", "vlan", "lab1", "newvm0e0")
    right.done("net", "vlan", "lab1", "newvm1e0")
    said = lines_of(left, "net", "vlan", "lab1", "vxlan7", "peer", "192.0.2.2")
    assert said[-2:] == [
        "vxlan7 in lab1: peers 192.0.2.2; MTU 1450, which is what the underlay leaves",
        "on 192.0.2.2: vmess net vlan lab1 vxlan7 peer 192.0.2.1",
    ]
    right.done(*said[-1].split()[3:])  # what it says
    links = left.links()
    assert (links["vxlan7"]["mtu"], links["newvm0e0"]["mtu"], links["vxlan7"]["master"]) == (1450, 1450, "lab1")
    assert links["vxlan7"]["linkinfo"]["info_data"]["learning"] is True
    before = state(left)
    assert flooding(left) == ["192.0.2.2 permanent self"]
    assert lines_of(left, "net", "vlan", "lab1", "vxlan7", "peer", "192.0.2.2")[-2:] == said[-2:]
    assert state(left) == before
    assert lines_of(left, "net") == [
        "vmess net vlan lab1 --mtu 1450 newvm0e0",
        "vmess net vlan lab1 vxlan7 peer 192.0.2.2",
    ]
    exchanges(left, right)
    left.done("net", "vlan", "lab1", "--mtu", "1300")  # smaller by hand: it stays
    left.done("net", "vlan", "lab1", "vxlan7", "peer", "192.0.2.2")
    assert left.links()["newvm0e0"]["mtu"] == 1300


def test_c211_the_list_is_all_of_them_and_outlives_the_daemon(hosts: tuple[WiredDaemon, WiredDaemon]) -> None:
    left, _ = hosts
    peers = ["192.0.2.2", "192.0.2.3"]
    said = lines_of(left, "net", "vlan", "lab1", "vxlan7", "peer", *peers)
    assert said[-2:] == [
        "on 192.0.2.2: vmess net vlan lab1 vxlan7 peer 192.0.2.1 192.0.2.3",
        "on 192.0.2.3: vmess net vlan lab1 vxlan7 peer 192.0.2.1 192.0.2.2",
    ]
    left.done("net", "vlan", "lab1", "vxlan7", "peer", "192.0.2.4", "192.0.2.3")
    wanted = ["192.0.2.3 permanent self", "192.0.2.4 permanent self"]
    assert flooding(left) == wanted
    left.stop()
    assert flooding(left) == wanted  # it does not need the daemon
    left.ip("link delete vxlan7", "link delete lab1", "link set wire down")  # a boot, before there is a network
    left.start()
    assert flooding(left) == wanted
    assert (left.links()["vxlan7"]["mtu"], left.wiring()["vxlan7"]) == (1450, "lab1")
    left.ip("link set wire up")
    left.done("net", "vlan", "lab2", "vxlan7")  # moves, and its peers with it
    left.ip("link delete vxlan7")
    left.done("net", "vlan", "lab2", "vxlan7")
    assert (flooding(left), left.wiring()["vxlan7"]) == (wanted, "lab2")
    assert (left.root / "NET_PEERS").read_text() == "lab2 vxlan7 1450 192.0.2.4 192.0.2.3\n"
    left.done("net", "vlan", "lab2", "vxlan7", "peer", "none")
    assert (flooding(left), (left.root / "NET_PEERS").exists()) == ([], False)
    left.done("net", "vlan", "lab2", "vxlan7", "peer", "192.0.2.2")
    left.done("net", "delete", "vxlan7")
    assert not (left.root / "NET_PEERS").exists()
    left.done("net", "vlan", "lab2", "vxlan7", "peer", "192.0.2.2")
    left.ip("link delete vxlan7")
    left.done("net", "vlan", "lab2", "vxlan7", "peer", "none")  # else the next daemon makes it again
    assert not (left.root / "NET_PEERS").exists()


def test_ipv6_carries_a_segment(hosts: tuple[WiredDaemon, WiredDaemon]) -> None:
    left, right = hosts
    left.done("net", "vlan", "lab1", "newvm0e0")
    right.done("net", "vlan", "lab1", "newvm1e0")
    left.done("net", "vlan", "lab1", "vxlan7", "peer", "2001:db8::2")
    right.done("net", "vlan", "lab1", "vxlan7", "peer", "2001:db8::1")
    assert left.links()["vxlan7"]["mtu"] == 1430
    exchanges(left, right)
    complaint = refused(left, 1, "net", "vlan", "lab1", "vxlan7", "peer", "192.0.2.2")
    assert "vxlan7 was made for peers of IPv6" in complaint
    assert flooding(left) == ["2001:db8::2 permanent self"]
    assert left.links()["vxlan7"]["mtu"] == 1430


REFUSED = [
    (2, "192.0.2.1 is an address of this host", "vxlan7 peer 192.0.2.1"),
    (2, "192.0.2.255 is a broadcast address", "vxlan7 peer 192.0.2.2 192.0.2.255"),
    (2, "is a multicast address", "vxlan7 peer 239.1.1.1"),
    (2, "is a loopback address", "vxlan7 peer 127.0.0.1"),
    (2, "is a link-local address", "vxlan7 peer fe80::1"),
    (2, "no address of a host", "vxlan7 peer 0.0.0.0"),
    (1, "no route to the peer 198.51.100.1", "vxlan7 peer 192.0.2.2 198.51.100.1"),
    (1, "no route to the peer 2001:db9::1", "vxlan7 peer 2001:db9::1"),
    (2, "192.0.2.2 is named twice", "vxlan7 peer 192.0.2.2 192.0.2.2"),
    (2, "'2001:db8::2' has no IPv4 address", "vxlan7 peer 192.0.2.2 2001:db8::2"),
    (2, "'vethA0' is not a VXLAN", "vethA0 peer 192.0.2.2"),
    (2, "needs the names or addresses", "vxlan7 peer"),
    (2, "peer none takes no host", "vxlan7 peer none 192.0.2.2"),
    (2, "comes after one VXLAN", "vxlan7 vxlan8 peer 192.0.2.2"),
    (2, "--mtu does not go with peer", "vxlan7 peer 192.0.2.2 --mtu 1300"),
    (1, "vxlan9 was not made by vmess", "vxlan9 peer 192.0.2.2"),
    (1, "vxlan9 was not made by vmess", "vxlan9 peer none"),
    (1, "vxlan8 is a veth", "vxlan8 peer 192.0.2.2"),
    (1, "there is no link vxlan7", "vxlan7 peer none"),
    (2, "VXLAN '0'", "vxlan0 peer 192.0.2.2"),
    (2, "200 peers are more than 64", f"vxlan7 peer {' '.join(f'192.0.2.{n}' for n in range(2, 202))}"),
]


def test_c212_bad_peers_are_refused_in_one_line_and_nothing_stays(
    hosts: tuple[WiredDaemon, WiredDaemon],
) -> None:
    left, _ = hosts
    left.ip("link add vxlan9 type vxlan id 9 dstport 4790", "link add vxlan8 type veth peer name other")
    before = left.links()
    for status, words, line in REFUSED:
        assert words in refused(left, status, "net", "vlan", "lab1", *line.split()), line
    assert left.links() == before
    assert not (left.root / "NET_PEERS").exists()


def test_c213_only_peers_that_the_administrator_allows(
    make_wired: Callable[..., WiredDaemon],
) -> None:
    daemon = make_wired("--allow-peers", "198.51.100.0/24")
    daemon.start()
    complaint = refused(daemon, 1, "net", "vlan", "lab1", "vxlan7", "peer", "192.0.2.2")
    assert "the peer 192.0.2.2 is not allowed; allowed are: 198.51.100.0/24" in complaint
    assert daemon.links() == {}


def test_c213_a_peer_that_is_not_allowed_any_more_is_not_reached_through_another_bridge(
    make_wired: Callable[..., WiredDaemon],
) -> None:
    daemon = make_wired("--allow-peers", "198.51.100.0/24")
    daemon.ip("link add up0 type veth peer name out0", "address add 192.0.2.1/24 dev up0", "link set up0 up")
    daemon.root.mkdir()
    (daemon.root / "NET_PEERS").write_text("lab1 vxlan7 1450 192.0.2.2\n")
    daemon.start()
    said = daemon.vmess("net", "vlan", "lab2", "vxlan7")
    assert (said.returncode, said.stderr) == (
        0,
        "vxlan7 leads nowhere: a peer that is noted for it is not among allow-peers any more\n",
    )
    assert (daemon.root / "NET_PEERS").read_text() == "lab2 vxlan7 1450 192.0.2.2\n"
    assert "192.0.2.2" not in daemon.namespace.run("bridge", "fdb", "show").stdout
    assert "vxlan7: the peer 192.0.2.2 is not allowed" in daemon.log.read_text()
