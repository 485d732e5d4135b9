"""The net verbs and `addr` on real links, in a network namespace for each test."""

import contextlib
import json
import shlex
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from daemons import UNIT, WiredDaemon, lines_of, refused, wait_for
from frames import BROADCAST, Station, octets, received, until_heard

from vmessd.network import links

pytestmark = pytest.mark.qemu

MakeWired = Callable[..., WiredDaemon]

MAC = "02:11:9b:af:00:00"
LINK_LOCAL = "fe80::11:9bff:feaf:0"


def state_of(daemon: WiredDaemon) -> dict[str, tuple[Any, ...]]:
    """Return of all links what a refused command must not have changed."""
    return {
        name: (
            link["ifindex"],
            link.get("master"),
            link.get("address"),
            "UP" in link["flags"],
            link.get("ifalias"),
        )
        for name, link in daemon.links().items()
    }


def addressed(daemon: WiredDaemon) -> list[str]:
    """Return the links on which the host has an IPv6 address."""
    found = daemon.namespace.run("ip", "-6", "-json", "address", "show").stdout
    return [link["ifname"] for link in json.loads(found) if link.get("addr_info")]


def replay(daemon: WiredDaemon, lines: list[str]) -> None:
    """Run lines that the client printed, as a shell would."""
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "vmess"
        daemon.done(*words)


# Names of network cards


