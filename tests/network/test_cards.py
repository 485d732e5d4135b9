"""Network cards: their PCI slots, MACs and cables, remembered; and MACs that are heard where they are not.

The files are read and written in pure functions; what comes of them is looked at in QEMU itself, by a second
monitor, and on real links in network namespaces. A guest's view of its link is the status register of its card.
"""

import functools
import json
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemons import FAKE, UNIT, Daemon, WiredDaemon, lines_of, refused, wait_for
from hypothesis import given
from hypothesis import strategies as st
from watchers import watching
from wired_vms import (
    BROKEN_DISK,
    HURRIED,
    cables,
    crash,
    fdb_listeners,
    healthy,
    heard,
    make_seen,
    monitor,
    nics,
    releasing,
    seen,
    talker,
    watched,
)

from vmessd.core import names, nic_hardware
from vmessd.core.accelerators import Accelerator
from vmessd.core.errors import InvalidValue
from vmessd.core.nic_hardware import Claims, Loose
from vmessd.core.settings import BY_FILE
from vmessd.network import fdb_events
from vmessd.network.netlink_replies import AF_BRIDGE
from vmessd.qemu import command_line

MakeWired = Callable[..., WiredDaemon]

# vmessd with other times, in seconds: for which a cable is bounced, after which what was heard is looked into.
TIMED = """
import vmessd.devices.cables, vmessd.network.duplicate_macs
vmessd.devices.cables.BOUNCE_TIME = {bounce}
vmessd.network.duplicate_macs.LOOK_AFTER = vmessd.network.duplicate_macs.LOOK_EVERY = 0.05
from vmessd.__main__ import main
raise SystemExit(main())
"""


SLOTS = (*range(3, 32), *range(33, 64), *range(65, 96))
"""The PCI slots of cards: those of the first bus, and those behind two bridges."""


# What the files say


@given(st.dictionaries(st.integers(0, 63), st.sampled_from(SLOTS)))
def test_what_is_noted_of_slots_is_read_back(noted: dict[int, int]) -> None:
    text = nic_hardware.file_text(noted)
    if len(set(noted.values())) == len(noted):
        assert nic_hardware.parse_slots(text) == noted
    else:
        with pytest.raises(ValueError, match=re.escape(text)):
            nic_hardware.parse_slots(text)


@given(st.sets(st.integers(0, 63)), st.sets(st.integers(0, 63)))
def test_what_is_noted_of_cables_is_read_back(pulled: set[int], bounced: set[int]) -> None:
    loose = Loose(frozenset(pulled - bounced), frozenset(bounced))
    assert nic_hardware.parse_cables(str(loose)) == loose


@pytest.mark.parametrize(
    ("file", "text"),
    [
        *(("SLOTS", text) for text in ("2", "32", "64", "96", "x", "3 3", "-1", "3.0", "1e1", "- " * 65, "٣")),
        *(("CABLES", text) for text in ("64", "-1", "x", "0,1", "~", "0~~", "0 " * 65, "²")),
        *(("MACS", text) for text in ("x", "02:11:9b:af:00", "ff:ff:ff:ff:ff:ff", "- " * 65)),
    ],
)
def test_what_makes_no_sense_is_refused(file: str, text: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{file} '.*' (\\([0-9]+ characters\\) )?is not "):
        BY_FILE[file].value(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "02", "02:11:9b:af:00", "02:11:9b:af:00:00:00", "2:11:9b:af:0:0", "02-11-9b-af-00-00"),
        *("02119baf0000", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "none"),
        *("02:11:9b:af:00:0g", "02:11:9b:af:00:00\n", "\uff102:11:9b:af:00:00"),
    ],
)
def test_what_no_card_can_have_for_a_mac_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^MAC '"):
        nic_hardware.mac(text)


def test_a_mac_is_kept_in_lower_case() -> None:
    assert nic_hardware.mac("02:AB:cd:EF:00:01") == "02:ab:cd:ef:00:01"


@given(st.integers(0, 2**48 - 1).map(lambda number: number.to_bytes(6).hex(":")))
def test_a_tap_never_has_the_address_of_its_card(mac: str) -> None:
    assert names.tap_mac(mac)[:2] != mac[:2]
    assert names.tap_mac(mac)[2:] == mac[2:]


# Slots


def test_c60_cards_without_a_note_sit_where_they_always_did() -> None:
    assert nic_hardware.assign(range(29), {}, Claims()) == {index: 3 + index for index in range(29)}


