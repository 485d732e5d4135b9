"""From a VM to QEMU's argument vector, word by word; and from there to a line for a shell."""

import dataclasses
import itertools
import json
import os
import random
import subprocess
from typing import Any

import pytest
from daemons import UNIT
from hypothesis import example, given
from hypothesis import strategies as st

from vmessd.core import hardware, names
from vmessd.core.accelerators import Accelerator
from vmessd.core.errors import Failed, shell_line
from vmessd.core.hardware import IDE_PLACES
from vmessd.core.settings import BY_FILE
from vmessd.core.startup import Startup
from vmessd.core.wires import Forward
from vmessd.qemu import command_line
from vmessd.qemu.command_line import Card, Spec
from vmessd.storage.firmware import Firmware
from vmessd.storage.images import Disk

G = 2**30
KVM, TCG = Accelerator.kvm, Accelerator.tcg
HOME = "/home/ayourtch/vms/newvm0"
ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.characters(categories=["Cs"]))


def disk(slot: str, *, block_device: bool = False) -> Disk:
    ending = "cdrom.iso" if slot == "cdrom" else f"{slot}.img"
    return Disk(slot, f"{HOME}/newvm0-{ending}", block_device=block_device, size=8 * G)


def words(lines: str) -> list[str]:
    """One option a line, its argument behind the first space."""
    return [word for line in lines.strip().splitlines() for word in line.split(" ", 1)]


BARE = words("""
qemu-system-x86_64
-name newvm0
-nodefaults
-no-user-config
-S
-machine pc
-accel kvm
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-pidfile /home/ayourtch/vms/newvm0/qemu.pid
-chardev socket,id=qmp,fd=4,server=on,wait=off
-mon chardev=qmp,mode=control
-vga std
-vnc 127.0.0.1:2811,password=on
-add-fd fd=6,set=1
-chardev socket,id=serial0,fd=5,server=on,wait=off,logfile=/dev/fdset/1,logappend=on
-serial chardev:serial0
""")

SEED = words("""
qemu-system-x86_64
-name newvm0
-nodefaults
-no-user-config
-S
-machine pc
-accel kvm
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-pidfile /home/ayourtch/vms/newvm0/qemu.pid
-chardev socket,id=qmp,fd=4,server=on,wait=off
-mon chardev=qmp,mode=control
-vga std
-vnc 127.0.0.1:2811,password=on
-add-fd fd=6,set=1
-chardev socket,id=serial0,fd=5,server=on,wait=off,logfile=/dev/fdset/1,logappend=on
-serial chardev:serial0
-blockdev {"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-hda.img","node-name":"hda-file","read-only":false,"discard":"unmap"}
-blockdev {"driver":"raw","node-name":"hda","read-only":false,"discard":"unmap","file":"hda-file"}
-device ide-hd,id=hda-drive,drive=hda,bus=ide.0,unit=0
-blockdev {"driver":"raw","node-name":"cdrom","read-only":true,"file":{"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-cdrom.iso"}}
-device ide-cd,id=cdrom-drive,drive=cdrom,bus=ide.1,unit=0
-m 2G
""")  # noqa: E501 -- an argument is one word, however long

FOUR_DISKS = BARE + words("""
-blockdev {"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-hda.img","node-name":"hda-file","read-only":false,"discard":"unmap"}
-blockdev {"driver":"raw","node-name":"hda","read-only":false,"discard":"unmap","file":"hda-file"}
-device ide-hd,id=hda-drive,drive=hda,bus=ide.0,unit=0
-blockdev {"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-hdb.img","node-name":"hdb-file","read-only":false,"discard":"unmap"}
-blockdev {"driver":"raw","node-name":"hdb","read-only":false,"discard":"unmap","file":"hdb-file"}
-device ide-hd,id=hdb-drive,drive=hdb,bus=ide.0,unit=1
-blockdev {"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-hdc.img","node-name":"hdc-file","read-only":false,"discard":"unmap"}
-blockdev {"driver":"raw","node-name":"hdc","read-only":false,"discard":"unmap","file":"hdc-file"}
-device ide-hd,id=hdc-drive,drive=hdc,bus=ide.1,unit=0
-blockdev {"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-hdd.img","node-name":"hdd-file","read-only":false,"discard":"unmap"}
-blockdev {"driver":"raw","node-name":"hdd","read-only":false,"discard":"unmap","file":"hdd-file"}
-device ide-hd,id=hdd-drive,drive=hdd,bus=ide.1,unit=1
""")  # noqa: E501

CDROM_BESIDE_HDC = BARE + words("""
-blockdev {"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-hdc.img","node-name":"hdc-file","read-only":false,"discard":"unmap"}
-blockdev {"driver":"raw","node-name":"hdc","read-only":false,"discard":"unmap","file":"hdc-file"}
-device ide-hd,id=hdc-drive,drive=hdc,bus=ide.1,unit=0
-blockdev {"driver":"raw","node-name":"cdrom","read-only":true,"file":{"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-cdrom.iso"}}
-device ide-cd,id=cdrom-drive,drive=cdrom,bus=ide.1,unit=1
""")  # noqa: E501

