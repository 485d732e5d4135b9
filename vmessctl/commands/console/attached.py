"""The serial console, on a terminal or as a pipe.

The daemon passes the socket connected to the guest's serial port, and is not in the data path. The socket is
read even if the terminal is slow, because a printing guest waits for its reader; output that does not fit is
dropped and reported. Input from a pipe must reach the guest, so the client waits until QEMU has taken it all.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.commands.console import escape_key, seat
from vmessctl.commands.console.delivery import Delivery
from vmessctl.commands.console.raw_mode import Raw
from vmessctl.commands.quantities import seconds
from vmessctl.environment import variable
from vmessctl.output.descriptors import unblocked
from vmessctl.output.phrases import phrase
from vmessctl.output.terminal import PLAIN, complain, say, warn
from vmessd.core.errors import (
    DONE,
    Failed,
    InvalidValue,
    TimedOut,
    counted,
)
from vmessd.core.quantities import size_shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Reply
    from vmessctl.commands.console.escape_key import EscapeKey

PIECE = 1 << 16
CHUNK = 512
"""Bytes per write if a write might block."""
UNSHOWN_MAX = 1 << 20
"""Bytes buffered for a slow terminal or pipe."""
UNSENT_MAX = 1 << 16
"""Bytes buffered for a guest that does not take its input."""
QUIET = 1.0
"""Seconds of silence after which a pipe ends, once all input was taken."""
TICK = 0.05
"""Seconds between checks of how much was taken."""
REMARK_TIME = 5.0
"""Seconds after which a wait without a timeout is reported."""
FLUSH_TIME = 1.0
"""Seconds that a terminal has to take the rest of the output."""
SEQUENCE_MAX = 16
"""Bytes kept to recognise a control sequence that arrives in parts."""
MODES_END = (
    f"{PLAIN}\x0f\x1b(B\x1b>\x1b[4l\x1b[?1l\x1b[?7h\x1b[?25h"
    "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1004l\x1b[?1006l\x1b[?2004l"
)
"""Resets modes that a guest may have set, without visible output (xterm: colours, character sets, keypad,
insert mode, wrapping, cursor; mouse, focus, paste)."""
SCREEN_END = f"\x1b[r\x1b[?1049l{MODES_END}\x1b[999;1H\r\n"
"""Also leaves a full screen drawn by a guest: scroll region, alternate screen, cursor to the last line."""


def run(invocation: Invocation) -> int:
    """Attach to the console until either side ends; return the exit status."""
    key = _escape_key(invocation)
    timeout = _timeout(invocation)
    (vm,) = invocation.vms
    said, console, leash = seat.take(invocation)
    session = _Session(vm, console, timeout, key)
    on_terminal = sys.stdin.isatty()
    with Raw(sys.stdin.fileno(), session.leave, on=on_terminal):
        if session.is_seen:
            _show_history(vm, session, said)
        try:
            why = session.run()
        except (KeyboardInterrupt, BrokenPipeError):
            if not on_terminal:
                session.account("")
            raise
        finally:
            session.leave()
    end = seat.verdict(invocation, vm, leash) if why == "ended" else DONE
    if not (said["printed"] or session.heard_anything or session.is_seen):
        say(f"{vm}: {phrase('serial silent', vm=vm)}")
    untaken = DONE if on_terminal else session.account(why)
    unshown = complain(_left_out(vm, session.unshown)) if session.unshown else DONE
    return end or untaken or unshown


def _escape_key(invocation: Invocation) -> EscapeKey:
    """Return the key that detaches; raises InvalidValue."""
    named = invocation.options.get(verbs.ESCAPE.flag) or variable("VMESS_ESCAPE")
    return escape_key.parse(named) if named else escape_key.USUAL


def _timeout(invocation: Invocation) -> float | None:
    """Return the value of --timeout; raises InvalidValue on a terminal."""
    flag = verbs.TIMEOUT.flag
    if flag in invocation.options and sys.stdin.isatty():
        raise InvalidValue(
            f"{flag} is for input from a pipe or a file; on a terminal, {_escape_key(invocation).how}",
            hint=f"echo reboot | {PROGRAM} {invocation.vms[0]} console {flag} 10",
        )
    return seconds(invocation.options.get(flag))


def _show_history(vm: str, session: _Session, said: Reply) -> None:
    """Show the last earlier output, and mark its end."""
    import base64  # noqa: PLC0415

    from vmessctl.commands import logs  # noqa: PLC0415 -- as above

    history, printed = base64.b64decode(said["history"]), said["printed"]
    if not printed:
        sys.stderr.write(f"[{vm}: {phrase('serial silent', vm=vm)}. {session.key.how}.]\r\n")
        sys.stderr.flush()
        return
    shown = f"the last {size_shown(len(history))} of " if len(history) < printed else ""
    sys.stderr.write(
        f"[{vm}: {shown}{size_shown(printed)} printed so far; all of it: {PROGRAM} {vm} console --log]\r\n"
    )
    sys.stderr.flush()
    # Without queries to the terminal: the guest would get their answers a second time.
    session.show(logs.plain(history.decode(errors="replace")).encode())
    session.flush()
    sys.stderr.write(f"{PLAIN}\r\n[Live from here on. {session.key.how}.]\r\n")
    sys.stderr.flush()


class _Session:
    """Copies input to the console, and the console to the output."""

    def __init__(self, vm: str, console: int, timeout: float | None, key: EscapeKey) -> None:
        self.key = key
        """It detaches, on a terminal."""
        self._vm = vm
        self._console = console
        self._timeout = timeout
        self._input = sys.stdin.fileno()
        self._typed = sys.stdin.isatty()
        """The input is a terminal."""
        self._output, self._waits = _output()
        self._seen = os.isatty(self._output)
        """The output is a terminal."""
        self._delivery = Delivery(console)
        self._showing = bytearray()
        self._goes_on = True
        """The input has not reached its end."""
        self._heard = 0.0
        """When the last output came, or the last input was taken."""
        self._moved = 0.0
        """When input was last taken, or there was none to wait for."""
        self._remarked = False
        self.unshown = 0
        """Bytes dropped because the output was too slow."""
        self.heard_anything = False
        """The guest has printed something."""
        self.is_seen = self._typed and self._seen
        """A person types, and reads the output."""
        self._recent = b""
        self._escapes = self._drew = False
        """Control sequences were written to the terminal; some of them draw a full screen."""

    def run(self) -> str:
        """Copy bytes until the user detaches (`left`), the console ends (`ended`), or it times out (`late`)."""
        self._heard = self._moved = time.monotonic()
        why = ""
        while not why:
            why = self._copy()
        self.flush()
        return why

    def _copy(self) -> str:
        """Copy the available bytes; return why this was the last time, empty if it was not."""
        ready = self._wait()
        if self._console in ready and not self._listen():
            self._delivery.look()
            return "ended"
        if self._output in ready:
            self._write()
        leaves = self._goes_on and self._input in ready and not self._take()
        self._delivery.send()
        if not self._typed:
            return self._outcome()
        if leaves:
            self._hurry()
        return "left" if leaves else ""

    def _listen(self) -> bool:
        """Read the console; tell whether it continues."""
        data = self._read(self._console)
        if data:
            self._heard = time.monotonic()
            self.heard_anything = True
            self.show(data)
        return data != b""

    def _take(self) -> bool:
        """Read the input; tell whether the user stays attached."""
        typed = self._read(self._input)
        if typed is None:
            return True
        if self._typed:
            typed, escaped = self.key.before(typed) if typed else (typed, True)
            self._delivery.put(typed)
            if self._delivery.unsent > UNSENT_MAX:
                self._delivery.keep(UNSENT_MAX)
                self.show(b"\a")
            return not escaped
        self._delivery.put(typed)
        if not typed:
            self._goes_on = False
            self._heard = self._moved = time.monotonic()
        return True

    def _outcome(self) -> str:
        """Return why a pipe ends: all input taken and the guest silent, or the timeout passed; else empty."""
        before, now = self._delivery.taken, time.monotonic()
        self._delivery.look()
        if self._delivery.taken > before:
            self._heard = self._moved = now
        left = self._delivery.left
        if self._goes_on and not left:
            self._moved = now
            return ""
        if not left and now - self._heard > QUIET:
            return "left"
        waited = (now if left else self._heard) - self._moved
        if self._timeout is not None and waited > self._timeout:
            return "late"
        if self._timeout is None and left and waited > REMARK_TIME and not self._remarked:
            self._remarked = True
            warn(
                f"{PROGRAM}: {self._vm}: QEMU took {self._delivery.count()}; waiting for the guest to take the"
                f" rest (until Ctrl-C; {verbs.TIMEOUT.flag} SECONDS sets a limit)"
            )
        return ""

    def account(self, why: str) -> int:
        """Report input that was not taken, if any; return the exit status."""
        count = f"{self._vm}: QEMU took {self._delivery.count()}"
        if why == "late" and self._delivery.left:
            late = f"{count}, and no more within {self._timeout:g} s"
            return complain(TimedOut(late, hint=f"is the guest paused, or busy? {PROGRAM} {self._vm} status"))
        if why == "late":
            late = f"{count}, and the guest was still printing after {self._timeout:g} s"
            return complain(TimedOut(late, hint=f"its whole output: {PROGRAM} {self._vm} console --log"))
        if self._delivery.left:
            return complain(Failed(count, hint=f"the guest's output: {PROGRAM} {self._vm} console --log"))
        return DONE

    def _wait(self) -> set[int]:
        """Return the descriptors that are ready."""
        poll = select.poll()
        poll.register(self._console, select.POLLIN | (select.POLLOUT if self._delivery.unsent else 0))
        # A pipe waits for the guest, but on a terminal the escape key must always work.
        if self._goes_on and (self._typed or not self._delivery.unsent):
            poll.register(self._input, select.POLLIN)
        if self._showing:
            poll.register(self._output, select.POLLOUT)
        looks = not self._typed and (self._delivery.left or not self._goes_on)
        events = dict(poll.poll(TICK * 1000 if looks else None))
        if self._console in events and not events[self._console] & ~select.POLLOUT:
            del events[self._console]  # it is only writable
        return set(events)

    def _read(self, fd: int) -> bytes | None:
        """Return the available bytes; empty at the end, None if there are none yet."""
        try:
            return os.read(fd, PIECE)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EIO, errno.ECONNRESET):  # the terminal or QEMU hung up
                self._delivery.hung_up(error)
                return b""
            raise

    def _hurry(self) -> None:
        """Give QEMU a moment to read the last input, which is lost when we hang up."""
        deadline = time.monotonic() + FLUSH_TIME
        while self._delivery.left and time.monotonic() < deadline and self._listen():
            self._delivery.send()
            self._delivery.look()
            time.sleep(0.01)

    def show(self, data: bytes) -> None:
        """Queue output."""
        room = UNSHOWN_MAX - len(self._showing)
        self.unshown += max(0, len(data) - room)
        if self._seen:
            self._recent += data
            self._escapes = self._escapes or _has_controls(data)
            self._drew = self._drew or _draws(self._recent)
            self._recent = self._recent[-SEQUENCE_MAX:]
        self._showing += data[:room]

    def _write(self) -> None:
        try:
            written = os.write(self._output, self._showing[: CHUNK if self._waits else PIECE])
        except BlockingIOError:
            return
        del self._showing[:written]

    def flush(self) -> None:
        """Write the queued output: to a terminal within a time limit, to a pipe all of it."""
        deadline = time.monotonic() + FLUSH_TIME
        while self._showing and (not self._seen or time.monotonic() < deadline):
            poll = select.poll()
            poll.register(self._output, select.POLLOUT)
            if poll.poll(FLUSH_TIME * 1000):
                self._write()

    def leave(self) -> None:
        """Reset modes that the guest may have set on the terminal."""
        if not self._seen:
            return
        end = SCREEN_END if self._drew else MODES_END if self._escapes else ""
        if self._typed and not self._drew:
            end += "\r\n"
        import contextlib  # noqa: PLC0415 -- as above

        with contextlib.suppress(OSError):  # the terminal is stuck or gone
            os.write(self._output, end.encode())


def _has_controls(data: bytes) -> bool:
    """Tell whether data contain control sequences: ESC, CSI, shifts to other character sets."""
    return any(byte in data for byte in (b"\x1b", b"\x9b", b"\x0e"))


def _draws(data: bytes) -> bool:
    """Tell whether data position the cursor (CUP and HVP of ECMA-48) or select the alternate screen."""
    if b"\x1b[" not in data:
        return False
    import re  # noqa: PLC0415 -- not all guests draw

    return re.search(rb"\x1b\[(?:[0-9;]*[Hf]|\?(?:47|104[79])h)", data) is not None


def _output() -> tuple[int, bool]:
    """Return a descriptor for the output, and whether a write to it may block."""
    fd = unblocked(sys.stdout.fileno())
    return fd, os.get_blocking(fd) and not stat.S_ISREG(os.fstat(fd).st_mode)


def _left_out(vm: str, count: int) -> Failed:
    return Failed(
        f"{counted(count, 'byte')} dropped: the guest printed faster than the output took it",
        hint=f"to see them: {PROGRAM} {vm} console --log",
    )
