"""The reader of an archive of a VM, which trusts nothing in it. Pure: bytes go in, and what to write comes out.

It takes what :mod:`vmessd.storage.archive_format` describes, also if GNU tar has packed it again, and refuses
everything else at the first byte that shows it: other types of members, other names, wrong sizes, an end that
comes too early. Sizes and offsets are in bytes.
"""

import hashlib
import json
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, TypeVar

from vmessd.core import names, settings
from vmessd.core.errors import Failed, quoted
from vmessd.storage import contents
from vmessd.storage.archive_format import BLOCK, CHECKSUMS, FORMAT, MANIFEST, SEGMENTS_MAX, Segment

_T = TypeVar("_T")
_Steps = Generator[None, None, _T]

FILES_MAX = 64
"""Files of one VM."""
TEXT_MAX = 64 * 1024
"""Bytes of the first and the last member, and of an extended header."""
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a directory",
    b"6": "a FIFO",
    b"S": "a sparse file in an old format of GNU tar",
}


class Listed(NamedTuple):
    """A file that the archive says that it contains."""

    size: int
    data: int
    """Bytes that are stored; the rest are holes."""


class Begin(NamedTuple):
    """The beginning of a file."""

    file: str
    size: int


class Data(NamedTuple):
    """Data of the file that has begun."""

    offset: int
    data: bytes


class Whole(NamedTuple):
    """The end of a file."""


Event = Begin | Data | Whole


class _Header(NamedTuple):
    """The header of a member, with the extended header before it."""

    name: str
    stored: int
    kind: bytes
    extended: Mapping[str, str]


def refused(why: str) -> Failed:
    """Return the error for an archive that is not taken."""
    return Failed(f"the archive is refused: {why}; nothing was imported", hint="export and copy the VM again")


