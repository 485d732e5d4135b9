"""What reaches one VM, in order: events, the requests behind them, and work on its files."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from vmessd.core.errors import NoSuchVM, VmessError
from vmessd.core.lifecycle import Event
from vmessd.core.models.progress import StartProgress, StopProgress
from vmessd.vm.launcher import Launched

_T = TypeVar("_T")
News = StartProgress | StopProgress | VmessError


@dataclasses.dataclass
class Request:
    """Somebody's wish to start or stop; `news` gets the steps, at last a done one or an error."""

    uid: int | None
    within: float | None = None
    """Of a stop: the most grace the guest has, in seconds, whatever its own is."""
    news: asyncio.Queue[News] = dataclasses.field(default_factory=asyncio.Queue)


@dataclasses.dataclass
class EventMessage:
    """A lifecycle event and what came with it."""

    event: Event
    request: Request | None = None
    runstate: str | None = None
    error: VmessError | None = None
    launched: Launched | None = None
    of: object = None
    """What it belongs to, such as a run or a stop: it counts as long as the VM has that. None: always."""
    cause: "EventMessage | None" = None
    """Of what is amiss: the event that was being handled."""

    def asker(self) -> Request:
        """Return who asked; an event of QEMU's own has nobody, and nobody is told."""
        return self.request or Request(uid=None)


@dataclasses.dataclass
class Job:
    """Blocking work on the VM's files, done between two happenings."""

    work: Callable[[], Any] | None
    """None where only the turn is waited for."""
    patience: float
    """Seconds it may take; what was begun goes on then, and whoever asked is told."""
    stopped: bool
    """The VM has to be stopped for it."""
    done: asyncio.Future[Any]

    def take(self, answer: "asyncio.Future[Any]") -> None:
        """Tell whoever waits what came of the work."""
        if answer.cancelled():
            self.done.cancel()
            return
        error = answer.exception()
        self.settle(None if error else answer.result(), error)

    def settle(self, result: object = None, error: BaseException | None = None) -> None:
        """Tell whoever waits, if they still do."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(result)
        else:
            self.done.set_exception(error)


class Inbox:
    """A queue that, once closed, refuses what comes too late instead of keeping it for ever."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._queue: asyncio.Queue[EventMessage | Job | None] = asyncio.Queue()
        self._closed = False

    async def get(self) -> EventMessage | Job | None:
        """Return the next message, None when there will be no more."""
        return await self._queue.get()

    def post(self, event: Event, runstate: str | None = None, **more: Any) -> None:
        """Put an event that nobody asked for; `more` are fields of EventMessage. As :meth:`put`."""
        self.put(EventMessage(event, None, runstate, **more))

    def put(self, message: EventMessage) -> None:
        """Put what nobody waits for; dropped where the inbox is closed."""
        if not self._closed:
            self._queue.put_nowait(message)
        elif message.launched is not None:
            message.launched.process.close()

    async def ask(
        self, event: Event, uid: int | None, within: float | None = None
    ) -> AsyncIterator[StartProgress | StopProgress]:
        """Put a request and yield its news until the last; raises the error it ends with."""
        request = Request(uid, within)
        self._put(EventMessage(event, request))
        while True:
            news = await request.news.get()
            if isinstance(news, VmessError):
                raise news
            yield news
            if news.done:
                return

    async def change(self, work: Callable[[], _T] | None, *, stopped: bool, patience: float) -> _T:
        """Put a job and return its result; raises what the work raises, TimedOut."""
        job = Job(work, patience, stopped, asyncio.get_running_loop().create_future())
        self._put(job)
        result: _T = await job.done
        return result

    def close(self) -> None:
        """Let the reader come to an end."""
        self._closed = True
        self._queue.put_nowait(None)

    def _put(self, message: EventMessage | Job) -> None:
        if self._closed:
            raise self._gone()
        self._queue.put_nowait(message)

    def _gone(self) -> NoSuchVM:
        return NoSuchVM(f"VM {self._vm} is gone", hint=f"vmess {self._vm} make")


def tell(requests: Sequence[Request], news: News) -> None:
    """Give several askers the same news."""
    for request in requests:
        request.news.put_nowait(news)


def dismiss(requests: list[Request], news: News) -> None:
    """Give several askers their last news, and forget them."""
    told = list(requests)
    requests.clear()
    tell(told, news)
