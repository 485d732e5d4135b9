"""The inbox of one VM: events, the requests behind them, and work on its files, in order."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import NoSuchVM, VmessError
from vmessd.core.lifecycle import Event
from vmessd.core.models.progress import StartProgress, StopProgress
from vmessd.storage import blocking
from vmessd.vm.launcher import Launched

_T = TypeVar("_T")
News = StartProgress | StopProgress | VmessError


@dataclass
class Request:
    """A request to start or stop. `news` receives the progress; the last item is done, or an error."""

    uid: int | None
    within: float | None = None
    """Limit of the grace period of a stop, in seconds."""
    grace: float | None = None
    """The grace period of a stop in seconds, in place of the setting."""
    memory: str = ""
    """The snapshot from whose memory a start lets the guest continue; empty if it boots."""
    news: asyncio.Queue[News] = dataclasses.field(default_factory=asyncio.Queue)


@dataclass
class EventMessage:
    """A lifecycle event and its data."""

    event: Event
    request: Request | None = None
    runstate: str | None = None
    error: VmessError | None = None
    launched: Launched | None = None
    of: object = None
    """The run, stop, attempt or pause that it belongs to, after which it is stale; None for never."""
    cause: "EventMessage | None" = None
    """Of `amiss`: the message whose handling failed."""

    def asker(self) -> Request:
        """Return the request; for an event without one, a request that nobody reads."""
        return self.request or Request(uid=None)


@dataclass
class Job:
    """Blocking work on the files of a VM, begun between two messages."""

    work: Callable[[], Any] | None
    """None to wait for the turn only."""
    patience: float
    """Seconds after which the caller gets TimedOut; work that has begun continues."""
    stopped: bool
    """The VM must be stopped."""
    done: asyncio.Future[Any]

    def take(self, answer: "asyncio.Future[Any]") -> None:
        """Pass the outcome of the work to the caller."""
        if answer.cancelled():
            self.done.cancel()
            return
        error = answer.exception()
        self.settle(None if error else answer.result(), error)

    def settle(self, result: object = None, error: BaseException | None = None) -> None:
        """Pass a result or an error to the caller; close a result for which the caller no longer waits."""
        if self.done.done():
            blocking.put_away(result)
            return
        if error is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(error)


class Inbox:
    """A queue of messages. Once closed, it refuses new ones."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._queue: asyncio.Queue[EventMessage | Job | None] = asyncio.Queue()
        self._closed = False

    async def get(self) -> EventMessage | Job | None:
        """Return the next message, None after the last."""
        return await self._queue.get()

    def post(self, event: Event, runstate: str | None = None, **more: Any) -> None:
        """Put an event without a request; `more` are fields of EventMessage. As :meth:`put`."""
        self.put(EventMessage(event, None, runstate, **more))

    def put(self, message: EventMessage) -> None:
        """Put a message that nobody waits for; a closed inbox drops it."""
        if not self._closed:
            self._queue.put_nowait(message)
        elif message.launched is not None:
            message.launched.process.close()

    async def ask(
        self,
        event: Event,
        uid: int | None,
        within: float | None = None,
        grace: float | None = None,
        memory: str = "",
    ) -> AsyncIterator[StartProgress | StopProgress]:
        """Put a request and yield its progress to the last; raises the error that it ends with."""
        request = Request(uid, within, grace, memory)
        self._put(EventMessage(event, request))
        while True:
            news = await request.news.get()
            if isinstance(news, VmessError):
                raise news
            yield news
            if news.done:
                return

    async def change(self, work: Callable[[], _T] | None, *, stopped: bool, patience: float) -> _T:
        """Put a job and return its result; raises TimedOut, and the errors of the work."""
        job = Job(work, patience, stopped, asyncio.get_running_loop().create_future())
        self._put(job)
        result: _T = await job.done
        return result

    def close(self) -> None:
        """Take no more messages; the reader gets those that are there, then None."""
        self._closed = True
        self._queue.put_nowait(None)

    def _put(self, message: EventMessage | Job) -> None:
        if self._closed:
            raise self._gone()
        self._queue.put_nowait(message)

    def _gone(self) -> NoSuchVM:
        return NoSuchVM(f"VM {self._vm} is gone", hint=f"vmess {self._vm} make")


def tell(requests: Sequence[Request], news: News) -> None:
    """Send the same news to several requests."""
    for request in requests:
        request.news.put_nowait(news)


def dismiss(requests: list[Request], news: News) -> None:
    """Send the last news to several requests, and clear the list."""
    told = list(requests)
    requests.clear()
    tell(told, news)