class Reader:
    """Reads one archive; feed it until the input ends, then call :meth:`end`."""

    def __init__(self) -> None:
        self.vm = ""
        """The name of the VM; empty until the first member was read."""
        self.files: dict[str, Listed] = {}
        """The files that the archive says that it contains."""
        self._buffer = bytearray()
        self._events: list[Event] = []
        self._sums: dict[str, str] = {}
        self._is_whole = False
        self._steps = self._read()
        next(self._steps)

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes of the archive, and return what is to be done; raises Failed."""
        self._buffer += data
        next(self._steps)
        events, self._events = self._events, []
        return events

    def end(self) -> None:
        """Raise Failed unless the archive was whole."""
        if not self._is_whole:
            raise refused("it is cut short" if self.vm or self._buffer else "it is empty")

    # -- The archive as a whole --

    def _read(self) -> _Steps[None]:
        header = yield from self._header()
        top, slash, file = "" if header is None else header.name, "", ""
        if header is not None:
            top, slash, file = header.name.partition("/")
        if header is None or not slash or file != MANIFEST or not names.is_full(top):
            raise refused("it was not made by vmessctl export")
        sums = hashlib.sha256()
        self._take_manifest(top, (yield from self._text(header, sums)))
        self._sums[MANIFEST] = sums.hexdigest()
        while (header := (yield from self._header())) is not None:
            if header.kind == b"5" and header.name.rstrip("/") == top:
                continue
            file = self._file_of(header)
            if file == CHECKSUMS:
                self._compare((yield from self._text(header, hashlib.sha256())))
                break
            yield from self._file(file, header)
        else:
            raise refused("it ends without checksums")
        yield from self._rest()

    def _rest(self) -> _Steps[None]:
        """Read the end: two blocks of zeros, and as many more as fill the record of a tape."""
        count = 0
        while True:
            if self._buffer.count(0) < len(self._buffer):
                raise refused("something follows its checksums")
            count += len(self._buffer)
            self._buffer.clear()
            self._is_whole = count >= 2 * BLOCK
            yield

    def _take_manifest(self, top: str, text: bytes) -> None:
        said = _object(text)
        if said.get("format") != FORMAT:
            newer = isinstance(said.get("format"), int) and said["format"] > FORMAT
            raise refused("a newer vmess made it" if newer else f"{MANIFEST} does not name a known format")
        files = said.get("files")
        if said.get("vm") != top or not isinstance(files, dict) or len(files) > FILES_MAX:
            raise refused(f"{MANIFEST} does not describe VM {top} with at most {FILES_MAX} files")
        for file, row in files.items():
            self.files[file] = self._listed(top, file, row)
        images = [file.rpartition(".")[0] for file in files if file.endswith((".img", ".qcow2"))]
        if twice := [image for image in images if images.count(image) > 1]:
            raise refused(f"it contains {twice[0]} in two formats")
        self.vm = top

    def _listed(self, top: str, file: str, row: Any) -> Listed:
        if contents.name_in(file, top, top) is None:
            raise refused(f"{quoted(file)} is not a file of a VM")
        size, data = (row.get("size"), row.get("data")) if isinstance(row, dict) else (None, None)
        limit = contents.text_limit(file)
        most = settings.DISK_MAX if limit is None else limit
        if type(size) is not int or type(data) is not int or not 0 <= data <= size <= most:
            raise refused(f"the size of {file} is wrong")
        return Listed(size, data)

    def _file_of(self, header: _Header) -> str:
        """Return the file that a member is; raises Failed unless it is one that should come."""
        name = header.extended.get("GNU.sparse.name", header.name)
        if header.kind not in (b"0", b"\0"):
            raise refused(f"{quoted(name)} is {_KINDS.get(header.kind, 'neither a file nor a directory')}")
        top, _, file = name.partition("/")
        if top != self.vm or (file != CHECKSUMS and file not in self.files):
            raise refused(f"{quoted(name)} is not a file of VM {self.vm} that {MANIFEST} names")
        if file in self._sums:
            raise refused(f"it contains {file} twice")
        return file

    def _compare(self, text: bytes) -> None:
        said = _object(text).get("sha256")
        if missing := sorted(self.files.keys() - self._sums.keys()):
            raise refused(f"{missing[0]} is missing")
        if not isinstance(said, dict) or said.keys() != self._sums.keys():
            raise refused(f"{CHECKSUMS} does not name the files before it")
        for file, found in self._sums.items():
            if said[file] != found:
                raise refused(f"the checksum of {file} is wrong")

    # -- One member --

    def _text(self, header: _Header, sums: Any) -> _Steps[bytes]:
        if (
            header.kind not in (b"0", b"\0")
            or header.stored > TEXT_MAX
            or "GNU.sparse.major" in header.extended
        ):
            raise refused(f"{quoted(header.name)} is not a short text")
        data = yield from self._take(header.stored)
        sums.update(data)
        yield from self._skip_padding(header.stored)
        return data

    def _file(self, file: str, header: _Header) -> _Steps[None]:
        listed, sums = self.files[file], hashlib.sha256()
        segments = [Segment(0, header.stored)]
        size, mapped = header.stored, 0
        if "GNU.sparse.major" in header.extended:
            size = _number(header.extended.get("GNU.sparse.realsize", ""))
            segments, mapped = yield from self._map(file, size, sums)
        stored = sum(segment.size for segment in segments)
        if (size, stored, mapped + stored) != (*listed, header.stored):
            raise refused(f"the size of {file} is wrong")
        self._events.append(Begin(file, size))
        for segment in segments:
            yield from self._pass(segment, sums)
        yield from self._skip_padding(header.stored)
        self._events.append(Whole())
        self._sums[file] = sums.hexdigest()

    def _map(self, file: str, size: int, sums: Any) -> _Steps[tuple[list[Segment], int]]:
        """Read the map of a file with holes; return its segments, and how long the map is."""
        lines: list[bytes] = []
        begun, mapped, wanted = b"", 0, 1
        while len(lines) < wanted:
            block = yield from self._take(BLOCK)
            sums.update(block)
            mapped += BLOCK
            *more, begun = (begun + block).split(b"\n")
            lines += more
            wanted = 1 + 2 * _number(lines[0].decode("latin-1"), SEGMENTS_MAX + 1) if lines else 1
            if len(begun) > BLOCK:
                raise refused(f"the map of {file} is not one of numbers")
        if len(lines) > wanted or begun.strip(b"\0"):
            raise refused(f"the map of {file} is followed by something else")
        numbers = [_number(line.decode("latin-1"), settings.DISK_MAX) for line in lines[1:]]
        segments = [Segment(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        end = 0
        for segment in segments:
            if segment.offset < end or sum(segment) > size:
                raise refused(f"the map of {file} is out of order, or longer than the file")
            end = sum(segment)
        return segments, mapped

    def _header(self) -> _Steps[_Header | None]:
        """Read the header of the next member; return None at the end of the archive."""
        extended: dict[str, str] = {}
        while True:
            block = yield from self._take(BLOCK)
            if not any(block):
                self._buffer[:0] = block  # it belongs to the end
                return None
            name, size, kind = _fields(block)
            if kind != b"x":
                return _Header(name, _number(extended.get("size", str(size))), kind, extended)
            if extended or size > TEXT_MAX:
                raise refused("it has an extended header that is too long, or two for one member")
            extended = _records((yield from self._take(size)))
            yield from self._skip_padding(size)

    # -- Bytes --

    def _take(self, size: int) -> _Steps[bytes]:
        while len(self._buffer) < size:
            yield
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _pass(self, segment: Segment, sums: Any) -> _Steps[None]:
        offset, left = segment
        while left:
            if not self._buffer:
                yield
            data = yield from self._take(min(left, len(self._buffer)))
            sums.update(data)
            if data:
                self._events.append(Data(offset, data))
            offset, left = offset + len(data), left - len(data)

    def _skip_padding(self, size: int) -> _Steps[None]:
        padding = yield from self._take(-size % BLOCK)
        if any(padding):
            raise refused("there are data between its members")


def _fields(block: bytes) -> tuple[str, int, bytes]:
    """Return name, size and type of a member from its header (pax(1), "ustar Interchange Format")."""
    summed = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    if block[257:262] != b"ustar" or _octal(block[148:156]) != summed:
        raise refused("it is not a tar, or damaged")
    name, prefix = (
        block[at : at + size].split(b"\0")[0].decode("latin-1") for at, size in ((0, 100), (345, 155))
    )
    size = int.from_bytes(block[125:136]) if block[124] == 0x80 else _octal(block[124:136])
    return f"{prefix}/{name}" if prefix else name, _number(str(size)), block[156:157]


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        raise refused("it is not a tar, or damaged")
    return int(digits, 8)


def _number(text: str, most: int = settings.DISK_MAX * 2) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 20) or int(text) > most:
        raise refused(f"{quoted(text)} stands in it where a size should be")
    return int(text)


def _records(data: bytes) -> dict[str, str]:
    """Return the records of an extended header (pax(1))."""
    found = {}
    while data:
        length, _, _ = data[:8].partition(b" ")
        size = int(length) if length.isdigit() else 0
        record, data = data[:size], data[size:]
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not size or len(record) < size or not equals or not value.endswith(b"\n"):
            raise refused("an extended header in it is damaged")
        found[key.decode("latin-1")] = value[:-1].decode("latin-1")
    version = (found.get("GNU.sparse.major"), found.get("GNU.sparse.minor"))
    if any(key.startswith("GNU.sparse.") for key in found) and version != ("1", "0"):
        raise refused("it contains a sparse file in an old format of GNU tar")
    return found


def _object(text: bytes) -> dict[str, Any]:
    """Return a JSON object; raises Failed for anything else."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise refused("what it says of itself is not JSON")
    return said
