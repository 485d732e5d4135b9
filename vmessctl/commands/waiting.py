"""The verb wait: until a VM is as it is to be, or says what it is to say.

What is waited for is watched first and looked at then, so that nothing falls between the two. A regular
expression is matched here and not in the daemon: one that never comes to an end holds up nobody else.
"""

from __future__ import annotations

import binascii
import select
import sys
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.commands.power import seconds
from vmessctl.output.terminal import complain, emit, moving, say
from vmessctl.stream import Stream
from vmessd.core.errors import (
    DONE,
    INTERRUPTED,
    InvalidValue,
    NoSuchVM,
    NotRunning,
    TimedOut,
    VmessError,
    printable,
    quoted,
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
CONDITIONS = "running, stopped, paused, addr or serial:REGEX"
SERIAL = "serial:"
LINE_LIMIT = 16 * 1024
"""Characters of a line that are looked at: its last ones."""
ASK_EVERY = 0.5
"""Seconds between two questions about addresses: the host's tables tell nobody when they change."""
TOGETHER = 40
"""VMs that are asked about at a time, each over a connection of its own; a user may have 48 such calls."""
ROUND = 0.25
"""Seconds after which it is the turn of others, where there are more."""
LINK_LOCAL_TIME = 3.0
"""Seconds in which a better address than a link-local one may turn up."""

# ECMA-48: control sequences, operating system commands, other escapes. Consoles colour their words.
ESCAPES = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])"


class _Late(Exception):
    """The time is up in the middle of a match."""


class Alarm:
    """Raises _Late in what is inside when the time is up: a match may take for ever."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline

    def __enter__(self) -> None:
        if self._deadline is not None:
            import signal  # noqa: PLC0415 -- it takes its time, and not all need it

            signal.signal(signal.SIGALRM, _late)
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, self._deadline - time.monotonic()))

    def __exit__(self, *_: object) -> None:
        if self._deadline is not None:
            import signal  # noqa: PLC0415 -- as above

            signal.setitimer(signal.ITIMER_REAL, 0)


def _late(_number: int, _frame: object) -> None:
    raise _Late


class Condition:
    """What is waited for, of one VM."""

    method = "Watch"
    more = True
    pause: float | None = None
    """Seconds after an answer until the question is put again."""
    look = "status"
    """The verb that shows how far it is."""

    def __init__(self, vm: str) -> None:
        self.vm = vm

    def parameters(self) -> Mapping[str, object]:
        """Return those of the call."""
        return {"vms": [self.vm]}

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Take in a reply; return what has come true, with the line for people as `text`, or nothing yet.

        Raises:
            VmessError: it cannot come true any more.
        """
        raise NotImplementedError

    def missing(self) -> str:
        """Return what is not so yet."""
        raise NotImplementedError


class StateIs(Condition):
    """A VM's state."""

    def __init__(self, vm: str, wanted: str) -> None:
        super().__init__(vm)
        self._wanted = wanted
        self._state = ""

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Take in an event."""
        event = reply["event"]
        if event["event"] == Kind.removed:
            raise NoSuchVM(
                f"VM {self.vm} was removed while it was waited for", hint=f"{PROGRAM} {self.vm} make"
            )
        if event["event"] in (Kind.now, Kind.state):
            self._state = event["state"]
        return {"text": self._state, "state": self._state} if self._state == self._wanted else None

    def missing(self) -> str:
        """Return what is not so yet."""
        return f"is not {self._wanted}, but {self._state or 'unknown'}"


class HasAddress(Condition):
    """An address of a guest."""

    method = "Addresses"
    more = False
    look = "addr"
    pause = ASK_EVERY

    def __init__(self, vm: str) -> None:
        super().__init__(vm)
        self._link_local_since: float | None = None

    def parameters(self) -> Mapping[str, object]:
        """Return those of the call."""
        return {"vm": self.vm}

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Take in what addresses there are."""
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
        """Return what is not so yet."""
        return "has no address that the host knows and reaches"


