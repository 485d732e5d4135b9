"""A VM's wires on real links: TAPs, bridges and network cards, in a network namespace for each test.

Guests that exchange frames are those of `netguests.py`; how cards come and go is shown with real QEMU
where its guest can be had to do it, and with the `cards` mode of `fakeqemu.py` where it is about time.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import guests
import pytest
from daemons import FAKE, TESTS, UNIT, Namespace, WiredDaemon, held_by, lines_of, refused, wait_for
from packages import need_public_checkout
from wired_vms import BROKEN_DISK, HURRIED, crash, healthy, heard, monitor, nics, releasing, talker, watched

from vmessctl.client import Client
from vmessd.core import names
from vmessd.core.errors import VmessError

pytestmark = pytest.mark.qemu

MakeWired = Callable[..., WiredDaemon]

NOBODY = 65534


@pytest.fixture
def hurried(make_wired: MakeWired) -> WiredDaemon:
    """A running daemon as `wired` that is soon out of patience."""
    instance = make_wired()
    instance.program = ("-c", HURRIED)
    instance.start()
    return instance


def state_of(daemon: WiredDaemon, vm: str) -> tuple[Any, ...]:
    """Return what a refused command must not have changed: links, and what NICS says."""
    links = {
        name: (link["ifindex"], link.get("master"), link["address"], "UP" in link["flags"], link.get("ifalias"))
        for name, link in daemon.links().items()
    }
    file = daemon.root / vm / "NICS"
    return links, file.read_bytes() if file.is_file() else os.path.lexists(file)


@contextlib.contextmanager
def client_of(daemon: WiredDaemon) -> Iterator[Client]:
    with contextlib.closing(Client([str(daemon.socket)])) as client:
        yield client


# The seed's tour


def test_the_tour_of_the_seed_prints_what_it_prints_there(wired: WiredDaemon) -> None:
    directory = wired.root / "newvm0"
    serious = f"You need to create directory {directory} if are serious about that VM - use vmess make"
    wired.ip("link add vlan100 up type bridge")

    assert serious in wired.vmess("newvm").stderr
    assert lines_of(wired, "newvm", "make") == [serious, "Oh, I see you are serious. Okay, I will proceed."]
    assert os.listdir(directory) == ["CPU"]  # which the original had nowhere
    info = lines_of(wired, "newvm", "info")
    assert info[:2] == ["Total number of interfaces: 0", "Command for this VM"]
    assert info[-1] == "VM not running"
    assert "netdev" not in info[2]

    tour_of_wires(wired, directory)
    pid = tour_of_life(wired, directory)

    assert lines_of(wired, "newvm", "stop") == [f"Stopping VM PID {pid}"]
    assert lines_of(wired, "newvm", "ifdel") == ["Set 'newvm0e0' nonpersistent"]
    shutil.rmtree(directory)
    assert lines_of(wired)[1:] == ["All VMs:"]
    assert sorted(lines_of(wired, "net", "prune")) == [f"Deleted bridge{number}" for number in (1, 2, 3)]
    assert wired.wiring() == {"vlan100": None}
    assert healthy(wired)


def tour_of_wires(wired: WiredDaemon, directory: Path) -> None:
    """Add three interfaces on three bridges, delete them, and add one on a bridge that is there."""
    uid = os.getuid()
    assert lines_of(wired, "newvm", "ifadd", "3", "bridge1", "bridge2", "bridge3") == [
        f"Set 'newvm0e0' persistent and owned by uid {uid}",
        "Making a VLAN: bridge1",
        "preparing a TAP interface newvm0e0",
        f"Set 'newvm0e0' persistent and owned by uid {uid}",
        f"Set 'newvm0e1' persistent and owned by uid {uid}",
        "Making a VLAN: bridge2",
        "preparing a TAP interface newvm0e1",
        f"Set 'newvm0e1' persistent and owned by uid {uid}",
        f"Set 'newvm0e2' persistent and owned by uid {uid}",
        "Making a VLAN: bridge3",
        "preparing a TAP interface newvm0e2",
        f"Set 'newvm0e2' persistent and owned by uid {uid}",
    ]
    bridges = {"bridge1": None, "bridge2": None, "bridge3": None, "vlan100": None}
    plugged = {"newvm0e0": "bridge1", "newvm0e1": "bridge2", "newvm0e2": "bridge3"}
    assert wired.wiring() == bridges | plugged
    info = lines_of(wired, "newvm", "info")
    assert info[0] == "Total number of interfaces: 3"
    command = info[2].split()
    for number in range(3):
        device = f"e1000,netdev=net{number},addr={3 + number:#x},mac=02:11:9b:af:00:{number:02x},id=nic{number}"
        assert f"tap,id=net{number},ifname=newvm0e{number},script=no,downscript=no" in command
        assert device in command
    assert sorted(os.listdir(directory)) == ["CPU", "NICS"]  # nor this

    assert lines_of(wired, "newvm", "ifdel") == [f"Set 'newvm0e{number}' nonpersistent" for number in range(3)]
    info = lines_of(wired, "newvm", "info")
    assert info[0] == "Total number of interfaces: 0"
    assert "netdev" not in info[2]
    assert os.listdir(directory) == ["CPU"]
    assert wired.wiring() == bridges

    added = wired.vmess("newvm", "ifadd", "1", "vlan100")
    assert added.returncode == 0
    assert added.stdout.splitlines() == [
        f"Set 'newvm0e0' persistent and owned by uid {uid}",
        "Making a VLAN: vlan100",
        "preparing a TAP interface newvm0e0",
        f"Set 'newvm0e0' persistent and owned by uid {uid}",
    ]
    assert added.stderr == "device vlan100 already exists; can't create bridge with the same name\n"


def tour_of_life(wired: WiredDaemon, directory: Path) -> int:
    """Give the VM a disk, memory and an image, start it, and return its pid."""
    iso = wired.directory / "ubuntu.iso"
    iso.write_bytes(bytes(4096))
    wired.done("newvm", "hda", "8G")
    wired.done("newvm", "ram", "2G")
    wired.done("newvm", "cdrom", str(iso))
    assert sorted(os.listdir(directory)) == ["CPU", "NICS", "RAM", "newvm0-cdrom.iso", "newvm0-hda.img"]
    assert (directory / "RAM").read_text() == "2G\n"
    (wired.directory / "idle.rom").write_bytes(guests.rom("idle"))
    (directory / "EXARGS").write_text(f"-bios {wired.directory / 'idle.rom'}")  # no system to be installed here
    info = lines_of(wired, "newvm", "info")
    assert info[0] == "Total number of interfaces: 1"
    assert "mac=02:11:9b:af:00:00" in info[2]

    started = wired.done("newvm", "start")
    assert started.startswith("Starting VM: ")
    assert started.split(": ", 1)[1].strip() == info[2].strip()
    wired.wait_guest("newvm0")
    pid: int = wired.status("newvm0")["pid"]
    listing = lines_of(wired)
    assert listing[0] == "List of KVMs (with PIDs as in ps-ef):"
    assert listing[1].split()[:2] == ["newvm0", str(pid)]
    assert lines_of(wired, "newvm") == [f"VM is running, PID: {pid}"]
    assert "LOWER_UP" in wired.links()["newvm0e0"]["flags"]
    return pid


# What the original left


def original(daemon: WiredDaemon, *bridges: str) -> Path:
    """Make a VM as the original script did, a TAP for each bridge."""
    directory = daemon.make("newvm0", RAM="16\n", SMP="2\n")
    with (directory / "newvm0-hda.img").open("wb") as image:
        image.truncate(8 * 2**20 + 1)
    for index, bridge in enumerate(bridges):
        tap = f"newvm0e{index}"
        daemon.ip(f"tuntap add {tap} mode tap user {os.getuid()}")
        if bridge not in daemon.links():
            daemon.ip(f"link add {bridge} up type bridge")
        daemon.ip(f"link set {tap} master {bridge} up")
    return directory


def test_a_directory_and_taps_of_the_original_are_picked_up_unchanged(wired: WiredDaemon) -> None:
    directory = original(wired, "red", "blue")
    before, files = state_of(wired, "newvm0"), sorted(os.listdir(directory))
    info = lines_of(wired, "newvm", "info")
    assert info[0] == "Total number of interfaces: 2"
    assert not [line for line in info if line.startswith("NICS")]
    assert lines_of(wired, "newvm", "ifstat") == ["vmess newvm0 ifadd 2 red blue"]
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    for name in ("newvm0e0", "newvm0e1"):  # nothing is new but that they say whose they are
        assert before[0][name][-1] is None
        before[0][name] = (*before[0][name][:-1], wired.mark())
    assert state_of(wired, "newvm0") == before
    for tap in ("newvm0e0", "newvm0e1"):
        assert "LOWER_UP" in wired.links()[tap]["flags"]
    wired.done("newvm", "stop")
    assert state_of(wired, "newvm0") == before
    assert set(os.listdir(directory)) - set(files) <= {"exit.json", "serial.log", "qemu.log"}


def test_a_tap_that_was_set_down_is_set_up_by_a_start_where_it_is(wired: WiredDaemon) -> None:
    original(wired, "red")
    wired.ip("link set newvm0e0 down")
    wired.done("newvm", "start")
    link = wired.links()["newvm0e0"]
    assert link["master"] == "red"
    assert "UP" in link["flags"]


def test_a_tap_moved_by_hand_is_shown_where_it_is(wired: WiredDaemon) -> None:
    original(wired, "red", "blue")
    wired.ip("link add green up type bridge")
    wired.done("newvm", "start")
    wired.ip("link set newvm0e1 master green")
    assert lines_of(wired, "newvm", "ifstat") == ["vmess newvm0 ifadd 2 red green"]
    assert nics(wired, "newvm0")[1]["wire"] == "green"
    assert "vmess net vlan green newvm0e1" in lines_of(wired, "net", "show")
    assert "vmess net vlan blue" in lines_of(wired, "net")

    wired.done("newvm", "connect", "0", "blue")
    assert wired.noted("newvm0") == "blue green"
    wired.ip("link set newvm0e0 master red", "link set newvm0e1 nomaster")
    assert [line for line in lines_of(wired, "newvm", "info") if line.startswith("Note: newvm0")] == [
        "Note: newvm0e0 is plugged into red, but NICS says blue",
        "Note: newvm0e1 is connected to nothing, but NICS says green",
    ]
    assert lines_of(wired, "newvm", "ifstat") == ["vmess newvm0 ifadd 2 red -"]
    wired.done("newvm", "stop")
    wired.done("newvm", "start")
    assert wired.wiring()["newvm0e0"] == "red"


def test_what_the_original_left_is_rewired_and_deleted_like_our_own(wired: WiredDaemon) -> None:
    original(wired, "red", "blue")
    assert lines_of(wired, "newvm", "ifadd", "1", "green") == [
        "Set 'newvm0e1' nonpersistent",
        "Set 'newvm0e0' persistent and owned by uid 0",
        "Making a VLAN: green",
        "preparing a TAP interface newvm0e0",
        "Set 'newvm0e0' persistent and owned by uid 0",
    ]
    assert wired.wiring() == {"red": None, "blue": None, "green": None, "newvm0e0": "green"}
    assert lines_of(wired, "newvm", "ifdel") == ["Set 'newvm0e0' nonpersistent"]


def test_for_root_a_tap_that_the_original_made_for_its_user_will_do_and_stays_his(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.ip(f"tuntap add newvm0e0 mode tap user {NOBODY}")
    assert "Total number of interfaces: 1" in wired.done("newvm", "info")
    assert f"Set 'newvm0e0' persistent and owned by uid {NOBODY}" in wired.done("newvm", "ifadd", "1", "red")
    assert wired.links()["newvm0e0"]["linkinfo"]["info_data"]["user"] in (str(NOBODY), "nobody")
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")


# NICS, and what comes after a reboot


def vanish(daemon: WiredDaemon) -> None:
    """Delete all links, as a reboot does."""
    daemon.ip(*(f"link delete {name}" for name in daemon.links()))
    assert daemon.links() == {}


def test_a_start_makes_anew_what_a_reboot_took_away(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "3", "bridge1", "-", "bridge2")
    assert wired.noted("newvm0") == "bridge1 - bridge2"
    wired.done("newvm", "connect", "1", "bridge1")
    wired.done("newvm", "connect", "2", "-")
    assert wired.noted("newvm0") == "bridge1 bridge1 -"
    before = wired.links()
    for bridge in ("bridge1", "bridge2"):
        assert before[bridge]["linkinfo"]["info_data"]["stp_state"] == 0
        assert before[bridge]["linkinfo"]["info_data"]["forward_delay"] == 0
        assert before[bridge]["ifalias"] == wired.mark()
        assert "UP" in before[bridge]["flags"]
    vanish(wired)

    info = lines_of(wired, "newvm", "info")
    assert info[0] == "Total number of interfaces: 3"
    assert "Note: newvm0e0 does not exist; a start creates it, plugged into bridge1" in info
    assert lines_of(wired, "newvm", "ifstat") == ["vmess newvm0 ifadd 3 bridge1 bridge1 -"]
    assert wired.links() == {}
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    after = wired.links()
    taps = {"newvm0e0": "bridge1", "newvm0e1": "bridge1", "newvm0e2": None}
    assert wired.wiring() == {"bridge1": None, **taps}
    assert after["bridge1"]["address"] == before["bridge1"]["address"]
    for tap, plugged in taps.items():
        data = after[tap]["linkinfo"]["info_data"]
        assert (data["type"], data["persist"], data["user"], data["multi_queue"]) == (
            "tap",
            True,
            "root",
            False,
        )
        assert after[tap]["ifalias"] == wired.mark()
        assert after[tap]["address"] == f"fe:11:9b:af:00:0{tap[-1]}"
        assert ("UP" in after[tap]["flags"]) is (plugged is not None)
    wired.done("newvm", "stop")
    assert wired.wiring() == {"bridge1": None, **taps}


def test_links_of_ours_get_no_ipv6_address(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "2", "bridge1", "-")
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    time.sleep(0.3)  # an address would be there by now: at once, or when the link is ready
    found = wired.namespace.run("ip", "-6", "-json", "address", "show").stdout
    addressed = [link["ifname"] for link in json.loads(found) if link.get("addr_info")]
    assert addressed == ["lo"]


def test_two_bridges_have_two_addresses_of_ours(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "2", "bridge1", "bridge2")
    macs = {link["address"] for name, link in wired.links().items() if name.startswith("bridge")}
    assert len(macs) == 2
    assert {mac[:2] for mac in macs} == {"06"}


def test_a_start_that_cannot_make_its_links_makes_none(wired: WiredDaemon) -> None:
    wired.make("newvm0", NICS="bridge1 bridge2 lo")
    result = wired.vmess("newvm", "start")
    assert result.returncode == 1
    assert "lo is the loopback" in result.stderr
    assert wired.links() == {}


def test_a_qemu_that_does_not_come_up_leaves_links_as_they_were(wired: WiredDaemon) -> None:
    wired.make("newvm0", NIC_MODEL="nonsense")
    wired.done("newvm", "ifadd", "2", "bridge1", "-")
    before = state_of(wired, "newvm0")
    result = wired.vmess("newvm", "start")
    assert result.returncode == 1
    assert "nonsense" in result.stderr
    assert state_of(wired, "newvm0") == before


# Frames


def test_guests_on_one_bridge_hear_each_other_wherever_they_are_moved(
    wired: WiredDaemon,
) -> None:
    talker(wired, "newvm0", "lan")
    talker(wired, "newvm1", "lan")
    wired.wait_guest("newvm0", b"b0")
    wired.wait_guest("newvm1", b"a0")
    pids = [wired.status(vm)["pid"] for vm in ("newvm0", "newvm1")]
    assert lines_of(wired, "newvm1", "connect", "0", "other") == ["Making a VLAN: other"]
    assert heard(wired, "newvm0", "newvm1") == [set(), set()]
    assert wired.vmess("newvm1", "connect", "0", "lan").returncode == 0
    assert heard(wired, "newvm0", "newvm1") == [{b"b0"}, {b"a0"}]
    wired.done("newvm0", "connect", "0", "-")
    assert heard(wired, "newvm0", "newvm1") == [set(), set()]
    wired.done("newvm0", "connect", "0", "other")
    wired.done("newvm1", "connect", "0", "other")
    assert heard(wired, "newvm0", "newvm1") == [{b"b0"}, {b"a0"}]
    assert [wired.status(vm)["pid"] for vm in ("newvm0", "newvm1")] == pids
    assert (wired.noted("newvm0"), wired.noted("newvm1")) == ("other", "other")

    crash(wired)
    talker(wired, "newvm2", "other")
    wired.wait_guest("newvm2", b"a0")
    assert heard(wired, "newvm0", "newvm1", "newvm2") == [{b"b0", b"c0"}, {b"a0", b"c0"}, {b"a0", b"b0"}]
    wired.done("newvm1", "connect", "0", "lan")  # also one that was adopted
    assert heard(wired, "newvm0", "newvm1", "newvm2") == [{b"c0"}, set(), {b"a0"}]
    assert healthy(wired)


def test_a_change_waits_for_a_qemu_that_a_new_daemon_has_found_and_that_answers_late(
    wired: WiredDaemon,
) -> None:
    wired.make("newvm0")
    wired.done("newvm", "start")
    pid = wired.status("newvm0")["pid"]
    os.kill(pid, signal.SIGSTOP)
    crash(wired)
    late = threading.Timer(2.5, os.kill, (pid, signal.SIGCONT))  # after Timing.settle, and before BEGIN_TIME
    late.start()
    try:
        assert wired.status("newvm0")["state"] == "unresponsive"
        wired.done("newvm", "ifadd", "1", "lab")
    finally:
        late.join()
    assert wired.wiring()["newvm0e0"] == "lab"


def test_a_pulled_cable_carries_no_frame_until_it_is_plugged_again(wired: WiredDaemon) -> None:
    talker(wired, "newvm0", "lan")
    talker(wired, "newvm1", "lan")
    wired.wait_guest("newvm0", b"b0")
    assert wired.done("newvm0", "cable", "0", "off") == ""
    assert "newvm0e0: lan, MAC 02:11:9b:af:00:00, cable pulled" in lines_of(wired, "newvm0", "info")
    assert heard(wired, "newvm0", "newvm1") == [set(), set()]
    assert wired.wiring()["newvm0e0"] == "lan"
    wired.done("newvm0", "cable", "0", "on")
    assert heard(wired, "newvm0", "newvm1") == [{b"b0"}, {b"a0"}]
    assert "newvm0e0: lan, MAC 02:11:9b:af:00:00" in lines_of(wired, "newvm0", "info")
    assert "'1'" in refused(wired, 2, "newvm0", "cable", "1", "off")
    assert "'maybe'" in refused(wired, 2, "newvm0", "cable", "0", "maybe")


# Cards that come and go while the VM runs


def test_ifadd_gives_a_running_vm_cards_once(wired: WiredDaemon) -> None:
    wired.make("newvm0", EXARGS=watched(wired, "newvm0"))
    wired.done("newvm", "start")
    with monitor(wired, "newvm0") as qemu:
        assert qemu.cards() == []
        assert len(lines_of(wired, "newvm", "ifadd", "2", "bridge1")) == 5
        assert qemu.cards() == ["nic0", "nic1"]
        assert held_by(wired.status("newvm0")["pid"]) == {"newvm0e0", "newvm0e1"}
        assert wired.noted("newvm0") == "bridge1 -"
        wired.done("newvm", "ifadd", "3", "bridge2", "bridge1", "user")  # what is there is only plugged in anew
        assert qemu.cards() == ["nic0", "nic1", "nic2"]
        assert wired.wiring()["newvm0e0"] == "bridge2"
        assert wired.wiring()["newvm0e1"] == "bridge1"
        assert lines_of(wired, "newvm", "info")[0] == "Total number of interfaces: 3"
        assert "takes effect" not in wired.done("newvm", "info")
        shown = qemu.execute("human-monitor-command", **{"command-line": "info network"})
        assert all(f"macaddr=02:11:9b:af:00:0{index}" in shown for index in range(3))
        before = state_of(wired, "newvm0")
        assert "interface 2" in refused(wired, 2, "newvm", "ifadd", "3", "bridge2", "bridge1", "bridge1")
        assert "interface 0" in refused(wired, 2, "newvm", "connect", "0", "user")
        assert state_of(wired, "newvm0") == before
    crash(wired)
    with monitor(wired, "newvm0") as qemu:
        wired.done("newvm", "ifadd", "4", "bridge2", "bridge1", "user", "bridge1")
        assert qemu.cards() == ["nic0", "nic1", "nic2", "nic3"]
    wired.done("newvm", "stop")
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    with monitor(wired, "newvm0") as qemu:
        assert qemu.cards() == ["nic0", "nic1", "nic2", "nic3"]
    assert healthy(wired)


def test_a_guest_that_lets_go_of_its_cards_loses_them_at_once(wired: WiredDaemon) -> None:
    releasing(wired, "newvm0", EXARGS=watched(wired, "newvm0"))
    wired.done("newvm", "ifadd", "2", "bridge1", "user")
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    with monitor(wired, "newvm0") as qemu:
        wired.done("newvm", "ifadd", "3", "bridge1", "user", "bridge1")
        assert qemu.cards() == ["nic0", "nic1", "nic2"]
        began = time.monotonic()
        assert lines_of(wired, "newvm", "ifadd", "1", "bridge1")[0] == "Set 'newvm0e2' nonpersistent"
        assert qemu.cards() == ["nic0"]
        assert qemu.netdevs() == ["net0"]
        assert wired.wiring() == {"bridge1": None, "newvm0e0": "bridge1"}
        assert lines_of(wired, "newvm", "ifdel") == ["Set 'newvm0e0' nonpersistent"]
        assert time.monotonic() - began < 4
        assert (qemu.cards(), qemu.netdevs()) == ([], [])
        assert wired.wiring() == {"bridge1": None}
        assert wired.noted("newvm0") is None
        wired.done("newvm", "ifadd", "1", "user")  # another kind in the place of the old one
        assert qemu.cards() == ["nic0"]
    assert healthy(wired)


def test_cards_that_a_guest_holds_on_to_are_pending(wired: WiredDaemon) -> None:
    vms = ("newvm0", "newvm1")
    for vm in vms:
        wired.make(vm)
        wired.done(vm, "ifadd", "2", "bridge1", "bridge1")
        wired.done(vm, "start")
        wired.wait_guest(vm)
    before = {vm: wired.status(vm)["pid"] for vm in vms}
    began = time.monotonic()
    clients = [wired.client(vm, "ifdel") for vm in vms]
    for vm, client in zip(vms, clients, strict=True):
        stdout, stderr = client.communicate(timeout=20 * UNIT)
        assert (client.returncode, stdout) == (6, "")
        assert [line.split(":")[:2] for line in stderr.splitlines()] == [
            [f"{vm}e0", " pending"],
            [f"{vm}e1", " pending"],
        ]
    assert 4.5 < time.monotonic() - began < 8
    loose = {f"{vm}e{index}": None for vm in vms for index in (0, 1)}
    assert wired.wiring() == {"bridge1": None, **loose}

    def pending_of(vm: str) -> None:
        info = lines_of(wired, vm, "info")
        assert info[0] == "Total number of interfaces: 0"
        assert len([line for line in info if "being unplugged" in line]) == 2
        assert lines_of(wired, vm, "ifstat") == [f"vmess {vm} ifadd 0"]
        state = state_of(wired, vm)
        assert f"{vm}e0" in refused(wired, 1, vm, "ifadd", "1", "bridge2")
        assert f"{vm}e0" in refused(wired, 1, vm, "ifadd", "1")
        assert "being unplugged" in refused(wired, 1, vm, "connect", "0", "bridge1")
        assert f"{vm} is running" in refused(wired, 1, "net", "delete", f"{vm}e0")
        assert state_of(wired, vm) == state

    pending_of("newvm0")
    wired.done("newvm0", "stop")
    assert wired.wiring() == {"bridge1": None, "newvm1e0": None, "newvm1e1": None}
    wired.done("newvm0", "ifadd", "1", "bridge1")

    crash(wired)
    pending_of("newvm1")
    assert (wired.pid, wired.status("newvm1")["pid"]) == (wired.pid, before["newvm1"])
    pids = (wired.pid, before["newvm1"])
    used = [processor_time(pid) for pid in pids]
    time.sleep(1)
    assert all(processor_time(pid) - start < 0.1 for pid, start in zip(pids, used, strict=True))
    wired.done("newvm1", "stop")
    assert wired.wiring() == {"bridge1": None, "newvm0e0": "bridge1"}
    wired.done("newvm1", "start")
    assert lines_of(wired, "newvm1", "info")[0] == "Total number of interfaces: 0"
    assert healthy(wired)


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_pending_taps_go_when_qemu_ended_while_no_daemon_was_there(hurried: WiredDaemon) -> None:
    hurried.make("newvm0")
    hurried.done("newvm", "ifadd", "1", "bridge1")
    hurried.done("newvm", "start")
    pid = hurried.status("newvm0")["pid"]
    assert hurried.vmess("newvm", "ifdel").returncode == 6
    hurried.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "LOWER_UP" not in hurried.links()["newvm0e0"]["flags"], what="the end of QEMU")
    hurried.start()
    wait_for(lambda: hurried.wiring() == {"bridge1": None}, what="the end of the TAP")
    assert lines_of(hurried, "newvm", "info")[0] == "Total number of interfaces: 0"


def test_a_stop_while_cards_are_being_unplugged_is_no_reason_to_wait(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "2", "bridge1")
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    client = wired.client("newvm", "ifdel")
    wait_for(lambda: wired.links()["newvm0e0"].get("ifalias") != wired.mark(), what="the mark")
    wired.done("newvm", "stop")
    assert wired.wiring() == {"bridge1": None}
    stdout, stderr = client.communicate(timeout=20 * UNIT)
    assert (client.returncode, stderr) == (0, "")
    assert stdout.splitlines() == ["Set 'newvm0e0' nonpersistent", "Set 'newvm0e1' nonpersistent"]


def test_what_qemu_refuses_leaves_nothing_half_made(wired: WiredDaemon) -> None:
    wired.make("newvm0", EXARGS=watched(wired, "newvm0"))
    wired.done("newvm", "start")
    (wired.root / "newvm0" / "NIC_MODEL").write_text("nonsense")
    before = state_of(wired, "newvm0")
    complaint = refused(wired, 1, "newvm", "ifadd", "2", "bridge1", "user")
    assert "'nonsense' is not a valid device model name" in complaint
    assert state_of(wired, "newvm0") == before == ({}, False)
    with monitor(wired, "newvm0") as qemu:
        assert (qemu.cards(), qemu.netdevs()) == ([], [])
        (wired.root / "newvm0" / "NIC_MODEL").unlink()
        wired.done("newvm", "ifadd", "1", "bridge1")
        assert (qemu.cards(), qemu.netdevs()) == (["nic0"], ["net0"])


@pytest.mark.parametrize("guest", ["releasing", "idle"])
def test_a_second_card_that_is_refused_takes_the_first_with_it(hurried: WiredDaemon, guest: str) -> None:
    files = {"EXARGS": watched(hurried, "newvm0"), "NIC_EXARGS": "addr=0x9"}
    if guest == "releasing":
        releasing(hurried, "newvm0", **files)
    else:
        hurried.make("newvm0", **files)
    hurried.done("newvm", "start")
    hurried.wait_guest("newvm0")
    complaint = refused(hurried, 1, "newvm", "ifadd", "2", "bridge1", "bridge1")
    assert "slot 9" in complaint
    assert hurried.noted("newvm0") is None
    with monitor(hurried, "newvm0") as qemu:
        if guest == "releasing":
            assert (qemu.cards(), qemu.netdevs()) == ([], [])
            assert hurried.wiring() == {}
            hurried.done("newvm", "ifadd", "1", "bridge1")
            assert (qemu.cards(), qemu.netdevs()) == (["nic0"], ["net0"])
            return
    # The guest holds on to the first: whichever daemon is asked, no card is taken for a whole one.
    assert lines_of(hurried, "newvm", "info")[0] == "Total number of interfaces: 0"
    refused(hurried, 1, "newvm", "ifadd", "1", "bridge1")
    crash(hurried)
    refused(hurried, 1, "newvm", "ifadd", "1", "bridge1")
    hurried.done("newvm", "stop")
    assert [name for name in hurried.links() if name.startswith("newvm")] == []


def fake(make_wired: MakeWired, mode: str, *, hurried: bool = True) -> WiredDaemon:
    """Start a daemon with a fake QEMU that has network cards, and a VM with one."""
    wired = make_wired("--qemu", str(FAKE))
    if hurried:
        wired.program = ("-c", HURRIED)
    wired.start()
    wired.make_fake("newvm0", mode, NICS="bridge1")
    wired.done("newvm", "start")
    wired.wait_state("newvm0", "running")
    assert "LOWER_UP" in wired.links()["newvm0e0"]["flags"]
    return wired


def test_a_card_that_is_let_go_in_time_is_gone(make_wired: MakeWired) -> None:
    wired = fake(make_wired, "cards,letgo=0.3", hurried=False)
    wired.done("newvm", "ifadd", "2", "bridge1", "bridge2")
    assert wired.wiring()["newvm0e1"] == "bridge2"
    assert lines_of(wired, "newvm", "ifdel") == ["Set 'newvm0e0' nonpersistent", "Set 'newvm0e1' nonpersistent"]
    assert wired.wiring() == {"bridge1": None, "bridge2": None}
    assert healthy(wired)


def test_a_card_that_is_let_go_after_the_deadline_takes_its_tap_with_it(make_wired: MakeWired) -> None:
    wired = fake(make_wired, "cards,letgo=2")
    assert wired.vmess("newvm", "ifdel").returncode == 6
    assert wired.wiring() == {"bridge1": None, "newvm0e0": None}
    wait_for(lambda: wired.wiring() == {"bridge1": None}, 4, "the end of the TAP")
    assert lines_of(wired, "newvm", "info")[0] == "Total number of interfaces: 0"
    wired.done("newvm", "ifadd", "1", "bridge2")
    assert wired.wiring() == {"bridge1": None, "bridge2": None, "newvm0e0": "bridge2"}
    assert healthy(wired)


def test_a_card_that_was_let_go_while_no_daemon_listened_is_in_nobodys_way(make_wired: MakeWired) -> None:
    wired = fake(make_wired, "cards,letgo=2")
    assert wired.vmess("newvm", "ifdel").returncode == 6
    wired.stop(signal.SIGKILL)
    time.sleep(1.5)
    wired.start()
    wired.wait_state("newvm0", "running")
    wired.done("newvm", "ifadd", "1", "bridge2")
    assert wired.wiring() == {"bridge1": None, "bridge2": None, "newvm0e0": "bridge2"}
    assert not nics(wired, "newvm0")[0]["leaving"]


def test_a_user_network_that_is_pending_is_not_taken_for_a_bridged_card_by_the_next_daemon(
    make_wired: MakeWired,
) -> None:
    wired = make_wired("--qemu", str(FAKE))
    wired.program = ("-c", HURRIED)
    wired.start()
    wired.make_fake("newvm0", "cards,letgo=-1", NICS="user")
    wired.done("newvm", "start")
    assert wired.vmess("newvm", "ifdel").returncode == 6
    refused(wired, 1, "newvm", "ifadd", "1", "bridge1")
    crash(wired)
    wired.wait_state("newvm0", "running")
    refused(wired, 1, "newvm", "ifadd", "1", "bridge1")
    assert wired.links() == {}


def test_a_tap_is_not_deleted_while_a_qemu_that_does_not_answer_may_have_it(make_wired: MakeWired) -> None:
    wired = fake(make_wired, "cards,mute=device_add+netdev_del")
    before = wired.noted("newvm0")
    assert "does not answer" in refused(wired, 6, "newvm", "ifadd", "2", "bridge1", "bridge2")
    assert "newvm0e0" in wired.links()
    assert wired.links()["newvm0e1"]["ifalias"] == wired.mark(leaving=True)
    assert wired.noted("newvm0") == before
    wired.done("newvm", "stop", "force")
    wired.done("newvm", "ifdel")
    assert "newvm0e1" not in wired.links()


def test_no_command_deletes_a_tap_that_a_qemu_has(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "bridge1")
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    before = state_of(wired, "newvm0")
    assert "newvm0 is running" in refused(wired, 1, "net", "delete", "newvm0e0")
    assert "newvm0" in refused(wired, 1, "newvm", "rm", "--yes")
    assert "bridge1" in refused(wired, 1, "net", "delete", "bridge1")
    wired.done("net", "prune")
    assert state_of(wired, "newvm0") == before
    # A QEMU that nobody knows of, as one of another root, has the TAP of a VM that does not run.
    wired.make("newvm1")
    wired.done("newvm1", "ifadd", "2", "bridge1")
    stranger = wired.directory / "stranger.py"
    stranger.write_text(
        "import fcntl, struct, os, time\n"
        "fd = os.open('/dev/net/tun', os.O_RDWR)\n"
        "fcntl.ioctl(fd, 0x400454CA, struct.pack('16sH22x', b'newvm1e1', 0x1002))\n"
        "print(flush=True)\ntime.sleep(60)\n"
    )
    command = [*wired.inside, sys.executable, str(stranger)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            before = state_of(wired, "newvm1")
            assert "newvm1e1" in refused(wired, 1, "newvm1", "ifdel")
            assert "newvm1e1" in refused(wired, 1, "newvm1", "ifadd", "1", "bridge2")
            assert "newvm1e1" in refused(wired, 1, "newvm1", "connect", "1", "user")
            assert "newvm1e1" in refused(wired, 1, "net", "delete", "newvm1e1")
            assert state_of(wired, "newvm1") == before
            wired.vmess("newvm1", "rm", "--yes")  # deletes the VM's files or not, but no TAP in use
            assert "newvm1e1" in wired.links()
        finally:
            process.kill()


def test_a_removed_vm_takes_its_taps_along(wired: WiredDaemon) -> None:
    for vm in ("newvm0", "newvm1"):
        wired.make(vm)
        wired.done(vm, "ifadd", "2", "lan", "lan")
    wired.done("newvm0", "rm", "--yes")
    assert wired.wiring() == {"lan": None, "newvm1e0": "lan", "newvm1e1": "lan"}
    assert not (wired.root / "newvm0").exists()


# User networks


def listening(daemon: WiredDaemon) -> set[int]:
    """Return the TCP ports of 127.0.0.1 below 5000 that somebody listens on, so no VNC display."""
    shown = daemon.namespace.run("ss", "-Hltn").stdout
    places = [line.split()[3] for line in shown.splitlines()]
    ports = {int(place.rpartition(":")[2]) for place in places if place.startswith("127.0.0.1:")}
    return {port for port in ports if port < 5000}


def test_ports_of_a_user_network_are_forwarded_at_once_and_at_every_start(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "2", "user:2222:22", "bridge1")
    assert wired.noted("newvm0") == "user:2222:22 bridge1"
    wired.done("newvm", "forward", "0", "2280:80")
    wired.done("newvm", "start")
    assert listening(wired) == {2222, 2280}
    wired.done("newvm", "forward", "0", "2281:81")
    assert listening(wired) == {2222, 2280, 2281}
    again = wired.vmessctl("newvm", "forward", "0", "2281:81")
    said = "newvm0: port 2281 is already forwarded to port 81\n"
    assert (again.returncode, again.stdout, again.stderr) == (0, said, "")
    assert wired.noted("newvm0") == "user:2222:22,2280:80,2281:81 bridge1"
    assert "interface 0: user network, 127.0.0.1:2222 to port 22" in wired.done("newvm", "info")
    wired.done("newvm", "forward", "0", "2222:none")
    assert listening(wired) == {2280, 2281}
    crash(wired)
    wired.done("newvm", "forward", "0", "2280:none")
    assert listening(wired) == {2281}
    assert lines_of(wired, "newvm", "ifstat") == ["vmess newvm0 ifadd 2 user:2281:81 bridge1"]

    before = wired.noted("newvm0")
    assert "2281" in refused(wired, 2, "newvm", "forward", "0", "2281:82")
    assert "2222" in refused(wired, 2, "newvm", "forward", "0", "2222:none")
    assert "interface 1" in refused(wired, 2, "newvm", "forward", "1", "2222:22")
    assert "'2'" in refused(wired, 2, "newvm", "forward", "2", "2222:22")
    for wrong, value in (
        ("0:22", "'0'"),
        ("70000:1", "'70000'"),
        ("2222:0", "'0'"),
        ("2222:70000", "'70000'"),
        ("2222", "'2222'"),
        ("x:22", "'x'"),
        ("2222:x", "'x'"),
        (":", "''"),
        ("-1:22", "'-1'"),
        ("99999999999:1", "'99999999999'"),
    ):
        assert value in refused(wired, 2, "newvm", "forward", "0", wrong)
    assert (wired.noted("newvm0"), listening(wired)) == (before, {2281})
    wired.done("newvm", "stop")
    wired.done("newvm", "start")
    assert listening(wired) == {2281}


def sockets(daemon: WiredDaemon) -> set[str]:
    """Where processes of the daemon's namespace listen, VNC's displays left out: `tcp 127.0.0.1:2222`."""
    shown = daemon.namespace.run("ss", "-Hltun").stdout
    found = [line.split() for line in shown.splitlines()]
    return {f"{words[0]} {words[4]}" for words in found if int(words[4].rpartition(":")[2]) < 5600}


def test_c74_udp_and_addresses_are_forwarded_at_once_and_at_every_start(wired: WiredDaemon) -> None:
    wired.ip("addr add 192.0.2.7/32 dev lo")
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "user:2222:22,udp:0.0.0.0:5353:53,192.0.2.7:80:80")
    wired.done("newvm", "start")
    begun = {"tcp 127.0.0.1:2222", "udp 0.0.0.0:5353", "tcp 192.0.2.7:80"}
    assert sockets(wired) == begun
    wired.done("newvm", "forward", "0", "udp:2222:22")
    wired.done("newvm", "forward", "0", "tcp:0.0.0.0:81:81")
    assert sockets(wired) == begun | {"udp 127.0.0.1:2222", "tcp 0.0.0.0:81"}
    noted = "user:2222:22,udp:0.0.0.0:5353:53,192.0.2.7:80:80,udp:2222:22,0.0.0.0:81:81"
    assert wired.noted("newvm0") == noted
    assert lines_of(wired, "newvm", "ifstat") == [f"vmess newvm0 ifadd 1 {noted}"]
    wired.done("newvm", "ifadd", "1", noted)  # is what it has
    for wrong, value in (
        ("udp:127.0.0.1:5353:1", "udp:5353 is already forwarded: udp:0.0.0.0:5353:53"),
        ("5353:none", "port 5353 is not forwarded"),
        ("udp:80:none", "port udp:80 is not forwarded"),
        ("localhost:1:1", "address 'localhost' is not an IPv4 address"),
        ("[::1]:1:1", "QEMU does not forward IPv6"),
    ):
        assert value in refused(wired, 2, "newvm", "forward", "0", wrong)
    assert "not on this host" in refused(wired, 1, "newvm", "forward", "0", "udp:192.0.2.99:1:1")
    assert wired.noted("newvm0") == noted
    wired.done("newvm", "forward", "0", "udp:0.0.0.0:5353:none")
    wired.done("newvm", "forward", "0", "192.0.2.7:80:none")
    left = {"tcp 127.0.0.1:2222", "udp 127.0.0.1:2222", "tcp 0.0.0.0:81"}
    assert sockets(wired) == left
    wired.done("newvm", "stop", "start")
    assert sockets(wired) == left


def test_c74_calls_and_files_that_know_less_are_as_they_were(wired: WiredDaemon) -> None:
    wired.make("newvm0", NICS="user:2222:22 user")
    with contextlib.closing(Client([str(wired.socket)])) as client:
        client.call("Forward", vm="newvm0", interface=1, host=2280, guest=80)
        client.call("Forward", vm="newvm0", interface=1, host=2281, guest=81, protocol="tcp", address=None)
        client.call("Forward", vm="newvm0", interface=0, host=2222, guest=None)
        for more, says in (({"protocol": "sctp"}, "protocol 'sctp'"), ({"address": ""}, "address ''")):
            with pytest.raises(VmessError, match=says):
                client.call("Forward", vm="newvm0", interface=0, host=1, guest=None, **more)
    assert wired.noted("newvm0") == "user user:2280:80,2281:81"


def test_c74_nics_that_would_be_too_long_to_be_read_are_refused(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    word = "user:" + ",".join(f"udp:255.255.255.{100 + port}:{20000 + port}:1" for port in range(32))
    message = refused(wired, 2, "newvm", "ifadd", "64", *[word] * 64)
    assert "NICS would have" in message
    assert wired.noted("newvm0") is None


def test_a_port_that_qemu_does_not_forward_any_more_is_taken_out_of_the_file(wired: WiredDaemon) -> None:
    wired.make("newvm0", EXARGS=watched(wired, "newvm0"))
    wired.done("newvm", "ifadd", "1", "user:2222:22", "start")
    with monitor(wired, "newvm0") as qemu:
        qemu.execute("human-monitor-command", **{"command-line": "hostfwd_remove net0 tcp:127.0.0.1:2222"})
    wired.done("newvm", "forward", "0", "2222:none")
    assert wired.noted("newvm0") == "user"


def test_connect_changes_the_forwarded_ports_it_names_and_keeps_them_without(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "user:2222:22,2223:23")
    wired.done("newvm", "connect", "0", "user")
    assert wired.noted("newvm0") == "user:2222:22,2223:23"
    done = wired.vmess("newvm", "connect", "0", "user:2222:22,2224:24")
    assert (done.returncode, done.stderr) == (0, "no longer forwarded: user:2223:23\n")
    assert wired.noted("newvm0") == "user:2222:22,2224:24"
    wired.done("newvm", "start")
    assert "use forward to change it now" in refused(wired, 2, "newvm", "connect", "0", "user:2225:25")
    wired.done("newvm", "connect", "0", "user:2222:22,2224:24")
    assert wired.noted("newvm0") == "user:2222:22,2224:24"


def test_a_port_that_is_taken_is_told_and_not_noted(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.make("newvm1")
    wired.done("newvm0", "ifadd", "1", "user:2222:22")
    wired.done("newvm1", "ifadd", "1", "user")
    wired.done("newvm0", "newvm1", "start")
    assert "2222" in refused(wired, 1, "newvm1", "forward", "0", "2222:22")
    assert wired.noted("newvm1") == "user"
    wired.done("newvm1", "stop")
    wired.done("newvm1", "forward", "0", "2222:22")
    result = wired.vmess("newvm1", "start")
    assert result.returncode == 1
    assert "2222" in result.stderr
    assert healthy(wired)


# Without privileges


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that another user may use, who may read this checkout, too."""
    need_public_checkout()
    directory = Path(tempfile.mkdtemp(prefix="vmess-test-"))
    os.chown(directory, NOBODY, NOBODY)
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def unprivileged(make_wired: MakeWired, directory: Path, *privileges: str, tun: int = 0o666) -> WiredDaemon:
    """Return a daemon of user nobody, not started yet, and a VM of its own."""
    wired = make_wired(directory=directory)
    device = directory / "tun"
    os.mknod(device, 0o600 | stat.S_IFCHR, os.stat("/dev/net/tun").st_rdev)
    device.chmod(tun)
    # `ip netns exec` has given it a mount namespace of its own.
    mount = f'mount --bind {device} /dev/net/tun && exec "$@"'
    wired.wrapper = ("sh", "-c", mount, "sh", *AS_NOBODY, *privileges)
    wired.make("newvm0")
    for path in directory.rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    return wired