CDROM_BESIDE_HDD = BARE + words("""
-blockdev {"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-hdd.img","node-name":"hdd-file","read-only":false,"discard":"unmap"}
-blockdev {"driver":"raw","node-name":"hdd","read-only":false,"discard":"unmap","file":"hdd-file"}
-device ide-hd,id=hdd-drive,drive=hdd,bus=ide.1,unit=1
-blockdev {"driver":"raw","node-name":"cdrom","read-only":true,"file":{"driver":"file","filename":"/home/ayourtch/vms/newvm0/newvm0-cdrom.iso"}}
-device ide-cd,id=cdrom-drive,drive=cdrom,bus=ide.1,unit=0
""")  # noqa: E501

BLOCK_DEVICES = BARE + words("""
-blockdev {"driver":"host_device","filename":"/home/ayourtch/vms/newvm0/newvm0-hda.img","node-name":"hda-file","read-only":false,"discard":"unmap"}
-blockdev {"driver":"raw","node-name":"hda","read-only":false,"discard":"unmap","file":"hda-file"}
-device ide-hd,id=hda-drive,drive=hda,bus=ide.0,unit=0
-blockdev {"driver":"raw","node-name":"cdrom","read-only":true,"file":{"driver":"host_device","filename":"/home/ayourtch/vms/newvm0/newvm0-cdrom.iso"}}
-device ide-cd,id=cdrom-drive,drive=cdrom,bus=ide.1,unit=0
""")  # noqa: E501