def _is_link_local(address: Reply) -> bool:
    return str(address["address"]).startswith("fe80:")


class Says(Condition):
    """Words of a guest on its serial port."""

    method = "Serial"
    look = "console --log"

    def __init__(self, vm: str, pattern: re.Pattern[str], escapes: re.Pattern[str], alarm: Alarm) -> None:
        super().__init__(vm)
        self._pattern = pattern
        self._escapes = escapes
        self._alarm = alarm
        self.since: str | None = None
        """From where on: `start`, or the mark of a piece; None is now."""
        self._line = b""

    def parameters(self) -> Mapping[str, object]:
        """Return those of the call."""
        return {"vm": self.vm, "since": self.since}

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Take in what was printed."""
        piece = reply["piece"]
        self.since = piece["mark"]
        if piece["gap"]:
            moving.clear()
            say(f"{self.vm}: some of what it printed is not in its log any more")
        for line in self._lines(binascii.a2b_base64(piece["data"])):
            for text in (line, self._escapes.sub("", line)):
                with self._alarm:
                    match = self._pattern.search(text)
                if match:
                    return {"text": printable(line), "line": line, "groups": list(match.groups())}
        if piece["ended"] is not None:
            raise NotRunning(
                f"VM {self.vm} has ended without saying it: {piece['ended']}", hint=f"{PROGRAM} {self.vm} why"
            )
        return None

    def _lines(self, data: bytes) -> Iterator[str]:
        """Yield the lines that have come to their end, and what is there of the next one."""
        if not data:
            return
        *lines, self._line = (self._line + data).replace(b"\r", b"\n").split(b"\n")
        self._line = self._line[-LINE_LIMIT:]
        for line in (*lines, self._line):
            if line:
                yield line[-LINE_LIMIT:].decode(errors="backslashreplace")

    def missing(self) -> str:
        """Return what is not so yet."""
        return f"has not said {quoted(self._pattern.pattern)}"


class _Wait:
    """One VM that is waited for."""

    def __init__(self, invocation: Invocation, condition: Condition) -> None:
        self._invocation = invocation
        self.condition = condition
        self.status: int | None = None
        self._began = time.monotonic()
        self._ask_at: float | None = None
        self._stream: Stream | None = None

    def begin(self) -> None:
        """Ask about it, if that was not done yet."""
        if self._stream is None:
            call = self.condition
            try:
                self._stream = Stream(self._invocation, call.method, call.parameters, more=call.more)
            except VmessError as error:
                self.end(complain(error))

    def rest(self) -> bool:
        """Hang up, if there was an answer: others have their turn; tell whether it was done."""
        if self._stream is None or not self._stream.is_heard:
            return False
        self._stream.close()
        self._stream = self._ask_at = None
        return True

    def end(self, status: int) -> None:
        """Wait no longer."""
        self.status = status
        if self._stream is not None:
            self._stream.close()

    def fileno(self) -> int | None:
        """Return the descriptor that news come over, if there is one."""
        return self._stream.fileno() if self._stream is not None else None

    def limit(self) -> float | None:
        """Return the seconds until there is something to do, come what may."""
        if self._ask_at is not None:
            return max(0.0, self._ask_at - time.monotonic())
        return self._stream.limit() if self._stream is not None else None

    def line(self) -> str:
        """Return what a terminal shows meanwhile."""
        return f"{self.condition.vm}: {self.condition.missing()} ({time.monotonic() - self._began:.0f} s)"

    def turn(self, *, ready: bool) -> None:
        """Do what is due."""
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
                    self._tell(met)
                    return
        except VmessError as error:
            moving.clear()
            self.end(complain(error))

    def _tell(self, met: dict[str, Any]) -> None:
        moving.clear()
        vm, text = self.condition.vm, met.pop("text")
        if verbs.JSON.flag in self._invocation.options:
            emit(self._invocation, {"condition": self._invocation.arguments[0], **met}, vm)
        else:
            print(f"{vm}: {text}" if len(self._invocation.vms) > 1 else text, flush=True)
        self.end(DONE)


def run(invocation: Invocation) -> int:
    """Wait until it is so for all VMs, or cannot be any more, or the time is up; return the exit status."""
    timeout = seconds(invocation.options.get(verbs.TIMEOUT.flag))
    deadline = None if timeout is None else time.monotonic() + timeout
    alarm = Alarm(deadline)
    conditions = [_condition(invocation, vm, alarm) for vm in invocation.vms]
    waits = [_Wait(invocation, condition) for condition in conditions]
    pending = list(waits)
    try:
        while pending:
            pending = _go_round(pending, deadline)
    except _Late:
        moving.clear()
    except KeyboardInterrupt:
        moving.leave()
        return INTERRUPTED
    for wait in waits:
        if wait.status is None:
            vm = wait.condition.vm
            words = f"VM {vm} {wait.condition.missing()}, after {timeout:g} s"
            wait.end(complain(TimedOut(words, hint=f"{PROGRAM} {vm} {wait.condition.look}")))
    return worst([wait.status or DONE for wait in waits])


def _go_round(pending: list[_Wait], deadline: float | None) -> list[_Wait]:
    """Ask about as many VMs as can be at a time, until it is others' turn; return those that are not over."""
    asked, others = pending[:TOGETHER], pending[TOGETHER:]
    for wait in asked:
        wait.begin()
    end = time.monotonic() + ROUND if others else None
    while (asked := [wait for wait in asked if wait.status is None]) and (
        end is None or time.monotonic() < end
    ):
        _turn(asked, [*asked, *others], [moment for moment in (deadline, end) if moment is not None])
        if deadline is not None and time.monotonic() >= deadline:
            raise _Late
    if not others:
        return asked
    rested = [wait for wait in asked if wait.rest()]
    return [*(wait for wait in asked if wait not in rested), *others, *rested]


