"""What happens to VMs, as whoever watches is told: numbered, in order, and never waiting for a reader.

Each watcher has a queue with a bound; one that does not read is dropped there, and nobody else notices.
What a guest can cause as often as it likes is told at once the first time, and then counted.
"""

import asyncio
import collections
import dataclasses
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from vmessd.core.errors import Failed, quoted
from vmessd.core.lifecycle import State
from vmessd.core.models.events import Kind, VMEvent

QUEUE = 1024
"""Events a watcher may leave unread."""
CALM = 1.0
"""Seconds in which the same event of one QEMU is told once, and how often it came."""


class Moment(NamedTuple):
    """When something is told of."""

    number: int
    """Of the last event there was."""
    time: float
    monotonic: float

    def event(self, kind: Kind, vm: str, text: str, **more: Any) -> VMEvent:
        """Return an event; `more` are fields of VMEvent."""
        fields: dict[str, Any] = dict.fromkeys(("state", "before", "uid", "pid", "exit")) | {"count": 1}
        return VMEvent(*self, vm, kind, text, **(fields | more))

    def picture(self, kind: Kind, vm: str, text: str, state: State | None = None) -> VMEvent:
        """Return what is no event but how things were then."""
        return self.event(kind, vm, text, state=state)


# What of QMP is told (qapi/run-state.json, qapi/block-core.json), and which of its data.
_QMP_DATA: Mapping[str, tuple[str, ...]] = {
    "STOP": (),
    "RESUME": (),
    "SUSPEND": (),
    "WAKEUP": (),
    "RESET": ("reason",),
    "SHUTDOWN": ("reason",),
    "POWERDOWN": (),
    "WATCHDOG": ("action",),
    "GUEST_PANICKED": ("action",),
    "BLOCK_IO_ERROR": ("node-name", "operation", "action", "reason"),
}


def _qmp_text(name: str, data: Mapping[str, Any]) -> str:
    words = [f"{key} {quoted(data[key], 200)}" for key in _QMP_DATA[name] if data.get(key)]
    return f"{name}{': ' if words else ''}{', '.join(words)}"


class Watcher:
    """Somebody who is told. Use as a context manager; iterate over what happens, until it is closed."""

    def __init__(self, events: "Events", vms: frozenset[str], dropped: Callable[[], None]) -> None:
        self._events = events
        self._vms = vms
        self._dropped = dropped
        self._queue: collections.deque[VMEvent] = collections.deque()
        self._news = asyncio.Event()
        self._failure: Failed | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Be told nothing more; the iteration ends."""
        self._closed = True
        self._events.forget(self)
        self._news.set()

    def wants(self, vm: str) -> bool:
        """Tell whether events of a VM are watched."""
        return not self._vms or vm in self._vms

    def put(self, event: VMEvent) -> None:
        """Add an event, or drop the watcher that has not read those before."""
        if len(self._queue) < QUEUE:
            self._queue.append(event)
        else:
            words = f"this watch was dropped: {QUEUE} events were waiting to be read"
            self._failure = Failed(words, hint="read faster, or watch fewer VMs")
            self._events.forget(self)
            self._dropped()
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> VMEvent:
        """Return the next event; raises Failed behind the last one of a watcher that was dropped."""
        while not self._closed:
            if self._queue:
                return self._queue.popleft()
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        raise StopAsyncIteration


@dataclasses.dataclass
class _Held:
    """An event of QEMU's that was told just now, and how often it came since."""

    count: int
    data: Mapping[str, Any]
    pid: int
    timer: asyncio.TimerHandle | None = None


class Events:
    """Where everything that happens is told, and everybody who watches."""

    def __init__(self) -> None:
        self._number = 0
        self._watchers: set[Watcher] = set()
        self._held: dict[tuple[str, str], _Held] = {}

    def watch(self, vms: frozenset[str], dropped: Callable[[], None]) -> Watcher:
        """Return a watcher of these VMs, of all where there are none; `dropped` is called if it is."""
        watcher = Watcher(self, vms, dropped)
        self._watchers.add(watcher)
        return watcher

    def forget(self, watcher: Watcher) -> None:
        """Tell a watcher nothing more."""
        self._watchers.discard(watcher)

    def moment(self) -> "Moment":
        """Return this moment, to tell of how things are at it."""
        return Moment(self._number, time.time(), time.monotonic())

    def publish(self, kind: Kind, vm: str, text: str, **more: Any) -> None:
        """Tell all who watch the VM; `more` are fields of VMEvent."""
        self._number += 1
        listeners = [watcher for watcher in self._watchers if watcher.wants(vm)]
        if listeners:
            event = self.moment().event(kind, vm, text, **more)
            for watcher in listeners:
                watcher.put(event)

    def qmp(self, vm: str, pid: int, name: str, data: Mapping[str, Any]) -> None:
        """Tell of an event of QEMU's, if it is worth it; what comes again within a second is counted."""
        if name not in _QMP_DATA or not self._watchers:
            return
        held = self._held.get((vm, name))
        if held is not None:
            held.count += 1
            held.data, held.pid = data, pid
            return
        self._tell_and_hold(vm, name, _Held(1, data, pid))

    def _tell_and_hold(self, vm: str, name: str, held: _Held) -> None:
        self.publish(Kind.qemu, vm, _qmp_text(name, held.data), pid=held.pid, count=held.count)
        held.count = 0
        held.timer = asyncio.get_running_loop().call_later(CALM, self._release, vm, name)
        self._held[vm, name] = held

    def _release(self, vm: str, name: str) -> None:
        """Tell what was held back, and go on holding as long as it comes."""
        held = self._held.pop((vm, name))
        if held.count:
            self._tell_and_hold(vm, name, held)

    def settle(self, vm: str) -> None:
        """Tell all that was held back of a QEMU: it has ended."""
        for name in [name for holder, name in self._held if holder == vm]:
            held = self._held.pop((vm, name))
            if held.timer is not None:
                held.timer.cancel()
            if held.count:
                self.publish(Kind.qemu, vm, _qmp_text(name, held.data), pid=held.pid, count=held.count)
