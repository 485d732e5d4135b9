"""The members of a tar, read without any trust in it. Pure: bytes go in, and what to write comes out.

It refuses at the first byte that shows it: what is not a tar, sizes that cannot be, data between the members,
an end that comes too early. Sizes and offsets are in bytes.
"""

from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, TypeVar

from vmessd.core import quantities
from vmessd.core.errors import Failed, quoted
from vmessd.storage import image_formats
from vmessd.storage.archive_format import BLOCK, Segment

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
"""Reading that stops where it needs more bytes."""

TEXT_MAX = 64 * 1024
"""Bytes of an extended header, and of a short text."""
PLAIN = (b"0", b"\0")
"""The types of a member that is a plain file."""
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a directory",
    b"6": "a FIFO",
    b"S": "a sparse file in an old format of GNU tar",
}


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


class Header(NamedTuple):
    """The header of a member, with the extended header before it."""

    name: str
    stored: int
    kind: bytes
    extended: Mapping[str, str]

    @property
    def is_sparse(self) -> bool:
        """It is a file with holes, which begins with a map of its data."""
        return "GNU.sparse.major" in self.extended

    def must_be_plain(self, name: str) -> None:
        """Raise Failed unless it is a plain file; `name` is for the message."""
        if self.kind not in PLAIN:
            raise refused(f"{quoted(name)} is {_KINDS.get(self.kind, 'neither a file nor a directory')}")


def refused(why: str, hint: str | None = "copy it once more from where it was made") -> Failed:
    """Return the error for an archive that is not taken; `hint` is None where another copy says the same."""
    return Failed(f"the archive is refused: {why}; nothing was imported", hint=hint)


def decoded(text: bytes) -> str:
    """Return a name in an archive: UTF-8 as everybody writes it now, and any other bytes as surrogates."""
    return text.decode(errors="surrogateescape")


class Tar:
    """Reads one archive; feed it until the input ends, then call :meth:`end`. Subclasses know its members."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._events: list[Event] = []
        self._is_begun = self._is_whole = False
        self._steps = self._read()
        next(self._steps)

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes of the archive, and return what is to be done; raises Failed."""
        self._is_begun = self._is_begun or bool(data)
        self._buffer += data
        next(self._steps)
        events, self._events = self._events, []
        return events

    def end(self) -> None:
        """Raise Failed unless the archive was whole."""
        if not self._is_whole:
            raise refused("it is cut short" if self._is_begun else "it is empty")

    def _read(self) -> Steps[None]:
        """Read all members, and then :meth:`_rest`."""
        raise NotImplementedError

    def _rest(self, after: str) -> Steps[None]:
        """Read the end: two blocks of zeros, and as many more as fill the record of a tape."""
        count = 0
        while True:
            if self._buffer.count(0) < len(self._buffer):
                raise refused(f"something follows {after}")
            count += len(self._buffer)
            self._buffer.clear()
            self._is_whole = count >= 2 * BLOCK
            yield

    # -- One member --

    def _text(self, header: Header, sums: Any, most: int = TEXT_MAX) -> Steps[bytes]:
        if header.kind not in PLAIN or header.stored > most or header.is_sparse:
            raise refused(f"{quoted(header.name)} is not a short text")
        data = yield from self._take(header.stored)
        sums.update(data)
        yield from self._skip_padding(header.stored)
        return data

    def _header(self) -> Steps[Header | None]:
        """Read the header of the next member; return None at the end of the archive."""
        extended: dict[str, str] = {}
        while True:
            block = yield from self._take(BLOCK)
            if not any(block):
                self._buffer[:0] = block  # it belongs to the end
                return None
            name, size, kind = _fields(block)
            if kind != b"x":
                size = number(extended.get("size", str(size)))
                return Header(extended.get("path", name), size, kind, extended)
            if extended or size > TEXT_MAX:
                raise refused("it has an extended header that is too long, or two for one member")
            extended = _records((yield from self._take(size)))
            yield from self._skip_padding(size)

    # -- Bytes --

    def _take(self, size: int) -> Steps[bytes]:
        while len(self._buffer) < size:
            yield
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _pass(self, segment: Segment, sums: Any, *, told: bool = True) -> Steps[None]:
        """Read a piece of a file, and tell its data, unless nobody wants them."""
        offset, left = segment
        while left:
            if not self._buffer:
                yield
            data = yield from self._take(min(left, len(self._buffer)))
            sums.update(data)
            if data and told:
                self._events.append(Data(offset, data))
            offset, left = offset + len(data), left - len(data)

    def _skip_padding(self, size: int) -> Steps[None]:
        padding = yield from self._take(-size % BLOCK)
        if any(padding):
            raise refused("there are data between its members")


def _fields(block: bytes) -> tuple[str, int, bytes]:
    """Return name, size and type of a member from its header (pax(1), "ustar Interchange Format")."""
    summed = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    if block[257:262] != b"ustar" or _octal(block[148:156]) != summed:
        raise _no_tar(block)
    name, prefix = (decoded(block[at : at + size].split(b"\0")[0]) for at, size in ((0, 100), (345, 155)))
    size = int.from_bytes(block[125:136]) if block[124] == 0x80 else _octal(block[124:136])
    return f"{prefix}/{name}" if prefix else name, number(str(size)), block[156:157]


def _no_tar(block: bytes) -> Failed:
    """Return the error for a file that does not begin like a tar, with what it looks like."""
    if (image := image_formats.recognise(block, b"")) is not None:
        return refused(f"it is a {image.shown} image, one disk", hint="vmess newvm make hda FILE")
    if (what := image_formats.other(block)) is None:
        return refused("it is not a tar, or damaged")
    hint = "it must be an export or an OVA"
    if block.startswith(b"<?xml"):
        hint = "of a descriptor and its disks, an OVA is made by: tar cf FILE.ova FILE.ovf DISK..."
    return refused(f"it {what}", hint=hint)


def _octal(field: bytes) -> int:
    digits = field.strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        raise refused("it is not a tar, or damaged")
    return int(digits, 8)


def number(text: str, most: int = quantities.DISK_MAX * 2) -> int:
    """Return a size that stands in the archive; raises Failed if it exceeds `most`."""
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
        found[decoded(key)] = decoded(value[:-1])
    version = (found.get("GNU.sparse.major"), found.get("GNU.sparse.minor"))
    if any(key.startswith("GNU.sparse.") for key in found) and version != ("1", "0"):
        raise refused("it contains a sparse file in an old format of GNU tar")
    return found


class First(Tar):
    """Reads the name of the first member, which tells what the archive is."""

    name: str | None = None
    """The name; empty if there is no member; None until it was read."""

    def _read(self) -> Steps[None]:
        header = yield from self._header()
        self.name = "" if header is None else header.name
        while True:
            yield
