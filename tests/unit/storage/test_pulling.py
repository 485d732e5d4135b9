"""A snapshot that goes while its VM runs, as changes of files: decided or not, with its QEMU or without."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from test_qcow2 import image

from vmessd.core.errors import BadFile, InvalidValue
from vmessd.storage import images, plans, pulling, qcow2, renaming, safefile, snapshots
from vmessd.storage.plans import Plan
from vmessd.storage.vmdir import Hold, VMDirectory

VM = "newvm0"
TAKEN = 1_700_000_000.0
CORRUPT = 79
"""The place of the byte of the header whose second bit says that the image is corrupt (QEMU, qcow2.txt)."""


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    """A VM whose hda stands on the snapshots two and one; one is raw, and stands on nothing."""
    found = VMDirectory(tmp_path / "vms", VM)
    found.path.mkdir(parents=True)
    (found.path / "snap-hda-one.img").write_bytes(bytes(2**20))
    (found.path / "snap-hda-two.qcow2").write_bytes(image(backing="snap-hda-one.img"))
    (found.path / f"{VM}-hda.qcow2").write_bytes(image(backing="snap-hda-two.qcow2"))
    for depth, name in enumerate(("snap-hda-two.qcow2", "snap-hda-one.img"), 1):
        (found.path / name).chmod(0o440)
        os.utime(found.path / name, (TAKEN - depth, TAKEN - depth))
        (found.path / (f"{VM}-hda.base" if depth == 1 else f"{VM}-hda.base.{depth}")).symlink_to(name)
    return found


def begun(vm: VMDirectory, name: str) -> tuple[Plan, Plan]:
    """Have a QEMU begin to copy a snapshot; return the plans before and after this is certain."""
    pulls = pulling.prepare(vm, name, {"hda"})
    without, as_before = pulling.steps(vm, pulls)
    undecided = Plan(VM, as_before, as_before, (1, 2), merges=True)
    vm.carry_out(undecided)
    pulling.begin(vm, pulls)
    for pull in pulls:
        with (vm.path / pull.above).open("ab") as file:
            file.write(b"copied")
    return undecided, Plan(VM, without, (), (1, 2), merges=True)


def backing_of(vm: VMDirectory, name: str) -> str | None:
    return qcow2.parse((vm.path / name).read_bytes()[: qcow2.HEAD]).backing


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_merge_that_is_not_decided_leaves_everything_when_its_qemu_has_ended(
    vm: VMDirectory, name: str
) -> None:
    before = {path.name: (path.stat().st_mode, path.lstat().st_mtime) for path in vm.path.glob("snap-*")}
    begun(vm, name)
    vm.sweep_temporaries()
    assert vm.pending_plan() is not None
    vm.settle_plan()
    after = {path.name: (path.stat().st_mode, path.lstat().st_mtime) for path in vm.path.glob("snap-*")}
    assert after == before
    assert vm.pending_plan() is None
    assert snapshots.known(snapshots.hard_disks(vm)) == ["two", "one"]


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("written", [True, False])
def test_a_merge_that_is_decided_is_completed_without_its_qemu(
    vm: VMDirectory, name: str, *, written: bool
) -> None:
    _, decided = begun(vm, name)
    if written:
        vm.carry_out(decided)
        Hold(vm, "being moved").close()  # as a clone and an export begin, too
    else:  # killed between plan and files
        with vm.opened() as directory:
            safefile.write(directory, plans.FILE, plans.text(decided))
        vm.settle_plan()
    [left] = {"one", "two"} - {name}
    [disk] = snapshots.hard_disks(vm)
    assert snapshots.known([disk]) == [left]
    assert backing_of(vm, f"{VM}-hda.qcow2") == "snap-hda-two.qcow2"
    assert not list(vm.path.glob(f"snap-hda-{name}.*"))
    if name == "one":
        assert backing_of(vm, "snap-hda-two.qcow2") is None
        found = (vm.path / "snap-hda-two.qcow2").stat()
        assert (found.st_mode & 0o222, found.st_mtime) == (0, TAKEN - 1)


def test_a_merge_that_is_decided_is_completed_before_its_vm_gets_another_name(vm: VMDirectory) -> None:
    _, decided = begun(vm, "one")
    vm.carry_out(decided)
    with renaming.begun(vm, "leaf0") as hidden:
        renaming.complete(vm.path.parent, hidden)
    renamed = VMDirectory(vm.path.parent, "leaf0")
    assert snapshots.known(snapshots.hard_disks(renamed)) == ["two"]
    assert backing_of(renamed, "snap-hda-two.qcow2") is None


def have_merged_all(vm: VMDirectory) -> None:
    """Have the deletion of both snapshots decided; of the last one, the plan is pending."""
    for name in ("two", "one"):
        vm.settle_plan()
        _, decided = begun(vm, name)
        vm.carry_out(decided)


@pytest.mark.parametrize("way", [images.detach, images.delete])
def test_a_merge_that_is_decided_is_completed_before_its_disk_goes(
    vm: VMDirectory, way: Callable[[VMDirectory, str], str | None]
) -> None:
    have_merged_all(vm)
    with (vm.path / f"{VM}-hda.qcow2").open("rb") as disk:
        assert way(vm, "hda") is not None
        assert qcow2.parse(disk.read(qcow2.HEAD)).backing is None
    assert vm.pending_plan() is None


@pytest.mark.parametrize("way", [images.detach, images.delete])
def test_a_merge_that_cannot_be_completed_does_not_meet_the_next_image_of_the_slot(
    vm: VMDirectory, way: Callable[[VMDirectory, str], str | None]
) -> None:
    have_merged_all(vm)
    with (vm.path / f"{VM}-hda.qcow2").open("r+b") as disk:
        disk.seek(CORRUPT)
        disk.write(b"\2")
    with pytest.raises(BadFile, match="is marked as corrupt"):
        vm.settle_plan()
    assert way(vm, "hda") is not None
    assert vm.pending_plan() is None


def test_the_plan_of_a_merge_stays_while_its_qemu_may_have_a_part(vm: VMDirectory) -> None:
    undecided, decided = begun(vm, "two")
    assert vm.pending_plan() == undecided
    vm.carry_out(decided)
    assert vm.pending_plan() == decided
    vm.sweep_temporaries()
    assert vm.pending_plan() == decided
    vm.forget_plan()
    assert vm.pending_plan() is None


def test_a_snapshot_is_not_copied_where_that_would_change_something_else(vm: VMDirectory) -> None:
    with pytest.raises(InvalidValue, match="has no snapshot 'three'"):
        pulling.prepare(vm, "three", {"hda"})
    with pytest.raises(BadFile, match="runs without hda"):
        pulling.prepare(vm, "one", {"hdb"})
    other = vm.path.parent / "other0"
    other.mkdir()
    os.link(vm.path / "snap-hda-two.qcow2", other / "snap-hda-two.qcow2")
    with pytest.raises(BadFile, match="snapshot two of newvm0 is a base of another VM, too"):
        pulling.prepare(vm, "one", {"hda"})
    (other / "other0-hda.base").symlink_to("snap-hda-two.qcow2")
    with pytest.raises(BadFile, match="snapshot two of newvm0 is a base of other0, too"):
        pulling.prepare(vm, "one", {"hda"})
    [pull] = pulling.prepare(vm, "two", {"hda"})  # which only goes here
    assert (pull.above, pull.depth) == (f"{VM}-hda.qcow2", 0)
    (vm.path / plans.MERGING).write_text("one\n")
    with pytest.raises(BadFile, match="snapshot one of newvm0 is half deleted"):
        pulling.prepare(vm, "two", {"hda"})
