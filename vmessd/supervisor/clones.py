"""Clones: a new VM with a copy of the settings and disks of another one, or with images in common."""

import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any

from vmessd.core import names
from vmessd.core.errors import InvalidValue, VmessError
from vmessd.core.models.snapshots import CloneProgress
from vmessd.devices.image_work import Percents
from vmessd.devices.snapshots import Snapshots
from vmessd.storage import cloning, copying, snapshots
from vmessd.storage.blocking import Lane
from vmessd.storage.cloning import Clone
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor import leftovers
from vmessd.supervisor.mentions import mentions
from vmessd.vm.holding import held
from vmessd.vm.host import Host

COPIED_MAX = 2**20
"""Bytes of its own that a disk may have for a linked clone to copy them, which is less than one more image."""


class Clones:
    """The clones of the VMs of one root."""

    def __init__(
        self,
        root: Path,
        host: Host,
        taker: Callable[[str], Coroutine[Any, Any, Snapshots]],
        check_new: Callable[[str], Coroutine[Any, Any, None]],
        left: Callable[[str], None],
    ) -> None:
        """`check_new` raises for a name that no VM can get; `left` hears of directories to remove later."""
        self._root = root
        self._host = host
        self._taker = taker
        self._check_new = check_new
        self._left = left

    async def clone(self, name: str, new: str, *, linked: bool) -> AsyncGenerator[CloneProgress, None]:
        """Make a VM that is like another one, which is off and cannot be started meanwhile.

        With `linked`, both stand on the same images from now on: a disk that stands on none, or in which much
        was written since, is kept as a snapshot of the source, which has the name of the new VM. Nothing of the
        new VM is left if it fails, or the caller leaves.

        Raises:
            InvalidValue: the name is not one of a VM, or is taken by something else.
            AlreadyRunning: the VM is not off.
            BadFile, Failed: as Clone.copy, and Snapshots.take.
        """
        taker, target = await self._taker(name), VMDirectory(self._root, names.parse(new))
        machine = taker.machine
        if target.vm == machine.vm:
            raise InvalidValue(f"VM {target.vm} cannot be a clone of itself")
        await self._check_new(target.vm)
        lane = Lane(f"the clone of {machine.vm}", "is its file system there?")
        await lane.aside(target.must_be_new)
        kept, notes = await self._keep(taker, target.vm) if linked else (None, [])
        clone = Clone(machine.directory, target, self._host.account, linked=linked)
        stop, percents = threading.Event(), Percents()

        def report(percent: int) -> None:
            if stop.is_set():
                raise copying.Cancelled
            percents.set(percent)

        try:
            async with held(machine, "being cloned"):
                yield CloneProgress(False, target.vm, 0)  # a client that leaves ends it only from now on
                copy = lane.finish(functools.partial(clone.copy, report))
                async for percent in percents.during(copy):
                    yield CloneProgress(False, target.vm, percent)
                await lane.finish(clone.finish)
            notes += clone.notes
            with contextlib.suppress(VmessError):
                notes += await lane.aside(functools.partial(_remarks, target, machine.vm))
            yield CloneProgress(True, (await self._taker(target.vm)).vm, 100, notes or None)
        except VmessError as error:
            if kept is not None:
                error.hint = (
                    f"to merge the snapshot that was taken for it: vmess {machine.vm} snapshot delete {kept}"
                )
            raise
        finally:
            stop.set()
            await leftovers.clean_up(lane, clone.close, self._left)

    async def _keep(self, taker: Snapshots, name: str) -> tuple[str | None, list[str]]:
        """Have all disks stand on images that nobody writes to, without much of their own.

        Return the name of the snapshot that was taken for that, if any, and remarks.
        """
        machine = taker.machine
        wanted = await machine.change(functools.partial(_wanted, machine.directory, name), stopped=True)
        if wanted is None:
            return None, []
        change = await taker.take(wanted)
        return change.name, [
            f"{machine.vm} has a snapshot {change.name} now, on which both stand",
            *(f"{machine.vm}: {note}" for note in change.notes),
        ]


def _wanted(vm: VMDirectory, name: str) -> str | None:
    """Return the name of a snapshot to take, `name` if it is free; None if all disks stand on images already.

    A disk with much data of its own gets one more image to stand on, as long as that is possible.
    """
    disks = snapshots.hard_disks(vm)
    has_room = all(len(disk.bases) < names.BASES_MAX for disk in disks)
    if all(disk.bases and (not has_room or (disk.stored or 0) <= COPIED_MAX) for disk in disks):
        return None
    return snapshots.default_name(disks) if name in snapshots.known(disks) else name


def _remarks(new: VMDirectory, old: str) -> list[str]:
    return [*cloning.forwards(new), *mentions(new, old)]
