"""The serial log of a VM as one stream, in which a place can be found again after the log was shortened.

QEMU appends to `serial.log` in all runs of a VM. Rotation moves the front to `serial.log.1`, and the two parts
together have no gap. So a place is an offset and the bytes before it; if these are no longer at the offset,
they are searched for.

Everything here blocks, and must run in the VM's turn (:meth:`vmessd.vm.machine.Machine.change`), as rotation
does: otherwise the log may be shortened between two reads.
"""

import contextlib
import os
import time
from types import TracebackType
from typing import NamedTuple, Self

from vmessd.core.control_sequences import plain_lines
from vmessd.core.errors import InvalidValue, failing, quoted
from vmessd.storage import log_rotation, safefile
from vmessd.storage.vmdir import LINE_LIMIT, SERIAL_LOG, VMDirectory

BEFORE = 128
"""Bytes before a place that identify it."""
SEARCH = 3 * log_rotation.CAP
"""Bytes that are searched for them: more than both parts of a rotated log have."""
WINDOW = 256 * 1024
"""Bytes searched in one step, which holds the interpreter lock for less than 1 ms."""
SEARCH_TIME = 2.0
"""Seconds after which a search gives up, because other work of the VM waits for it."""
TAIL = 16 * 1024
"""Bytes that are searched for the last lines."""


class Mark(NamedTuple):
    """A place in the stream."""

    offset: int
    """In serial.log; a negative one is in the older part, counted from its end."""
    before: bytes
    """The bytes before the place."""

    def __str__(self) -> str:
        return f"{self.offset}:{self.before.hex()}"

    @classmethod
    def parse(cls, text: str) -> "Mark":
        """Return the mark for a text; raises InvalidValue."""
        offset, _, before = text.partition(":")
        with contextlib.suppress(ValueError):
            mark = cls(int(offset[:20]), bytes.fromhex(before[: 2 * BEFORE]))
            if str(mark) == text and abs(mark.offset) < 2**62 and (mark.before or not mark.offset):
                return mark
        raise InvalidValue(f"{quoted(text)} is not a place in a serial log")


def place(text: str) -> Mark:
    """Return the place in a record; the beginning of the log where the record has none."""
    try:
        return Mark.parse(text)
    except InvalidValue:
        return Mark(0, b"")


class Chunk(NamedTuple):
    """A piece of the stream."""

    data: bytes
    mark: Mark
    """The place after it."""
    gap: bool
    """The requested place no longer exists; the data are from a later one."""


