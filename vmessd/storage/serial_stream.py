"""The log of a VM's serial port as one stream, in which a place is found again when the log lost its front.

QEMU appends to `serial.log` for all runs of a VM. Whoever keeps it short takes off its front, in place, and
has that in `serial.log.1`: the two together are without a gap. A place is therefore an offset and the bytes
before it; where those are not at the offset any more, they are looked for.

Everything here blocks, and has to be done in the VM's turn (:meth:`vmessd.vm.machine.Machine.change`), as the
shortening is: a log that is cut between two looks at it is not what it was.
"""

import contextlib
import os
import time
from types import TracebackType
from typing import NamedTuple, Self

from vmessd.core.errors import InvalidValue, failing, printable, quoted
from vmessd.storage import log_rotation, safefile
from vmessd.storage.vmdir import LINE_LIMIT, SERIAL_LOG, VMDirectory

BEFORE = 128
"""Bytes before a place by which it is found again."""
SEARCH = 3 * log_rotation.CAP
"""Bytes in which they are looked for: more than the log and its older part have where they are kept short."""
WINDOW = 256 * 1024
"""Bytes that are searched in one go: other threads wait for the interpreter that long, below 1 ms."""
SEARCH_TIME = 2.0
"""Seconds after which a search is given up: all else that happens to the VM waits for it."""
TAIL = 16 * 1024
"""Bytes in which the last lines are looked for."""


class Mark(NamedTuple):
    """A place in the stream."""

    offset: int
    """In serial.log; below 0 in its older part, counted from its end."""
    before: bytes
    """What stands there before it."""

    def __str__(self) -> str:
        return f"{self.offset}:{self.before.hex()}"

    @classmethod
    def parse(cls, text: str) -> "Mark":
        """Return what a mark's text means; raises InvalidValue."""
        offset, _, before = text.partition(":")
        with contextlib.suppress(ValueError):
            mark = cls(int(offset[:20]), bytes.fromhex(before[: 2 * BEFORE]))
            if str(mark) == text and abs(mark.offset) < 2**62 and (mark.before or not mark.offset):
                return mark
        raise InvalidValue(f"{quoted(text)} is no place in a serial log")


def place(text: str) -> Mark:
    """Return the place a record tells of; the beginning of the log where it tells none."""
    try:
        return Mark.parse(text)
    except InvalidValue:
        return Mark(0, b"")


class Chunk(NamedTuple):
    """What was read."""

    data: bytes
    mark: Mark
    """The place behind it."""
    gap: bool
    """The place it was to be read from is not there any more: this comes later in the stream."""


class Stream:
    """Both parts of a log as one file. Use as a context manager, or close it."""

    def __init__(self, directory: int, name: str = SERIAL_LOG) -> None:
        """Open what there is of a log; raises BadFile, Failed."""
        self._parts = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.log, self.size = self._open(directory, name)
            """Descriptor of the log, None where there is none, and its bytes."""
            self.older_part, self.older = self._open(directory, f"{name}{log_rotation.OLDER}")
            """The same of its older part."""
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
        """Return bytes from an offset on, as Mark counts; raises Failed."""
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
        """Return the offset a place has now; None where it is gone.

        `earliest` tells which one to take where several look the same.
        """
        if not mark.before:  # nothing was there yet: it is the beginning
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

    def search(self, needle: bytes, *, earliest: bool) -> int | None:
        """Return where some bytes stand in the last SEARCH of the log; None where they do not.

        Both the bytes and the log may be made by somebody who wants this to take long. So it is read window by
        window, and always forwards: `bytes.find` takes a time that is linear in what is searched, `bytes.rfind`
        one that also grows with the needle (CPython's Objects/stringlib/fastsearch.h, "two-way" and "rfind").
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
    """Return what `data.rfind(needle)` does, in linear time: it is the first one from behind."""
    at = data[::-1].find(needle[::-1])
    return at if at < 0 else len(data) - at - len(needle)


def end(directory: VMDirectory) -> Mark:
    """Return the place behind everything that was printed; raises NoSuchVM, BadFile, Failed."""
    with directory.opened() as fd, Stream(fd) as stream:
        return stream.at(stream.size)


def read(directory: VMDirectory, mark: Mark, limit: int, *, earliest: bool = False) -> Chunk:
    """Return what was printed behind a place, at most `limit` bytes; raises as :func:`end`.

    `earliest` is as for :meth:`Stream.find`.
    """
    with directory.opened() as fd, Stream(fd) as stream:
        found = stream.find(mark, earliest=earliest)
        offset = -stream.older if found is None else found
        data = stream.read(offset, limit)
        return Chunk(data, stream.at(offset + len(data)), found is None)


def last_lines(directory: VMDirectory, start: Mark, stop: Mark | None, count: int) -> list[str]:
    """Return the last lines printed between two places, the second being the end by default, escaped."""
    with directory.opened() as fd, Stream(fd) as stream:
        begin = stream.find(start, earliest=True)
        until = stream.size if stop is None else stream.find(stop, earliest=False)
        if until is None:
            return []
        begin = max(-stream.older if begin is None else begin, until - TAIL)
        text = stream.read(begin, max(0, until - begin)).decode(errors="backslashreplace")
    lines = [line.strip("\r") for line in text.split("\n")]
    return [printable(line[:LINE_LIMIT]) for line in lines if line.strip()][-count:]
