"""The deletion of a snapshot of a running VM: QEMU copies its images into those above (`block-stream`).

The images of the snapshot are only read, and nobody depends on the copy until it is complete and on the disk of
the host. So before that, whatever happens, the snapshot is as it was; and after it, the deletion is completed:
by the daemon, the next daemon, or the next start of the VM. What has been decided is in the plan
(:mod:`vmessd.storage.plans`).
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import NamedTuple

from vmessd.core.errors import Failed, TimedOut, VmessError
from vmessd.devices import block_jobs, live_images
from vmessd.devices.block_jobs import PENDING, BlockJobs
from vmessd.devices.live_images import QMP_TIME
from vmessd.qemu import block_devices
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import plans, pulling
from vmessd.storage.blocking import Lane
from vmessd.storage.plans import Plan
from vmessd.storage.pulling import Pull
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

MERGE = "merge-"
"""The beginning of the names of its jobs, which end with a drive."""


class _Nodes(NamedTuple):
    """The nodes of QEMU that a merge is about."""

    above: str
    snapshot: str
    below: str | None


class LiveMerge:
    """The deletion of one snapshot of a running VM."""

    def __init__(self, machine: Machine, run: QemuRun, lane: Lane) -> None:
        self._machine = machine
        self._run = run
        self._lane = lane
        self._directory = machine.home
        self._nodes: dict[str, _Nodes] = {}
        self.notes: list[str] = []
        """What differs from before."""

    async def merge(self, name: str) -> AsyncGenerator[int, None]:
        """Delete a snapshot; yield percents. If it fails, or the caller leaves, everything is as before.

        Raises:
            InvalidValue, BadFile: as pulling.prepare.
            Failed: QEMU refuses, ends, or has no space.
            TimedOut: QEMU does not answer; it is settled later.
        """
        slots = set(self._run.launched.record.hardware or {})
        pulls = await self._lane.aside(functools.partial(pulling.prepare, self._directory, name, slots))
        for pull in pulls:
            self._nodes[pull.disk.slot] = await self._nodes_of(pull)
        jobs = BlockJobs(self._run, [f"{MERGE}{slot}" for slot in self._nodes])
        without, as_before = await self._lane.aside(functools.partial(pulling.steps, self._directory, pulls))
        async with self._or_as_before(jobs, self._plan(as_before, as_before)):
            await self._lane.finish(functools.partial(pulling.begin, self._directory, pulls))
            for pull in pulls:
                await self._begin(pull)
            async for percent in jobs.reached(PENDING):
                yield percent
            for pull in pulls:
                await self._reopen(pull, is_written=True)  # to write back all, before anything depends on it
            await self._lane.finish(functools.partial(self._directory.carry_out, self._plan(without)))
        await complete(self._machine, self._run, self._lane)
        raw = [pull.disk.slot for pull in pulls if pull.snapshot.format == "raw" and pull.below is None]
        if raw:
            self.notes.append(f"{', '.join(raw)}: stays qcow2, because the VM runs")

    def _plan(self, steps: Sequence[plans.Steps], undo: Sequence[plans.Steps] = ()) -> Plan:
        of = (self._run.pid, self._run.launched.process.ticks)
        nodes = {slot: nodes.snapshot for slot, nodes in self._nodes.items()}
        return Plan(self._machine.vm, tuple(steps), tuple(undo), of, nodes, merges=True)

    async def _nodes_of(self, pull: Pull) -> _Nodes:
        """Return the nodes of a merge; raises Failed if QEMU has other images open than the directory says."""
        there = await self._run.nodes(QMP_TIME)
        chain = block_devices.chain(pull.disk.slot, there)
        if len(chain) != 1 + len(pull.disk.bases):
            raise Failed(
                f"QEMU of {self._machine.vm} has {len(chain)} images of {pull.disk.slot} open, "
                f"and there are {1 + len(pull.disk.bases)}",
                hint=f"vmess {self._machine.vm} stop start",
            )
        live_images.must_be_open_for_good(self._run, chain[0], there)
        rest = chain[pull.depth + 2 :]
        return _Nodes(chain[pull.depth], chain[pull.depth + 1], rest[0] if rest else None)

    async def _begin(self, pull: Pull) -> None:
        slot, nodes = pull.disk.slot, self._nodes[pull.disk.slot]
        if pull.depth:
            await self._put_on_file(nodes.above, f"{self._directory.path}/{pull.above}")
            await self._reopen(pull, is_written=False)
        base = {}
        if nodes.below is not None and pull.below is not None:
            base = {"base-node": nodes.below, "backing-file": pull.below.target}
        words = {"job-id": f"{MERGE}{slot}", "device": nodes.above, "filter-node-name": f"{slot}-merging"}
        how = {"auto-finalize": False, "auto-dismiss": False}
        await self._run.execute("block-stream", {**words, **base, **how}, QMP_TIME)

    async def _put_on_file(self, node: str, path: str) -> None:
        """Open the file of a base for writing, if it never was, because QEMU may know it by an old name."""
        if block_devices.file_node(node) not in await self._run.nodes(QMP_TIME):
            file = block_devices.writable_file(node, path)
            await self._run.execute("blockdev-add", file, QMP_TIME)

    async def _reopen(self, pull: Pull, *, is_written: bool) -> None:
        nodes = self._nodes[pull.disk.slot]
        await live_images.reopen(self._run, nodes.above, "qcow2", nodes.snapshot, is_written=is_written)

    @contextlib.asynccontextmanager
    async def _or_as_before(self, jobs: BlockJobs, plan: Plan) -> AsyncIterator[None]:
        """Note a plan for a `with` block, which replaces it; if this fails, end the jobs and take it back."""
        await self._lane.finish(functools.partial(self._directory.carry_out, plan))
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(VmessError):
                await asyncio.shield(asyncio.ensure_future(self._give_up(jobs)))
            if isinstance(error, CommandRefused | VmessError):
                raise live_images.error_of(self._run, error, "the deletion of the snapshot") from None
            raise

    async def _give_up(self, jobs: BlockJobs) -> None:
        """Leave everything as it was; or complete the deletion, if that has been decided just now."""
        plan = await self._lane.do(self._directory.pending_plan)  # behind a decision that is under way
        if plan is None:
            return
        if not plan.undo:
            await complete(self._machine, self._run, self._lane)
            return
        try:
            await jobs.end()
        except TimedOut:
            if self._run.launched.process.has_ended():
                await settled_without(self._machine, self._run)
            return
        await self._lane.finish(functools.partial(self._directory.take_back, plan))


async def settle(machine: Machine, run: QemuRun, lane: Lane, plan: Plan) -> None:
    """End or complete what an earlier daemon, or a silent QEMU, has left; raises Failed, TimedOut."""
    if not plan.undo:
        await complete(machine, run, lane)
        return
    jobs = await block_jobs.left(run, MERGE)
    if jobs is not None:
        await jobs.end()
    await lane.finish(functools.partial(machine.home.take_back, plan))


async def complete(machine: Machine, run: QemuRun, lane: Lane) -> None:
    """Complete a deletion that is decided; if QEMU has ended, without it.

    Raises:
        Failed: QEMU does not let go of an image. The next start does not need it.
        TimedOut: QEMU does not answer; it is completed later.
    """
    plan = await lane.aside(machine.home.pending_plan)
    if plan is None:
        return
    try:
        await _let_go(run, plan)
    except TimedOut:
        if not run.launched.process.has_ended():
            raise
        await settled_without(machine, run)
        return
    await lane.finish(machine.home.settle_plan)
    await live_images.note(machine, lane)


async def _let_go(run: QemuRun, plan: Plan) -> None:
    """Have QEMU close the images of a snapshot that was copied; raises Failed, TimedOut."""
    if (jobs := await block_jobs.left(run, MERGE)) is not None:
        try:
            await jobs.finalize()
        finally:
            await jobs.end()
    nodes = list((plan.nodes or {}).values())
    await live_images.close_images(run, nodes)
    if still := set(nodes).intersection(await run.nodes(QMP_TIME)):
        raise Failed(
            f"QEMU of {run.vm} still has a deleted snapshot open ({', '.join(sorted(still))})",
            hint=f"vmess {run.vm} stop start",
        )


async def settled_without(machine: Machine, run: QemuRun) -> None:
    """Complete or take back a plan whose QEMU has ended, unless the next start has; a failure is for later."""
    with contextlib.suppress(VmessError, TimeoutError):
        await asyncio.wait_for(run.over.wait(), QMP_TIME)
        await machine.change(machine.home.settle_plan, stopped=True)
