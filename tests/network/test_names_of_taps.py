"""VMs whose names the original did not know: their TAPs, by the names of the kernel and by those for people."""

import json
import subprocess

import pytest
from daemons import UNIT, WiredDaemon, held_by, lines_of, refused

from vmessd.core import names

pytestmark = pytest.mark.qemu

LONG = "kubernetes-node-12"
TAPS = [names.tap(LONG, index) for index in range(2)]
"""As the kernel knows them."""


def long_names(daemon: WiredDaemon) -> dict[str, list[str]]:
    """Return the alternative names of all links that have some."""
    return {name: link["altnames"] for name, link in daemon.links().items() if "altnames" in link}


def test_a_name_that_fits_is_that_of_the_tap(wired: WiredDaemon) -> None:
    wired.make("web-1")
    wired.make("leaf12")
    wired.done("web-1", "leaf12", "ifadd", "1", "lab")
    assert wired.wiring() == {"lab": None, "web-1e0": "lab", "leaf12e0": "lab"}
    assert long_names(wired) == {}
    assert wired.links()["web-1e0"]["address"] == names.tap_mac(names.mac("web-1", 0))
    assert lines_of(wired, "net") == ["vmess net vlan lab leaf12e0 web-1e0"]


def test_a_tap_with_a_long_name_has_it_everywhere_but_in_the_kernel(wired: WiredDaemon) -> None:
    wired.make(LONG)
    said = wired.done(LONG, "ifadd", "2", "lab", "-")
    assert f"{LONG}e0" in said
    assert f"{LONG}e1" in said
    assert wired.wiring() == {"lab": None, TAPS[0]: "lab", TAPS[1]: None}
    assert long_names(wired) == {TAPS[0]: [f"{LONG}e0"], TAPS[1]: [f"{LONG}e1"]}
    assert {link["ifalias"] for link in wired.links().values()} == {wired.mark()}
    wired.done("net", "vlan", "other", f"{LONG}e1")
    wired.done(LONG, "connect", f"{LONG}e0", "other")
    assert lines_of(wired, "net") == ["vmess net vlan lab", f"vmess net vlan other {LONG}e0 {LONG}e1"]
    nics = json.loads(wired.done(LONG, "ifstat", "--json"))["nics"]
    assert [nic["tap"] for nic in nics] == [f"{LONG}e0", f"{LONG}e1"]
    wired.done(LONG, "start")
    assert held_by(wired.status(LONG)["pid"]) == set(TAPS)
    shown = [wired.vmessctl(LONG, verb).stdout for verb in ("info", "addr", "ifstat")]
    assert f"{LONG}e0: other" in shown[0]
    assert f"{LONG}e1  {names.mac(LONG, 1)}" in shown[1]
    assert "vm_" not in said + "".join(shown) + wired.log.read_text()
    assert refused(wired, 1, "net", "delete", f"{LONG}e0").startswith(f"vmess: VM {LONG} is running")
    wired.done(LONG, "stop", "force")
    wired.done(LONG, "ifdel")
    assert wired.wiring() == {"lab": None, "other": None}


def test_a_tap_is_found_by_each_of_its_names(wired: WiredDaemon) -> None:
    wired.make(LONG)
    wired.done(LONG, "ifadd", "1", "lab")
    wired.done(LONG, "lock", "mine")
    for name in (f"{LONG}e0", TAPS[0]):
        assert refused(wired, 7, "net", "vlan", "other", name) == f"vmess: VM {LONG} is locked: mine"
        assert refused(wired, 7, "net", "delete", name) == f"vmess: VM {LONG} is locked: mine"
    wired.done(LONG, "unlock")
    wired.done("net", "vlan", "other", TAPS[0])
    assert wired.wiring() == {"lab": None, "other": None, TAPS[0]: "other"}
    wired.done("net", "ignore", f"{LONG}e0")
    assert lines_of(wired, "net") == ["vmess net vlan lab", "vmess net vlan other"]
    wired.done("net", "add", f"{LONG}e0")
    assert lines_of(wired, "net") == ["vmess net vlan lab", f"vmess net vlan other {LONG}e0"]
    wired.done("net", "delete", f"{LONG}e0")
    wired.done("net", "add", f"{LONG}e0")  # as newvm0e0 can be added
    assert wired.wiring() == {"lab": None, "other": None, TAPS[0]: None}
    assert long_names(wired) == {TAPS[0]: [f"{LONG}e0"]}


