"""Cables between VMs: which frames pass, what is noted at both ends, and what happens to it."""

import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import cast

import pytest
from daemons import UNIT, WiredDaemon, lines_of, refused, wait_for
from frames import BROADCAST, EVERY_KIND, Capture, Station, octets, received, until_heard, with_mark
from wired_vms import crash, healthy, heard, make_seen, monitor, nics, seen

from vmessctl.commands.capture.frames import Reader
from vmessd.core import names

LEAF, SPINE = "leaf0e1", "spine0e0"

pytestmark = pytest.mark.qemu


@pytest.fixture
def lab(wired: WiredDaemon) -> WiredDaemon:
    """Two VMs that are off, with a cable between leaf0:1 and spine0:0."""
    for vm in ("leaf0", "spine0", "oak0"):
        wired.make(vm)
    wired.done("leaf", "ifadd", "2", "lab")
    wired.done("spine", "oak", "ifadd", "1")
    wired.done("leaf", "connect", "1", "spine:0")
    return wired


def redirected(daemon: WiredDaemon, tap: str) -> bool:
    return "mirred" in daemon.namespace.run("tc", "filter", "show", "dev", tap, "ingress").stdout


def is_up(daemon: WiredDaemon, tap: str) -> bool:
    return "UP" in daemon.links()[tap]["flags"]


@contextmanager
def stations(daemon: WiredDaemon, one: str = LEAF, other: str = SPINE) -> Iterator[tuple[Station, Station]]:
    name = daemon.namespace.name
    with Station(name, one, "02:00:00:00:0a:01") as near, Station(name, other, "02:00:00:00:0b:01") as far:
        until_heard(near, far)
        until_heard(far, near)
        yield near, far


def test_c110_every_frame_passes_both_ways_and_unchanged(lab: WiredDaemon) -> None:
    with stations(lab) as ends, Capture(lab.namespace.name) as capture:
        for sender, receiver in (ends, ends[::-1]):
            sent = [with_mark(sender, kind, number) for number, kind in enumerate(EVERY_KIND)]
            sent += [
                octets(BROADCAST) + sender.mac + b"\x88\xb5" + bytes(size) for size in (1500, 1508, 9216, 64000)
            ]
            for frame in sent:
                sender.send_whole(frame)
            assert received(receiver, len(sent)) == sent
        seen = capture.seen()
    # The host itself says nothing on a cable, and sees nothing of it on any other link.
    assert {one.link for one in seen} <= {LEAF, SPINE}
    assert all(one.frame[6:12] in {end.mac for end in ends} for one in seen)
    assert lab.links()[LEAF]["mtu"] == lab.links()[SPINE]["mtu"] == 65000


def test_a_cable_is_noted_and_shown_at_both_ends(lab: WiredDaemon) -> None:
    assert (lab.noted("leaf0"), lab.noted("spine0")) == ("lab spine0:0", "leaf0:1")
    assert lab.done("spine", "ifstat") == "vmess spine0 ifadd 1 leaf0:1\n"
    assert "vmess leaf0 connect 1 spine0:0" in lab.done("net").splitlines()
    assert any("leaf0e1: cable to spine0:0" in line for line in lines_of(lab, "leaf", "info"))
    [nic] = json.loads(lab.done("spine", "ifstat", "--json"))["nics"]
    assert (nic["wire"], nic["other_end"], nic["difference"]) == ("leaf0:1", "leaf0 is off", None)
    lab.done("leaf", "connect", "1", "spine:0")  # once more changes nothing
    lab.done("spine", "connect", "0", "leaf:1")
    assert redirected(lab, LEAF)
    assert redirected(lab, SPINE)


def test_a_cable_is_pulled_from_either_end(lab: WiredDaemon) -> None:
    for line, leaf, spine in (
        ("leaf connect 1 -", "lab -", "-"),
        ("spine connect 0 lab", "lab -", "lab"),
        ("leaf connect 1 oak:0", "lab oak0:0", "-"),
        ("leaf ifadd 1 lab", "lab", "-"),
        ("leaf ifdel", None, "-"),
        ("spine rm --yes", "lab -", None),
    ):
        lab.done(*line.split())
        assert (lab.noted("leaf0"), lab.noted("spine0")) == (leaf, spine), line
        there = lab.links()
        for tap, word in ((LEAF, (leaf or "").split()[1:2]), (SPINE, (spine or "").split())):
            if tap in there and word == ["-"]:
                assert not redirected(lab, tap), line
                assert not is_up(lab, tap), line
        if spine is not None:
            lab.done("spine", "connect", "0", "-", "ifadd", "1")
            lab.done("leaf", "ifadd", "2", "lab", "spine:0")
            assert redirected(lab, LEAF), line
            assert redirected(lab, SPINE), line
            assert not redirected(lab, "oak0e0"), line


