"""The verbs start, stop and restart, which are followed until they finish."""

from __future__ import annotations

import select
import time

from vmessctl import client as wire
from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.commands.quantities import seconds
from vmessctl.output import rendering
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.terminal import advise, can_redraw, complain, emit, is_live, say, status_lines, tell, warn
from vmessd.core import quantities
from vmessd.core.errors import (
    DONE,
    FORCED,
    INTERRUPTED,
    AlreadyRunning,
    Failed,
    InvalidValue,
    NotRunning,
    TimedOut,
    VmessError,
    printable,
    shell_line,
    worst,
)
from vmessd.core.words import Reason, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmessctl.client import Reply

    _Show = Callable[["_Watch", Reply], int | None]


FOLLOWED_MAX = 100
"""VMs followed at a time, each over its own connection; a user may have some 200 connections."""


class _Watch:
    """The start or stop of one VM in progress."""

    def __init__(self, invocation: Invocation, vm: str, begun: Reply | None = None) -> None:
        """Connect to the daemon; `begun` is the last progress if it was begun before. Raises Unreachable."""
        self.vm = vm
        self.client = wire.connect(invocation)
        self.begun = self.progress = begun
        self.at = self.began = time.monotonic()
        self.status: int | None = None
        """The exit status once it is finished."""
        self.found: Reply | None = None
        """What the daemon says of the VM if a start finds it running."""
        self._method = invocation.command.method
        self._heard = self._force = False
        self._due = self.began + wire.ANSWER_TIME
        """Deadline of the daemon's first reply."""

    def ask(self, parameters: Mapping[str, object], show: _Show) -> None:
        """Make the call, or resume following it unless it has finished meanwhile."""
        self._force = bool(parameters.get("force"))
        try:
            if self.begun is not None:
                status = self._call_status()
                if status["pid"] != self.begun["pid"]:
                    self._take(_last_step(self.begun, status, force=self._force), show)
            if self.status is None:
                self.client.send(self._method, {"vm": self.vm, **parameters}, more=True)
        except VmessError as error:
            self._fail(error, show)

    def news(self, show: _Show) -> None:
        """Handle new replies."""
        try:
            self.client.fill()
            while self.status is None and self.client.pending():
                self._take(self._next(), show)
        except VmessError as error:
            self._fail(error, show)

    def _next(self) -> Reply:
        try:
            progress: Reply = self.client.receive()[0]["progress"]
        except NotRunning:
            if self.begun is None:
                raise
            return _last_step(self.begun, self._call_status(), force=self._force)
        return progress

    def _call_status(self) -> Reply:
        status: Reply = self.client.call("Status", vm=self.vm)["status"]
        return status

    def _take(self, progress: Reply, show: _Show) -> None:
        self.status = show(self, progress)
        self.progress, self.at, self._heard = progress, time.monotonic(), True
        if self.status is not None:
            self.client.close()

    def _fail(self, error: VmessError, show: _Show | None = None) -> None:
        """Finish with an error, unless it means that the VM is in the wanted state already."""
        status_lines.clear()
        try:
            reached = None if show is None else self._reached(error)
        except VmessError as failure:
            error, reached = failure, None
        if show is not None and reached is not None:
            self._take(reached, show)
        else:
            self.status = complain(error)
            self.client.close()

    def _reached(self, error: VmessError) -> Reply | None:
        """Return the last step of an operation that finds nothing to do; None if the error is another one."""
        if self._method == "Stop" and isinstance(error, NotRunning):
            nothing = {"pid": None, "rung": None, "elapsed": 0.0, "grace": 0.0, "forced": False, "note": None}
            return {"done": True, **nothing, "text": error.message, "already": True}
        if self._method == "Start" and isinstance(error, AlreadyRunning):
            status = self._call_status()
            if status["state"] in (State.running, State.paused):
                self.found = status
                last = {"done": True, "pid": status["pid"], "command": []}
                return {**last, "text": error.message, "already": True}
        return None

    def patience(self) -> float | None:
        """Return the seconds left for the daemon's first reply, None after it; fail when the time is over."""
        if self._heard or self.status is not None:
            return None
        left = self._due - time.monotonic()
        if left <= 0:
            self._fail(wire.silence())
        return left