def test_c45_a_bridge_is_not_given_a_network_cards_name_by_a_slip(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    for name in ("eth0", "enp3s0", "wlan0"):
        for words in (("ifadd", "1", name), ("ifadd", "2", "lab", name)):
            result = wired.vmess("newvm", *words)
            assert (result.returncode, result.stdout) == (2, "")
            assert result.stderr.splitlines() == [
                f"vmess: bridge name '{name}' is the name of a network card, and there is no such bridge",
                f"  hint: if you mean a bridge, make it first: vmess net vlan {name}",
            ]
    assert (wired.links(), wired.noted("newvm0") or None) == ({}, None)
    wired.done("newvm", "ifadd", "1", "-")
    assert "'eth0'" in refused(wired, 2, "newvm", "connect", "0", "eth0")
    wired.done("net", "vlan", "eth0")
    wired.done("newvm", "connect", "0", "eth0")
    assert wired.wiring() == {"eth0": None, "newvm0e0": "eth0"}
    wired.done("newvm", "ifadd", "3", "eth0", "entry", "web0")
    wired.done("newvm", "ifdel")
    wired.done("net", "delete", "eth0")
    wired.done("net", "vlan", "eth0", "newvm0e0")
    (wired.root / "newvm0/NICS").write_text("eth0")
    wired.ip("link delete newvm0e0", "link delete eth0")
    assert "'eth0'" in refused(wired, 2, "newvm", "start")  # a card of that name may still come
    assert "eth0" not in wired.links()


# What is shown recreates what is there


def test_the_lines_of_show_recreate_what_they_show(wired: WiredDaemon) -> None:
    assert lines_of(wired, "net", "vlan", "lab", "newvm0e0", "vethA0") == [
        "Making a VLAN: lab",
        "preparing a TAP interface newvm0e0",
        "Set 'newvm0e0' persistent and owned by uid 0",
        "[vethA0]: one end of a pair",
    ]
    wired.done("net", "vlan", "core", "newvm0e10", "newvm0e2", "vethB0", "vxlan7")
    wired.done("net", "vlan", "empty10")
    wired.done("net", "vlan", "empty2")
    wired.done("net", "add", "vethB3")
    result = wired.vmess("net")
    assert result.stderr.splitlines()[0] == "Network connections per-segment:"
    shown = result.stdout.splitlines()
    assert shown == [
        "vmess net vlan core newvm0e2 newvm0e10 vethB0 vxlan7",
        "vmess net vlan empty2",
        "vmess net vlan empty10",
        "vmess net vlan lab newvm0e0 vethA0",
        "vmess net add vethA3",
        "vmess net add vethB3",
    ]
    assert lines_of(wired, "net", "show") == shown
    before = {name: (state[1], *state[3:]) for name, state in state_of(wired).items()}
    for name in ("newvm0e0", "newvm0e2", "newvm0e10", "vethA0", "vethA3", "vxlan7"):
        wired.done("net", "delete", name)
    wired.done("net", "prune")
    assert wired.links() == {}
    replay(wired, shown)
    assert lines_of(wired, "net") == shown
    assert {name: (state[1], *state[3:]) for name, state in state_of(wired).items()} == before
    replay(wired, shown)  # and again, where all of it is there
    assert lines_of(wired, "net") == shown


def test_the_lines_of_ifstat_recreate_what_they_show(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "4", "lab", "-", "user:2222:22,2223:23", "core")
    wired.done("newvm", "cable", "3", "off")
    shown = lines_of(wired, "newvm", "ifstat")
    assert shown == ["vmess newvm0 ifadd 4 lab - user:2222:22,2223:23 core", "vmess newvm0 cable 3 off"]
    before = wired.wiring()
    wired.done("newvm", "ifdel")
    replay(wired, shown)
    assert (wired.wiring(), lines_of(wired, "newvm", "ifstat")) == (before, shown)


def test_names_that_shells_and_terminals_would_obey_are_shown_harmless(wired: WiredDaemon) -> None:
    for name in ("a;b", "a$b", "a'b", "\x1b[31m"):
        subprocess.run(
            ["ip", "-n", wired.namespace.name, "link", "add", name, "type", "bridge"],
            check=True,
            timeout=30 * UNIT,
        )
    shown = wired.done("net")
    assert "\x1b" not in shown
    words = [shlex.split(line)[3] for line in shown.splitlines()]
    assert {"a;b", "a$b", "a'b"} < set(words)


PLAIN = {"cables": None, "hub": None, "mtu": None, "vxlans": None}


def test_what_all_show_as_json_is_what_they_show_as_text(wired: WiredDaemon) -> None:
    wired.done("net", "vlan", "lab", "newvm0e0")
    wired.ip("link add foreign up type bridge")
    result = wired.vmess("net", "show", "--json")
    assert result.stderr == ""
    segments = json.loads(result.stdout)["segments"]
    assert [
        {key: value for key, value in segment.items() if key not in ("remark", "nat")} for segment in segments
    ] == [
        {"bridge": "foreign", "own": False, "ports": [], "root": None, "foreign": [], **PLAIN},
        {"bridge": "lab", "own": True, "ports": ["newvm0e0"], "root": None, "foreign": [], **PLAIN},
    ]


# Making


def test_vlan_gives_what_it_makes_the_mark_and_no_address(wired: WiredDaemon) -> None:
    wired.done("net", "vlan", "lab", "newvm0e0", "vethA0", "vxlan7")
    links = wired.links()
    assert set(links) == {"lab", "newvm0e0", "vethA0", "vethB0", "vxlan7"}
    assert {name: link["master"] for name, link in links.items() if "master" in link} == {
        "newvm0e0": "lab",
        "vethA0": "lab",
        "vxlan7": "lab",
    }
    assert {name for name, link in links.items() if "UP" not in link["flags"]} == {"vethB0"}
    assert {link["inet6_addr_gen_mode"] for link in links.values() if "master" in link} == {"none"}
    assert addressed(wired) == ["lo"]
    assert {link["ifalias"] for link in links.values()} == {wired.mark()}
    assert links["newvm0e0"]["linkinfo"]["info_data"]["user"] == "root"
    vxlan = links["vxlan7"]["linkinfo"]["info_data"]
    assert (vxlan["id"], vxlan["port"]) == (7, 4789)
    again = wired.vmess("net", "vlan", "lab", "newvm0e0")
    assert again.stderr == "device lab already exists; can't create bridge with the same name\n"


def has_vlans(daemon: WiredDaemon) -> bool:
    """Tell whether this kernel has 8021q."""
    daemon.ip("link add probe type veth peer name other")
    found = daemon.namespace.can("link add link probe name tagged type vlan id 5")
    daemon.ip("link delete probe")
    return found


@pytest.fixture
def vlans(wired: WiredDaemon) -> WiredDaemon:
    """A daemon whose kernel makes VLAN sub-interfaces."""
    if not has_vlans(wired):
        pytest.skip("this kernel has no 8021q; contrib/check --long runs this test under Debian's")
    return wired


def test_a_vlan_of_a_link_is_made_and_shown(vlans: WiredDaemon) -> None:
    vlans.done("net", "add", "vethA0")
    assert "[vethA0.100]: Ethernet sub-interface" in lines_of(vlans, "net", "vlan", "lab", "vethA0.100")
    link = vlans.links()["vethA0.100"]
    assert (link["master"], link["linkinfo"]["info_kind"]) == ("lab", "vlan")
    assert (link["linkinfo"]["info_data"]["id"], link["link"]) == (100, "vethA0")
    assert (link["ifalias"], link["inet6_addr_gen_mode"]) == (vlans.mark(), "none")
    assert "[vethA1.7]: Ethernet sub-interface" in lines_of(vlans, "net", "vlan", "lab", "vethA1.7")
    vlans.done("net", "delete", "vethA0.100")
    assert "vethA0.100" not in vlans.links()


def test_a_vlan_of_a_trunk_is_a_segment_without_tags(vlans: WiredDaemon) -> None:
    for vm, bridge in (("r1", "trunk"), ("oak0", "trunk"), ("leaf0", "office"), ("spine0", "guests")):
        vlans.make(vm)
        vlans.done(vm, "ifadd", "1", bridge)
    vlans.done("net", "vlan", "office", "r1e0.100")
    vlans.done("net", "vlan", "guests", "r1e0.200")
    with contextlib.ExitStack() as stack:
        router, oak, leaf, spine = (
            stack.enter_context(Station(vlans.namespace.name, f"{vm}e0", f"02:00:00:00:0{number}:01"))
            for number, vm in enumerate(("r1", "oak0", "leaf0", "spine0"))
        )

        def frame(sender: Station, tag: bytes = b"") -> bytes:
            return octets(BROADCAST) + sender.mac + tag + b"\x88\xb5" + bytes(range(60))

        tags = {0: b"", 100: b"\x81\0\0\x64", 200: b"\x81\0\0\xc8", 300: b"\x81\0\1\x2c"}
        for one, tag in ((oak, 0), (leaf, 100), (spine, 200)):
            until_heard(router, one, tag=tags[tag])
            until_heard(one, router)
        for head in tags.values():
            router.send_whole(frame(router, head))
        assert received(oak, 2) == [frame(router), frame(router, tags[300])]
        assert received(leaf, 1) == received(spine, 1) == [frame(router)]
        for one in (leaf, spine, oak):
            one.send_whole(frame(one))
        assert sorted(received(router, 3)) == sorted(
            [frame(leaf, tags[100]), frame(spine, tags[200]), frame(oak)]
        )
        assert [one.received() for one in (oak, leaf, spine)] == [[], [], []]


def test_without_8021q_a_vlan_is_refused_in_one_line_and_nothing_is_left(wired: WiredDaemon) -> None:
    if has_vlans(wired):
        pytest.skip("this kernel has 8021q")
    wired.done("net", "add", "vethA0")
    before = state_of(wired)
    assert "vethA0.100" in refused(wired, 1, "net", "vlan", "lab", "newvm0e0", "vethA0.100")
    hint = wired.vmess("net", "vlan", "lab", "vethA0.100").stderr.splitlines()[1]
    assert hint == "  hint: as root, if the module is installed: modprobe 8021q"
    assert state_of(wired) == before


def test_a_vlan_with_a_tag_that_does_not_exist_is_refused(wired: WiredDaemon) -> None:
    wired.done("net", "add", "vethA0")
    before = state_of(wired)
    for tag in ("0", "4095", "9999"):
        assert f"'{tag}'" in refused(wired, 2, "net", "vlan", "lab", f"vethA0.{tag}")
    assert state_of(wired) == before


def test_a_running_vms_tap_is_moved_by_vlan(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "lab")
    wired.done("newvm", "start")
    wired.done("net", "vlan", "core", "newvm0e0")
    assert wired.wiring()["newvm0e0"] == "core"
    assert "Note: newvm0e0 is plugged into core, but NICS says lab" in lines_of(wired, "newvm", "info")
    assert wired.status("newvm0")["state"] == "running"


def test_a_tap_that_the_kernel_gave_an_address_by_itself_is_moved_all_the_same(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "lab")
    wired.done("newvm", "start")
    wired.ip("link set newvm0e0 nomaster down", "link set newvm0e0 addrgenmode eui64", "link set newvm0e0 up")
    wait_for(lambda: "newvm0e0" in addressed(wired), 5, "the link-local address")
    wired.done("net", "vlan", "lab", "newvm0e0")
    assert wired.wiring()["newvm0e0"] == "lab"


def test_vlan_makes_all_or_nothing(wired: WiredDaemon) -> None:
    wired.done("net", "vlan", "old", "vethA0")
    wired.ip("link set vethA0 down")
    before = state_of(wired)
    refused(wired, 1, "net", "vlan", "lab", "newvm0e0", "vethA0", "vethA1", "vxlan7", "lo")
    assert state_of(wired) == before
    refused(wired, 2, "net", "vlan", "lab", "newvm0e0", "nosuchlink")
    assert state_of(wired) == before
    refused(wired, 1, "net", "vlan", "old", "newvm0e0", "old")
    assert state_of(wired) == before


NONSENSE: list[tuple[int, str, list[str]]] = [
    (2, "'leaf0'", ["vlan", "leaf0"]),
    (2, "'leaf0e0'", ["vlan", "leaf0e0"]),
    (2, "''", ["vlan", ""]),
    (2, "'a/b'", ["vlan", "a/b"]),
    (2, "'br%d'", ["vlan", "br%d"]),
    (2, "'abcdefghijklmnop'", ["vlan", "abcdefghijklmnop"]),
    (2, "'user'", ["vlan", "user"]),
    (1, "lo is the loopback", ["vlan", "lo"]),
    (1, "here is a veth", ["vlan", "here"]),
    (1, "another is an alternative name of corp", ["vlan", "another"]),
    (2, "''", ["vlan", "lab", ""]),
    (2, "'a/b'", ["vlan", "lab", "a/b"]),
    (2, "'eth%d'", ["vlan", "lab", "eth%d"]),
    (2, "'nosuch'", ["vlan", "lab", "nosuch"]),
    (2, "'nosuch'", ["vlan", "lab", "nosuch.5"]),
    (2, "'vxlan0'", ["vlan", "lab", "vxlan0"]),
    (2, "'vxlan99999999'", ["vlan", "lab", "vxlan99999999"]),
    (1, "here", ["vlan", "lab", "here"]),
    (1, "tun0", ["vlan", "lab", "tun0"]),
    (1, "corp", ["vlan", "lab", "corp"]),
    (1, "lo", ["vlan", "lab", "lo"]),
    (1, "lo", ["vlan", "lab", "lo.5"]),
    (2, "'nosuch'", ["add", "nosuch"]),
    (2, "'-'", ["add", "-"]),
    (1, "here", ["add", "here"]),
    (1, "nosuch", ["delete", "nosuch"]),
    (2, "''", ["delete", ""]),
    (1, "lo is the loopback", ["delete", "lo"]),
    (1, "here is a veth", ["delete", "here"]),
    (1, "corp is a bridge", ["delete", "corp"]),
    (1, "another is an alternative name of corp", ["delete", "another"]),
    (1, "tun0 is a TAP or TUN", ["delete", "tun0"]),
    (2, "'a/b'", ["ignore", "a/b"]),
    (2, r"'a\nb'", ["ignore", "a\nb"]),
    (2, "'nosuch'", ["nosuch"]),
    (2, "net vlan needs", ["vlan"]),
    (2, "net delete takes", ["delete", "a", "b"]),
]


@pytest.fixture(scope="module")
def foreign(shared_wired: WiredDaemon) -> tuple[WiredDaemon, object]:
    """A daemon beside links of somebody else's, and what there is."""
    shared_wired.make("leaf0")
    shared_wired.ip(
        "link add here type veth peer name there",
        "link add corp up type bridge",
        "link property add dev corp altname another",
        "tuntap add tun0 mode tun",
    )
    return shared_wired, state_of(shared_wired)


@pytest.mark.parametrize(
    ("status", "named", "words"), NONSENSE, ids=[shlex.join(words) for _, _, words in NONSENSE]
)
def test_what_makes_no_sense_is_named_and_changes_nothing(
    foreign: tuple[WiredDaemon, object], status: int, named: str, words: list[str]
) -> None:
    daemon, before = foreign
    assert named in refused(daemon, status, "net", *words)
    assert state_of(daemon) == before
    assert not daemon.mentions("Traceback")


# Deleting


def test_delete_takes_away_what_is_ours_and_unused(wired: WiredDaemon) -> None:
    wired.done("net", "vlan", "lab", "newvm0e0", "vethA0")
    before = state_of(wired)
    complaint = refused(wired, 1, "net", "delete", "lab")
    assert "newvm0e0, vethA0" in complaint
    assert state_of(wired) == before
    assert lines_of(wired, "net", "delete", "newvm0e0") == ["Set 'newvm0e0' nonpersistent"]
    assert lines_of(wired, "net", "delete", "vethB0") == ["Deleted vethB0"]
    assert lines_of(wired, "net", "delete", "lab") == ["Deleted lab"]
    assert wired.links() == {}


def test_prune_deletes_only_bridges_of_ours_that_nobody_uses(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.ip(
        "link add foreign up type bridge", "link add aliased up type bridge", "link set aliased alias uplink"
    )
    for bridge in ("empty10", "empty2", "gateway", "used"):
        wired.done("net", "vlan", bridge)
    wired.done("net", "vlan", "used", "newvm0e0")
    wired.ip("address add 10.9.0.1/24 dev gateway")
    assert lines_of(wired, "net", "prune") == ["Deleted empty2", "Deleted empty10"]
    assert set(wired.links()) == {"foreign", "aliased", "gateway", "used", "newvm0e0"}
    assert lines_of(wired, "net", "prune") == [
        "nothing to delete: neither a TAP without a VM nor an empty bridge"
    ]


# Whose links


def test_links_of_others_are_left_alone_unless_the_administrator_allows_them(make_wired: MakeWired) -> None:
    wired = make_wired("--allow-links", "good*,!goodbye")
    wired.ip(
        "link add good0 type veth peer name other0",
        "link add goodbye type veth peer name other1",
        "link add goodbr type bridge",
    )
    wired.start()
    for name in ("other0", "goodbye"):
        before = state_of(wired)
        assert name in refused(wired, 1, "net", "vlan", "lab", name)
        assert name in refused(wired, 1, "net", "delete", name)
        assert name in refused(wired, 1, "net", "add", name)
        assert state_of(wired) == before
    refused(wired, 1, "net", "vlan", "lab", "good0", "goodbye")
    assert state_of(wired) == before  # also what is allowed is put back: it was down
    assert lines_of(wired, "net", "vlan", "lab", "good0") == [
        "Making a VLAN: lab",
        "[good0]: Ethernet interface",
    ]
    assert wired.wiring()["good0"] == "lab"
    assert wired.links()["good0"].get("ifalias") is None
    wired.done("net", "delete", "good0")
    wired.done("net", "delete", "goodbr")
    assert set(wired.links()) == {"lab", "goodbye", "other1"}


def test_vms_are_connected_only_to_bridges_that_are_ours_or_allowed(make_wired: MakeWired) -> None:
    wired = make_wired("--allow-bridges", "lab*,!labsecret")
    wired.ip(*(f"link add {name} up type bridge" for name in ("corp", "lab1", "labsecret")))
    wired.start()
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "ours")
    before = state_of(wired)
    for bridge in ("corp", "labsecret"):
        assert bridge in refused(wired, 1, "newvm", "connect", "0", bridge)
        assert bridge in refused(wired, 1, "newvm", "ifadd", "2", "ours", bridge)
        assert bridge in refused(wired, 1, "net", "vlan", bridge, "newvm0e0")
        assert state_of(wired) == before
        assert wired.noted("newvm0") == "ours"
    wired.done("newvm", "connect", "0", "lab1")
    wired.done("newvm", "connect", "0", "ours")
    wired.done("newvm", "connect", "0", "new")
    assert wired.wiring()["newvm0e0"] == "new"


def test_a_link_with_an_address_of_the_host_is_not_cut_off(make_wired: MakeWired) -> None:
    wired = make_wired()
    wired.start()
    wired.done("net", "add", "vethA0")
    wired.ip("address add 10.9.0.1/24 dev vethA0")
    before = state_of(wired)
    complaint = refused(wired, 1, "net", "vlan", "lab", "vethA0")
    assert "vethA0" in complaint
    assert "address" in complaint
    assert state_of(wired) == before
    assert "10.9.0.1" in wired.namespace.run("ip", "address", "show", "vethA0").stdout
    wired.stop()
    wired.arguments += ["--allow-links", "vethA0"]
    wired.start()
    wired.done("net", "vlan", "lab", "vethA0")
    assert wired.wiring()["vethA0"] == "lab"


def test_a_bridge_of_others_that_is_down_is_left_down_and_told(wired: WiredDaemon) -> None:
    wired.ip("link add corp type bridge")
    wired.make("newvm0")
    result = wired.vmess("newvm", "ifadd", "1", "corp")
    assert result.returncode == 0
    assert "bridge corp is down" in result.stderr
    assert "UP" not in wired.links()["corp"]["flags"]
    wired.done("net", "vlan", "ours")
    wired.ip("link set ours down")
    wired.done("newvm", "connect", "0", "ours")
    assert "UP" in wired.links()["ours"]["flags"]


# Ignoring


def test_an_ignored_link_is_left_out_until_it_is_added_again(wired: WiredDaemon) -> None:
    wired.done("net", "vlan", "lab", "newvm0e0", "newvm0e1")
    wired.done("net", "vlan", "core")
    wired.done("net", "ignore", "newvm0e0")
    wired.done("net", "ignore", "core")
    wired.done("net", "ignore", "core")
    assert lines_of(wired, "net", "ignore") == ["newvm0e0", "core"]
    assert lines_of(wired, "net") == ["vmess net vlan lab newvm0e1"]
    wired.stop()
    wired.start()
    assert lines_of(wired, "net") == ["vmess net vlan lab newvm0e1"]
    assert wired.done() == wired.done("list")  # the file in the VM root is no VM
    wired.done("net", "add", "newvm0e0")
    wired.done("net", "add", "core")
    assert lines_of(wired, "net") == ["vmess net vlan core", "vmess net vlan lab newvm0e0 newvm0e1"]
    assert wired.wiring()["newvm0e0"] == "lab"
    assert wired.done("net", "ignore") == ""


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"x" * 1_000_000, None], ids=["no text", "too long", "directory"]
)
def test_a_list_of_ignored_links_that_makes_no_sense_is_named(
    wired: WiredDaemon, content: bytes | None
) -> None:
    file = wired.root / "NET_IGNORE"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    for words in (["show"], ["ignore"], ["ignore", "lab"]):
        result = wired.vmess("net", *words)
        assert result.returncode == 1
        assert "NET_IGNORE" in result.stderr
    assert not wired.mentions("Traceback")


