"""The verb wait: until a VM reaches a state, has an address, answers by SSH, or prints a text.

The watch begins before the first look, so no event is missed. Regular expressions are matched here and not in
the daemon, because a match that takes for ever would block others.
"""

from __future__ import annotations

import binascii
import select
import sys
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands.condition import ASK_EVERY, AnswersSSH, Condition
from vmessctl.commands.expression import Alarm, DeadlinePassed, compiled
from vmessctl.commands.quantities import seconds
from vmessctl.output.terminal import complain, emit, say, status_lines
from vmessctl.stream import Stream
from vmessd.core import names
from vmessd.core.errors import (
    DONE,
    INTERRUPTED,
    Failed,
    InvalidValue,
    NoSuchVM,
    NotRunning,
    TimedOut,
    VmessError,
    printable,
    quoted,
    shell_line,
    worst,
)
from vmessd.core.words import Kind, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Mapping
    from typing import Any

    from vmessctl.client import Reply

STATES = (State.running, State.stopped, State.paused)
CONDITIONS = "running, stopped, paused, addr, ssh or serial:REGEX"
SERIAL = "serial:"
LINE_LIMIT = 16 * 1024
"""Characters of a line that are searched: the last ones."""
WAITS_MAX = 40
"""VMs waited for at a time, each over its own connection; a user may have 48 such calls."""
ROUND = 0.25
"""Seconds after which other VMs get their turn, if there are more."""
PAUSED_TIME = 1.0
"""Seconds in which vmessd may say which VMs are paused."""
LINK_LOCAL_TIME = 3.0
"""Seconds to wait for a better address than a link-local one."""

# ECMA-48: control sequences, operating system commands, other escapes. Consoles use colours.
ESCAPES = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])"


class StateIs(Condition):
    """A VM is in a state."""

    def __init__(self, vm: str, wanted: str) -> None:
        super().__init__(vm)
        self._wanted = wanted
        self._state = ""

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Handle an event."""
        event = reply["event"]
        if event["event"] == Kind.removed:
            raise NoSuchVM(f"VM {self.vm} was removed during the wait", hint=f"{PROGRAM} {self.vm} make")
        if event["event"] in (Kind.now, Kind.state):
            self._state = event["state"]
        return {"text": self._state, "state": self._state} if self._state == self._wanted else None

    def missing(self) -> str:
        """Return what is still missing, for a message that begins with the VM."""
        return f"is {self._state or 'in an unknown state'}, not {self._wanted}"


class HasAddress(Condition):
    """The host knows an address of the guest."""

    method = "Addresses"
    more = False
    look = "addr"
    pause = ASK_EVERY

    def __init__(self, vm: str) -> None:
        super().__init__(vm)
        self._link_local_since: float | None = None

    def parameters(self) -> Mapping[str, object]:
        """Return the parameters of the call."""
        return {"vm": self.vm}

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Handle the addresses."""
        if reply.get("only_user", False) is None:
            raise Failed(f"VM {self.vm} has no interfaces", hint=f"{PROGRAM} {self.vm} ifadd 1 br0")
        if reply.get("only_user"):
            raise Failed(
                f"VM {self.vm} has only user networks, whose addresses the host cannot reach",
                hint=f"{PROGRAM} {self.vm} wait ssh; for another port: {PROGRAM} {self.vm} forward 0 8080:80",
            )
        known = [address for address in reply["addresses"] if address["known"]]
        known.sort(key=lambda address: (_is_link_local(address), ":" in address["address"]))
        if not known:
            return None
        best = known[0]
        if _is_link_local(best):
            self._link_local_since = self._link_local_since or time.monotonic()
            if time.monotonic() < self._link_local_since + LINK_LOCAL_TIME:
                return None
        return {"text": best["address"], "address": best}

    def missing(self) -> str:
        """Return what is still missing, for a message that begins with the VM."""
        return "has no address known to the host"


def _is_link_local(address: Reply) -> bool:
    return str(address["address"]).startswith("fe80:")


