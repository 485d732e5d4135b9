"""Copies of images: complete, sparse, and ended at once by whoever no longer wants them."""

import errno
import io
import os
import random
from pathlib import Path

import pytest

from vmessd.core.errors import Failed
from vmessd.storage import copying

M = 2**20


def image(place: Path, size: int, *data: tuple[int, bytes]) -> Path:
    """A sparse file with some data in it."""
    with place.open("wb") as file:
        file.truncate(size)
        for at, piece in data:
            file.seek(at)
            file.write(piece)
    return place


def copied(source: Path, target: Path, size: int | None = None, **more: object) -> None:
    target.touch()
    arguments = (io.FileIO(source, "r"), io.FileIO(target, "w"), size or source.stat().st_size)
    copying.copy(*arguments, **more)  # type: ignore[arg-type]


PIECES = [
    (0, random.Random(1).randbytes(3 * M)),
    (20 * M - 5, random.Random(2).randbytes(70_000)),
    (64 * M - 1, b"x"),
]


@pytest.mark.parametrize("by", ["kernel", "hand"])
def test_a_copy_has_the_data_and_the_holes(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "hand":

        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    source, target = image(tmp_path / "a", 64 * M, *PIECES), tmp_path / "b"
    said: list[int] = []
    copied(source, target, report=said.append)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 <= 4 * M
    assert said == sorted(said)
    assert said[-1] <= 64 * M


def test_zeros_become_a_hole_where_the_source_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "no such thing here")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(os, "lseek", refuse)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(bytes(8 * M) + b"end")
    copied(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < M


@pytest.mark.parametrize("size", [1, 511, 4097, M + 1])
def test_a_copy_has_any_size(tmp_path: Path, size: int) -> None:
    source, target = image(tmp_path / "a", size, (size - 1, b"z")), tmp_path / "b"
    copied(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_only_what_was_there_at_the_beginning_is_copied(tmp_path: Path) -> None:
    source, target = image(tmp_path / "a", 2 * M, (M, b"later")), tmp_path / "b"
    copied(source, target, M)
    assert target.read_bytes() == bytes(M)


def test_an_image_that_becomes_shorter_is_told(tmp_path: Path) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"x" * 100)
    with pytest.raises(Failed, match="became shorter"):
        copied(source, tmp_path / "b", M)


def test_a_copy_ends_when_it_is_not_wanted(tmp_path: Path) -> None:
    def leave(_done: int) -> None:
        raise copying.Cancelled

    source = tmp_path / "a"
    source.write_bytes(b"x" * (copying.PIECE + 1))
    with pytest.raises(copying.Cancelled):
        copied(source, tmp_path / "b", report=leave)
    assert (tmp_path / "b").stat().st_size in (copying.PIECE + 1, copying.PIECE)


def test_too_little_room_is_told_before(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        copying.check_room(fd, 1, "here")
        with pytest.raises(Failed, match=r"here has .* free, and the image takes 1048576T"):
            copying.check_room(fd, 2**60, "here")
    finally:
        os.close(fd)


def test_zeros_that_nobody_wrote_take_no_space(tmp_path: Path) -> None:
    place = image(tmp_path / "a", 8 * M, (2 * M, b"x" * M))
    with place.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 8 * M)
        assert place.stat().st_blocks * 512 >= 8 * M
        copying.dig_holes(file.fileno(), 8 * M)
    assert place.stat().st_blocks * 512 <= 2 * M
    assert place.read_bytes() == bytes(2 * M) + b"x" * M + bytes(5 * M)


def test_a_file_without_holes_stays_as_it_is() -> None:
    reading, writing = os.pipe()
    copying.dig_holes(writing, M)
    os.close(reading)
    os.close(writing)
