"""The disks of a VM as devices of the guest: the bus of each, and the controllers that these need. Pure.

Sources: QEMU's hw/block/{virtio-blk,nvme}, hw/scsi/virtio-scsi, hw/ide/{piix,ahci}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vmessd.core import names
from vmessd.core.errors import Failed
from vmessd.core.hardware import IDE, NVME, SATA, SCSI, VIRTIO, bus_of
from vmessd.core.names import CDROM
from vmessd.qemu.machine_types import is_q35
from vmessd.storage.images import Disk

SUFFIX = "-drive"
"""Of the id of a drive: `hda-drive`."""
# The bus and unit of `-hda` ... `-hdd` on machine `pc`; `-cdrom` is the same as hdc.
IDE_UNITS = {"hda": ("ide.0", 0), "hdb": ("ide.0", 1), "hdc": ("ide.1", 0), "hdd": ("ide.1", 1)}
PORTS = {slot: port for port, slot in enumerate((*names.DISKS, CDROM))}
"""The SATA port or SCSI id of a drive. On `q35`, each SATA port is an IDE bus of its own."""
SLOTS = {"hda": 0x1A, "hdb": 0x1B, "hdc": 0x1C, "hdd": 0x1D}
"""The PCI slot of a disk that is a PCI device."""
CONTROLLERS = {SATA: ("ahci,id=ahci0", 0x18), SCSI: ("virtio-scsi-pci,id=scsi0", 0x19)}
"""The controller of a bus, and its PCI slot."""


def options(disks: Sequence[Disk], values: Mapping[str, Any]) -> list[str]:
    """Return the controllers of the buses that these disks are on; `values` are settings by file name."""
    wanted = {_bus(disk.slot, values) for disk in disks}
    found: list[str] = []
    for bus, (controller, slot) in CONTROLLERS.items():
        if bus in wanted:
            found += ["-device", f"{controller},addr={slot:#x}"]
    return found


def slots(values: Mapping[str, Any]) -> set[int]:
    """Return the PCI slots that disks and their controllers may take."""
    buses = {slot: _bus(slot, values) for slot in names.DISKS}
    disks = {SLOTS[slot] for slot, bus in buses.items() if bus in (VIRTIO, NVME)}
    return disks | {slot for bus, (_, slot) in CONTROLLERS.items() if bus in buses.values()}


def device(disk: Disk, disks: Sequence[Disk], values: Mapping[str, Any]) -> str:
    """Return the device of a drive, in the syntax of `-device`.

    Raises:
        Failed: there is no IDE unit left for the CD drive.
    """
    drive = f"id={disk.slot}{SUFFIX},drive={disk.slot}"
    bus = _bus(disk.slot, values)
    if bus == VIRTIO:
        return f"virtio-blk-pci,{drive},addr={SLOTS[disk.slot]:#x}"
    if bus == NVME:
        return f"nvme,{drive},serial={disk.slot},addr={SLOTS[disk.slot]:#x}"
    if bus == SCSI:
        return f"scsi-hd,{drive},bus=scsi0.0,scsi-id={PORTS[disk.slot]}"
    if bus == SATA:
        return f"ide-hd,{drive},bus=ahci0.{PORTS[disk.slot]},unit=0"
    name, unit = (f"ide.{PORTS[disk.slot]}", 0) if is_q35(values) else IDE_UNITS[_unit(disk, disks, values)]
    return f"{'ide-cd' if disk.slot == CDROM else 'ide-hd'},{drive},bus={name},unit={unit}"


def free_unit(disks: Sequence[Disk], values: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the bus and unit of the last IDE place that is free, for one more CD drive; None without one."""
    if is_q35(values):
        return (f"ide.{len(PORTS)}", 0)
    taken = {_unit(disk, disks, values) for disk in disks if _bus(disk.slot, values) == IDE}
    free = [place for slot, place in IDE_UNITS.items() if slot not in taken]
    return free[-1] if free else None


def _bus(slot: str, values: Mapping[str, Any]) -> str:
    """Return the bus of a drive; on `q35`, IDE and SATA are the same."""
    bus = IDE if slot == CDROM else bus_of(slot, values)
    return IDE if bus == SATA and is_q35(values) else bus


def _unit(disk: Disk, disks: Sequence[Disk], values: Mapping[str, Any]) -> str:
    """Return the drive whose IDE unit on machine `pc` a drive gets."""
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
