"""A stop of a VM: where on the ladder it is, and the grace period of the guest."""

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

log = logging.getLogger(__name__)

READ_TIME = 2.0
"""Seconds that reading a guest's grace may take: it has to be stopped all the same."""
UNDYING = 10.0
"""Seconds a QEMU may take to end by SIGKILL: one that waits for a disk in the kernel does not."""


class StepTaken(NamedTuple):
    """A step of a stop that was taken."""

    rung: Rung
    is_first: bool
    """On its rung."""


class Stop:
    """A stop under way: where on the ladder it is. Measured by the event loop's monotonic clock."""

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
        """It was asked for without force."""
        self.rung = self._next.rung if self._next else Rung.kill

    def step(self, due: Callable[[], None]) -> Step | None:
        """Return the step to take now, None after the last; have `due` called when the next one is.

        And once more when the process should long have ended by the last.
        """
        loop = asyncio.get_running_loop()
        step, self._next = self._next, next(self._steps, None)
        if self._next is None:
            if step is not None:
                self._timer = loop.call_later(UNDYING, due)
        else:
            at = self._began + self._next.at
            if step is not None and step.rung is not Rung.powerdown:
                at = max(at, loop.time() + RUNG_TIME)  # each rung gets its time, also if we were held up
            self._timer = loop.call_at(at, due)
        return step

    def outlasts(self, within: float | None) -> bool:
        """Tell whether the guest still has more than so many seconds; None is without end."""
        left = self.grace - (asyncio.get_running_loop().time() - self._began)
        return within is not None and self.rung is Rung.powerdown and left > within

    def goes_on(self) -> bool:
        """Tell whether there is a next step, or the process is to end by the last one."""
        timer = self._timer
        return timer is not None and not timer.cancelled() and timer.when() > asyncio.get_running_loop().time()

    def is_spent(self) -> bool:
        """Tell whether the process should long have ended by the last step."""
        return self._next is None and not self.goes_on()

    def cancel(self) -> None:
        """Take no further step."""
        if self._timer is not None:
            self._timer.cancel()

    def progress(self, pid: int) -> StopProgress:
        """Return where the stop is."""
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


async def grace_of(vm: str, place: Callable[[], VMDirectory], files: Lane) -> tuple[float, str | None]:
    """Return a guest's grace in seconds, and why its STOP file does not say it: no reason not to stop it.

    `place` tells where its files are, and may block.
    """
    try:
        value = await files.aside(lambda: place().read_setting(settings.BY_FILE["STOP"]), READ_TIME)
    except VmessError as error:
        note = f"{error.message}; it gets {settings.GRACE_DEFAULT} s"
        log.warning("%s: %s", vm, note)
        return float(settings.GRACE_DEFAULT), note
    return float(settings.GRACE_DEFAULT if value is None else value), None
