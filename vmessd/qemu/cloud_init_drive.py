"""The drive with the medium of cloud-init, on the command line of QEMU. Pure.

It is a CD drive on IDE, as guests that boot from IDE have the driver. Without a free place there, it is a
read-only virtio disk in the last PCI slot that is free, behind the slots of network cards, so that no other
hardware changes its place.
"""

import json
from collections.abc import Collection

from vmessd.core.cloud_init import MEDIUM

SLOT_LAST = 30  # 31 is that of the chipset on machine q35


def options(path: str, unit: tuple[str, int] | None, slots: Collection[int]) -> list[str]:
    """Return the options for a medium.

    `unit` is a free bus and unit of IDE, None if there is none; `slots` are the PCI slots that are taken.
    """
    file = {"driver": "file", "filename": path}
    node = {"driver": "raw", "node-name": MEDIUM, "read-only": True, "file": file}
    if unit is not None:
        device = f"ide-cd,id={MEDIUM}-drive,drive={MEDIUM},bus={unit[0]},unit={unit[1]}"
    else:
        slot = next(slot for slot in range(SLOT_LAST, 0, -1) if slot not in slots)
        device = f"virtio-blk-pci,id={MEDIUM}-drive,drive={MEDIUM},addr={slot:#x}"
    blockdev = json.dumps(node, separators=(",", ":"), ensure_ascii=False)
    return ["-blockdev", blockdev, "-device", device]
