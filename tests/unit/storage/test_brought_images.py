"""Images that somebody brings: one file each, of a known format, which names no other file."""

import os
import struct
from collections.abc import Collection
from pathlib import Path

import pytest
from test_qcow2 import image

from vmessd.storage import image_formats
from vmessd.storage.image_formats import Source
from vmessd.storage.qcow2 import Refused

M = 2**20


ALONE = b'createType="monolithicSparse"\nparentCID=ffffffff\n'
CHILD = b'x\nparentFileNameHint = "/etc/shadow"'


def vmdk(capacity: int = 2048, *descriptors: bytes) -> bytes:
    """A VMDK whose header says that the last of its descriptors is the one that counts."""
    descriptors = descriptors or (ALONE,)
    place = 1 + 20 * (len(descriptors) - 1)
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, capacity, 128, place, 20).ljust(512, b"\0")
    return head + b"".join(descriptor.ljust(20 * 512, b"\0") for descriptor in descriptors)


def vdi(kind: int = 1, size: int = M) -> bytes:
    head = bytearray(b"<<< an image >>>\n".ljust(512, b"\0"))
    head[64:68] = b"\x7f\x10\xda\xbe"
    head[76:80] = kind.to_bytes(4, "little")
    head[368:376] = size.to_bytes(8, "little")
    return bytes(head)


def vhd(kind: int = 3, size: int = M) -> bytes:
    footer = bytearray(b"conectix".ljust(512, b"\0"))
    footer[48:56] = size.to_bytes(8, "big")
    footer[60:64] = kind.to_bytes(4, "big")
    return bytes(footer)


def examine(place: Path, data: bytes, said: Collection[str] | None = None) -> Source:
    place.write_bytes(data)
    fd = os.open(place, os.O_RDONLY)
    try:
        return image_formats.examine(fd, len(data), said)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (bytes(M), Source("raw", M)),
        (b"x", Source("raw", 1)),
        (image(size=M), Source("qcow2", M)),
        (vmdk(), Source("vmdk", M)),
        (vdi(), Source("vdi", M)),
        (vdi(2), Source("vdi", M)),
        (vhd() + bytes(M), Source("vpc", M)),
        (bytes(M) + vhd(2), Source("vpc", M)),
        (b"vhdxfile".ljust(M, b"\0"), Source("vhdx", None)),
    ],
    ids=["raw", "one byte", "qcow2", "VMDK", "VDI", "VDI that is fixed", "VHD", "VHD that is fixed", "VHDX"],
)
def test_a_format_and_a_size_are_found(tmp_path: Path, data: bytes, found: Source) -> None:
    assert examine(tmp_path / "a", data) == found


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("d.vmdk", "^is not the VMDK image that it should be; the name of a raw one ends in .img or .raw$"),
        ("D.VHD", "^is not the VHD image"),
        ("d.qcow2", "^is not the qcow2 image"),
    ],
)
def test_a_damaged_image_is_not_taken_for_a_raw_one(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        examine(tmp_path / "a", bytes(M), image_formats.by_name(name))


@pytest.mark.parametrize("said", [None, {"raw"}, {"raw", "vmdk"}])
def test_what_may_be_raw_is(tmp_path: Path, said: set[str] | None) -> None:
    assert examine(tmp_path / "a", bytes(M), said) == Source("raw", M)


def test_what_nobody_calls_raw_is_not(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="the name of a raw one ends in"):
        examine(tmp_path / "a", bytes(M), ())


def test_an_image_is_what_it_contains_whatever_its_name_says(tmp_path: Path) -> None:
    assert examine(tmp_path / "a", vdi(), {"vmdk"}) == Source("vdi", M)


@pytest.mark.parametrize(
    ("name", "said"),
    [("d", set()), ("d.bin", set()), ("/a.vmdk/D.IMG", {"raw"}), ("d-flat.vmdk", {"raw", "vmdk"})],
)
def test_the_end_of_a_name_says_a_format(name: str, said: set[str]) -> None:
    assert image_formats.by_name(name) == said


LIES = {
    "qcow2 with a backing file": (image(backing="/etc/shadow"), "is based on another image, its backing file"),
    "qcow2 with a data file": (image(f_8=(72, 4)), "external data file"),
    "qcow2 of 2^62 bytes": (image(size=2**62), "at most 64T"),
    "VMDK in text": (b'# Disk DescriptorFile\nRW 9 FLAT "/etc/shadow" 0\n', "names other files, its extents"),
    "VMDK whose descriptor names extents": (vmdk(0, b'RW 9 FLAT "/etc/shadow" 0'), "names other files"),
    "old VMDK": (b"COWD".ljust(512, b"\0"), "names other files"),
    "VMDK with a parent": (vmdk(2048, CHILD), "its parent"),
    "VMDK with a parent where QEMU looks for it": (vmdk(2048, CHILD, ALONE), "its parent"),
    "VMDK with a parent where its header says": (vmdk(2048, *[ALONE] * 8, CHILD), "its parent"),
    "VMDK of 2^63 sectors": (vmdk(2**63), "at most 64T"),
    "VMDK with a descriptor far away": (
        struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 2**60, 128, 2**63, 20).ljust(512, b"\0"),
        "at most 64T",
    ),
    "VDI with a parent": (vdi(4), "its parent"),
    "VDI of 2^62 bytes": (vdi(size=2**62), "at most 64T"),
    "VHD with a parent": (vhd(4), "its parent"),
    "VHD of 2^62 bytes": (vhd(size=2**62), "at most 64T"),
    "QED": (b"QED\0".ljust(512, b"\0"), "is a QED image; it must be raw, qcow2, VMDK, VDI, VHDX, VHD"),
    "qcow": (b"QFI\xfb\0\0\0\1".ljust(512, b"\0"), "is a qcow image"),
    "Parallels": (b"WithoutFreeSpace".ljust(512, b"\0"), "is a Parallels image"),
}


@pytest.mark.parametrize("head", [b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"(\xb5/\xfd", b"BZh9", b"PK\3\4", b"<?xml "])
def test_what_only_contains_an_image_is_no_raw_disk(tmp_path: Path, head: bytes) -> None:
    with pytest.raises(Refused, match=r"^is (compressed by|a zip archive|a text in XML)"):
        examine(tmp_path / "a", head.ljust(4096, b"\0"))


@pytest.mark.parametrize("name", LIES)
def test_what_names_other_files_or_lies_is_refused(tmp_path: Path, name: str) -> None:
    data, why = LIES[name]
    with pytest.raises(Refused, match=why.replace("^", r"\^")):
        examine(tmp_path / "a", data)
