"""`top`: how busy the VMs are, as a live table, as lines, or as JSON.

The table is drawn with escape sequences: that is quicker than importing a library.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import time

from vmessctl import light_json
from vmessctl.cli import verbs
from vmessctl.cli.verbs import Invocation
from vmessctl.client import ANSWER_TIME, Client, connect, silence
from vmessctl.commands import quantities
from vmessctl.output import top_table
from vmessctl.output.descriptors import write_all
from vmessctl.output.terminal import can_redraw, painted
from vmessd.core.errors import DONE, InvalidValue, Unreachable, quoted
from vmessd.core.words import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType
    from typing import Any, Self

    from vmessctl.client import Reply

INTERVAL = 2.0
INTERVAL_MIN, INTERVAL_MAX = 0.2, 3600.0
RETRY = 1.0
"""Seconds between attempts to reconnect to the daemon."""

COLOURS = {
    "head": "1",
    "titles": "7",
    "foot": "2",
    "note": "31",
    State.stopped: "2",
    State.unresponsive: "31",
    State.held: "31",
    State.waiting: "33",
    State.paused: "33",
    State.starting: "33",
    State.stopping: "33",
}
"""Colours of lines on a terminal (SGR parameters of ECMA-48)."""

KEYS_LINE = {b"k": -1, b"\x1b[A": -1, b"\x1bOA": -1, b"j": 1, b"\x1b[B": 1, b"\x1bOB": 1}
KEYS_PAGE = {b"\x1b[5~": -1, b"\x1b[6~": 1, b" ": 1}
KEYS_END = {b"\x1b[H": 0, b"\x1bOH": 0, b"\x1b[1~": 0, b"\x1b[F": 1, b"\x1bOF": 1, b"\x1b[4~": 1}


def run(invocation: Invocation) -> int:
    """Show a number of samples, or samples without end; return the exit status."""
    interval = _interval(invocation.options.get(verbs.DELAY.flag))
    count = quantities.count(invocation.options.get(verbs.COUNT.flag), verbs.COUNT, "samples")
    view = top_table.View(_sort(invocation.options.get(verbs.SORT.flag)))
    if verbs.JSON.flag in invocation.options:
        return _print_json(invocation, interval, count)
    if verbs.BATCH.flag in invocation.options or not (sys.stdout.isatty() and can_redraw()):
        return _print_tables(invocation, interval, count, view)
    return _LiveTable(invocation, interval, count, view).run()


def _interval(text: str | None) -> float:
    try:
        seconds = float(text or INTERVAL)
    except ValueError:
        seconds = -1.0
    if not INTERVAL_MIN <= seconds <= INTERVAL_MAX:
        raise InvalidValue(
            f"{verbs.DELAY.flag} {quoted(text)} is not a number of seconds "
            f"from {INTERVAL_MIN:g} to {INTERVAL_MAX:g}"
        )
    return seconds


def _sort(word: str | None) -> top_table.Sort:
    if word is None:
        return top_table.SORTS[0]
    if word not in top_table.BY_WORD:
        raise InvalidValue(f"{verbs.SORT.flag} {quoted(word)} is not one of {', '.join(top_table.BY_WORD)}")
    return top_table.BY_WORD[word]


def _ask(client: Client, interval: float) -> None:
    client.send("Top", {"interval": interval}, more=True)


def _clock(sample: Reply) -> str:
    return time.strftime("%H:%M:%S", time.localtime(sample["time"]))


# -- For programs, and for files --


def _samples(invocation: Invocation, interval: float, count: int | None) -> Iterator[Reply]:
    client = connect(invocation)
    _ask(client, interval)
    while count is None or count > 0:
        if not client.pending() and not select.select([client], [], [], interval + ANSWER_TIME)[0]:
            raise silence()
        yield client.receive()[0]["sample"]
        count = None if count is None else count - 1
    client.close()


def _print_json(invocation: Invocation, interval: float, count: int | None) -> int:
    for sample in _samples(invocation, interval, count):
        print(light_json.dumps(sample), flush=True)
    return DONE


def _print_tables(invocation: Invocation, interval: float, count: int | None, view: top_table.View) -> int:
    for number, sample in enumerate(_samples(invocation, interval, count)):
        vms = top_table.arranged(sample["vms"], view)
        text = [top_table.head(vms, _clock(sample)), *top_table.grid(vms)]
        print("\n".join(["", *text] if number else text), flush=True)
    return DONE


# -- For people --


class _Ended(SystemExit):
    """Raised by a signal that ends the program, so that the terminal is restored."""


class Screen:
    """The terminal in full-screen mode: alternate screen, unbuffered keys. Use as a context manager."""

    def __init__(self) -> None:
        self._keyboard = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[Any] | None = None
        self._wake, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._handlers: dict[int, Any] = {}
        self._is_drawing = False
        self._suspended_by = 0
        """The signal that came during a frame, which is not torn apart; 0 for none."""

    def __enter__(self) -> Self:
        import signal  # noqa: PLC0415 -- slow to import, needed only here

        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            self._handlers[number] = signal.signal(number, self._end)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            self._take()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import signal  # noqa: PLC0415 -- as above

        # A second Ctrl-C must not interrupt this.
        self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._give_back()
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._waker)

    def _take(self) -> None:
        if self._keyboard >= 0:
            self._before = termios.tcgetattr(self._keyboard)
            mode = [*self._before[:6], list(self._before[6])]
            mode[3] &= ~(termios.ICANON | termios.ECHO)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._keyboard, termios.TCSANOW, mode)
        _write("\x1b[?1049h\x1b[?25l\x1b[?7l")

    def _give_back(self) -> None:
        try:
            _write("\x1b[?7h\x1b[?25h\x1b[?1049l")
            if self._before is not None:
                termios.tcsetattr(self._keyboard, termios.TCSANOW, self._before)
        except (OSError, termios.error):
            pass  # the terminal is gone

    def _end(self, number: int, _frame: FrameType | None) -> None:
        raise _Ended(128 + number)

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        """Handle Ctrl-Z: return the terminal to the shell until we are continued."""
        import signal  # noqa: PLC0415 -- as above

        if self._is_drawing:
            self._suspended_by = number
            return
        self._suspended_by = 0
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._suspend)
        self._take()

    def size(self) -> tuple[int, int]:
        """Return the terminal's columns and lines; 80 and 24 if it does not know them."""
        size = os.get_terminal_size(sys.stdout.fileno())
        return size.columns or 80, size.lines or 24

    def draw(self, shown: list[top_table.Line]) -> None:
        """Redraw the screen; no line may be longer than the terminal is wide."""
        # Erase before writing: after a line as wide as the terminal, the cursor is on its last character.
        blank = [("", "")] * (self.size()[1] - len(shown))
        rows = [
            f"\x1b[{number};1H\x1b[K{painted(text, COLOURS.get(kind, ''))}"
            for number, (kind, text) in enumerate([*shown, *blank], 1)
        ]
        self._is_drawing = True
        try:
            _write("".join(rows))
        finally:
            self._is_drawing = False
        if self._suspended_by:
            self._suspend(self._suspended_by, None)

    def wait(self, client: Client | None, seconds: float) -> tuple[bool, bytes]:
        """Wait for the daemon, for keys, or for a signal such as SIGWINCH.

        Returns whether there is input from the daemon, and the keys.
        """
        sources: list[Any] = [self._wake]
        if client is not None:
            sources.append(client)
        if self._keyboard >= 0:
            sources.append(self._keyboard)
        ready = select.select(sources, [], [], seconds)[0]
        if self._wake in ready:
            os.read(self._wake, 512)
        keys = b""
        if self._keyboard in ready:
            keys = os.read(self._keyboard, 64)
            if not keys:
                raise _Ended(1)  # the terminal hung up
        return client in ready and client is not None, keys


