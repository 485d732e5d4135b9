"""Work that blocks, in threads that nobody has to wait for.

A file system can hang: a dead file server, a failing disk, fsfreeze(8). A thread that waits for one cannot be
cancelled, and often not even be killed. So whoever asks for such work has a deadline here; a thread that hangs
takes nobody's place; and the threads are daemons, which a process that ends leaves behind.
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
"""Threads that work at once. Few would let slow disks hold up the others."""
HUNG_MAX = 448
"""Threads besides that may hang."""
SPARE = 4
"""Threads there are from the beginning: they serve when no others are to be had."""
PATIENCE = 30.0
"""Seconds that work may take where nobody says otherwise."""
LOOK = 8.0
"""The same for a look at a few files."""
CALM = 10.0
"""Seconds in which it is said once that no thread is to be had, and how often since."""


class _Job(Generic[_T]):
    """A piece of work, and who waits for it."""

    def __init__(self, lane: "Lane", work: Callable[[], _T], *, due: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[_T] = self.loop.create_future()
        self.due = due
        """It is done some time, also when nobody waits any more."""
        self.to_the_end = False
        """Once begun it is waited for, however long it takes."""
        self.begun = self.over = self.hangs = False
        """Written under the pool's lock."""
        self.timer: asyncio.TimerHandle | None = None
        self.late: Callable[[_T], None] = _put_away
        """What is done with a result that comes too late for whoever asked."""
        self._work = work
        self._lane = lane

    def run(self) -> None:
        """Do it; in a thread."""
        result: Any = None
        failure: BaseException | None = None
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 -- handed to whoever asked
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
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
        """Tell whoever waits that they need not."""
        if not self.answer.done():
            self.answer.set_exception(error)
        if not (self.begun or self.due) and self.timer is not None:
            self.timer.cancel()


def _put_away(result: object) -> None:
    """Close what was opened for somebody who has gone."""
    close = getattr(result, "close", None)
    if close is not None:
        close()


class Pool:
    """The threads of this process. All but `_serve` is for event loops to call."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._waiting: collections.deque[_Job[Any]] = collections.deque()
        self._threads = self._idle = self._hung = 0
        self._missed, self._said = 0, -CALM

    def begin(self) -> None:
        """Have some threads in store."""
        with self._wake, contextlib.suppress(RuntimeError):
            while self._threads < SPARE:
                self._grow()

    def put(self, job: _Job[Any]) -> None:
        """Have a job done; raises Failed where there is no thread for it now and none to come."""
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
        """Have a job not done any more; tell whether that was in time."""
        with self._wake:
            if job.begun:
                return False
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)
            return True

    def hangs(self, job: _Job[Any]) -> bool:
        """Count on a job's thread no longer; tell whether it has the job at all."""
        with self._wake:
            if job.begun and not (job.over or job.hangs):
                job.hangs = True
                self._hung += 1
                if self._waiting and self._hung <= HUNG_MAX:
                    with contextlib.suppress(RuntimeError):
                        self._grow()
            return job.hangs

    def _grow(self) -> None:
        """Start a thread; raises RuntimeError where none is to be had."""
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
        since = f" ({self._missed} times since this was last said)" if self._missed > 1 else ""
        log.warning("no thread is to be had: a limit of processes is reached%s", since)
        self._said, self._missed = time.monotonic(), 0

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    if self._threads - self._hung > THREADS:  # what hung has come back
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
            del job  # with what it holds, while this thread waits for the next


POOL = Pool()


def _no_thread() -> Failed:
    return Failed("no thread is to be had for it: a limit of processes is reached", hint=LIMITS)


