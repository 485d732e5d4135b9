"""A stop of a VM in progress: its rung of the ladder, and the grace period."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vmessd.core import settings
from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import RUNG_TIME, Rung, Step
from vmessd.core.models.progress import StopProgress
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.mailbox import Request

log = logging.getLogger(__name__)

READ_TIME = 2.0
"""Seconds that reading a setting for a stop or an end may take; then the default applies."""
UNDYING = 10.0
"""Seconds that QEMU may take to end after SIGKILL. A process in uninterruptible sleep (D) takes longer."""


class StepTaken(NamedTuple):
    """A step of the ladder that was taken."""

    rung: Rung
    is_first: bool
    """It is the first step on its rung."""


class Stop:
    """A stop in progress, timed by the monotonic clock of the event loop."""

    def __init__(
        self,
        steps: Iterator[Step],
        grace: float,
        uid: int | None,
        *,
        gentle: bool,
        note: str | None = None,
    ) -> None:
        self._steps = steps
        self._next = next(steps, None)
        self._began = asyncio.get_running_loop().time()
        self._timer: asyncio.TimerHandle | None = None
        self.grace = grace
        self.uid = uid
        self.note = note
        self.gentle = gentle
        """It was requested without force."""
        self.rung = self._next.rung if self._next else Rung.kill

    def step(self, due: Callable[[], None]) -> Step | None:
        """Return the step to take now, None after the last; call `due` when the next step is due.

        After the last step, `due` is called once more when the process should have ended.
        """
        loop = asyncio.get_running_loop()
        step, self._next = self._next, next(self._steps, None)
        if self._next is None:
            if step is not None:
                self._timer = loop.call_later(UNDYING, due)
        else:
            at = self._began + self._next.at
            if step is not None and step.rung is not Rung.powerdown:
                at = max(at, loop.time() + RUNG_TIME)  # each rung gets its time, even if we are late
            self._timer = loop.call_at(at, due)
        return step

    def is_replaced_by(self, request: Request) -> bool:
        """Tell whether a request changes the remaining grace period: it names one, or a shorter limit."""
        left = self.grace - (asyncio.get_running_loop().time() - self._began)
        exceeds = request.within is not None and left > request.within
        return self.rung is Rung.powerdown and (request.grace is not None or exceeds)

    def goes_on(self) -> bool:
        """Tell whether another step is due, or the last one still has time to take effect."""
        timer = self._timer
        return timer is not None and not timer.cancelled() and timer.when() > asyncio.get_running_loop().time()

    def is_spent(self) -> bool:
        """Tell whether the last step was taken, and the process should have ended."""
        return self._next is None and not self.goes_on()

    def left(self) -> float | None:
        """Return the seconds until QEMU is killed, if nothing ends it before; None once it was."""
        if self.rung is Rung.kill:
            return None
        return max(0.0, self._began + self.grace + 2 * RUNG_TIME - asyncio.get_running_loop().time())

    def cancel(self) -> None:
        """Take no further step."""
        if self._timer is not None:
            self._timer.cancel()

    def progress(self, pid: int) -> StopProgress:
        """Return the progress of the stop."""
        return StopProgress(
            done=False,
            pid=pid,
            rung=self.rung,
            elapsed=asyncio.get_running_loop().time() - self._began,
            grace=self.grace,
            forced=False,
            text=None,
            note=self.note,
        )


async def grace_of(vm: str, find_home: Callable[[], VMDirectory], files: Lane) -> tuple[float, str | None]:
    """Return the grace period in seconds, and a note if the STOP file could not be read.

    A stop continues without that file, with the default. `find_home` returns the directory, and may block.
    """
    try:
        value = await files.aside(lambda: find_home().read_setting(settings.BY_FILE["STOP"]), READ_TIME)
    except VmessError as error:
        note = f"{error.message}; it gets {settings.GRACE_DEFAULT} s"
        log.warning("%s: %s", vm, note)
        return float(settings.GRACE_DEFAULT), note
    return float(settings.GRACE_DEFAULT if value is None else value), None
