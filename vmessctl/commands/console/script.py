"""A console that a file types on: line by line, each after a prompt, and no faster than the guest reads."""

from __future__ import annotations

import os
import select
import sys
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM
from vmessctl.commands import logs
from vmessctl.commands.console import seat
from vmessctl.commands.console.delivery import Delivery
from vmessctl.commands.expression import Alarm, DeadlinePassed, compiled
from vmessctl.commands.quantities import seconds
from vmessctl.output.terminal import complain
from vmessd.core.dialogue import Heard
from vmessd.core.errors import (
    DONE,
    Failed,
    InvalidValue,
    TimedOut,
    counted,
    failing,
    printable,
    quoted,
    worst,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

    from vmessctl.cli.verbs import Invocation

FILE_MAX = 1 << 20
"""Bytes in a file of lines."""
RATES = range(50, 1_000_001)
BITS = 10
"""Bits of a character on the wire: a start bit, eight of data, a stop bit."""
SEARCHED_MAX = 16 * 1024
"""Bytes in which a prompt is looked for: the last ones."""
TICK = 0.01
"""Seconds between two looks at what QEMU has taken."""
QUIET = 1.0
"""Seconds of silence that end a script without prompts."""


class _Ended(Exception):
    """The console has ended."""


def run(invocation: Invocation) -> int:
    """Type the lines of a file, and wait for prompts; return the exit status."""
    options = invocation.options
    prompt = _prompt(options.get(verbs.EXPECT.flag))
    rate = _rate(options.get(verbs.RATE.flag))
    timeout = seconds(options.get(verbs.TIMEOUT.flag))
    lines = _lines(options[verbs.SEND.flag]) if verbs.SEND.flag in options else []
    (vm,) = invocation.vms
    said, console, leash = seat.take(invocation)
    talk = _Talk(invocation, console, said["history"], rate, timeout)
    typed = 0
    try:
        for line in lines:
            if prompt is not None:
                talk.expect(prompt)
            talk.type(line + b"\r")
            typed += 1
        talk.expect(prompt) if prompt is not None else talk.settle()
    except _Ended:
        verdict = seat.verdict(invocation, vm, leash)
        hint = f"the guest's output: {PROGRAM} {vm} console --log"
        ended = Failed(f"{vm}: the console has ended{_done(typed, lines)}", hint=hint)
        return worst([verdict, complain(ended)])
    except TimedOut as error:
        return complain(TimedOut(f"{vm}: {error.message}{_done(typed, lines)}", hint=error.hint))
    finally:
        talk.close()
    return DONE


def _done(typed: int, lines: list[bytes]) -> str:
    """Return how much was typed, for the end of a message."""
    return f"; {typed} of {counted(len(lines), 'line')} typed" if lines else ""


def _lines(file: str) -> list[bytes]:
    """Return the lines of a file without their ends; raises InvalidValue, Failed."""
    with failing(f"{printable(file)} cannot be read"):
        source = os.dup(sys.stdin.fileno()) if file == "-" else os.open(file, os.O_RDONLY)
        with open(source, "rb") as opened:
            text = opened.read(FILE_MAX + 1)
    if len(text) > FILE_MAX:
        raise InvalidValue(f"{printable(file)} has more than {FILE_MAX} bytes")
    if not text:
        raise InvalidValue(f"{printable(file)} is empty: there is nothing to type")
    return [line.removesuffix(b"\r") for line in text.removesuffix(b"\n").split(b"\n")]


def _prompt(text: str | None) -> re.Pattern[str] | None:
    if text == "":
        raise InvalidValue(f"{verbs.EXPECT.flag} needs a regular expression", hint=f"{verbs.EXPECT.flag} '# $'")
    return None if text is None else compiled(text, text)


def _rate(text: str | None) -> int | None:
    """Return the speed of typing in bits per second; raises InvalidValue."""
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 8 and int(text) in RATES):
        raise InvalidValue(
            f"rate {quoted(text)} is not a number of bits per second from {RATES[0]} to {RATES[-1]}"
        )
    return int(text)


class _Talk:
    """A console that is typed on, and whose output is printed and searched."""

    def __init__(
        self, invocation: Invocation, fd: int, history: str, rate: int | None, timeout: float | None
    ) -> None:
        import base64  # noqa: PLC0415 -- slow to import

        self._fd = fd
        self._rate = rate
        self._timeout = timeout
        self._delivery = Delivery(fd)
        self._print = logs.printer(invocation, logs.plain)
        self._heard = Heard(base64.b64decode(history), SEARCHED_MAX)

    def close(self) -> None:
        """Leave the console."""
        self._print(b"")
        os.close(self._fd)

    def expect(self, prompt: re.Pattern[str]) -> None:
        """Wait for a prompt; raises TimedOut, _Ended."""
        deadline = self._deadline()
        missing = f"the guest has not printed {quoted(prompt.pattern)}"
        try:
            while not self._shows(prompt, Alarm(deadline)):
                self._in_time(deadline, missing)
                self._listen(0.1)
        except DeadlinePassed:
            raise self._late(missing) from None

    def _shows(self, prompt: re.Pattern[str], alarm: Alarm) -> bool:
        """Tell whether a prompt is in the output; raises DeadlinePassed."""
        text = self._heard.text()
        with alarm:
            return prompt.search(text) is not None

    def type(self, line: bytes) -> None:
        """Type a line, as fast as the rate allows and the guest takes it; raises TimedOut, _Ended."""
        self._heard.typed()
        began, deadline = time.monotonic(), self._deadline()
        put = 0
        while put < len(line) or self._delivery.left:
            due = len(line)
            if self._rate is not None:
                due = min(due, 1 + int((time.monotonic() - began) * self._rate / BITS))
            self._delivery.put(line[put:due])
            put = due
            self._delivery.send()
            self._listen(TICK)
            self._delivery.look()
            self._in_time(deadline, f"QEMU took {self._delivery.count()}, and no more")

    def settle(self) -> None:
        """Wait until the guest is silent; raises TimedOut, _Ended."""
        deadline = self._deadline()
        while self._listen(QUIET):
            self._in_time(deadline, "the guest is still printing")

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _in_time(self, deadline: float | None, missing: str) -> None:
        if deadline is not None and time.monotonic() > deadline:
            raise self._late(missing)

    def _late(self, missing: str) -> TimedOut:
        return TimedOut(
            f"{missing} within {self._timeout:g} s", hint="is the guest paused, or waiting for something else?"
        )

    def _listen(self, wait: float) -> bool:
        """Print and remember what the guest prints within a time; tell whether it was anything."""
        ready, _, _ = select.select([self._fd], [], [], wait)
        if not ready:
            return False
        data = seat.heard(self._fd)
        if data is None:
            return False
        if not data:
            raise _Ended
        self._print(data)
        self._heard.take(data)
        return True
