"""Formats of disk images, recognised by their first and last bytes.

QEMU is told the format of every image, so that a header cannot make it open another file. A guest can write
such a header to its raw disk. An image that somebody brings is converted only if it names no other file; see
:func:`examine`. Sources: QEMU's docs/interop/qcow2.txt, the `open` and `probe` functions of its block drivers.
"""

import os
from collections.abc import Collection
from typing import NamedTuple

from vmessd.storage import qcow2
from vmessd.storage.qcow2 import Refused

HEAD = TAIL = 512
"""Bytes that are read at either end."""


class Format(NamedTuple):
    """The format of a disk image that is not raw."""

    name: str
    """The name for `qemu-img convert -f`."""
    shown: str
    """The name in messages."""
    leads: bool
    """The image may refer to other files, which a conversion would read."""


def recognise(head: bytes, tail: bytes) -> Format | None:
    """Return the format of an image by its first and last bytes; None where it may be raw."""
    if head.startswith(b"QFI\xfb"):
        return _qcow(head)
    if head.startswith(b"QED\0"):
        return Format("qed", "QED", leads=bool(int.from_bytes(head[16:24], "little") & 1))
    if head.startswith((b"KDMV", b"COWD", b"# Disk DescriptorFile")):
        return Format("vmdk", "VMDK", leads=True)  # its descriptor names its extents
    if head.startswith(b"<<< ") and head[64:68] == b"\x7f\x10\xda\xbe":
        return Format("vdi", "VDI", leads=False)
    if head.startswith(b"vhdxfile"):
        return Format("vhdx", "VHDX", leads=False)
    if head.startswith(b"conectix") or tail.startswith(b"conectix"):
        return Format("vpc", "VHD", leads=False)
    if head.startswith((b"WithoutFreeSpace", b"WithouFreSpacExt")):
        return Format("parallels", "Parallels", leads=False)
    return None


def _qcow(head: bytes) -> Format | None:
    version = int.from_bytes(head[4:8], "big")
    backing = int.from_bytes(head[8:16], "big") != 0
    data_file = version == 3 and bool(int.from_bytes(head[72:80], "big") & 4)
    if version not in (1, 2, 3):
        return None
    name = "qcow" if version == 1 else "qcow2"
    return Format(name, name, leads=backing or data_file)


_OTHERS = {
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"\xfd7zXZ\0": "is compressed by xz; unpack it first",
    b"(\xb5/\xfd": "is compressed by zstd; unpack it first",
    b"BZh": "is compressed by bzip2; unpack it first",
    b"PK\3\4": "is a zip archive; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first",
    b"<?xml": "is a text in XML, and not an image",
}
"""What people take for images, by its first bytes, and what is to be said of it."""


def other(head: bytes) -> str | None:
    """Return what a file that begins like this is, in words, if it is certainly not a disk."""
    return next((what for mark, what in _OTHERS.items() if head.startswith(mark)), None)


SHOWN = {"raw": "raw", "qcow2": "qcow2", "vmdk": "VMDK", "vdi": "VDI", "vhdx": "VHDX", "vpc": "VHD"}
"""The formats that can be brought, by their names for `qemu-img`, as they are shown."""
_ENDS = {
    ".img": "raw",
    ".raw": "raw",
    "-flat.vmdk": "raw",
    ".qcow": "qcow2",
    ".qcow2": "qcow2",
    ".vmdk": "vmdk",
    ".vdi": "vdi",
    ".vhd": "vpc",
    ".vhdx": "vhdx",
}
"""Formats by the end of the name of a file in lower case; VMware keeps raw data beside a small `.vmdk`."""
_SECTOR = 512
_DESCRIPTOR, _DESCRIPTOR_MAX = 512, 64 * 1024
"""Where QEMU looks for the parent in the descriptor of a VMDK, whatever its header says; its size in bytes."""
_VHD_KINDS = (2, 3)  # fixed, dynamic; 4 has a parent
_VDI_KINDS = (1, 2)  # dynamic, fixed; 4 has a parent