@given(
    st.integers(0, 64),
    st.dictionaries(st.integers(0, 63), st.sampled_from(SLOTS)),
    st.frozensets(st.integers(0, 31)),
    st.booleans(),
    st.booleans(),
)
def test_c60_no_two_cards_share_a_slot(
    count: int, noted: dict[int, int], claimed: frozenset[int], usual: bool, shared: bool
) -> None:
    slots = nic_hardware.assign(range(count), noted, Claims(claimed, usual), shared=shared)
    assert len(set(slots.values())) == len(slots)
    assert set(slots.values()) <= set(SLOTS) - claimed
    bridged = any(slot > 31 for slot in slots.values())
    if bridged and not shared:
        assert nic_hardware.BRIDGE_SLOT not in slots.values()
    noted = {
        index: slot for index, slot in noted.items() if index < count and (slot < 31 or (bridged and slot > 31))
    }
    if len(set(noted.values())) == len(noted) and not claimed & set(noted.values()):
        assert usual is False or all(slots[index] == noted[index] for index in noted)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("claimed", [frozenset(), frozenset({5, *range(0x16, 0x1F)})])
def test_c140_cards_without_a_slot_are_behind_bridges_in_order(claimed: frozenset[int], shared: bool) -> None:
    before = 31 - 2 - len(claimed)
    for count in range(65):
        slots = nic_hardware.assign(range(count), {}, Claims(claimed), shared=shared)
        assert list(slots) == [*range(count)]
        assert sorted(slots.values()) == [*slots.values()]
        assert (max(slots.values(), default=0) > 31) is (count > before)


def test_c140_where_exargs_pushes_cards_only_those_that_never_fitted_have_bridges() -> None:
    assert nic_hardware.assign(range(29), {}, Claims(usual=False)) == {}
    slots = nic_hardware.assign(range(64), {2: 9}, Claims(usual=False))
    assert slots == {2: 9} | {index: 33 + index - 16 for index in range(16, 47)} | {
        index: 65 + index - 47 for index in range(47, 64)
    }


def test_c140_a_card_is_plugged_behind_those_before_it() -> None:
    def choose(indices: list[int], others: dict[int, int], taken: set[int], *bridges: int) -> dict[int, int]:
        possible = nic_hardware.pluggable(bridges, first_bus=True)
        return nic_hardware.choose(indices, {}, others, taken, possible)

    assert choose([1, 2], {0: 7}, {7}) == {1: 8, 2: 9}
    assert choose([28, 29], {}, {*range(30)}) == {28: 31, 29: 30}
    assert choose([28, 29, 30], {27: 33}, {*range(32), 33, 35}, 1, 2) == {28: 34, 29: 36, 30: 37}
    assert choose([62, 63], {61: 63}, {*range(32), *range(33, 64)}, 1, 2) == {62: 65, 63: 66}
    assert choose([29], {}, {*range(32)}) == {}
    assert nic_hardware.pluggable((1,), first_bus=False) == tuple(range(33, 64))


@pytest.mark.parametrize(
    ("exargs", "expected"),
    [
        ("", Claims()),
        ("-bios x -device isa-debugcon", Claims()),
        ("-device virtio-blk-pci,drive=d,addr=0x4", Claims(frozenset({4}))),
        ("--device virtio-blk-pci,addr=10", Claims(frozenset({16}))),
        ("-device virtio-blk-pci,addr=5.1", Claims(frozenset({5}))),
        ("-device virtio-blk-pci,bus=bridge,addr=5", Claims()),
        ("-device virtio-blk-pci,bus=pci.0,addr=5", Claims(frozenset({5}))),
        ('-device {"driver":"virtio-rng-pci","addr":"0x6"}', Claims(frozenset({6}))),
        ('-device {"driver":"virtio-rng-pci","addr":80}', Claims(frozenset({10}))),
        ('-device {"driver":"virtio-rng-pci"', Claims()),
        ("-device {} -device [] -device", Claims()),
        ("-vga none", Claims(usual=False)),
        ("-vga virtio", Claims()),
        ("-nic user", Claims(usual=False)),
        ("-net nic", Claims(usual=False)),
        ("-machine q35", Claims(usual=False)),
        ("-M pc-q35-7.2,usb=on", Claims(usual=False)),
        ("-machine usb=on,type=q35", Claims(usual=False)),
        ("-machine usb=on", Claims()),
        ("-M pc-i440fx-6.0", Claims()),
    ],
)
def test_c60_what_exargs_makes_of_slots_is_known(exargs: str, expected: Claims) -> None:
    assert nic_hardware.claims(exargs.split()) == expected


