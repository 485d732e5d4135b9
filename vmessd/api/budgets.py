"""Budgets of users: calls in progress, unread replies, and time of the event loop. One account for each uid.

All connections of a user share the account, so more connections do not give a user more. A user over a limit
waits; others do not notice.
"""

import asyncio
import collections
import contextlib
import fcntl
import socket
import struct
import termios
import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any, NamedTuple, TypeVar

from vmessd.core.contract import Cost, Method
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, counted, failing

_T = TypeVar("_T")

PATIENCE = 20.0
"""Seconds that a call waits for its place before it is refused; less than a client waits for an answer."""
LEFT_TIME = 0.25
"""Seconds that a query keeps its place after its client has left, because its thread cannot be cancelled."""
LOOK_AGAIN = 0.05
"""Seconds between checks whether a client has received the descriptors that it was sent."""
SAVINGS = 0.2
"""Maximum loop time that a user can save up and then use without a pause, in seconds."""
ROUND = 0.005
"""Seconds after which other users get their turn in any case."""
ENOUGH = 0.003
"""Loop time that a waiting user gets at once, in seconds; most single steps are shorter than a pause."""
STEPS_MAX = 32
"""Maximum steps that are released at once."""
DEBT_MAX = 0.5
"""Maximum debt of a user in seconds of loop time, so that they are served soon after they become calm."""


class Limits(NamedTuple):
    """The limits of one user, for all clients together."""

    clients: int
    places: dict[Cost, int]
    """Calls in progress, for each cost."""
    unsent: int
    """Bytes of unread replies; above this no further call begins."""
    descriptors: int
    """Descriptors sent but not received yet: the kernel counts them as ours (ETOOMANYREFS, unix(7))."""
    share: float
    """Share of the event loop's time, which all users in debt divide among them."""
    changes: int
    """Logged calls in one burst."""
    pace: float
    """Logged calls per second after a burst."""


def _limits(times: int, *, clients: int, share: float, pace: float) -> Limits:
    """Return limits, with calls and bytes as multiples of those of a group member."""
    places = {Cost.look: 8, Cost.change: 16, Cost.fleet: 2, Cost.endless: 48}
    return Limits(
        clients=clients,
        places={cost: times * number for cost, number in places.items()} | {Cost.follow: clients},
        unsent=times * 8 * 1024 * 1024,
        descriptors=48,
        share=share,
        changes=times * 500,
        pace=pace,
    )


PASSED_MAX = 32
"""Descriptors that a user may have passed along with calls, for all clients together."""

MEMBER = _limits(1, clients=240, share=0.5, pace=10.0)
OWN = _limits(4, clients=256, share=0.9, pace=1000.0)
"""The limits of root and of the daemon's own user."""


class Share:
    """A user's share of the event loop's time; a user who exceeds it waits before each step."""

    def __init__(self, part: float, in_debt: "set[Share]") -> None:
        self._part = part
        self._in_debt = in_debt
        """The shares of all users who wait for a turn; they divide the share of one user among them."""
        self._balance = SAVINGS
        self._round = 0.0
        """Time spent in this iteration of the event loop."""
        self._usual = ROUND
        """Moving average of the time of a step."""
        self._at = time.monotonic()
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._timer: asyncio.TimerHandle | None = None

    def charge(self, seconds: float) -> None:
        """Charge time that was spent, in seconds."""
        if not self._round:
            asyncio.get_running_loop().call_soon(self._next_round)
        self._round += seconds
        self._usual += (seconds - self._usual) / 16
        self._balance = max(-DEBT_MAX, self._balance - seconds)

    def is_calm(self) -> bool:
        """Tell whether nobody waits for a turn, and the savings are full."""
        return not self._waiting and self._earn() >= SAVINGS

    def _next_round(self) -> None:
        self._round = 0.0

    def _may_step(self) -> bool:
        return self._earn() > 0 and self._round < ROUND

    def _earn(self) -> float:
        """Add what was earned since the last call, and return the balance."""
        now = time.monotonic()
        earned = (now - self._at) * self._part / max(1, len(self._in_debt))
        self._at, self._balance = now, min(SAVINGS, self._balance + earned)
        return self._balance

    def is_due(self) -> bool:
        """Tell whether the next step may be taken at once."""
        return not self._waiting and self._may_step()

    def turn(self) -> asyncio.Future[None]:
        """Return a future that is done when the next step may be taken."""
        self._in_debt.add(self)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._arm()
        return waiter

    def _arm(self) -> None:
        if self._timer is None and self._waiting:
            balance = self._earn()
            seconds = 0.0 if balance > 0 else (ENOUGH - balance) * len(self._in_debt) / self._part
            self._timer = asyncio.get_running_loop().call_later(seconds, self._next)

    def _next(self) -> None:
        self._timer = None
        if self._may_step():
            steps = min(STEPS_MAX, max(1, int(ROUND / max(self._usual, 1e-6))))
            while self._waiting and steps:
                waiter = self._waiting.popleft()
                if not waiter.done():
                    waiter.set_result(None)
                    steps -= 1
            if not self._waiting:
                self._in_debt.discard(self)
        self._arm()