def _last_step(begun: Reply, status: Reply, *, force: bool) -> Reply:
    """Return the last step of a stop that finished unobserved."""
    last = status["last_exit"]
    forced = not force and last is not None and last["reason"] == Reason.forced
    return {**begun, "done": True, "rung": None, "forced": forced, "text": last["text"] if last else None}


class _Round:
    """One operation on several VMs, of which a limited number is followed at a time."""

    def __init__(
        self, invocation: Invocation, parameters: Mapping[str, object], show: _Show, at_once: int
    ) -> None:
        self.waiting: list[str] = []
        self.watches: list[_Watch] = []
        self.begun: dict[str, Reply] = {}
        """VMs whose operation continues unobserved, and their last progress."""
        self._asked: list[str] = []
        self._invocation = invocation
        self._parameters = parameters
        self._show = show
        self._at_once = at_once

    def pending(self) -> list[_Watch]:
        """Return the VMs that are being followed."""
        return [watch for watch in self.watches if watch.status is None]

    def status(self) -> int:
        """Return the worst exit status."""
        return worst([watch.status or DONE for watch in self.watches])

    def done(self) -> list[str]:
        """Return the VMs whose operation was successful, by force or not."""
        return [watch.vm for watch in self.watches if watch.status in (DONE, FORCED)]

    def begin(self, vms: Sequence[str], deadline: float | None = None) -> None:
        """Begin the operation on more VMs and do not follow it; otherwise as :meth:`follow`."""
        self._go_on(vms, deadline, self._put_aside)

    def follow(self, vms: Sequence[str], deadline: float | None = None) -> None:
        """Begin the operation on more VMs; follow all until the end or the deadline. Raises Unreachable."""
        self._go_on(vms, deadline, lambda: None)

    def _go_on(self, vms: Sequence[str], deadline: float | None, heard: Callable[[], None]) -> None:
        self.waiting += vms
        self._ask()
        while pending := self.pending():
            limits = [left for watch in pending if (left := watch.patience()) is not None]
            if can_redraw():
                limits.append(1.0)
            if deadline is not None:
                limits.append(deadline - time.monotonic())
            tick = min(limits, default=None)
            if tick is None or tick > 0:
                ready, _, _ = select.select([watch.client for watch in pending], [], [], tick)
                for watch in pending:
                    if watch.client in ready:
                        watch.news(self._show)
            elif deadline is not None and time.monotonic() >= deadline:
                break
            heard()
            self._ask()
            status_lines.draw(*map(_status_line, self.pending()))
        status_lines.clear()

    def _ask(self) -> None:
        while self.waiting and len(self.pending()) < self._at_once:
            vm = self.waiting.pop(0)
            self._asked.append(vm)
            watch = _Watch(self._invocation, vm, self.begun.get(vm))
            self.watches.append(watch)
            self.begun.pop(vm, None)
            watch.ask(self._parameters, self._show)

    def _put_aside(self) -> None:
        for watch in self.pending():
            if watch.progress is not None:
                watch.client.close()
                self.watches.remove(watch)
                self.begun[watch.vm] = watch.progress

    def close(self) -> None:
        """Stop following."""
        for watch in self.watches:
            watch.client.close()

    def leave(self, what: str, undone: str) -> int:
        """After Ctrl-C, report which operations continue, and which were not requested."""
        status_lines.leave()
        over = {watch.vm for watch in self.watches if watch.status is not None}
        goes_on = []
        # The last one requested may have no watch yet.
        for vm in dict.fromkeys([*self.begun, *self._asked]):
            if vm not in over:
                warn(f"{PROGRAM}: the {what} of {vm} continues; to check: {PROGRAM} {vm} status")
                goes_on.append(vm)
        if goes_on and what == "stop" and not self._parameters.get("force"):
            advise(f"to kill it: {shell_line([PROGRAM.name, *goes_on, 'kill'])}")
        if left := [vm for vm in self.waiting if vm not in self.begun]:
            warn(f"{PROGRAM}: {undone}: {', '.join(left)}")
        return INTERRUPTED


