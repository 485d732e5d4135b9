"""Read-only media that vmess makes of files, and the startup configuration, on the command line of QEMU. Pure.

A medium is a CD drive on IDE, as guests that boot from IDE have the driver. Without a free place there, it is a
read-only virtio disk in the last PCI slot that is free, behind the slots of network cards, so that no other
hardware changes its place. So is a FAT disk, because an IDE disk cannot be read-only (QEMU, hw/ide/qdev).
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

from vmessd.core import cloud_init, startup
from vmessd.core.errors import Failed
from vmessd.core.startup import CD, CONFIGURATION, DIRECTORY, DISK, FW_CFG, LABEL, NAMED, SMBIOS, Startup

SLOT_FIRST = 3  # those below have the chipset and the graphics card
SLOT_LAST = 30  # 31 is that of the chipset on machine q35


def options(
    medium: str | None,
    given: Startup | None,
    home: tuple[str, str],
    units: Sequence[tuple[str, int]],
    slots: Collection[int],
) -> list[str]:
    """Return the options for the medium of cloud-init, and for the startup configuration.

    `medium` is a path, None if there is none; `home` are the VM and its directory, `units` the free places of
    IDE, and `slots` the PCI slots that are taken. Raises Failed if there is no place for one.
    """
    vm, directory = home
    places, taken = list(units), set(slots)
    found = []
    if medium is not None:
        found += _drive(cloud_init.MEDIUM, _file(medium), _place(places, taken))
    if given is None:
        return found
    configuration = f"{directory}/{CONFIGURATION}".replace(",", ",,")
    if given.way == CD:
        found += _drive(startup.MEDIUM, _file(f"{directory}/{startup.cd_file(vm)}"), _place(places, taken))
    elif given.way == DISK:
        fat = {"driver": "vvfat", "dir": f"{directory}/{DIRECTORY}", "label": LABEL, "fat-type": 16}
        found += _drive(startup.MEDIUM, {**fat, "rw": False, "read-only": True}, _place([], taken))
    elif given.way == FW_CFG:
        found += ["-fw_cfg", f"name={given.name},file={configuration}"]
    elif given.way == SMBIOS:
        found += ["-smbios", f"type=11,path={configuration}"]
    return found


def reserved(
    given: Startup | None, units: Sequence[tuple[str, int]], taken: Collection[int], *, medium: bool
) -> set[int]:
    """Return the PCI slots of media, as far as they need some, which network cards must leave free.

    `medium`: there is one of cloud-init. `units` are as for :func:`options`, and `taken` the slots of others.
    Raises Failed if there are none.
    """
    places, now = list(units), set(taken)
    if medium:
        _place(places, now)
    if given is not None and given.way in NAMED:
        _place(places if given.way == CD else [], now)
    return now.difference(taken)


def _file(path: str) -> dict[str, Any]:
    return {"driver": "file", "filename": path}


def _place(units: list[tuple[str, int]], slots: set[int]) -> str:
    """Return the device and the place of one more drive, and take the place; raises Failed without one."""
    if units:
        bus, unit = units.pop(0)
        return f"ide-cd,{{}},bus={bus},unit={unit}"
    slot = next((slot for slot in range(SLOT_LAST, SLOT_FIRST - 1, -1) if slot not in slots), None)
    if slot is None:
        raise Failed(
            "no PCI slot is left for a medium of cloud-init or startup: EXARGS claims them",
            hint=f"leave one of the slots {SLOT_FIRST} to {SLOT_LAST} free in qemu-options",
        )
    slots.add(slot)
    return f"virtio-blk-pci,{{}},addr={slot:#x}"


def _drive(name: str, file: dict[str, Any], place: str) -> list[str]:
    """Return a drive with a read-only medium."""
    node = {"driver": "raw", "node-name": name, "read-only": True, "file": file}
    blockdev = json.dumps(node, separators=(",", ":"), ensure_ascii=False)
    return ["-blockdev", blockdev, "-device", place.format(f"id={name}-drive,drive={name}")]