def test_a_cable_is_pulled_whatever_the_mtu_is_now(lab: WiredDaemon) -> None:
    lab.ip(f"link set {LEAF} mtu 9000", f"link set {SPINE} mtu 9000")
    lab.done("leaf", "connect", "1", "lab")
    assert not redirected(lab, LEAF)
    assert not redirected(lab, SPINE)


NO_CABLE = {
    "leaf connect 1 leaf:0": (2, "cable 'leaf0:0' of leaf0 leads to leaf0 itself; it needs another VM"),
    "leaf connect 1 elm:0": (4, "elm0"),
    "leaf connect 1 spine:7": (2, "spine0 has no interface '7'; it has 0"),
    "leaf connect 0 spine:64": (2, "no VM has interface 64; the last one is 63"),
    "leaf connect 1 spine:x": (2, "cable 'spine:x' is not <vm>:<interface>, such as spine0:1"),
    "leaf connect 1 spine:0:0": (2, "cable 'spine:0:0' is not"),
    "leaf connect 1 :0": (2, "VM name ''"),
    "leaf connect 7 oak:0": (2, "leaf0 has no interface '7'"),
    "oak connect 0 spine:0": (2, "interface 0 of spine0 is plugged into leaf0:1 already"),
    "oak connect 0 leaf:0": (2, "interface 0 of leaf0 is plugged into lab already"),
    "oak ifadd 2 leaf:1 leaf:1": (2, "cable 'leaf0:1' is given twice; a cable has two ends"),
    "oak ifadd 2 ash:0 leaf:0": (2, "interface 0 of leaf0 is plugged into lab already"),
    "oak connect 0 user:0": (2, "forwarded port '0' is not"),
    "oak connect 0 locked:0": (7, "VM locked0 is locked"),
}


def test_a_cable_that_cannot_be_is_refused_in_one_line(lab: WiredDaemon) -> None:
    for vm in ("ash0", "locked0"):
        lab.make(vm)
    lab.done("ash", "locked", "ifadd", "1")
    lab.done("locked", "lock")
    before = {vm: lab.noted(vm) for vm in ("leaf0", "spine0", "oak0", "ash0")}
    for line, (status, why) in NO_CABLE.items():
        assert why in refused(lab, status, *line.split()), line
        assert {vm: lab.noted(vm) for vm in before} == before, line
    assert redirected(lab, LEAF)


def test_a_locked_vm_keeps_its_end_of_a_cable(lab: WiredDaemon) -> None:
    lab.done("spine", "lock", "in use")
    for line in ("leaf connect 1 -", "leaf rm --yes", "leaf rename elm", "leaf ifdel"):
        assert "VM spine0 is locked: in use" in refused(lab, 7, *line.split())
        assert (lab.noted("leaf0"), lab.noted("spine0")) == ("lab spine0:0", "leaf0:1")
    assert redirected(lab, LEAF)


def test_a_lock_refuses_only_what_changes_the_end_that_is_locked(lab: WiredDaemon) -> None:
    lab.done("spine", "lock")
    for line in ("leaf connect 0 oak:0", "leaf connect 1 spine:0", "leaf ifadd 3 - spine:0 lab"):
        lab.done(*line.split())
    assert (lab.noted("leaf0"), lab.noted("spine0"), lab.noted("oak0")) == ("- spine0:0 lab", "leaf0:1", "-")


def test_what_else_is_in_the_file_is_not_plugged_in(lab: WiredDaemon) -> None:
    (lab.root / "oak0/NICS").write_text("- nosuch0:0 spine0:0\n")
    lab.done("leaf", "connect", "1", "-")
    lab.done("oak", "connect", "0", "lab")
    assert (lab.noted("oak0"), lab.noted("spine0")) == ("lab nosuch0:0 spine0:0", "-")
    lab.done("oak", "connect", "1", "-")
    assert lab.noted("oak0") == "lab - spine0:0"


