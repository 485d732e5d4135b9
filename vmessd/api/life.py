"""The life of VMs from creation to removal: settings, locks, start and stop, of one VM and of all."""

import dataclasses
from collections.abc import AsyncIterator

from asyncvarlink import LastResult, varlinkmethod

from vmessd.api.caller import Caller, lock_note
from vmessd.core import names, ownership, quantities
from vmessd.core.errors import printable, quoted
from vmessd.core.models.events import Kind
from vmessd.core.models.progress import FleetProgress, StartProgress, StopProgress


class Life(Caller):
    """Methods that make, set, start, stop and remove VMs."""

    @varlinkmethod(return_parameter="path")
    async def Make(self, *, vm: str) -> str:
        """Create the directory of a VM and return its path."""
        path = await self._supervisor.new_vms.make(vm)
        self._tell(Kind.made, vm, printable(path))
        return path

    @varlinkmethod(return_parameter="note")
    async def Set(self, *, vm: str, setting: str, value: str | None, force: bool = False) -> str | None:
        """Change a setting or a drive (smp, ram, cpu, accel, hda to hdz, cdrom).

        The name is that of the verb, or of the file in lower case.
        The value has the same form as on the command line, and a path is absolute. null removes the setting,
        and puts the image of a disk aside. With force, the CD drive of a running VM is opened even if the guest
        has locked it. Returns a remark, or null.
        """
        note = await self._supervisor.changes.set(vm, setting, value, force=force)
        self._tell(Kind.setting, vm, f"{setting} {'none' if value is None else quoted(value, 300)}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Share(
        self, *, vm: str, tag: str, path: str | None, read_only: bool, virtiofs: bool = False
    ) -> str | None:
        """Let the guest mount a directory of the host by a tag, from the next start; null takes the share away.

        The path is absolute and without symbolic links. With `virtiofs`, the share does not use 9p. Returns a
        remark, or null.
        """
        note = await self._supervisor.changes.share(vm, tag, path, read_only=read_only, virtiofs=virtiofs)
        self._tell(Kind.setting, vm, f"share {quoted(tag)} {'none' if path is None else quoted(path, 300)}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Remove(self, *, vm: str) -> str | None:
        """Delete a stopped VM with all its files and TAPs. Returns a remark, or null."""
        note = await self._supervisor.remove(vm)
        self._tell(Kind.removed, vm, note or "with all its files")
        return note

    @varlinkmethod(return_parameter="note")
    async def Rename(self, *, vm: str, name: str) -> str | None:
        """Rename a stopped VM: its directory, its drives and its TAPs. Returns a remark, or null.

        Its default MACs and its VNC display follow from the new name.
        """
        note = await self._supervisor.rename(vm, name)
        self._tell(Kind.removed, vm, f"renamed to {names.parse(name)}")
        self._tell(Kind.made, name, f"renamed from {names.parse(vm)}")
        return note

    @varlinkmethod
    async def Lock(self, *, vm: str, remark: str) -> None:
        """Lock a VM: it refuses all changes, also after a restart of the daemon.

        Without a remark (an empty one), a VM that is locked keeps the remark that it has.
        """
        await self._supervisor.locks.set(vm, remark)
        self._tell(Kind.lock, vm, printable(f"locked: {remark[:300]}" if remark.strip() else "locked"))

    @varlinkmethod
    async def Unlock(self, *, vm: str) -> None:
        """Unlock a VM, so that it can be changed again."""
        await self._supervisor.locks.set(vm, None)
        self._tell(Kind.lock, vm, "unlocked")

    @varlinkmethod
    async def ActFor(self, *, owner: str) -> None:
        """Act for the owner of VMs, such as pacemaker, in all later calls of this connection.

        Only such calls may change a VM that has this owner, and only such a VM may be started by them.
        """
        self._act_for(ownership.known(owner))

    @varlinkmethod
    async def Own(self, *, vm: str, owner: str | None) -> None:
        """Give a VM an owner: `pacemaker`, or `pacemaker RESOURCE`; or give it back to people with null.

        It must have no autostart and no restart policy.
        """
        await self._supervisor.locks.own(vm, owner)
        told = f"belongs to {quoted(owner)}" if owner is not None else "belongs to nobody"
        self._tell(Kind.setting, vm, told)

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Start(self, *, vm: str) -> AsyncIterator[StartProgress]:
        """Start a VM: a reply with the command line, and the last one when it is running. Requires `more`."""
        machine = await self._supervisor.machine(vm)
        async for progress in machine.start(self._peer.uid):
            if progress.done:
                record = machine.record()
                news = self._supervisor.host.kvm_news(record, self._peer.uid) if record is not None else None
                raise LastResult(dataclasses.replace(progress, without_kvm=news))
            yield progress

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Stop(self, *, vm: str, force: bool, grace: float | None = None) -> AsyncIterator[StopProgress]:
        """Stop a VM: a reply for each rung of the ladder, and the last one when it is off. Requires `more`.

        The stop continues if the caller leaves. `force` kills QEMU at once. `grace` is the grace period of this
        stop in seconds (0 to 86400); null means that of the VM.
        """
        if grace is not None:
            quantities.check_grace(grace)
        machine = await self._supervisor.machine(vm)
        note = lock_note.get()
        async for progress in machine.stop(self._peer.uid, force=force, grace=grace):
            told = progress if progress.note is None else progress.about(machine.vm)
            if note is not None:
                told = dataclasses.replace(told, note="; ".join(filter(None, (note, told.note))))
            if progress.done:
                raise LastResult(told)
            yield told

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Boot(self, *, at_once: int | None) -> AsyncIterator[FleetProgress]:
        """Start all VMs with autostart, lower orders first. Requires `more`.

        A reply for each step of each VM, and a last one. It continues if the caller leaves. At most `at_once`
        VMs (1 to 64; null means 64) are starting at the same time.
        """
        places = quantities.AT_ONCE_MAX if at_once is None else quantities.at_once(str(at_once))
        async for progress in self._fleet.boot(self._peer.uid, places):
            if progress.done:
                raise LastResult(progress)
            yield progress

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Shutdown(self, *, within: float | None = None) -> AsyncIterator[FleetProgress]:
        """Stop all VMs gracefully, higher orders first. Requires `more`; replies as for Boot.

        All VMs should be off `within` so many seconds (10 to 86400), and grace periods are shortened to fit.
        null means the daemon's setting. VMs that have an owner for whom the caller does not act are left alone.
        """
        async for progress in self._fleet.shutdown(self._peer.uid, within, self._actor()):
            if progress.done:
                raise LastResult(progress)
            yield progress
