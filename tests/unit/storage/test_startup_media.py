"""The startup configuration in a VM directory, and the media that are made of it."""

import os
from pathlib import Path

import pycdlib
import pytest

from vmessd.core.errors import BadFile, InvalidValue
from vmessd.core.startup import CONFIGURATION, STARTUP, Startup
from vmessd.storage import contents, new_directory, renaming, startup
from vmessd.storage.startup import Given, Note
from vmessd.storage.vmdir import VMDirectory

DATA = b"hostname r1\n"
CD, DISK = Startup("cd", "iosxe_config.txt"), Startup("disk", "startup-config")


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    directory = VMDirectory(tmp_path, "newvm0")
    new_directory.make(directory)
    return directory


def names_in(place: Path) -> list[str]:
    return sorted(os.listdir(place))


def on_cd(vm: VMDirectory) -> tuple[bytes, dict[str, bytes]]:
    """The label, and the names in ISO 9660, Rock Ridge and Joliet."""
    iso = pycdlib.PyCdlib()
    iso.open(str(startup.cd(vm)))
    try:
        [child] = list(iso.list_children(iso_path="/"))[2:]
        [long] = list(iso.list_children(joliet_path="/"))[2:]
        found = {
            "iso": child.file_identifier(),
            "rock": child.rock_ridge.name(),
            "joliet": long.file_identifier().decode("utf-16-be").encode(),
        }
        return iso.pvd.volume_identifier.strip(), found
    finally:
        iso.close()


def test_nothing_is_given_before_it_is_set(vm: VMDirectory) -> None:
    assert startup.read(vm) is None
    startup.prepare(vm)
    startup.write(vm, None)
    assert names_in(vm.path) == []


def test_the_files_are_plain_and_private(vm: VMDirectory) -> None:
    startup.write(vm, Given(Startup("smbios"), DATA))
    assert names_in(vm.path) == [STARTUP, CONFIGURATION]
    assert (vm.path / STARTUP).read_text() == "smbios\n"
    assert (vm.path / CONFIGURATION).stat().st_mode & 0o777 == 0o640
    assert startup.read(vm) == Given(Startup("smbios"), DATA)


def test_a_cd_has_the_file_under_its_name(vm: VMDirectory) -> None:
    startup.write(vm, Given(CD, DATA))
    assert on_cd(vm) == (
        b"STARTUP",
        {"iso": b"IOSXE_CONFIG.TXT;1", "rock": b"iosxe_config.txt", "joliet": b"iosxe_config.txt"},
    )
    before = startup.cd(vm).stat().st_ino
    startup.prepare(vm)
    assert startup.cd(vm).stat().st_ino == before
    (vm.path / CONFIGURATION).write_text("hostname r2\n")  # by hand
    startup.prepare(vm)
    assert startup.cd(vm).stat().st_ino != before
    assert b"hostname r2\n" in startup.cd(vm).read_bytes()


@pytest.mark.parametrize(
    ("name", "plain"),
    [("startup-config", b"STARTUP_CONFIG.;1"), ("a.b-c.conf", b"A_B_C.CON;1"), ("x" * 64, b"X" * 30 + b".;1")],
)
def test_iso_9660_has_its_own_names(vm: VMDirectory, name: str, plain: bytes) -> None:
    startup.write(vm, Given(Startup("cd", name), DATA))
    _, found = on_cd(vm)
    assert found == {"iso": plain, "rock": name.encode(), "joliet": name.encode()}


def test_the_directory_of_a_disk_has_the_file_and_nothing_else(vm: VMDirectory) -> None:
    place = vm.path / "startup-disk"
    startup.write(vm, Given(DISK, DATA))
    assert names_in(place) == ["startup-config"]
    startup.write(vm, Given(Startup("disk", "r1.cfg"), b"other"))
    assert names_in(place) == ["r1.cfg"]
    assert (place / "r1.cfg").read_bytes() == b"other"
    startup.write(vm, Given(CD, DATA))
    assert names_in(vm.path) == [STARTUP, CONFIGURATION, "newvm0-startup.iso"]
    startup.write(vm, None)
    assert names_in(vm.path) == []


def test_the_files_that_a_running_qemu_shows_stay_until_the_next_start(vm: VMDirectory) -> None:
    startup.write(vm, Given(DISK, DATA))
    lock = vm.lock()
    assert lock is not None
    startup.write(vm, Given(DISK, b"later"))
    assert (vm.path / "startup-disk/startup-config").read_bytes() == DATA
    os.close(lock)
    startup.prepare(vm)
    assert (vm.path / "startup-disk/startup-config").read_bytes() == b"later"


