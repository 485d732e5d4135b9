"""The archive of a VM: a tar with sparse members, as GNU tar and Python's `tarfile` read it. Pure.

The members are `<vm>/vmess-export.json`, which says what follows; the files of the VM; and
`<vm>/vmess-checksums.json` with the SHA-256 of what is stored of each. A file with holes is a member in the
format "PAX 1.0": its map of data, padded to a block, then the data without the holes (GNU tar manual, "Storing
Sparse Files"). Sizes and offsets are in bytes.
"""

import functools
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, overload

from vmessd.core.dataclass import dataclass

BLOCK = 512
FORMAT = 1
"""The version of the archive, which rises if an older vmess could not read a new one."""
MANIFEST, CHECKSUMS = "vmess-export.json", "vmess-checksums.json"
SEGMENTS_MAX = 1 << 18
"""Pieces of data of one file. A file with more gets some of its holes filled."""
END = bytes(2 * BLOCK)
_OCTAL_MAX = 8**11 - 1
"""The largest size in octal digits; a larger one is in binary, as GNU tar writes it (its header tar.h)."""


class Segment(NamedTuple):
    """A piece of a file that has data."""

    offset: int
    size: int


class Segments(Sequence[Segment]):
    """Pieces of a file, in order, as one array of numbers.

    A file may have hundreds of thousands of them. As many objects would make the garbage collector of Python
    stop all threads for a tenth of a second at a time.
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        """`numbers` are offset and size of each piece."""
        self._numbers = array("q", numbers)

    @overload
    def __getitem__(self, index: int) -> Segment: ...

    @overload
    def __getitem__(self, index: slice) -> "Sequence[Segment]": ...

    def __getitem__(self, index: int | slice) -> "Segment | Sequence[Segment]":
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = 2 * range(len(self))[index]
        return Segment(self._numbers[at], self._numbers[at + 1])

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def __iter__(self) -> Iterator[Segment]:
        numbers = iter(self._numbers)
        return map(Segment, numbers, numbers)

    def add(self, offset: int, size: int, gap: int = 0) -> None:
        """Add a piece; one that begins at most `gap` bytes behind the last one becomes a part of that."""
        last = len(self._numbers) - 2
        if last >= 0 and offset - sum(self._numbers[last:]) <= gap:
            self._numbers[last + 1] = offset + size - self._numbers[last]
        else:
            self._numbers.extend((offset, size))


@dataclass(frozen=True)
class Entry:
    """A file to be stored."""

    file: str
    size: int
    segments: Sequence[Segment] | None = None
    """Where its data are, in order; None for a file without holes."""

    @functools.cached_property
    def data(self) -> int:
        """The number of its bytes that are stored."""
        return self.size if self.segments is None else sum(segment.size for segment in self.segments)

    @functools.cached_property
    def map(self) -> bytes:
        """The map that precedes the data of a file with holes; empty for one without."""
        if self.segments is None:
            return b""
        text, end = bytearray(), 0
        for offset, size in self.segments:
            text += b"%d\n%d\n" % (offset, size)
            end = offset + size
        count = len(self.segments)
        if end < self.size:  # the hole at the end
            text += b"%d\n0\n" % self.size
            count += 1
        text[:0] = b"%d\n" % count
        return bytes(text) + padding(len(text))


def padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes up to the next block."""
    return bytes(-size % BLOCK)


def header(vm: str, entry: Entry) -> bytes:
    """Return the header of a member."""
    name, records = f"{vm}/{entry.file}", {}
    stored = entry.data + len(entry.map)
    if entry.segments is not None:
        records = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": name,
            "GNU.sparse.realsize": str(entry.size),
        }
        name = f"{vm}/GNUSparseFile.0/{entry.file}"
    extended = b"".join(_record(key, value) for key, value in records.items())
    before = b""
    if extended:
        before = (
            _block(f"{vm}/PaxHeaders/{entry.file}", len(extended), b"x") + extended + padding(len(extended))
        )
    return before + _block(name, stored, b"0")


def manifest(vm: str, entries: Iterable[Entry]) -> bytes:
    """Return the first member: what follows."""
    files = {entry.file: {"size": entry.size, "data": entry.data} for entry in entries}
    return _json({"format": FORMAT, "vm": vm, "files": files})


def checksums(sums: Mapping[str, str]) -> bytes:
    """Return the last member: the SHA-256 of what is stored of each file, in hexadecimal."""
    return _json({"sha256": dict(sums)})


def merged(segments: Sequence[Segment], most: int = SEGMENTS_MAX) -> Sequence[Segment]:
    """Return segments with the smallest holes between them filled until there are at most `most`."""
    gap = 1 << 16
    while len(segments) > most:
        fewer = Segments()
        for offset, size in segments:
            fewer.add(offset, size, gap)
        segments, gap = fewer, gap * 4
    return segments


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _record(key: str, value: str) -> bytes:
    """Return a record of an extended header, which begins with its own length (pax(1))."""
    rest = f" {key}={value}\n"
    length = len(rest)
    while len(str(length)) + len(rest) != length:
        length = len(str(length)) + len(rest)
    return f"{length}{rest}".encode()


def _block(name: str, size: int, kind: bytes) -> bytes:
    """Return the block of a header (pax(1), "ustar Interchange Format")."""
    octal = size <= _OCTAL_MAX
    fields = (
        *(name.encode().ljust(100, b"\0"), b"0000640\0", b"0000000\0", b"0000000\0"),
        *(
            b"%011o\0" % size if octal else b"\x80" + size.to_bytes(11),
            b"00000000000\0",
            b" " * 8,
            kind,
            bytes(100),
        ),
        *(b"ustar\x0000", bytes(32), bytes(32), b"0000000\0", b"0000000\0", bytes(155), bytes(12)),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
