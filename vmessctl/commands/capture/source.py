"""The frames of one interface, from the memfd into which QEMU writes them."""

from __future__ import annotations

import fcntl
import os
import time

from vmessctl.client import connect
from vmessctl.commands.capture.frames import Reader
from vmessctl.output.terminal import say
from vmessd.core import names
from vmessd.core.errors import VmessError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Reply
    from vmessctl.commands.capture.frames import Frame

PIECE = 1 << 20
BUSY, IDLE = 0.004, 0.05
"""Seconds between two looks at the memfd, while frames come and while none do: it cannot be waited for."""
CALM = 20
"""Looks without a frame after which an interface counts as idle."""
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_REALTIME_COARSE = 5  # linux/time.h; the clock of file times


class Source:
    """The frames of one interface."""

    def __init__(self, invocation: Invocation, vm: str, index: int) -> None:
        """Begin the capture, or wait for the start of the VM; raises VmessError."""
        self.name = names.long_tap(vm, index)
        self.ended = False
        self.is_ready = False
        """The daemon has something to say."""
        self._client = connect(invocation)
        self._memory = -1
        self._read = self._freed = 0
        self._idle = 0
        self._reader: Reader | None = None
        try:
            self._client.send("Capture", {"vm": vm, "interface": index}, more=True)
            self._take(self._client.receive()[0]["capture"])
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor on which the daemon says that something has changed."""
        return self._client.fileno()

    def pause(self) -> float | None:
        """Return the seconds until the next look; None while there is nothing to look at."""
        if self._reader is None or self.ended:
            return None
        return IDLE if self._idle > CALM else BUSY

    def frames(self) -> Iterator[Frame]:
        """Yield the frames that are there when the look begins; raises VmessError."""
        try:
            if self.is_ready and not self.ended:
                self._client.fill()
            while self._client.pending() and not self.ended:
                self._take(self._client.receive()[0]["capture"])
        except VmessError:
            self.ended = True
            raise
        if self._reader is None:
            return
        self._idle += 1
        memory = os.fstat(self._memory)  # QEMU may write faster than we read
        came = min(time.time_ns(), memory.st_mtime_ns + _mtime_lag()) // 1000
        while data := os.pread(self._memory, min(PIECE, memory.st_size - self._read), self._read):
            yield from self._reader.frames(data, came, is_end=self._read + len(data) == memory.st_size)
            if not self._reader.taken:
                break
            self._idle = 0
            self._read += self._reader.taken
            self._free()

    def close(self) -> None:
        """End the capture. QEMU writes no more, even if there is no daemon that would tell it."""
        if self._memory >= 0:
            fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
            os.close(self._memory)
            self._memory = -1
        self._client.close()

    def _take(self, step: Reply) -> None:
        """Take a step of the capture."""
        progress = step["progress"]
        if progress["ended"] is not None:
            self.ended = True
            say(f"{self.name}: {printable(progress['ended'])}")
        elif progress["capturing"]:
            self._memory = self._client.descriptors(1)[0]
            self._reader = Reader(progress["mac"], progress["header"] or 0)
        else:
            say(f"{self.name}: waiting for the start of {progress['vm']}")

    def _free(self) -> None:
        """Give the memory of what was read back, by a hole in the file."""
        if self._read - self._freed >= PIECE:
            _punched(self._memory, self._freed, self._read - self._freed)
            self._freed = self._read


def _mtime_lag() -> int:
    """Return the nanoseconds that the time of a write may be too early: up to two ticks of the kernel."""
    return int(2e9 * time.clock_getres(_REALTIME_COARSE))


def _punched(fd: int, begin: int, length: int) -> None:
    """Make a hole in a file; a kernel that cannot leaves it as it is, and the daemon ends a capture so long."""
    import ctypes  # noqa: PLC0415 -- only a long capture needs it

    fallocate = ctypes.CDLL(None).fallocate64
    fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_int64(begin), ctypes.c_int64(length))
