"""The serial console, on a terminal or as a pipe.

The daemon hands over the socket that is connected to the guest's serial port; what goes over it passes
nobody. It is read however slow the terminal is, since a guest that prints waits for its reader; what the
terminal does not take is left out, and said so.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import termios
import time
import tty

from vmessctl import commands
from vmessctl.client import connect
from vmessctl.commands import PROGRAM, Invocation
from vmessctl.console import complain, say
from vmessd.errors import DONE, Failed, InvalidValue, Locked, Unreachable, VmessError, printable
from vmessd.settings import size_shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

ESCAPE = b"\x1d"
"""Ctrl-], as in telnet."""
PIECE = 1 << 16
CHUNK = 512
"""Bytes written at once where a write might wait."""
UNSHOWN_MAX = 1 << 20
"""Bytes kept for a terminal, or a pipe, that does not take them."""
UNSENT_MAX = 1 << 16
"""Bytes kept for a guest that does not take what is typed."""
QUIET = 1.0
"""Seconds without a word after which the console ends whose input has ended."""
FLUSH_TIME = 1.0
"""Seconds a terminal has to take the rest."""
SEQUENCE_MAX = 16
"""Bytes of a control sequence that may come one by one, as a serial port has them."""
SCREEN_END = "\x1b[r\x1b[?1049l\x1b[?25h\x1b[?1l\x1b>\x1b[?1000l\x1b[?2004l\x1b[0m\x1b[999;1H\r\n"
"""Ends what a guest that draws a screen may have switched on (xterm's control sequences: scroll region, second
screen, hidden cursor, keys, mouse, paste), and goes below its picture."""
VERDICT_TIME = 3.0
"""Seconds in which the daemon knows why a console ended."""


def run(invocation: Invocation) -> int:
    """Attach to the console until it or the user leaves; return the exit status. Or show its log."""
    if commands.LOG.flag in invocation.options:
        from vmessctl import logs  # noqa: PLC0415 -- the console does without

        return logs.run(invocation)
    for option in (commands.FOLLOW, commands.JSON):
        if option.flag in invocation.options:
            raise InvalidValue(f"{option.flag} goes with --log", hint=f"usage: {invocation.command.usage()}")
    (vm,) = invocation.vms
    client = connect(invocation)
    seat = client.call("Console", vm=vm, steal=commands.STEAL.flag in invocation.options)["console"]
    handed = client.descriptors(2)
    client.close()
    console, leash = handed[seat["console"]], handed[seat["leash"]]
    os.set_blocking(console, False)
    session = _Session(console)
    on_terminal = sys.stdin.isatty()
    with _Raw(sys.stdin.fileno(), on=on_terminal):
        if on_terminal and sys.stdout.isatty():
            _show_history(vm, session, seat)
        why = session.go_on()
        session.flush()
        if on_terminal:
            sys.stderr.write(SCREEN_END if session.drew else "\x1b[0m\r\n")
            sys.stderr.flush()
    status = DONE if why == "left" else _verdict(invocation, vm, leash)
    if session.unshown:
        return complain(_left_out(vm, session.unshown))
    return status


class _Raw:
    """A terminal that hands on every key; as it was before, however this ends."""

    def __init__(self, fd: int, *, on: bool) -> None:
        self._fd = fd
        self._on = on
        self._saved: list[Any] = []

    def __enter__(self) -> None:
        if not self._on:
            return
        import signal  # noqa: PLC0415 -- it makes enums of all constants

        self._saved = termios.tcgetattr(self._fd)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._ended)
        signal.signal(signal.SIGTSTP, self._stopped)
        self._switch()

    def _switch(self) -> None:
        tty.setraw(self._fd, termios.TCSANOW)  # at once: a terminal that hangs would make anything else wait

    def _restore(self) -> None:
        import contextlib  # noqa: PLC0415 -- as signal

        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)

    def _ended(self, number: int, _frame: object) -> None:
        """End by a signal as if there were no handler, but with the terminal as it was."""
        import signal  # noqa: PLC0415

        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _stopped(self, number: int, _frame: object) -> None:
        """Stand still as if there were no handler; go on in raw mode."""
        import signal  # noqa: PLC0415

        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._stopped)
        self._switch()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._on:
            self._restore()


def _show_history(vm: str, session: _Session, seat: dict[str, Any]) -> None:
    """Show the end of what was printed before, and say where it ends."""
    import base64  # noqa: PLC0415

    from vmessctl import logs  # noqa: PLC0415 -- as above

    history, printed = base64.b64decode(seat["history"]), seat["printed"]
    if not printed:
        sys.stderr.write(f"[{vm} has printed nothing so far. Ctrl-] leaves.]\r\n")
        sys.stderr.flush()
        return
    shown = f"the last {size_shown(len(history))} of " if len(history) < printed else ""
    sys.stderr.write(f"[{vm}: {shown}{size_shown(printed)} printed so far; all: vmess {vm} console --log]\r\n")
    sys.stderr.flush()
    # Without what has the terminal answer: the guest would be given answers anew.
    session.show(logs.plain(history.decode(errors="replace")).encode())
    session.flush()
    sys.stderr.write("\x1b[0m\r\n[Here it goes on. Ctrl-] leaves.]\r\n")
    sys.stderr.flush()


class _Session:
    """What is typed goes to the console, what that says to the output."""

    def __init__(self, console: int) -> None:
        self._console = console
        self._input = sys.stdin.fileno()
        self._terminal = sys.stdin.isatty()
        self._output, self._waits = _output()
        self._unsent = b""
        self._showing = bytearray()
        self._typing = True
        self._heard = 0.0
        """When there was the last word, or the last of the input."""
        self.unshown = 0
        """Bytes left out because nobody took them."""
        self._recent = b""
        self.drew = False
        """The cursor was sent to places: what is shown is a screen, and not lines one after the other."""

    def go_on(self) -> str:
        """Carry bytes until one side leaves: `left` for the user's, `ended` for the console's."""
        while True:
            ready = self._wait()
            if self._console in ready and not self._listen():
                return "ended"
            if self._output in ready:
                self._write()
            leaves = self._typing and self._input in ready and not self._take()
            if self._unsent and not self._send():
                return "ended"
            if leaves or self._is_quiet():
                self._deliver()
                return "left"

    def _listen(self) -> bool:
        """Take in what the console says; tell whether it goes on."""
        data = self._read(self._console)
        if data:
            self._heard = time.monotonic()
            self.show(data)
        return data != b""

    def _take(self) -> bool:
        """Take in what is typed; tell whether the user stays."""
        typed = self._read(self._input)
        if typed is None:
            return True
        if self._terminal:
            self._unsent += typed.partition(ESCAPE)[0]
            if len(self._unsent) > UNSENT_MAX:
                self._unsent = self._unsent[:UNSENT_MAX]
                self.show(b"\a")
            return bool(typed) and ESCAPE not in typed
        self._unsent += typed
        if not typed:
            self._typing, self._heard = False, time.monotonic()
        return True

    def _is_quiet(self) -> bool:
        """Tell whether neither side has anything to say any more."""
        return not self._typing and not self._unsent and time.monotonic() - self._heard > QUIET

    def _wait(self) -> set[int]:
        """Return the descriptors with which something can be done."""
        poll = select.poll()
        poll.register(self._console, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        # A pipe waits for the guest; a terminal must always be able to leave.
        if self._typing and (self._terminal or not self._unsent):
            poll.register(self._input, select.POLLIN)
        if self._showing:
            poll.register(self._output, select.POLLOUT)
        events = dict(poll.poll(None if self._typing else QUIET * 200))
        if self._console in events and not events[self._console] & ~select.POLLOUT:
            del events[self._console]  # it only takes more
        return set(events)

    def _read(self, fd: int) -> bytes | None:
        """Return what there is to read; nothing at the end, None if there is nothing yet."""
        try:
            return os.read(fd, PIECE)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EIO, errno.ECONNRESET):  # the terminal hung up; so did QEMU
                return b""
            raise

    def _send(self) -> bool:
        """Send what was typed as far as the guest takes it; tell whether somebody is there."""
        try:
            self._unsent = self._unsent[os.write(self._console, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def _deliver(self) -> None:
        """Wait until QEMU has read what was sent, unless the guest does not take it: hanging up drops it."""
        deadline = time.monotonic() + FLUSH_TIME
        while time.monotonic() < deadline and (self._unsent or _is_underway(self._console)):
            if not self._send():
                return
            self._listen()
            time.sleep(0.01)

    def show(self, data: bytes) -> None:
        """Have something shown, now or later."""
        room = UNSHOWN_MAX - len(self._showing)
        self.unshown += max(0, len(data) - room)
        self._recent += data
        self.drew = self.drew or _draws(self._recent)
        self._recent = self._recent[-SEQUENCE_MAX:]
        self._showing += data[:room]

    def _write(self) -> None:
        try:
            written = os.write(self._output, self._showing[: CHUNK if self._waits else PIECE])
        except BlockingIOError:
            return
        del self._showing[:written]

    def flush(self) -> None:
        """Have shown what is left, as far as a terminal takes it in time; a pipe gets all of it."""
        deadline = time.monotonic() + FLUSH_TIME
        while self._showing and (not os.isatty(self._output) or time.monotonic() < deadline):
            poll = select.poll()
            poll.register(self._output, select.POLLOUT)
            if poll.poll(FLUSH_TIME * 1000):
                self._write()


def _draws(data: bytes) -> bool:
    """Tell whether the cursor is sent to a place (CUP and HVP of ECMA-48), or another screen is taken."""
    if b"\x1b[" not in data:
        return False
    import re  # noqa: PLC0415 -- not all guests draw

    return re.search(rb"\x1b\[(?:[0-9;]*[Hf]|\?1049h)", data) is not None


def _is_underway(console: int) -> bool:
    """Tell whether the other side has not read all of what was sent: SIOCOUTQ, unix(7)."""
    return int.from_bytes(fcntl.ioctl(console, termios.TIOCOUTQ, bytes(4)), sys.byteorder) > 0


def _output() -> tuple[int, bool]:
    """Return a descriptor for the output, and whether a write to it may wait.

    Opened anew, a terminal or a pipe need not wait, while all who share the old one see no difference.
    """
    fd = sys.stdout.fileno()
    kind = os.fstat(fd).st_mode
    if stat.S_ISFIFO(kind) or os.isatty(fd):
        try:
            return os.open(
                f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            ), False
        except OSError:
            pass
    return fd, not stat.S_ISREG(kind)


def _left_out(vm: str, count: int) -> Failed:
    return Failed(
        f"{count} bytes were left out: they came faster than they were taken",
        hint=f"{PROGRAM} {vm} console --log has them",
    )


def _taken_over(vm: str, how: str) -> Locked:
    return Locked(f"{vm}: the console is yours no more: {how}", hint=f"{PROGRAM} {vm} console --steal")


def _verdict(invocation: Invocation, vm: str, leash: int) -> int:
    """Say why the console ended; return the exit status."""
    deadline = time.monotonic() + VERDICT_TIME
    poll = select.poll()
    poll.register(leash, select.POLLIN)
    word = os.read(leash, 4096).decode(errors="replace") if poll.poll(VERDICT_TIME * 1000) else ""
    if word.startswith("it was taken over"):
        return complain(_taken_over(vm, printable(word)))
    if word:
        again = f"{PROGRAM} {vm} console"
        return complain(Failed(f"{vm}: the console ends: {printable(word)}", hint=again))
    try:
        while True:
            status = connect(invocation).call("Status", vm=vm)["status"]
            if status["pid"] is None:
                last = status["last_exit"]
                say(f"{vm}: {printable(last['text']) if last else 'VM not running'}")
                return DONE
            if time.monotonic() > deadline:
                return complain(_taken_over(vm, "it was taken over"))
            time.sleep(0.05)
    except Unreachable:
        say(f"{vm}: the console ends, and no vmessd is there to say why")
        return Failed.status
    except VmessError as error:
        return complain(error)
