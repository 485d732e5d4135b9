"""Disks that stand on other images: links in the VM directory, and nothing else, say which."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from test_qcow2 import image

from vmessd.core.errors import BadFile, Failed
from vmessd.storage import backing, images
from vmessd.storage.backing import Identity
from vmessd.storage.images import disks
from vmessd.storage.vmdir import VMDirectory

OVERLAY = image(backing="newvm0-hda.base")


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    found = VMDirectory(tmp_path / "vms", "newvm0")
    found.path.mkdir(parents=True)
    return found


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A directory of images: bottom.img below middle.qcow2."""
    place = tmp_path / "shelf"
    place.mkdir()
    (place / "bottom.img").write_bytes(bytes(2**20))
    (place / "middle.qcow2").write_bytes(image(backing="/etc/shadow"))
    (place / "other.raw").write_bytes(bytes(2**20))
    return place


@pytest.fixture
def chained(vm: VMDirectory, shelf: Path) -> VMDirectory:
    """A VM whose hda stands on middle.qcow2, and that on bottom.img."""
    (vm.path / "newvm0-hda.qcow2").write_bytes(OVERLAY)
    (vm.path / "newvm0-hda.base").symlink_to(shelf / "middle.qcow2")
    (vm.path / "newvm0-hda.base.2").symlink_to(shelf / "bottom.img")
    return vm


def refusal(vm: VMDirectory) -> BadFile:
    with pytest.raises(BadFile) as caught:
        images.check(vm, disks(vm), ())
    assert caught.value.slot == "hda"
    assert str(vm.path) in caught.value.message or caught.value.message.startswith("a base of")
    return caught.value


def test_the_name_says_the_format(vm: VMDirectory) -> None:
    (vm.path / "newvm0-hda.img").write_bytes(bytes(2**20))
    (vm.path / "newvm0-hdb.qcow2").write_bytes(image(size=3 * 2**30))
    assert [(disk.slot, disk.format, disk.size) for disk in disks(vm)] == [
        ("hda", "raw", 2**20),
        ("hdb", "qcow2", 3 * 2**30),
    ]
    images.check(vm, disks(vm), ())


def test_two_formats_of_one_disk_are_refused(vm: VMDirectory) -> None:
    for form in ("img", "qcow2"):
        (vm.path / f"newvm0-hda.{form}").write_bytes(image())
    assert "contains both newvm0-hda.img and newvm0-hda.qcow2" in refusal(vm).message


def test_a_raw_image_that_is_called_qcow2_is_refused(vm: VMDirectory) -> None:
    (vm.path / "newvm0-hda.qcow2").write_bytes(bytes(2**20))
    assert refusal(vm).message.endswith("newvm0-hda.qcow2 is not a qcow2 image")


def test_a_chain_is_what_the_links_say(chained: VMDirectory, shelf: Path) -> None:
    [disk] = disks(chained)
    assert [(base.path, base.target, base.format) for base in disk.bases] == [
        (f"{chained.path}/newvm0-hda.base", f"{shelf}/middle.qcow2", "qcow2"),
        (f"{chained.path}/newvm0-hda.base.2", f"{shelf}/bottom.img", "raw"),
    ]
    images.check(chained, [disk], ())


def test_a_backing_file_without_a_link_is_refused(chained: VMDirectory) -> None:
    (chained.path / "newvm0-hda.base.2").unlink()
    error = refusal(chained)
    assert "newvm0-hda.base has a backing file, '/etc/shadow', and there is no link newvm0-hda.base.2" in (
        error.message
    )
    (chained.path / "newvm0-hda.base").unlink()
    assert "newvm0-hda.qcow2 has a backing file, 'newvm0-hda.base', and" in refusal(chained).message


@pytest.mark.parametrize(
    ("name", "link", "why"),
    [
        ("hda.base", "nowhere.img", "no such file"),
        ("hda.base", "middle", "must be one that says the format"),
        ("hda.base.2", "middle.qcow2", "is its own base"),
        ("hda.base.4", "bottom.img", "is there without newvm0-hda.base.3"),
        ("hda.base.3", "bottom.img", "is there, but newvm0-hda.base.2 is raw"),
        ("hda.base.2", "directory.img", "a directory; it must be an image"),
    ],
)
def test_a_wrong_link_is_refused(chained: VMDirectory, shelf: Path, name: str, link: str, why: str) -> None:
    (shelf / "directory.img").mkdir()
    place = chained.path / f"newvm0-{name}"
    place.unlink(missing_ok=True)
    place.symlink_to(shelf / link)
    assert why in refusal(chained).message


def test_a_base_that_is_no_link_is_refused(chained: VMDirectory) -> None:
    (chained.path / "newvm0-hda.base").unlink()
    (chained.path / "newvm0-hda.base").write_bytes(bytes(512))
    assert "must be a link" in refusal(chained).message


def test_an_image_without_a_backing_file_has_no_links(chained: VMDirectory) -> None:
    (chained.path / "newvm0-hda.qcow2").write_bytes(image())
    assert "newvm0-hda.qcow2 has no backing file in its header" in refusal(chained).message
    (chained.path / "newvm0-hda.qcow2").rename(chained.path / "newvm0-hda.img")
    assert "a raw image has no base" in refusal(chained).message


def test_a_raw_base_that_looks_like_another_format_is_refused(chained: VMDirectory, shelf: Path) -> None:
    (shelf / "bottom.img").write_bytes(image())
    assert refusal(chained).message.endswith("bottom.img', which is a qcow2 image")
    images.check(chained, disks(chained), ("hda",))


