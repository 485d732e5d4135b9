"""Where the frames of a capture go: a new file, or a reader that may be slow."""

from __future__ import annotations

import os
import select
import stat
import sys
import time

from vmessctl.output.descriptors import unblocked
from vmessd.core.errors import failing, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.commands.capture.frames import Bytes

STANDARD = "-"
UNWRITTEN_MAX = 16 << 20
"""Bytes kept for a reader that is slow."""
PIECE = 1 << 16
PIECES_MAX = 1024
"""Pieces for one call of writev(2) (IOV_MAX of linux/uio.h)."""
LAST_TIME = 1.0
"""Seconds that a reader may take for the rest."""


def is_stream(file: str) -> bool:
    """Tell whether a file that exists is written to: a FIFO, or a character device such as /dev/null."""
    mode = os.lstat(file).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


class Output:
    """The file, or the pipe, that frames go to."""

    def __init__(self, file: str) -> None:
        """Open it; raises Failed."""
        self.file = "standard output" if file == STANDARD else printable(file)
        with failing(f"{self.file} cannot be written"):
            self._fd = _standard_output() if file == STANDARD else _opened(file)
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._new: list[Bytes] = []
        """What was put in since the last write."""
        self._new_size = 0
        self._unwritten = bytearray()
        """What the reader did not take."""
        self._ends = [0]
        """Where frames end: the last one that is written, and those after it."""
        self.size = 0
        """Bytes that were put in."""

    def fileno(self) -> int:
        """Return the descriptor, for poll(2)."""
        return self._fd

    @property
    def waits(self) -> bool:
        """Something is kept for a reader that is slow."""
        return bool(self._unwritten)

    def put(self, *pieces: Bytes) -> bool:
        """Take a frame, or tell that there is no room for it; raises Failed, BrokenPipeError."""
        size = sum(map(len, pieces))
        if len(self._unwritten) + size > UNWRITTEN_MAX:
            return False
        self._new += pieces
        self.size += size
        self._ends.append(self.size)
        self._new_size += size
        if self._new_size > PIECE:
            self.write()
        return True

    def write(self) -> None:
        """Write what the reader takes; raises Failed, BrokenPipeError."""
        try:
            while self._unwritten:
                del self._unwritten[: os.write(self._fd, self._unwritten[: 16 * PIECE])]
            while self._new:
                _drop(self._new, os.writev(self._fd, self._new[:PIECES_MAX]))
        except BlockingIOError:
            pass
        except BrokenPipeError:
            raise
        except OSError:
            self._keep()
            self._give_up()
            with failing(f"{self.file} cannot be written"):
                raise
        self._keep()
        written = self.size - len(self._unwritten)
        del self._ends[: next((at for at, end in enumerate(self._ends) if end > written), len(self._ends)) - 1]

    def _keep(self) -> None:
        """Copy what the reader did not take: a frame keeps more than itself in memory."""
        for piece in self._new:
            self._unwritten += piece
        self._new.clear()
        self._new_size = 0

    def _give_up(self) -> None:
        """Drop what is not written, and cut a file behind its last whole frame."""
        self.size -= len(self._unwritten)
        self._unwritten.clear()
        if self._is_file:
            whole = max(end for end in self._ends if end <= self.size)
            part, self.size = self.size - whole, whole
            if part:  # counted from where we are: a shell may have opened a file with something in it
                os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR) - part)
        self._ends = [self.size]

    def finish(self) -> int:
        """Give the reader a moment for the rest; return the number of frames that it does not take.

        It gets another moment for the rest of the frame that it has begun. Raises Failed, BrokenPipeError.
        """
        self._write_for_a_moment()
        written, lost = self.size - len(self._unwritten), 0
        begun = next((end for end in self._ends if end >= written), written)
        while self._ends[-1] > begun:
            self._ends.pop()
            lost += 1
        del self._unwritten[begun - written :]
        self.size = begun
        self._write_for_a_moment()
        return lost

    def _write_for_a_moment(self) -> None:
        self.write()
        deadline = time.monotonic() + LAST_TIME
        while self._unwritten and time.monotonic() < deadline:
            select.select([], [self._fd], [], LAST_TIME)
            self.write()


def _drop(pieces: list[Bytes], count: int) -> None:
    """Take the first bytes away from pieces."""
    whole = 0
    while whole < len(pieces) and len(pieces[whole]) <= count:
        count -= len(pieces[whole])
        whole += 1
    del pieces[:whole]
    if count:
        pieces[0] = memoryview(pieces[0])[count:]


def _standard_output() -> int:
    return unblocked(sys.stdout.fileno())


def _opened(file: str) -> int:
    if os.path.lexists(file) and is_stream(file):
        fd = os.open(file, os.O_WRONLY | os.O_NOCTTY)  # a FIFO when there is a reader
        os.set_blocking(fd, False)
        return fd
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
