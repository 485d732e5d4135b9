"""The verbs that take their time: a start or a stop is followed until it is over."""

from __future__ import annotations

import select
import time

from vmessctl import client as wire
from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.output import rendering
from vmessctl.output.terminal import complain, emit, is_live, may_move, moving, say, tell, warn
from vmessd.core import settings
from vmessd.core.errors import (
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
        self.at = self.began = time.monotonic()
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
    more: Callable[[], None] = lambda: None,
) -> list[_Watch]:
    """Follow several VMs until all are over or it is enough; return those that are not over.

    `more` is called whenever one may have come to its end, and adds those whose turn it is.
    """
    more()
    while (pending := [watch for watch in watches if watch.status is None]) and not enough():
        limits = [left for watch in pending if (left := watch.patience()) is not None]
        if may_move():
            limits.append(1.0)
        if deadline is not None:
            limits.append(deadline - time.monotonic())
        if min(limits, default=1.0) <= 0:
            if deadline is not None and time.monotonic() >= deadline:
                break
            more()
            continue
        tick = min(limits, default=None)
        ready, _, _ = select.select([watch.client for watch in pending], [], [], tick)
        for watch in pending:
            if watch.client in ready:
                watch.news(show)
        more()
        moving.draw(*(_moving(watch) for watch in watches if watch.status is None))
    moving.clear()
    return [watch for watch in watches if watch.status is None]


def _moving(watch: _Watch) -> tuple[str, str]:
    """Return what the moving line of a VM says, and its colour."""
    now = time.monotonic()
    progress = watch.progress
    if progress is None:
        return "", f"{watch.vm}: asked, {now - watch.began:.0f} s"
    elapsed = progress["elapsed"] + now - watch.at if "elapsed" in progress else now - watch.began
    return rendering.rung_colour(progress), f"{watch.vm}: {rendering.under_way(progress, elapsed)}"


def _prefix(invocation: Invocation, vm: str) -> str:
    return f"{vm}: " if len(invocation.vms) > 1 else ""


def start(invocation: Invocation) -> int:
    """Start VMs and follow them until they run; return the exit status."""
    live = is_live(invocation)
    at_once = settings.at_once(invocation.options.get(verbs.AT_ONCE.flag, str(settings.AT_ONCE_MAX)))
    waiting = list(invocation.vms)
    asked: list[str] = []
    watches: list[_Watch] = []

    def more() -> None:
        while waiting and len([watch for watch in watches if watch.status is None]) < at_once:
            asked.append(waiting.pop(0))
            watches.append(_Watch(invocation, asked[-1], {}))

    def show(watch: _Watch, progress: Reply) -> int | None:
        emit(invocation, {"progress": progress}, watch.vm)
        text = ""
        if live and progress["done"]:
            text = rendering.started(progress)
        elif not live and watch.progress is None and progress["command"]:
            text = rendering.starting(progress)
        if text:
            moving.clear()
            tell(_prefix(invocation, watch.vm) + text)
        return DONE if progress["done"] else None

    try:
        _follow(watches, show, lambda: False, more=more)
    except KeyboardInterrupt:
        status = _leave(watches, "start", asked)
        if waiting:
            warn(f"{PROGRAM}: not started: {', '.join(waiting)}")
        return status
    return worst([watch.status or DONE for watch in watches])


def stop(invocation: Invocation) -> int:
    """Stop VMs and follow them until they are off; return the exit status."""
    if invocation.arguments not in ((), ("force",)):
        raise InvalidValue(f"stop takes force or nothing, not {quoted(invocation.arguments[0])}")
    timeout = seconds(invocation.options.get(verbs.TIMEOUT.flag))
    deadline = None if timeout is None else time.monotonic() + timeout
    no_wait = verbs.NO_WAIT.flag in invocation.options
    live = is_live(invocation) and not no_wait

    def show(watch: _Watch, progress: Reply) -> int | None:
        emit(invocation, {"progress": progress}, watch.vm)
        moving.clear()
        if progress["note"] and watch.progress is None:
            say(printable(progress["note"]))
        if not live:
            _show_step(_prefix(invocation, watch.vm), watch, progress)
        elif progress["done"] and not progress["forced"]:
            tell(f"{watch.vm}: {printable(progress['text'] or 'VM not running')}")
        return _stop_status(watch, progress)

    force = bool(invocation.arguments)
    watches = [_Watch(invocation, vm, {"force": force}) for vm in invocation.vms]

    def enough() -> bool:
        return no_wait and all(watch.progress or watch.status is not None for watch in watches)

    try:
        pending = _follow(watches, show, enough, deadline)
    except KeyboardInterrupt:
        return _leave(watches, "stop")
    for watch in pending:
        watch.status = DONE if no_wait else complain(_overdue(watch, timeout))
    return worst([watch.status or DONE for watch in watches])


def _show_step(prefix: str, watch: _Watch, progress: Reply) -> None:
    """Show a step of a stop in a line of its own."""
    if watch.progress is None and progress["pid"]:
        tell(prefix + rendering.stopping(progress))
    elif not progress["done"]:
        say(f"{watch.vm}: {rendering.escalation(progress)}")


def _stop_status(watch: _Watch, progress: Reply) -> int | None:
    """Return the exit status at the end of a stop, None before."""
    if progress["done"] and progress["forced"]:
        warn(f"{watch.vm}: had to use force: {progress['rung']}")
        return FORCED
    return DONE if progress["done"] else None


def _overdue(watch: _Watch, timeout: float | None) -> TimedOut:
    rung = f" ({watch.progress['rung']})" if watch.progress else ""
    return TimedOut(
        f"VM {watch.vm} is not off after {timeout:g} s{rung}; the stop goes on",
        hint=f"{PROGRAM} {watch.vm} status",
    )


def seconds(text: str | None, option: verbs.Option = verbs.TIMEOUT) -> float | None:
    """Return the seconds that an option says, None where it says nothing; raises InvalidValue."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1e9:
        raise InvalidValue(f"{option.flag} {quoted(text)} is not a number of seconds above 0")
    return value


def _leave(watches: list[_Watch], what: str, asked: list[str] | tuple[()] = ()) -> int:
    """Say that what was begun goes on without us; of what was `asked` for, the last may have no watch yet."""
    moving.leave()
    followed = {watch.vm for watch in watches}
    going = [watch.vm for watch in watches if watch.status is None]
    for vm in [*going, *(vm for vm in asked if vm not in followed)]:
        warn(f"{PROGRAM}: the {what} of {vm} goes on; to see it: {PROGRAM} {vm} status")
    return INTERRUPTED
