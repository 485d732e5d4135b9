"""From what a VM should be to QEMU's command line. Pure: no file is touched here.

Sources: qemu-system-x86_64(1), QEMU's `docs/devel/blockdev` and `qapi/block-core.json`. The guest's
hardware stays what `kvm -hda ... -cdrom ...` gave it: machine `pc`, IDE disks, VGA, one serial port.
"""

import dataclasses
import enum
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vmessd.drives import Disk
from vmessd.errors import Failed
from vmessd.settings import SETTINGS
from vmessd.vmdir import PID_FILE


class ChildFd(enum.IntEnum):
    """The descriptors QEMU finds open, always under these numbers, so that its command line is stable."""

    lock = 3
    """The VM's directory with the lock of vmdir.VMDirectory.lock on it; QEMU only has to keep it."""
    qmp = 4
    """A listening socket for the monitor."""
    serial = 5
    """A listening socket for the serial console."""
    serial_log = 6
    """Where everything the serial console prints is appended."""


SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# Where `-hda` ... `-hdd` put a disk on machine `pc`; `-cdrom` takes the place of hdc.
IDE = {"hda": ("ide.0", 0), "hdb": ("ide.0", 1), "hdc": ("ide.1", 0), "hdd": ("ide.1", 1)}


@dataclasses.dataclass(frozen=True)
class Card:
    """A network card of the guest and what is behind it."""

    index: int
    """Counted from 0."""
    mac: str
    tap: str | None
    """The TAP behind it; None for QEMU's user-mode network."""
    forwards: Sequence[tuple[int, int]] = ()
    """Of a user-mode network: TCP ports of the host's 127.0.0.1 and the guest's ports they lead to."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a VM should be: everything that shapes its QEMU."""

    vm: str
    directory: str
    """Absolute path of the VM's directory."""
    accel: str
    """`kvm` or `tcg`."""
    display: int
    """VNC display; the TCP port is 5900 more."""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings by file name, as VMDirectory.read_settings returns them."""
    disks: Sequence[Disk] = ()
    cards: Sequence[Card] = ()


def build(spec: Spec, qemu: str) -> list[str]:
    """Return the argument vector for a VM, `qemu` being the executable.

    The guest does not run yet when QEMU is up (`-S`), so that whoever started it can connect and
    listen before the first instruction.

    Raises:
        Failed: hdc, hdd and a CD-ROM together; IDE has four places and hdc is the CD-ROM's own.
    """
    argv = [qemu, "-name", spec.vm, "-nodefaults", "-no-user-config", "-S"]
    argv += ["-machine", "pc", "-accel", spec.accel]
    argv += ["-sandbox", SANDBOX]
    argv += ["-pidfile", f"{spec.directory}/{PID_FILE}"]
    argv += ["-chardev", f"socket,id=qmp,fd={ChildFd.qmp:d},server=on,wait=off"]
    argv += ["-mon", "chardev=qmp,mode=control"]
    argv += ["-vga", "std", "-vnc", f"127.0.0.1:{spec.display},password=on"]
    argv += _serial()
    for disk in spec.disks:
        argv += _drive(disk, _slot(disk, spec.disks))
    for card in spec.cards:
        argv += ["-netdev", _options(netdev(card)), "-device", _options(device(card, spec.values))]
    for setting in SETTINGS:
        if setting.file in spec.values:
            argv += setting.option(spec.values[setting.file])
    return argv


def _serial() -> list[str]:
    """The serial port: a socket for people, and a log that QEMU is handed so that it opens no path."""
    return [
        *("-add-fd", f"fd={ChildFd.serial_log:d},set=1"),
        "-chardev",
        f"socket,id=serial0,fd={ChildFd.serial:d},server=on,wait=off,logfile=/dev/fdset/1,logappend=on",
        *("-serial", "chardev:serial0"),
    ]


def _slot(disk: Disk, disks: Sequence[Disk]) -> str:
    if disk.slot != "cdrom":
        return disk.slot
    taken = {other.slot for other in disks}
    free = [slot for slot in ("hdc", "hdd") if slot not in taken]
    if not free:
        vm = os.path.basename(os.path.dirname(disk.path))
        raise Failed(
            "hdc, hdd and a CD-ROM do not fit together: IDE has four places, and the CD-ROM needs hdc or hdd",
            hint=f"vmess {vm} cdrom none",
        )
    return free[0]


def _drive(disk: Disk, slot: str) -> list[str]:
    """One drive. JSON with an explicit driver: no format is probed and any path is only a path."""
    node = {
        "driver": "raw",
        "node-name": disk.slot,
        "read-only": disk.slot == "cdrom",
        "file": {"driver": "host_device" if disk.block_device else "file", "filename": disk.path},
    }
    bus, unit = IDE[slot]
    model = "ide-cd" if disk.slot == "cdrom" else "ide-hd"
    return [
        *("-blockdev", json.dumps(node, separators=(",", ":"), ensure_ascii=False)),
        *("-device", f"{model},id={disk.slot}-drive,drive={disk.slot},bus={bus},unit={unit}"),
    ]


def netdev_id(index: int) -> str:
    """Return the id of what is behind the Nth network card."""
    return f"net{index}"


def card_id(index: int) -> str:
    """Return the id of the Nth network card."""
    return f"nic{index}"


def card_index(identifier: str) -> int | None:
    """Return which network card has this id; None for what is none."""
    match = re.fullmatch("nic([0-9]{1,3})", identifier)
    return int(match[1]) if match else None


def netdev(card: Card) -> dict[str, Any]:
    """Return what is behind a card, as arguments of QMP's `netdev_add` (qapi/net.json)."""
    if card.tap is not None:
        return {
            "type": "tap",
            "id": netdev_id(card.index),
            "ifname": card.tap,
            "script": "no",
            "downscript": "no",
        }
    arguments: dict[str, Any] = {"type": "user", "id": netdev_id(card.index)}
    if card.forwards:
        arguments["hostfwd"] = [{"str": forward(host, guest)} for host, guest in card.forwards]
    return arguments


