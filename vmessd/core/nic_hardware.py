"""The guest's side of network interfaces: MACs, PCI slots and cables, as MACS, SLOTS and CABLES say. Pure.

By default a NIC has the MAC that follows from the VM's name, the PCI slot that QEMU itself would give it
(3 for the first, 4 for the next), and its cable plugged in. NICs for which the PCI bus has no slot are behind
two PCI bridges.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.names import INTERFACES_MAX

DEFAULT = "-"
"""The word of MACS and SLOTS for an interface that has its default."""
BOUNCED = "~"
"""The suffix in CABLES of an interface whose cable is pulled for a moment only."""
SLOT_FIRST, SLOT_LAST = 3, 31
"""Of machine `pc`: host bridge, PIIX and VGA have the slots below."""
EACH_BUS = 32
"""Slots of a bus. Those behind the first bridge are counted on from here, behind the second from twice that."""
BRIDGES = {1: "nics1", 2: "nics2"}
"""The bridges of NICs: for their slots divided by EACH_BUS, the ids, which are the names of their buses."""
BRIDGE_SLOT = 0x1F
"""The slot of both bridges, which share it as two functions: on machine `pc` the last one that a NIC would get,
on `q35` that of the chipset. Linux numbers the NICs of a bus before those behind its bridges."""
BEHIND_BRIDGES = tuple(EACH_BUS * bus + slot for bus in BRIDGES for slot in range(1, EACH_BUS))
"""The slots behind bridges; a bridge may have slot 0 for itself (QEMU, hw/pci-bridge/pci_bridge_dev.c)."""
UNBRIDGED_MAX = 29
"""NICs that a VM can have without bridges."""

NO_PCI = frozenset({"ne2k_isa", "usb-net", "virtio-net-device"})
"""Models without a PCI slot (`-device help` of QEMU 7.2)."""
NO_LINK_STATE = ("i8255", "i82562", "i82801", "ne2k_isa", "ne2k_pci", "tulip", "usb-net")
"""Prefixes of models that do not show the link state to the guest.

QEMU's set_link stops their frames, but changes nothing that the guest can read. Measured on QEMU 7.2: registers
of each model in `-device help`, link up and down; for usb-net from its source, hw/usb/dev-network.c, which has
no link_status_changed.
"""


def sees_cable(model: str) -> bool:
    """Tell whether a guest with a NIC of this model sees that its cable is pulled."""
    return not model.startswith(NO_LINK_STATE)


# -- MACs --


def mac(text: str) -> str:
    """Return a valid MAC of a NIC in lower case; raises InvalidValue."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise InvalidValue(f"MAC {quoted(text)} is not six octets such as 02:11:9b:af:00:00")
    octets = bytes.fromhex(text.replace(":", ""))
    if octets[0] & 1 or not any(octets):
        what = "a multicast address" if octets[0] & 1 else "all zeros"
        raise InvalidValue(
            f"MAC {quoted(text)} is {what}; a NIC needs a unicast address, whose first octet is even"
        )
    return text.lower()


def parse_macs(text: str) -> dict[int, str]:
    """Return the MACs in a MACS file by interface; raises ValueError, as parsers of settings do."""
    return {index: mac(word) for index, word in _noted(text)}


def parse_slots(text: str) -> dict[int, int]:
    """Return the PCI slots in a SLOTS file by interface; raises ValueError."""
    slots = {index: _number(word, SLOT_FIRST, BEHIND_BRIDGES[-1]) for index, word in _noted(text)}
    if len(set(slots.values())) < len(slots) or not set(slots.values()) <= {*_SLOTS, *BEHIND_BRIDGES}:
        raise ValueError(text)
    return slots


def _noted(text: str) -> list[tuple[int, str]]:
    words = text.split()
    if len(words) > INTERFACES_MAX:
        raise ValueError(text)
    return [(index, word) for index, word in enumerate(words) if word != DEFAULT]


