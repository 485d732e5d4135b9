"""Clones: a new VM with a copy of the settings and disks of another one, or with images in common."""

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

from vmessd.core import names
from vmessd.core.errors import InvalidValue, VmessError
from vmessd.core.lifecycle import OFF
from vmessd.core.models.snapshots import CloneProgress, SnapshotChange
from vmessd.devices.image_work import Percents
from vmessd.devices.live_copy import LiveCopy
from vmessd.devices.snapshots import Snapshots
from vmessd.qemu import qemu_img
from vmessd.storage import cloning, copying, snapshots
from vmessd.storage.blocking import Lane
from vmessd.storage.cloning import Clone, Target
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor.mentions import mentions
from vmessd.supervisor.new_vms import NewVMs
from vmessd.vm.holding import held
from vmessd.vm.host import Host
from vmessd.vm.qemu_run import QemuRun

log = logging.getLogger(__name__)

COPIED_MAX = 2**20
"""Bytes of its own that a disk may have for a linked clone to copy them, which is less than one more image."""


class Clones:
    """The clones of the VMs of one root."""

    def __init__(
        self,
        root: Path,
        host: Host,
        taker: Callable[[str], Coroutine[Any, Any, Snapshots]],
        new_vms: NewVMs,
    ) -> None:
        self._root = root
        self._host = host
        self._taker = taker
        self._new_vms = new_vms

    async def clone(self, name: str, new: str, *, linked: bool) -> AsyncGenerator[CloneProgress, None]:
        """Make a VM that is like another one. If that is off, it cannot be started meanwhile.

        With `linked`, both are based on the same images from now on: a disk that is based on none, or in which
        much was written since, and each disk of a VM that runs, is kept as a snapshot of the source, which has
        the name of the new VM. Nothing of the new VM is left if it fails, or the caller leaves.

        Raises:
            InvalidValue: the name is not one of a VM, or is taken by something else.
            BadFile, Failed: as Clone.copy, LiveCopy.copy, and Snapshots.take.
        """
        taker, target = await self._taker(name), VMDirectory(self._root, names.parse(new))
        machine = taker.machine
        if target.vm == machine.vm:
            raise InvalidValue(f"VM {target.vm} cannot be a clone of itself")
        await self._new_vms.check_name(target.vm)
        lane = Lane(f"the clone of {machine.vm}", "is its file system there?")
        await lane.aside(target.must_be_new)
        run = await taker.run_to_copy()
        kept = await _kept(taker, target.vm, run) if linked else None
        live = () if run is None else run.launched.record.hardware or ()
        clone = Clone(machine.home, target, self._host.account, linked=linked, live=live)
        stop, done, failure = threading.Event(), False, None
        try:
            async with _unchanged(taker, run):
                yield CloneProgress(False, target.vm, 0)  # a client that leaves ends it only from now on
                async with contextlib.aclosing(self._copied(clone, lane, stop, run)) as percents:
                    async for percent in percents:
                        yield CloneProgress(False, target.vm, percent)
                await lane.finish(clone.finish)
            done = True
            notes = [*(_said(machine.vm, kept) if kept else ()), *clone.notes]
            with contextlib.suppress(VmessError):
                notes += await lane.aside(functools.partial(_remarks, target, machine.vm))
            yield CloneProgress(True, (await self._taker(target.vm)).vm, 100, notes or None)
        except VmessError as error:
            failure = error
            raise
        finally:
            stop.set()
            snapshot = kept.name if kept and not done else None
            undone = asyncio.ensure_future(self._undone(lane, clone, taker, snapshot))
            if not await asyncio.shield(undone) and failure is not None and snapshot is not None:
                failure.hint = _way_back(machine.vm, snapshot)

    async def _undone(self, lane: Lane, clone: Clone, taker: Snapshots, snapshot: str | None) -> bool:
        """Remove what did not become a VM, then the snapshot taken for it; tell whether that is gone.

        A client that leaves does not end it.
        """
        await self._new_vms.clean_up(lane, clone.close)
        return snapshot is None or await _unkept(taker, snapshot)

    async def _copied(
        self, clone: Clone, lane: Lane, stop: threading.Event, run: QemuRun | None
    ) -> AsyncGenerator[int, None]:
        """Copy everything that a clone consists of; yield percents."""
        percents, reached = Percents(), 0

        def report(percent: int) -> None:
            if stop.is_set():
                raise copying.Cancelled
            percents.set(percent)

        async for percent in percents.during(lane.finish(functools.partial(clone.copy, report))):
            yield (reached := percent)
        for target in clone.targets:
            await self._create(target)
        if run is None or clone.linked or not clone.targets:
            return
        copy = LiveCopy(run, clone.targets)
        async with contextlib.aclosing(copy.copy()) as copied:
            async for percent in copied:
                yield reached + (100 - reached) * percent // 100
        clone.notes.append(copy.note)

    async def _create(self, target: Target) -> None:
        """Make the empty file for a copy of a disk an image, which a raw one is already."""
        account, size = self._host.account, target.disk.size
        if target.base is not None:
            await qemu_img.create_overlay(account, target.path, target.base, size)
        elif target.disk.format == "qcow2":
            await qemu_img.create(account, target.path, size)