class Source(NamedTuple):
    """An image that somebody brings."""

    format: str
    size: int | None
    """Virtual size in bytes; None if only QEMU knows it."""


def by_name(name: str) -> set[str]:
    """Return the formats that the end of a name says: none, one, or two where it may be either."""
    return {form for end, form in _ENDS.items() if name.lower().endswith(end)}


def examine(fd: int, size: int, said: Collection[str] | None = None) -> Source:
    """Return the format of an image of `size` bytes, after a look at what its header refers to; blocks.

    What has no known header may be a damaged image. It counts as raw if that is one of the formats that are
    `said` of it; None is nothing against it.

    Raises:
        Refused: it refers to other files, exceeds a limit, or has a format that is not brought.
        OSError: it cannot be read.
    """
    head = os.pread(fd, qcow2.HEAD, 0)
    found = recognise(head[:HEAD], os.pread(fd, TAIL, max(0, size - TAIL)))
    if found is None and head[257:262] == b"ustar":
        raise Refused("is a tar archive; if it is an OVA, import takes it as a whole")
    if found is None and (what := other(head)) is not None:
        raise Refused(what)
    if found is None:
        _check_raw(said)
        return Source("raw", size)
    if found.name not in SHOWN:
        raise Refused(f"is a {found.shown} image; it must be {', '.join(SHOWN.values())}")
    if found.name == "qcow2":
        header = qcow2.parse(head)
        if header.backing is not None:
            raise Refused("is based on another image, its backing file; it must be one image of its own")
        return Source("qcow2", header.size)
    return Source(found.name, _limited(_SIZES[found.name](fd, head)))


def _check_raw(said: Collection[str] | None) -> None:
    if said is not None and "raw" not in said:
        wanted = " or ".join(sorted(SHOWN[form] for form in said))
        what = f"the {wanted} image that it should be" if said else "an image of a known format"
        raise Refused(f"is not {what}; the name of a raw one ends in .img or .raw")


def _limited(size: int | None) -> int | None:
    if size is not None and size > qcow2.SIZE_MAX:
        raise Refused(f"has a virtual size of {size} bytes; at most 64T are allowed")
    return size


def _little(data: bytes, place: int, count: int) -> int:
    return int.from_bytes(data[place : place + count], "little")


def _vmdk(fd: int, head: bytes) -> int:
    """Return the size of a VMDK that is one file; its descriptor must not name a parent."""
    capacity = _little(head, 12, 8)
    if not head.startswith(b"KDMV") or capacity == 0:
        raise Refused("is a VMDK that names other files, its extents; it must be one file (monolithicSparse)")
    for place in (_DESCRIPTOR, min(_little(head, 28, 8) * _SECTOR, 2**62)):
        if b"parentfilenamehint" in os.pread(fd, _DESCRIPTOR_MAX, place).lower():
            raise Refused("is based on another image, its parent; it must be one image of its own")
    return capacity * _SECTOR


def _vdi(_fd: int, head: bytes) -> int:
    if _little(head, 76, 4) not in _VDI_KINDS:
        raise Refused("is based on another image, its parent; it must be one image of its own")
    return _little(head, 368, 8)


def _vpc(fd: int, head: bytes) -> int:
    end = os.fstat(fd).st_size
    footer = head[:TAIL] if head.startswith(b"conectix") else os.pread(fd, TAIL, max(0, end - TAIL))
    if int.from_bytes(footer[60:64], "big") not in _VHD_KINDS:
        raise Refused("is based on another image, its parent; it must be one image of its own")
    return int.from_bytes(footer[48:56], "big")


def _vhdx(_fd: int, _head: bytes) -> None:
    """QEMU refuses a VHDX with a parent (block/vhdx.c)."""


_SIZES = {"vmdk": _vmdk, "vdi": _vdi, "vpc": _vpc, "vhdx": _vhdx}