def test_c60_a_card_that_came_back_elsewhere_is_no_other_setting() -> None:
    def line(*slots: int | None, mac: str = "02:11:9b:af:00:00") -> list[str]:
        found = [command_line.Card(index, mac, None, slot=slot) for index, slot in enumerate(slots)]
        return command_line.build(
            command_line.Spec("newvm0", "/v/newvm0", Accelerator.tcg, 1, {"RAM": 2**20}, (), found), "qemu"
        )

    assert command_line.same_but_for_wires(line(3, 4), line(3, 7))
    assert command_line.same_but_for_wires(line(None), line(3))  # as a QEMU of an older vmessd
    assert not command_line.same_but_for_wires(line(3), line(3, mac="02:00:00:00:00:01"))
    assert command_line.cards_of(line(3, 7)) == {0: ("02:11:9b:af:00:00", None), 1: ("02:11:9b:af:00:00", None)}


def slots_of(daemon: WiredDaemon, vm: str) -> dict[str, int]:
    """Return the PCI slots from 3 on that QEMU has filled: by the device's id, of others by what they are."""
    with monitor(daemon, vm) as qemu:
        devices = [device for bus in qemu.execute("query-pci") for device in bus["devices"]]
    return {
        device["qdev_id"] or device["class_info"].get("desc", "?"): device["slot"]
        for device in devices
        if device["slot"] > 2
    }


DISK = "-drive driver=null-co,if=none,id=d -device virtio-blk-pci,drive=d"


def restarted(daemon: WiredDaemon, vm: str) -> dict[str, int]:
    """Stop a VM and start it, and return its PCI slots."""
    daemon.done(vm, "stop", "force")
    daemon.done(vm, "start")
    return slots_of(daemon, vm)


@pytest.mark.parametrize("exargs", ["", DISK], ids=["no disk", "disk"])
def test_c60_a_card_that_was_plugged_live_keeps_its_slot(wired: WiredDaemon, exargs: str) -> None:
    directory = wired.make("newvm0", EXARGS=f"{exargs} {watched(wired, 'newvm0')}")
    wired.done("newvm", "ifadd", "1", "lab")
    wired.done("newvm", "start")
    before = slots_of(wired, "newvm0")
    assert before == ({"nic0": 3, "SCSI controller": 4} if exargs else {"nic0": 3})
    wired.done("newvm", "ifadd", "3", "lab", "-", "user")
    live = slots_of(wired, "newvm0")
    assert live == before | ({"nic1": 5, "nic2": 6} if exargs else {"nic1": 4, "nic2": 5})
    assert not json.loads(wired.done("newvm", "info", "--json"))["info"]["changed"]
    assert restarted(wired, "newvm0") == live
    assert (directory / "SLOTS").read_text() == ("- 5 6\n" if exargs else "- 4 5\n")
    assert not json.loads(wired.done("newvm", "info", "--json"))["info"]["changed"]
    wired.done("newvm", "stop", "force")
    wired.done("newvm", "ifdel")
    assert not (directory / "SLOTS").exists()
    wired.done("newvm", "ifadd", "3", "lab", "-", "user", "start")
    assert slots_of(wired, "newvm0") == {"nic0": 3, "nic1": 4, "nic2": 5} | (
        {"SCSI controller": 6} if exargs else {}
    )
    assert healthy(wired)


def test_c60_slots_of_cards_that_go_and_come_back_are_free_again(wired: WiredDaemon) -> None:
    directory = releasing(wired, "newvm0", EXARGS=f"{DISK} {watched(wired, 'newvm0')}")
    wired.done("newvm", "ifadd", "2", "lab", "lab")
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    before = {"nic0": 3, "nic1": 4, "SCSI controller": 5}
    assert slots_of(wired, "newvm0") == before
    wired.done("newvm", "ifadd", "3", "lab", "lab", "lab")
    wired.done("newvm", "ifadd", "1", "lab")
    assert not (directory / "SLOTS").exists()
    wired.done("newvm", "ifadd", "2", "lab", "user")
    assert slots_of(wired, "newvm0") == before
    assert restarted(wired, "newvm0") == before


def test_c60_slots_that_exargs_or_nic_exargs_name_are_theirs(wired: WiredDaemon) -> None:
    named = f"{DISK},addr=0x4"
    directory = wired.make("newvm0", EXARGS=f"{named} {watched(wired, 'newvm0')}", SLOTS="- 4")
    wired.done("newvm", "ifadd", "2", "-", "-", "start")
    assert slots_of(wired, "newvm0") == {"nic0": 3, "SCSI controller": 4, "nic1": 5}
    wired.done("newvm", "ifadd", "3", "-", "-", "-")
    assert slots_of(wired, "newvm0")["nic2"] == 6
    wired.done("newvm", "stop", "force", "ifadd", "1", "-")
    (directory / "NIC_EXARGS").write_text("romfile=,addr=0x9")
    wired.done("newvm", "start")
    assert slots_of(wired, "newvm0") == {"SCSI controller": 4, "nic0": 9}
    assert healthy(wired)


