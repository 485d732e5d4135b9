"""Values of settings that choose the guest's hardware, and what else QEMU gets: the parsers. Pure.

Each function is the parser of a setting: it returns a value, or raises ValueError, or InvalidValue to say why.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.names import CDROM, DISKS, INTERFACES_MAX

SMBIOS_KEYS = ("manufacturer", "product", "version", "serial", "uuid", "sku", "family")
"""What firmware tells a guest about its machine (SMBIOS, type 1; qemu-system-x86_64(1), -smbios)."""
SMBIOS_IDENTITY = ("uuid", "serial")
"""Those of one machine alone."""
SMBIOS_MAX = 200
"""Characters of one of its values."""
HD, NET = "hd", "net"
BOOT_WORDS = (HD, CDROM, NET, *DISKS)
"""What firmware can boot: `hd` is all disks, `net` all network cards."""
IDE, VIRTIO, SCSI, SATA, NVME = BUSES = ("ide", "virtio", "scsi", "sata", "nvme")
"""What a disk can be attached to."""
IDE_PLACES = ("hda", "hdb", "hdc", "hdd")
"""The disks that have a place on the two IDE buses of machine `pc`."""
DISK_BUS, FIRMWARE = "DISK_BUS", "FIRMWARE"
BIOS, UEFI, UEFI_SECURE = FIRMWARES = ("bios", "uefi", "uefi-secure")
KERNEL, INITRD, APPEND = "KERNEL", "INITRD", "APPEND"
PATH_MAX = 4096
APPEND_MAX = 2047
"""Characters of a kernel's command line (Linux, COMMAND_LINE_SIZE of x86, with its last NUL)."""
BOOT_FIRST = 100
"""The first bootindex that is given; smaller ones are free for NIC_EXARGS and EXARGS."""


def is_word(text: str) -> bool:
    """Tell whether a text can be the name of a machine type or device of QEMU: no list, no option."""
    return text[:1].isalnum() and text.isascii() and text.translate(_MARKS).isalnum()


_MARKS, _CPU_MARKS = str.maketrans("", "", "-_."), str.maketrans("", "", "-_.+")


def word(text: str) -> str:
    """Return the name of something that QEMU knows."""
    if not is_word(text) or text == "help":
        raise ValueError(text)
    return text


def graphics_card(text: str) -> str:
    """Return the name of a graphics card; `off` is what QEMU calls none, because none unsets a setting."""
    return "none" if text == "off" else word(text)


def models(text: str) -> tuple[str, ...]:
    """Return models of network cards, with spaces or commas between; `virtio` is short for virtio-net-pci."""
    names = words if len(words := text.split()) > 1 else text.split(",")
    if len(names) > INTERFACES_MAX:
        raise InvalidValue(f"it names {len(names)} models; a VM has at most {INTERFACES_MAX} interfaces")
    return tuple("virtio-net-pci" if name == "virtio" else word(name) for name in names)


def cpu(text: str) -> str:
    """Return a CPU model and its features; refuses other options and `help`."""
    model, *features = text.split(",")
    if text.isdecimal() and text != "486":
        raise InvalidValue("the number of processors is set by smp")
    names = [model]
    for feature in features:
        name, equals, value = feature.partition("=")
        if name[:1] not in ("+", "-") and (equals, value) not in (("=", "on"), ("=", "off")):
            raise ValueError(text)
        names.append(name if equals else name[1:])
    for name in names:
        if not name[:1].isalnum() or not name.isascii() or not name.translate(_CPU_MARKS).isalnum():
            raise ValueError(text)
    if model == "help":
        raise ValueError(text)
    return text


def properties(text: str) -> str:
    """Return more properties of each network card, as QEMU takes them."""
    text = text.strip(",")
    printable = text.isascii() and text.isprintable() and " " not in text
    keys = [pair.partition("=")[0] for pair in text.split(",") if "=" in pair]
    if not printable or not all(keys) or len(keys) <= text.count(","):
        raise ValueError(text)
    if taken := [key for key in keys if key in ("driver", "id", "netdev", "mac")]:
        raise InvalidValue(f"{taken[0]} follows from the VM's name")
    return text


