"""A serial console that is only read: from the log, by any number of watchers beside the one who has it."""

from __future__ import annotations

import binascii
import select

from vmessctl.commands import logs
from vmessctl.commands.console import serial_port
from vmessctl.output.terminal import say
from vmessctl.stream import Stream
from vmessd.core.errors import DONE, INTERRUPTED, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmessctl.cli.verbs import Invocation


class Feed:
    """The output of a guest as it comes, until its run ends."""

    def __init__(self, invocation: Invocation, vm: str) -> None:
        """Begin with the last lines that it has printed; raises VmessError."""
        self._vm = vm
        self._since = "recent"
        self.ended = ""
        """How the run has ended; empty before."""
        port = serial_port.parameters(invocation)
        self._stream = Stream(invocation, "Serial", lambda: {"vm": vm, "since": self._since, **port}, more=True)

    def fileno(self) -> int | None:
        """Return the descriptor to wait on; None while there is no daemon."""
        return self._stream.fileno()

    def limit(self) -> float | None:
        """Return the seconds after which to call :meth:`pieces` even without input; None for never."""
        return self._stream.limit()

    def pieces(self, *, ready: bool) -> Iterator[bytes]:
        """Yield new output; raises VmessError."""
        for reply in self._stream.news(ready=ready):
            piece = reply["piece"]
            self._since = piece["mark"]
            self.ended = piece["ended"] or ""
            if piece["gap"]:
                say(f"{self._vm}: some of its output is no longer in the log")
            yield binascii.a2b_base64(piece["data"])

    def close(self) -> None:
        """End the watch."""
        self._stream.close()


def run(invocation: Invocation) -> int:
    """Print what the guest prints until its run ends or Ctrl-C; return the exit status."""
    (vm,) = invocation.vms
    feed = Feed(invocation, vm)
    put = logs.printer(invocation, logs.plain)
    say(f"{vm}: read-only; Ctrl-C ends")
    try:
        while not feed.ended:
            waited_for = [] if (fd := feed.fileno()) is None else [fd]
            ready, _, _ = select.select(waited_for, [], [], feed.limit())
            for data in feed.pieces(ready=bool(ready)):
                put(data)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        put(b"")
        feed.close()
    say(f"{vm}: {printable(feed.ended)}")
    return DONE
