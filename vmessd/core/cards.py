"""What is noted of network cards beside their wires: MACS, SLOTS and CABLES in the VM's directory. Pure.

A card that nothing is noted of has the MAC that follows from the VM's name, the PCI slot that QEMU has given
it from the beginning (3 for the first, 4 for the next), and its cable in.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.wires import INTERFACES_MAX

AS_EVER = "-"
"""In MACS and SLOTS, of an interface that nothing is noted of."""
IN_AGAIN = "~"
"""In CABLES behind an interface whose cable is out for a moment only."""
SLOT_FIRST, SLOT_LAST = 3, 31
"""Of machine `pc`: host bridge, PIIX and VGA have those before."""

NO_PCI = frozenset({"ne2k_isa", "usb-net", "virtio-net-device"})
"""Models of network cards that sit in no PCI slot (`-device help` of QEMU 7.2)."""
NO_LINK_STATE = ("i8255", "i82562", "i82801", "ne2k_isa", "ne2k_pci", "tulip", "usb-net")
"""How models are called whose guests cannot see the cable.

QEMU's set_link works with all of them and no frame passes, but nothing that the guest can read changes.
Measured on QEMU 7.2: registers of each model in `-device help`, link up and down; of usb-net by its source,
hw/usb/dev-network.c, which has no link_status_changed.
"""


def sees_cable(model: str) -> bool:
    """Tell whether a guest with this model of card sees that its cable is pulled."""
    return not model.startswith(NO_LINK_STATE)


# -- MACs --


def mac(text: str) -> str:
    """Return a MAC that a network card may have, in lower case; raises InvalidValue."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise InvalidValue(f"MAC {quoted(text)} is not six octets such as 02:11:9b:af:00:00")
    octets = bytes.fromhex(text.replace(":", ""))
    if octets[0] & 1 or not any(octets):
        what = "a group of stations" if octets[0] & 1 else "nobody"
        raise InvalidValue(
            f"MAC {quoted(text)} is that of {what}; a card's is not all zeros, and its first octet is even"
        )
    return text.lower()


def parse_macs(text: str) -> dict[int, str]:
    """Return the MACs that a MACS file gives, by interface; raises ValueError, as a parser of settings does."""
    return {index: mac(word) for index, word in _noted(text)}


def parse_slots(text: str) -> dict[int, int]:
    """Return the PCI slots that a SLOTS file gives, by interface; raises ValueError."""
    slots = {index: _number(word, SLOT_FIRST, SLOT_LAST) for index, word in _noted(text)}
    if len(set(slots.values())) < len(slots):
        raise ValueError(text)
    return slots


def _noted(text: str) -> list[tuple[int, str]]:
    words = text.split()
    if len(words) > INTERFACES_MAX:
        raise ValueError(text)
    return [(index, word) for index, word in enumerate(words) if word != AS_EVER]


def _number(word: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,2}", word) or not low <= int(word) <= high:
        raise ValueError(word)
    return int(word)


def file_text(noted: Mapping[int, object]) -> str:
    """Return what a MACS or SLOTS file has to say; empty for nothing."""
    return " ".join(str(noted.get(index, AS_EVER)) for index in range(max(noted, default=-1) + 1))


# -- Cables --


@dataclass(frozen=True)
class Loose:
    """Which cables are not in; by interface."""

    pulled: frozenset[int] = frozenset()
    bounced: frozenset[int] = frozenset()
    """Out for a moment: whoever finds them so puts them in again."""

    def __str__(self) -> str:
        words = {index: str(index) for index in self.pulled} | {
            index: f"{index}{IN_AGAIN}" for index in self.bounced
        }
        return " ".join(words[index] for index in sorted(words))

    def put(self, index: int, *, on: bool) -> "Loose":
        """Return them with one cable in, or pulled."""
        rest = self.pulled - {index}
        return Loose(rest if on else rest | {index}, self.bounced - {index})

    def among(self, indices: Collection[int]) -> "Loose":
        """Return those of certain interfaces."""
        return Loose(self.pulled & set(indices), self.bounced & set(indices))


