"""A terminal for tests: the client runs in it, and what it draws can be looked at as a person would see it."""

import contextlib
import fcntl
import os
import re
import select
import shlex
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from daemons import CLIENT, TESTS, UNIT, Daemon

_SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")
_MODE = re.compile(r"\x1b(?:\(B|[c>])")
"""Two or three characters: a character set, the keypad, and a reset of everything."""


class Page:
    """The little of ECMA-48 that the client uses, on a page of so many columns and lines."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines = [[" "] * width for _ in range(height)]
        self.line = self.column = 0
        self.wraps = True
        self.wrapped = False
        """A text was longer than the page is wide, and was folded."""
        self.modes: set[str] = set()
        """Private modes that are set, such as 1049 for the other screen; 25, the cursor, is to begin with."""
        self.modes.add("25")
        self.colours: list[str] = []
        self._rest = ""

    def text(self) -> list[str]:
        return ["".join(line).rstrip() for line in self.lines]

    def resize(self, width: int, height: int) -> None:
        self.lines = [(line + [" "] * width)[:width] for line in self.lines[:height]]
        self.lines += [[" "] * width for _ in range(height - len(self.lines))]
        self.width, self.height = width, height
        self.line, self.column = min(self.line, height - 1), min(self.column, width - 1)

    def feed(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        while text:
            if mode := _MODE.match(text):
                if mode[0] == "\x1bc":
                    self._clear()
                    self.line = self.column = 0
                text = text[mode.end() :]
                continue
            if text[0] == "\x1b":
                found = _SEQUENCE.match(text)
                if found is None:
                    assert len(text) < 20, f"not understood: {text[:20]!r}"
                    self._rest = text  # the rest of it is still to come
                    return
                self._obey(*found.groups())
                text = text[found.end() :]
                continue
            self._write(text[0])
            text = text[1:]

    def _write(self, char: str) -> None:
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self._feed_line()
        elif char == "\b":
            self.column = max(0, self.column - 1)
        elif char.isprintable():
            if self.column == self.width:
                if self.wraps:
                    self.wrapped = True
                    self.column = 0
                    self._feed_line()
                else:
                    self.column -= 1
            self.lines[self.line][self.column] = char
            self.column += 1

    def _feed_line(self) -> None:
        self.line += 1
        if self.line == self.height:
            self.line -= 1
            self.lines = [*self.lines[1:], [" "] * self.width]

    def _clear(self) -> None:
        self.lines = [[" "] * self.width for _ in range(self.height)]

    def _obey(self, parameters: str, final: str) -> None:
        numbers = [int(number or 0) for number in parameters.lstrip("?").split(";")]
        if final == "H":
            self.line, self.column = (max(1, number) - 1 for number in (*numbers, 1)[:2])
        elif final == "A":
            self.line = max(0, self.line - max(1, numbers[0]))
        elif final in "KJ" and numbers == [0]:
            column = min(self.column, self.width - 1)  # behind a full line the cursor stands on its last letter
            self.lines[self.line][column:] = [" "] * (self.width - column)
            for line in range(self.line + 1, self.height if final == "J" else 0):
                self.lines[line] = [" "] * self.width
        elif final == "J" and numbers == [2]:
            self._clear()
        elif final == "m":
            self.colours.append(parameters)
        elif final in "hl" and parameters.startswith("?"):
            (self.modes.add if final == "h" else self.modes.discard)(parameters[1:])
            if parameters == "?7":
                self.wraps = final == "h"
        elif final == "l" and numbers == [4]:
            pass  # what is written replaces what was there, as ever
        else:
            raise AssertionError(f"not understood: {parameters!r} {final!r}")


class Typist:
    """A program on a terminal of its own, and somebody who types and looks."""

    def __init__(
        self, command: list[str], size: tuple[int, int], uid: int | None = None, **options: Any
    ) -> None:
        """Start it, in the name of a user if there is a uid; `options` are those of Popen."""
        self.master, slave = os.openpty()
        self.said = ""
        self.page = Page(*size)
        self._set_size(*size)
        self.before = termios.tcgetattr(slave)
        if uid is not None:
            os.fchown(slave, uid, -1)
            options |= {"user": uid, "group": uid, "extra_groups": []}
        self.process = subprocess.Popen(
            command,
            preexec_fn=lambda: os.login_tty(slave),  # type: ignore[attr-defined,unused-ignore]  # noqa: PLW1509 -- no other thread runs here
            **options,
        )
        self._slave = slave  # kept, so that the terminal stays when the program has ended

    def _set_size(self, width: int, height: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))

    def resize(self, width: int, height: int) -> None:
        """Change the size, of which the kernel tells the client."""
        self.page.resize(width, height)
        self._set_size(width, height)

    def read(self, seconds: float) -> bool:
        """Take in what it wrote; tell whether there was something."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        data = os.read(self.master, 65536).decode(errors="replace")
        self.said += data
        self.page.feed(data)
        return True

    def wait(self, condition: Callable[[list[str]], Any], seconds: float = 10.0) -> list[str]:
        """Wait until the page satisfies a condition, and return its lines."""
        deadline = time.monotonic() + seconds * UNIT
        while not condition(self.page.text()):
            left = deadline - time.monotonic()
            assert left > 0, "\n".join(["not seen:", *self.page.text(), repr(self.said[-4096:])])
            self.read(min(left, 0.2))
        return self.page.text()

    def see(self, text: str, seconds: float = 10.0) -> list[str]:
        """Wait until a text is on the page, and return all its lines."""
        return self.wait(lambda lines: any(text in line for line in lines), seconds)

    def expect(self, text: str, seconds: float = 10.0) -> None:
        """Wait until it has written a text, also one that a terminal obeys."""
        deadline = time.monotonic() + seconds * UNIT
        while text not in self.said:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} is not in {self.said!r}"
            self.read(left)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C when all was read: the kernel throws away what was not (termios(3), NOFLSH)."""
        while self.read(0.1):
            pass
        self.type("\x03")

    def end(self) -> int:
        """Wait for its end, and return the exit status."""
        deadline = time.monotonic() + 20 * UNIT
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self.read(0.05)
        while self.read(0.05):
            pass
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Tell whether the terminal is as it was before the client had it."""
        return termios.tcgetattr(self._slave) == self.before and self.page.modes - {"7"} == {"25"}

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10 * UNIT)
        os.close(self.master)
        os.close(self._slave)


class Terminal(Typist):
    """The client on a terminal of its own."""

    def __init__(
        self,
        daemon: Daemon,
        *words: str,
        size: tuple[int, int] = (80, 24),
        then: str | None = None,
        into: Path | None = None,
        program: tuple[str, ...] = CLIENT,
        **environment: str,
    ) -> None:
        """Start it.

        `then` is what a shell with job control does when the client ends or is suspended; `into` a file that
        takes its standard output.
        """
        command = [*program, *words]
        if into is not None:
            command = ["sh", "-c", f"exec {shlex.join(command)} >{shlex.quote(str(into))}"]
        if then is not None:
            command = ["bash", "--norc", "-ic", f"{shlex.join(command)}; {then}"]
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "LINES")}
        super().__init__(
            [*daemon.inside, *command],
            size,
            env={**inherited, "VMESS_SOCKET": str(daemon.socket), "TERM": "xterm", **environment},
            cwd=TESTS.parent,
        )


@contextlib.contextmanager
def on_terminal(daemon: Daemon, *words: str, **options: Any) -> Iterator[Terminal]:
    instance = Terminal(daemon, *words, **options)
    try:
        yield instance
    finally:
        instance.close()