def arguments(text: str) -> tuple[str, ...]:
    """Return more arguments of QEMU, split as by a shell: a file may have several lines."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidValue(str(error).lower()) from None
    if wrong := next((word for word in words if not word.replace("\t", " ").isprintable()), None):
        raise InvalidValue(f"{quoted(wrong)} is not printable")
    if any(word in ("-daemonize", "--daemonize") for word in words):
        raise InvalidValue("vmessd cannot supervise a QEMU with -daemonize")
    return words


def smbios(text: str) -> dict[str, str]:
    """Return the values of `key=value,key=value`; `,,` is a comma within a value, as for QEMU.

    Raises:
        InvalidValue: says which pair is wrong.
    """
    if not text.isprintable():
        raise ValueError(text)
    found: dict[str, str] = {}
    for pair in text.replace(",,", "\0").split(","):
        key, equals, value = pair.replace("\0", ",").partition("=")
        if key not in SMBIOS_KEYS or not equals:
            raise InvalidValue(f"{quoted(key)} is not one of {', '.join(SMBIOS_KEYS)}")
        if key in found:
            raise InvalidValue(f"{key} is there twice")
        if not (value and len(value) <= SMBIOS_MAX and value.isascii()):
            raise InvalidValue(f"{key} is not 1 to {SMBIOS_MAX} printable ASCII characters")
        if key == "uuid" and not _is_uuid(value):
            raise InvalidValue(f"uuid {quoted(value)} is not such as 6c1f2a9e-8d5b-4f0a-9e3c-2b7d41c05f68")
        found[key] = value
    return found


def smbios_text(pairs: Mapping[str, str]) -> str:
    """Return the text that :func:`smbios` reads."""
    return ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs.items())


def _is_uuid(text: str) -> bool:
    groups = text.split("-")
    return [len(group) for group in groups] == [8, 4, 4, 4, 12] and set("".join(groups)) <= _HEXADECIMAL


_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


def disk_bus(text: str) -> dict[str, str]:
    """Return buses by disk; the one for all other disks has an empty name. `virtio,hda=ide` has both."""
    found: dict[str, str] = {}
    for part in text.split(","):
        slot, equals, bus = part.rpartition("=")
        if bus not in BUSES or slot in found or (slot not in DISKS if equals else slot):
            raise ValueError(text)
        found[slot] = bus
    return found


def disk_bus_text(buses: Mapping[str, str]) -> str:
    """Return the text that :func:`disk_bus` reads."""
    return ",".join(f"{slot}={bus}" if slot else bus for slot, bus in buses.items())


def bus_of(slot: str, values: Mapping[str, Any]) -> str:
    """Return the bus of a disk; `values` are settings by file name."""
    buses = values.get(DISK_BUS, {})
    return str(buses.get(slot) or buses.get("", IDE))


def path(text: str) -> str:
    """Return the path of a file."""
    if not 0 < len(text) <= PATH_MAX or not text.isprintable():
        raise ValueError(text)
    return text


def kernel_arguments(text: str) -> str:
    """Return the command line of a kernel."""
    if not 0 < len(text) <= APPEND_MAX or not text.isprintable():
        raise ValueError(text)
    return text


def boot_order(text: str) -> tuple[str, ...]:
    """Return what is booted first, second and so on, from words with commas or spaces between them."""
    words = tuple(text.replace(",", " ").split())
    if not words or not set(words) <= set(BOOT_WORDS) or len(set(words)) < len(words):
        raise ValueError(text)
    return words


def boot_indices(order: Sequence[str], disks: Sequence[str], cards: Sequence[int]) -> dict[str, int]:
    """Return the place of each drive and network card in the boot order, by slot or `net<N>`.

    What `order` does not name has no place: firmware tries it last, in an order of its own.
    """
    members: Mapping[str, list[str]] = {
        HD: [slot for slot in disks if slot != CDROM],
        NET: [f"{NET}{index}" for index in sorted(cards)],
    }
    present = {*disks, *members[NET]}
    places = dict.fromkeys(place for each in order for place in members.get(each, [each]) if place in present)
    return {place: index for index, place in enumerate(places, BOOT_FIRST)}