def _number(word: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,2}", word) or not low <= int(word) <= high:
        raise ValueError(word)
    return int(word)


def file_text(noted: Mapping[int, object]) -> str:
    """Return the text of a MACS or SLOTS file; empty where no interface differs from the default."""
    return " ".join(str(noted.get(index, DEFAULT)) for index in range(max(noted, default=-1) + 1))


# -- Cables --


@dataclass(frozen=True)
class Loose:
    """The interfaces with a loose cable, pulled or bounced."""

    pulled: frozenset[int] = frozenset()
    bounced: frozenset[int] = frozenset()
    """Loose for a moment: a daemon that finds such a cable plugs it in again."""

    def __str__(self) -> str:
        words = {index: str(index) for index in self.pulled} | {
            index: f"{index}{BOUNCED}" for index in self.bounced
        }
        return " ".join(words[index] for index in sorted(words))

    def put(self, index: int, *, on: bool) -> "Loose":
        """Return the same with the cable of one interface plugged in or pulled."""
        rest = self.pulled - {index}
        return Loose(rest if on else rest | {index}, self.bounced - {index})

    def among(self, indices: Collection[int]) -> "Loose":
        """Return the same without other interfaces."""
        return Loose(self.pulled & set(indices), self.bounced & set(indices))


def parse_cables(text: str) -> Loose:
    """Return the loose cables in a CABLES file; raises ValueError."""
    words = text.split()
    if len(words) > INTERFACES_MAX:
        raise ValueError(text)
    indices = [_number(word.removesuffix(BOUNCED), 0, INTERFACES_MAX - 1) for word in words]
    bounced = {index for index, word in zip(indices, words, strict=True) if word.endswith(BOUNCED)}
    return Loose(frozenset(indices) - bounced, frozenset(bounced))


# -- Slots --


@dataclass(frozen=True)
class Claims:
    """The effect of EXARGS on PCI slots."""

    slots: frozenset[int] = frozenset()
    """The slots it names explicitly; they are left to it."""
    usual: bool = True
    """The first NIC still gets slot 3."""


_BEFORE_NICS = frozenset({"-nic", "-net", "-audio", "-soundhw", "-readconfig"})
"""Options whose devices QEMU creates before those of `-device`, or that may contain any (measured on 7.2)."""


def claims(words: Sequence[str]) -> Claims:
    """Return the effect of EXARGS, split into words, on PCI slots."""
    slots, usual = set(), True
    for option, value in itertools.pairwise([*words, ""]):
        name = option[1:] if option.startswith("--") else option
        if name == "-device":
            slots |= _claimed(value)
        elif name in ("-machine", "-M"):
            usual = usual and _is_pc(value)
        elif name in _BEFORE_NICS or (name == "-vga" and value == "none"):
            usual = False
    return Claims(frozenset(slots), usual)


def _is_pc(value: str) -> bool:
    """Tell whether the value of `-machine` keeps the machine type `pc`."""
    first, *rest = value.split(",")
    kinds = [pair.removeprefix("type=") for pair in (first, *rest) if pair.startswith("type=")]
    kind = kinds[-1] if kinds else "" if "=" in first else first
    return kind in ("", "pc") or kind.startswith("pc-i440fx-")


def _claimed(value: str) -> set[int]:
    """Return the slot that the value of a `-device` names, if it is on the built-in PCI bus."""
    properties: dict[str, Any] = dict(pair.split("=", 1) for pair in value.split(",") if "=" in pair)
    if value.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            decoded = json.loads(value)
            properties = decoded if isinstance(decoded, dict) else {}
    address = properties.get("addr")
    if properties.get("bus", "pci.0") not in ("pci.0", "pci"):
        return set()
    if isinstance(address, int):  # in JSON: slot and function in one number
        return {address >> 3}
    found = re.fullmatch(r"(?:0x)?([0-9a-f]{1,2})(?:\.[0-7])?", str(address).lower())
    return {int(found[1], 16)} if found else set()


