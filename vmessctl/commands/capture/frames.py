"""Frames as QEMU writes them, and the two formats that readers know: pcap and pcapng. Pure.

Sources: https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/ and .../draft-ietf-opsawg-pcapng/; what a
virtio card has in front of a frame is in section 5.1.6 of the virtio specification.
"""

from __future__ import annotations

import struct

from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Bytes = bytes | memoryview

FILE_HEADER = 24
RECORD_HEADER = 16
FRAME_MAX = 1 << 18
"""Bytes of the longest frame in a file."""
ETHERNET = 1
"""LINKTYPE_ETHERNET."""
HEADERS = (0, 10, 12)
"""Bytes that may stand in front of a frame: none, those of the first virtio cards, those of all later ones."""
MAC_LENGTH = 6
DRIFT_MAX = 500_000
"""Microseconds that the clock of a capture may be wrong before it is set again: a guest was paused."""


class Frame(PlainRecord):
    """A captured frame."""

    def __init__(self, at: int, data: Bytes, length: int) -> None:
        self.at = at
        """Microseconds since 1970."""
        self.data = data
        """A part of the bytes that were read, which it keeps in memory."""
        self.length = length
        """Its length on the wire."""


class Reader:
    """Frames of one interface, from the bytes that QEMU has written."""

    def __init__(self, mac: str | None, header: int) -> None:
        self._mac = bytes.fromhex(mac.replace(":", "")) if mac else b""
        self._header = header
        """Bytes in front of each frame, as far as it is known."""
        self._shift: int | None = None
        """Microseconds from the clock of QEMU to that of the host."""
        self._has_begun = False
        self.taken = 0
        """How many of the bytes were used; the others are part of a frame, and come again with the next."""

    def frames(self, data: bytes, now: int, *, is_end: bool = True) -> Iterator[Frame]:
        """Yield the frames that are complete.

        `now` is when QEMU wrote last, in microseconds since 1970; `is_end` tells that it wrote these bytes.
        """
        begin = 0 if self._has_begun else FILE_HEADER
        self._has_begun = self._has_begun or len(data) >= begin
        records = list(_records(memoryview(data), begin))
        self.taken = records[-1][0] if records else begin if self._has_begun else 0
        if records and (is_end or self._shift is None):
            self._set_clock(records[-1][1], now)
        for _, at, raw, length in records:
            cut = self._cut(raw)
            yield Frame(at + (self._shift or 0), raw[cut:], max(0, length - cut))

    def _set_clock(self, last: int, now: int) -> None:
        """Learn what the clock of QEMU shows, which begins with each start, by the frame that came just now."""
        age = None if self._shift is None else now - (last + self._shift)
        if age is None or not -DRIFT_MAX < age < DRIFT_MAX:
            self._shift = now - last

    def _cut(self, raw: memoryview) -> int:
        """Return the bytes in front of a frame; a frame with the MAC of the card tells."""
        if self._is_ours(raw, self._header):
            return self._header
        fits = [header for header in HEADERS if self._mac and self._is_ours(raw, header)]
        if len(fits) == 1:
            (self._header,) = fits
        return min(self._header, len(raw))

    def _is_ours(self, raw: memoryview, header: int) -> bool:
        """Tell whether a frame comes from the card, or goes to it, if this many bytes are in front."""
        to, from_ = (raw[at : at + MAC_LENGTH] for at in (header, header + MAC_LENGTH))
        return self._mac in (to, from_)


_RECORD = struct.Struct("=IIII")


def _records(data: memoryview, at: int) -> Iterator[tuple[int, int, memoryview, int]]:
    """Yield for each complete frame where it ends, its time by QEMU's clock, its bytes and its length."""
    size = len(data)
    while at + RECORD_HEADER <= size:
        seconds, micros, kept, length = _RECORD.unpack_from(data, at)
        begin, at = at + RECORD_HEADER, at + RECORD_HEADER + kept
        if at > size:
            return
        yield at, seconds * 1_000_000 + micros, data[begin:at], length


class Pcap:
    """The format of one interface."""

    def head(self, names: Sequence[str]) -> bytes:  # noqa: ARG002 -- pcap has no names
        """Return what stands before the frames."""
        return struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, FRAME_MAX, ETHERNET)

    def frame(self, frame: Frame, interface: int) -> Sequence[Bytes]:  # noqa: ARG002 -- there is one
        """Return a frame as it stands in the file, in pieces: the bytes of a frame are not copied."""
        seconds, micros = divmod(frame.at, 1_000_000)
        return _RECORD.pack(seconds & _ALL, micros, len(frame.data), frame.length), frame.data


class Pcapng(Pcap):
    """The format of several interfaces, with their names."""

    def head(self, names: Sequence[str]) -> bytes:
        """Return a section, and a block for each interface."""
        blocks = [_block(0x0A0D0D0A, struct.pack("=IHHq", 0x1A2B3C4D, 1, 0, -1))]
        for name in names:
            option = struct.pack("=HH", 2, len(name)) + _padded(name.encode())  # if_name
            blocks.append(_block(1, struct.pack("=HHI", ETHERNET, 0, FRAME_MAX) + option + bytes(4)))
        return b"".join(blocks)

    def frame(self, frame: Frame, interface: int) -> Sequence[Bytes]:
        """Return an enhanced packet block, in pieces; its time is in microseconds."""
        size = len(frame.data)
        length = 32 + size + -size % 4
        times = (frame.at >> 32 & _ALL, frame.at & _ALL)
        head = struct.pack("=IIIIIII", 6, length, interface, *times, size, frame.length)
        return head, frame.data, bytes(-size % 4) + struct.pack("=I", length)


_ALL = 0xFFFFFFFF


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("=II", kind, length) + body + struct.pack("=I", length)
