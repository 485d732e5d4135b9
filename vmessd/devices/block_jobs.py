"""Jobs of a running QEMU on its images: begun, followed, ended. An earlier daemon may have left some.

QEMU tells of no progress, so it is asked as long as a client follows it. Source: QEMU's qapi/job.json.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Sequence

from vmessd.core import refusals
from vmessd.core.errors import Failed, printable
from vmessd.devices.live_images import QMP_TIME
from vmessd.qemu.monitor import REFUSAL_MAX, CommandRefused, Job
from vmessd.vm.qemu_run import QemuRun

END_TIME = 60.0
"""Seconds that a job which is called off may take to end."""
PAUSE, PAUSE_MAX = 0.01, 0.5
"""Seconds between two looks: the first ones, and at most."""
PENDING, CONCLUDED = "pending", "concluded"


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
                        f"QEMU of {self._run.vm}: {printable(job.error[:REFUSAL_MAX])}",
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
