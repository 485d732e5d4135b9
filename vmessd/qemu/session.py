"""The conversation with one QEMU: connect, ask how it is, notice silence, connect again.

Reports what it learns as lifecycle events. A QEMU that does not answer is waited for, not hung up
on: when it comes to itself, the answer that was asked for tells so.
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
    """How patient the daemon is with a QEMU, in seconds."""

    answer: float = 10.0
    """Until a QEMU that was just started or found counts as silent."""
    probe_every: float = 5.0
    probe_answer: float = 3.0
    """Until a QEMU that answered before counts as silent."""
    retry: float = 0.1
    """Before the first reconnection; doubles up to `retry_most`."""
    retry_most: float = 10.0
    look: float = 2.0
    """Between looks at what keeps a QEMU from being found, or its directory from where it should be."""
    settle: float = 1.0
    """How long those who ask about a QEMU that was just found wait for its first answer."""
    ending: float = 10.0
    """How long a QEMU that has said SHUTDOWN may take to end: its guest is off, there is little to do."""
    last_words: float = 10.0
    """How long a dead QEMU's last messages are waited for."""


Report = Callable[[Event, str | None], None]


class Session:
    """Keeps one monitor connection to one QEMU until it is closed."""

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
        """Called with what QEMU says and cannot be true."""
        self._retry = 0.0
        self._monitor: Monitor | None = None
        self._task: asyncio.Task[None] | None = None
        self._doubt = asyncio.Event()
        self._overdue: asyncio.TimerHandle | None = None
        self._settled = asyncio.Event()
        """Set when QEMU has answered since it was spawned, found or lost, or is overdue."""

    def begin(self) -> None:
        """Connect, at once the first time, later after a pause that grows with every failure.

        Where there is a conversation, it goes on.
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
        """Return when QEMU has answered for the first time, at all or again, or is overdue."""
        await self._settled.wait()

    def probe(self) -> None:
        """Ask for the runstate now and not only when the next question is due."""
        self._doubt.set()

    async def execute(
        self, command: str, arguments: dict[str, object] | None = None, descriptor: int | None = None
    ) -> Any:
        """Run a QMP command on the connection there is; as Monitor.execute."""
        return await self.monitor().execute(command, arguments, descriptor)

    def monitor(self) -> Monitor:
        """Return the connection there is; raises MonitorLost."""
        if self._monitor is None:
            raise MonitorLost("not connected")
        return self._monitor

    @property
    def is_connected(self) -> bool:
        """There is a connection, on which QEMU answered at least once."""
        return self._monitor is not None

    async def drained(self) -> None:
        """Return when all that a QEMU that has ended still said has been handed over."""
        if self._monitor is not None and self._task is not None:
            await asyncio.wait({self._task}, timeout=self.timing.last_words)

    async def close(self) -> None:
        """End the conversation; QEMU goes on."""
        self._answered()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=self.timing.last_words)

    def _answered(self) -> None:
        """Note that QEMU said something, for the first time since it was spawned, found or lost."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        self._settled.set()

    async def _converse(self, pause: float) -> None:
        await asyncio.sleep(pause)
        monitor = Monitor(self._events, self.complain)
        # A reason to end the conversation is no error here: the process's pidfd tells what it meant.
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
        """Ask for the runstate every so often until the connection ends."""
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
        """Report silence if what is inside takes longer, and let it go on."""
        timer = asyncio.get_running_loop().call_later(seconds, self._report, Event.silent, None)
        try:
            yield
        finally:
            timer.cancel()


@contextlib.contextmanager
def _unforeseen() -> Iterator[None]:
    """Let a conversation that fails in a way nobody foresaw be taken up again, as any other."""
    try:
        yield
    except (MonitorLost, CommandRefused, VmessError):
        raise
    except Exception as error:
        log.exception("unexpected failure of a conversation with QEMU")
        raise MonitorLost(str(error)) from None