def test_a_cable_goes_along_when_its_vm_is_renamed_and_not_when_it_is_cloned(lab: WiredDaemon) -> None:
    lab.done("leaf", "rename", "elm")
    assert (lab.noted("elm0"), lab.noted("spine0")) == ("lab spine0:0", "elm0:1")
    assert redirected(lab, "elm0e1")
    assert redirected(lab, SPINE)
    cloned = lab.vmess("elm", "clone", "fir")
    assert "its cables are not plugged into spine0:0, where elm0 is" in cloned.stdout + cloned.stderr
    assert lab.noted("fir0") == "lab -"
    lab.done("spine", "export", str(lab.directory / "spine.vmess"), "rm", "--yes")
    assert lab.noted("elm0") == "lab -"


def test_c111_a_cable_comes_back_after_a_crash_and_after_a_reboot(lab: WiredDaemon) -> None:
    crash(lab)
    assert lab.done("leaf", "ifstat") == "vmess leaf0 ifadd 2 lab spine0:0\n"
    lab.stop()
    lab.ip(f"link delete {LEAF}", f"link delete {SPINE}")
    lab.start()
    assert "leaf0e1 does not exist; a start creates it" in lab.done("leaf", "info")
    lab.done("leaf", "start")
    assert not is_up(lab, LEAF)
    assert not redirected(lab, LEAF)
    lab.done("spine", "start")
    assert redirected(lab, LEAF)
    assert redirected(lab, SPINE)
    lab.done("leaf", "spine", "stop", "force")
    with stations(lab) as (near, far):
        near.send(BROADCAST, 0x88B5, bytes(60))
        wait_for(far.received, what="the frame")


def test_a_cable_noted_at_one_end_only_is_none(lab: WiredDaemon) -> None:
    (lab.root / "spine0" / "NICS").write_text("oak0:0\n")
    lab.ip(f"link delete {LEAF}")
    lab.done("leaf", "oak", "start")
    assert not redirected(lab, LEAF)
    assert not redirected(lab, "oak0e0")
    [_, nic] = nics(lab, "leaf0")
    assert nic["other_end"] == "spine0:0 is not plugged into leaf0:1"
    lab.done("spine", "connect", "0", "leaf:1")
    assert redirected(lab, LEAF)


def test_of_two_clients_that_plug_into_one_end_at_once_one_is_refused(lab: WiredDaemon) -> None:
    lab.done("leaf", "connect", "1", "-")
    for _ in range(3):
        clients = [lab.client(vm, "connect", number, "spine:0") for vm, number in (("leaf", "1"), ("oak", "0"))]
        said = [client.communicate()[1] for client in clients]
        assert sorted(client.returncode for client in clients) == [0, 2], said
        assert sorted(bool(line) for line in said) == [False, True]
        assert (lab.noted("leaf0") == "lab spine0:0") is (lab.noted("spine0") == "leaf0:1")
        assert (lab.noted("oak0") == "spine0:0") is (lab.noted("spine0") == "oak0:0")
        lab.done("spine", "connect", "0", "-")


# vmessd that takes half a second to change links, in which another client begins.
SLOW = """
import time
from vmessd.network.links import Network
wire = Network.wire

def slowly(*arguments, **named):
    time.sleep(0.5)
    return wire(*arguments, **named)

Network.wire = slowly
from vmessd.__main__ import main
raise SystemExit(main())
"""


def test_both_ends_of_a_cable_are_plugged_into_something_else_at_once(lab: WiredDaemon) -> None:
    lab.stop()
    lab.program = ("-c", SLOW)
    lab.start()
    clients = [lab.client("leaf", "connect", "1", "oak:0"), lab.client("spine", "connect", "0", "lab")]
    said = [client.communicate()[1] for client in clients]
    assert [client.returncode for client in clients] == [0, 0], said
    assert [lab.noted(vm) for vm in ("leaf0", "oak0", "spine0")] == ["lab oak0:0", "leaf0:1", "lab"]
    assert [redirected(lab, tap) for tap in (LEAF, "oak0e0", SPINE)] == [True, True, False]
    assert lab.wiring()[SPINE] == "lab"
    assert healthy(lab)