def _turn(asked: list[_Wait], pending: list[_Wait], ends: list[float]) -> None:
    """Wait for the next thing to happen, but not beyond a moment, and see to it."""
    limits = [limit for wait in asked if (limit := wait.limit()) is not None]
    if sys.stderr.isatty():
        limits.append(1.0)
        moving.draw(*(wait.line() for wait in pending))
    limits += [max(0.0, end - time.monotonic()) for end in ends]
    fds = [fd for wait in asked if (fd := wait.fileno()) is not None]
    ready, _, _ = select.select(fds, [], [], min(limits, default=None))
    for wait in asked:
        fd = wait.fileno()
        wait.turn(ready=fd is not None and fd in ready)


def _condition(invocation: Invocation, vm: str, alarm: Alarm) -> Condition:
    """Return what is waited for; raises InvalidValue."""
    import re  # noqa: PLC0415 -- it takes its time, and other verbs need not wait for it
    import warnings  # noqa: PLC0415 -- as above

    (word,) = invocation.arguments
    since_start = verbs.SINCE_START.flag in invocation.options
    if word.startswith(SERIAL):
        try:
            with warnings.catch_warnings(action="ignore"):  # of what other versions of Python may make of it
                pattern = re.compile(word.removeprefix(SERIAL))
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidValue(
                f"{quoted(word)} holds no regular expression: {error}", hint="as Python's re has it"
            ) from None
        says = Says(vm, pattern, re.compile(ESCAPES), alarm)
        says.since = "start" if since_start else None
        return says
    if since_start:
        raise InvalidValue(f"{verbs.SINCE_START.flag} is about {SERIAL}REGEX, not about {quoted(word)}")
    if word in STATES:
        return StateIs(vm, word)
    if word == "addr":
        return HasAddress(vm)
    raise InvalidValue(
        f"wait takes {CONDITIONS}, not {quoted(word)}", hint=f"usage: {invocation.command.usage()}"
    )
