"""The disks of a VM as devices of the guest: the bus of each, and the controllers that these need. Pure.

Sources: QEMU's hw/block/{virtio-blk,nvme}, hw/scsi/virtio-scsi, hw/ide/{piix,ahci}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vmessd.core import names
from vmessd.core.errors import Failed
from vmessd.core.hardware import DISK_BUS, IDE, IDE_PLACES, NVME, SATA, SCSI, VIRTIO, bus_of, disk_bus_text
from vmessd.core.machine_types import is_q35
from vmessd.core.names import CDROM
from vmessd.storage.images import Disk

SUFFIX = "-drive"
"""Of the id of a drive: `hda-drive`."""
# The bus and unit of `-hda` ... `-hdd` on machine `pc`; `-cdrom` is the same as hdc.
IDE_UNITS = {"hda": ("ide.0", 0), "hdb": ("ide.0", 1), "hdc": ("ide.1", 0), "hdd": ("ide.1", 1)}
PORTS = {slot: port for port, slot in enumerate((*IDE_PLACES, CDROM))}
"""The SATA port of one of the first drives. On `q35`, each SATA port is an IDE bus of its own."""
SLOTS = {"hda": 0x1A, "hdb": 0x1B, "hdc": 0x1C, "hdd": 0x1D}
"""The PCI slot of one of the first disks, if it is a PCI device."""
MORE = {slot: number for number, slot in enumerate(names.DISKS[len(IDE_PLACES) :])}
"""The disks behind the first ones, counted. What they need is on a PCI bus of its own, so that guests find them
after the first ones, and in order."""
BRIDGE, BRIDGE_SLOT = "disks", 0x1E
AHCI_PORTS, AHCI_SLOT = 6, 0x18
"""The SATA ports of one controller; the slot below that of the first one on that bus."""
CONTROLLERS = {SATA: ("ahci,id=ahci0", 0x18), SCSI: ("virtio-scsi-pci,id=scsi0", 0x19)}
"""The controller of a bus, and its PCI slot."""


def options(disks: Sequence[Disk], values: Mapping[str, Any]) -> list[str]:
    """Return the controllers of the buses that these disks are on; `values` are settings by file name."""
    first = {_bus(disk.slot, values) for disk in disks if disk.slot not in MORE}
    more = {disk.slot: _bus(disk.slot, values) for disk in disks if disk.slot in MORE}
    wanted = first | ({SCSI} & set(more.values()))
    found: list[str] = []
    for bus, (controller, slot) in CONTROLLERS.items():
        if bus in wanted:
            found += ["-device", f"{controller},addr={slot:#x}"]
    if _needs_bridge(disks, values):
        found += ["-device", f"pci-bridge,id={BRIDGE},chassis_nr=1,addr={BRIDGE_SLOT:#x}"]
    for number in sorted({_ahci(slot)[0] for slot, bus in more.items() if bus == SATA}):
        found += ["-device", f"ahci,id=ahci{number},bus={BRIDGE},addr={AHCI_SLOT + number:#x}"]
    return found


def slots(disks: Sequence[Disk], values: Mapping[str, Any]) -> set[int]:
    """Return the PCI slots that disks and their controllers may take, even if a disk is not there yet."""
    buses = {slot: _bus(slot, values) for slot in IDE_PLACES}
    taken = {SLOTS[slot] for slot, bus in buses.items() if bus in (VIRTIO, NVME)}
    wanted = {*buses.values(), *({SCSI} & {_bus(disk.slot, values) for disk in disks})}
    taken |= {slot for bus, (_, slot) in CONTROLLERS.items() if bus in wanted}
    return taken | ({BRIDGE_SLOT} if _needs_bridge(disks, values) else set())


def device(disk: Disk, disks: Sequence[Disk], values: Mapping[str, Any]) -> str:
    """Return the device of a drive, in the syntax of `-device`.

    Raises:
        Failed: there is no IDE unit left for it.
    """
    drive = f"id={disk.slot}{SUFFIX},drive={disk.slot}"
    bus = _bus(disk.slot, values)
    if bus == VIRTIO:
        return f"virtio-blk-pci,{drive}{_pci_place(disk.slot)}"
    if bus == NVME:
        return f"nvme,{drive},serial={disk.slot}{_pci_place(disk.slot)}"
    if bus == SCSI:
        return f"scsi-hd,{drive},bus=scsi0.0,scsi-id={names.DISKS.index(disk.slot)}"
    if bus == SATA:
        controller, port = _ahci(disk.slot)
        return f"ide-hd,{drive},bus=ahci{controller}.{port},unit=0"
    name, unit = (f"ide.{PORTS[disk.slot]}", 0) if is_q35(values) else IDE_UNITS[_unit(disk, disks, values)]
    return f"{'ide-cd' if disk.slot == CDROM else 'ide-hd'},{drive},bus={name},unit={unit}"


def _pci_place(slot: str) -> str:
    """Return the place of a disk that is a PCI device."""
    return f",bus={BRIDGE},addr={1 + MORE[slot]:#x}" if slot in MORE else f",addr={SLOTS[slot]:#x}"


def _ahci(slot: str) -> tuple[int, int]:
    """Return the number of the SATA controller of a disk, and the port."""
    if slot not in MORE:
        return 0, PORTS[slot]
    return 1 + MORE[slot] // AHCI_PORTS, MORE[slot] % AHCI_PORTS


def _needs_bridge(disks: Sequence[Disk], values: Mapping[str, Any]) -> bool:
    return any(_bus(disk.slot, values) in (VIRTIO, NVME, SATA) for disk in disks if disk.slot in MORE)


def free_units(disks: Sequence[Disk], values: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the buses and units of the IDE places that are free for more CD drives, the last one first."""
    if is_q35(values):
        return [(f"ide.{len(PORTS)}", 0)]
    taken = {_unit(disk, disks, values) for disk in disks if _bus(disk.slot, values) == IDE}
    return [place for slot, place in reversed(IDE_UNITS.items()) if slot not in taken]


def _bus(slot: str, values: Mapping[str, Any]) -> str:
    """Return the bus of a drive; on `q35`, IDE and SATA are the same, and the chipset has the first ports."""
    bus = IDE if slot == CDROM else bus_of(slot, values)
    if not is_q35(values) or bus not in (IDE, SATA):
        return bus
    return SATA if slot in MORE else IDE


def _unit(disk: Disk, disks: Sequence[Disk], values: Mapping[str, Any]) -> str:
    """Return the drive whose IDE unit on machine `pc` a drive gets."""
    if disk.slot in MORE:
        vm = disk.path.split("/")[-2]
        homeless = [each.slot for each in disks if each.slot in MORE and _bus(each.slot, values) == IDE]
        buses = {**values.get(DISK_BUS, {}), **dict.fromkeys(homeless, SATA)}
        raise Failed(
            f"{disk.slot} has no slot: IDE has only four, {', '.join(IDE_PLACES)}",
            hint=f"vmess {vm} disk-bus {disk_bus_text(buses)}",
        )
    if disk.slot != CDROM:
        return disk.slot
    taken = {other.slot for other in disks if _bus(other.slot, values) == IDE}
    free = [slot for slot in ("hdc", "hdd") if slot not in taken]
    if not free:
        vm = disk.path.split("/")[-2]
        raise Failed(
            "hdc, hdd and a CD-ROM cannot be combined: the CD-ROM needs the IDE unit of hdc or hdd",
            hint=f"vmess {vm} cdrom none",
        )
    return free[0]