@types.coroutine
def metered(work: Coroutine[Any, Any, _T], share: Share, *, waits: bool) -> Generator[Any, Any, _T]:
    """Run a coroutine on a user's account: each step is charged, and waits for the user's turn.

    With `waits` False only the first step waits: others may need what a change holds until it is done.
    """
    answer: Any = None
    error: BaseException | None = None
    due = share.is_due()
    while True:
        if not due:
            try:
                yield from share.turn().__await__()
            except asyncio.CancelledError as cancelled:
                error = cancelled
        began = time.monotonic()
        try:
            wanted = work.send(answer) if error is None else work.throw(error)
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            share.charge(time.monotonic() - began)
        answer = error = None
        try:
            answer = yield wanted
        except BaseException as raised:  # noqa: BLE001 -- passed to the coroutine
            error = raised
        due = error is not None or not waits or share.is_due()


def beside(share: Share, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Start a task of a call, on the account of its user."""

    async def run() -> _T:
        result: _T = await metered(work, share, waits=True)
        return result

    task = asyncio.get_running_loop().create_task(run())
    task.add_done_callback(lambda _: work.close())  # for a task that is cancelled before its first step
    return task


@dataclass(eq=False)
class _Handed:
    """Descriptors that were sent to a client, or will be."""

    connection: socket.socket
    socket: socket.socket
    """A duplicate of the connection's socket, which outlives the connection: unread data remain in transit."""
    count: int
    sent: bool = False

    def is_on_its_way(self) -> bool:
        """Tell whether the client has unread data (SIOCOUTQ, unix(7)); a client that is gone has none."""
        if not self.sent:
            return True
        unread = fcntl.ioctl(self.socket, termios.TIOCOUTQ, struct.pack("i", 0))
        return unread != bytes(len(unread))


class Account:
    """The account of one user."""

    def __init__(self, uid: int, limits: Limits, in_debt: set[Share]) -> None:
        self.uid = uid
        self.limits = limits
        self.clients = 0
        self.passed = 0
        """Descriptors that came with calls."""
        self.share = Share(limits.share, in_debt)
        self._places = {cost: asyncio.Semaphore(number) for cost, number in limits.places.items()}
        self.looks = self._places[Cost.look]
        self._unsent = 0
        self._taken = asyncio.Event()
        self._handed: list[_Handed] = []
        self._changes = float(limits.changes)
        self._counted_at = time.monotonic()

    # -- Replies --

    def queued(self, size: int) -> None:
        """Note a queued reply of `size` bytes."""
        self._unsent += size

    def taken(self, size: int) -> None:
        """Note that a reply was read, or never will be."""
        self._unsent -= size
        self._taken.set()

    def may_pass(self) -> bool:
        """Tell whether one more descriptor may come with a call."""
        return self.passed < PASSED_MAX

    def descriptors(self) -> int:
        """Return the number of descriptors in transit, and forget those that have arrived."""
        for handed in [handed for handed in self._handed if not handed.is_on_its_way()]:
            self._handed.remove(handed)
            handed.socket.close()
        return sum(handed.count for handed in self._handed)

    def is_calm(self) -> bool:
        """Tell whether the account equals a new one: nothing is in progress, and all budgets are full."""
        taken = self.clients or self.passed or self._unsent or self.descriptors()
        free = all(
            not places.locked() and places._value == self.limits.places[cost]  # noqa: SLF001 -- not public
            for cost, places in self._places.items()
        )
        return not taken and free and self._allowance() >= self.limits.changes and self.share.is_calm()

    def close(self) -> None:
        """Forget all descriptors in transit."""
        while self._handed:
            self._handed.pop().socket.close()

    # -- Calls --

    @contextlib.asynccontextmanager
    async def place(
        self, method: Method, connection: socket.socket, left: Callable[[], bool] = lambda: False
    ) -> AsyncIterator["Place"]:
        """Wait for a place for a call, and hold it for a `with` block.

        Raises:
            Failed: no place becomes free in time, or the client has `left`.
        """
        place = Place(self, method)
        try:
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._wait(place, connection, left)
            except TimeoutError:
                raise self._refusal(place) from None
            yield place
        except asyncio.CancelledError:
            place.leave(LEFT_TIME)
            raise
        finally:
            place.leave()

    async def _wait(self, place: "Place", connection: socket.socket, left: Callable[[], bool]) -> None:
        method = place.method
        if method.cost is Cost.endless and self._places[Cost.endless].locked():
            raise self._refusal(place)
        await place.take(self._places[method.cost])
        if method.cost is Cost.endless:
            place.beginning = self.looks
            await place.take(place.beginning)
        while self._unsent > self.limits.unsent:
            place.waits_for = f"it has {counted(self._unsent, 'byte')} of unread replies"
            self._taken.clear()
            await self._taken.wait()
        while method.descriptors and not self._may_hand(method.descriptors, connection):
            place.waits_for = f"it has {self.descriptors()} unread descriptors"
            await asyncio.sleep(LOOK_AGAIN)
        if method.descriptors:
            with failing("no descriptor can be passed"):
                place.handed = _Handed(connection, connection.dup(), method.descriptors)
            self._handed.append(place.handed)
        if method.is_noted:
            place.waits_for = f"it makes more than {self.limits.pace:g} changes a second"
            if seconds := self._change(place):
                if left():
                    raise self._refusal(place)
                await asyncio.sleep(seconds)

    def _may_hand(self, number: int, connection: socket.socket) -> bool:
        """Tell whether `number` more descriptors may be sent to a client; it must have read earlier ones."""
        if self.descriptors() + number > self.limits.descriptors:
            return False
        return all(handed.connection is not connection for handed in self._handed)

    def _change(self, place: "Place") -> float:
        """Count a change, and return the seconds until it may be made; raises Failed if that is too long."""
        wait = max(0.0, (1 - self._allowance()) / self.limits.pace)
        if wait > PATIENCE:
            raise self._refusal(place)
        self._changes -= 1
        return wait

    def _allowance(self) -> float:
        """Return how many changes may be made at once now."""
        now = time.monotonic()
        earned = self._changes + (now - self._counted_at) * self.limits.pace
        self._changes, self._counted_at = min(float(self.limits.changes), earned), now
        return self._changes

    def _refusal(self, place: "Place") -> Failed:
        number = self.limits.places[place.method.cost]
        why = place.waits_for or f"it has {number} such calls in progress"
        return Failed(
            f"uid {self.uid} has exceeded its budget: {why}; this call was not begun",
            hint="wait for the calls in progress, or end them",
        )


class Place:
    """A place that a call holds or waits for."""

    def __init__(self, account: Account, method: Method) -> None:
        self._account = account
        self.method = method
        self.waits_for = ""
        """What it waits for, other than the number of calls."""
        self.handed: _Handed | None = None
        self.beginning: asyncio.Semaphore | None = None
        """The places of queries, of which an endless call holds one until its first reply."""
        self._has: list[asyncio.Semaphore] = []

    async def take(self, places: asyncio.Semaphore) -> None:
        """Wait for one of `places`, and take it."""
        await places.acquire()
        self._has.append(places)

    def begun(self) -> None:
        """Note that an endless call has had its first reply; later ones are cheap."""
        if self.beginning is not None:
            self._has.remove(self.beginning)
            self.beginning.release()
            self.beginning = None

    def handed_over(self) -> None:
        """Note that its descriptors were sent, and now count until they have arrived."""
        if self.handed is not None:
            self.handed.sent = True
            self.handed = None
            self._account.descriptors()

    def leave(self, after: float = 0.0) -> None:
        """Release everything; the place of a query `after` so many seconds."""
        self.handed_over()
        has, self._has = self._has, []
        for places in has:
            if after and places is self._account.looks:
                asyncio.get_running_loop().call_later(after, places.release)
            else:
                places.release()


class Budget:
    """All accounts."""

    def __init__(self, own: frozenset[int]) -> None:
        self._own = own
        self._accounts: dict[int, Account] = {}
        self._in_debt: set[Share] = set()

    def account(self, uid: int) -> Account:
        """Return a user's account, which outlives their connections."""
        if uid not in self._accounts:
            limits = OWN if uid in self._own else MEMBER
            self._accounts[uid] = Account(uid, limits, self._in_debt)
        return self._accounts[uid]

    def close(self) -> None:
        """Close all accounts."""
        for account in self._accounts.values():
            account.close()

    def tidy(self) -> None:
        """Forget descriptors that have arrived, and accounts of users who have left.

        A user may have many uids, subuid(5), and each would otherwise keep an account.
        """
        self._accounts = {uid: account for uid, account in self._accounts.items() if not account.is_calm()}