def test_c112_the_link_follows_the_other_end(wired: WiredDaemon) -> None:
    for vm in ("leaf0", "spine0"):
        make_seen(wired, vm, "-")
    wired.done("leaf", "connect", "0", "spine:0")
    wired.done("leaf", "start")
    with seen(wired, "leaf0", 0) as leaf:

        def sees(up: bool) -> None:
            wait_for(lambda: leaf.links()[0] is up, what=f"the link {'up' if up else 'down'}")

        assert leaf.links() == [False]
        assert "no link: spine0 is off" in wired.done("leaf", "info")
        for line, up in (
            ("spine start", True),
            ("spine suspend", False),
            ("spine resume", True),
            ("spine cable 0 off", False),
            ("spine stop force", False),
            ("spine start", False),
            ("spine cable 0 on", True),
            ("leaf cable 0 off", False),
            ("leaf cable 0 on", True),
            ("spine connect 0 -", True),
        ):
            wired.done(*line.split())
            sees(up)
        wired.done("spine", "connect", "0", "leaf:0")
        wired.make("oak0")
        wired.done("oak", "ifadd", "1")
        wired.done("leaf", "ifadd", "2", "spine:0", "oak:0")  # while it runs
        leaf.found(1)
        assert redirected(wired, "oak0e0")
        wait_for(lambda: leaf.links() == [True, False], what="the link of the new card")
        wired.done("oak", "start")
        wait_for(lambda: leaf.links() == [True, True], what="the link of the new card")
        wired.done("oak", "stop", "force")
        wired.done("spine", "suspend")
        crash(wired)
        sees(False)
        wired.done("leaf", "carrier", "always")
        sees(True)
        wired.done("leaf", "carrier", "none")
        sees(False)
        wired.done("spine", "resume")
        sees(True)
        os.kill(wired.status("spine0")["pid"], signal.SIGKILL)
        sees(False)
    assert healthy(wired)


@pytest.fixture
def unprivileged(make_wired: Callable[..., WiredDaemon]) -> WiredDaemon:
    """A running daemon without CAP_NET_ADMIN, so that cables are sockets."""
    wired = make_wired()
    wired.wrapper = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    wired.start()
    return wired


def test_c115_without_privileges_a_cable_is_a_socket(unprivileged: WiredDaemon) -> None:
    wired = unprivileged
    vms = ("leaf1", "spine2", "oak3")  # whose frames are b0, c0 and d0
    for vm in vms:
        wired.make(vm, "talker")
        wired.done(vm, "ifadd", "1")
    wired.done("leaf1", "connect", "0", "spine2:0")
    wired.done(*vms, "start")
    assert heard(wired, *vms) == [{b"c0"}, {b"b0"}, set()]
    wired.done("leaf1", "connect", "0", "-")
    wired.done("oak3", "connect", "0", "spine2:0")
    assert heard(wired, *vms) == [set(), {b"d0"}, {b"c0"}]
    crash(wired)
    wired.done("spine2", "cable", "0", "off")
    assert heard(wired, *vms) == [set(), set(), set()]
    wired.done("spine2", "cable", "0", "on", "stop", "force", "start")
    wired.wait_guest("spine2")
    assert heard(wired, *vms) == [set(), {b"d0"}, {b"c0"}]
    assert "has no TAP, so it cannot be plugged into a bridge now" in refused(
        wired, 2, "oak3", "connect", "0", "lab"
    )
    wired.done(*vms, "stop", "force")
    assert [file.name for vm in vms for file in (wired.root / vm).glob("cable*")] == []
    assert wired.links() == {}
    assert healthy(wired)


