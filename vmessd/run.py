"""One life of a QEMU, from spawn or adoption to its end, and the stop that may be under way."""

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from vmessd.errors import VmessError
from vmessd.launch import Launched
from vmessd.lifecycle import Ending, Reason, Rung, Step, classify
from vmessd.monitor import CommandRefused, MonitorLost
from vmessd.records import ExitRecord, Moment
from vmessd.report import StopProgress
from vmessd.session import Session


class Stop:
    """A stop under way: where on the ladder it is. Measured by the event loop's monotonic clock."""

    def __init__(self, steps: Iterator[Step], grace: float, uid: int | None, *, gentle: bool) -> None:
        self._steps = steps
        self._next = next(steps, None)
        self._began = asyncio.get_running_loop().time()
        self._timer: asyncio.TimerHandle | None = None
        self.grace = grace
        self.uid = uid
        self.gentle = gentle
        """It was asked for without force."""
        self.rung = self._next.rung if self._next else Rung.kill

    def step(self, due: Callable[[], None]) -> Step | None:
        """Return the step to take now, None after the last; have `due` called when the next one is."""
        step, self._next = self._next, next(self._steps, None)
        if self._next is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._began + self._next.at, due)
        return step

    def cancel(self) -> None:
        """Take no further step."""
        if self._timer is not None:
            self._timer.cancel()

    def progress(self, pid: int) -> StopProgress:
        """Return where the stop is."""
        return StopProgress(
            done=False,
            pid=pid,
            rung=self.rung.value,
            elapsed=asyncio.get_running_loop().time() - self._began,
            grace=self.grace,
            forced=False,
            text=None,
        )


@dataclasses.dataclass
class Run:
    """A QEMU process, the conversation with it, and what was learned from both."""

    launched: Launched
    session: Session
    runstate: str | None = None
    """What QEMU last said of the guest."""
    shutdown: str | None = None
    """Reason of the SHUTDOWN event."""
    ran: bool = False
    """The guest has run."""
    stop: Stop | None = None
    error: VmessError | None = None
    """Why a start came to nothing, where that is known better than by QEMU's last words."""
    _errands: dict[str, asyncio.Task[None]] = dataclasses.field(default_factory=dict)

    @property
    def pid(self) -> int:
        """The process's pid."""
        return self.launched.process.pid

    def exit_record(self, said: list[str]) -> ExitRecord:
        """Reap the process, which has ended, and return how; `said` are the last lines it wrote."""
        status = self.launched.process.reap()
        ending = Ending(self.ran, self.shutdown, status, self.stop.rung if self.stop else None)
        reason, text = classify(ending)
        if reason in (Reason.refused, Reason.failed) and said:
            text = f"{text}: {'; '.join(_without_name(line) for line in said)}"
        return ExitRecord(
            pid=self.pid,
            ticks=self.launched.process.ticks,
            reason=reason.name,
            text=text,
            status=status,
            asked_by=self.stop.uid if self.stop else None,
            log=said,
            when=Moment.now(),
        )

    def replace_stop(self, stop: Stop) -> None:
        """Let this stop take the place of the one under way."""
        if self.stop is not None:
            self.stop.cancel()
        self.stop = stop

    def climb(self, due: Callable[[], None]) -> bool:
        """Take the step of the stop that is due; tell whether it is the first on its rung."""
        if self.stop is None or (step := self.stop.step(due)) is None:
            return False
        first = step.at == 0 or step.rung is not self.stop.rung
        self.stop.rung = step.rung
        if step.rung is Rung.powerdown:
            self.errand("button", self._press())
        elif step.rung is Rung.quit:
            self.errand("quit", self._execute("quit"))
        else:
            self.launched.process.signal(signal.SIGTERM if step.rung is Rung.term else signal.SIGKILL)
        return first

    async def _press(self) -> None:
        """Press the power button of a guest that can notice: a paused one is let run first."""
        if self.runstate == "paused":
            await self._execute("cont")
        await self._execute("system_powerdown")

    async def _execute(self, command: str) -> None:
        with contextlib.suppress(CommandRefused):
            await self.session.execute(command)

    def errand(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the inbox; not while the same is still being done."""
        if name in self._errands and not self._errands[name].done():
            work.close()
            return
        task = asyncio.get_running_loop().create_task(_unless_lost(work))
        # Cancelled before its first step, the task never awaited the work.
        task.add_done_callback(lambda _task: work.close())
        self._errands[name] = task

    def cancel_errands(self) -> None:
        """Leave everything undone that waits for QEMU."""
        for task in self._errands.values():
            task.cancel()
        if self.stop is not None:
            self.stop.cancel()


async def _unless_lost(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(MonitorLost):
        await work


def _without_name(line: str) -> str:
    """Drop the program's name that QEMU puts before its messages."""
    name, colon, rest = line.partition(": ")
    return rest if colon and name.startswith("qemu-system-") else line
