"""The renaming of a VM directory and its drives: completed or undone, whenever it is cut short."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmessd.core.errors import BadFile, Failed, Locked
from vmessd.storage import new_directory, renaming, vmdir
from vmessd.storage.vmdir import VMDirectory

DRIVES = ("hda.img", "hdb.img", "cdrom.iso")
STEPS = 6
"""Renames of a directory with two images and a link into itself: away, three drives, the link, back."""


class Killed(BaseException):
    """The process ends here."""


def make(root: Path) -> VMDirectory:
    vm = VMDirectory(root, "leaf0")
    new_directory.make(vm, {"RAM": "64M"})
    (vm.path / "leaf0-hda.img").write_bytes(b"a")
    (vm.path / "leaf0-hdb.img").write_bytes(b"b")
    (vm.path / "own.iso").write_bytes(b"c")
    (vm.path / "leaf0-cdrom.iso").symlink_to(vm.path / "own.iso")
    return vm


def rename(vm: VMDirectory, new: str) -> str:
    with renaming.begun(vm, new) as name:
        return renaming.complete(vm.path.parent, name)


def is_whole(root: Path, vm: str) -> bool:
    """Tell whether the root contains this VM alone, with all its drives and their content."""
    assert [file.name for file in root.iterdir()] == [vm]
    assert sorted(file.name for file in (root / vm).iterdir()) == sorted(
        ["RAM", "own.iso", *(f"{vm}-{drive}" for drive in DRIVES)]
    )
    return [(root / vm / f"{vm}-{drive}").read_bytes() for drive in DRIVES] == [b"a", b"b", b"c"]


def cut(monkeypatch: pytest.MonkeyPatch, after: int, failure: BaseException) -> Callable[[], int]:
    """Have the call of rename(2) with this number fail, and return a function that counts them."""
    real, calls = os.rename, 0

    def rename(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise failure
        real(*arguments, **options)

    monkeypatch.setattr(os, "rename", rename)
    return lambda: calls


def test_a_vm_is_renamed_with_its_drives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = make(tmp_path)
    count = cut(monkeypatch, 1000, Killed())
    assert rename(vm, "spine7") == "spine7"
    assert is_whole(tmp_path, "spine7")
    assert count() == STEPS
    assert os.readlink(tmp_path / "spine7/spine7-cdrom.iso") == f"{tmp_path}/spine7/own.iso"


@pytest.mark.parametrize("after", range(STEPS))
def test_one_that_was_cut_short_is_completed_or_never_began(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = make(tmp_path)
    with monkeypatch.context() as patched:
        cut(patched, after, Killed())
        with pytest.raises(Killed):
            rename(vm, "spine7")
    left = vmdir.leftovers(tmp_path)
    assert vmdir.listing(tmp_path).vms == ([] if left else ["leaf0"])
    assert (after == 0) is (left == [])
    for name in left:
        assert renaming.pair(name) == ("leaf0", "spine7")
        with monkeypatch.context() as patched:  # the one that completes it is killed, too
            cut(patched, 0, Killed())
            with pytest.raises(Killed):
                renaming.complete(tmp_path, name)
        assert renaming.complete(tmp_path, name) == "spine7"
    assert is_whole(tmp_path, "spine7" if left else "leaf0")


@pytest.mark.parametrize("after", range(1, STEPS))
def test_what_fails_is_undone(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = make(tmp_path)
    cut(monkeypatch, after, OSError(errno.EIO, os.strerror(errno.EIO)))
    assert rename(vm, "spine7") == "leaf0"
    assert is_whole(tmp_path, "leaf0")


def test_what_cannot_even_be_undone_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = make(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(renaming, "_rename_drive", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
        with pytest.raises(Failed, match=r"leaf0~spine7, which is VM leaf0, cannot be renamed to spine7: no"):
            rename(vm, "spine7")
    assert renaming.complete(tmp_path, vmdir.leftovers(tmp_path)[0]) == "spine7"
    assert is_whole(tmp_path, "spine7")


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_a_name_that_is_taken_is_refused_before_anything_changes(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "vms"
    root.mkdir()
    vm, taken = make(root), root / "spine7"
    if kind == "directory":
        taken.mkdir()
    elif kind == "file":
        taken.touch()
    else:
        taken.symlink_to("/nowhere")
    with pytest.raises(Failed, match="exists already, so leaf0 was not renamed"):
        rename(vm, "spine7")
    taken.rmdir() if kind == "directory" else taken.unlink()
    assert is_whole(root, "leaf0")


def test_a_name_that_somebody_takes_meanwhile_is_left_to_them(tmp_path: Path) -> None:
    vm = make(tmp_path)
    with renaming.begun(vm, "spine7") as name:
        (tmp_path / "spine7").mkdir()
        assert renaming.complete(tmp_path, name) == "leaf0"
    (tmp_path / "spine7").rmdir()
    assert is_whole(tmp_path, "leaf0")
    with renaming.begun(vm, "spine7") as name:
        (tmp_path / "spine7").mkdir()
        (tmp_path / "leaf0").mkdir()
        with pytest.raises(Failed, match="cannot be renamed"):
            renaming.complete(tmp_path, name)
    (tmp_path / "leaf0").rmdir()
    assert renaming.complete(tmp_path, name) == "leaf0"


def test_a_drive_that_is_there_under_both_names_is_refused(tmp_path: Path) -> None:
    vm = make(tmp_path)
    (vm.path / "spine7-hda.img").write_bytes(b"other")
    with pytest.raises(BadFile, match=r"contains both leaf0-hda\.img and spine7-hda\.img"):
        rename(vm, "spine7")
    assert (vm.path / "leaf0-hda.img").read_bytes() == b"a"
    (vm.path / "spine7-hda.img").rename(vm.path / "spine7-hdc.img")  # of a drive that it lacks
    assert rename(vm, "spine7") == "spine7"
    assert (tmp_path / "spine7/spine7-hdc.img").read_bytes() == b"other"


def test_a_vm_that_is_locked_by_a_process_keeps_its_name(tmp_path: Path) -> None:
    vm = make(tmp_path)
    other = os.open(vm.path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(Locked, match="so it was not renamed"):
        rename(vm, "spine7")
    os.close(other)
    assert is_whole(tmp_path, "leaf0")


def test_links_elsewhere_stay_as_they_are(tmp_path: Path) -> None:
    vm = make(tmp_path)
    for drive, target in (("cdrom.iso", "/iso/a.iso"), ("hda.img", "own.iso"), ("hdb.img", f"{vm.path}x/b")):
        (vm.path / f"leaf0-{drive}").unlink()
        (vm.path / f"leaf0-{drive}").symlink_to(target)
    assert rename(vm, "a0") == "a0"
    place = tmp_path / "a0"
    links = [os.readlink(place / f"a0-{drive}") for drive in ("cdrom.iso", "hda.img", "hdb.img")]
    assert links == ["/iso/a.iso", "own.iso", f"{vm.path}x/b"]


@pytest.mark.parametrize(
    "name",
    [
        "leaf0",
        f"{vmdir.RENAMING}leaf0",
        f"{vmdir.RENAMING}leaf0~",
        f"{vmdir.RENAMING}leaf0~../a0",
        f"{vmdir.RENAMING}leaf0~a0~b0",
        f"{vmdir.RENAMING}Leaf~a0",
        f"{vmdir.REMOVED}leaf0~a0",
    ],
)
def test_other_names_are_not_understood(name: str) -> None:
    assert renaming.pair(name) is None