def test_a_directory_that_is_something_else_is_left_alone(vm: VMDirectory, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (vm.path / "startup-disk").symlink_to(elsewhere)
    with pytest.raises(BadFile, match="startup-disk is a symbolic link, not a directory"):
        startup.write(vm, Given(DISK, DATA))
    startup.write(vm, None)
    assert names_in(elsewhere) == ["file"]
    (vm.path / "startup-disk").unlink()
    startup.write(vm, Given(DISK, DATA))
    (vm.path / "startup-disk/secrets").mkdir()
    with pytest.raises(BadFile, match="startup-disk contains 'secrets', which would be on the disk as well"):
        startup.prepare(vm)


@pytest.mark.parametrize("names", [("notes", "startup-config"), ("notes", "plans"), ("folder/notes",)])
def test_files_of_somebody_else_in_the_directory_of_a_disk_are_not_removed(
    vm: VMDirectory, names: tuple[str, ...]
) -> None:
    for name in names:
        path = vm.path / "startup-disk" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("precious")
    (vm.path / "startup-disk/.vmess-tmp-x").touch()  # of a daemon that was killed
    before = names_in(vm.path / "startup-disk")[1:]
    startup.prepare(vm)
    startup.write(vm, None)
    with pytest.raises(BadFile, match="which would be on the disk as well"):
        startup.write(vm, Given(DISK, DATA))
    assert names_in(vm.path) == ["startup-disk"]
    assert names_in(vm.path / "startup-disk") == before


def test_a_cd_of_somebody_else_is_left_alone(vm: VMDirectory, tmp_path: Path) -> None:
    startup.cd(vm).write_bytes(bytes(2**16))
    startup.write(vm, None)
    assert startup.cd(vm).exists()
    startup.cd(vm).rename(tmp_path / "elsewhere")
    startup.cd(vm).symlink_to(tmp_path / "elsewhere")
    startup.prepare(vm)
    startup.write(vm, None)
    with pytest.raises(BadFile, match=r"newvm0-startup.iso is a symbolic link"):
        startup.write(vm, Given(CD, DATA))
    assert names_in(vm.path) == ["newvm0-startup.iso"]


@pytest.mark.parametrize(
    ("value", "data", "why"),
    [
        ("cd x\n", None, "needs a configuration, and there is no STARTUP_CONFIG"),
        ("cd x\n", b"", "is empty"),
        ("smbios\n", b"a\0", "contains a NUL byte"),
        ("tape\n", DATA, "STARTUP 'tape' is not cd or disk"),
    ],
)
def test_c128_files_written_by_hand_are_refused(
    vm: VMDirectory, value: str, data: bytes | None, why: str
) -> None:
    (vm.path / STARTUP).write_text(value)
    if data is not None:
        (vm.path / CONFIGURATION).write_bytes(data)
    with pytest.raises(BadFile, match=why):
        startup.read(vm)


def test_a_configuration_that_is_a_link_is_refused(vm: VMDirectory) -> None:
    (vm.path / STARTUP).write_text("cd x\n")
    (vm.path / CONFIGURATION).symlink_to("/etc/passwd")
    with pytest.raises(BadFile, match="STARTUP_CONFIG is a symbolic link"):
        startup.read(vm)


def test_what_is_refused_changes_nothing(vm: VMDirectory) -> None:
    startup.write(vm, Given(CD, DATA))
    with pytest.raises(InvalidValue):
        startup.write(vm, Given(Startup("console", prompt="#"), b"\0"))
    assert startup.read(vm) == Given(CD, DATA)


def test_a_new_configuration_is_typed_again(vm: VMDirectory) -> None:
    way = Startup("console", prompt="#")
    startup.write(vm, Given(way, DATA))
    note = Note(Given(way, DATA).digest, "typed", 1, 1, 4711)
    startup.write_note(vm, note)
    assert startup.read_note(vm) == note
    startup.write(vm, Given(way, DATA))
    assert startup.read_note(vm) is None


ENDLESS = '{"digest": "x", "outcome": "typed", "typed": 1e999, "lines": 1, "pid": 1}'


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"digest": 1}', "{", "[" * 3000, "\x00", ENDLESS])
def test_a_note_that_makes_no_sense_is_none(vm: VMDirectory, text: str) -> None:
    (vm.path / "startup.json").write_text(text)
    assert startup.read_note(vm) is None


def test_a_renamed_vm_keeps_its_cd(vm: VMDirectory) -> None:
    startup.write(vm, Given(CD, DATA))
    with renaming.begun(vm, "web0") as hidden:
        renaming.complete(vm.path.parent, hidden)
    assert "web0-startup.iso" in names_in(vm.path.with_name("web0"))


def test_an_export_has_the_configuration_and_not_what_is_made_of_it() -> None:
    assert contents.name_in(STARTUP, "newvm0", "web0") == STARTUP
    assert contents.name_in(CONFIGURATION, "newvm0", "web0") == CONFIGURATION
    assert contents.size_limit(CONFIGURATION) == 2**20
    for made in ("newvm0-startup.iso", "startup-disk", "startup.json"):
        assert contents.stays_unsaid(made, "newvm0")
