"""The header of a qcow2 image, read with limits: what QEMU would follow is refused."""

import contextlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmessd.storage import qcow2
from vmessd.storage.qcow2 import Header, Refused

G = 2**30


def image(
    version: int = 3, size: int = G, backing: str = "", extensions: bytes = b"", **fields: tuple[int, int]
) -> bytes:
    """The first cluster of an image; `fields` are pairs of an offset and a number of 4 or 8 bytes."""
    length = 104 if version == 3 else 72
    head = bytearray(length)
    head[:8] = b"QFI\xfb" + version.to_bytes(4, "big")
    head[20:24] = (16).to_bytes(4, "big")
    head[24:32] = size.to_bytes(8, "big")
    if version == 3:
        head[100:104] = length.to_bytes(4, "big")
    head += extensions + bytes(8)
    if backing:
        head[8:16] = len(head).to_bytes(8, "big")
        head[16:20] = len(backing.encode()).to_bytes(4, "big")
        head += backing.encode()
    for name, (place, value) in fields.items():
        count = 8 if name.endswith("_8") else 4
        head[place : place + count] = value.to_bytes(count, "big")
    return bytes(head).ljust(2**16, b"\0")


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data.ljust(-(-len(data) // 8) * 8, b"\0")


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_image_has_a_size_and_no_base(version: int) -> None:
    assert qcow2.parse(image(version)) == Header(version, G, 65536, None, 0, None)


@pytest.mark.parametrize("version", [2, 3])
def test_a_base_has_a_name_and_a_format(version: int) -> None:
    found = qcow2.parse(image(version, backing="debian.img", extensions=extension(0xE2792ACA, b"raw")))
    assert (found.backing, found.backing_format) == ("debian.img", "raw")


@pytest.mark.parametrize("size", [512, 2**29, 2**29 + 512, 2**40 + 2**20])
def test_an_empty_image_is_one_for_qemu_img(tmp_path: Path, size: int) -> None:
    data = qcow2.empty(size)
    assert qcow2.parse(data[: qcow2.HEAD]) == Header(3, size, 65536, None, 0, None)
    (tmp_path / "x.qcow2").write_bytes(data)
    info, check = (
        json.loads(subprocess.check_output(["qemu-img", verb, "--output=json", tmp_path / "x.qcow2"]))
        for verb in ("info", "check")
    )
    assert (info["format"], info["virtual-size"], check["check-errors"]) == ("qcow2", size, 0)
    assert "leaks" not in check
    assert check["image-end-offset"] == len(data)


REFUSED = {
    "raw": (bytes(2**16), "is not a qcow2 image"),
    "empty": (b"", "is not a qcow2 image"),
    "cut off": (b"QFI\xfb\0\0\0\3", "is not a qcow2 image"),
    "version 1": (image(f=(4, 1)), "version 1"),
    "version 3 cut off": (image()[:80], "version 3"),
    "clusters": (image(f=(20, 40)), r"clusters of 2\^40"),
    "data file": (image(f_8=(72, 4)), "external data file"),
    "name of a data file": (image(extensions=extension(0x44415441, b"/etc/shadow")), "external data file"),
    "corrupt": (image(f_8=(72, 2)), "corrupt"),
    "unknown feature": (image(f_8=(72, 1 << 40)), "not known"),
    "encrypted": (image(f=(32, 2)), "encrypted"),
    "huge size": (image(size=2**62), "at most 64T"),
    "L1 table": (image(f=(36, 2**31)), "an L1 table"),
    "refcount table": (image(f=(56, 2**20)), "a refcount table"),
    "snapshots": (image(f=(60, 2**32 - 1)), "a list of snapshots"),
    "huge extension": (image(extensions=b"abcd\xff\xff\xff\xff"), "header extension of 4294967295 bytes"),
    "many extensions": (image(extensions=b"".join(extension(n, b"") for n in range(1, 99))), "more than 64"),
    "long header": (image(f=(100, 2**30)), "has a header of"),
    "short header": (image(f=(100, 72)), "has a header of 72"),
    "long base": (image(backing="x" * 1024), "name is not in its first cluster"),
    "base elsewhere": (image(f_8=(8, 2**40), g=(16, 9)), "name is not in its first cluster"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_qemu_would_follow_or_choke_on_is_refused(name: str) -> None:
    head, why = REFUSED[name]
    with pytest.raises(Refused, match=why):
        qcow2.parse(head)


@given(st.binary(max_size=300), st.integers(4, 200), st.binary(max_size=40))
def test_any_bytes_are_a_header_or_refused(start: bytes, place: int, patch: bytes) -> None:
    patched = bytearray(image(backing="b.img"))
    patched[place : place + len(patch)] = patch
    for head in (start, qcow2.MAGIC + start, bytes(patched)):
        with contextlib.suppress(Refused):
            found = qcow2.parse(head)
            assert 0 <= found.size <= qcow2.SIZE_MAX
            assert found.backing is None or 1 <= len(found.backing) <= 1023


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=200))
def test_the_name_of_a_base_can_be_another(name: str) -> None:
    head = image(backing="short", extensions=extension(0xE2792ACA, b"raw"))
    before = qcow2.parse(head)
    fresh = qcow2.with_backing(head, before, name)
    assert len(fresh) < 1100
    assert qcow2.parse(fresh + head[len(fresh) :]) == before._replace(backing=name)


def test_the_name_of_a_base_has_its_limits() -> None:
    for head, name in ((image(), "x"), (image(backing="b"), "x" * 1024)):
        with pytest.raises(Refused, match="no room"):
            qcow2.with_backing(head, qcow2.parse(head), name)
