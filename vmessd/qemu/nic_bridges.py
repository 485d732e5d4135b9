"""The PCI bridges of network cards that have no slot on the first bus, on the command line of QEMU. Pure.

A running machine takes cards behind them, too, also one of type `q35`, whose first bus takes none: QEMU has
hot-plug by ACPI for each bridge that is there at the start (hw/acpi/pcihp.c).
"""

from collections.abc import Collection, Mapping
from typing import Any

from vmessd.core.machine_types import is_q35
from vmessd.core.nic_hardware import BRIDGE_SLOT, BRIDGES, EACH_BUS

DRIVER = "pci-bridge"
_CHASSIS = 1
"""The chassis before the first one of ours; the bridge of disks has it."""
_FUNCTIONS_ON_Q35 = 4
"""The first function of the chipset's slot that it leaves free (QEMU, hw/i386/pc_q35.c: 0, 2 and 3)."""


def place(slot: int) -> dict[str, str]:
    """Return the properties of a card that put it into a slot of :mod:`vmessd.core.nic_hardware`."""
    bus, number = divmod(slot, EACH_BUS)
    return {**({"bus": BRIDGES[bus]} if bus else {}), "addr": f"{number:#x}"}


def options(slots: Collection[int | None], values: Mapping[str, Any]) -> list[str]:
    """Return the bridges, both or none, for cards in these slots; `values` are settings by file name."""
    if not any(slot is not None and slot >= EACH_BUS for slot in slots):
        return []
    found: list[str] = []
    for bus, name in BRIDGES.items():
        function = bus - 1 + (_FUNCTIONS_ON_Q35 if is_q35(values) else 0)
        shared = ",multifunction=on" if function == 0 else ""
        where = f"addr={BRIDGE_SLOT:#x}.{function}{shared}"
        found += ["-device", f"{DRIVER},id={name},chassis_nr={_CHASSIS + bus},{where}"]
    return found


def is_one(option: str, value: str) -> bool:
    """Tell whether an option of QEMU and its value are such a bridge."""
    return option == "-device" and value.startswith(tuple(f"{DRIVER},id={name}," for name in BRIDGES.values()))