@pytest.mark.parametrize(("depth", "is_allowed"), [(8, True), (9, False)])
def test_a_chain_has_a_limit(vm: VMDirectory, shelf: Path, depth: int, is_allowed: bool) -> None:
    (vm.path / "newvm0-hda.qcow2").write_bytes(OVERLAY)
    for number in range(1, depth + 1):
        base = shelf / (f"{number}.img" if number == depth else f"{number}.qcow2")
        base.write_bytes(bytes(2**20) if number == depth else OVERLAY)
        (vm.path / ("newvm0-hda.base" if number == 1 else f"newvm0-hda.base.{number}")).symlink_to(base)
    if is_allowed:
        assert len(disks(vm)[0].bases) == depth
    else:
        assert "the limit is 8" in refusal(vm).message


def test_a_base_may_not_be_a_disk_of_the_same_vm(chained: VMDirectory, shelf: Path) -> None:
    (chained.path / "newvm0-hdb.img").symlink_to(shelf / "bottom.img")
    assert "is a base, and hdb of the same VM writes" in refusal(chained).message


def test_a_base_may_not_be_the_disk_of_another_vm(chained: VMDirectory, shelf: Path) -> None:
    [disk] = disks(chained)
    other = chained.path.with_name("other1")
    other.mkdir()
    backing.check_not_written(chained, {"hda": disk.bases})
    os.link(shelf / "bottom.img", other / "other1-hdc.img")
    with pytest.raises(BadFile, match=r"is the disk of VM other1, which may write to it: other1-hdc\.img"):
        backing.check_not_written(chained, {"hda": disk.bases})
    assert backing.users(chained.path.parent, disk.bases[1].identity) == ["newvm0"]


def test_a_base_of_a_disk_that_was_put_aside_is_in_use(chained: VMDirectory) -> None:
    root, owner = chained.path.parent, VMDirectory(chained.path.parent, "owner1")
    owner.path.mkdir()
    base = owner.path / "base.img"
    base.write_bytes(bytes(2**20))
    (chained.path / "newvm0-hda.base.2").unlink()
    (chained.path / "newvm0-hda.base.2").symlink_to(f"../{owner.vm}/{base.name}")
    assert images.detach(chained, "hda") is not None
    assert backing.users(root, Identity.of(base.stat())) == [chained.vm]
    refused = f"a disk of VM {chained.vm} is based on {base}, so owner1 was not deleted"
    with pytest.raises(BadFile, match=refused):
        backing.check_stands_alone(owner, "deleted")
    backing.check_stands_alone(chained, "deleted")


@pytest.mark.parametrize(("call", "number"), [("symlink", 1), ("symlink", 2), ("rename", 1), ("fsync", 1)])
def test_a_disk_that_cannot_be_put_aside_stays_and_leaves_nothing(
    chained: VMDirectory, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    before = sorted(os.listdir(chained.path))
    real, left = getattr(os, call), number

    def fails(*arguments: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*arguments, **options)

    monkeypatch.setattr(os, call, fails)
    with pytest.raises(Failed, match=r"newvm0-hda\.qcow2 cannot be moved: no space left on device$"):
        images.detach(chained, "hda")
    assert sorted(os.listdir(chained.path)) == before
    assert images.detach(chained, "hda") is not None


def test_a_base_that_has_changed_is_refused_until_that_is_accepted(chained: VMDirectory, shelf: Path) -> None:
    [disk] = disks(chained)
    remembered = {"hda": (disk.identity, disk.bases)}
    backing.remember(chained, remembered)
    images.check(chained, disks(chained), ())
    with (shelf / "bottom.img").open("ab") as file:
        file.write(bytes(512))
    error = refusal(chained)
    assert f"'{shelf}/bottom.img' has changed since the last start" in error.message
    assert error.hint is not None
    (chained.path / backing.RECORD).unlink()
    images.check(chained, disks(chained), ())
    backing.remember(chained, {})
    (chained.path / "newvm0-hda.base.2").unlink()
    backing.remember(chained, remembered)
    (chained.path / "newvm0-hda.base.2").symlink_to(shelf / "other.raw")
    assert f"'{shelf}/other.raw' has changed" in refusal(chained).message


def test_another_disk_of_the_same_name_has_its_own_bases(chained: VMDirectory, shelf: Path) -> None:
    [disk] = disks(chained)
    backing.remember(chained, {"hda": (disk.identity, disk.bases)})
    (shelf / "bottom.img").write_bytes(bytes(2**21))
    (chained.path / "newvm0-hda.qcow2").rename(chained.path / "aside")
    (chained.path / "newvm0-hda.qcow2").write_bytes(OVERLAY)
    images.check(chained, disks(chained), ())


@pytest.mark.parametrize("record", [b"", b"[]", b"\xff", b'{"hda": 7}', b'{"hda": {"image": 1}}', b"[" * 9999])
def test_a_malformed_record_says_nothing(chained: VMDirectory, record: bytes) -> None:
    (chained.path / backing.RECORD).write_bytes(record)
    images.check(chained, disks(chained), ())


def test_a_record_of_nothing_is_no_file(chained: VMDirectory) -> None:
    [disk] = disks(chained)
    backing.remember(chained, {"hda": (disk.identity, disk.bases)})
    assert (chained.path / backing.RECORD).exists()
    backing.remember(chained, {"hda": (disk.identity, ())})
    assert not (chained.path / backing.RECORD).exists()
