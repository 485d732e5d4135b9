"""Input to a console, and how much of it QEMU has taken.

QEMU reads from its socket as much as the guest's serial port has room for: one byte, or up to 16 if the guest
has enabled the port's FIFO, even while the guest is paused (QEMU 7.2; hw/char/serial.c, serial_can_receive1).
The rest stays in the socket, and is lost when either side hangs up. Linux reports its size as the memory of its
messages (SIOCOUTQ; net/unix/af_unix.c, unix_outq_len), each of which is freed when it has been read completely.
Each byte is sent as its own message, so that bytes can be counted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import termios

from vmessd.core.errors import counted


class Delivery:
    """Bytes in transit to a guest."""

    def __init__(self, console: int) -> None:
        """Send over a non-blocking AF_UNIX socket."""
        self._console = console
        self._weight = _weight()
        self._unsent = b""
        self._sent = 0
        self._is_lost = False
        """The other side hung up with bytes unread, so the size of the queue is no longer known."""
        self.taken = 0
        """Bytes that QEMU has certainly read."""

    @property
    def given(self) -> int:
        """The number of bytes given to send so far."""
        return self._sent + len(self._unsent)

    @property
    def unsent(self) -> int:
        """The number of bytes that the socket has no room for yet."""
        return len(self._unsent)

    @property
    def left(self) -> int:
        """The number of bytes not known to be taken."""
        return self.given - self.taken

    def put(self, data: bytes) -> None:
        """Queue bytes."""
        self._unsent += data

    def keep(self, length: int) -> None:
        """Drop queued bytes beyond a length."""
        self._unsent = self._unsent[:length]

    def send(self) -> None:
        """Send as many bytes as there is room for; none if the other side has hung up."""
        at, unsent = 0, self._unsent
        try:
            while at < len(unsent):
                os.write(self._console, unsent[at : at + 1])
                at += 1
        except BlockingIOError:
            pass
        except OSError as error:
            self.hung_up(error)
        self._sent += at
        self._unsent = unsent[at:]

    def look(self) -> None:
        """Update `taken`."""
        queued = -(-_outgoing(self._console) // self._weight)
        poll = select.poll()
        poll.register(self._console, 0)
        # Checked last: POLLERR is set before the kernel drops unread messages (unix_release_sock).
        if not self._is_lost and not any(event & select.POLLERR for _, event in poll.poll(0)):
            self.taken = max(self.taken, self._sent - queued)

    def hung_up(self, error: OSError) -> None:
        """Note the error of a failed read or write."""
        self._is_lost = self._is_lost or error.errno == errno.ECONNRESET

    def count(self) -> str:
        """Return the number of bytes taken, in words."""
        least = "at least " if self._is_lost else ""
        return f"{least}{self.taken} of {counted(self.given, 'byte')} of the input"


def _outgoing(sock: int) -> int:
    """Return the memory of messages that were sent and not read yet."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _weight() -> int:
    """Return the memory of a one-byte message."""
    import _socket  # noqa: PLC0415 -- as in `client`

    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        ours.send(b"x")
        return _outgoing(ours.fileno())
    finally:
        ours.close()
        theirs.close()