def test_a_long_name_that_was_lost_comes_back_and_one_that_is_taken_is_told(wired: WiredDaemon) -> None:
    wired.make(LONG)
    wired.done(LONG, "ifadd", "1", "lab")
    wired.ip(f"link property del dev {TAPS[0]} altname {LONG}e0")
    assert wired.wiring()[TAPS[0]] == "lab"
    wired.done(LONG, "start")
    assert long_names(wired) == {TAPS[0]: [f"{LONG}e0"]}
    wired.ip("link add dummy0 type bridge", f"link property add dev dummy0 altname {LONG}e1")
    told = refused(wired, 1, LONG, "ifadd", "2", "lab")
    assert told == f"vmess: the name {LONG}e1 is taken by a bridge, dummy0; a TAP needs it"
    assert TAPS[1] not in wired.wiring()


def test_the_wires_go_along_when_the_vm_gets_a_name_of_another_form(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm0", "ifadd", "2", "lab")
    wired.done("newvm0", "rename", LONG)
    assert wired.wiring() == {"lab": None, TAPS[0]: "lab", TAPS[1]: None}
    (wired.root / LONG).rename(wired.root / "leaf12")
    assert lines_of(wired, "net", "prune") == [f"Deleted {LONG}e0", f"Deleted {LONG}e1", "Deleted lab"]
    assert wired.wiring() == {}


def test_a_name_that_may_be_a_bridge_is_a_tap_only_of_a_vm_that_there_is(wired: WiredDaemon) -> None:
    wired.make("a0")
    wired.done("a0", "ifadd", "1", "lab-bridge1")
    assert wired.wiring() == {"lab-bridge1": None, "a0e0": "lab-bridge1"}
    assert "its name does not say what to create" in refused(wired, 2, "net", "vlan", "lab", "pe1xe0")
    wired.make("pe1x")
    wired.done("net", "vlan", "lab", "pe1xe0")
    assert wired.wiring()[names.tap("pe1x", 0)] == "lab"
    assert "pe1xe0" in wired.done("net")


def test_links_of_others_whose_names_might_be_those_of_taps_are_left_alone(wired: WiredDaemon) -> None:
    wired.ip(
        "link add br-0123456789e1 type bridge",
        "link add veth0a1b2e3 type veth peer name x",
        "tuntap add tap1a2b3c4e5 mode tap",
    )
    wired.make("a0")
    wired.done("a0", "ifadd", "1", "br-0123456789e1")
    assert wired.wiring()["a0e0"] == "br-0123456789e1"
    for link, kind in (("veth0a1b2e3", "a veth"), ("tap1a2b3c4e5", "a TAP or TUN")):
        told = refused(wired, 1, "net", "vlan", "lab", link)
        assert told == f"vmess: {link} is {kind} and not vmess's own, so it is left alone"
    wired.make("tap1a2b3c4")
    told = refused(wired, 1, "tap1a2b3c4", "ifadd", "6", *["user"] * 5, "lab")
    assert told == "vmess: TAP tap1a2b3c4e5 was not made by vmessd, so it is left alone"


def test_the_name_of_a_bridge_of_ours_is_not_that_of_a_new_vm(wired: WiredDaemon) -> None:
    wired.ip("link add theirs0 type bridge")
    wired.done("net", "vlan", "lab0")
    assert refused(wired, 2, "lab0", "make") == "vmess: VM name 'lab0' is the name of a bridge that vmess made"
    wired.make("theirs0")
    assert "is the name of a bridge" in refused(wired, 2, "theirs0", "rename", "lab0")


def test_ip_takes_the_long_name(wired: WiredDaemon) -> None:
    wired.make(LONG)
    wired.done(LONG, "ifadd", "1", "lab")
    shown = subprocess.run(
        [*wired.inside, "ip", "-json", "link", "show", f"{LONG}e0"],
        capture_output=True,
        check=True,
        timeout=30 * UNIT,
    )
    assert json.loads(shown.stdout)[0]["ifname"] == TAPS[0]