def parse_cables(text: str) -> Loose:
    """Return what a CABLES file says; raises ValueError."""
    words = text.split()
    if len(words) > INTERFACES_MAX:
        raise ValueError(text)
    indices = [_number(word.removesuffix(IN_AGAIN), 0, INTERFACES_MAX - 1) for word in words]
    bounced = {index for index, word in zip(indices, words, strict=True) if word.endswith(IN_AGAIN)}
    return Loose(frozenset(indices) - bounced, frozenset(bounced))


# -- Slots --


@dataclass(frozen=True)
class Claims:
    """What EXARGS makes of the PCI slots."""

    slots: frozenset[int] = frozenset()
    """Those it names itself, and gets."""
    usual: bool = True
    """The first card comes to sit in slot 3 with it as without."""


_BEFORE_CARDS = frozenset({"-nic", "-net", "-audio", "-soundhw", "-readconfig"})
"""Options whose devices QEMU makes before those of `-device`, or that may hold anything (measured on 7.2)."""


def claims(words: Sequence[str]) -> Claims:
    """Return what EXARGS, split into words, makes of the PCI slots."""
    slots, usual = set(), True
    for option, value in itertools.pairwise([*words, ""]):
        name = option[1:] if option.startswith("--") else option
        if name == "-device":
            slots |= _claimed(value)
        elif name in ("-machine", "-M"):
            usual = usual and _is_pc(value)
        elif name in _BEFORE_CARDS or (name == "-vga" and value == "none"):
            usual = False
    return Claims(frozenset(slots), usual)


def _is_pc(value: str) -> bool:
    """Tell whether the value of `-machine` leaves it the machine that a VM has without."""
    first, *rest = value.split(",")
    kinds = [pair.removeprefix("type=") for pair in (first, *rest) if pair.startswith("type=")]
    kind = kinds[-1] if kinds else "" if "=" in first else first
    return kind in ("", "pc") or kind.startswith("pc-i440fx-")


def _claimed(value: str) -> set[int]:
    """Return the slot that the value of a `-device` names on the only PCI bus there is by itself."""
    properties: dict[str, Any] = dict(pair.split("=", 1) for pair in value.split(",") if "=" in pair)
    if value.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            decoded = json.loads(value)
            properties = decoded if isinstance(decoded, dict) else {}
    address = properties.get("addr")
    if properties.get("bus", "pci.0") not in ("pci.0", "pci"):
        return set()
    if isinstance(address, int):  # as JSON has it: slot and function in one number
        return {address >> 3}
    found = re.fullmatch(r"(?:0x)?([0-9a-f]{1,2})(?:\.[0-7])?", str(address).lower())
    return {int(found[1], 16)} if found else set()


def assign(indices: Collection[int], noted: Mapping[int, int], claimed: Claims) -> dict[int, int]:
    """Return the PCI slots of cards, by interface: as noted, else where QEMU has put them from the beginning.

    What EXARGS claims is left to it. A card that is not in the answer is for QEMU to place, as all that
    nothing is noted of where EXARGS changes how QEMU counts.
    """
    slots: dict[int, int] = {}
    taken = set(claimed.slots)
    for index in sorted(indices):
        if noted.get(index, 0) not in {0, *taken}:
            slots[index] = noted[index]
            taken.add(noted[index])
    for index in sorted(set(indices) - slots.keys()) if claimed.usual else ():
        slot = free(SLOT_FIRST + index, taken)
        if slot is not None:
            slots[index] = slot
            taken.add(slot)
    return slots


def choose(indices: Sequence[int], noted: Mapping[int, int], taken: Collection[int]) -> dict[int, int]:
    """Return free slots for cards that are to be plugged, by interface: where a start would put them, or above.

    A device of EXARGS that sits there stays there at the next start, too, since QEMU gives those the lowest
    slots that are free. A card for which there is no slot is not in the answer.
    """
    slots: dict[int, int] = {}
    for index in indices:
        slot = free(noted.get(index, SLOT_FIRST + index), {*taken, *slots.values()})
        if slot is not None:
            slots[index] = slot
    return slots


def free(wanted: int, taken: Collection[int]) -> int | None:
    """Return a slot that is not taken: the wanted one, else the next above it, else any; None where all are."""
    order = (*range(wanted, SLOT_LAST + 1), *range(SLOT_FIRST, wanted))
    return next((slot for slot in order if slot not in taken), None)