@contextlib.asynccontextmanager
async def _unchanged(taker: Snapshots, run: QemuRun | None) -> AsyncIterator[None]:
    """For a `with` block, keep a VM that is off from being started, and one that runs from other images."""
    if run is None:
        async with held(taker.machine, "being cloned"):
            yield
    else:
        await taker.looked_after()
        with taker.alone():
            yield


async def _kept(taker: Snapshots, name: str, run: QemuRun | None) -> SnapshotChange | None:
    """Have all disks based on images that nobody writes to, without much of their own; return what was done."""
    vm = taker.machine.home
    if run is None:
        wanted = await taker.machine.change(functools.partial(_wanted, vm, name), stopped=True)
    else:
        wanted = await taker.machine.files.aside(functools.partial(_free, vm, name))
    return None if wanted is None else await taker.take(wanted)


def _said(vm: str, kept: SnapshotChange) -> list[str]:
    notes = (f"{vm}: {note}" for note in kept.notes)
    return [f"{vm} has a snapshot {kept.name} now, which both are based on", *notes]


async def _unkept(taker: Snapshots, name: str) -> bool:
    """Delete the snapshot taken for a clone that has failed, unless the VM runs; tell whether it is gone."""
    vm = taker.machine.vm
    try:
        if taker.machine.state in OFF:
            async for _ in taker.delete(name):
                pass
            return True
    except VmessError as error:
        log.warning("%s", error.message)
    log.warning("%s: a clone was cut short; %s", vm, _way_back(vm, name))
    return False


def _way_back(vm: str, name: str) -> str:
    return f"to merge the snapshot that was taken for it: vmess {vm} snapshot delete {name}"


def _wanted(vm: VMDirectory, name: str) -> str | None:
    """Return the name of a snapshot to take, `name` if it is free; None if all disks have bases already.

    A disk with much data of its own gets one more base, as long as that is possible.
    """
    disks = snapshots.hard_disks(vm)
    has_room = all(len(disk.bases) < names.BASES_MAX for disk in disks)
    if all(disk.bases and (not has_room or (disk.stored or 0) <= COPIED_MAX) for disk in disks):
        return None
    return _free(vm, name)


def _free(vm: VMDirectory, name: str) -> str:
    """Return a name for a snapshot: this one if it is free."""
    disks = snapshots.hard_disks(vm)
    return snapshots.default_name(disks) if name in snapshots.known(disks) else name


def _remarks(new: VMDirectory, old: str) -> list[str]:
    return [*cloning.forwards(new), *mentions(new, old)]