def test_without_the_capability_a_line_names_it_and_user_networks_work(
    make_wired: MakeWired, public: Path
) -> None:
    wired = unprivileged(make_wired, public)
    wired.start()
    result = wired.vmess("newvm", "ifadd", "1", "bridge1")
    assert result.returncode == 1
    complaint, instead, hint = result.stderr.splitlines()
    assert "CAP_NET_ADMIN" in complaint
    assert "root" in complaint
    assert "as yourself with only that capability" in complaint
    assert "setpriv" in hint
    assert instead == "  hint: without root: vmess newvm0 ifadd 1 user"
    assert state_of(wired, "newvm0") == ({}, False)
    assert "CAP_NET_ADMIN" in refused(wired, 1, "net", "vlan", "bridge1")
    assert "CAP_NET_ADMIN" in refused(wired, 1, "net", "add", "newvm0e0")
    assert wired.links() == {}
    assert "CAP_NET_ADMIN" in wired.vmess("newvm", "ifadd", "2", "-", "bridge1").stderr
    wired.done("newvm", "ifadd", "1", "user:2222:22")
    wired.done("newvm", "start")
    assert listening(wired) == {2222}
    wired.done("newvm", "ifadd", "2", "user:2222:22", "user")
    assert wired.links() == {}
    assert wired.done("net", "show") == ""
    assert healthy(wired)


