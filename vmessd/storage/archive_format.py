"""The archive of a VM: a tar with sparse members, as GNU tar and Python's `tarfile` read it. Pure.

The members are `<vm>/vmess-export.json`, which says what follows; the files of the VM; and
`<vm>/vmess-checksums.json` with the SHA-256 of what is stored of each. A file with holes is a member in the
format "PAX 1.0": its map of data, padded to a block, then the data without the holes (GNU tar manual, "Storing
Sparse Files"). Sizes and offsets are in bytes.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

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


class Entry(NamedTuple):
    """A file to be stored."""

    file: str
    size: int
    segments: Sequence[Segment] | None = None
    """Where its data are, in order; None for a file without holes."""

    @property
    def data(self) -> int:
        """The number of its bytes that are stored."""
        return self.size if self.segments is None else sum(segment.size for segment in self.segments)


def padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes up to the next block."""
    return bytes(-size % BLOCK)


def header(vm: str, entry: Entry) -> bytes:
    """Return the header of a member."""
    name, records = f"{vm}/{entry.file}", {}
    stored = entry.data + len(sparse_map(entry))
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


def sparse_map(entry: Entry) -> bytes:
    """Return the map that precedes the data of a file with holes; empty for one without."""
    if entry.segments is None:
        return b""
    numbers = [number for segment in entry.segments for number in segment]
    if sum(entry.segments[-1] if entry.segments else (0, 0)) < entry.size:
        numbers += [entry.size, 0]  # the hole at the end
    text = "".join(f"{number}\n" for number in (len(numbers) // 2, *numbers)).encode()
    return text + padding(len(text))


def manifest(vm: str, entries: Iterable[Entry]) -> bytes:
    """Return the first member: what follows."""
    files = {entry.file: {"size": entry.size, "data": entry.data} for entry in entries}
    return _json({"format": FORMAT, "vm": vm, "files": files})


def checksums(sums: Mapping[str, str]) -> bytes:
    """Return the last member: the SHA-256 of what is stored of each file, in hexadecimal."""
    return _json({"sha256": dict(sums)})


def merged(segments: Sequence[Segment], most: int = SEGMENTS_MAX) -> list[Segment]:
    """Return segments with the smallest holes between them filled until there are at most `most`."""
    found, gap = list(segments), 1 << 16
    while len(found) > most:
        closer: list[Segment] = []
        for segment in found:
            before = closer[-1] if closer else None
            if before is not None and segment.offset - sum(before) <= gap:
                closer[-1] = Segment(before.offset, sum(segment) - before.offset)
            else:
                closer.append(segment)
        found, gap = closer, gap * 4
    return found


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