def test_the_link_follows_the_other_end_of_a_socket(unprivileged: WiredDaemon) -> None:
    wired = unprivileged
    for vm in ("leaf0", "spine0"):
        make_seen(wired, vm, "-")
    wired.done("leaf", "connect", "0", "spine:0", "start")
    with seen(wired, "leaf0", 0) as leaf:
        assert leaf.links() == [False]
        assert "no link: spine0 is off" in wired.done("leaf", "info")
        for line, up in (
            ("spine start", True),
            ("spine suspend", False),
            ("spine resume", True),
            ("spine cable 0 off", False),
            ("spine cable 0 on", True),
            ("spine stop force", False),
            ("leaf carrier always", True),
            ("leaf carrier none", False),
        ):
            wired.done(*line.split())
            wait_for(lambda: leaf.links() == [up], what=f"the link {'up' if up else 'down'}: {line}")  # noqa: B023
        wired.done("spine", "start")
        crash(wired)
        wait_for(lambda: leaf.links() == [True], what="the link up")
        os.kill(wired.status("spine0")["pid"], signal.SIGKILL)
        wait_for(lambda: leaf.links() == [False], what="the link down")
    assert wired.links() == {}
    assert healthy(wired)


@contextmanager
def sending(daemon: WiredDaemon, vm: str) -> Iterator[Callable[[bytes], None]]:
    """A function that has the first card of a VM made by make_seen send a frame."""
    place = daemon.directory / f"{vm}.frames"
    address = {"type": "unix", "data": {"path": str(place)}}
    with monitor(daemon, vm) as qemu, socket.socket(socket.AF_UNIX) as frames:
        backend = {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}
        qemu.execute("chardev-add", id="frames", backend=backend)
        card = {"netdev": "net0", "queue": "rx", "indev": "frames"}
        qemu.execute("object-add", **{"qom-type": "filter-redirector", "id": "sender", **card})
        frames.connect(str(place))
        yield lambda frame: frames.sendall(struct.pack(">I", len(frame)) + frame)


def test_every_frame_passes_a_socket_unchanged_and_is_captured(unprivileged: WiredDaemon) -> None:
    wired = unprivileged
    for vm in ("leaf0", "spine0"):
        make_seen(wired, vm, "-")
    wired.done("leaf", "connect", "0", "spine:0")
    wired.done("leaf", "spine", "start")
    for sender, receiver in (("leaf0", "spine0"), ("spine0", "leaf0")):
        station = cast("Station", SimpleNamespace(mac=octets(names.mac(sender, 0))))
        sent = [with_mark(station, kind, number) for number, kind in enumerate(EVERY_KIND)]
        sent += [
            octets(BROADCAST) + station.mac + b"\x88\xb5" + bytes(size - 14) for size in (1514, 9216, 64000)
        ]
        file = wired.directory / f"{receiver}.pcap"
        with (
            sending(wired, sender) as send,
            wired.client(receiver, "capture", "0", str(file), f"--count={len(sent)}") as client,
        ):
            wait_for(lambda: file.exists() and file.stat().st_size >= 24, what="the capture")  # noqa: B023
            for frame in sent:
                send(frame)
            assert client.wait(20 * UNIT) == 0
        assert [frame.data for frame in Reader(None, 0).frames(file.read_bytes(), 0)] == sent


def test_a_cable_that_is_a_socket_is_not_impaired_and_flaps(unprivileged: WiredDaemon) -> None:
    for vm in ("leaf1", "spine2"):
        unprivileged.make(vm)
        unprivileged.done(vm, "ifadd", "1")
    unprivileged.done("leaf1", "connect", "0", "spine2:0", "start")
    for words in (["delay", "20ms"], ["loss", "1%"], ["--in", "rate", "1M"]):
        said = refused(unprivileged, 1, "leaf1", "cable", "0", *words)
        assert "interface 0 of leaf1 has no TAP: QEMU itself carries its frames, and can neither delay" in said
    unprivileged.done("leaf1", "cable", "0", "flap", "5s/1s")
    assert (unprivileged.root / "leaf1" / "IMPAIRMENTS").read_text() == "0 flap 5s/1s\n"
    unprivileged.done("leaf1", "cable", "0", "good")


def test_a_guest_that_goes_on_from_its_memory_sees_its_cables_as_they_are_now(wired: WiredDaemon) -> None:
    make_seen(wired, "leaf0", "-")
    wired.done("leaf", "hda", "1M", "start", "cable", "0", "off")
    wired.done("leaf", "snapshot", "take", "one", "--memory")
    wired.done("leaf", "cable", "0", "on", "stop", "force", "snapshot", "revert", "one", "--yes")
    with seen(wired, "leaf0", 0) as leaf:
        wait_for(lambda: leaf.links() == [True], what="the link of a cable that is in")