@pytest.mark.parametrize("exargs", ["-nic user", "-vga none"])
def test_c60_where_exargs_pushes_cards_they_stay_where_that_had_them(wired: WiredDaemon, exargs: str) -> None:
    wired.make("newvm0", EXARGS=f"{exargs} {watched(wired, 'newvm0')}")
    wired.done("newvm", "ifadd", "1", "-", "start")
    slots = {} if exargs == "-vga none" else {"Ethernet controller": 3, "nic0": 4}
    assert slots_of(wired, "newvm0") == slots
    wired.done("newvm", "ifadd", "2", "-", "-")
    live = slots_of(wired, "newvm0")
    assert live == slots | {"nic1": 4 if exargs == "-vga none" else 5}
    assert restarted(wired, "newvm0") == live


def test_c60_slots_that_make_no_sense_are_named(wired: WiredDaemon) -> None:
    directory = wired.make("newvm0", SLOTS="4 4")
    wired.done("newvm", "ifadd", "1", "-")
    assert "SLOTS '4 4' is not at most 64 words, each - or another PCI slot" in refused(
        wired, 1, "newvm", "start"
    )
    (directory / "SLOTS").unlink()
    os.symlink("/etc/passwd", directory / "SLOTS")
    assert "SLOTS" in refused(wired, 1, "newvm", "start")
    assert "SLOTS" in refused(wired, 1, "newvm", "start")


# Cables


def test_c59_a_pulled_cable_is_remembered(wired: WiredDaemon) -> None:
    directory = make_seen(wired, "newvm0", "lab", "lab", "user", EXARGS="-trace handle_qmp_command")
    wired.done("newvm", "start")
    wired.done("newvm", "cable", "1", "off")
    assert cables(wired, "newvm0") == [True, False, True]
    crash(wired)
    assert cables(wired, "newvm0") == [True, False, True]
    with seen(wired, "newvm0", 0, 1, 2) as guest:
        assert guest.links() == [True, False, True]
    wired.done("newvm", "stop", "force")
    assert cables(wired, "newvm0") == [True, False, True]
    assert "newvm0e1: lab, MAC 02:11:9b:af:00:01, cable pulled" in lines_of(wired, "newvm", "info")
    wired.done("newvm", "cable", "2", "off", "start")
    with seen(wired, "newvm0", 0, 1, 2) as guest:
        assert guest.links() == [True, False, False]
        wired.done("newvm", "cable", "1", "on")
        assert guest.links() == [True, True, False]
    run = (directory / "qemu.log").read_text().rpartition(" -name newvm0 ")[2]
    asked = re.findall(r'"execute": "(set_link|cont)"', run)
    assert asked[:3] == ["set_link", "cont", "set_link"] or asked[:3] == ["set_link", "set_link", "cont"]
    assert (directory / "CABLES").read_text() == "2\n"
    wired.done("newvm", "cable", "2", "on")
    assert not (directory / "CABLES").exists()
    assert healthy(wired)


def test_c59_a_card_plugged_live_has_its_cable_as_noted(wired: WiredDaemon) -> None:
    directory = releasing(
        wired, "newvm0", EXARGS=watched(wired, "newvm0"), NIC_MODEL="rtl8139", NIC_EXARGS="romfile="
    )
    wired.done("newvm", "ifadd", "2", "lab", "lab", "cable", "1", "off", "start")
    wired.wait_guest("newvm0")
    with monitor(wired, "newvm0") as qemu:
        qemu.execute("device_del", id="nic1")  # as a guest that throws it out by itself
        wait_for(lambda: qemu.cards() == ["nic0"], what="the end of the card")
    wired.done("newvm", "ifadd", "2", "lab", "lab")
    with seen(wired, "newvm0", 0, 1) as guest:
        assert guest.links() == [True, False]
    assert cables(wired, "newvm0") == [True, False]
    wired.done("newvm", "ifadd", "1", "lab")
    assert not (directory / "CABLES").exists()
    wired.done("newvm", "ifadd", "2", "lab", "lab")
    assert cables(wired, "newvm0") == [True, True]


