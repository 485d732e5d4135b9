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
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vmessd.core import cards
from vmessd.core.errors import Failed
from vmessd.core.names import CDROM
from vmessd.core.settings import CPU, SETTINGS
from vmessd.core.wires import Forward
from vmessd.storage.images import Disk
from vmessd.storage.vmdir import PID_FILE


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


BEST_CPU = {"kvm": "host", "tcg": "max"}
"""By accelerator, the model that has all there is (QEMU, docs/system/cpu-models-x86); TCG knows no `host`."""


@dataclasses.dataclass(frozen=True)
class Card:
    """A network card of the guest and what is behind it."""

    index: int
    """Counted from 0."""
    mac: str
    tap: str | None
    """The TAP behind it; None for QEMU's user-mode network."""
    forwards: Sequence[Forward] = ()
    """Of a user-mode network: the host's ports that lead into it."""
    slot: int | None = None
    """The PCI slot it sits in; None where QEMU chooses, or there are none."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a VM should be: everything that shapes its QEMU."""

    vm: str
    directory: str
    """Absolute path of the VM's directory."""
    accel: str
    """`kvm` or `tcg`."""
    display: int
    """VNC display, the TCP port being 5900 more; 0 for a VNC server that listens on no port."""
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
    if CPU in spec.values:
        argv += ["-cpu", cpu(spec.values[CPU], spec.accel)]
    argv += ["-sandbox", SANDBOX]
    argv += ["-pidfile", f"{spec.directory}/{PID_FILE}"]
    argv += ["-chardev", f"socket,id=qmp,fd={ChildFd.qmp:d},server=on,wait=off"]
    argv += ["-mon", "chardev=qmp,mode=control"]
    screen = f"127.0.0.1:{spec.display}" if spec.display else "none"
    argv += ["-vga", "std", "-vnc", f"{screen},password=on"]
    argv += _serial()
    for disk in spec.disks:
        argv += _drive(disk, _slot(disk, spec.disks))
    for card in sorted(spec.cards, key=lambda card: card.slot is None):  # before QEMU gives a slot away
        argv += ["-netdev", _options(netdev(card)), "-device", _options(device(card, spec.values))]
    for setting in SETTINGS:
        if setting.file in spec.values:
            argv += setting.option(spec.values[setting.file])
    return argv


def cpu(value: str, accel: str) -> str:
    """Return QEMU's words for the CPU that a CPU file asks for."""
    model, comma, features = value.partition(",")
    return f"{BEST_CPU[accel] if model == 'best' else model}{comma}{features}"


def _serial() -> list[str]:
    """The serial port: a socket for people, and a log that QEMU is handed so that it opens no path."""
    return [
        *("-add-fd", f"fd={ChildFd.serial_log:d},set=1"),
        "-chardev",
        f"socket,id=serial0,fd={ChildFd.serial:d},server=on,wait=off,logfile=/dev/fdset/1,logappend=on",
        *("-serial", "chardev:serial0"),
    ]


def _slot(disk: Disk, disks: Sequence[Disk]) -> str:
    if disk.slot != CDROM:
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
    """One drive. JSON with an explicit driver: no format is probed and any path is only a path.

    What a guest discards is to leave the image: each node passes it on only if told (qapi/block-core.json).
    """
    discard = {} if disk.slot == CDROM else {"discard": "unmap"}
    file = {"driver": "host_device" if disk.block_device else "file", "filename": disk.path, **discard}
    node = {"driver": "raw", "node-name": disk.slot, "read-only": disk.slot == CDROM, **discard, "file": file}
    bus, unit = IDE[slot]
    model = "ide-cd" if disk.slot == CDROM else "ide-hd"
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
        arguments["hostfwd"] = [{"str": hostfwd(forward)} for forward in card.forwards]
    return arguments


def hostfwd(forward: Forward) -> str:
    """Return QEMU's words for a forwarded port."""
    return f"{forward.protocol}:{forward.address}:{forward.host}-:{forward.guest}"


