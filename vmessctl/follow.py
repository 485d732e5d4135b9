"""The verbs that take their time: a start or a stop is followed until it is over."""

from __future__ import annotations

import select
import sys
import time

from vmessctl import client as wire
from vmessctl import commands, render
from vmessctl.commands import PROGRAM, Invocation
from vmessctl.console import complain, moving, say
from vmessd.errors import (
    DONE,
    FORCED,
    INTERRUPTED,
    InvalidValue,
    TimedOut,
    VmessError,
    printable,
    quoted,
    worst,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmessctl.client import Reply


class _Watch:
    """One VM's start or stop as it goes on."""

    def __init__(self, invocation: Invocation, vm: str, parameters: dict[str, object]) -> None:
        self.vm = vm
        self.client = wire.connect(invocation)
        self.progress: Reply | None = None
        self.at = 0.0
        self.status: int | None = None
        """Exit status once it is over."""
        self.client.send(invocation.command.method, {"vm": vm, **parameters}, more=True)
        self.due = time.monotonic() + wire.ANSWER_TIME
        """When the daemon has to have answered for the first time."""

    def news(self, show: Callable[[_Watch, Reply], int | None]) -> None:
        """Take in what has arrived."""
        try:
            self.client.fill()
            while self.status is None and self.client.pending():
                reply, _ = self.client.receive()
                status = show(self, reply["progress"])
                self.progress, self.at = reply["progress"], time.monotonic()
                self.status = status
        except VmessError as error:
            moving.clear()
            self.status = complain(error)
        if self.status is not None:
            self.client.close()

    def patience(self) -> float | None:
        """Return the seconds the daemon still has for its first answer; give it up when there are none."""
        if self.progress is not None or self.status is not None:
            return None
        left = self.due - time.monotonic()
        if left <= 0:
            moving.clear()
            self.status = complain(wire.silence())
            self.client.close()
        return left


def _follow(
    watches: list[_Watch],
    show: Callable[[_Watch, Reply], int | None],
    enough: Callable[[], bool],
    deadline: float | None = None,
) -> list[_Watch]:
    """Follow several VMs until all are over or it is enough; return those that are not over."""
    while (pending := [watch for watch in watches if watch.status is None]) and not enough():
        limits = [left for watch in pending if (left := watch.patience()) is not None]
        if sys.stderr.isatty():
            limits.append(1.0)
        if deadline is not None:
            limits.append(deadline - time.monotonic())
        if min(limits, default=1.0) <= 0:
            if deadline is not None and time.monotonic() >= deadline:
                break
            continue
        tick = min(limits, default=None)
        ready, _, _ = select.select([watch.client for watch in pending], [], [], tick)
        for watch in pending:
            if watch.client in ready:
                watch.news(show)
        moving.draw(_moving([watch for watch in watches if watch.status is None and watch.progress]))
    moving.clear()
    return [watch for watch in watches if watch.status is None]


def _moving(watches: list[_Watch]) -> str:
    """Return what the moving line says: the first VM's rung, and how many more there are."""
    if not watches or watches[0].progress is None or "rung" not in watches[0].progress:
        return ""
    first = watches[0]
    progress = watches[0].progress
    more = f" (and {len(watches) - 1} more)" if len(watches) > 1 else ""
    elapsed = progress["elapsed"] + time.monotonic() - first.at
    return f"{first.vm}: {render.rung(progress, elapsed)}{more}"


def _prefix(invocation: Invocation, vm: str) -> str:
    return f"{vm}: " if len(invocation.vms) > 1 else ""


def start(invocation: Invocation) -> int:
    """Start VMs and follow them until they run; return the exit status."""

    def show(watch: _Watch, progress: Reply) -> int | None:
        if watch.progress is None and progress["command"]:
            print(_prefix(invocation, watch.vm) + render.starting(progress), flush=True)
        return DONE if progress["done"] else None

    watches = [_Watch(invocation, vm, {}) for vm in invocation.vms]
    try:
        _follow(watches, show, lambda: False)
    except KeyboardInterrupt:
        return _leave(watches, "start")
    return worst([watch.status or DONE for watch in watches])


def stop(invocation: Invocation) -> int:
    """Stop VMs and follow them until they are off; return the exit status."""
    if invocation.arguments not in ((), ("force",)):
        raise InvalidValue(f"stop takes force or nothing, not {quoted(invocation.arguments[0])}")
    timeout = seconds(invocation.options.get(commands.TIMEOUT.flag))
    deadline = None if timeout is None else time.monotonic() + timeout

    def show(watch: _Watch, progress: Reply) -> int | None:
        if progress["note"] and watch.progress is None:
            say(printable(progress["note"]))
        return _show_stop(_prefix(invocation, watch.vm), watch, progress)

    force = bool(invocation.arguments)
    watches = [_Watch(invocation, vm, {"force": force}) for vm in invocation.vms]
    no_wait = commands.NO_WAIT.flag in invocation.options

    def enough() -> bool:
        return no_wait and all(watch.progress or watch.status is not None for watch in watches)

    try:
        pending = _follow(watches, show, enough, deadline)
    except KeyboardInterrupt:
        return _leave(watches, "stop")
    for watch in pending:
        watch.status = DONE if no_wait else complain(_overdue(watch, timeout))
    return worst([watch.status or DONE for watch in watches])


def _show_stop(prefix: str, watch: _Watch, progress: Reply) -> int | None:
    """Show a step of a stop; return the exit status at its end."""
    moving.clear()
    if watch.progress is None and progress["pid"]:
        print(prefix + render.stopping(progress), flush=True)
    elif not progress["done"]:
        say(f"{watch.vm}: {render.escalation(progress)}")
    if not progress["done"]:
        return None
    if progress["forced"]:
        say(f"{watch.vm}: had to use force: {progress['rung']}")
        return FORCED
    return DONE


def _overdue(watch: _Watch, timeout: float | None) -> TimedOut:
    rung = f" ({watch.progress['rung']})" if watch.progress else ""
    return TimedOut(
        f"VM {watch.vm} is not off after {timeout:g} s{rung}; the stop goes on",
        hint=f"{PROGRAM} {watch.vm} status",
    )


def seconds(text: str | None) -> float | None:
    """Return what --timeout says, None where it says nothing; raises InvalidValue."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1e9:
        raise InvalidValue(f"{commands.TIMEOUT.flag} {quoted(text)} is not a number of seconds above 0")
    return value


def _leave(watches: list[_Watch], what: str) -> int:
    """Say that what was begun goes on without us."""
    moving.clear()
    for watch in watches:
        if watch.status is None:
            say(f"{PROGRAM}: the {what} of {watch.vm} goes on; to see it: {PROGRAM} {watch.vm} status")
    return INTERRUPTED
