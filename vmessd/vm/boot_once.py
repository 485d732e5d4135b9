"""BOOT_ONCE: what a guest boots at one start, and not again when it is reset.

A start gives drives and network cards the places of BOOT_ONCE before those of BOOT_ORDER. QEMU hands them to
the firmware when the machine is reset, so they get their usual places before the first instruction, which count
from the first reset (hw/nvram/fw_cfg.c, fw_cfg_machine_reset). The file goes then as well. A daemon that adopts
the QEMU does both again, in case the earlier one died before.
"""

import contextlib
import itertools
import logging
import re
from collections.abc import Sequence

from vmessd.core import hardware
from vmessd.core.errors import InvalidValue, VmessError
from vmessd.core.records import RunRecord
from vmessd.core.settings import BOOT_ORDER, BY_FILE
from vmessd.qemu import command_line, disk_devices
from vmessd.qemu.monitor import CommandRefused
from vmessd.vm.qemu_run import QemuRun

log = logging.getLogger(__name__)

NOWHERE = -1
"""The bootindex of a device without a place (QEMU's softmmu/bootdevice.c)."""


async def restore_order(run: QemuRun) -> None:
    """Give the devices of a QEMU that was started with BOOT_ONCE their usual places; failures are logged."""
    usual = usual_places(run.launched.record)
    steps = [*((device, NOWHERE) for device in usual), *usual.items()]  # no two may have the same place
    try:
        for device, place in steps:
            arguments = {"path": f"/machine/peripheral/{device}", "property": "bootindex", "value": place}
            await run.execute("qom-set", arguments)
    except (VmessError, CommandRefused) as error:
        log.warning("%s: it boots from what BOOT_ONCE said until it is off: %s", run.vm, error)


def usual_places(record: RunRecord) -> dict[str, int]:
    """Return the bootindex by device of a run without BOOT_ONCE, for devices that have one now."""
    order: Sequence[str] = ()
    with contextlib.suppress(InvalidValue):  # the start has accepted it
        if text := (record.hardware or {}).get(BOOT_ORDER):
            order = BY_FILE[BOOT_ORDER].value(text)
    devices = _placed(record.argv)
    slots = {device: device.removesuffix(disk_devices.SUFFIX) for device in devices}
    cards = [index for device in devices if (index := command_line.card_index(device)) is not None]
    names = slots | {command_line.card_id(index): f"{hardware.NET}{index}" for index in cards}
    drives = [slots[device] for device in devices if device.endswith(disk_devices.SUFFIX)]
    places = hardware.boot_indices(order, drives, cards)
    return {device: places.get(names[device], NOWHERE) for device in devices}


def _placed(argv: Sequence[str]) -> list[str]:
    """Return the ids of drives and network cards that have a bootindex of ours."""
    found = []
    for option, value in itertools.pairwise(argv):
        identifier = re.search(
            f",id=(hd[a-d]{disk_devices.SUFFIX}|cdrom{disk_devices.SUFFIX}|nic[0-9]+)(,|$)", value
        )
        if option == "-device" and identifier and re.search(r",bootindex=1[0-9][0-9](,|$)", value):
            found.append(identifier[1])
    return found