GOLDEN: dict[str, tuple[dict[str, Any], list[Disk], list[str]]] = {
    "bare": ({}, [], BARE),
    "seed": ({"RAM": 2 * G}, [disk("hda"), disk("cdrom")], SEED),
    "four disks": ({}, [disk(slot) for slot in IDE_PLACES], FOUR_DISKS),
    "cdrom beside hdc": ({}, [disk("hdc"), disk("cdrom")], CDROM_BESIDE_HDC),
    "cdrom beside hdd": ({}, [disk("hdd"), disk("cdrom")], CDROM_BESIDE_HDD),
    "block devices": (
        {},
        [disk("hda", block_device=True), disk("cdrom", block_device=True)],
        BLOCK_DEVICES,
    ),
    "smp": ({"SMP": 4}, [], [*BARE, "-smp", "4"]),
    "another machine": (
        {"MACHINE": "pc-i440fx-7.2", "VGA": "virtio"},
        [],
        [{"pc": "pc-i440fx-7.2", "std": "virtio"}.get(word, word) for word in BARE],
    ),
    "no graphics card, randomness": (
        {"VGA": "none", "RNG": True},
        [],
        [
            *({"std": "none"}.get(word, word) for word in BARE),
            *("-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,rng=rng0,addr=0x16"),
        ],
    ),
    "settings of the daemon": ({"ACCEL": "auto", "STOP": 5}, [], BARE),
    "exargs last": (
        {"EXARGS": ("-cpu", "max,+x2apic"), "RAM": 512 * 2**20, "SMP": 2},
        [],
        [*BARE, "-smp", "2", "-m", "512M", "-cpu", "max,+x2apic"],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_command_line(case: str) -> None:
    values, disks, expected = GOLDEN[case]
    spec = Spec(vm="newvm0", directory=HOME, accel=KVM, display=2811, values=values, disks=disks)
    assert command_line.build(spec, "qemu-system-x86_64") == expected


MACS = [f"02:11:9b:af:00:{index:02x}" for index in range(30)]
TAP = Card(0, MACS[0], "newvm0e0")
USER = Card(0, MACS[0], None)
TAP_OPTIONS = words("""
-netdev tap,id=net0,ifname=newvm0e0,script=no,downscript=no
-device e1000,netdev=net0,mac=02:11:9b:af:00:00,id=nic0
""")

CARDS: dict[str, tuple[dict[str, Any], list[Card], list[str]]] = {
    "none": ({}, [], []),
    "a TAP": ({}, [TAP], TAP_OPTIONS),
    "user": (
        {},
        [USER],
        words("""
-netdev user,id=net0
-device e1000,netdev=net0,mac=02:11:9b:af:00:00,id=nic0
"""),
    ),
    "user with forwards": (
        {},
        [Card(0, MACS[0], None, (Forward(2222, 22), Forward(8080, 80)))],
        words("""
-netdev user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=tcp:127.0.0.1:8080-:80
-device e1000,netdev=net0,mac=02:11:9b:af:00:00,id=nic0
"""),
    ),
    "a model": (
        {"NIC_MODEL": ("virtio-net-pci",)},
        [TAP],
        words("""
-netdev tap,id=net0,ifname=newvm0e0,script=no,downscript=no
-device virtio-net-pci,netdev=net0,mac=02:11:9b:af:00:00,id=nic0,speed=10000,duplex=full
"""),
    ),
    "more properties": (
        {"NIC_EXARGS": "romfile=,bootindex=1"},
        [TAP],
        words("""
-netdev tap,id=net0,ifname=newvm0e0,script=no,downscript=no
-device e1000,netdev=net0,mac=02:11:9b:af:00:00,id=nic0,romfile=,bootindex=1
"""),
    ),
    "another MAC, in its place": (
        {"NIC_EXARGS": "mac=02:00:00:00:00:01,x=a=b"},
        [USER],
        words("""
-netdev user,id=net0
-device e1000,netdev=net0,mac=02:00:00:00:00:01,id=nic0,x=a=b
"""),
    ),
    "several, of both kinds, with a gap": (
        {"NIC_MODEL": ("ne2k_isa",)},
        [TAP, Card(2, MACS[2], None, (Forward(2222, 22),)), Card(28, MACS[28], "newvm0e28")],
        words("""
-netdev tap,id=net0,ifname=newvm0e0,script=no,downscript=no
-device ne2k_isa,netdev=net0,mac=02:11:9b:af:00:00,id=nic0
-netdev user,id=net2,hostfwd=tcp:127.0.0.1:2222-:22
-device ne2k_isa,netdev=net2,mac=02:11:9b:af:00:02,id=nic2
-netdev tap,id=net28,ifname=newvm0e28,script=no,downscript=no
-device ne2k_isa,netdev=net28,mac=02:11:9b:af:00:1c,id=nic28
"""),
    ),
}


@pytest.mark.parametrize("case", CARDS)
def test_golden_network_cards(case: str) -> None:
    values, cards, expected = CARDS[case]
    spec = Spec("newvm0", HOME, KVM, 2811, values, cards=cards)
    assert command_line.build(spec, "qemu-system-x86_64") == BARE + expected


def test_cards_stand_between_drives_and_settings() -> None:
    values = {"EXARGS": ("-no-reboot",), "RAM": 2 * G, "NICS": ("whatever",)}
    spec = Spec("newvm0", HOME, KVM, 2811, values, [disk("hda"), disk("cdrom")], [TAP])
    expected = [*SEED[:-2], *TAP_OPTIONS, "-m", "2G", "-no-reboot"]
    assert command_line.build(spec, "qemu-system-x86_64") == expected


@pytest.mark.parametrize("case", CARDS)
def test_what_a_monitor_is_told_is_what_stands_in_the_command_line(case: str) -> None:
    """The arguments of netdev_add and device_add (qapi/net.json, qapi/qdev.json)."""
    values, cards, expected = CARDS[case]
    told: list[str] = []
    for card in cards:
        behind, front = command_line.netdev(card), command_line.device(card, values)
        assert behind["id"] == front["netdev"] == command_line.netdev_id(card.index)
        assert front["id"] == command_line.card_id(card.index)
        assert command_line.card_index(front["id"]) == card.index
        assert behind["type"] == ("user" if card.tap is None else "tap")
        forwards = behind.pop("hostfwd", [])
        assert [list(item) for item in forwards] == [["str"]] * len(card.forwards)
        behind_words = [*(f"{key}={value}" for key, value in behind.items())]
        behind_words += [f"hostfwd={item['str']}" for item in forwards]
        told += ["-netdev", ",".join(behind_words).removeprefix("type=")]
        front_words = [f"{key}={value}" for key, value in front.items()]
        told += ["-device", ",".join(front_words).removeprefix("driver=")]
        json.dumps([behind, front])
    assert told == expected


@pytest.mark.parametrize(
    "identifier", ["nic", "net0", "nic-1", "nic0x", "xnic0", "nicnic0", "nic1000", "0", ""]
)
def test_what_is_no_network_card_s_id(identifier: str) -> None:
    assert command_line.card_index(identifier) is None


def line(*cards: Card, **values: Any) -> list[str]:
    """A command line as it would be built."""
    drives = [disk("hda"), disk("cdrom")]
    return command_line.build(Spec("newvm0", HOME, KVM, 2811, values, drives, cards), "qemu")


ALL = [Card(index, mac, f"newvm0e{index}") for index, mac in enumerate(MACS[:5])]
SAME: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], []),
    "the same": (line(*ALL), line(*ALL)),
    "cards that came": (line(), line(*ALL)),
    "cards that went and came": (line(*ALL[:3]), line(*ALL[2:])),
    "other cards": (line(*ALL[:2]), line(*ALL[2:])),
    "an order": (line(*ALL), line(*reversed(ALL))),
    "another wire": (line(TAP), line(USER)),
    "forwards": (line(USER), line(Card(0, MACS[0], None, (Forward(2222, 22),)))),
    "a model no card has yet": (line(), line(*ALL, NIC_MODEL=("virtio-net-pci",))),
    "NICS": (line(TAP, NICS=("br0",)), line(TAP, NICS=())),
}
DIFFERENT: dict[str, tuple[list[str], list[str]]] = {
    "memory": (line(TAP, RAM=G), line(TAP, RAM=2 * G)),
    "arguments": (line(TAP), line(TAP, EXARGS=("-no-reboot",))),
    "arguments, a device": (line(TAP, EXARGS=("-device", "x")), line(TAP, EXARGS=("-device", "y"))),
    "a device more": (line(TAP), line(TAP, EXARGS=("-device", "x"))),
    "a drive": (line(TAP), [word.replace("ide-cd", "ide-hd") for word in line(TAP)]),
    "the model": (line(TAP), line(TAP, NIC_MODEL=("virtio-net-pci",))),
    "properties": (line(TAP), line(TAP, NIC_EXARGS="romfile=")),
    "a MAC": (line(TAP), line(Card(0, MACS[1], "newvm0e0"))),
    "the model, one card of two in common": (line(*ALL[:2]), line(*ALL[1:3], NIC_MODEL=("virtio-net-pci",))),
    "the program": (line(TAP), ["/other/qemu", *line(TAP)[1:]]),
    "cut short": (line(TAP), line(TAP)[:5]),
}


