"""Jobs of a running QEMU on its images: begun, followed, ended. An earlier daemon may have left some.

QEMU tells of no progress, so it is asked as long as a client follows it. Source: QEMU's qapi/job.json.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Sequence

from vmessd.core import refusals
from vmessd.core.errors import Failed, TimedOut, VmessError, printable
from vmessd.qemu import block_devices
from vmessd.qemu.monitor import CommandRefused, Job
from vmessd.vm.qemu_run import QemuRun

QMP_TIME = 20.0
"""Seconds that QEMU may take for a command that waits for writes of the guest."""
END_TIME = 60.0
"""Seconds that a job which is called off may take to end."""
PAUSE, PAUSE_MAX = 0.01, 0.5
"""Seconds between two looks: the first ones, and at most."""
FLUSH_TIME = 600.0
"""Seconds that QEMU may take to write back what is in its caches."""
PENDING, CONCLUDED = "pending", "concluded"
WORDS = 300
"""Characters of a message of QEMU in an error."""


class BlockJobs:
    """Some jobs of one QEMU. They stay in its list until they are dismissed."""

    def __init__(self, run: QemuRun, identifiers: Collection[str]) -> None:
        self._run = run
        self._identifiers = identifiers

    async def reached(self, status: str) -> AsyncIterator[int]:
        """Yield percents until all have a status; a job that has concluded has every one.

        Raises:
            Failed: one has failed, or is gone.
            TimedOut: QEMU does not answer.
        """
        pause = PAUSE
        while True:
            jobs = await self._jobs()
            for job in jobs:
                if job.status == CONCLUDED and job.error:
                    raise Failed(
                        f"QEMU of {self._run.vm}: {printable(job.error[:WORDS])}",
                        hint=f"to see the images: vmess {self._run.vm} info",
                    )
            if len(jobs) < len(self._identifiers):
                raise Failed(f"QEMU of {self._run.vm} has ended its work on the disks", hint="repeat it")
            yield percent(jobs)
            if all(job.status in (status, CONCLUDED) for job in jobs):
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX)

    async def finalize(self) -> None:
        """Have the results used of jobs that wait for this, and return when they are; raises as `reached`."""
        for job in await self._jobs():
            if job.status == PENDING:
                with contextlib.suppress(CommandRefused):  # it fails, which :meth:`reached` tells
                    await self._run.execute("job-finalize", {"id": job.identifier}, QMP_TIME)
        async for _ in self.reached(CONCLUDED):
            pass

    async def end(self) -> None:
        """Cancel those that are not done, and remove all from the list; raises TimedOut."""
        try:
            async with asyncio.timeout(END_TIME):
                while jobs := await self._jobs():
                    for job in jobs:
                        await self._end(job)
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise refusals.silent(self._run.vm, self._run.pid) from None

    async def _end(self, job: Job) -> None:
        command = "job-dismiss" if job.status == CONCLUDED else "job-cancel"
        with contextlib.suppress(CommandRefused):  # it changes its status just now
            await self._run.execute(command, {"id": job.identifier}, QMP_TIME)

    async def _jobs(self) -> list[Job]:
        return [job for job in await self._run.jobs(QMP_TIME) if job.identifier in self._identifiers]


def percent(jobs: Sequence[Job]) -> int:
    """Return how far some jobs are."""
    total = sum(max(job.total, job.done) for job in jobs)
    return 100 * sum(job.done for job in jobs) // total if total else 0


async def left(run: QemuRun, beginning: str) -> BlockJobs | None:
    """Return those jobs of a QEMU whose names begin like this; None if there are none; raises TimedOut."""
    found = [job.identifier for job in await run.jobs(QMP_TIME) if job.identifier.startswith(beginning)]
    return BlockJobs(run, found) if found else None


async def open_image(run: QemuRun, node: str, path: str, form: str) -> None:
    """Open an image for writing; raises CommandRefused, TimedOut."""
    for one in block_devices.written(node, path, form):
        await run.execute("blockdev-add", one, QMP_TIME)


async def reopen(run: QemuRun, node: str, form: str, below: str | None, *, is_written: bool) -> None:
    """Make an image writable or read-only; its caches are written back. Raises CommandRefused, TimedOut."""
    options = block_devices.on_file(node, form, below, is_written=is_written)
    await run.execute("blockdev-reopen", {"options": [options]}, FLUSH_TIME)


async def close_images(run: QemuRun, nodes: Iterable[str]) -> None:
    """Close images, as far as they are open and unused, and their files; raises TimedOut."""
    for node in nodes:
        for one in (node, block_devices.file_node(node)):
            with contextlib.suppress(CommandRefused):
                await run.execute("blockdev-del", {"node-name": one}, QMP_TIME)


def error_of(run: QemuRun, error: CommandRefused | VmessError, what: str) -> VmessError:
    """Return the error for `what`, which QEMU refused, did not answer to, or did not live to complete."""
    if isinstance(error, CommandRefused):
        return Failed(f"QEMU of {run.vm} refused {what}: {printable(str(error)[:WORDS])}")
    if isinstance(error, TimedOut) and run.launched.process.has_ended():
        return Failed(f"VM {run.vm} ended meanwhile, which ended {what}", hint="repeat it")
    return error
