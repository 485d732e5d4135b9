"""What the list reads out of a command line of QEMU, and of addresses."""

import os
from pathlib import Path

import pytest

from vmessd.core.models.wires import VMAddress
from vmessd.network.neighbours import best
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor import readings


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        ([], (None, None)),
        (["qemu"], (1, 2**27)),
        (["qemu", "-smp", "4", "-m", "2G"], (4, 2**31)),
        (["qemu", "-m", "64", "-m", "size=96M,slots=2"], (1, 96 * 2**20)),
        (["qemu", "-smp", "cpus=2,sockets=1", "-m", "512,maxmem=1G"], (2, 2**29)),
        (["qemu", "-smp", "sockets=2", "-m", "banana"], (None, None)),
        (["qemu", "-smp", "9" * 30], (None, 2**27)),
        (["qemu", "-m"], (1, 2**27)),
    ],
)
def test_processors_and_memory_of_a_command_line(argv: list[str], found: tuple[int | None, int | None]) -> None:
    assert readings.hardware(argv) == found


def test_the_best_address_comes_first_and_guesses_are_left_out() -> None:
    def known(address: str, *, is_known: bool = True) -> VMAddress:
        return VMAddress(0, "02:11:9b:af:00:00", address, seen=True, source="", known=is_known)

    found = [known("fe80::1"), known("2001:db8::1"), known("192.0.2.1"), known("192.0.2.1")]
    assert best([*found, known("10.0.2.15", is_known=False)]) == ["192.0.2.1", "2001:db8::1", "fe80::1"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VMDirectory:
    """A directory whose files count as old."""
    monkeypatch.setattr(readings, "SETTLED", -10.0)
    directory = VMDirectory(tmp_path, "a0")
    directory.path.mkdir()
    (directory.path / "RAM").write_text("16M")
    (directory.path / "a0-hda.img").write_bytes(bytes(512))
    return directory


@pytest.mark.parametrize("runs", [False, True])
def test_files_are_read_again_when_one_has_changed(home: VMDirectory, *, runs: bool) -> None:
    def changed() -> bool:
        return not readings.is_current(home, facts, runs=runs)

    facts = readings.read_facts(home, runs=runs)
    assert (facts.disk, facts.locked, facts.problem) == (512, False, None)
    assert not changed()
    (home.path / "RAM").write_text("17M")
    assert changed()
    facts = readings.read_facts(home, runs=runs)
    (home.path / "LOCK").touch()
    assert changed()
    facts = readings.read_facts(home, runs=runs)
    assert facts.locked
    os.truncate(home.path / "a0-hda.img", 1024)
    assert changed()


def test_a_directory_that_is_gone_is_a_problem_in_plain_words(home: VMDirectory) -> None:
    home.path.rename(home.path.with_name("b0"))
    assert readings.read_facts(home, runs=True).problem == f"its directory {home.path} does not exist"


@pytest.mark.parametrize("runs", [False, True])
def test_a_guest_that_writes_to_its_disk_changes_nothing(home: VMDirectory, *, runs: bool) -> None:
    facts = readings.read_facts(home, runs=runs)
    with (home.path / "a0-hda.img").open("r+b") as image:
        image.write(b"\1")
    assert readings.is_current(home, facts, runs=runs) is runs


def test_young_files_are_read_again_because_their_times_are_coarse(
    home: VMDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "SETTLED", 2.0)
    assert not readings.is_current(home, readings.read_facts(home, runs=False), runs=False)


def test_a_directory_that_is_gone_is_a_problem_and_no_failure(home: VMDirectory, tmp_path: Path) -> None:
    home.path.rename(tmp_path / "elsewhere")
    facts = readings.read_facts(home, runs=False)
    assert facts.problem is not None
    assert (facts.disk, facts.locked) == (None, False)