def test_the_hint_of_a_daemon_without_the_capability_works_as_typed(
    make_wired: MakeWired, public: Path
) -> None:
    wired = unprivileged(make_wired, public)
    wired.start()
    hint = wired.vmess("newvm", "ifadd", "1", "bridge1").stderr.splitlines()[-1]
    assert hint.startswith("  hint: systemctl --user stop vmessd; sudo -E setpriv "), (
        "it would be started again"
    )
    wired.stop()
    module = (sys.executable, "-m", "vmessd")

    def run(*words: str) -> None:
        environment = {**os.environ, "XDG_STATE_HOME": str(public)}
        subprocess.run([*wired.inside, *words], cwd=TESTS.parent, env=environment, check=True)

    places = ("--vmdir", str(wired.root), "--socket", str(wired.socket), "--background")
    run(*AS_NOBODY, *module, *places)
    try:
        stop, line = wired.vmess("newvm", "ifadd", "1", "bridge1").stderr.splitlines()[-1].split("; ")
        assert stop == "  hint: vmess daemon stop"
        wired.done("daemon", "stop")
        words = shlex.split(line)
        assert words[:2] == ["sudo", "-E"]
        at = words.index("vmessd")  # a module is run here, not an installed program
        assert tuple(words[at + 1 :]) == places
        run(*words[2:at], *module, *places)
        wired.done("newvm", "ifadd", "1", "bridge1")
        assert "bridge1" in wired.links()
    finally:
        wired.vmess("daemon", "stop")