def test_c59_what_cannot_be_known_of_cables_is_null(wired: WiredDaemon) -> None:
    directory = make_seen(wired, "newvm0", "lab", "-")
    wired.done("newvm", "start")
    (directory / "CABLES").write_text("0 x")
    assert cables(wired, "newvm0") == [None, None]
    assert "CABLES '0 x' is not numbers of interfaces" in refused(wired, 1, "newvm", "cable", "0", "off")
    (directory / "CABLES").unlink()
    wired.stop()
    record = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({key: record[key] for key in record if key != "cables"}))
    wired.start()  # as a vmessd that finds the QEMU of an older one
    assert cables(wired, "newvm0") == [None, None]
    assert "newvm0e0: lab, MAC 02:11:9b:af:00:00, cable unknown" in lines_of(wired, "newvm", "info")
    wired.done("newvm", "cable", "0", "off")
    assert cables(wired, "newvm0") == [False, None]
    wired.done("newvm", "stop", "force")
    assert cables(wired, "newvm0") == [False, True]


@pytest.mark.parametrize("model", ["ne2k_pci", "tulip", "i82551"])
def test_c59_a_card_without_link_state_is_told(wired: WiredDaemon, model: str) -> None:
    wired.make("newvm0", NIC_MODEL=model)
    wired.done("newvm", "ifadd", "1", "lab", "start")
    said = f"{model} has no link state: the guest of newvm0 does not notice it, but no frame passes\n"
    pulled = wired.vmess("newvm", "cable", "0", "off")
    assert (pulled.returncode, pulled.stdout, pulled.stderr) == (0, "", said)
    assert cables(wired, "newvm0") == [False]
    assert json.loads(wired.done("newvm", "cable", "0", "on", "--json"))["note"] == said.strip()


def test_c59_a_guest_that_is_moved_sees_its_link_go_and_come(make_wired: MakeWired) -> None:
    wired = make_wired()
    wired.program = ("-c", TIMED.format(bounce=0.4))
    wired.start()
    directory = make_seen(wired, "newvm0", "lab", "lab")
    wired.done("newvm", "start", "cable", "1", "off")
    with seen(wired, "newvm0", 0, 1) as guest:
        for move in (
            ("newvm", "connect", "0", "other"),
            ("newvm", "connect", "0", "-"),
            ("newvm", "ifadd", "2", "lab", "other"),
            ("net", "vlan", "third", "newvm0e0"),
        ):
            wired.done(*move)
            assert guest.links() == [False, False], move
            assert cables(wired, "newvm0") == [True, False]
            wait_for(lambda: guest.links() == [True, False], what=f"the link after {move}")
        for still in (("newvm", "connect", "0", "third"), ("newvm", "connect", "1", "lab")):
            wired.done(*still)
            assert guest.links() == [True, False], still
        wired.done("newvm", "connect", "0", "lab")
        wired.done("newvm", "cable", "0", "off")
        time.sleep(0.5)
        assert guest.links() == [False, False]
    assert (directory / "CABLES").read_text() == "0 1\n"
    assert healthy(wired)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_c59_a_daemon_that_ends_in_a_move_leaves_no_link_down(
    make_wired: MakeWired, number: signal.Signals
) -> None:
    wired = make_wired()
    wired.program = ("-c", TIMED.format(bounce=60))
    wired.start()
    directory = make_seen(wired, "newvm0", "lab", "lab")
    wired.done("newvm", "start", "cable", "1", "off", "connect", "0", "other")
    with seen(wired, "newvm0", 0, 1) as guest:
        assert guest.links() == [False, False]
        assert (directory / "CABLES").read_text() == "0~ 1\n"
        wired.stop(number)
        assert guest.links() == [number is signal.SIGTERM, False]
        wired.start()
        wait_for(lambda: guest.links() == [True, False], what="the link")
        wait_for(lambda: (directory / "CABLES").read_text() == "1\n", what="no note of it")
        assert cables(wired, "newvm0") == [True, False]


# MACs


