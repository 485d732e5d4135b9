"""The header of a qcow2 image, read by us before QEMU reads it. Pure.

QEMU opens what a header names: a backing file, an external data file. So the header of an image that comes from
elsewhere, or that a guest may have written, is read here first, with limits. Source: QEMU's
docs/interop/qcow2.txt.
"""

from typing import NamedTuple

MAGIC = b"QFI\xfb"
HEAD = 64 * 1024
"""Bytes of the beginning that are read: the default size of a cluster, in which the header must end."""
SIZE_MAX = 2**46
"""Virtual size in bytes: 64 TiB, as for :data:`vmessd.core.quantities.DISK_MAX`."""
TABLE_MAX = 32 * 2**20
"""Bytes of the active L1 table (QEMU, `QCOW_MAX_L1_SIZE`)."""
REFCOUNTS_MAX = 8 * 2**20
"""Bytes of the refcount table (QEMU, `QCOW_MAX_REFTABLE_SIZE`)."""
SNAPSHOTS_MAX = 65536
_EXTENSIONS_MAX = 64
_NAME_MAX = 1023
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_BACKING_FORMAT, _DATA_FILE_NAME = 0xE2792ACA, 0x44415441
_V2_LENGTH, _V3_LENGTH = 72, 104
_CLUSTER_BITS, _CLUSTER, _REFCOUNT_ORDER = 16, 2**16, 4
"""What `qemu-img create` takes: clusters of 64 KiB, and reference counts of 2^4 bits."""


class Header(NamedTuple):
    """What matters of a header."""

    version: int
    size: int
    """Virtual size in bytes."""
    cluster: int
    """Size of a cluster in bytes."""
    backing: str | None
    """The name of the backing file; None if there is none."""
    backing_place: int
    """Offset of this name; 0 if there is none."""
    backing_format: str | None


class Refused(ValueError):
    """An image that must not be opened; the text says why, as in: the image `has an external data file`."""


class NotQcow2(Refused):
    """It does not begin like a qcow2 image."""


def parse(head: bytes) -> Header:
    """Return the header at the beginning of an image; `head` are its first :data:`HEAD` bytes, or all of it.

    Raises:
        Refused: it is not a header of version 2 or 3, names an external data file, is encrypted or marked as
            corrupt, needs a feature that is not known, or exceeds a limit.
    """
    if not head.startswith(MAGIC) or len(head) < _V2_LENGTH:
        raise NotQcow2("is not a qcow2 image")
    version = _number(head, 4, 4)
    if version not in (2, 3) or (version == 3 and len(head) < _V3_LENGTH):
        raise Refused(f"has version {version} of qcow2; it must be 2 or 3")
    bits = _number(head, 20, 4)
    if not 9 <= bits <= 21:
        raise Refused(f"has clusters of 2^{bits} bytes; QEMU knows 2^9 to 2^21")
    length = _length(head) if version == 3 else _V2_LENGTH
    _check_features(_number(head, 72, 8) if version == 3 else 0)
    _check_sizes(head, 1 << bits)
    if _number(head, 32, 4) != 0:
        raise Refused("is encrypted, and vmess has no key for it")
    extensions = _extensions(head, length, 1 << bits)
    if _DATA_FILE_NAME in extensions:
        raise Refused("has an external data file, which could be any file of the host")
    place, backing = _backing(head, 1 << bits)
    said = extensions.get(_BACKING_FORMAT)
    return Header(
        version, _number(head, 24, 8), 1 << bits, backing, place, None if said is None else _text(said)
    )