async def call(function: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
    """Call what blocks in a thread, and return what it returns.

    Raises:
        TimedOut: it takes longer than :data:`PATIENCE`; what was begun goes on.
        Failed: no thread is to be had.
    """
    return await Lane("this host").aside(functools.partial(function, *arguments, **options), PATIENCE)


class Lane:
    """The blocking work on one thing, such as a VM's files: in turn, or aside from that.

    While a piece of it hangs, what is asked for besides is refused at once: it would hang, too.
    """

    def __init__(self, what: str, hint: str | None = None) -> None:
        self._what = what
        self._hint = hint
        self._queue: collections.deque[_Job[Any]] = collections.deque()
        self._current: _Job[Any] | None = None
        self._hung: dict[_Job[Any], float] = {}

    async def aside(self, work: Callable[[], _T], patience: float = LOOK) -> _T:
        """Do work that needs no turn; raises TimedOut, Failed, and what the work raises."""
        self.check()
        job = _Job(self, work)
        POOL.put(job)
        self._watch(job, patience)
        return await self._answer(job)

    async def do(self, work: Callable[[], _T], patience: float = PATIENCE) -> _T:
        """Do work in turn; raises as :meth:`aside`. What has not begun when the patience is over will not."""
        return await self._answer(self._put(_Job(self, work), patience))

    async def finish(self, work: Callable[[], _T], patience: float = PATIENCE) -> _T:
        """As :meth:`do`, but work that has begun is waited for, also when it hangs."""
        job = _Job(self, work)
        job.to_the_end = True
        return await self._answer(self._put(job, patience))

    def begin(self, work: Callable[[], _T], patience: float = PATIENCE) -> "asyncio.Future[_T]":
        """As :meth:`do`, for whoever does not wait here: its place is taken at once."""
        return self._put(_Job(self, work), patience).answer

    async def idle(self, patience: float) -> None:
        """Return when all that was asked for in turn is done, or hangs, or after so many seconds."""
        with contextlib.suppress(TimedOut, Failed):
            await self.do(lambda: None, patience)

    @contextlib.asynccontextmanager
    async def within(self, manager: contextlib.AbstractContextManager[_T]) -> AsyncIterator[_T]:
        """Enter and leave a context manager that blocks; raises as :meth:`aside`."""
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
        """Have work done in turn whatever hangs now; return its outcome, TimedOut after `patience` seconds.

        `late` is called with a result that comes after that.
        """
        job = _Job(self, work, due=True)
        job.late = late
        self._queue.append(job)
        self._watch(job, 0.0 if self._hung else patience)
        self._go_on()
        return job.answer

    def _put(self, job: _Job[_T], patience: float) -> _Job[_T]:
        """Give a job its place."""
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
        return TimedOut(f"{self._what} did not answer{waited}; what was begun goes on", hint=self._hint)

    async def _answer(self, job: _Job[_T]) -> _T:
        try:
            return await job.answer
        except asyncio.CancelledError:
            self._withdraw(job)
            raise

    def _watch(self, job: _Job[Any], patience: float) -> None:
        """Let a job's patience begin."""
        job.answer.add_done_callback(_hear)
        job.timer = job.loop.call_later(patience, self._overdue, job, patience)

    def _overdue(self, job: _Job[Any], patience: float) -> None:
        """Let nobody wait for a job any longer, unless its result is on the way."""
        if job.over:
            return
        if job.due or not self._withdraw(job):
            if POOL.hangs(job):
                self._hung.setdefault(job, time.monotonic() - patience)
            else:  # it is not its turn yet, or it is over just now
                job.timer = job.loop.call_later(max(patience, 1.0), self._overdue, job, patience)
        if not (job.begun and job.to_the_end):
            job.refuse(self._timed_out())

    def _withdraw(self, job: _Job[Any]) -> bool:
        """Have a job not done any more; tell whether that was in time."""
        if not POOL.withdraw(job):
            return False
        with contextlib.suppress(ValueError):
            self._queue.remove(job)
        if self._current is job:
            self._current = None
            self._go_on()
        return True

    def _go_on(self) -> None:
        """Begin with the next job that waits for its turn."""
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
        """Note that a job is over, and begin with the next."""
        self._hung.pop(job, None)
        if self._current is job:
            self._current = None
            self._go_on()

    def failed(self, error: OSError) -> Failed:
        """Return what is told of a failure that nobody put into words where it happened."""
        log.warning("%s: %s", self._what, error)
        return Failed(f"{self._what}: {reason(error)}")


def _hear(answer: "asyncio.Future[Any]") -> None:
    """Take note of a failure that nobody may wait for."""
    if not answer.cancelled():
        answer.exception()