def test_without_the_capability_taps_made_beforehand_are_used(make_wired: MakeWired, public: Path) -> None:
    wired = unprivileged(make_wired, public)
    wired.ip(
        "link add bridge1 up type bridge",
        f"tuntap add newvm0e0 mode tap user {NOBODY}",
        "link set newvm0e0 master bridge1 up",
    )
    wired.start()
    before = state_of(wired, "newvm0")
    assert lines_of(wired, "newvm", "info")[0] == "Total number of interfaces: 1"
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    assert "LOWER_UP" in wired.links()["newvm0e0"]["flags"]
    assert state_of(wired, "newvm0") == before
    (wired.root / "newvm0" / "NICS").write_text("bridge1\n")
    before = state_of(wired, "newvm0")
    assert "CAP_NET_ADMIN" in refused(wired, 1, "newvm", "connect", "0", "-")
    assert "CAP_NET_ADMIN" in refused(wired, 1, "newvm", "ifdel")
    assert state_of(wired, "newvm0") == before
    assert nics(wired, "newvm0")[0]["leaving"] is False
    wired.done("newvm", "stop")
    assert "CAP_NET_ADMIN" in refused(wired, 1, "newvm", "ifdel")
    assert state_of(wired, "newvm0") == before


def test_without_the_capability_links_that_a_daemon_with_it_has_made_are_used(
    make_wired: MakeWired, public: Path
) -> None:
    wired = unprivileged(make_wired, public, "--inh-caps=+net_admin", "--ambient-caps=+net_admin")
    wired.start()
    wired.done("newvm", "ifadd", "1", "lab")
    wired.stop()
    wired.wrapper = tuple(word for word in wired.wrapper if "net_admin" not in word)
    wired.start()
    wired.done("newvm", "start")
    assert "CAP_NET_ADMIN" in refused(wired, 1, "newvm", "connect", "0", "-")


