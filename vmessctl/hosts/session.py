"""One command line on another host: on the terminal if there is one, else through pipes.

Through pipes, the output begins behind what a login shell prints, and a signal goes to the command there.
"""

from __future__ import annotations

import os
import sys

from vmessctl.cli.verbs import PROGRAM
from vmessctl.environment import variable
from vmessctl.output import foreground
from vmessctl.output.descriptors import write_all
from vmessctl.ssh import masters, signals
from vmessctl.ssh.remote_line import Opening, remote_line
from vmessd.core.errors import Unreachable, quoted, reason
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmessctl.output.foreground import Child
    from vmessctl.ssh.masters import Seat

    Sink = Callable[[bytes], None]

PIECE = 1 << 16
"""Bytes read at once."""
LIFE = "VMESS_LIFE"
"""The variable that says that standard input is a pipe which ends with the client of several hosts."""
BROKEN = 255
"""The exit status of ssh(1) if the connection fails, or if the command there was killed."""


class Ended(SystemExit):
    """Raised by a signal that ends the program, so that ssh ends with it."""


def has_terminal() -> bool:
    """Tell whether a command has the terminal to itself: input, output and errors."""
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def on_terminal(seat: Seat, words: Sequence[str]) -> int:
    """Run a command on another host with a terminal like ours; return its exit status."""
    argv = [*seat.argv("-q", "-t", "-e", "none"), remote_line(words, called(seat))]
    with signals.heard_by(_end):  # Ctrl-C is a key for the terminal there
        return foreground.as_shell(foreground.run(argv, descriptors=[seat.descriptor]))


def _end(number: int) -> None:
    raise Ended(foreground.KILLED + number)


def called(seat: Seat) -> str:
    """Return how hints of a command on another host name the program."""
    return f"{PROGRAM} --host {seat.host}"


def piped(seat: Seat, words: Sequence[str], put: Sink, *, with_input: bool) -> int:
    """Run a command on another host and hand over what it prints; return its exit status.

    Raises:
        Unreachable: the connection broke, or the login shell did not run the command.
    """
    mark = new_mark()
    line = remote_line(words, called(seat), mark, watched=not with_input)
    if with_input:
        return _Relay(seat, begun(seat, line), Opening(mark), put).run()
    if variable(LIFE):
        return _Relay(seat, begun(seat, line, os.dup(sys.stdin.fileno())), Opening(mark), put).run()
    source, life = os.pipe()  # which ends with this process, however that ends
    try:
        return _Relay(seat, begun(seat, line, source), Opening(mark), put).run()
    finally:
        os.close(life)


def new_mark() -> str:
    """Return a word that nothing else prints."""
    return f"vmess-{os.urandom(8).hex()}"


def begun(seat: Seat, line: str, source: int | None = None) -> Child:
    """Start a session in which the login shell there gets this line, with our input or that descriptor.

    The descriptor is closed here. Raises Unreachable.
    """
    try:
        return foreground.beside(
            [*seat.argv("-T"), line],
            source=source,
            with_input=source is None,
            descriptors=[seat.descriptor],
        )
    except OSError as error:
        raise Unreachable(f"ssh cannot be run: {reason(error)}", hint="install openssh-client") from None
    finally:
        if source is not None:
            os.close(source)


class _Relay(PlainRecord):
    """A session whose output is passed on, as are signals, which go to the process there."""

    def __init__(self, seat: Seat, process: Child, opening: Opening, put: Sink) -> None:
        self._seat = seat
        self._process = process
        self._opening = opening
        self._put = put
        self._signal = 0
        """The first signal that came; 0 for none."""

    def run(self) -> int:
        """Relay until the command has ended; return its exit status."""
        with signals.heard_by(self._hear):
            self._copy()
            status = self._process.wait()
        if self._signal and (status < 0 or status == BROKEN):
            return foreground.KILLED + self._signal
        if not self._opening.is_over:
            raise self._silence()
        return foreground.as_shell(status)

    def _copy(self) -> None:
        if (source := self._process.stdout) is None:
            return
        with source:
            try:
                while data := os.read(source.fileno(), PIECE):
                    is_begun = self._opening.is_over
                    if output := self._opening.read(data):
                        self._put(output)
                    if self._signal and self._opening.is_over and not is_begun:
                        self._pass_on(self._signal)
            except BrokenPipeError:
                self._pass_on(signals.TERMINATE)
                raise

    def _hear(self, number: int) -> None:
        """Pass a signal on, or keep it until it is known to whom; a second one ends ssh in any case."""
        again, self._signal = bool(self._signal), self._signal or number
        if again or (self._opening.is_over and not self._pass_on(number)):
            self._process.terminate()

    def _pass_on(self, number: int) -> bool:
        """Send a signal to the command there; tell whether that was possible."""
        if not self._opening.pid:
            return False
        line = f"kill -s {signals.NAMES[number]} {self._opening.pid}"
        argv = [*self._seat.argv("-T", "-o", "BatchMode=yes"), line]  # one session more than places
        return foreground.heard(argv, masters.CONNECT_TIME)[0] == 0

    def _silence(self) -> Unreachable:
        """Return the error for a session in which the command was not run."""
        said = self._opening.greeting.decode(errors="replace").strip().rpartition("\n")[2]
        why = f"its login shell said {quoted(said)}" if said else "the connection broke"
        return Unreachable(
            f"{self._seat.host} did not run the command: {why}",
            hint=f"this must work: ssh {self._seat.host} true",
        )


def to_output(data: bytes) -> None:
    """Write to standard output; raises OSError."""
    write_all(sys.stdout.fileno(), data)