_SLOTS = range(SLOT_FIRST, SLOT_LAST + 1)


def assign(
    indices: Collection[int], noted: Mapping[int, int], claimed: Claims, *, shared: bool = False
) -> dict[int, int]:
    """Return the PCI slots of NICs by interface: as noted in SLOTS, else where QEMU would put them by default.

    Slots that EXARGS claims are left free. NICs for which there is no slot left are behind bridges. QEMU places
    a NIC that is missing in the result: every one that is not noted, where EXARGS changes the order of devices.
    `shared`: the chipset has the slot of the bridges, so that no NIC has to leave it to them.
    """
    known = [index for index in indices if claimed.usual or index in noted]
    slots = _placed(known, noted, claimed.slots, _SLOTS)
    if len(slots) == len(indices) or (not claimed.usual and len(indices) <= UNBRIDGED_MAX):
        return slots
    taken = claimed.slots | (set() if shared else {BRIDGE_SLOT})
    if claimed.usual:
        return _placed(indices, noted, taken, (*_SLOTS, *BEHIND_BRIDGES))
    slots = _placed(known, noted, taken, _SLOTS)
    others = [index for index in sorted(indices)[_LEFT_TO_QEMU:] if index not in slots]
    return slots | _placed(others, noted, {*slots.values()}, BEHIND_BRIDGES)


_LEFT_TO_QEMU = 16
"""NICs that have no slot of ours beside bridges, where EXARGS changes the order of devices."""


def _placed(
    indices: Collection[int], noted: Mapping[int, int], claimed: Collection[int], possible: Sequence[int]
) -> dict[int, int]:
    """Return possible slots of NICs by interface, as noted or near those of QEMU, as far as there are any."""
    slots: dict[int, int] = {}
    taken = set(claimed)
    for index in sorted(indices):
        slot = noted.get(index)
        if slot is not None and slot in possible and slot not in taken:
            slots[index] = slot
            taken.add(slot)
    for index in sorted(set(indices) - slots.keys()):
        slot = free(SLOT_FIRST + index, taken, possible)
        if slot is not None:
            slots[index] = slot
            taken.add(slot)
    return slots


def choose(
    indices: Sequence[int],
    noted: Mapping[int, int],
    others: Mapping[int, int],
    taken: Collection[int],
    possible: Sequence[int],
) -> dict[int, int]:
    """Return free slots for NICs to hot-plug, by interface: the slot that a start would use, or the next one.

    It is above those of the interfaces before it, so that guests number it behind them after a start. A device
    of EXARGS in that slot stays there at the next start, since QEMU gives those the lowest free slots. A NIC
    without a free slot is missing in the result.

    Args:
        indices: the interfaces, in ascending order.
        noted: the slots in SLOTS, by interface.
        others: the slots of the other NICs, by interface.
        taken: the slots in use.
        possible: the slots that this machine can plug a NIC into, in ascending order.
    """
    slots: dict[int, int] = {}
    for index in indices:
        before = [slot for other, slot in {**others, **slots}.items() if other < index]
        wanted = noted.get(index) or max([SLOT_FIRST + index, *(slot + 1 for slot in before)])
        slot = free(wanted, {*taken, *slots.values()}, possible)
        if slot is not None:
            slots[index] = slot
    return slots


def free(wanted: int, taken: Collection[int], possible: Sequence[int]) -> int | None:
    """Return a free slot: the wanted one, else the next one above, else any; None where all are taken."""
    order = sorted(possible, key=lambda slot: (slot < wanted, slot))
    return next((slot for slot in order if slot not in taken), None)


def pluggable(bridges: Collection[int], *, first_bus: bool) -> tuple[int, ...]:
    """Return the slots that a running machine may plug NICs into, in ascending order.

    `bridges` are the keys of those BRIDGES that it has; `first_bus` tells whether its first bus takes any.
    """
    return (*(_SLOTS if first_bus else ()), *(slot for slot in BEHIND_BRIDGES if slot // EACH_BUS in bridges))