def test_with_the_capability_alone_wires_work_and_qemu_does_not_have_it(
    make_wired: MakeWired, public: Path
) -> None:
    wired = unprivileged(make_wired, public, "--inh-caps=+net_admin", "--ambient-caps=+net_admin")
    wired.start()
    wired.done("newvm", "ifadd", "1", "bridge1")
    assert wired.links()["newvm0e0"]["linkinfo"]["info_data"]["user"] == "nobody"
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    status = Path(f"/proc/{wired.status('newvm0')['pid']}/status").read_text()
    capabilities = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Cap"))
    assert int(capabilities["CapEff"], 16) == 0
    assert int(capabilities["CapPrm"], 16) == 0
    assert int(capabilities["CapAmb"], 16) == 0
    assert int(capabilities["CapInh"], 16) == 0
    wired.done("newvm", "stop")
    assert lines_of(wired, "newvm", "ifdel") == ["Set 'newvm0e0' nonpersistent"]


def test_a_tun_device_that_may_not_be_opened_is_named(make_wired: MakeWired, public: Path) -> None:
    wired = unprivileged(make_wired, public, "--inh-caps=+net_admin", "--ambient-caps=+net_admin", tun=0o600)
    (public / "tun").chmod(0o600)
    os.chown(public / "tun", 0, 0)
    wired.ip(f"tuntap add newvm0e0 mode tap user {NOBODY}")
    wired.make("newvm1")
    os.chown(wired.root / "newvm1", NOBODY, NOBODY)
    wired.start()
    complaint = refused(wired, 1, "newvm1", "ifadd", "1", "bridge1")
    assert "/dev/net/tun" in complaint
    assert "CAP_NET_ADMIN" not in complaint
    assert list(wired.links()) == ["newvm0e0"]
    assert "/dev/net/tun" in refused(wired, 1, "newvm0", "start")
    wired.done("newvm1", "ifadd", "1", "user")
    wired.done("newvm1", "start")


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_a_tun_device_that_is_missing_or_no_device_is_named(make_wired: MakeWired, what: str) -> None:
    wired = make_wired()
    cover = "mount -t tmpfs none /dev/net"
    if what == "a file":
        (wired.directory / "tun").touch()
        cover = f"mount --bind {wired.directory / 'tun'} /dev/net/tun"
    wired.wrapper = ("sh", "-c", f'{cover} && exec "$@"', "sh")
    wired.make("newvm0")
    wired.start()
    assert "/dev/net/tun" in refused(wired, 1, "newvm", "ifadd", "1", "bridge1")
    assert state_of(wired, "newvm0") == ({}, False)
    (wired.root / "newvm0" / "NICS").write_text("bridge1")
    assert "/dev/net/tun" in refused(wired, 1, "newvm", "start")
    assert wired.links() == {}
    assert healthy(wired)


