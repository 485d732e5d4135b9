"""The CD drive of a running VM: another medium, or none.

The tray is opened as by its button, so a guest that has locked it must release it, or force is used. The new
medium has the same block node as after a start. Source: QEMU's qapi/block.json and blockdev.c.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import weakref
from collections.abc import Callable
from typing import Any

from vmessd.core.errors import Failed, VmessError
from vmessd.core.lifecycle import OFF
from vmessd.core.names import CDROM
from vmessd.core.settings import BY_FILE
from vmessd.qemu import block_devices, disk_devices
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import images
from vmessd.storage.images import Disk, Reader
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import pending
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

TRAY_TIME = 3.0
"""Seconds that a guest may take to release the tray: udev of Linux polls the drive every 2 s."""
DRIVE = f"{CDROM}{disk_devices.SUFFIX}"

_locks: weakref.WeakKeyDictionary[Machine, asyncio.Lock] = weakref.WeakKeyDictionary()


def is_there(machine: Machine) -> bool:
    """Tell whether a VM runs with a CD drive, so that its medium can be changed."""
    record = machine.record()
    if record is None or machine.state in OFF:
        return False
    return any(
        option == "-device" and f",id={DRIVE}," in value for option, value in itertools.pairwise(record.argv)
    )


async def change(machine: Machine, path: str | None, reader: Reader, *, force: bool) -> None:
    """Insert the image at an absolute path, or none, now and for the next start. A failure changes nothing.

    Raises:
        InvalidValue, BadFile: as images.set_cdrom.
        Failed: the guest has locked the tray, or QEMU refuses the image.
        NotRunning, TimedOut: QEMU has ended, or does not answer.
    """
    async with _locks.setdefault(machine, asyncio.Lock()):
        await machine.begun()
        directory = machine.home
        before = await machine.change(functools.partial(_link, directory))
        await machine.change(functools.partial(images.set_cdrom, directory, path, reader))
        restore = functools.partial(images.set_cdrom, directory, before, reader)
        try:
            disk = await machine.files.aside(functools.partial(_medium, directory))
            await _take_out(machine, force=force)
        except BaseException:
            await machine.change(restore)
            raise
        try:
            if disk is not None:
                await _put_in(machine, disk)
        except BaseException:
            await _return(machine, directory, restore)
            raise
        finally:
            with contextlib.suppress(VmessError):
                await _execute(machine, "blockdev-close-tray", {"id": DRIVE})
        await machine.change(functools.partial(_note, machine, directory, disk))


def _link(directory: VMDirectory) -> str | None:
    """Return the target of the link to the medium; blocks."""
    return images.cdrom_target(directory)


def _medium(directory: VMDirectory) -> Disk | None:
    """Return the medium that the link leads to, after the checks that a start makes; blocks."""
    found = [disk for disk in images.disks(directory) if disk.slot == CDROM]
    images.check(directory, found, directory.read_setting(BY_FILE["RAW"]) or ())
    return found[0] if found else None


async def _take_out(machine: Machine, *, force: bool) -> None:
    """Open the tray and remove the medium, if there is one."""
    opened = asyncio.Event()
    machine.tray_opened = opened.set
    try:
        await _execute(machine, "blockdev-open-tray", {"id": DRIVE, "force": force})
        if not await _removed(machine):
            with contextlib.suppress(TimeoutError):  # the guest was asked to release the tray
                await asyncio.wait_for(opened.wait(), TRAY_TIME)
            if not await _removed(machine):
                raise Failed(
                    f"the guest of {machine.vm} has locked the CD drive, and does not release it",
                    hint=f"eject it in the guest, or open it by force: vmess {machine.vm} cdrom none --force",
                )
    finally:
        machine.tray_opened = _ignore
    with contextlib.suppress(CommandRefused):  # there was none
        await machine.live().execute("blockdev-del", {"node-name": CDROM})


async def _removed(machine: Machine) -> bool:
    """Remove the medium; tell whether that was possible, because the tray is open."""
    try:
        await machine.live().execute("blockdev-remove-medium", {"id": DRIVE})
    except CommandRefused:
        return False
    return True


async def _put_in(machine: Machine, disk: Disk) -> None:
    """Insert a medium into the open tray."""
    for node in block_devices.nodes(disk):
        await _execute(machine, "blockdev-add", node)
    await _execute(machine, "blockdev-insert-medium", {"id": DRIVE, "node-name": CDROM})


async def _return(machine: Machine, directory: VMDirectory, restore: Callable[[], None]) -> None:
    """Put the former medium back as far as possible."""
    try:
        with contextlib.suppress(CommandRefused):
            await machine.live().execute("blockdev-del", {"node-name": CDROM})
        await machine.change(restore)
        former = await machine.files.aside(functools.partial(_medium, directory))
        if former is not None:
            await _put_in(machine, former)
    except VmessError as error:
        log.warning("%s: the CD drive stays empty: %s", machine.vm, error.message)


def _note(machine: Machine, directory: VMDirectory, disk: Disk | None) -> None:
    """Write the medium into the run record, so that it does not count as waiting for the next start; blocks."""
    run = machine.live()
    record = run.launched.record
    if record.hardware is None:
        return
    hardware, files = ({**texts} for texts in (record.hardware, record.images or {}))
    for texts in (hardware, files):
        texts.pop(CDROM, None)
    if disk is not None:
        hardware[CDROM] = pending.drive_text(disk)
        files |= pending.images([disk])
    run.launched.record = dataclasses.replace(record, hardware=hardware, images=files)
    directory.write_run_record(run.launched.record)


async def _execute(machine: Machine, command: str, arguments: dict[str, Any]) -> None:
    """Run a QMP command; raises Failed with the error of QEMU, NotRunning, TimedOut."""
    try:
        await machine.live().execute(command, arguments)
    except CommandRefused as refusal:
        raise refusal.failed(machine.vm, command) from None


def _ignore() -> None:
    """Do nothing."""
