"""Carries out what a command line asks for: talks to the daemon, shows progress, asks questions.

Data go to standard output, everything else to standard error; what moves, moves on a terminal only.
"""

import json
import os
import select
import sys
import time
from collections.abc import Callable

from vmessctl import client as wire
from vmessctl import commands, render
from vmessctl.client import Client, Reply, candidates
from vmessctl.commands import PROGRAM, Invocation
from vmessd import __version__
from vmessd.errors import (
    DONE,
    FORCED,
    INTERRUPTED,
    AlreadyRunning,
    InvalidValue,
    NotRunning,
    TimedOut,
    VmessError,
    printable,
    quoted,
    worst,
)

Handler = Callable[[Invocation], int]


def say(text: str) -> None:
    """Print what is no data."""
    print(text, file=sys.stderr)


def complain(error: VmessError) -> int:
    """Print an error and its hint, a line each; return the exit status."""
    say(f"{PROGRAM}: {error.message}")
    if error.hint:
        say(f"  hint: {error.hint}")
    return error.status


def run(words: list[str]) -> int:
    """Carry out a command line and return its exit status; raises VmessError."""
    invocation = commands.parse(words)
    if commands.VERSION.flag in invocation.options:
        print(f"{PROGRAM} {__version__}")
        return DONE
    return HANDLERS[invocation.command.verb](invocation)


def _connect(invocation: Invocation) -> Client:
    return Client(candidates(invocation.options.get(commands.SOCKET.flag), os.environ))


def _for_each(invocation: Invocation, work: Callable[[Client, str], int]) -> int:
    """Do the same for every VM over one connection; each is reported, the worst status wins."""
    client = _connect(invocation)
    statuses = []
    for vm in invocation.vms:
        try:
            statuses.append(work(client, vm))
        except VmessError as error:
            statuses.append(complain(error))
    client.close()
    return worst(statuses)


def _show(invocation: Invocation, reply: Reply, text: Callable[[Reply], str], vm: str = "") -> None:
    if commands.JSON.flag in invocation.options:
        print(json.dumps(reply))
    elif len(invocation.vms) > 1:
        print("\n".join(f"{vm}: {line}" for line in text(reply).splitlines()))
    else:
        print(text(reply))


# -- Verbs that ask once --


def _help(invocation: Invocation) -> int:
    print(commands.help_text(*invocation.arguments))
    return DONE


def _list(invocation: Invocation) -> int:
    client = _connect(invocation)
    _show(invocation, client.call("List"), render.listing)
    client.close()
    return DONE


def _status(invocation: Invocation) -> int:
    def work(client: Client, vm: str) -> int:
        reply = client.call("Status", vm=vm)
        _show(invocation, reply, render.status, vm)
        return NotRunning.status if reply["status"]["state"] == "stopped" else DONE

    return _for_each(invocation, work)


def _info(invocation: Invocation) -> int:
    def work(client: Client, vm: str) -> int:
        _show(invocation, client.call("Info", vm=vm), render.info, vm)
        return DONE

    return _for_each(invocation, work)


def _make(invocation: Invocation) -> int:
    def work(client: Client, vm: str) -> int:
        print(render.made(client.call("Make", vm=vm)))
        return DONE

    return _for_each(invocation, work)


def _set(invocation: Invocation) -> int:
    verb, (text,) = invocation.command.verb, invocation.arguments
    value: str | None = text
    if text == "none":
        value = None
    elif verb == "cdrom":
        value = _absolute(text)

    def work(client: Client, vm: str) -> int:
        note = client.call("Set", vm=vm, setting=verb, value=value)["note"]
        if note:
            say(printable(note))
        return DONE

    return _for_each(invocation, work)


def _absolute(path: str) -> str:
    """Return a path as the caller's directory makes it; `..` behind a link is left to the kernel."""
    if not path:
        raise InvalidValue("cdrom '' is no path; it has to be that of an ISO image, or none")
    try:
        joined = os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        raise InvalidValue(f"cdrom {quoted(path)} is relative to a directory that is gone") from None
    return joined if ".." in joined.split("/") else os.path.normpath(joined)


