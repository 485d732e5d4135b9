"""What is sent over a console, and how much of it QEMU has taken.

QEMU reads of its socket what the guest's serial port has room for: one byte, or up to 16 where the guest has
switched the port's FIFO on, also of a guest that stands still (QEMU 7.2; hw/char/serial.c,
serial_can_receive1). The rest lies in the socket, and is lost when either side hangs up. Linux tells what
lies there by the memory of its messages (SIOCOUTQ; net/unix/af_unix.c, unix_outq_len), which are freed when
they are read to their end. Each byte is sent as a message of its own, so that they can be counted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import termios


class Delivery:
    """Bytes on their way to a guest."""

    def __init__(self, console: int) -> None:
        """Send over a socket of AF_UNIX that does not block."""
        self._console = console
        self._weight = _weight()
        self._unsent = b""
        self._sent = 0
        self._is_lost = False
        """The other side hung up with something unread: what lies in the socket is not told any more."""
        self.taken = 0
        """Bytes that QEMU has read for certain."""

    @property
    def given(self) -> int:
        """Return how many bytes there were to send so far."""
        return self._sent + len(self._unsent)

    @property
    def unsent(self) -> int:
        """Return how many bytes the socket has no room for yet."""
        return len(self._unsent)

    @property
    def left(self) -> int:
        """Return how many bytes were not taken yet, as far as is known."""
        return self.given - self.taken

    def put(self, data: bytes) -> None:
        """Have more sent."""
        self._unsent += data

    def keep(self, length: int) -> None:
        """Forget what is not sent yet beyond a length."""
        self._unsent = self._unsent[:length]

    def send(self) -> None:
        """Send as much as there is room for; where nobody is on the other side, nothing."""
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
        """Find out how much was taken."""
        lying = -(-_outgoing(self._console) // self._weight)
        poll = select.poll()
        poll.register(self._console, 0)
        # Asked last: the error is there before the kernel drops what lies unread (unix_release_sock).
        if not self._is_lost and not any(event & select.POLLERR for _, event in poll.poll(0)):
            self.taken = max(self.taken, self._sent - lying)

    def hung_up(self, error: OSError) -> None:
        """Note with which error a read or a write has failed."""
        self._is_lost = self._is_lost or error.errno == errno.ECONNRESET

    def count(self) -> str:
        """Return how much was taken, in words."""
        least = "at least " if self._is_lost else ""
        return f"{least}{self.taken} of {self.given} bytes of the input"


def _outgoing(sock: int) -> int:
    """Return the memory of what was sent and not read yet."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def _weight() -> int:
    """Return the memory of a message of one byte."""
    import _socket  # noqa: PLC0415 -- as in `client`

    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        ours.send(b"x")
        return _outgoing(ours.fileno())
    finally:
        ours.close()
        theirs.close()