def forward(host: int, guest: int) -> str:
    """Return QEMU's words for a forwarded port; only the host itself can reach it."""
    return f"tcp:127.0.0.1:{host}-:{guest}"


def device(card: Card, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card as arguments of QMP's `device_add`; `values` are settings by file name."""
    arguments = {
        "driver": values.get("NIC_MODEL", "e1000"),
        "netdev": netdev_id(card.index),
        "mac": card.mac,
        "id": card_id(card.index),
    }
    more = values.get("NIC_EXARGS", "")
    return arguments | dict(pair.split("=", 1) for pair in more.split(",") if pair)


def _options(arguments: Mapping[str, Any]) -> str:
    """Return QMP arguments as the option of a command line; the first one stands without its name."""
    (_, first), *rest = arguments.items()
    words = [str(first)]
    for key, value in rest:
        words += [f"{key}={item['str']}" for item in value] if isinstance(value, list) else [f"{key}={value}"]
    return ",".join(words)


def same_but_for_wires(one: Sequence[str], other: Sequence[str]) -> bool:
    """Tell whether two command lines differ at most in network cards, which come and go while a VM runs."""
    (rest, cards), (other_rest, other_cards) = _split_cards(one), _split_cards(other)
    common = cards.keys() & other_cards.keys()
    return rest == other_rest and all(cards[card] == other_cards[card] for card in common)


def _split_cards(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return a command line without the network cards of ours, and those by their ids."""
    rest, cards = [], {}
    words = iter(argv)
    for option in words:
        value = next(words, "") if option in ("-netdev", "-device") else ""
        identifier = re.search(r",id=((?:net|nic)[0-9]+)(?:,|$)", value)
        if identifier is None:
            rest += [option, value]
        elif option == "-device":
            cards[identifier[1]] = value
    return rest, cards


def accel_of(argv: Sequence[str]) -> str:
    """Return `kvm` or `tcg`, whichever a command line that :func:`build` made says."""
    return "kvm" if ("-accel", "kvm") in itertools.pairwise(argv) else "tcg"


def display_of(argv: Sequence[str]) -> int:
    """Return the VNC display of a command line that :func:`build` made; 0 where it has none."""
    for option, value in itertools.pairwise(argv):
        if option == "-vnc":
            number = value.removeprefix("127.0.0.1:").partition(",")[0]
            return int(number) if number.isdecimal() and len(number) <= 5 else 0
    return 0


def named_in(argv: Sequence[str]) -> tuple[str, str] | None:
    """Return the VM of a command line that :func:`build` made, and its directory as it was called then."""
    options: dict[str, str] = {}
    for option, value in itertools.pairwise(argv):
        options.setdefault(option, value)
    vm, directory = options.get("-name", ""), options.get("-pidfile", "").removesuffix(f"/{PID_FILE}")
    return (vm, directory) if vm and os.path.basename(directory) == vm else None
