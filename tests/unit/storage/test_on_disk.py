"""A new image is on the disk before it gets its name, so that a power cut leaves no disk without content."""

import os
from pathlib import Path

import pytest

from vmessd.storage import snapshots
from vmessd.storage.cloning import Clone
from vmessd.storage.vmdir import VMDirectory


class Everybody:
    name = "everybody"

    def may_read(self, _path: str) -> bool:
        return True


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    """A VM with a disk."""
    made = VMDirectory(tmp_path, "newvm0")
    made.path.mkdir()
    (made.path / "newvm0-hda.img").write_bytes(os.urandom(70_000))
    return made


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes of the files that were waited for."""
    found: set[int] = set()
    fsync = os.fsync

    def noted(fd: int) -> None:
        fsync(fd)
        found.add(os.fstat(fd).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    return found


def test_the_disk_of_a_clone(vm: VMDirectory, tmp_path: Path, synced: set[int]) -> None:
    clone = Clone(vm, VMDirectory(tmp_path, "web-1"), Everybody(), linked=False)
    clone.copy(lambda _percent: None)
    [made] = tmp_path.glob(".*/web-1-hda.img")
    assert made.stat().st_ino in synced
    clone.finish()


def test_the_disk_on_top_of_a_snapshot(vm: VMDirectory, synced: set[int]) -> None:
    name, overlays = snapshots.prepare(vm, "one")
    new = (vm.path / overlays[0].temporary).stat().st_ino
    snapshots.taking(vm, name, overlays, 0.0)
    assert new in synced
    snapshots.clear(vm, overlays)
