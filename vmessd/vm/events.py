"""The events that `watch` shows: numbered, in order, and published without waiting for readers.

Nothing here reacts to an event. Each watcher has a bounded queue. One that does not read is dropped, without an
effect on the others.
Events that a guest can cause at any rate are published at once the first time, and then counted.
"""

import asyncio
import collections
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, quoted
from vmessd.core.lifecycle import State
from vmessd.core.models.events import Kind, VMEvent

QUEUE = 1024
"""Number of unread events after which a watcher is dropped."""
CALM = 1.0
"""Seconds in which the same event of one QEMU is published once, with a count."""


class Moment(NamedTuple):
    """A point in time, and the number of the last event before it."""

    number: int
    time: float
    monotonic: float

    def event(self, kind: Kind, vm: str, text: str, **more: Any) -> VMEvent:
        """Return an event; `more` are fields of VMEvent."""
        fields: dict[str, Any] = dict.fromkeys(("state", "before", "uid", "pid", "exit")) | {"count": 1}
        return VMEvent(*self, vm, kind, text, **(fields | more))

    def picture(self, kind: Kind, vm: str, text: str, state: State | None = None) -> VMEvent:
        """Return a description of the present state in the form of an event."""
        return self.event(kind, vm, text, state=state)


# The QMP events that are published (qapi/run-state.json, qapi/block-core.json), and which of their data.
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
    """A reader of events. Use as a context manager, and iterate over the events until it is closed."""

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
        """End the iteration; no more events arrive."""
        self._closed = True
        self._events.forget(self)
        self._news.set()

    def wants(self, vm: str) -> bool:
        """Tell whether the events of a VM are watched."""
        return not self._vms or vm in self._vms

    def put(self, event: VMEvent) -> None:
        """Add an event, or drop the watcher if its queue is full."""
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
        """Return the next event; raises Failed after the last one of a watcher that was dropped."""
        while not self._closed:
            if self._queue:
                return self._queue.popleft()
            if self._failure is not None:
                raise self._failure
            self._news.clear()
            await self._news.wait()
        raise StopAsyncIteration


@dataclass
class _Held:
    """A QMP event that was published just now, and how often it has arrived since."""

    count: int
    data: Mapping[str, Any]
    pid: int
    timer: asyncio.TimerHandle | None = None


class Events:
    """The publisher of events, and its watchers."""

    def __init__(self) -> None:
        self._number = 0
        self._watchers: set[Watcher] = set()
        self._held: dict[tuple[str, str], _Held] = {}

    def watch(self, vms: frozenset[str], dropped: Callable[[], None]) -> Watcher:
        """Return a watcher of these VMs, or of all if there are none; `dropped` is called if it is dropped."""
        watcher = Watcher(self, vms, dropped)
        self._watchers.add(watcher)
        return watcher

    def forget(self, watcher: Watcher) -> None:
        """Publish no more events to a watcher."""
        self._watchers.discard(watcher)

    def moment(self) -> "Moment":
        """Return the present moment."""
        return Moment(self._number, time.time(), time.monotonic())

    def publish(self, kind: Kind, vm: str, text: str, **more: Any) -> None:
        """Publish an event to the watchers of the VM; `more` are fields of VMEvent."""
        self._number += 1
        listeners = [watcher for watcher in self._watchers if watcher.wants(vm)]
        if listeners:
            event = self.moment().event(kind, vm, text, **more)
            for watcher in listeners:
                watcher.put(event)

    def qmp(self, vm: str, pid: int, name: str, data: Mapping[str, Any]) -> None:
        """Publish a QMP event, if `watch` shows it; repetitions within a second are counted."""
        if name not in _QMP_DATA or not self._watchers:
            return
        held = self._held.get((vm, name))
        if held is not None:
            held.count += 1
            held.data, held.pid = data, pid
            return
        self._publish_and_hold(vm, name, _Held(1, data, pid))

    def _publish_and_hold(self, vm: str, name: str, held: _Held) -> None:
        self.publish(Kind.qemu, vm, _qmp_text(name, held.data), pid=held.pid, count=held.count)
        held.count = 0
        held.timer = asyncio.get_running_loop().call_later(CALM, self._release, vm, name)
        self._held[vm, name] = held

    def _release(self, vm: str, name: str) -> None:
        """Publish the events that were held back, and continue to hold while they arrive."""
        held = self._held.pop((vm, name))
        if held.count:
            self._publish_and_hold(vm, name, held)

    def settle(self, vm: str) -> None:
        """Publish the events of a VM that were held back: its QEMU has ended."""
        for name in [name for holder, name in self._held if holder == vm]:
            held = self._held.pop((vm, name))
            if held.timer is not None:
                held.timer.cancel()
            if held.count:
                self.publish(Kind.qemu, vm, _qmp_text(name, held.data), pid=held.pid, count=held.count)