def _status_line(watch: _Watch) -> tuple[str, str]:
    """Return the colour and the text of a VM's status line."""
    now = time.monotonic()
    progress = watch.progress
    if progress is None:
        return "", f"{watch.vm}: requested, {now - watch.began:.0f} s"
    elapsed = progress["elapsed"] + now - watch.at if "elapsed" in progress else now - watch.began
    return rendering.rung_colour(progress), f"{watch.vm}: {rendering.under_way(progress, elapsed)}"


def _tell(invocation: Invocation, vm: str, text: str) -> None:
    tell(about(vm, text, several=len(invocation.vms) > 1))


def start(invocation: Invocation) -> int:
    """Start VMs and wait until they run; return the exit status."""
    return _start(invocation, several=len(invocation.vms) > 1)


def _start(invocation: Invocation, *, several: bool) -> int:
    """Start VMs; `several`: each line is about one VM of several."""
    live = is_live(invocation)
    begun = "begun verbosely" if verbs.VERBOSE.flag in invocation.options else "begun"
    started = "started live" if live else "started"
    at_once = quantities.at_once(invocation.options.get(verbs.AT_ONCE.flag, str(quantities.AT_ONCE_MAX)))

    def show(watch: _Watch, progress: Reply) -> int | None:
        emit(invocation, {"progress": progress}, watch.vm)
        texts = []
        if watch.found is not None:
            texts.append(rendering.is_already(watch.found))
        elif watch.progress is None and progress["command"] and not live:
            texts.append(phrase(begun, command=shell_line(progress["command"])))
        if progress["done"] and watch.found is None:
            accel = rendering.accelerator(progress)
            texts.append(phrase(started, pid=progress["pid"], accel=accel))
        for text in filter(None, texts):
            status_lines.clear()
            tell(about(watch.vm, text, several=several))
        if progress.get("without_kvm"):
            _say_without_kvm(watch.vm, progress["without_kvm"])
        return DONE if progress["done"] else None

    vms = _Round(invocation, {}, show, at_once)
    try:
        vms.follow(invocation.vms)
    except KeyboardInterrupt:
        return vms.leave("start", "not started")
    finally:
        vms.close()
    return vms.status()


def _say_without_kvm(vm: str, why: Reply) -> None:
    """Say why a VM runs without KVM, and what may help."""
    say(phrase("without KVM", vm=vm, reason=printable(why["reason"])))
    if why["hint"]:
        say(f"  hint: {command(printable(why['hint']))}")


def stop(invocation: Invocation) -> int:
    """Stop VMs and wait until they are off; return the exit status."""
    if verbs.BY_LOCK.flag in invocation.options:
        from vmessctl.commands import monitor  # noqa: PLC0415 -- people do without

        began = time.monotonic()
        if not monitor.answers(invocation):
            return monitor.end(invocation, began)
    return _stop(invocation)[0]


def restart(invocation: Invocation) -> int:
    """Stop VMs, then start those that are off; return the exit status. One that cannot start keeps running."""
    refusals = _refusals(invocation)
    able = tuple(vm for vm in invocation.vms if vm not in refusals)
    statuses = [complain(_would_stay_off(vm, problem)) for vm, problem in refusals.items()]
    if not able:
        return worst(statuses)
    several = len(invocation.vms) > 1
    status, off = _stop(Invocation(invocation.command, able, invocation.arguments, invocation.options))
    if status == INTERRUPTED:
        warn(f"{PROGRAM}: not started again: {', '.join(able)}")
        return status
    statuses.append(status)
    if off:
        known = {flag: value for flag, value in invocation.options.items() if flag in _OF_START}
        again = Invocation(verbs.BY_VERB["start"], tuple(off), (), known)
        statuses.append(_start(again, several=several))
    return worst(statuses)


def _refusals(invocation: Invocation) -> dict[str, str]:
    """Return the running VMs that a start would refuse, and why. Raises Unreachable."""
    found: dict[str, str] = {}
    client = wire.connect(invocation)
    for vm in invocation.vms:
        if client.is_lost:
            break
        try:
            info = client.call("Info", vm=vm)["info"]
        except VmessError:  # the stop will say so
            continue
        if info["status"]["pid"] is not None and info["problem"]:
            found[vm] = info["problem"]
    client.close()
    return found


def _would_stay_off(vm: str, problem: str) -> Failed:
    return Failed(
        f"{vm} was not stopped, because it would not start again: {problem}",
        hint=f"to stop it all the same: {PROGRAM} {vm} stop",
    )


