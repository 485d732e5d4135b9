"""Snapshots of the disks of a VM."""

import contextlib
from collections.abc import AsyncIterator

from asyncvarlink import LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.errors import printable
from vmessd.core.models.events import Kind
from vmessd.core.models.snapshots import MergeProgress, Snapshot, SnapshotChange


class Snapshots(Caller):
    """Methods that take, show, revert to and delete snapshots."""

    @varlinkmethod(return_parameter="snapshots")
    async def Snapshots(self, *, vm: str) -> list[Snapshot]:
        """Return the snapshots of a VM, the oldest one first."""
        return await (await self._supervisor.snapshots(vm)).all()

    @varlinkmethod(return_parameter="names")
    async def NewerSnapshots(self, *, vm: str, name: str) -> list[str]:
        """Return the snapshots of a VM that are newer than one, which RevertSnapshot would remove."""
        return await (await self._supervisor.snapshots(vm)).newer(name)

    @varlinkmethod(return_parameter="change")
    async def TakeSnapshot(self, *, vm: str, name: str | None, memory: bool = False) -> SnapshotChange:
        """Take a snapshot of all disks of a VM, which may be running; null means a name by the date.

        The image of each disk is kept as it is, and the disk is a new qcow2 image on top of it from now on.
        With `memory`, the memory and the devices of the running guest are kept as well, of the same instant.
        """
        done = await (await self._supervisor.snapshots(vm)).take(name, with_memory=memory)
        self._tell(Kind.setting, vm, printable(f"snapshot {done.name} taken"))
        return done

    @varlinkmethod(return_parameter="change")
    async def RevertSnapshot(self, *, vm: str, name: str, memory: bool = False) -> SnapshotChange:
        """Put the disks of a stopped VM back to a snapshot. What was written since is lost, and newer ones.

        With `memory`, the guest then continues from its memory, if the snapshot has it; `runs` says whether.
        """
        found = await self._supervisor.snapshots(vm)
        done = await found.revert(name, self._peer.uid, with_memory=memory)
        self._tell(Kind.setting, vm, printable(f"back to snapshot {done.name}"))
        return done

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def DeleteSnapshot(self, *, vm: str, name: str) -> AsyncIterator[MergeProgress]:
        """Delete a snapshot of a VM, whose disks stay as they are. Requires `more`.

        Its images are merged with those above. If the caller leaves, a snapshot of a running VM is as before;
        of a VM that is off, the disks work as before, and the call can be repeated.
        """
        found = await self._supervisor.snapshots(vm)
        async with contextlib.aclosing(found.delete(name)) as steps:
            async for progress in steps:
                if progress.done:
                    self._tell(Kind.setting, vm, printable(f"snapshot {name} deleted"))
                    raise LastResult(progress)
                yield progress