def test_c44_a_mac_that_was_set_is_the_ones_from_the_next_start_on(wired: WiredDaemon) -> None:
    directory = wired.make("newvm0", EXARGS=watched(wired, "newvm0"))
    wired.done("newvm", "ifadd", "2", "lab", "lab", "start")
    later = wired.vmess("newvm", "mac", "1", "02:AA:00:00:00:07")
    assert (later.returncode, later.stdout) == (0, "")
    assert later.stderr == "newvm0: interface 1 is 02:11:9b:af:00:01 until its next start\n"
    assert (directory / "MACS").read_text() == "- 02:aa:00:00:00:07\n"
    shown = "newvm0e1: lab, MAC 02:11:9b:af:00:01 (02:aa:00:00:00:07 from the next start)"
    info = lines_of(wired, "newvm", "info")
    assert shown in info
    assert "The running VM uses other settings; these take effect at its next start" in info
    crash(wired)
    assert shown in lines_of(wired, "newvm", "info")
    assert "no interface 3 yet" in wired.vmess("newvm", "mac", "3", "06:00:00:00:00:01").stderr
    wired.done("newvm", "ifadd", "4", "lab", "lab", "lab", "lab")
    crash(wired)
    macs = ["02:11:9b:af:00:00", "02:11:9b:af:00:01", "02:11:9b:af:00:02", "06:00:00:00:00:01"]
    assert [nic["mac"] for nic in nics(wired, "newvm0")] == macs
    assert wired.links()["newvm0e3"]["address"] == "fe:00:00:00:00:01"
    wired.done("newvm", "stop", "force", "start")
    macs[1] = "02:aa:00:00:00:07"
    assert [nic["mac"] for nic in nics(wired, "newvm0")] == macs
    assert wired.links()["newvm0e1"]["address"] == "fe:aa:00:00:00:07"
    assert wired.links()["newvm0e0"]["address"] == "fe:11:9b:af:00:00"
    assert {found.split()[1] for found in lines_of(wired, "newvm", "addr")} == set(macs)
    with monitor(wired, "newvm0") as qemu:
        assert "macaddr=02:aa:00:00:00:07" in qemu.execute(
            "human-monitor-command", **{"command-line": "info network"}
        )
    wired.done("newvm", "stop", "force")
    wired.done("newvm", "mac", "1", "none")
    wired.done("newvm", "mac", "3", "none")
    assert not (directory / "MACS").exists()
    assert [nic["mac"] for nic in nics(wired, "newvm0")] == [
        f"02:11:9b:af:00:{index:02x}" for index in range(4)
    ]
    assert healthy(wired)


def test_c44_macs_that_make_no_sense_are_named(wired: WiredDaemon) -> None:
    directory = wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "-")
    (directory / "MACS").write_text("02:00:00:00:00:01 ff:ff:ff:ff:ff:ff")
    for words in (("start",), ("ifstat", "--json"), ("mac", "0", "none")):
        assert "MACS '02:00:00:00:00:01 ff" in refused(wired, 1, "newvm", *words), words
    assert "MACS" in lines_of(wired, "newvm", "info")[2]
    (directory / "MACS").unlink()
    wired.done("newvm", "start")


def joined(one: WiredDaemon, other: WiredDaemon) -> None:
    """Join the segments `lan` of two hosts, as a VXLAN would."""
    for daemon in (one, other):
        daemon.done("net", "vlan", "lan")
    one.ip(f"link add far type veth peer name far netns {other.namespace.name}")
    for daemon in (one, other):
        daemon.ip("link set far master lan up")


def duplicate(daemon: Daemon, vm: str) -> Any:
    return json.loads(daemon.done(vm, "ifstat", "--json"))["nics"][0]["duplicate"]


def two_hosts(make_wired: MakeWired, directory: Path) -> tuple[WiredDaemon, WiredDaemon]:
    """Two daemons in namespaces that are joined, with links that are bounced for 0.4 s."""
    one, other = (make_wired(directory=directory / name) for name in ("one", "other"))
    for daemon in (one, other):
        daemon.directory.mkdir()
        daemon.program = ("-c", TIMED.format(bounce=0.4))
        daemon.start()
    joined(one, other)
    return one, other


def test_c44_the_same_vm_on_two_hosts_is_told_and_cured_by_another_mac(
    make_wired: MakeWired, tmp_path: Path
) -> None:
    one, other = two_hosts(make_wired, tmp_path)
    for daemon in (one, other):
        talker(daemon, "newvm0", "lan")
        talker(daemon, "newvm1" if daemon is one else "newvm2", "lan")
    for daemon in (one, other):
        remark = wait_for(functools.partial(duplicate, daemon, "newvm0"), what="the remark")
        assert remark.startswith("MAC 02:11:9b:af:00:00 of interface 0 was also seen at far in bridge lan, ")
        assert remark.endswith("vmess newvm0 mac 0 <address> sets another")
        assert f"Note: {remark[:60]}" in daemon.done("newvm", "info")
    time.sleep(0.5)  # more is heard meanwhile, and looked into
    for daemon, alone in ((one, "newvm1"), (other, "newvm2")):
        assert daemon.log.read_text().count("was also seen at") == 1
        assert duplicate(daemon, alone) is None
    other.done("newvm", "stop", "mac", "0", "02:00:00:00:05:03", "start")
    other.wait_guest("newvm0", b"a0")  # newvm0 of the first host
    assert duplicate(other, "newvm0") is None
    wait_for(lambda: heard(one, "newvm0") == [{b"b0", b"c0", b"f3"}], what="all of the segment")
    one.done("newvm", "stop", "start")
    one.wait_guest("newvm0")
    time.sleep(0.5)
    assert duplicate(one, "newvm0") is None
    assert healthy(one)
    assert healthy(other)