_OF_START = {option.flag for option in (*verbs.EVERYWHERE, verbs.JSON, verbs.AT_ONCE)}


def _stop(invocation: Invocation) -> tuple[int, list[str]]:
    """Stop VMs and wait until they are off; return the exit status and the VMs that are off."""
    timeout = seconds(invocation.options.get(verbs.TIMEOUT.flag))
    deadline = None if timeout is None else time.monotonic() + timeout
    no_wait = verbs.NO_WAIT.flag in invocation.options
    live = is_live(invocation) and not no_wait

    def show(watch: _Watch, progress: Reply) -> int | None:
        before = watch.progress
        if before and before is watch.begun and (before["rung"], False) == (progress["rung"], progress["done"]):
            return None  # it was resumed in the same step
        emit(invocation, {"progress": progress}, watch.vm)
        status_lines.clear()
        if progress["note"] and before is None:
            say(command(printable(progress["note"])))
        if progress.get("already"):
            _tell(invocation, watch.vm, phrase("already off", text=printable(progress["text"])))
        elif not live:
            _show_step(invocation, watch, progress)
        elif progress["done"] and not progress["forced"]:
            text = printable(progress["text"] or phrase("off", aside=""))
            _tell(invocation, watch.vm, phrase("stopped live", text=text))
        return _stop_status(watch, progress)

    vms = _Round(invocation, _manner(invocation), show, FOLLOWED_MAX)
    try:
        # With more VMs than can be followed, all grace periods begin now, not after those of others.
        vms.begin(invocation.vms[0 if no_wait else FOLLOWED_MAX :], deadline)
        if not no_wait:
            vms.follow([*invocation.vms[:FOLLOWED_MAX], *vms.begun], deadline)
    except KeyboardInterrupt:
        return vms.leave("stop", "not stopped"), []
    finally:
        vms.close()
    late = {watch.vm: watch.progress for watch in vms.pending()} | ({} if no_wait else vms.begun)
    statuses = [complain(_overdue(vm, progress, timeout)) for vm, progress in late.items()]
    statuses += [complain(_unasked(vm, timeout)) for vm in vms.waiting if vm not in vms.begun]
    return worst([vms.status(), *statuses]), vms.done()


def _manner(invocation: Invocation) -> dict[str, object]:
    """Return the parameters of a stop besides the VM; raises InvalidValue."""
    force, given = bool(invocation.arguments), invocation.options.get(verbs.GRACE.flag)
    if given is None:
        return {"force": force}
    if force:
        raise InvalidValue(f"force kills at once; {verbs.GRACE.flag} has no meaning with it")
    grace = seconds(given, verbs.GRACE, least=0.0)
    return {"force": False, "grace": grace}


def _show_step(invocation: Invocation, watch: _Watch, progress: Reply) -> None:
    """Print a step of a stop on its own line."""
    if watch.progress is None and progress["pid"]:
        asked = verbs.NO_WAIT.flag in invocation.options
        _tell(invocation, watch.vm, phrase("stop asked" if asked else "stopping", pid=progress["pid"]))
    elif not progress["done"]:
        say(f"{watch.vm}: {rendering.escalation(progress)}")
    if progress["done"] and not progress["forced"]:
        _tell(invocation, watch.vm, phrase("stopped"))


def _stop_status(watch: _Watch, progress: Reply) -> int | None:
    """Return the exit status at the end of a stop, None before the end."""
    if progress["done"] and progress["forced"]:
        how = f": {progress['rung']}" if progress["rung"] else ""
        warn(f"{watch.vm}: {phrase('forced', how=how)}")
        return FORCED
    return DONE if progress["done"] else None


def _overdue(vm: str, progress: Reply | None, timeout: float | None) -> TimedOut:
    rung = f" ({progress['rung']})" if progress else ""
    return TimedOut(
        f"VM {vm} did not stop within {timeout:g} s{rung}; the stop continues",
        hint=f"{PROGRAM} {vm} status, or to kill it: {PROGRAM} {vm} kill",
    )


def _unasked(vm: str, timeout: float | None) -> TimedOut:
    return TimedOut(f"VM {vm} was not asked to stop within {timeout:g} s", hint=f"{PROGRAM} {vm} stop")