def _remove(invocation: Invocation) -> int:
    sure = commands.YES.flag in invocation.options
    if not sure and not sys.stdin.isatty():
        raise InvalidValue("rm deletes all files of a VM and nobody is there to be asked", hint="add --yes")

    def work(client: Client, vm: str) -> int:
        info = client.call("Info", vm=vm)["info"]
        if info["status"]["state"] != "stopped":
            raise AlreadyRunning(
                f"VM {vm} is running; it has to be stopped for this", hint=f"{PROGRAM} {vm} stop"
            )
        if not sure and not _agreed(vm, info):
            say(f"{vm} is left as it is")
            return 1
        client.call("Remove", vm=vm)
        return DONE

    return _for_each(invocation, work)


def _agreed(vm: str, info: Reply) -> bool:
    images = [drive["slot"] for drive in info["drives"] if drive["slot"] != "cdrom"]
    what = f" with {', '.join(images)}" if images else ""
    sys.stderr.write(f"Delete {vm}{what}, all of {printable(info['directory'])}? [y/N] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        say("")
        raise
    if not answer:
        say("")
    return answer.strip().lower() in ("y", "yes")


# -- Verbs that take their time --


class _Watch:
    """One VM's start or stop as it goes on."""

    def __init__(self, invocation: Invocation, vm: str, parameters: dict[str, object]) -> None:
        self.vm = vm
        self.client = _connect(invocation)
        self.progress: Reply | None = None
        self.at = 0.0
        self.status: int | None = None
        """Exit status once it is over."""
        self.client.send(invocation.command.method, {"vm": vm, **parameters}, more=True)
        self.due = time.monotonic() + wire.ANSWER_TIME
        """When the daemon has to have answered for the first time."""

    def news(self, show: "Callable[[_Watch, Reply], int | None]") -> None:
        """Take in what has arrived."""
        try:
            self.client.fill()
            while self.status is None and self.client.pending():
                reply, _ = self.client.receive()
                status = show(self, reply["progress"])
                self.progress, self.at = reply["progress"], time.monotonic()
                self.status = status
        except VmessError as error:
            _line.clear()
            self.status = complain(error)
        if self.status is not None:
            self.client.close()

    def patience(self) -> float | None:
        """Return the seconds the daemon still has for its first answer; give it up when there are none."""
        if self.progress is not None or self.status is not None:
            return None
        left = self.due - time.monotonic()
        if left <= 0:
            _line.clear()
            self.status = complain(wire.silence())
            self.client.close()
        return left


class _Line:
    """A line at the bottom of a terminal that is drawn over and over; nothing elsewhere."""

    def __init__(self) -> None:
        self._drawn = False

    def draw(self, text: str) -> None:
        if sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\x1b[K{text[: max(width - 1, 10)]}")
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


_line = _Line()


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
        _line.draw(_moving([watch for watch in watches if watch.status is None and watch.progress]))
    _line.clear()
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


def _start(invocation: Invocation) -> int:
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


def _stop(invocation: Invocation) -> int:
    if invocation.arguments not in ((), ("force",)):
        raise InvalidValue(f"stop takes force or nothing, not {quoted(invocation.arguments[0])}")
    timeout = _seconds(invocation.options.get(commands.TIMEOUT.flag))
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
    _line.clear()
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


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 1e9:
        raise InvalidValue(f"{commands.TIMEOUT.flag} {quoted(text)} is not a number of seconds above 0")
    return seconds


def _leave(watches: list[_Watch], what: str) -> int:
    """Say that what was begun goes on without us."""
    _line.clear()
    for watch in watches:
        if watch.status is None:
            say(f"{PROGRAM}: the {what} of {watch.vm} goes on; to see it: {PROGRAM} {watch.vm} status")
    return INTERRUPTED


HANDLERS: dict[str, Handler] = {
    "list": _list,
    "help": _help,
    "make": _make,
    "start": _start,
    "stop": _stop,
    "status": _status,
    "info": _info,
    "rm": _remove,
    **{command.verb: _set for command in commands.COMMANDS if command.method == "Set"},
}