# Addresses


def addresses(daemon: WiredDaemon, vm: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(daemon.done(vm, "addr", "--json"))["addresses"]
    return found


def test_addr_tells_what_follows_from_the_mac_and_what_the_host_has_heard(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    assert "newvm0 has no interface" in wired.done("newvm", "addr")
    wired.done("newvm", "ifadd", "2", "lab", "user")
    expected = {
        "interface": 0,
        "tap": "newvm0e0",
        "mac": MAC,
        "address": LINK_LOCAL,
        "seen": False,
        "source": "EUI-64 of the MAC, not heard",
        "known": False,
    }
    found = addresses(wired, "newvm0")
    assert found[0] == expected
    assert (found[1]["interface"], found[1]["address"], found[1]["seen"]) == (1, "10.0.2.15", False)

    wired.ip(
        "link set lab mtu 1500",  # for IPv6
        "address add 10.9.0.1/24 dev lab",
        f"neigh add 10.9.0.5 lladdr {MAC} dev lab nud reachable",
        "neigh add 10.9.0.6 lladdr 02:00:00:00:00:01 dev lab nud reachable",
        f"neigh add {LINK_LOCAL} lladdr {MAC} dev lab nud stale",
    )
    seen = {item["address"]: item for item in addresses(wired, "newvm0") if item["interface"] == 0}
    assert set(seen) == {"10.9.0.5", LINK_LOCAL}
    assert all(item["seen"] for item in seen.values())
    assert seen["10.9.0.5"]["source"] == "neighbour table, lab"
    lines = lines_of(wired, "newvm", "addr")
    assert lines[0].split()[:3] == ["newvm0e0", MAC, "10.9.0.5"]
    assert len(lines) == 3


def test_addr_tells_whose_frames_were_heard(wired: WiredDaemon) -> None:
    for vm in ("newvm0", "newvm1"):
        wired.make(vm, "talker")
        wired.done(vm, "ifadd", "1", "lab")
    wired.done("newvm0", "start")
    wired.wait_guest("newvm0")
    wait_for(lambda: "which was heard" in wired.done("newvm0", "addr"), 5, "hearing the guest")
    assert "not heard" in wired.done("newvm1", "addr")
    # Another station behind the same TAP, as with a guest that is itself a bridge.
    wired.namespace.run("bridge", "fdb", "add", "02:00:00:00:00:99", "dev", "newvm0e0", "master", "dynamic")
    found = {item["mac"]: item["address"] for item in addresses(wired, "newvm0")}
    assert found == {MAC: LINK_LOCAL, "02:00:00:00:00:99": "fe80::ff:fe00:99"}


def test_addr_tells_nothing_of_a_tap_that_is_not_there(wired: WiredDaemon) -> None:
    wired.make("newvm0", NICS="lab")
    assert "newvm0 has no interface" in wired.done("newvm", "addr")
    assert refused(wired, 4, "nosuch", "addr")


# Others at work on the same links


def test_links_that_others_keep_changing_are_shown_and_pruned_all_the_same(wired: WiredDaemon) -> None:
    lines = []
    for turn in range(60):
        lines += [f"link add gust{turn % 5} type bridge", f"link set gust{turn % 5} up"]
        lines += [f"link delete gust{turn % 5}"]
    wired.make("newvm0")
    wired.done("net", "vlan", "lab", "newvm0e0")
    with subprocess.Popen(
        ["ip", "-n", wired.namespace.name, "-force", "-batch", "-"], stdin=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        process.stdin.write("\n".join(lines))
        process.stdin.close()
        turns = 0
        while process.poll() is None or not turns:
            for bridge in ("some", "more"):
                wired.done("net", "vlan", bridge)
            assert "vmess net vlan lab newvm0e0" in lines_of(wired, "net")
            assert set(lines_of(wired, "net", "prune")) == {"Deleted some", "Deleted more"}
            turns += 1
            time.sleep(0.01)
    assert wired.wiring()["newvm0e0"] == "lab"
    assert not wired.mentions("Traceback")


# How many


def test_members_make_no_end_of_bridges(wired: WiredDaemon) -> None:
    wired.done("net", "vlan", "first")
    mark = wired.links()["first"]["ifalias"]
    for lines in (
        [f"link add idle{number} type bridge" for number in range(1, links.IDLE_MAX)],
        [f"link set idle{number} alias '{mark}'" for number in range(1, links.IDLE_MAX)],
    ):
        wired.ip(*lines)
    wired.make("newvm0", NICS="fresh")
    most = links.IDLE_MAX
    said = f"vmess: {most} bridges created by vmess have no port; the limit is {most}"
    for words in (("net", "vlan", "other"), ("newvm", "ifadd", "1", "other")):
        assert refused(wired, 1, *words) == said
    assert "other" not in wired.links()
    wired.done("newvm", "start")  # which no member keeps from its bridges
    assert wired.wiring()["newvm0e0"] == "fresh"
    wired.done("net", "vlan", "first", "newvm0e0")  # one that is there is used
    wired.done("net", "prune")
    wired.done("net", "vlan", "other")


def test_members_make_no_end_of_other_links(wired: WiredDaemon) -> None:
    wired.done("net", "add", "vethA0")
    mark = wired.links()["vethA0"]["ifalias"]
    pairs = range(1, links.MADE_MAX // 2)
    wired.ip(*(f"link add vethA{number} type veth peer name vethB{number}" for number in pairs))
    wired.ip(*(f"link set veth{end}{number} alias '{mark}'" for number in pairs for end in "AB"))
    assert f"; the limit is {links.MADE_MAX}" in refused(wired, 1, "net", "add", "vethA999")
    wired.done("net", "delete", "vethA1")
    wired.done("net", "add", "vethA999")