def _write(text: str) -> None:
    """Write to the terminal; also after a write that a signal ended, which a text stream may refuse."""
    write_all(sys.stdout.fileno(), text.encode(sys.stdout.encoding, sys.stdout.errors or "strict"))


class _LiveTable:
    """A table that is redrawn with each sample and key."""

    def __init__(
        self, invocation: Invocation, interval: float, count: int | None, view: top_table.View
    ) -> None:
        self._invocation = invocation
        self._interval = interval
        self._left = count
        self._view = view
        self._client: Client | None = None
        self._sample: Reply | None = None
        self._due = 0.0
        self._note = ""

    def run(self) -> int:
        self._connect(may_start=True)  # before full-screen mode, so that an error message remains visible
        with Screen() as screen:
            self._draw(screen)
            while self._left is None or self._left > 0:
                has_input, keys = screen.wait(self._client, max(0.0, self._due - time.monotonic()))
                if has_input:
                    self._hear()
                elif time.monotonic() >= self._due:
                    self._miss()
                if self._handle_keys(keys, screen):
                    break
                self._draw(screen)
        return DONE

    def _connect(self, *, may_start: bool) -> None:
        self._client = connect(self._invocation, may_start=may_start)
        _ask(self._client, self._interval)
        self._due = time.monotonic() + self._interval + ANSWER_TIME

    def _hear(self) -> None:
        """Receive samples; after a disconnection, retry until the daemon is back."""
        if self._client is None:
            return
        try:
            self._client.fill()
            while self._client.pending():
                self._sample = self._client.receive()[0]["sample"]
                self._left = None if self._left is None else self._left - 1
        except Unreachable as error:
            self._lose(error.message)
            return
        self._note = ""
        self._due = time.monotonic() + self._interval + ANSWER_TIME

    def _lose(self, why: str) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None
        self._note = f"{why}; trying to reconnect"
        self._due = time.monotonic() + RETRY

    def _miss(self) -> None:
        if self._client is not None:
            self._lose(silence().message)
            return
        try:
            self._connect(may_start=False)
        except Unreachable:
            self._due = time.monotonic() + RETRY

    def _handle_keys(self, keys: bytes, screen: Screen) -> bool:
        """Handle keys; tell whether one of them is quit."""
        view = self._view
        page = max(1, screen.size()[1] - 4)
        for key in _split(keys):
            if key in (b"q", b"Q"):
                return True
            if (sort := top_table.BY_KEY.get(key.decode("latin-1"))) is not None:
                view.sort, view.first = sort, 0
            elif key == b"r":
                view.reverse = not view.reverse
            elif key == b"x":
                view.only_on = not view.only_on
            elif key in KEYS_END:
                view.first = KEYS_END[key] * len(self._sample["vms"] if self._sample else ())
            view.first += KEYS_LINE.get(key, 0) + page * KEYS_PAGE.get(key, 0)
            view.first = max(0, view.first)
        return False

    def _draw(self, screen: Screen) -> None:
        size = screen.size()
        if self._sample is None:
            screen.draw([("head", (self._note or "waiting for the first sample ...")[: size[0]])])
            return
        vms = self._sample["vms"]
        screen.draw(top_table.lines(vms, self._view, size, _clock(self._sample), self._note))


def _split(keys: bytes) -> Iterator[bytes]:
    """Yield keys one by one; special keys are sequences that begin with ESC (ECMA-48)."""
    while keys:
        length = 1
        if keys[:2] in (b"\x1b[", b"\x1bO"):
            length = 3
            while length < len(keys) and keys[1:2] == b"[" and not 0x40 <= keys[length - 1] <= 0x7E:
                length += 1
        yield keys[:length]
        keys = keys[length:]