@pytest.mark.parametrize("case", SAME)
def test_wires_are_no_difference(case: str) -> None:
    one, other = SAME[case]
    assert command_line.same_but_for_wires(one, other)
    assert command_line.same_but_for_wires(other, one)


@pytest.mark.parametrize("case", DIFFERENT)
def test_everything_else_is_a_difference(case: str) -> None:
    one, other = DIFFERENT[case]
    assert not command_line.same_but_for_wires(one, other)
    assert not command_line.same_but_for_wires(other, one)


WORDS = st.sampled_from(["-netdev", "-device", "user,id=net0", "e1000,netdev=net0", "x,netdev=net1", "y", ""])


@given(st.lists(WORDS, max_size=8))
@example(["-device"])
@example(["-netdev"])
def test_any_command_line_is_the_same_as_itself(argv: list[str]) -> None:
    assert command_line.same_but_for_wires(argv, argv)
    assert not command_line.same_but_for_wires(argv, [*argv[:1], "extra", *argv[1:]]) or "-netdev" in argv[:1]


def test_exargs_stand_behind_the_drives() -> None:
    spec = Spec("newvm0", HOME, TCG, 1, {"EXARGS": ("-no-reboot",)}, [disk("hda"), disk("cdrom")])
    argv = command_line.build(spec, "qemu")
    assert argv[-1] == "-no-reboot"
    assert argv[-2].startswith("ide-cd,")


def test_hdc_hdd_and_cdrom_do_not_fit_together() -> None:
    spec = Spec("newvm0", HOME, KVM, 2811, disks=[*(disk(slot) for slot in IDE_PLACES), disk("cdrom")])
    with pytest.raises(Failed, match="cannot be combined") as caught:
        command_line.build(spec, "qemu")
    assert caught.value.hint is not None
    assert "cdrom none" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ({}, {}),
        ({"BOOT_ORDER": ("cdrom", "hd", "net")}, {"cdrom": 100, "hda": 101, "net0": 102}),
        ({"BOOT_ORDER": ("hd",), "BOOT_ONCE": ("cdrom",)}, {"cdrom": 100, "hda": 101}),
    ],
)
def test_boot_order_is_a_property_of_devices(values: dict[str, Any], places: dict[str, int]) -> None:
    spec = Spec("newvm0", HOME, TCG, 1, values, [disk("hda"), disk("cdrom")], [TAP])
    argv = command_line.build(spec, "qemu")
    usual = command_line.build(dataclasses.replace(spec, values={}), "qemu")
    ids = {"hda": "ide-hd,", "cdrom": "ide-cd,", "net0": "e1000,"}
    for name, start in ids.items():
        [now], [before] = ([word for word in line if word.startswith(start)] for line in (argv, usual))
        assert now == before + (f",bootindex={places[name]}" if name in places else "")
    assert command_line.same_cards(argv, usual), "the files say whether it differs"


def test_on_q35_each_drive_has_a_port_and_the_cards_have_slots() -> None:
    disks = [disk(slot) for slot in (*IDE_PLACES, "cdrom")]
    spec = Spec("newvm0", HOME, TCG, 1, {"MACHINE": "q35"}, disks)
    argv = command_line.build(spec, "qemu")
    assert [word.partition("bus=")[2] for word in argv if word.startswith("ide-")] == [
        f"ide.{port},unit=0" for port in range(5)
    ]
    everything = command_line.slots(range(29), {"MACHINE": "q35", "RNG": True})
    assert set(everything.values()) == {*range(3, 31), 33, 34} - {0x16}
    assert command_line.slots([0], {"MACHINE": "microvm"}) == {}
    assert command_line.slots([0, 1], {"NIC_MODEL": ("ne2k_isa", "e1000")}) == {1: 4}


IDE_HD = "ide-hd,id={0}-drive,drive={0},bus="
BUSES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "virtio": (
        {"DISK_BUS": {"": "virtio"}},
        ["virtio-blk-pci,id=hda-drive,drive=hda,addr=0x1a", "virtio-blk-pci,id=hdd-drive,drive=hdd,addr=0x1d"],
    ),
    "nvme and ide": (
        {"DISK_BUS": {"hda": "nvme"}},
        ["nvme,id=hda-drive,drive=hda,serial=hda,addr=0x1a", f"{IDE_HD.format('hdd')}ide.1,unit=1"],
    ),
    "scsi": (
        {"DISK_BUS": {"": "scsi", "hdd": "ide"}},
        [
            "virtio-scsi-pci,id=scsi0,addr=0x19",
            "scsi-hd,id=hda-drive,drive=hda,bus=scsi0.0,scsi-id=0",
            f"{IDE_HD.format('hdd')}ide.1,unit=1",
        ],
    ),
    "sata": (
        {"DISK_BUS": {"": "sata"}},
        [
            "ahci,id=ahci0,addr=0x18",
            f"{IDE_HD.format('hda')}ahci0.0,unit=0",
            f"{IDE_HD.format('hdd')}ahci0.3,unit=0",
        ],
    ),
    "sata on q35": (
        {"DISK_BUS": {"": "sata"}, "MACHINE": "pc-q35-7.2"},
        [f"{IDE_HD.format('hda')}ide.0,unit=0", f"{IDE_HD.format('hdd')}ide.3,unit=0"],
    ),
}


