"""The logs of a VM, open for whoever wants to read what was printed since its last start.

A log may have an older part beside it, `<log>.1`; the two are read as one. Everything here blocks.
"""

import contextlib
import dataclasses
import enum
import os
from typing import Self

from vmessd import safefile
from vmessd.errors import InvalidValue, NotRunning, failing, quoted
from vmessd.records import ExitRecord, RunRecord
from vmessd.seriallog import SEARCH, Mark
from vmessd.vmdir import QEMU_LOG, SERIAL_LOG, VMDirectory


class LogName(enum.Enum):
    """Which log."""

    serial = SERIAL_LOG
    """What the guest printed on its serial port."""
    qemu = QEMU_LOG
    """QEMU's command line, and what QEMU printed."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the log of this name; raises InvalidValue."""
        try:
            return cls[text]
        except KeyError:
            raise InvalidValue(f"log {quoted(text)} is none of {', '.join(cls.__members__)}") from None


@dataclasses.dataclass
class OpenLog:
    """A log and its older part, open for reading. Use as a context manager, or close it."""

    log: int
    """Descriptor."""
    older: int | None
    """Descriptor of its older part."""
    begin: int = 0
    """Where the last run begins, counted from the beginning of the older part."""
    size: int = 0
    """Bytes in both parts when they were opened."""

    def close(self) -> None:
        """Close both."""
        os.close(self.log)
        if self.older is not None:
            os.close(self.older)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def older_size(self) -> int:
        """Return the bytes of the older part."""
        return 0 if self.older is None else os.fstat(self.older).st_size

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes between two places, counted as `begin` is."""
        middle = self.older_size()
        data = b""
        if self.older is not None and begin < middle:
            data = os.pread(self.older, min(end, middle) - begin, begin)
        if end > middle:
            data += os.pread(self.log, end - max(begin, middle), max(0, begin - middle))
        return data

    def tail(self, limit: int) -> bytes:
        """Return the end of what the last run printed: whole lines, at most so many bytes."""
        begin = max(self.begin, self.size - limit)
        data = self.read(begin, self.size)
        return data if begin == self.begin else data[data.find(b"\n") + 1 :]


def open_log(directory: VMDirectory, name: LogName, record: RunRecord | ExitRecord | None) -> OpenLog:
    """Open a log; `record` tells of the run whose beginning is looked for.

    Raises:
        NotRunning: there is no log, so the VM has never run.
        NoSuchVM, BadFile, Failed: there is no VM, or a file that cannot be read.
    """
    with directory.opened() as fd, failing(f"{directory}/{name.value} cannot be read"):
        try:
            # The log first: what is cut off it meanwhile is then there twice, and not missing.
            found = OpenLog(safefile.open_plain(fd, name.value, os.O_RDONLY), None)
        except FileNotFoundError:
            raise NotRunning(f"VM {directory.vm} has never run: there is no {name.value}") from None
        try:
            size = os.fstat(found.log).st_size
            with contextlib.suppress(FileNotFoundError):
                found.older = safefile.open_plain(fd, f"{name.value}.1", os.O_RDONLY)
            found.size = found.older_size() + size
            if name is LogName.serial:
                found.begin = _begin_by_mark(found, record.serial if record else "")
            else:
                found.begin = _begin_by_command(found, directory.vm)
        except BaseException:
            found.close()
            raise
    return found


def _begin_by_mark(log: OpenLog, text: str) -> int:
    """Return where the run begins that a record tells of; 0, where all begins, if that cannot be found."""
    try:
        mark = Mark.parse(text)
    except InvalidValue:
        return 0
    length = len(mark.before)
    begin = log.older_size() + mark.offset
    if not length or (length <= begin <= log.size and log.read(begin - length, begin) == mark.before):
        return begin if length else 0
    start = max(0, log.size - SEARCH)
    at = log.read(start, log.size).find(mark.before)
    return 0 if at < 0 else start + at + length


def _begin_by_command(log: OpenLog, vm: str) -> int:
    """Return where the last command line stands, which launch.launch wrote; 0 where there is none."""
    start = max(0, log.size - SEARCH)
    data = log.read(start, log.size)
    at = data.rfind(f" -name {vm} -nodefaults -no-user-config -S ".encode())
    return 0 if at < 0 else start + data.rfind(b"\n", 0, at) + 1
