"""What is left of a VM that is gone: TAPs and files that could not be deleted at once."""

from pathlib import Path

import pytest
from amiss import failing

from vmessd.core.errors import AlreadyRunning, Failed, NotPermitted, VmessError
from vmessd.network.links import Network
from vmessd.storage import safefile, vmdir
from vmessd.storage.new_directory import make
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor import leftovers
from vmessd.supervisor.leftovers import Leftovers


class Links(Network):
    """Links that can be deleted or not."""

    def __init__(self) -> None:
        self.errors: list[VmessError] = []
        self.unwired: list[str] = []

    def unwire(self, vm: str, keep: object = ()) -> list[object]:  # type: ignore[override]
        if self.errors:
            raise self.errors.pop()
        self.unwired.append(vm)
        return []


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Links:
    """What there is of links; and no pause."""
    monkeypatch.setattr(leftovers, "PAUSE", 0.0)
    return Links()


def names_in(root: Path) -> list[str]:
    return sorted(file.name for file in root.iterdir())


def test_a_removal_takes_the_vm_and_nothing_its_links_lead_to(tmp_path: Path, links: Links) -> None:
    vm = VMDirectory(tmp_path, "newvm0")
    make(vm, {"RAM": "2G"})
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    (vm.path / "link").symlink_to(precious)
    (vm.path / "newvm0-cdrom.iso").symlink_to(precious / "file")
    (vm.path / "sub").mkdir()
    (vm.path / "sub" / "file").touch()
    (vm.path / "sub" / "link").symlink_to(precious)
    assert Leftovers(tmp_path, links).clear(vm.part()) is None
    assert names_in(tmp_path) == ["precious"]
    assert (precious / "file").exists()
    assert links.unwired == ["newvm0"]


async def test_an_interrupted_removal_is_finished_and_nothing_else_is(tmp_path: Path, links: Links) -> None:
    vm = VMDirectory(tmp_path, "newvm0")
    make(vm)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    for name in (
        f"{vmdir.REMOVED}old0-0badcafe",
        f"{vmdir.REMOVED}newvm0-0badcafe",
        f"{vmdir.MAKING}b0-01234567",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old0-hda.img").touch()
        (tmp_path / name / "link").symlink_to(precious)
    (tmp_path / f"{vmdir.REMOVED}link").symlink_to(precious)
    found = Leftovers(tmp_path, links)
    found.find()
    await found.retry()
    assert names_in(tmp_path) == [f"{vmdir.REMOVED}link", "newvm0", "precious"]
    assert (precious / "file").exists()
    assert links.unwired == ["old0"], "there is a VM of the other name again"


async def test_what_fails_is_said_once_and_tried_until_it_works(
    tmp_path: Path, links: Links, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vm = VMDirectory(tmp_path, "newvm0")
    make(vm)
    left = Leftovers(tmp_path, links)
    monkeypatch.setattr(safefile, "empty", failing(3))
    name = vm.part()
    with pytest.raises(Failed, match=r"all that is left of newvm0, cannot be removed: input/output error$"):
        left.clear(name)
    for _ in range(2):
        await left.retry()
        assert names_in(tmp_path) == [name]
    await left.retry()
    assert names_in(tmp_path) == []
    assert caplog.text.count("cannot be removed") == 1


@pytest.mark.parametrize(("error", "again"), [(AlreadyRunning, True), (Failed, True), (NotPermitted, False)])
async def test_taps_that_stay_are_told_and_a_later_daemon_knows_of_those_it_may_delete(
    tmp_path: Path, links: Links, error: type[VmessError], again: bool
) -> None:
    vm = VMDirectory(tmp_path, "newvm0")
    make(vm, {"RAM": "2G"})
    links.errors.append(error("it is so"))
    note = Leftovers(tmp_path, links).clear(vm.part())
    assert note == f"newvm0 is deleted, but its TAPs stay{' for now' if again else ''}: it is so"
    assert [names_in(tmp_path / name) for name in names_in(tmp_path)] == ([[]] if again else [])
    later = Leftovers(tmp_path, links)
    later.find()
    await later.retry()
    assert names_in(tmp_path) == []
    assert links.unwired == (["newvm0"] if again else [])


async def test_what_somebody_else_removed_is_gone(tmp_path: Path, links: Links) -> None:
    left = Leftovers(tmp_path, links)
    left.remember(f"{vmdir.REMOVED}old0-0badcafe")
    await left.retry()
    assert left._left == {}