@pytest.mark.parametrize("case", BUSES)
def test_each_disk_has_a_bus(case: str) -> None:
    values, devices = BUSES[case]
    argv = command_line.build(Spec("newvm0", HOME, TCG, 1, values, [disk("hda"), disk("hdd")]), "qemu")
    assert [value for option, value in itertools.pairwise(argv) if option == "-device"] == devices
    ours = {int(word.rpartition("0x")[2], 16) for word in devices if "addr=" in word}
    cards = command_line.slots(range(29), values)
    assert not ours & set(cards.values())
    assert [cards[index] for index in range(19)] == list(range(3, 22))


@pytest.mark.parametrize(
    ("machine", "bridges"),
    [
        ("pc", ["nics1,chassis_nr=2,addr=0x1f.0,multifunction=on", "nics2,chassis_nr=3,addr=0x1f.1"]),
        ("q35", ["nics1,chassis_nr=2,addr=0x1f.4", "nics2,chassis_nr=3,addr=0x1f.5"]),
    ],
)
def test_c140_many_cards_are_behind_bridges(machine: str, bridges: list[str]) -> None:
    def devices(count: int) -> list[str]:
        slots = command_line.slots(range(count), values)
        cards = [
            Card(index, "02:00:00:00:00:00", f"newvm0e{index}", slot=slots[index]) for index in range(count)
        ]
        argv = command_line.build(Spec("newvm0", HOME, TCG, 1, values, cards=cards), "qemu")
        lines[count] = argv
        return [value for option, value in itertools.pairwise(argv) if option == "-device"]

    lines: dict[int, list[str]] = {}
    values = {"MACHINE": machine}
    assert len(devices(28)) == 28
    assert devices(64)[:2] == [f"pci-bridge,id={bridge}" for bridge in bridges]
    assert [device.partition("bus=")[2].partition(",mac")[0] for device in devices(64)[-6:]] == [
        "nics1,addr=0x1f",
        *(f"nics2,addr={slot:#x}" for slot in range(1, 6)),
    ]
    assert command_line.same_but_for_wires(lines[28], lines[64])
    assert command_line.same_cards(lines[28], lines[64])


@pytest.mark.parametrize("model", ["virtio-net-pci", "e1000"])
def test_c141_queues_are_those_of_virtio_cards(model: str) -> None:
    values = {"QUEUES": 4, "VHOST": True, "NIC_MODEL": (model, "virtio-net-pci")}
    of_card = (command_line.queues(values, 0), command_line.vhost(values, 0))
    assert of_card == ((4, True) if model != "e1000" else (1, False))
    card = Card(0, "02:11:9b:af:00:00", "newvm0e0", queues=of_card[0], vhost=of_card[1])
    argv = command_line.build(Spec("newvm0", HOME, TCG, 1, values, cards=[card]), "qemu")
    [netdev] = [word for word in argv if word.startswith("tap,")]
    [device] = [word for word in argv if word.startswith(f"{model},")]
    assert netdev.endswith("downscript=no,queues=4,vhost=on" if model != "e1000" else "downscript=no")
    assert device.endswith(",duplex=full,mq=on,vectors=10" if model != "e1000" else ",id=nic0")


MORE = names.DISKS[4:]
PLACES: dict[str, list[str]] = {
    "virtio": [f"virtio-blk-pci,id={{0}}-drive,drive={{0}},bus=disks,addr={n:#x}" for n in range(1, 23)],
    "nvme": [f"nvme,id={{0}}-drive,drive={{0}},serial={{0}},bus=disks,addr={n:#x}" for n in range(1, 23)],
    "scsi": [f"scsi-hd,id={{0}}-drive,drive={{0}},bus=scsi0.0,scsi-id={n}" for n in range(4, 26)],
    "sata": [f"{IDE_HD}ahci{1 + n // 6}.{n % 6},unit=0" for n in range(22)],
}


@pytest.mark.parametrize("machine", ["pc", "q35"])
@pytest.mark.parametrize("bus", PLACES)
def test_disks_behind_the_fourth_have_places_in_order(bus: str, machine: str) -> None:
    values, disks = {"DISK_BUS": {"": bus}, "MACHINE": machine}, [disk(slot) for slot in names.DISKS]
    argv = command_line.build(Spec("newvm0", HOME, TCG, 1, values, disks), "qemu")
    devices = [value for option, value in itertools.pairwise(argv) if option == "-device"]
    assert devices[-22:] == [place.format(slot) for place, slot in zip(PLACES[bus], MORE, strict=True)]
    controllers = [device for device in devices[:-26] if "bus=disks" in device]
    assert len(controllers) == (4 if bus == "sata" else 0)
    assert ("pci-bridge,id=disks,chassis_nr=1,addr=0x1e" in devices) is (bus != "scsi")
    few = command_line.build(Spec("newvm0", HOME, TCG, 1, values, disks[:4]), "qemu")
    assert devices[-26:-22] == [value for option, value in itertools.pairwise(few) if option == "-device"][-4:]
    assert (0x1E in command_line.slots(range(29), values, disks).values()) is (bus == "scsi")
    assert 0x1E in command_line.slots(range(29), values, disks[:4]).values()


