"""Guests that their owner moves into a directory that is there: which directory admits them."""

from pathlib import Path

import pytest

from vmessd.core import moves
from vmessd.core.errors import Failed, VmessError
from vmessd.core.moves import Ask, MoveRecord, Offer, Stage
from vmessd.core.ownership import Owner
from vmessd.core.records import Moment
from vmessd.storage import moves as notes
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor import twins
from vmessd.vm.host import Host

IMAGE = {"leaf0-hda.img": "/srv/vms/leaf0-hda.img"}
HOST = Host(qemu="qemu-system-x86_64", accel="tcg")


def offer(
    owner: str = "pacemaker", links: dict[str, str] | None = None, disks: list[str] | None = None
) -> Offer:
    return Offer(
        *(moves.VERSION, Ask.take, "k", "leaf0", "lab2"), live=True, owner=owner, links=links, disks=disks
    )


def record(stage: Stage, *, twin: bool = True) -> MoveRecord:
    return MoveRecord(stage, "k", "lab2", Moment.now(), twin=twin)


@pytest.mark.parametrize(
    ("here", "there"),
    [
        (Owner("pacemaker"), "pacemaker"),
        (Owner("pacemaker", "web"), "pacemaker web"),
        (Owner("pacemaker", "leaf0"), "pacemaker"),
        (Owner("pacemaker"), "pacemaker leaf0"),
    ],
)
def test_the_same_resource_is_admitted(here: Owner, there: str) -> None:
    twins.check_owners("leaf0", here, there)


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        (None, "pacemaker", "VM leaf0 exists already, and does not belong to pacemaker: it has no file OWNER"),
        (
            Owner("pacemaker", "web"),
            "pacemaker",
            "VM leaf0 exists already, as resource web of pacemaker, and not as leaf0 of pacemaker",
        ),
        (Owner("pacemaker"), "me", "'me' is not the owner of a VM"),
        (Owner("pacemaker"), "pacemaker a b", "'pacemaker a b' is not the owner of a VM"),
    ],
)
def test_others_are_refused(here: Owner | None, there: str, said: str) -> None:
    with pytest.raises(Failed) as caught:
        twins.check_owners("leaf0", here, there)
    assert caught.value.message == said


def test_links_to_the_same_images_are_admitted() -> None:
    twins.check_drives("leaf0", IMAGE, offer(links=dict(IMAGE)))
    twins.check_drives("leaf0", {}, offer())


@pytest.mark.parametrize(
    ("own", "theirs", "here", "there"),
    [
        ({}, IMAGE, "not a link", "a link to '/srv/vms/leaf0-hda.img'"),
        (IMAGE, {}, "a link to '/srv/vms/leaf0-hda.img'", "not a link"),
        ({"leaf0-hda.img": None}, {}, "not a link", "not a link"),
        (IMAGE, {"leaf0-hda.img": "/x"}, "a link to '/srv/vms/leaf0-hda.img'", "a link to '/x'"),
    ],
)
def test_other_drives_are_refused(
    own: dict[str, str | None], theirs: dict[str, str], here: str, there: str
) -> None:
    with pytest.raises(Failed) as caught:
        twins.check_drives("leaf0", own, offer(links=theirs))
    assert caught.value.message == f"'leaf0-hda.img' is {here} on this host, and {there} on the other"


def test_a_disk_that_only_the_source_has_is_refused() -> None:
    with pytest.raises(Failed, match="'hda' of leaf0 is an image of its own on the host"):
        twins.check_drives("leaf0", {}, offer(disks=["hda"]))


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (Stage.arriving, "VM leaf0 is on its way from lab2"),
        (Stage.leaving, "VM leaf0 is being moved to lab2"),
        (Stage.arrived, "VM leaf0 came from lab2, which does not know yet that it arrived"),
    ],
)
def test_a_vm_in_a_move_is_refused_by_an_error_that_leaves_no_doubt(
    tmp_path: Path, stage: Stage, said: str
) -> None:
    vm = VMDirectory(tmp_path, "leaf0")
    twins.check_free(vm)
    vm.move = record(stage)
    with pytest.raises(Failed) as caught:
        twins.check_free(vm)
    assert caught.value.message == said


@pytest.mark.parametrize("noted", ["{", None])
def test_a_note_of_another_move_is_not_overwritten(tmp_path: Path, noted: str | None) -> None:
    vm = VMDirectory(tmp_path, "leaf0")
    vm.path.mkdir()
    (vm.path / "OWNER").write_text("pacemaker\n")
    if noted is None:
        notes.note(vm, record(Stage.handed_over))
    else:
        (vm.path / "move.json").write_text(noted)
    before = (vm.path / "move.json").read_bytes()
    with pytest.raises(VmessError) as caught:
        twins.admit(vm, offer(), record(Stage.arriving), HOST)
    assert type(caught.value) is Failed, "Locked would tell the source that it has to ask"
    assert (vm.path / "move.json").read_bytes() == before