# Bad input


SENSELESS: list[tuple[int, str, list[str]]] = [
    (2, "'65'", ["abcdefghijkl", "ifadd", "65"]),
    (2, "'a/b'", ["newvm", "ifadd", "1", "a/b"]),
    (2, "'br%d'", ["newvm", "ifadd", "1", "br%d"]),
    (2, "''", ["newvm", "ifadd", "1", ""]),
    (2, "'abcdefghijklmnop'", ["newvm", "ifadd", "1", "abcdefghijklmnop"]),
    (2, "'äöüäöüäö'", ["newvm", "ifadd", "1", "äöüäöüäö"]),
    (2, "'a b'", ["newvm", "ifadd", "1", "a b"]),
    (2, r"'a\nb'", ["newvm", "ifadd", "1", "a\nb"]),
    (2, r"'a\x1bb'", ["newvm", "ifadd", "1", "a\x1bb"]),
    (2, "'.'", ["newvm", "ifadd", "1", "."]),
    (2, "'..'", ["newvm", "ifadd", "1", ".."]),
    (2, "'newvm0e1'", ["newvm", "ifadd", "2", "bridge1", "newvm0e1"]),
    (2, "'leaf0e0'", ["newvm", "connect", "0", "leaf0e0"]),
    (2, "'leaf0'", ["newvm", "ifadd", "1", "leaf0"]),
    (2, "'newvm0'", ["newvm", "connect", "0", "newvm0"]),
    (2, "'-1'", ["newvm", "ifadd", "-1"]),
    (2, "'1000'", ["newvm", "ifadd", "1000"]),
    (2, "'65'", ["newvm", "ifadd", "65"]),
    (2, "'99999999999999999999'", ["newvm", "ifadd", "99999999999999999999"]),
    (2, "'x'", ["newvm", "ifadd", "x"]),
    (2, "''", ["newvm", "ifadd", ""]),
    (2, "'1.5'", ["newvm", "ifadd", "1.5"]),
    (2, "'red blue'", ["newvm", "ifadd", "1", "red", "blue"]),
    (1, "lo is the loopback", ["newvm", "ifadd", "1", "lo"]),
    (1, "here is a veth", ["newvm", "ifadd", "1", "here"]),
    (1, "another is an alternative name of addressed", ["newvm", "ifadd", "1", "another"]),
    (1, "lo is the loopback", ["newvm", "connect", "0", "lo"]),
    (1, "another is an alternative name of addressed", ["newvm", "connect", "0", "another"]),
    (2, "'5'", ["newvm", "connect", "5", "bridge1"]),
    (2, "'-1'", ["newvm", "connect", "-1", "bridge1"]),
    (2, "'x'", ["newvm", "connect", "x", "bridge1"]),
    (2, "''", ["newvm", "connect", "0", ""]),
    (2, "'0'", ["leaf", "connect", "0", "bridge1"]),
    (2, "'maybe'", ["newvm", "cable", "0", "maybe"]),
    (2, "'5'", ["newvm", "cable", "5", "off"]),
    (2, "'64'", ["newvm", "mac", "64", "02:00:00:00:00:01"]),
    (2, "'x'", ["newvm", "mac", "x", "02:00:00:00:00:01"]),
    (2, "'01:00:5e:00:00:01'", ["newvm", "mac", "0", "01:00:5e:00:00:01"]),
    (2, "'00:00:00:00:00:00'", ["newvm", "mac", "0", "00:00:00:00:00:00"]),
    (2, "'02-00-00-00-00-01'", ["newvm", "mac", "0", "02-00-00-00-00-01"]),
    (2, "'2:0:0:0:0:1'", ["newvm", "mac", "0", "2:0:0:0:0:1"]),
    (2, "interface 0", ["newvm", "forward", "0", "2222:22"]),
    (2, "''", ["newvm", "ifadd", "1", "user:2222:"]),
    (2, "''", ["newvm", "ifadd", "1", "user:"]),
    (2, "'2222'", ["newvm", "ifadd", "1", "user:2222:22,2222:23"]),
    (2, "'70000'", ["newvm", "ifadd", "1", "user:70000:22"]),
    (4, "nosuch0", ["nosuch", "ifadd", "1", "bridge1"]),
    (2, "NO_SUCH", ["NO_SUCH", "ifdel"]),
    (1, "bonded is a bond", ["newvm", "ifadd", "1", "bonded"]),
    (1, "card is a dummy", ["newvm", "ifadd", "1", "card"]),
]


