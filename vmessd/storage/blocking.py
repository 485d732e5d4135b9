"""Blocking work in threads, with deadlines.

A file system can hang: a dead file server, a failing disk, fsfreeze(8). A thread that waits for it cannot be
cancelled, and often not even killed. So each caller has a deadline; a hanging thread is replaced by a new one;
and the threads are daemons, which do not keep the process from ending.
"""

import asyncio
import collections
import contextlib
import functools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, ParamSpec, TypeVar

from vmessd.core.errors import LIMITS, Failed, TimedOut, reason

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_P = ParamSpec("_P")

THREADS = 64
"""Threads that work at the same time. With few, slow disks would delay the others."""
HUNG_MAX = 448
"""Additional threads, in place of those that hang."""
SPARE = 4
"""Threads that exist from the beginning, in case others cannot be started later."""
PATIENCE = 30.0
"""Default deadline of work, in seconds."""
WRITING_PATIENCE = 300.0
"""The same for a piece of a VM that comes or goes: fsync(2) writes all that is in memory."""
LOOK = 8.0
"""Deadline for reading a few files, in seconds."""
CALM = 10.0
"""Seconds between warnings that no thread can be started."""


class _Job(Generic[_T]):
    """A piece of work, and the future of its result."""

    def __init__(self, lane: "Lane", work: Callable[[], _T], *, due: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[_T] = self.loop.create_future()
        self.due = due
        """It must be done at some time, even if nobody waits for it any more."""
        self.to_the_end = False
        """Once it has begun, the caller waits for it without a deadline."""
        self.begun = self.over = self.hangs = False
        """Written under the pool's lock."""
        self.timer: asyncio.TimerHandle | None = None
        self.late: Callable[[_T], None] = put_away
        """Called with a result that comes after the deadline."""
        self._work = work
        self._lane = lane

    def run(self) -> None:
        """Do the work in the current thread."""
        result: Any = None
        failure: BaseException | None = None
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 -- passed to the caller
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
            self.loop.call_soon_threadsafe(self._settle, result, failure)

    def _settle(self, result: _T, failure: BaseException | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self._lane.ended(self)
        if isinstance(failure, OSError):
            failure = self._lane.failed(failure)
        if self.answer.done():
            if failure is None:
                self.late(result)
        elif failure is None:
            self.answer.set_result(result)
        else:
            self.answer.set_exception(failure)

    def refuse(self, error: Exception) -> None:
        """Raise an error for the caller, who no longer waits."""
        if not self.answer.done():
            self.answer.set_exception(error)
        if not (self.begun or self.due) and self.timer is not None:
            self.timer.cancel()


def put_away(result: object) -> None:
    """Close a result that its caller no longer waits for."""
    close = getattr(result, "close", None)
    if close is not None:
        close()


class Pool:
    """The threads of this process. All methods except `_serve` are called from event loops."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._waiting: collections.deque[_Job[Any]] = collections.deque()
        self._threads = self._idle = self._hung = 0
        self._missed, self._said = 0, -CALM

    def begin(self) -> None:
        """Start the first threads."""
        with self._wake, contextlib.suppress(RuntimeError):
            while self._threads < SPARE:
                self._grow()

    def put(self, job: _Job[Any]) -> None:
        """Queue a job; raises Failed where no thread can be started and none will become free."""
        with self._wake:
            self._waiting.append(job)
            if self._idle >= len(self._waiting):
                self._wake.notify()
            elif self._threads - min(self._hung, HUNG_MAX) < THREADS:
                try:
                    self._grow()
                except RuntimeError:
                    self._complain()
                    if self._threads == self._hung:
                        self._waiting.pop()
                        raise _no_thread() from None

    def withdraw(self, job: _Job[Any]) -> bool:
        """Remove a job from the queue; tell whether it had not begun."""
        with self._wake:
            if job.begun:
                return False
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)
            return True

    def hangs(self, job: _Job[Any]) -> bool:
        """Mark a job as hanging, and replace its thread; tell whether a thread is working on it at all."""
        with self._wake:
            if job.begun and not (job.over or job.hangs):
                job.hangs = True
                self._hung += 1
                if self._waiting and self._hung <= HUNG_MAX:
                    with contextlib.suppress(RuntimeError):
                        self._grow()
            return job.hangs

    def _grow(self) -> None:
        """Start a thread; raises RuntimeError where that is impossible."""
        self._threads += 1
        try:
            threading.Thread(target=self._serve, name="blocking", daemon=True).start()
        except BaseException:
            self._threads -= 1
            raise

    def _complain(self) -> None:
        self._missed += 1
        if time.monotonic() - self._said < CALM:
            return
        since = f" ({self._missed} times since the last such message)" if self._missed > 1 else ""
        log.warning("no thread can be started: a limit of processes is reached%s", since)
        self._said, self._missed = time.monotonic(), 0

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    if self._threads - self._hung > THREADS:  # hanging threads have recovered
                        self._threads -= 1
                        return
                    self._idle += 1
                    self._wake.wait()
                    self._idle -= 1
                job = self._waiting.popleft()
                job.begun = True
            job.run()
            with self._wake:
                job.over = True
                self._hung -= job.hangs
            del job  # this thread must not keep its references while it waits


POOL = Pool()


def _no_thread() -> Failed:
    return Failed("no thread can be started for this: a limit of processes is reached", hint=LIMITS)


async def call(function: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
    """Call a blocking function in a thread, and return its result.

    Raises:
        TimedOut: it takes longer than :data:`PATIENCE`; it continues.
        Failed: no thread can be started.
    """
    return await Lane("this host").aside(functools.partial(function, *arguments, **options), PATIENCE)


class Lane:
    """The blocking work on one thing, such as the files of a VM: in turn, or aside from the queue.

    While a piece of work hangs, further work is refused at once, because it would hang as well.
    """

    def __init__(self, what: str, hint: str | None = None) -> None:
        self._what = what
        self._hint = hint
        self._queue: collections.deque[_Job[Any]] = collections.deque()
        self._current: _Job[Any] | None = None
        self._hung: dict[_Job[Any], float] = {}

    async def aside(self, work: Callable[[], _T], patience: float = LOOK) -> _T:
        """Do work aside from the queue; raises TimedOut, Failed, and what the work raises."""
        self.check()
        job = _Job(self, work)
        POOL.put(job)
        self._watch(job, patience)
        return await self._answer(job)

    async def do(self, work: Callable[[], _T], patience: float = PATIENCE) -> _T:
        """Do work in turn; raises as :meth:`aside`. Work that has not begun by the deadline is dropped."""
        return await self._answer(self._put(_Job(self, work), patience))

    async def finish(self, work: Callable[[], _T], patience: float = PATIENCE) -> _T:
        """As :meth:`do`, but wait without a deadline for work that has begun."""
        job = _Job(self, work)
        job.to_the_end = True
        return await self._answer(self._put(job, patience))

    def begin(self, work: Callable[[], _T], patience: float = PATIENCE) -> "asyncio.Future[_T]":
        """As :meth:`do`, but queue the work at once and return the future of its result."""
        return self._put(_Job(self, work), patience).answer

    async def idle(self, patience: float) -> None:
        """Return when all queued work is done or hangs, or after `patience` seconds."""
        with contextlib.suppress(TimedOut, Failed):
            await self.do(lambda: None, patience)

    @contextlib.asynccontextmanager
    async def within(self, manager: contextlib.AbstractContextManager[_T]) -> AsyncIterator[_T]:
        """Enter and leave a blocking context manager; raises as :meth:`aside`."""
        entered = await self.aside(manager.__enter__)
        try:
            yield entered
        except BaseException as error:
            leave = functools.partial(manager.__exit__, type(error), error, error.__traceback__)
            if not await self.aside(leave):
                raise
        else:
            await self.aside(functools.partial(manager.__exit__, None, None, None))

    def see_to(
        self,
        work: Callable[[], _T],
        patience: float = LOOK,
        late: Callable[[_T], None] = lambda _result: None,
    ) -> "asyncio.Future[_T]":
        """Queue work that must be done, even while other work hangs; return the future of its result.

        The future raises TimedOut after `patience` seconds; `late` is called with a later result.
        """
        job = _Job(self, work, due=True)
        job.late = late
        self._queue.append(job)
        self._watch(job, 0.0 if self._hung else patience)
        self._go_on()
        return job.answer

    def _put(self, job: _Job[_T], patience: float) -> _Job[_T]:
        """Put a job into the queue."""
        self.check()
        self._queue.append(job)
        self._watch(job, patience)
        self._go_on()
        return job

    def check(self) -> None:
        """Raise TimedOut while a piece of the work hangs."""
        if self._hung:
            raise self._timed_out()

    def _timed_out(self) -> TimedOut:
        since = min(self._hung.values(), default=None)
        waited = "" if since is None else f" for {time.monotonic() - since:.0f} s"
        return TimedOut(f"{self._what} did not answer{waited}; the operation continues", hint=self._hint)

    async def _answer(self, job: _Job[_T]) -> _T:
        try:
            return await job.answer
        except asyncio.CancelledError:
            self._withdraw(job)
            raise

    def _watch(self, job: _Job[Any], patience: float) -> None:
        """Start the deadline of a job."""
        job.answer.add_done_callback(_hear)
        job.timer = job.loop.call_later(patience, self._overdue, job, patience)

    def _overdue(self, job: _Job[Any], patience: float) -> None:
        """Stop waiting for a job, unless its result is on the way."""
        if job.over:
            return
        if job.due or not self._withdraw(job):
            if POOL.hangs(job):
                self._hung.setdefault(job, time.monotonic() - patience)
            else:  # it has not begun, or has just ended
                job.timer = job.loop.call_later(max(patience, 1.0), self._overdue, job, patience)
        if not (job.begun and job.to_the_end):
            job.refuse(self._timed_out())

    def _withdraw(self, job: _Job[Any]) -> bool:
        """Drop a job; tell whether it had not begun."""
        if not POOL.withdraw(job):
            return False
        with contextlib.suppress(ValueError):
            self._queue.remove(job)
        if self._current is job:
            self._current = None
            self._go_on()
        return True

    def _go_on(self) -> None:
        """Begin the next job in the queue."""
        while self._current is None and self._queue:
            job = self._current = self._queue.popleft()
            try:
                POOL.put(job)
            except Failed as error:
                self._current = None
                job.refuse(error)
                if job.due:
                    self._queue.appendleft(job)
                    job.loop.call_later(1.0, self._go_on)
                    return

    def ended(self, job: _Job[Any]) -> None:
        """Note that a job has ended, and begin the next."""
        self._hung.pop(job, None)
        if self._current is job:
            self._current = None
            self._go_on()

    def failed(self, error: OSError) -> Failed:
        """Log an OSError that the work did not handle, and return the error for the caller."""
        log.warning("%s: %s", self._what, error)
        return Failed(f"{self._what}: {reason(error)}")


def _hear(answer: "asyncio.Future[Any]") -> None:
    """Retrieve the exception, in case nobody waits for it."""
    if not answer.cancelled():
        answer.exception()