def device(card: Card, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a card as arguments of QMP's `device_add`; `values` are settings by file name."""
    arguments = {"driver": model(values), "netdev": netdev_id(card.index)}
    if card.slot is not None:
        arguments["addr"] = f"{card.slot:#x}"
    return arguments | {"mac": card.mac, "id": card_id(card.index)} | _more(values)


def model(values: Mapping[str, Any]) -> str:
    """Return the network cards' model."""
    return str(values.get("NIC_MODEL", "e1000"))


def _more(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what NIC_EXARGS adds; `,,` stands for a comma in one of its values (QEMU, QemuOpts)."""
    pairs = values.get("NIC_EXARGS", "").replace(",,", "\0").split(",")
    return dict(pair.replace("\0", ",").split("=", 1) for pair in pairs if pair)


def has_slots(values: Mapping[str, Any]) -> bool:
    """Tell whether it is for us to say in which PCI slots the network cards sit."""
    return model(values) not in cards.NO_PCI and not {"addr", "bus"} & _more(values).keys()


def slots(indices: Collection[int], values: Mapping[str, Any]) -> dict[int, int]:
    """Return the PCI slots of network cards as a start gives them, by interface; QEMU places the others."""
    claimed = cards.claims(values.get("EXARGS", ()))
    return cards.assign(indices, values.get("SLOTS", {}), claimed) if has_slots(values) else {}


def _options(arguments: Mapping[str, Any]) -> str:
    """Return QMP arguments as the option of a command line; the first one stands without its name."""
    (_, first), *rest = arguments.items()
    words = [str(first)]
    for key, value in rest:
        words += [f"{key}={item['str']}" for item in value] if isinstance(value, list) else [f"{key}={value}"]
    return ",".join(word.replace(",", ",,") for word in words)


_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<bare>VM|DIR)(?!\w)|\{(?P<braced>VM|DIR)\})", re.ASCII)
_NO_LIST = ("-append", "--append")  # what follows is the guest's business, commas and all


def expanded(values: Mapping[str, Any], vm: str, directory: str) -> dict[str, Any]:
    """Return settings by file name, `$VM` and `$DIR` in those that hand words to QEMU replaced.

    They stand for the VM's name and the path of its directory, `$$` for a dollar; any other `$` stays.
    """
    found = dict(values)
    if words := found.get("EXARGS"):
        found["EXARGS"] = tuple(
            _filled_in(word, vm, directory, listed=before not in _NO_LIST)
            for before, word in itertools.pairwise(("", *words))
        )
    if "NIC_EXARGS" in found:
        found["NIC_EXARGS"] = _filled_in(found["NIC_EXARGS"], vm, directory)
    return found


def _filled_in(word: str, vm: str, directory: str, *, listed: bool = True) -> str:
    """Return a word with what its variables stand for, written as QEMU reads the word.

    Behind a `=` in a list of options a comma is doubled; in JSON, quotes and the like are escaped.
    """

    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if "VM" in (match["bare"], match["braced"]):
            return vm
        if word.startswith("{"):
            return json.dumps(directory, ensure_ascii=False)[1:-1]
        return directory.replace(",", ",,") if listed and "=" in word[: match.start()] else directory

    return _VARIABLE.sub(value, word)


def same_but_for_wires(one: Sequence[str], other: Sequence[str]) -> bool:
    """Tell whether two command lines differ at most in network cards, which come and go while a VM runs.

    One that went and came back may be in another PCI slot, and is there at the next start, too.
    """
    (rest, ours), (other_rest, others) = _split_cards(one), _split_cards(other)
    return rest == other_rest and all(ours[card] == others[card] for card in ours.keys() & others.keys())


def _split_cards(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return a command line without the network cards of ours, and those by their ids."""
    rest, found = [], {}
    words = iter(argv)
    for option in words:
        value = next(words, "") if option in ("-netdev", "-device") else ""
        identifier = re.search(r",id=((?:net|nic)[0-9]+)(?:,|$)", value)
        if identifier is None:
            rest += [option, value]
        elif option == "-device":
            found[identifier[1]] = re.sub("^([^,]+,netdev=net[0-9]+),addr=0x[0-9a-f]+", r"\1", value)
    return rest, found


def cards_of(argv: Sequence[str]) -> dict[int, tuple[str, str | None]]:
    """Return the network cards of a command line that :func:`build` made: by interface, MAC and TAP."""
    found: dict[int, tuple[str, str | None]] = {}
    taps: dict[int, str] = {}
    for option, value in itertools.pairwise(argv):
        if option == "-netdev" and (match := re.match("tap,id=net([0-9]{1,3}),ifname=([^,]+)", value)):
            taps[int(match[1])] = match[2]
        elif option == "-device" and (
            match := re.search(",mac=([0-9a-f:]{17}),id=nic([0-9]{1,3})(?:,|$)", value)
        ):
            found[int(match[2])] = (match[1], taps.get(int(match[2])))
    return found


def accel_of(argv: Sequence[str]) -> str:
    """Return `kvm` or `tcg`, whichever a command line that :func:`build` made says."""
    return "kvm" if ("-accel", "kvm") in itertools.pairwise(argv) else "tcg"


def cpu_of(argv: Sequence[str]) -> str | None:
    """Return what a command line says of the CPU, the last word of several; None where it says nothing."""
    return next((value for option, value in reversed([*itertools.pairwise(argv)]) if option == "-cpu"), None)


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