def empty(size: int) -> bytes:
    """Return an image of a virtual size without data: a header, reference counts, and an empty L1 table."""
    table = 8 * -(-size // (_CLUSTER * _CLUSTER // 8))  # an entry for each table of as many clusters
    clusters = 3 + -(-table // _CLUSTER)  # header, table of reference counts, block of them
    head = (
        MAGIC + (3).to_bytes(4, "big") + bytes(12) + _CLUSTER_BITS.to_bytes(4, "big") + size.to_bytes(8, "big")
    )
    head += bytes(4) + (table // 8).to_bytes(4, "big") + (3 * _CLUSTER).to_bytes(8, "big")
    head += _CLUSTER.to_bytes(8, "big") + (1).to_bytes(4, "big") + bytes(36)
    head += _REFCOUNT_ORDER.to_bytes(4, "big") + _V3_LENGTH.to_bytes(4, "big")
    counts = clusters * (1).to_bytes(2, "big")
    parts = (head, (2 * _CLUSTER).to_bytes(8, "big"), counts)
    return b"".join(part.ljust(_CLUSTER, b"\0") for part in parts) + bytes((clusters - 3) * _CLUSTER)


def with_backing(head: bytes, header: Header, name: str) -> bytes:
    """Return the beginning of an image, up to the end of its backing file's new name.

    The name is the last thing in the first cluster, so a longer one has room behind it.

    Raises:
        Refused: the image has no backing file, or the name is too long.
    """
    data = name.encode("utf-8", "surrogateescape")
    end = header.backing_place + len(data)
    if header.backing is None or len(data) > _NAME_MAX or end > min(header.cluster, len(head)):
        raise Refused("has no room for the name of its backing file")
    fresh = bytearray(head[:end])
    fresh[16:20] = len(data).to_bytes(4, "big")
    fresh[header.backing_place : end] = data
    return bytes(fresh)


BACKING_PLACE, NO_BACKING = 8, bytes(12)
"""Where a header says where the name of its backing file is, and how long; and that there is none."""


def _number(head: bytes, place: int, count: int) -> int:
    return int.from_bytes(head[place : place + count], "big")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _length(head: bytes) -> int:
    length = _number(head, 100, 4)
    if length < _V3_LENGTH or length % 8 or length > len(head):
        raise Refused(f"has a header of {length} bytes; it must be 104 or a little more")
    return length


def _check_features(incompatible: int) -> None:
    if incompatible & _DATA_FILE:
        raise Refused("has an external data file, which could be any file of the host")
    if incompatible & _CORRUPT:
        raise Refused("is marked as corrupt; qemu-img check -r all may repair it")
    if incompatible & ~_KNOWN:
        raise Refused(f"needs features of qcow2 that are not known ({incompatible & ~_KNOWN:#x})")


def _check_sizes(head: bytes, cluster: int) -> None:
    size = _number(head, 24, 8)
    if size > SIZE_MAX:
        raise Refused(f"has a virtual size of {size} bytes; at most 64T are allowed")
    limits = (
        ("an L1 table", _number(head, 36, 4) * 8, TABLE_MAX),
        ("a refcount table", _number(head, 56, 4) * cluster, REFCOUNTS_MAX),
        ("a list of snapshots", _number(head, 60, 4), SNAPSHOTS_MAX),
    )
    for what, found, limit in limits:
        if found > limit:
            raise Refused(f"has {what} of {found}; at most {limit} are allowed")


def _extensions(head: bytes, place: int, cluster: int) -> dict[int, bytes]:
    """Return the header extensions by type: a number, a length, and data padded to 8 bytes."""
    found: dict[int, bytes] = {}
    end = min(cluster, len(head), _number(head, 8, 8) or cluster)
    while place + 8 <= end:
        kind, length = _number(head, place, 4), _number(head, place + 4, 4)
        if kind == 0:
            break
        place += 8
        if length > end - place:
            raise Refused(f"has a header extension of {length} bytes, which does not end in its first cluster")
        if len(found) >= _EXTENSIONS_MAX:
            raise Refused(f"has more than {_EXTENSIONS_MAX} header extensions")
        found[kind] = head[place : place + length]
        place += (length + 7) // 8 * 8
    return found


def _backing(head: bytes, cluster: int) -> tuple[int, str | None]:
    """Return the offset and the name of the backing file; 0 and None if there is none."""
    place, length = _number(head, 8, 8), _number(head, 16, 4)
    if place == 0:
        return 0, None
    if not 1 <= length <= _NAME_MAX or place + length > min(cluster, len(head)):
        raise Refused("has a backing file whose name is not in its first cluster")
    return place, _text(head[place : place + length])