def test_c44_a_bridge_with_one_tap_and_a_way_to_another_host_learns_what_tells_a_duplicate(
    make_wired: MakeWired, tmp_path: Path
) -> None:
    one, other = two_hosts(make_wired, tmp_path)
    for daemon in (one, other):
        talker(daemon, "newvm0", "lan")
    for daemon in (one, other):
        assert " far in bridge lan, " in wait_for(
            functools.partial(duplicate, daemon, "newvm0"), what="the remark"
        )


def test_c44_a_vm_that_is_moved_between_joined_bridges_is_no_duplicate(make_wired: MakeWired) -> None:
    wired = make_wired()
    wired.program = ("-c", TIMED.format(bounce=0.4))
    wired.start()
    wired.done("net", "vlan", "lan", "vethA0")
    wired.done("net", "vlan", "other", "vethB0")
    talker(wired, "newvm0", "lan")
    talker(wired, "newvm1", "lan")
    wired.wait_guest("newvm0", b"b0")
    for bridge in ("other", "lan", "other", "lan", "other"):
        wired.done("newvm", "connect", "0", bridge)
    wired.ip("link set newvm1e0 master other")
    time.sleep(0.5)
    assert duplicate(wired, "newvm0") is None
    assert not wired.mentions("was also seen")


SENDER = """
import socket, struct, sys
links, frames, mac, each = sys.argv[1].split(), int(sys.argv[2]), bytes.fromhex(sys.argv[3]), int(sys.argv[4])
outs = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW) for _ in links]
for out, link in zip(outs, links):
    out.bind((link, 0))
for number in range(frames):
    source = mac if number % each == each - 1 else struct.pack(">HI", 0x211, number)
    outs[number % len(outs)].send(bytes(6 * [255]) + source + bytes([0x88, 0xb6]) + bytes(46))
"""


def send(daemon: WiredDaemon, links: str, frames: int, *, each: int) -> float:
    """Send frames into links in turn, each from another MAC, but every so many from that of newvm0.

    Returns the processor time that the daemon has spent meanwhile, and a little later.
    """
    before = processor_time(daemon.pid)
    daemon.namespace.run(sys.executable, "-c", SENDER, links, str(frames), "02119baf0000", str(each))
    time.sleep(0.3)
    return processor_time(daemon.pid) - before


def processor_time(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_c44_a_flood_of_macs_costs_nothing_and_hides_nothing(wired: WiredDaemon) -> None:
    talker(wired, "newvm0", "lan")
    wired.wait_guest("newvm0")
    for number in (1, 2):
        wired.ip(f"link add in{number} type veth peer name out{number}", f"link set in{number} master lan up")
        wired.ip(f"link set out{number} up")
    with watching(wired, "newvm", "watch") as reader:
        assert send(wired, "out1", 20_000, each=10_000) < 0.2  # two of them from newvm0's
        reader.expect("wires     MAC 02:11:9b:af:00:00 of interface 0 was also seen at in1 in bridge lan")
    remark = wait_for(lambda: duplicate(wired, "newvm0"), what="the remark")
    assert remark.startswith("MAC 02:11:9b:af:00:00 of interface 0 was also seen at in1 in bridge lan")
    assert send(wired, "out1 out2", 20_000, each=1) < 0.3  # which the bridge moves with each frame
    assert wired.log.read_text().count("was also seen at") == 1


def test_c44_nobody_listens_where_no_vm_with_a_tap_runs(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "lan")
    assert fdb_listeners(wired) == 0
    wired.done("newvm", "start")
    wait_for(lambda: fdb_listeners(wired) == 1, what="the listening, which a start does not wait for")
    crash(wired)
    wait_for(lambda: fdb_listeners(wired) == 1, what="the next daemon's listening")
    wired.done("newvm", "stop", "force")
    assert fdb_listeners(wired) == 0
    wired.done("newvm", "ifadd", "1", "user", "start")
    assert fdb_listeners(wired) == 0


def test_c44_the_filter_lets_pass_what_is_learned_of_the_macs_asked_for() -> None:
    from pyroute2.netlink.rtnl.ndmsg import ndmsg

    program = fdb_events.packet_filter(["02:11:9b:af:00:00", "02:11:9b:af:00:01"])
    assert len(program) % 8 == 0
    for mac, kind, passes in (
        ("02:11:9b:af:00:00", 28, True),
        ("02:11:9b:af:00:01", 28, True),
        ("02:11:9b:af:00:02", 28, False),
        ("02:11:9b:af:00:01", 29, False),
    ):
        message = ndmsg()
        message.update({"family": AF_BRIDGE, "ifindex": 5, "state": 2, "header": {"type": kind}})
        message["attrs"] = [("NDA_MASTER", 4), ("NDA_LLADDR", mac)]
        message.encode()
        assert filtered(program, bytes(message.data)) is passes, mac


def filtered(program: bytes, message: bytes) -> bool:
    """Tell whether the kernel would let a message pass."""
    import ctypes

    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        buffer = ctypes.create_string_buffer(program, len(program))
        other.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", len(program) // 8, ctypes.addressof(buffer)))
        other.setblocking(False)
        one.send(message)
        try:
            return other.recv(8192) == message
        except BlockingIOError:
            return False


# Cables of cards that are not as they should be


def test_a_tap_without_a_card_is_moved_without_a_word_of_its_cable(wired: WiredDaemon) -> None:
    directory = wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "lab", "start")
    wired.done("net", "vlan", "lab", "newvm0e1")
    wired.done("net", "vlan", "other", "newvm0e1")
    assert not (directory / "CABLES").exists()
    assert not wired.mentions("is not bounced")