def states(daemon: WiredDaemon) -> list[object]:
    return [state_of(daemon, vm) for vm in ("newvm0", "leaf0", "abcdefghijkl0")]


@pytest.fixture(scope="module")
def foreign(shared_wired: WiredDaemon) -> tuple[WiredDaemon, list[object]]:
    """A daemon with three VMs beside links of somebody else's, and how all of them are."""
    for vm in ("newvm0", "leaf0", "abcdefghijkl0"):
        shared_wired.make(vm)
    shared_wired.done("newvm", "ifadd", "1", "bridge1")
    shared_wired.ip(
        "link add here type veth peer name there",
        "link add addressed up type bridge",
        "link property add dev addressed altname another",
    )
    for link in ("bonded type bond", "card type dummy"):
        shared_wired.namespace.can(f"link add {link}")
    return shared_wired, states(shared_wired)


@pytest.mark.parametrize(
    ("status", "named", "words"), SENSELESS, ids=[shlex.join(words) for _, _, words in SENSELESS]
)
def test_what_makes_no_sense_is_named_and_changes_nothing(
    foreign: tuple[WiredDaemon, list[object]], status: int, named: str, words: list[str]
) -> None:
    daemon, before = foreign
    if words[-1] in ("bonded", "card") and words[-1] not in daemon.links():
        pytest.skip(f"this kernel makes no such link: {named}")
    assert named in refused(daemon, status, *words)
    assert states(daemon) == before
    assert healthy(daemon)


def test_the_taps_of_one_vm_may_have_names_of_both_kinds(wired: WiredDaemon) -> None:
    vm = "abcdefghijkl0"
    wired.make(vm)
    said = lines_of(wired, vm, "ifadd", "11")
    assert [line.split("'")[1] for line in said] == [f"{vm}e{index}" for index in range(11)]
    assert {f"{vm}e9", names.tap(vm, 10)} <= set(wired.links())
    assert lines_of(wired, vm, "info")[0] == "Total number of interfaces: 11"
    wired.done(vm, "start")
    wired.wait_guest(vm)
    wired.done(vm, "stop")
    assert len(lines_of(wired, vm, "ifdel")) == 11
    assert wired.links() == {}


