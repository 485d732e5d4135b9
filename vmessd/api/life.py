"""VMs from their making to their removal: settings, locks, start and stop, of one and of all."""

import dataclasses
from collections.abc import AsyncIterator

from asyncvarlink import LastResult, varlinkmethod

from vmessd.api.caller import Caller, lock_note
from vmessd.core import settings
from vmessd.core.errors import printable, quoted
from vmessd.core.models.events import Kind
from vmessd.core.models.progress import FleetProgress, StartProgress, StopProgress


class Life(Caller):
    """Methods that make, set, start, stop and remove VMs."""

    @varlinkmethod(return_parameter="path")
    async def Make(self, *, vm: str) -> str:
        """Create the directory of a VM and return its path."""
        path = await self._supervisor.make(vm)
        self._tell(Kind.made, vm, printable(path))
        return path

    @varlinkmethod(return_parameter="note")
    async def Set(self, *, vm: str, setting: str, value: str | None) -> str | None:
        """Set a setting or a drive (smp, ram, cpu, accel, hda, hdb, hdc, hdd, cdrom).

        The value is written as on the command line; a path is absolute. null takes the setting away.
        Returns what there is to say about it, if anything.
        """
        note = await self._supervisor.set(vm, setting, value)
        self._tell(Kind.setting, vm, f"{setting} {'none' if value is None else quoted(value, 300)}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Remove(self, *, vm: str) -> str | None:
        """Delete a stopped VM with all its files and TAPs; returns what there is to say, if anything."""
        note = await self._supervisor.remove(vm)
        self._tell(Kind.removed, vm, note or "with all its files")
        return note

    @varlinkmethod
    async def Lock(self, *, vm: str, remark: str) -> None:
        """Have a VM refuse all but looking, also after a restart of the daemon; the remark may be empty."""
        await self._supervisor.lock(vm, remark)
        self._tell(Kind.lock, vm, printable(f"locked: {remark[:300]}" if remark.strip() else "locked"))

    @varlinkmethod
    async def Unlock(self, *, vm: str) -> None:
        """Let a VM be changed again."""
        await self._supervisor.lock(vm, None)
        self._tell(Kind.lock, vm, "unlocked")

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Start(self, *, vm: str) -> AsyncIterator[StartProgress]:
        """Start a VM: a reply with the command line, then a last one when it runs. Wants `more`."""
        machine = await self._supervisor.machine(vm)
        async for progress in machine.start(self._peer.uid):
            if progress.done:
                raise LastResult(progress)
            yield progress

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Stop(self, *, vm: str, force: bool) -> AsyncIterator[StopProgress]:
        """Stop a VM: a reply for each rung of the ladder, then a last one when it is off. Wants `more`.

        The stop goes on if the caller leaves. `force` kills at once.
        """
        machine = await self._supervisor.machine(vm)
        note = lock_note.get()
        async for progress in machine.stop(self._peer.uid, force=force):
            told = progress if progress.note is None else progress.about(machine.vm)
            if note is not None:
                told = dataclasses.replace(told, note="; ".join(filter(None, (note, told.note))))
            if progress.done:
                raise LastResult(told)
            yield told

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Boot(self, *, at_once: int | None) -> AsyncIterator[FleetProgress]:
        """Start the VMs that are to start with the host, lower orders first. Wants `more`.

        A reply for each step of each VM, then a last one. It goes on if the caller leaves. At most `at_once`
        (1 to 64, which null stands for, too) are on their way up at any moment.
        """
        places = settings.AT_ONCE_MAX if at_once is None else settings.at_once(str(at_once))
        async for progress in self._fleet.boot(self._peer.uid, places):
            if progress.done:
                raise LastResult(progress)
            yield progress

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Shutdown(self, *, within: float | None = None) -> AsyncIterator[FleetProgress]:
        """Stop all VMs gracefully, higher orders first. Wants `more`; otherwise as Boot.

        `within` is in how many seconds all are to be off (10 to 86400), graces are cut to that; null is
        what the daemon's settings say.
        """
        async for progress in self._fleet.shutdown(self._peer.uid, within):
            if progress.done:
                raise LastResult(progress)
            yield progress
