"""Snapshots of one VM: taken while it is off or runs, listed, gone back to, merged when they are deleted."""

import asyncio
import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence

from vmessd.core import names
from vmessd.core.errors import AlreadyRunning, Failed, NotRunning, VmessError
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.snapshots import MergeProgress, Snapshot, SnapshotChange
from vmessd.devices import live_copy, live_memory, live_merge, live_take
from vmessd.devices.image_work import Percents
from vmessd.devices.live_merge import LiveMerge
from vmessd.qemu import qemu_img
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import memory, snapshots
from vmessd.storage.blocking import Lane
from vmessd.storage.memory import Draft
from vmessd.storage.plans import Plan
from vmessd.storage.snapshots import Merge, Overlay
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import same_machine
from vmessd.vm.holding import held
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun, failures_logged


class Snapshots:
    """The snapshots of one machine."""

    def __init__(self, machine: Machine, host: Host) -> None:
        self.vm = machine.vm
        self.machine = machine
        self._host = host
        self._account = host.account
        self._lane = Lane(f"the images of {machine.vm}", "is their file system there?")
        self._busy = False
        self._settling = asyncio.Lock()
        """Held while it is settled what an earlier daemon has left; others wait for that."""
        machine.prepare.append(self._look_after)

    async def _look_after(self) -> None:
        """Settle what an earlier daemon has left in a QEMU that it had started."""
        if self.machine.state is State.starting:
            return
        with failures_logged(self.vm):
            run = self.machine.live()
            if run.agent is not None:
                run.start_task("thaw", run.agent.thawed_again())
            if self._busy:
                return
            async with self._settling:
                with self.alone(), contextlib.suppress(CommandRefused):
                    await live_memory.end_left(run)
                    await self._settled()
                    await live_copy.end_left(run)

    async def looked_after(self) -> None:
        """Wait until it is settled what an earlier daemon has left, which a listing does, too."""
        async with self._settling:
            pass

    async def all(self) -> list[Snapshot]:
        """Return the snapshots, the oldest one first; raises BadFile, Failed."""
        async with self._settling:
            if not self._busy:
                with self.alone(), contextlib.suppress(VmessError):  # the directory says what there is
                    await self._settled()
        return await self._lane.aside(functools.partial(snapshots.listing, self.machine.home))

    async def newer(self, name: str) -> list[str]:
        """Return the snapshots that :meth:`revert` removes; raises InvalidValue for an unknown name."""
        return await self._lane.aside(functools.partial(snapshots.newer, self.machine.home, name))

    # -- Take --

    async def take(self, name: str | None, *, with_memory: bool = False) -> SnapshotChange:
        """Take a snapshot of all disks at the same moment, by default named by the date.

        With its memory, a guest can continue from there later.

        Raises:
            NotRunning: there is no memory, because the VM is off.
            InvalidValue: the name is not one, or is taken.
            BadFile: there is no disk, or one is based on too many images.
            Failed: QEMU refuses, or ends meanwhile; the VM is as before, or the snapshot is complete.
        """
        if name is not None:
            names.snapshot(name)
        await self.looked_after()
        with self.alone():
            await self._settled()
            if self.machine.state in OFF and with_memory:
                raise NotRunning(
                    f"VM {self.vm} is off, and has no memory to keep", hint=f"vmess {self.vm} snapshot take"
                )
            if self.machine.state in OFF:
                return await self._take_off(name)
            return await self._take_live(name, with_memory=with_memory)

    async def _take_off(self, name: str | None) -> SnapshotChange:
        vm = self.machine.directory
        async with held(self.machine, "having a snapshot taken"):
            found, overlays = await self._lane.aside(functools.partial(snapshots.prepare, vm, name))
            async with self._overlays(vm, overlays):
                await self._lane.finish(functools.partial(_take_files, vm, found, overlays))
        return _taken(found, overlays)

    async def _take_live(self, name: str | None, *, with_memory: bool) -> SnapshotChange:
        run, vm = await self.running(), self.machine.home
        slots = set(run.launched.record.hardware or {})
        found, overlays = await self._lane.aside(functools.partial(snapshots.prepare, vm, name, slots))
        async with self._overlays(vm, overlays), self._draft(run, with_memory=with_memory) as draft:
            still, note = await live_take.take(self.machine, run, self._lane, found, overlays, draft)
            size = None if draft is None else draft.size
        return dataclasses.replace(_taken(found, overlays, [note], still), memory=size)

    @contextlib.asynccontextmanager
    async def _draft(self, run: QemuRun, *, with_memory: bool) -> AsyncIterator[Draft | None]:
        """Create a file for the memory of a guest, if it is to be kept; remove it if it got no place.

        Raises:
            Failed: the guest does not run, its memory would not fit into it later, or there is no space.
            TimedOut: QEMU does not answer.
        """
        if not with_memory:
            yield None
            return
        if self.machine.state is not State.running:
            raise Failed(
                f"{self.vm} is {self.machine.state.value}, and only the memory of a running guest can be kept",
                hint=f"vmess {self.vm} resume",
            )
        vm, record = self.machine.home, run.launched.record
        origin = await self._lane.aside(functools.partial(same_machine.origin, vm, self._host, record))
        room = await live_memory.room_of(run)
        draft = await self._lane.finish(functools.partial(memory.create, vm, origin, room))
        try:
            yield draft
        finally:
            with contextlib.suppress(VmessError):
                await asyncio.shield(self._lane.see_to(functools.partial(memory.discard, vm, draft)))

    async def run_to_copy(self) -> QemuRun | None:
        """Return the run of QEMU if the VM is to be copied while it runs, None if it is off; as `running`."""
        if self.machine.state in OFF:
            return None
        await self.looked_after()
        with self.alone():
            await self._settled()
            return await self.running()

    async def running(self) -> QemuRun:
        """Return the run of QEMU, when it has no part in an earlier change; raises as Machine.live, Failed."""
        await self.machine.begun()
        run = self.machine.live()
        if await self._lane.aside(self.machine.home.pending_plan) is not None:
            raise Failed(
                f"QEMU of {self.vm} has not done its part in the last change of snapshots",
                hint=f"vmess {self.vm} stop start",
            )
        return run

    async def _settled(self) -> None:
        """Find out what became of a snapshot that an earlier daemon, or a silent QEMU, left unsettled.

        If the QEMU that was to write to the new images does not, they are removed again.
        """
        vm = self.machine.home
        plan = await self._lane.aside(vm.pending_plan)
        if plan is None:
            await self._correct_headers(vm)
            return
        record = self.machine.record()
        if record is None or (record.pid, record.ticks) != plan.run:
            if self.machine.state in OFF:
                await self.machine.change(vm.settle_plan, stopped=True)
                await self._correct_headers(vm)
            return
        run = self.machine.live()
        settle = live_merge.settle if plan.merges else live_take.settle
        await settle(self.machine, run, self._lane, plan)

    # -- Back, and away --

    async def revert(self, name: str, uid: int | None, *, with_memory: bool = False) -> SnapshotChange:
        """Go back to a snapshot; what was written since, and newer snapshots, are lost.

        With its memory, if it has one, the guest continues from there.

        Raises:
            InvalidValue: there is no such snapshot.
            AlreadyRunning: the VM is not off.
            Failed: the VM is as before; or the disks are back, and the guest does not continue.
        """
        vm = self.machine.directory
        await self.looked_after()
        with self.alone():
            await self._settled()
            async with held(self.machine, "going back to a snapshot"):
                size = await self._lane.aside(functools.partial(memory.size, vm, name)) if with_memory else None
                if size is not None:
                    await self._lane.aside(functools.partial(_check_memory, vm, self._host, name))
                gone = await self._lane.aside(functools.partial(snapshots.newer, vm, name))
                others = await self._lane.aside(functools.partial(_without, vm, name))
                overlays = await self._lane.aside(functools.partial(snapshots.prepare_revert, vm, name))
                async with self._overlays(vm, overlays):
                    await self._lane.finish(functools.partial(_revert_files, vm, name, overlays))
            if size is not None:
                await self._go_on(name, uid)
        notes = [f"newer snapshots are gone: {', '.join(gone)}"] if gone else []
        notes += [f"{', '.join(others)} was not in the snapshot, and stays as it is"] if others else []
        disks = [one.disk.slot for one in overlays]
        return SnapshotChange(name, disks, notes, memory=size, runs=size is not None)

    async def _go_on(self, name: str, uid: int | None) -> None:
        """Start the VM from the memory of a snapshot, to which its disks have gone back; raises Failed."""
        try:
            async for _ in self.machine.start(uid, name):
                pass
        except VmessError as error:
            raise Failed(
                f"the disks of {self.vm} are back at {name}, but its guest does not continue: {error.message}",
                hint=f"to boot it from there: vmess {self.vm} start",
            ) from None

    async def delete(self, name: str) -> AsyncGenerator[MergeProgress, None]:
        """Delete a snapshot; the disks stay as they are.

        If the VM is off, what was written since goes into the images of the snapshot, which take the place of
        those above. If it runs, QEMU copies the images of the snapshot into those above.

        Raises:
            InvalidValue: there is no such snapshot.
            BadFile: another VM is based on an image that must change.
            Failed: it cannot be merged.
        """
        await self.looked_after()
        with self.alone():
            await self._settled()
            is_off = self.machine.state in OFF
            disks = await self._lane.aside(functools.partial(_with, self.machine.home, name))
            notes: list[str] = []
            merge = self._delete_off(name) if is_off else self._delete_live(name, notes)
            async with contextlib.aclosing(merge) as percents:
                async for percent in percents:
                    yield MergeProgress(False, percent)
        yield MergeProgress(True, 100, disks, notes or None)

    async def _delete_live(self, name: str, notes: list[str]) -> AsyncGenerator[int, None]:
        merge = LiveMerge(self.machine, await self.running(), self._lane)
        yield 0  # a client that leaves ends it only from now on
        async with contextlib.aclosing(merge.merge(name)) as percents:
            async for percent in percents:
                yield percent
        notes += merge.notes

    async def _delete_off(self, name: str) -> AsyncGenerator[int, None]:
        """If it is cut short, the VM works as before, and the deletion can be repeated."""
        vm = self.machine.directory
        async with held(self.machine, "having a snapshot deleted"):
            yield 0  # a client that leaves ends it only from now on
            merges = await self._lane.aside(functools.partial(snapshots.begin_merge, vm, name))
            for number, merge in enumerate(merges):
                percents = Percents()
                work = qemu_img.commit(self._account, merge.chain, percents.set)
                async for percent in percents.during(work):
                    yield (100 * number + percent) // len(merges)
            await self._lane.finish(functools.partial(_merge_files, vm, merges))
            await self._name_bases(vm)

    async def _correct_headers(self, vm: VMDirectory) -> None:
        """Correct what a daemon that died did not, if the VM is off."""
        with contextlib.suppress(VmessError):
            if self.machine.state in OFF and await self._lane.aside(lambda: bool(snapshots.misnamed(vm))):
                async with held(self.machine, "having a snapshot deleted"):
                    await self._name_bases(vm)

    async def _name_bases(self, vm: VMDirectory) -> None:
        """Correct the headers of images above one that has another name now; a failure does no harm."""
        with contextlib.suppress(VmessError):
            for file, base in await self._lane.aside(functools.partial(snapshots.misnamed, vm)):
                async with self._lane.within(snapshots.writable(vm, file)):
                    await qemu_img.name_base(self._account, f"{vm.path}/{file}", base)
            await self._lane.aside(functools.partial(snapshots.remember, vm))

    # -- Both --

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Refuse a second change of the snapshots of the VM, and a copy of its images meanwhile."""
        if self._busy:
            raise AlreadyRunning(
                f"the images of {self.vm} are being copied or changed", hint="wait until that is done"
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    @contextlib.asynccontextmanager
    async def _overlays(self, vm: VMDirectory, overlays: Sequence[Overlay]) -> AsyncIterator[None]:
        """Make empty files images on top of others; in the end, remove those that got no place."""
        try:
            for one in overlays:
                base = (one.base, one.base_format)
                await qemu_img.create_overlay(self._account, f"{vm.path}/{one.temporary}", base, one.size)
            yield
        finally:
            with contextlib.suppress(VmessError):
                await asyncio.shield(self._lane.see_to(functools.partial(snapshots.clear, vm, overlays)))


def _take_files(vm: VMDirectory, name: str, overlays: Sequence[Overlay]) -> None:
    snapshots.name_bases(vm, [one.disk for one in overlays])
    steps, _ = snapshots.taking(vm, name, overlays, time.time())
    _carry_out(vm, Plan(vm.vm, tuple(steps)))


def _revert_files(vm: VMDirectory, name: str, overlays: Sequence[Overlay]) -> None:
    _carry_out(vm, Plan(vm.vm, tuple(snapshots.reverting(vm, name, overlays))))


def _merge_files(vm: VMDirectory, merges: Sequence[Merge]) -> None:
    _carry_out(vm, Plan(vm.vm, tuple(snapshots.merged(vm, merges))))


def _carry_out(vm: VMDirectory, plan: Plan) -> None:
    vm.carry_out(plan)
    with contextlib.suppress(VmessError):  # a start remembers them, too
        snapshots.remember(vm)


def _with(vm: VMDirectory, name: str) -> list[str]:
    """Return the disks that a snapshot contains; raises InvalidValue if there is none of this name."""
    disks = snapshots.hard_disks(vm)
    snapshots.must_be_there(vm, disks, name)
    return [disk.slot for disk in disks if name in snapshots.of_disk(disk)]


def _without(vm: VMDirectory, name: str) -> list[str]:
    """Return the disks that a snapshot does not contain."""
    return [disk.slot for disk in snapshots.hard_disks(vm) if name not in snapshots.of_disk(disk)]


def _check_memory(vm: VMDirectory, host: Host, name: str) -> None:
    """Raise Failed if the memory of a snapshot does not fit any more; raises as memory.opened."""
    origin, fd = memory.opened(vm, name)
    os.close(fd)
    same_machine.check(vm, host, name, origin)


def _taken(
    name: str, overlays: Sequence[Overlay], notes: Sequence[str] = (), still: float | None = None
) -> SnapshotChange:
    raw = [one.disk.slot for one in overlays if one.disk.format == "raw"]
    more = [f"{', '.join(raw)}: now qcow2, on top of the raw image"] if raw else []
    return SnapshotChange(name, [one.disk.slot for one in overlays], [*more, *notes], still)