def test_a_vm_can_have_as_many_cards_as_there_are_slots(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    assert len(lines_of(wired, "newvm", "ifadd", "29")) == 29
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    assert len(wired.links()) == 29


NONSENSE: dict[str, bytes | None] = {
    "a slash": b"a/b",
    "a pattern": b"br%d",
    "binary": bytes(range(256)),
    "no UTF-8": b"\xff\xfe",
    "too many": b"bridge1 " * 65,
    "huge": b"b" * 10_000_000,
    "a FIFO": None,
}


def test_a_nics_file_that_makes_no_sense_is_named_and_replaced_by_ifadd(wired: WiredDaemon) -> None:
    wired.ip("link add bridge1 up type bridge")
    before = wired.wiring()
    wrong = []
    for number, (what, content) in enumerate(NONSENSE.items()):
        vm = f"newvm{number}"
        file = wired.make(vm) / "NICS"
        if content is None:
            os.mkfifo(file)
        else:
            file.write_bytes(content)
        try:
            for words in (["start"], ["ifstat"], ["connect", "0", "bridge1"], ["addr"]):
                complaint = refused(wired, 1, vm, *words)
                assert "NICS" in complaint, (what, words, complaint)
                assert len(complaint) < 400, (what, words, len(complaint))
            info = wired.done(vm, "info")
            assert "NICS" in info, what
            assert wired.wiring() == before
            result = wired.vmess(vm, "ifadd", "1", "bridge1")
            if result.returncode:  # then it says which file, and keeps it
                assert "NICS" in result.stderr, (what, result)
                assert wired.wiring() == before, what
            else:
                assert wired.noted(vm) == "bridge1", what
                wired.done(vm, "ifdel")
        except AssertionError as error:
            wrong.append(str(error).partition("\nassert")[0])
    assert not wrong, "\n".join(wrong)
    assert healthy(wired)


def test_ifadd_makes_all_or_nothing(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    refused(wired, 1, "newvm", "ifadd", "3", "good", "better", "lo")
    assert state_of(wired, "newvm0") == ({}, False)
    wired.done("newvm", "ifadd", "2", "old", "-")
    before = state_of(wired, "newvm0")
    refused(wired, 1, "newvm", "ifadd", "3", "good", "good", "lo")
    assert state_of(wired, "newvm0") == before
    wired.done("newvm", "start")
    before = state_of(wired, "newvm0")
    refused(wired, 1, "newvm", "ifadd", "3", "good", "good", "lo")
    assert state_of(wired, "newvm0") == before
    wired.ip("link add newvm0e2 type veth peer name there")
    before = state_of(wired, "newvm0")
    assert "newvm0e2" in refused(wired, 1, "newvm", "ifadd", "3", "good", "better", "best")
    assert state_of(wired, "newvm0") == before


def test_wires_that_cannot_be_noted_stay_as_they_are(wired: WiredDaemon) -> None:
    directory = wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "old")
    (directory / "NICS").unlink()
    (directory / "NICS").mkdir()
    before = wired.wiring()
    result = wired.vmess("newvm", "ifadd", "2", "new", "new")
    assert result.returncode == 1
    assert "NICS" in result.stderr
    assert wired.wiring() == before


# Others at work on the same links


def attempt(client: Client, method: str, **parameters: object) -> VmessError | None:
    """Make a call; return the error it ends with."""
    try:
        client.call(method, **parameters)
    except VmessError as error:
        return error
    return None


def test_a_bridge_that_others_keep_deleting_makes_a_change_whole_or_refused(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.make("newvm1")
    wired.done("newvm1", "ifadd", "1", "flaky")
    over = threading.Event()
    command = ["ip", "-n", wired.namespace.name, "-force", "-batch", "-"]

    def delete() -> None:
        while not over.is_set():
            subprocess.run(
                command, input="link delete flaky\n" * 20, text=True, capture_output=True, check=False
            )

    thread = threading.Thread(target=delete)
    thread.start()
    outcomes = []
    try:
        with client_of(wired) as client:
            for turn in range(40):
                words = (["flaky", "steady", "flaky"], ["steady", "flaky"], [])[turn % 3]
                before = (wired.noted("newvm0") or "").split()
                error = attempt(client, "SetNics", vm="newvm0", count=len(words), wires=words)
                outcomes.append(error is None)
                assert error is None or (error.status, "\n" in error.message) == (1, False)
                assert (wired.noted("newvm0") or "").split() == (before if error else words)
                taps = [name for name in wired.links() if name.startswith("newvm0")]
                assert len(taps) == len(before if error else words), error
                error = attempt(client, "Connect", vm="newvm1", interface=0, wire="flaky")
                assert error is None or (error.status, "\n" in error.message) == (1, False)
                assert "newvm1e0" in wired.links()
    finally:
        over.set()
        thread.join()
    assert any(outcomes)
    assert healthy(wired)
    assert {link.get("group") for link in wired.links().values()} == {"default"}
    wired.done("newvm", "ifadd", "1", "flaky")
    assert wired.wiring()["newvm0e0"] == "flaky"


@pytest.mark.parametrize("running", [False, True])
def test_two_clients_that_rewire_one_vm_leave_what_one_of_them_asked_for(
    wired: WiredDaemon, running: bool
) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "2", "red", "red")
    if running:
        wired.done("newvm", "start")
    wanted = (["red", "blue"], ["blue", "red"])

    def rewire(words: list[str]) -> None:
        with client_of(wired) as client:
            client.call("SetNics", vm="newvm0", count=len(words), wires=words)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            list(pool.map(rewire, wanted))
            now = wired.wiring()
            plugged = [now["newvm0e0"], now["newvm0e1"]]
            assert plugged in wanted
            assert (wired.noted("newvm0") or "").split() == plugged
    if not running:
        wider = (["red", "blue", "green"], ["green"])
        with ThreadPoolExecutor(2) as pool:
            for _ in range(10):
                list(pool.map(rewire, wider))
                now = wired.wiring()
                plugged = [now[name] for name in sorted(now) if name.startswith("newvm0")]
                assert plugged in wider
                assert (wired.noted("newvm0") or "").split() == plugged
    assert healthy(wired)


def storm(namespace: Namespace) -> "subprocess.Popen[str]":
    """Start 2000 changes of links that are no VM's."""
    lines = ["link add storm type veth peer name calm"]
    for turn in range(480):
        lines += [
            "link set storm up",
            f"link set storm mtu {1300 + turn % 200}",
            f"link set storm alias {turn}",
        ]
        lines += ["link set storm down"]
        if turn % 10 == 0:
            lines += [f"link add gust{turn % 7} type bridge", f"link delete gust{turn % 7}"]
    process = subprocess.Popen(
        ["ip", "-n", namespace.name, "-force", "-batch", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write("\n".join(lines))
    process.stdin.close()
    return process


def test_a_storm_of_changes_elsewhere_changes_no_answer(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    turns = 0
    with storm(wired.namespace) as process, client_of(wired) as client:
        try:
            while process.poll() is None or not turns:
                words = [["red", "blue"], ["blue", "-", "red"]][turns % 2]
                client.call("SetNics", vm="newvm0", count=len(words), wires=words)
                shown = client.call("Nics", vm="newvm0")["nics"]
                assert [nic["wire"] for nic in shown] == words
                segments = {item["bridge"]: item["ports"] for item in client.call("NetShow")["segments"]}
                for index, word in enumerate(words):
                    assert word == "-" or f"newvm0e{index}" in segments[word]
                turns += 1
        finally:
            process.kill()
    assert turns > 1
    assert healthy(wired)


def test_c67_wires_and_their_file_stay_together_where_the_disk_fails(make_wired: MakeWired) -> None:
    wired = make_wired()
    wired.program = ("-c", BROKEN_DISK)
    wired.start()
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "2", "br0")
    assert (wired.noted("newvm0"), wired.wiring()) == (
        "br0 -",
        {"br0": None, "newvm0e0": "br0", "newvm0e1": None},
    )
    assert wired.mentions("NICS was changed, but a power cut may undo the change: input/output error")
    (wired.directory / "broken").touch()
    for words in (("ifadd", "1"), ("connect", "1", "br1"), ("ifadd", "3", "br2", "br2", "br2")):
        assert "NICS cannot be written" in refused(wired, 1, "newvm", *words)
        assert wired.noted("newvm0") == "br0 -"
        assert {name: master for name, master in wired.wiring().items() if name != "br0"} == {
            "newvm0e0": "br0",
            "newvm0e1": None,
        }
    wired.done("newvm", "ifdel")  # which only removes a name
    assert (wired.noted("newvm0"), wired.wiring()) == (None, {"br0": None})


def test_the_wires_of_a_locked_vm_stay_whatever_the_verb_is_about(wired: WiredDaemon) -> None:
    wired.done("newvm", "make", "ifadd", "1", "bridge1", "lock", "for", "the", "demo")
    for words in (["vlan", "bridge2", "newvm0e0"], ["delete", "newvm0e0"]):
        assert "VM newvm0 is locked: for the demo" in refused(wired, 7, "net", *words)
    assert wired.wiring() == {"bridge1": None, "newvm0e0": "bridge1"}
    wired.done("newvm", "unlock")
    wired.done("net", "delete", "newvm0e0")
