"""Formats of disk images, recognised by their first and last bytes. Pure.

QEMU is told that every image is raw, so that a header cannot make it open another file. This module only serves
messages to people who bring an image in another format. A guest can write such a header to its raw disk.
Sources: QEMU's docs/interop/qcow2.txt, and the `probe` functions in its block directory.
"""

from typing import NamedTuple

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