def test_a_user_network_takes_the_place_of_a_tap_without_a_card(wired: WiredDaemon) -> None:
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "lab", "start")
    wired.done("net", "vlan", "lab", "newvm0e1")
    wired.done("newvm", "ifadd", "2", "lab", "user")
    assert wired.done("newvm", "ifstat") == "vmess newvm0 ifadd 2 lab user\n"
    assert [nic["difference"] for nic in nics(wired, "newvm0")] == [None, None]
    assert "newvm0e1" not in wired.links()


def test_a_pull_that_cannot_be_noted_leaves_the_cable_as_it_was(make_wired: MakeWired) -> None:
    wired = make_wired()
    longer = "from vmessd.devices import cables\ncables.BOUNCE_TIME = 2.0"
    wired.program = ("-c", f"{longer}\n{BROKEN_DISK}")
    wired.start()
    make_seen(wired, "newvm0", "lab")
    wired.done("newvm", "start", "connect", "0", "other")
    with seen(wired, "newvm0", 0) as guest:
        assert guest.links() == [False]
        (wired.directory / "broken").touch()
        assert "CABLES cannot be written" in refused(wired, 1, "newvm", "cable", "0", "off")
        (wired.directory / "broken").unlink()
        wait_for(lambda: guest.links() == [True], what="the end of the bounce")


def test_a_pulled_cable_is_told_where_qemu_does_not_say_what_the_card_is(make_wired: MakeWired) -> None:
    wired = make_wired("--qemu", str(FAKE))
    wired.program = ("-c", HURRIED)
    wired.start()
    wired.make_fake("newvm0", "cards,mute=qom-get,know=set_link", NICS="lab", NIC_MODEL="tulip")
    wired.done("newvm", "start")
    pulled = wired.vmess("newvm", "cable", "0", "off")
    assert (pulled.returncode, pulled.stderr.startswith("tulip has no link state")) == (0, True), pulled


# vmessd that takes a second to plug an interface elsewhere.
SLOW_CONNECT = """
import logging, time, vmessd.devices.rewiring
connect = vmessd.devices.rewiring.Rewiring.connect

def slowly(self, index, wire, known):
    logging.info("it begins")
    time.sleep(1.0)
    return connect(self, index, wire, known)

vmessd.devices.rewiring.Rewiring.connect = slowly
"""


def test_c59_a_daemon_that_ends_before_a_move_leaves_no_link_down(make_wired: MakeWired) -> None:
    wired = make_wired()
    wired.program = ("-c", SLOW_CONNECT + TIMED.format(bounce=60))
    wired.start()
    directory = make_seen(wired, "newvm0", "lab")
    wired.done("newvm", "start")
    with seen(wired, "newvm0", 0) as guest:
        client = wired.client("newvm", "connect", "0", "other")
        wired.wait_log("it begins")
        assert wired.stop() == 0
        client.communicate(timeout=30 * UNIT)
        assert wired.wiring()["newvm0e0"] == "other"
        assert guest.links() == [True]
        assert not (directory / "CABLES").exists()