@pytest.mark.parametrize(
    ("buses", "hint"), [({}, "hde=sata"), ({"": "ide", "hda": "virtio"}, "ide,hda=virtio,hde=sata")]
)
def test_a_fifth_disk_on_ide_is_refused(buses: dict[str, str], hint: str) -> None:
    spec = Spec("newvm0", HOME, TCG, 1, {"DISK_BUS": buses}, [disk("hda"), disk("hde")])
    with pytest.raises(Failed, match="hde has no slot: IDE has only four, hda, hdb, hdc, hdd") as raised:
        command_line.build(spec, "qemu")
    assert raised.value.hint == f"vmess newvm0 disk-bus {hint}"
    assert hardware.disk_bus(hint)["hde"] == "sata"


def test_the_hint_for_several_disks_without_a_place_on_ide_has_a_bus_for_each() -> None:
    disks = [disk(slot) for slot in ("hda", "hde", "hdf", "hdg")]
    with pytest.raises(Failed, match="hde has no slot") as raised:
        command_line.build(Spec("newvm0", HOME, TCG, 1, {"DISK_BUS": {"hdg": "virtio"}}, disks), "qemu")
    assert raised.value.hint == "vmess newvm0 disk-bus hdg=virtio,hde=sata,hdf=sata"
    buses = hardware.disk_bus(str(raised.value.hint).rpartition(" ")[2])
    command_line.build(Spec("newvm0", HOME, TCG, 1, {"DISK_BUS": buses}, disks), "qemu")


def test_a_fifth_disk_on_q35_has_a_controller_of_its_own() -> None:
    spec = Spec("newvm0", HOME, TCG, 1, {"MACHINE": "q35"}, [disk("hda"), disk("hde"), disk("cdrom")])
    argv = command_line.build(spec, "qemu")
    assert f"{IDE_HD.format('hde')}ahci1.0,unit=0" in argv
    assert "ide-cd,id=cdrom-drive,drive=cdrom,bus=ide.4,unit=0" in argv


def test_a_cd_drive_has_room_beside_disks_on_another_bus() -> None:
    disks = [disk(slot) for slot in (*names.DISKS, "cdrom")]
    argv = command_line.build(Spec("newvm0", HOME, TCG, 1, {"DISK_BUS": {"": "virtio"}}, disks), "qemu")
    assert "ide-cd,id=cdrom-drive,drive=cdrom,bus=ide.1,unit=0" in argv


def test_a_kernel_is_booted_with_what_belongs_to_it() -> None:
    values = {"KERNEL": "vmlinuz", "INITRD": "/boot/initrd,1", "APPEND": "console=ttyS0 a,b"}
    argv = command_line.build(Spec("newvm0", HOME, TCG, 1, values), "qemu")
    at = argv.index("-kernel")
    assert argv[at : at + 6] == [
        *("-kernel", f"{HOME}/vmlinuz", "-initrd", "/boot/initrd,1", "-append", "console=ttyS0 a,b")
    ]


def test_uefi_is_flash_memory_that_only_the_variables_of_are_written_to() -> None:
    firmware = Firmware("/code.fd", "/vars.fd", needs_smm=True, variables=f"{HOME}/uefi-secure.vars")
    argv = command_line.build(Spec("newvm0", HOME, TCG, 1, {"MACHINE": "q35"}, firmware=firmware), "qemu")
    assert "q35,smm=on,pflash0=firmware,pflash1=variables" in argv
    nodes = [json.loads(word) for word in argv if word.startswith("{")]
    assert [(node["read-only"], node["file"]["filename"]) for node in nodes] == [
        (True, "/code.fd"),
        (False, f"{HOME}/uefi-secure.vars"),
    ]
    assert "driver=cfi.pflash01,property=secure,value=on" in argv


def test_each_serial_port_has_a_socket_and_a_log_of_its_own() -> None:
    argv = line(SERIAL=3)
    found = [after for option, after in itertools.pairwise(argv) if option in ("-add-fd", "-serial")]
    assert found == [
        *("fd=6,set=1", "chardev:serial0", "fd=17,set=2", "chardev:serial1", "fd=19,set=3", "chardev:serial2")
    ]
    assert "socket,id=serial2,fd=18,server=on,wait=off,logfile=/dev/fdset/3,logappend=on" in argv
    descriptors = [fd for port in (1, 2, 3) for fd in command_line.serial_fds(port)]
    others = [fd for fd in command_line.ChildFd if fd.name not in ("serial", "serial_log")]
    assert len({*descriptors, *others}) == 6 + len(others)


def test_display_in_force_and_accelerator_are_the_ones_given() -> None:
    argv = command_line.build(Spec("newvm0", HOME, TCG, 2812), "/opt/qemu/bin/qemu")
    assert argv[0] == "/opt/qemu/bin/qemu"
    assert argv[argv.index("-accel") + 1] == "tcg"
    assert argv[argv.index("-vnc") + 1] == "127.0.0.1:2812,password=on"