class Says(Condition):
    """The guest prints a match on its serial port."""

    method = "Serial"
    look = "console --log"

    def __init__(self, vm: str, pattern: re.Pattern[str], escapes: re.Pattern[str], alarm: Alarm) -> None:
        super().__init__(vm)
        self._pattern = pattern
        self._escapes = escapes
        self._alarm = alarm
        self.since: str | None = None
        """Where to begin: `start`, or the mark of the last piece; None is now."""
        self._line = b""

    def parameters(self) -> Mapping[str, object]:
        """Return the parameters of the call."""
        return {"vm": self.vm, "since": self.since}

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Handle output of the guest."""
        piece = reply["piece"]
        self.since = piece["mark"]
        if piece["gap"]:
            status_lines.clear()
            say(f"{self.vm}: some of its output is no longer in the log")
        for line in self._lines(binascii.a2b_base64(piece["data"])):
            for text in (line, self._escapes.sub("", line)):
                with self._alarm:
                    match = self._pattern.search(text)
                if match:
                    return {"text": printable(line), "line": line, "groups": list(match.groups())}
        if piece["ended"] is not None:
            raise NotRunning(
                f"VM {self.vm} ended without a match: {piece['ended']}", hint=f"{PROGRAM} {self.vm} why"
            )
        return None

    def _lines(self, data: bytes) -> Iterator[str]:
        """Yield the complete lines, and the beginning of the next one."""
        if not data:
            return
        *lines, self._line = (self._line + data).replace(b"\r", b"\n").split(b"\n")
        self._line = self._line[-LINE_LIMIT:]
        for line in (*lines, self._line):
            if line:
                yield line[-LINE_LIMIT:].decode(errors="backslashreplace")

    def missing(self) -> str:
        """Return what is still missing, for a message that begins with the VM."""
        return f"has not printed {quoted(self._pattern.pattern)}"


class _Wait:
    """The wait for one VM."""

    def __init__(self, invocation: Invocation, condition: Condition) -> None:
        self._invocation = invocation
        self.condition = condition
        self.status: int | None = None
        self._began = time.monotonic()
        self._ask_at: float | None = None
        self._stream: Stream | None = None

    def begin(self) -> None:
        """Make the call, if that has not been done."""
        if self._stream is None:
            call = self.condition
            try:
                self._stream = Stream(self._invocation, call.method, call.parameters, more=call.more)
            except VmessError as error:
                self.end(complain(error))

    def rest(self) -> bool:
        """Hang up after an answer, in favour of other VMs; tell whether that was done."""
        if self._stream is None or not self._stream.is_heard:
            return False
        self._stream.close()
        self._stream = self._ask_at = None
        return True

    def end(self, status: int) -> None:
        """End the wait with an exit status."""
        self.status = status
        self.condition.close()
        if self._stream is not None:
            self._stream.close()

    def fileno(self) -> int | None:
        """Return the descriptor to wait on, if there is one."""
        return self._stream.fileno() if self._stream is not None else None

    def limit(self) -> float | None:
        """Return the seconds until the next action without input; None for never."""
        if self._ask_at is not None:
            return max(0.0, self._ask_at - time.monotonic())
        return self._stream.limit() if self._stream is not None else None

    def line(self) -> str:
        """Return the status line."""
        return f"{self.condition.vm}: {self.condition.missing()} ({time.monotonic() - self._began:.0f} s)"

    def turn(self, *, ready: bool) -> None:
        """Query again if that is due, and handle replies."""
        if self._stream is None:
            return
        try:
            if self._ask_at is not None and not ready:
                if time.monotonic() >= self._ask_at:
                    self._ask_at = None
                    self._stream.ask()
                return
            self._ask_at = None
            for reply in self._stream.news(ready=ready):
                if self.condition.pause is not None:
                    self._ask_at = time.monotonic() + self.condition.pause
                if (met := self.condition.take(reply)) is not None:
                    self._report(met)
                    return
        except VmessError as error:
            status_lines.clear()
            self.end(complain(error))

    def _report(self, met: dict[str, Any]) -> None:
        status_lines.clear()
        vm, text = self.condition.vm, met.pop("text")
        if verbs.JSON.flag in self._invocation.options:
            emit(self._invocation, {"condition": self._invocation.arguments[0], **met}, vm)
        else:
            print(f"{vm}: {text}" if len(self._invocation.vms) > 1 else text, flush=True)
        self.end(DONE)


def run(invocation: Invocation) -> int:
    """Wait until VMs meet a condition, can no longer meet it, or the time is over; return the exit status."""
    timeout = seconds(invocation.options.get(verbs.TIMEOUT.flag))
    deadline = None if timeout is None else time.monotonic() + timeout
    alarm = Alarm(deadline)
    conditions = [_condition(invocation, vm, alarm) for vm in invocation.vms]
    waits = [_Wait(invocation, condition) for condition in conditions]
    pending = list(waits)
    try:
        if invocation.arguments[0] not in (State.stopped, State.paused):
            for wait in waits[:WAITS_MAX]:
                wait.begin()  # before anything else, so as to miss nothing
            _say_which_are_paused(invocation, min(PAUSED_TIME, timeout or PAUSED_TIME))
        while pending:
            pending = _go_round(pending, deadline)
    except DeadlinePassed:
        status_lines.clear()
    except KeyboardInterrupt:
        status_lines.leave()
        return INTERRUPTED
    for wait in waits:
        if wait.status is None:
            vm = wait.condition.vm
            words = f"timed out after {timeout:g} s: VM {vm} {wait.condition.missing()}"
            wait.end(complain(TimedOut(words, hint=f"{PROGRAM} {vm} {wait.condition.look}")))
    return worst([wait.status or DONE for wait in waits])


def _say_which_are_paused(invocation: Invocation, limit: float) -> None:
    """Say which VMs do nothing until somebody resumes them, if vmessd knows that within this many seconds."""
    known: dict[str, str] = {}
    try:
        client = connect(invocation)
        client.send("List", {})
        if select.select([client.fileno()], [], [], limit)[0]:
            known = {vm["name"]: vm["state"] for vm in client.receive()[0]["vms"]}
        client.close()
    except VmessError:
        return  # the waits say it
    for vm in map(names.parse, invocation.vms):
        if known.get(vm) == State.paused:
            say(
                f"{vm} is paused, so this waits until it is resumed: {shell_line([PROGRAM.name, vm, 'resume'])}"
            )


def _go_round(pending: list[_Wait], deadline: float | None) -> list[_Wait]:
    """Wait for a limited number of VMs, until it is the turn of others; return the unfinished waits."""
    asked, others = pending[:WAITS_MAX], pending[WAITS_MAX:]
    for wait in asked:
        wait.begin()
    end = time.monotonic() + ROUND if others else None
    while (asked := [wait for wait in asked if wait.status is None]) and (
        end is None or time.monotonic() < end
    ):
        _turn(asked, [*asked, *others], [moment for moment in (deadline, end) if moment is not None])
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlinePassed
    if not others:
        return asked
    rested = [wait for wait in asked if wait.rest()]
    return [*(wait for wait in asked if wait not in rested), *others, *rested]


def _turn(asked: list[_Wait], pending: list[_Wait], ends: list[float]) -> None:
    """Wait for the next input, at most until the first of `ends`, and handle it."""
    limits = [limit for wait in asked if (limit := wait.limit()) is not None]
    if sys.stderr.isatty():
        limits.append(1.0)
        status_lines.draw(*(wait.line() for wait in pending))
    limits += [max(0.0, end - time.monotonic()) for end in ends]
    fds = [fd for wait in asked if (fd := wait.fileno()) is not None]
    ready, _, _ = select.select(fds, [], [], min(limits, default=None))
    for wait in asked:
        fd = wait.fileno()
        wait.turn(ready=fd is not None and fd in ready)


def _condition(invocation: Invocation, vm: str, alarm: Alarm) -> Condition:
    """Return the condition that a command line names; raises InvalidValue."""
    import re  # noqa: PLC0415 -- slow to import, needed only here

    (word,) = invocation.arguments
    since_start = verbs.SINCE_START.flag in invocation.options
    if word == SERIAL:
        raise InvalidValue("wait serial: needs a regular expression", hint=f"{PROGRAM} {vm} wait serial:login:")
    if word.startswith(SERIAL):
        pattern = compiled(word.removeprefix(SERIAL), word)
        says = Says(vm, pattern, re.compile(ESCAPES), alarm)
        says.since = "start" if since_start else None
        return says
    if since_start:
        raise InvalidValue(f"{verbs.SINCE_START.flag} applies to {SERIAL}REGEX, not to {quoted(word)}")
    if word in STATES:
        return StateIs(vm, word)
    if word == "addr":
        return HasAddress(vm)
    if word == "ssh":
        return AnswersSSH(vm, invocation)
    raise InvalidValue(
        f"wait takes {CONDITIONS}, not {quoted(word)}", hint=f"usage: {invocation.command.usage()}"
    )
