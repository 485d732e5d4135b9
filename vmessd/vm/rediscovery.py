"""The search for a QEMU that an earlier daemon may have started, repeated until the answer is known."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from vmessd.core.errors import TimedOut, VmessError
from vmessd.core.records import ExitRecord
from vmessd.storage import blocking
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import adoption
from vmessd.vm.host import Host
from vmessd.vm.launcher import Launched

log = logging.getLogger(__name__)


class Findings(NamedTuple):
    """The result of one look."""

    launched: Launched | None
    last_exit: ExitRecord | None = None
    problem: VmessError | None = None
    """Why it is not known whether there is a QEMU; or why only the process is known."""

    def close(self) -> None:
        """Release the process that was found; it keeps running."""
        if self.launched is not None:
            self.launched.close()


class Search:
    """The search of one machine."""

    def __init__(self, directory: VMDirectory, host: Host, files: Lane) -> None:
        self.doubt: VmessError | None = None
        """Why it is not known whether there is a QEMU."""
        self._directory = directory
        self._host = host
        self._files = files
        self._task: asyncio.Task[None] | None = None

    async def look(self) -> Findings:
        """Look, in order with other work on the files of the VM."""
        try:
            return await self._files.do(self._find, blocking.LOOK)
        except VmessError as error:
            return Findings(None, None, error)

    def _find(self) -> Findings:
        launched = adoption.recover(self._directory, self._host)
        return Findings(launched, adoption.last_exit(self._directory))

    async def first(self) -> Findings:
        """Look; if the files of the VM do not answer, among the processes only."""
        found = await self.look()
        if not isinstance(found.problem, TimedOut):
            return found
        try:
            return found._replace(launched=await blocking.call(adoption.spot, self._directory, self._host))
        except VmessError:
            return found

    def go_on(self, doubt: VmessError, every: float, again: Callable[[], Awaitable[None]]) -> None:
        """Call `again` in the background, `every` seconds after it returned, until :meth:`cancel`."""
        before, self.doubt = self.doubt, doubt
        if type(before) is not type(doubt):
            log.warning("%s: %s; checking again until this is over", self._directory.vm, doubt.message)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(_repeat(every, again))

    def cancel(self) -> None:
        """End the search: the answer is known."""
        self.doubt = None
        if self._task is not None:
            self._task.cancel()
            self._task = None


async def _repeat(every: float, again: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(every)
        with contextlib.suppress(VmessError):
            await again()
