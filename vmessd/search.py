"""Looking for the QEMU that an earlier daemon may have left to a VM, until it is known whether there is one."""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

from vmessd import launch, threads
from vmessd.errors import TimedOut, VmessError
from vmessd.host import Host
from vmessd.launch import Launched
from vmessd.records import ExitRecord
from vmessd.threads import Lane
from vmessd.vmdir import VMDirectory

log = logging.getLogger(__name__)


class Findings(NamedTuple):
    """What a look brought to light."""

    launched: Launched | None
    last_exit: ExitRecord | None = None
    problem: VmessError | None = None
    """Why it is not known whether there is a QEMU, or more than that there is one."""


class Search:
    """The looking of one machine."""

    def __init__(self, directory: VMDirectory, host: Host, files: Lane) -> None:
        self._directory = directory
        self._host = host
        self._files = files
        self._task: asyncio.Task[None] | None = None

    async def look(self) -> Findings:
        """Look, in turn with all else that is done to the VM's files."""
        try:
            launched = await self._files.do(
                functools.partial(launch.recover, self._directory, self._host), threads.LOOK
            )
            last_exit = await self._files.do(functools.partial(launch.last_exit, self._directory), threads.LOOK)
        except VmessError as error:
            return Findings(None, None, error)
        return Findings(launched, last_exit)

    async def first(self) -> Findings:
        """Look; where the VM's files do not answer, without them."""
        found = await self.look()
        if not isinstance(found.problem, TimedOut):
            return found
        try:
            return found._replace(launched=await threads.call(launch.spot, self._directory, self._host))
        except VmessError:
            return found

    def go_on(self, every: float, is_over: Callable[[], bool], found: Callable[[Findings], None]) -> None:
        """Look every so many seconds until it is over, or call `found` with what there is."""
        self.cancel()
        self._task = asyncio.get_running_loop().create_task(self._go_on(every, is_over, found))

    async def _go_on(
        self, every: float, is_over: Callable[[], bool], found: Callable[[Findings], None]
    ) -> None:
        while not is_over():
            await asyncio.sleep(every)
            try:
                findings = await self.look()
            except Exception:
                log.exception("%s: unexpected failure", self._directory.vm)
                continue
            if findings.problem is None:
                found(findings)
                return

    def cancel(self) -> None:
        """Look no longer."""
        if self._task is not None:
            self._task.cancel()