@pytest.mark.parametrize(
    ("argv", "display"),
    [
        (BARE, 2811),
        (SEED, 2811),
        ([], 0),
        (["qemu"], 0),
        (["qemu", "-vnc"], 0),
        (["qemu", "-vnc", "none"], 0),
        (["qemu", "-vnc", "unix:/x"], 0),
        (["qemu", "-vnc", ":1"], 0),
        (["qemu", "-vnc", "127.0.0.1:"], 0),
        (["qemu", "-vnc", "127.0.0.1:-1"], 0),
        (["qemu", "-vnc", "127.0.0.1:²"], 0),
        (["qemu", "-vnc", "127.0.0.1:" + "9" * 5000], 0),
    ],
    ids=lambda value: None if isinstance(value, int) else " ".join(value)[-20:],
)
def test_display_of_a_command_line(argv: list[str], display: int) -> None:
    assert command_line.display_of(argv) == display


def test_nothing_lets_qemu_daemonize_or_probe_a_format() -> None:
    for values, disks, _ in GOLDEN.values():
        argv = command_line.build(Spec("newvm0", HOME, KVM, 2811, values, disks), "qemu")
        assert not {"-daemonize", "-hda", "-cdrom", "-drive"} & set(argv)


@given(ANY_TEXT)
@example('/we,ird "d=:\n/ir/x.img')
@example("nbd:localhost:10809")
@example("fat:rw:/")
@example('json:{"driver":"nbd"}')
@example('","filename":"/etc/shadow')
@example("/a,,b,file.locking=off,readonly=on")
@example("/latin-\udce9.iso")
def test_any_path_arrives_in_blockdev_as_it_is_and_nowhere_else(path: str) -> None:
    drive = Disk("hda", path, block_device=False, size=0)
    argv = command_line.build(Spec("newvm0", HOME, KVM, 2811, disks=[drive]), "qemu")
    node = json.loads(argv[argv.index("-blockdev") + 1])
    assert node == {
        "driver": "file",
        "filename": path,
        "node-name": "hda-file",
        "read-only": False,
        "discard": "unmap",
    }
    assert argv[argv.index("-blockdev") + 2 :] == [
        "-blockdev",
        '{"driver":"raw","node-name":"hda","read-only":false,"discard":"unmap","file":"hda-file"}',
        "-device",
        "ide-hd,id=hda-drive,drive=hda,bus=ide.0,unit=0",
    ]


NASTY_WORDS = [
    "",
    " ",
    "plain",
    "two words",
    "it's",
    'a "b" c',
    "$HOME `id` $(id) ${x}",
    "back\\slash\\n\\x41",
    "!!",
    "!x'\n",
    "*?[a-z]{b,c}~",
    "# no comment",
    "-n",
    "a;b&c|d>e<f",
    "line\nline\n",
    "\n",
    "tab\tcr\rbell\a",
    "\x1b[2J\x1b]0;title\x07",
    "\x7f\x80\x9b",
    "quote' and \\ and \n",
    "\x01" + "23",
    "\x1bface",
    "ünï 日本 🐧",
    "no\u00a0break\u202eright-to-left\u2028",
    "latin-\udce9\udcff",
    "%s\\0%n",
    'json:{"a":"b"}',
]


def test_what_shell_prints_bash_reads_back() -> None:
    chance = random.Random(14)
    alphabet = "ab1 '\"\\$`!\n\t\x1b\x80é日\u202e\udcff;&|<>(){}[]*?~#%=:,-"
    chosen = NASTY_WORDS + ["".join(chance.choices(alphabet, k=chance.randrange(12))) for _ in range(300)]
    line = f"printf '%s\\0' {shell_line(chosen)}"
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=10 * UNIT)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in chosen]
    assert done.stderr == b""


@given(st.lists(ANY_TEXT))
@example(["\ud800"])
def test_what_shell_prints_is_one_printable_line(argv: list[str]) -> None:
    assert shell_line(argv).isprintable()


# Variables in words for QEMU

COMMAS = "/srv/a,b c/newvm0"
FILLED_IN = [
    ("-kernel $DIR/linux", ("-kernel", f"{COMMAS}/linux")),
    ("-drive file=$DIR/x.img,if=virtio", ("-drive", "file=/srv/a,,b c/newvm0/x.img,if=virtio")),
    ("-fw_cfg name=opt/vm,string=$VM", ("-fw_cfg", "name=opt/vm,string=newvm0")),
    ("-append 'root=$DIR vm=$VM' -append", ("-append", f"root={COMMAS} vm=newvm0", "-append")),
    ("-append x -D a=$DIR", ("-append", "x", "-D", "a=/srv/a,,b c/newvm0")),
    ("""-blockdev '{"filename":"$DIR/x=1"}'""", ("-blockdev", f'{{"filename":"{COMMAS}/x=1"}}')),
    ("\"$DIR\" '$VM'", (COMMAS, "newvm0")),
    ("${VM}x ${DIR}x $VM-$VM.$VM", ("newvm0x", f"{COMMAS}x", "newvm0-newvm0.newvm0")),
    ("$$VM $$$VM $$ a$$b", ("$VM", "$newvm0", "$", "a$b")),
    ("$HOME $VMX $DIR_ $vm $ $1 ${VMX}", ("$HOME", "$VMX", "$DIR_", "$vm", "$", "$1", "${VMX}")),
    ("$VM\u00e9", ("newvm0\u00e9",)),
    ("\\$VM", ("newvm0",)),
]


