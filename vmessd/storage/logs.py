"""The logs of a VM, opened for readers, with the place where the last run begins.

Everything here blocks, and must run in the VM's turn, like everything in :mod:`vmessd.storage.serial_stream`.
"""

import enum
from types import TracebackType
from typing import Self

from vmessd.core import serial_ports
from vmessd.core.errors import InvalidValue, NotRunning, quoted
from vmessd.core.records import ExitRecord, RunRecord, serial_mark
from vmessd.storage import serial_stream, vmdir
from vmessd.storage.serial_stream import Stream
from vmessd.storage.vmdir import QEMU_LOG, SERIAL_LOG, VMDirectory

LINE = 8 * 1024
"""Maximum bytes before the name of the VM on a command line: QEMU's path (PATH_MAX, limits.h), quoted."""


class LogName(enum.Enum):
    """The logs of a VM."""

    serial = SERIAL_LOG
    """Output of the guest on its serial port."""
    serial2 = serial_ports.log(2)
    serial3 = serial_ports.log(3)
    qemu = QEMU_LOG
    """QEMU's command line and output."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the log of this name; raises InvalidValue."""
        try:
            return cls[text]
        except KeyError:
            raise InvalidValue(f"log {quoted(text)} is not one of {', '.join(cls.__members__)}") from None


class OpenLog:
    """A log and its older part, open for reading. Use as a context manager, or close it."""

    def __init__(self, log: int, stream: Stream, begin: int) -> None:
        self.log = log
        """Descriptor of the log."""
        self.older = stream.older_part
        """Descriptor of the older part; None where there is none."""
        self.begin = begin + stream.older
        """Where the last run begins, in bytes from the beginning of the older part."""
        self.size = stream.size + stream.older
        """Bytes in both parts."""
        self._stream = stream

    def close(self) -> None:
        """Close both."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes between two places, which are counted as `self.begin`."""
        return self._stream.read(begin - self._stream.older, end - begin)

    def tail(self, limit: int) -> bytes:
        """Return the end of the output of the last run: whole lines, at most `limit` bytes."""
        begin = max(self.begin, self.size - limit)
        data = self.read(begin, self.size)
        return data if begin == self.begin else data[data.find(b"\n") + 1 :]


def open_log(directory: VMDirectory, name: LogName, record: RunRecord | ExitRecord | None) -> OpenLog:
    """Open a log; `record` is the record of the last run, for its beginning.

    Raises:
        NotRunning: there is no log, so the VM has never run.
        NoSuchVM, BadFile, Failed: there is no VM, or a file cannot be read.
    """
    with directory.opened() as fd:
        stream = Stream(fd, name.value)
    try:
        if stream.log is None:
            raise NotRunning(
                f"VM {directory.vm} has never run: there is no {name.value}", hint=f"vmess {directory.vm} start"
            )
        if name is not LogName.qemu:
            mark = serial_mark(record, vmdir.SERIAL_LOGS.index(name.value) + serial_ports.FIRST)
            begin = stream.since(serial_stream.place(mark))
        else:
            begin = _last_command(stream, directory.vm)
        return OpenLog(stream.log, stream, begin)
    except BaseException:
        stream.close()
        raise


def _last_command(stream: Stream, vm: str) -> int:
    """Return the place of the last command line that the daemon wrote; the beginning where there is none."""
    at = stream.search(f" -name {vm} -nodefaults -no-user-config -S ".encode(), earliest=False)
    if at is None:
        return -stream.older
    begin = max(-stream.older, at - LINE)
    return begin + stream.read(begin, at - begin).rfind(b"\n") + 1
