"""The file with the memory of a snapshot."""

import os
from pathlib import Path

import pytest

from vmessd.core import names
from vmessd.core.errors import BadFile, Failed, InvalidValue
from vmessd.storage import memory
from vmessd.storage.memory import HEAD, Origin
from vmessd.storage.vmdir import VMDirectory

ORIGIN = Origin("a0", "/vms/a0", "7.2", ["qemu", "-m", "64M"], {"RAM": "64M\n"})


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    (tmp_path / "a0").mkdir()
    return VMDirectory(tmp_path, "a0")


def test_what_is_written_behind_the_head_is_read_there(vm: VMDirectory) -> None:
    draft = memory.create(vm, ORIGIN, 2**20)
    os.write(draft.fd, b"stream")
    os.rename(vm.path / draft.temporary, vm.path / names.memory_file("one"))
    memory.discard(vm, draft)
    found, fd = memory.opened(vm, "one")
    assert (found, os.read(fd, 100)) == (ORIGIN, b"stream")
    os.close(fd)
    assert (vm.path / "snap-one.memory").stat().st_mode & 0o777 == 0o600
    assert memory.size(vm, "one")


def test_what_gets_no_place_is_removed(vm: VMDirectory) -> None:
    memory.discard(vm, memory.create(vm, ORIGIN, 0))
    assert os.listdir(vm.path) == []


def test_what_cannot_be_kept_leaves_nothing(vm: VMDirectory) -> None:
    with pytest.raises(Failed, match="the memory takes up to"):
        memory.create(vm, ORIGIN, 2**60)
    with pytest.raises(Failed, match="too long"):
        memory.create(vm, Origin("a0", "/", "7.2", ["x" * HEAD], None), 0)
    assert os.listdir(vm.path) == []


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * HEAD, b"\xff" * 10, b'{"vm":1}', b"\0" * HEAD])
def test_what_is_not_a_memory_is_refused(vm: VMDirectory, data: bytes) -> None:
    (vm.path / "snap-one.memory").write_bytes(data)
    with pytest.raises(BadFile, match=r"snap-one\.memory is not the memory of a guest"):
        memory.opened(vm, "one")


@pytest.mark.parametrize("kind", ["link", "directory", "fifo", "nothing"])
def test_only_a_plain_file_is_a_memory(vm: VMDirectory, kind: str) -> None:
    place = vm.path / "snap-one.memory"
    if kind == "link":
        place.symlink_to("/etc/passwd")
    elif kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    with pytest.raises(InvalidValue, match="has no memory"):
        memory.opened(vm, "one")
    assert memory.size(vm, "one") is None
    with vm.opened() as directory:
        assert memory.drops(directory, ["one", None]) == ()


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("snap-one.memory", "one"),
        ("snap-hda-one.memory", "hda-one"),
        ("snap-hda-one.img", None),
        ("snap-.memory", None),
        ("snap-One.memory", None),
        ("one.memory", None),
        ("snap-a/b.memory", None),
    ],
)
def test_the_name_of_a_memory(file: str, name: str | None) -> None:
    assert names.memory_of(file) == name
    assert names.snapshot_of(file) == ("one" if file.endswith(".img") else None)