@pytest.mark.parametrize(("text", "expected"), FILLED_IN, ids=[text for text, _ in FILLED_IN])
def test_c73_variables_are_filled_in_behind_the_split(text: str, expected: tuple[str, ...]) -> None:
    values = {"EXARGS": BY_FILE["EXARGS"].value(text), "RAM": 2 * G}
    assert command_line.expanded(values, "newvm0", COMMAS) == {"EXARGS": expected, "RAM": 2 * G}


def test_c73_a_path_in_json_is_a_text_whatever_it_holds() -> None:
    directory = 'a"b\\c'
    [word] = command_line.expanded({"EXARGS": ('{"filename":"$DIR"}',)}, "newvm0", directory)["EXARGS"]
    assert json.loads(word) == {"filename": directory}


def test_c73_properties_of_cards_keep_their_commas() -> None:
    values = {"NIC_EXARGS": BY_FILE["NIC_EXARGS"].value("romfile=$DIR/$VM.rom,bootindex=1")}
    values = command_line.expanded(values, "newvm0", COMMAS)
    assert command_line.device(TAP, values)["romfile"] == f"{COMMAS}/newvm0.rom"
    assert command_line.device(TAP, values)["bootindex"] == "1"
    argv = command_line.build(Spec("newvm0", COMMAS, TCG, 1, values, cards=[TAP]), "qemu")
    assert argv[-1].endswith(",id=nic0,romfile=/srv/a,,b c/newvm0/newvm0.rom,bootindex=1")


# The CPU


@pytest.mark.parametrize(
    ("value", "kvm", "tcg"),
    [
        ("best", "host", "max"),
        ("best,-svm,x2apic=on", "host,-svm,x2apic=on", "max,-svm,x2apic=on"),
        ("qemu64", "qemu64", "qemu64"),
        ("Bestie,+aes", "Bestie,+aes", "Bestie,+aes"),
    ],
)
def test_c75_the_best_cpu_is_the_hosts_or_all_that_tcg_knows(value: str, kvm: str, tcg: str) -> None:
    for accel, expected in ((KVM, kvm), (TCG, tcg)):
        argv = command_line.build(Spec("newvm0", HOME, accel, 2811, {"CPU": value}), "qemu-system-x86_64")
        place = argv.index("-cpu")
        assert argv[place - 2 : place + 2] == ["-accel", accel, "-cpu", expected]
        assert command_line.cpu_of(argv) == expected
        assert command_line.cpu_of([*argv, "-cpu", "486"]) == "486"  # from EXARGS, and QEMU takes the last
    bare = command_line.build(Spec("newvm0", HOME, KVM, 2811), "qemu-system-x86_64")
    assert ("-cpu" in bare, command_line.cpu_of(bare)) == (False, None)


def test_network_cards_leave_a_slot_to_the_medium_with_the_startup_configuration() -> None:
    full = [Disk(slot, f"{HOME}/{slot}", block_device=False, size=0) for slot in IDE_PLACES]
    for way, disks in (("disk", []), ("cd", full)):
        for count in (1, 27, 28, 64):
            places = command_line.slots(range(count), {"STARTUP": Startup(way, "r1.cfg")}, disks)
            assert len({*places.values()}) == count
            assert 30 not in places.values()
    assert 30 in command_line.slots(range(28), {"STARTUP": Startup("cd", "r1.cfg")}).values()


def test_network_cards_leave_a_slot_to_the_medium_of_cloud_init() -> None:
    full = [Disk(slot, f"{HOME}/{slot}", block_device=False, size=0) for slot in IDE_PLACES]
    values = {"STARTUP": Startup("cd", "r1.cfg")}
    for count in (1, 27, 28, 64):
        places = command_line.slots(range(count), values, full, cloud_init=True)
        assert len({*places.values()} - {29, 30}) == count
        cards = [Card(index, "02:00:00:00:00:01", None, slot=places[index]) for index in places]
        spec = Spec("newvm0", HOME, TCG, 2811, values, full, cards, cloud_init=f"{HOME}/seed.iso")
        words = command_line.build(spec, "qemu-system-x86_64")
        media = [word for word in words if word.startswith("virtio-blk-pci")]
        assert [word.rpartition(",")[2] for word in media] == ["addr=0x1e", "addr=0x1d"]
    assert 30 in command_line.slots(range(28), {}, full[:-1], cloud_init=True).values()


def test_a_medium_without_any_slot_is_refused_in_words() -> None:
    full = [Disk(slot, f"{HOME}/{slot}", block_device=False, size=0) for slot in IDE_PLACES]
    claims = tuple(word for slot in range(3, 32) for word in ("-device", f"virtio-rng-pci,addr={slot:#x}"))
    with pytest.raises(Failed, match="no PCI slot is left for a medium"):
        command_line.slots([0], {"EXARGS": claims}, full, cloud_init=True)