class Stream:
    """Both parts of a log as one file. Use as a context manager, or close it."""

    def __init__(self, directory: int, name: str = SERIAL_LOG) -> None:
        """Open those parts of a log that exist; raises BadFile, Failed."""
        self._parts = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.log, self.size = self._open(directory, name)
            """Descriptor of the log, None where there is none, and its size in bytes."""
            self.older_part, self.older = self._open(directory, f"{name}{log_rotation.OLDER}")
            """The same for its older part."""
            undo.pop_all()

    def _open(self, directory: int, name: str) -> tuple[int | None, int]:
        with failing(f"{safefile.place(directory, name)} cannot be read"):
            try:
                fd = safefile.open_plain(directory, name, os.O_RDONLY)
            except FileNotFoundError:
                return None, 0
            self._parts.callback(os.close, fd)
            return fd, os.fstat(fd).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, _error: object, _trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close both parts."""
        self._parts.close()

    def read(self, offset: int, limit: int) -> bytes:
        """Return at most `limit` bytes from an offset, counted as in :class:`Mark`; raises Failed."""
        data = b""
        with failing("the serial log cannot be read"):
            if offset < 0 and self.older_part is not None:
                wanted = min(limit, -offset)
                data = (
                    os.pread(self.older_part, wanted, self.older + offset) if self.older + offset >= 0 else b""
                )
                if len(data) < wanted:
                    return data
                offset += wanted
            if self.log is not None and offset >= 0 and limit > len(data):
                data += os.pread(self.log, limit - len(data), offset)
        return data

    def at(self, offset: int) -> Mark:
        """Return the place at an offset."""
        begin = max(-self.older, offset - BEFORE)
        return Mark(offset, self.read(begin, offset - begin))

    def find(self, mark: Mark, *, earliest: bool) -> int | None:
        """Return the present offset of a place; None where it no longer exists.

        `earliest` selects the first or the last of several identical places.
        """
        if not mark.before:  # the beginning of the stream
            return -self.older
        begin = mark.offset - len(mark.before)
        if (
            mark.offset <= self.size
            and begin >= -self.older
            and self.read(begin, len(mark.before)) == mark.before
        ):
            return mark.offset
        found = self.search(mark.before, earliest=earliest)
        return None if found is None else found + len(mark.before)

    def since(self, mark: Mark) -> int:
        """Return the present offset of a place, the first one like it; the beginning if it no longer exists."""
        found = self.find(mark, earliest=True)
        return -self.older if found is None else found

    def search(self, needle: bytes, *, earliest: bool) -> int | None:
        """Return the offset of some bytes in the last SEARCH bytes of the log; None where they are not there.

        An attacker may have chosen both the bytes and the log to make this slow. So it reads windows, and
        always searches forwards: `bytes.find` takes linear time, but the time of `bytes.rfind` also grows with
        the needle (CPython's Objects/stringlib/fastsearch.h, "two-way" and "rfind").
        """
        give_up = time.monotonic() + SEARCH_TIME
        first = max(-self.older, self.size - SEARCH)
        begins = range(first, self.size, WINDOW)
        for begin in begins if earliest else reversed(begins):
            if time.monotonic() > give_up:
                break
            window = self.read(begin, WINDOW + len(needle) - 1)
            at = window.find(needle) if earliest else _last(window, needle)
            if at >= 0:
                return begin + at
        return None


def _last(data: bytes, needle: bytes) -> int:
    """Return `data.rfind(needle)` in linear time, by searching the reversed data."""
    at = data[::-1].find(needle[::-1])
    return at if at < 0 else len(data) - at - len(needle)


def end(directory: VMDirectory, name: str = SERIAL_LOG) -> Mark:
    """Return the end of the stream; raises NoSuchVM, BadFile, Failed."""
    with directory.opened() as fd, Stream(fd, name) as stream:
        return stream.at(stream.size)


def read(
    directory: VMDirectory, mark: Mark, limit: int, name: str = SERIAL_LOG, *, earliest: bool = False
) -> Chunk:
    """Return at most `limit` bytes after a place; raises as :func:`end`.

    `earliest` is as for :meth:`Stream.find`.
    """
    with directory.opened() as fd, Stream(fd, name) as stream:
        found = stream.find(mark, earliest=earliest)
        offset = -stream.older if found is None else found
        data = stream.read(offset, limit)
        return Chunk(data, stream.at(offset + len(data)), found is None)


def recent(directory: VMDirectory, start: Mark, limit: int, name: str = SERIAL_LOG) -> Mark:
    """Return where the last whole lines since a place begin, at most `limit` bytes; raises as :func:`end`."""
    with directory.opened() as fd, Stream(fd, name) as stream:
        begin = stream.since(start)
        if stream.size - limit <= begin:
            return stream.at(begin)
        data = stream.read(stream.size - limit, limit)
        return stream.at(stream.size - limit + data.find(b"\n") + 1)


def last_lines(directory: VMDirectory, start: Mark, stop: Mark | None, count: int) -> list[str]:
    """Return the last `count` lines between two places as plain text; `stop` None is the end of the stream."""
    with directory.opened() as fd, Stream(fd) as stream:
        until = stream.size if stop is None else stream.find(stop, earliest=False)
        if until is None:
            return []
        begin = max(stream.since(start), until - TAIL)
        text = stream.read(begin, max(0, until - begin)).decode(errors="backslashreplace")
    return [line[:LINE_LIMIT] for line in plain_lines(text)][-count:]
