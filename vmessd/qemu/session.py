"""The QMP session with one QEMU: connect, poll the runstate, notice silence, reconnect.

It reports its findings as lifecycle events. If QEMU does not answer, the session keeps the connection and
waits: the pending reply shows when QEMU has recovered.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import Event, runstate_event
from vmessd.qemu.monitor import CommandRefused, EventHandler, Monitor, MonitorLost

log = logging.getLogger(__name__)


class Timing(NamedTuple):
    """Timeouts and intervals for a QEMU, in seconds."""

    answer: float = 10.0
    """Until a QEMU that was just started or found counts as silent."""
    probe_every: float = 5.0
    """Between queries of the runstate."""
    probe_answer: float = 3.0
    """Until a QEMU that has answered before counts as silent."""
    retry: float = 0.1
    """Before the first reconnection; doubles up to `retry_most`."""
    retry_most: float = 10.0
    look: float = 2.0
    """Between retries while a QEMU cannot be found or its directory is not in its place."""
    settle: float = 1.0
    """How long a query about a QEMU that was just found waits for its first answer."""
    ending: float = 10.0
    """How long a QEMU may take to exit after SHUTDOWN: the guest is off, so little is left to do."""
    last_words: float = 10.0
    """How long to wait for the last messages of a dead QEMU."""


Report = Callable[[Event, str | None], None]


class Session:
    """Maintains the monitor connection to one QEMU until it is closed."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[socket.socket]],
        report: Report,
        events: EventHandler,
        timing: Timing,
    ) -> None:
        self._connect = connect
        self._report = report
        self._events = events
        self.timing = timing
        self.complain: Callable[[str], None] = lambda _words: None
        """Called with a text about an invalid value from QEMU."""
        self._retry = 0.0
        self._monitor: Monitor | None = None
        self._task: asyncio.Task[None] | None = None
        self._doubt = asyncio.Event()
        self._overdue: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        """Set when QEMU has answered since it was spawned, found or lost, or its answer is overdue."""

    def begin(self) -> None:
        """Connect: immediately the first time, later after a pause that grows with every failure.

        Does nothing if a session is in progress.
        """
        if self._task is not None and not self._task.done():
            return
        loop = asyncio.get_running_loop()
        if self._overdue is None:
            self._settled.clear()
            self._overdue = loop.call_later(self.timing.answer, self._is_overdue)
        self._task = loop.create_task(self._converse(self._retry))
        self._retry = min(max(self.timing.retry, 2 * self._retry), self.timing.retry_most)

    def _is_overdue(self) -> None:
        self._settled.set()
        self._report(Event.silent, None)

    async def settled(self) -> None:
        """Return when QEMU has answered since it was spawned, found or lost, or its answer is overdue."""
        await self._settled.wait()

    def probe(self) -> None:
        """Query the runstate now instead of waiting for the next interval."""
        self._doubt.set()

    async def execute(
        self, command: str, arguments: dict[str, object] | None = None, descriptor: int | None = None
    ) -> Any:
        """Run a QMP command on the present connection; as :meth:`Monitor.execute`."""
        return await self.monitor().execute(command, arguments, descriptor)

    def monitor(self) -> Monitor:
        """Return the present connection; raises MonitorLost if there is none."""
        if self._monitor is None:
            raise MonitorLost("not connected")
        return self._monitor

    @property
    def is_connected(self) -> bool:
        """There is a connection on which QEMU has answered at least once."""
        return self._monitor is not None

    async def drained(self) -> None:
        """Return when the last messages of a QEMU that has ended have been passed on."""
        if self._monitor is not None and self._task is not None:
            await asyncio.wait({self._task}, timeout=self.timing.last_words)

    async def close(self) -> None:
        """End the session; QEMU keeps running."""
        self._answered()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=self.timing.last_words)

    def _answered(self) -> None:
        """Record that QEMU has answered since it was spawned, found or lost."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        self._settled.set()

    async def _converse(self, pause: float) -> None:
        await asyncio.sleep(pause)
        monitor = Monitor(self._events, self.complain)
        # The end of a session is not an error here: the pidfd says whether QEMU has ended.
        with contextlib.suppress(MonitorLost, CommandRefused, VmessError), _unforeseen():
            try:
                await monitor.open(await self._connect())
                runstate = await monitor.runstate()
                self._answered()
                self._monitor = monitor
                self._report(runstate_event(runstate), runstate)
                await self._attend(monitor)
            finally:
                self._monitor = None
                await monitor.close()
        self._report(Event.lost, None)

    async def _attend(self, monitor: Monitor) -> None:
        """Query the runstate regularly until the connection ends."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        closed = loop.create_task(monitor.closed())
        try:
            while not closed.done():
                doubt = loop.create_task(self._doubt.wait())
                try:
                    await asyncio.wait(
                        {closed, doubt}, timeout=self.timing.probe_every, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    doubt.cancel()
                self._doubt.clear()
                if closed.done():
                    return
                with self._silent_after(self.timing.probe_answer):
                    runstate = await monitor.runstate()
                self._report(runstate_event(runstate), runstate)
                if loop.time() - since > self.timing.retry_most:
                    self._retry = 0.0
        finally:
            closed.cancel()

    @contextlib.contextmanager
    def _silent_after(self, seconds: float) -> Iterator[None]:
        """Report silence if the body of the `with` takes longer, without interrupting it."""
        timer = asyncio.get_running_loop().call_later(seconds, self._report, Event.silent, None)
        try:
            yield
        finally:
            timer.cancel()


@contextlib.contextmanager
def _unforeseen() -> Iterator[None]:
    """Convert unexpected errors to MonitorLost, so that the session is resumed as after any other failure."""
    try:
        yield
    except (MonitorLost, CommandRefused, VmessError):
        raise
    except Exception as error:
        log.exception("unexpected failure of a QMP session")
        raise MonitorLost(str(error)) from None
