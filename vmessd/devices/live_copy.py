"""A copy of the disks of a running VM, as they are at one moment (`blockdev-backup`).

QEMU copies what the guest is about to overwrite first, so the copy is of the moment of the transaction that
begins all jobs. A guest agent has the file systems of the guest written back for that moment.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from vmessd.core import names
from vmessd.core.errors import VmessError
from vmessd.devices import block_jobs, live_images
from vmessd.devices.block_jobs import CONCLUDED, BlockJobs
from vmessd.devices.live_images import QMP_TIME
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage.cloning import Target
from vmessd.vm.qemu_run import QemuRun

COPY = "copy-"
"""The beginning of the names of its jobs, which end with a drive."""
CRASH_CONSISTENT = "the disks are as after a power failure, because the guest was not asked to write everything"
FROZEN = "the guest has written everything back for that: its agent had frozen its file systems for a moment"


def consistency(frozen: int | None) -> str:
    """Return the remark on a copy by what `frozen` said."""
    return CRASH_CONSISTENT if frozen is None else FROZEN


@contextlib.asynccontextmanager
async def frozen(run: QemuRun) -> AsyncGenerator[int | None, None]:
    """As Agent.frozen; None for a QEMU without a port for an agent."""
    if run.agent is None:
        yield None
        return
    async with run.agent.frozen() as count:
        yield count


class LiveCopy:
    """A copy of some disks of a running VM; `note` says how consistent it is, once it has begun."""

    def __init__(self, run: QemuRun, targets: Sequence[Target]) -> None:
        self._run = run
        self._targets = {target.disk.slot: target for target in targets}
        self._jobs = BlockJobs(run, [f"{COPY}{slot}" for slot in self._targets])
        self.note = CRASH_CONSISTENT

    async def copy(self) -> AsyncGenerator[int, None]:
        """Fill the images; yield percents. If it fails, or the caller leaves, QEMU no longer has them open.

        Raises:
            Failed: QEMU refuses, ends, or has no space.
            TimedOut: it does not answer.
        """
        await end_left(self._run)
        try:
            for slot, target in self._targets.items():
                await live_images.open_image(self._run, _node(slot), target.path, target.disk.format)
            await self._begin()
            async for percent in self._jobs.reached(CONCLUDED):
                yield percent
            for slot, target in self._targets.items():  # to write back what is in the caches
                await live_images.reopen(self._run, _node(slot), target.disk.format, None, is_written=True)
        except (CommandRefused, VmessError) as error:
            raise live_images.error_of(self._run, error, "the copy") from None
        finally:
            with contextlib.suppress(VmessError):
                await asyncio.shield(asyncio.ensure_future(self._end()))

    async def _begin(self) -> None:
        actions = [
            {
                "type": "blockdev-backup",
                "data": {
                    "job-id": f"{COPY}{slot}",
                    "device": await self._run.node_of(slot, QMP_TIME),
                    "target": _node(slot),
                    "sync": "full" if target.disk.format == "raw" else "top",
                    "filter-node-name": f"{slot}-copying",
                    "auto-dismiss": False,
                },
            }
            for slot, target in self._targets.items()
        ]
        together = {"completion-mode": "grouped"}
        async with frozen(self._run) as count:
            await self._run.execute("transaction", {"actions": actions, "properties": together}, QMP_TIME)
        self.note = consistency(count)

    async def _end(self) -> None:
        await self._jobs.end()
        await live_images.close_images(self._run, map(_node, self._targets))


def _node(slot: str) -> str:
    return f"{slot}-copy"


async def end_left(run: QemuRun) -> None:
    """End copies that an earlier daemon has left, whose images are gone; raises TimedOut."""
    jobs = await block_jobs.left(run, COPY)
    if jobs is not None:
        await jobs.end()
    there = set(await run.nodes(QMP_TIME))
    await live_images.close_images(run, there.intersection(map(_node, names.DISKS)))
