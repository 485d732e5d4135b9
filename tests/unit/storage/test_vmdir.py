"""VM directories on a real file system: never trusted, replaced atomically, cleaned only of our own."""

import contextlib
import dataclasses
import errno
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import UNIT

from vmessd.core.accelerators import Accelerator
from vmessd.core.errors import BadFile, Failed, InvalidValue, NoSuchVM, VmessError, printable
from vmessd.core.places import SHARED_ISOS
from vmessd.core.records import ExitRecord, Moment, RunRecord
from vmessd.core.settings import BY_FILE
from vmessd.qemu.credentials import own
from vmessd.storage import images, safefile, vmdir
from vmessd.storage.images import disks, set_cdrom, set_disk
from vmessd.storage.new_directory import make
from vmessd.storage.safefile import TEMPORARY
from vmessd.storage.vmdir import VMDirectory

M, G = 2**20, 2**30
RAM, SMP = BY_FILE["RAM"], BY_FILE["SMP"]
FOREIGN_TEXT = "root:$6$foreign:19000::::::\n"
NOBODY = 65534


@pytest.fixture
def vm(tmp_path: Path) -> VMDirectory:
    directory = VMDirectory(tmp_path, "newvm0")
    make(directory)
    return directory


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A file of somebody else, outside of any VM, that looks as if it had not been read for long."""
    file = tmp_path / "shadow"
    file.write_text(FOREIGN_TEXT, encoding="utf-8")
    os.utime(file, (1_000_000_000, 1_500_000_000))
    return file


def fingerprint(file: Path) -> tuple[bytes, int, int, int]:
    """Content, times of last reading and writing, and mode."""
    found = file.stat()  # before the content is read: reading moves the first of the times
    return file.read_bytes(), found.st_atime_ns, found.st_mtime_ns, found.st_mode


@contextlib.contextmanager
def within_a_second() -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 1.0


@contextlib.contextmanager
def writes_limited_to(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes meanwhile, as on a full disk (setrlimit(2), RLIMIT_FSIZE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The directory itself


def test_make_creates_once_and_says_so_the_second_time(tmp_path: Path) -> None:
    directory = VMDirectory(tmp_path, "newvm0")
    assert not directory.exists()
    make(directory)
    assert directory.exists()
    assert list(directory.path.iterdir()) == []
    with pytest.raises(Failed, match="exists already"):
        make(directory)


def test_what_is_not_there_is_no_such_vm_in_the_words_of_the_seed(tmp_path: Path) -> None:
    with pytest.raises(NoSuchVM) as caught:
        VMDirectory(tmp_path, "newvm0").read_settings()
    assert caught.value.message == (
        f"You need to create directory {tmp_path}/newvm0 if are serious about that VM - use vmess make"
    )
    assert caught.value.hint == "vmess list"


@pytest.mark.parametrize("kind", ["symlink", "file", "fifo"])
def test_what_is_no_directory_of_its_own_is_no_vm(tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = tmp_path / "newvm0"
    if kind == "symlink":
        place.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.touch()
    directory = VMDirectory(tmp_path, "newvm0")
    assert not directory.exists()
    with within_a_second(), pytest.raises(BadFile, match="not a directory of its own"):
        directory.write_setting(RAM, "2G")
    with pytest.raises(BadFile):
        directory.part()
    with pytest.raises(BadFile, match="not a directory of its own"):
        make(directory)
    assert list(elsewhere.iterdir()) == []


@pytest.fixture
def unsearchable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VMDirectory]:
    """A VM directory that may be listed and not entered, for an ordinary user."""
    directory = VMDirectory(Path(), "newvm0")
    monkeypatch.chdir(tmp_path)
    make(directory)
    tmp_path.chmod(0o755)
    directory.path.chmod(0o644)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield directory
    finally:
        if root:
            os.seteuid(0)
        directory.path.chmod(0o755)


@pytest.mark.parametrize(
    "action",
    [
        lambda vm: vm.read_settings(),
        lambda vm: vm.write_setting(RAM, "2G"),
        lambda vm: set_disk(vm, "hda", "8M"),
        lambda vm: set_cdrom(vm, None, own()),
        disks,
        lambda vm: vm.run_record(),
        lambda vm: vm.sweep(),
        lambda vm: vm.open_log("qemu.log"),
        lambda vm: vm.listen("qmp.sock").close(),
        lambda vm: vm.forget_run(),
    ],
    ids=[
        *("read_settings", "write_setting", "set_disk", "set_cdrom", "disks"),
        *("run_record", "sweep", "open_log", "listen", "forget_run"),
    ],
)
def test_a_directory_that_may_not_be_entered_is_one_of_our_errors(
    unsearchable: VMDirectory, action: Callable[[VMDirectory], Any]
) -> None:
    with pytest.raises(Failed, match="permission denied"):
        action(unsearchable)


# Settings


def test_settings_are_files_of_one_line(vm: VMDirectory) -> None:
    assert vm.read_settings() == {}
    vm.write_setting(RAM, " 2G ")
    vm.write_setting(SMP, "4")
    assert (vm.path / "RAM").read_bytes() == b"2G\n"
    assert (vm.path / "SMP").read_bytes() == b"4\n"
    assert vm.read_settings() == {"RAM": 2 * G, "SMP": 4}
    vm.write_setting(SMP, None)
    vm.write_setting(SMP, None)
    assert vm.read_settings() == {"RAM": 2 * G}
    assert sorted(file.name for file in vm.path.iterdir()) == ["RAM"]


def test_a_directory_of_the_original_is_read_unchanged(vm: VMDirectory) -> None:
    (vm.path / "RAM").write_text("2G\n", encoding="ascii")
    (vm.path / "EXARGS").write_text("-cpu max\n", encoding="ascii")
    (vm.path / "NIC_MODEL").write_text("virtio\n", encoding="ascii")
    assert vm.read_settings() == {"RAM": 2 * G, "EXARGS": ("-cpu", "max"), "NIC_MODEL": ("virtio-net-pci",)}


IMPOSSIBLE = [b"0", b"-5", b"128,slots=2", b"1,maxcpus=4", b"", b"\x7fELF\x02\xff\xfe\0", b"1" * M]


@pytest.mark.parametrize("file", ["RAM", "SMP"])
@pytest.mark.parametrize("content", IMPOSSIBLE, ids=lambda content: repr(content[:12]))
def test_c15_impossible_ram_and_smp_files_are_refused_by_path(
    vm: VMDirectory, file: str, content: bytes
) -> None:
    (vm.path / file).write_bytes(content)
    with within_a_second(), pytest.raises(BadFile) as caught:
        vm.read_setting(BY_FILE[file])
    assert f"{vm.path}/{file}" in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("content", ["0", "-5", "128,slots=2", "1,maxcpus=4", "", "\0", "1" * M])
def test_c15_impossible_values_are_not_written(vm: VMDirectory, content: str) -> None:
    vm.write_setting(RAM, "1G")
    with pytest.raises(InvalidValue):
        vm.write_setting(RAM, content)
    assert [file.name for file in vm.path.iterdir()] == ["RAM"]
    assert vm.read_setting(RAM) == G


KINDS = ["symlink", "dangling symlink", "fifo", "character device", "directory", "socket"]


def occupy(place: Path, kind: str, foreign: Path) -> None:
    """Put something that is no plain file in a plain file's place."""
    if kind == "symlink":
        place.symlink_to(foreign)
    elif kind == "dangling symlink":
        place.symlink_to(foreign.with_name("nowhere"))
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock, contextlib.chdir(place.parent):
            sock.bind(place.name)
    else:
        try:
            os.mknod(place, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: reading it never ends
        except PermissionError:
            pytest.skip("mknod is root's")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", [RAM, SMP], ids=["RAM", "SMP"])
def test_c16_a_setting_that_is_no_plain_file_is_neither_read_nor_written(
    vm: VMDirectory, foreign: Path, setting: Any, kind: str
) -> None:
    occupy(vm.path / setting.file, kind, foreign)
    before = fingerprint(foreign)
    os.utime(foreign, ns=before[1:3])
    mode = (vm.path / setting.file).lstat().st_mode
    for action in (
        lambda: vm.read_setting(setting),
        vm.read_settings,
        lambda: vm.write_setting(setting, "4M" if setting is RAM else "4"),
        lambda: vm.write_setting(setting, None),
    ):
        with within_a_second(), pytest.raises(BadFile, match="must be a plain file") as caught:
            action()
        assert "$6$" not in caught.value.message
    assert fingerprint(foreign) == before
    assert (vm.path / setting.file).lstat().st_mode == mode
    assert sorted(file.name for file in vm.path.iterdir()) == [setting.file]
    assert not foreign.with_name("nowhere").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [vmdir.QEMU_LOG, vmdir.SERIAL_LOG])
def test_c16_a_log_that_is_no_plain_file_is_neither_read_nor_written(
    vm: VMDirectory, foreign: Path, name: str, kind: str
) -> None:
    occupy(vm.path / name, kind, foreign)
    before = fingerprint(foreign)
    os.utime(foreign, ns=before[1:3])
    with within_a_second(), pytest.raises(BadFile, match="must be a plain file"):
        vm.open_log(name)
    with within_a_second():
        assert vm.log_tail(name, 0) == []
    assert fingerprint(foreign) == before
    assert not foreign.with_name("nowhere").exists()


def test_c16_a_hard_link_to_a_foreign_file_is_refused_or_replaced(vm: VMDirectory, foreign: Path) -> None:
    for name in ("RAM", vmdir.QEMU_LOG):
        os.link(foreign, vm.path / name)
    before = fingerprint(foreign)
    os.utime(foreign, ns=before[1:3])
    with pytest.raises(BadFile, match="hard link"):
        vm.read_setting(RAM)
    with pytest.raises(BadFile, match="hard link"):
        vm.open_log(vmdir.QEMU_LOG)
    assert vm.log_tail(vmdir.QEMU_LOG, 0) == []
    vm.write_setting(RAM, "2G")
    assert vm.read_setting(RAM) == 2 * G
    assert fingerprint(foreign) == before


# Full disks and sudden deaths


@pytest.mark.parametrize("old", [None, "512M"])
@pytest.mark.parametrize("room", [0, 1, 2])
def test_c18_on_a_full_disk_the_old_value_stays_whole(vm: VMDirectory, room: int, old: str | None) -> None:
    vm.write_setting(RAM, old)
    with writes_limited_to(room), pytest.raises(Failed, match="cannot be written"):
        vm.write_setting(RAM, "2G")
    assert vm.read_setting(RAM) == (512 * M if old else None)
    assert [file.name for file in vm.path.iterdir()] == (["RAM"] if old else [])


def test_c75_a_vm_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = VMDirectory(tmp_path, "newvm0")
    with writes_limited_to(0), pytest.raises(Failed, match="CPU cannot be written"):
        make(vm, {"CPU": "best"})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(vm, "must_be_new", lambda *_: None)  # as if another was made just then
    make(vm, {"CPU": "best"})
    with pytest.raises(Failed, match="newvm0 cannot be created: directory not empty"):
        make(vm, {"CPU": "max"})
    monkeypatch.undo()
    with pytest.raises(Failed, match="exists already"):
        make(vm, {"CPU": "max"})
    assert [file.name for file in tmp_path.iterdir()] == ["newvm0"]
    assert (vm.path / "CPU").read_text() == "best\n"
    assert stat.S_IMODE(vm.path.stat().st_mode) == 0o710


@pytest.mark.parametrize(("call", "times"), [("mkdir", 1), ("fsync", 1), ("rename", 1), ("rename", 2)])
def test_c75_killed_in_a_make_leaves_no_vm(tmp_path: Path, call: str, times: int) -> None:
    change = 'VMDirectory(root, "newvm0").write_setting(BY_FILE["RAM"], "2G")'
    code = DYING.replace(change, 'make(VMDirectory(root, "newvm0"), {"CPU": "best"})')
    argv = [sys.executable, "-c", code, call, str(times), str(tmp_path)]
    assert subprocess.run(argv, check=False, timeout=10 * UNIT).returncode == 77
    assert vmdir.listing(tmp_path).vms == []
    for name in vmdir.leftovers(tmp_path):
        assert vmdir.removed(name) is None
        safefile.empty(tmp_path / name)
        (tmp_path / name).rmdir()
    assert list(tmp_path.iterdir()) == []


DYING = """
import os, sys
from pathlib import Path
from vmessd.core.settings import BY_FILE
from vmessd.storage.new_directory import make
from vmessd.storage.vmdir import VMDirectory

call, countdown, root = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
real = getattr(os, call)

def die(*args, **kwargs):
    global countdown
    countdown -= 1
    if countdown == 0:
        os._exit(77)
    return real(*args, **kwargs)

setattr(os, call, die)
VMDirectory(root, "newvm0").write_setting(BY_FILE["RAM"], "2G")
"""


@pytest.mark.parametrize("old", [None, "512M"])
@pytest.mark.parametrize(
    ("call", "times", "renamed"),
    [("fsync", 1, False), ("rename", 1, False), ("fsync", 2, True)],
    ids=["before the data is on disk", "between write and rename", "after the rename"],
)
def test_c18_killed_in_a_write_leaves_the_old_or_the_new_value(
    vm: VMDirectory, call: str, times: int, renamed: bool, old: str | None
) -> None:
    vm.write_setting(RAM, old)
    argv = [sys.executable, "-c", DYING, call, str(times), str(vm.path.parent)]
    assert subprocess.run(argv, check=False, timeout=10 * UNIT).returncode == 77
    expected = 2 * G if renamed else 512 * M if old else None
    assert vm.read_setting(RAM) == expected
    leftovers = [file.name for file in vm.path.iterdir() if file.name != "RAM"]
    assert len(leftovers) == (0 if renamed else 1)
    vm.sweep_temporaries()
    assert [file.name for file in vm.path.iterdir()] == ([] if expected is None else ["RAM"])
    assert vm.read_setting(RAM) == expected


def failing_fsync(monkeypatch: pytest.MonkeyPatch, of: Callable[[int], bool]) -> None:
    """Have fsync fail as a broken disk has it, of files and directories by their `st_mode`."""
    real = os.fsync

    def fsync(fd: int) -> None:
        if of(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


def test_c67_a_value_that_is_in_place_is_told_so_where_its_directory_does_not_reach_the_disk(
    vm: VMDirectory, foreign: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vm.write_setting(RAM, "1G")
    failing_fsync(monkeypatch, stat.S_ISDIR)
    vm.write_setting(RAM, "2G")
    assert vm.read_setting(RAM) == 2 * G
    vm.write_setting(RAM, None)
    assert vm.read_setting(RAM) is None
    set_cdrom(vm, str(foreign), own())
    assert os.readlink(vm.path / "newvm0-cdrom.iso") == str(foreign)
    set_cdrom(vm, None, own())
    assert list(vm.path.iterdir()) == []
    told = [
        f"{vm}/{name} was changed, but a power cut may undo the change: input/output error"
        for name in ("RAM", "newvm0-cdrom.iso")
    ]
    assert caplog.messages == [told[0], told[0], told[1], told[1]]


def test_c67_a_value_that_does_not_reach_the_disk_is_not_put_in_place(
    vm: VMDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.write_setting(RAM, "1G")
    failing_fsync(monkeypatch, stat.S_ISREG)
    with pytest.raises(Failed, match="RAM cannot be written: input/output error"):
        vm.write_setting(RAM, "2G")
    assert [file.name for file in vm.path.iterdir()] == ["RAM"]
    assert vm.read_setting(RAM) == G


def test_c22_sweeping_temporaries_removes_only_what_is_ours_by_name_and_kind(
    vm: VMDirectory, foreign: Path
) -> None:
    ours = [f"{TEMPORARY}RAM.0badcafe", f"{TEMPORARY}run.json.00000000"]
    for name in ours:
        (vm.path / name).touch()
    (vm.path / f"{TEMPORARY}newvm0-cdrom.iso.1").symlink_to(foreign)
    theirs = ["RAM.tmp", "RAM~", ".RAM.swp", "notes", f"x{TEMPORARY}RAM"]
    for name in theirs:
        (vm.path / name).write_text("mine", encoding="ascii")
    (vm.path / f"{TEMPORARY}directory").mkdir()
    os.mkfifo(vm.path / f"{TEMPORARY}fifo")
    vm.sweep_temporaries()
    assert {file.name for file in vm.path.iterdir()} == {
        *theirs,
        f"{TEMPORARY}directory",
        f"{TEMPORARY}fifo",
    }
    assert foreign.read_text(encoding="utf-8") == FOREIGN_TEXT


# Disks


def test_a_new_disk_is_sparse_and_of_the_exact_size(vm: VMDirectory) -> None:
    assert set_disk(vm, "hda", "8G") == "newvm0-hda.img: created, 8G, sparse"
    found = (vm.path / "newvm0-hda.img").stat()
    assert found.st_size == 8 * G
    assert found.st_blocks * 512 < M
    [disk] = disks(vm)
    assert (disk.slot, disk.path, disk.block_device, disk.size) == (
        *("hda", f"{vm.path}/newvm0-hda.img", False),
        8 * G,
    )


@pytest.mark.parametrize("text", ["8", "0", "-8G", "65T", "", "8G,preallocation=full"])
def test_impossible_disk_sizes_create_nothing(vm: VMDirectory, text: str) -> None:
    with pytest.raises(InvalidValue):
        set_disk(vm, "hda", text)
    assert list(vm.path.iterdir()) == []


def image_with_content(vm: VMDirectory, size: int) -> tuple[Path, bytes]:
    image = vm.path / "newvm0-hda.img"
    content = os.urandom(4096).ljust(size - 1, b"\0") + b"\x55"
    image.write_bytes(content)
    return image, content


def test_an_image_grows_and_keeps_its_content(vm: VMDirectory) -> None:
    image, content = image_with_content(vm, 2 * M)
    assert set_disk(vm, "hda", "3M") == "newvm0-hda.img: 3M now, was 2M"
    assert image.read_bytes() == content + bytes(M)


@pytest.mark.parametrize("extra", [0, 1], ids=["exact", "a byte longer, as the original made it"])
def test_an_image_of_the_size_is_left_as_it_is(vm: VMDirectory, extra: int) -> None:
    image, content = image_with_content(vm, 2 * M + extra)
    before = image.stat()
    assert set_disk(vm, "hda", "2M") == "newvm0-hda.img: already has 2M, unchanged"
    assert image.read_bytes() == content
    assert image.stat().st_mtime_ns == before.st_mtime_ns


def test_the_seeds_image_of_8g_and_a_byte_is_left_as_it_is(vm: VMDirectory) -> None:
    image = vm.path / "newvm0-hda.img"
    image.touch()
    os.truncate(image, 8 * G + 1)
    set_disk(vm, "hda", "8G")
    assert image.stat().st_size == 8 * G + 1
    set_disk(vm, "hda", "9G")
    assert image.stat().st_size == 9 * G


@pytest.mark.parametrize("size", [2 * M + 2, 3 * M])
def test_an_image_is_never_made_smaller(vm: VMDirectory, size: int) -> None:
    image, content = image_with_content(vm, size)
    with pytest.raises(InvalidValue, match="never made smaller") as caught:
        set_disk(vm, "hda", "2M")
    assert caught.value.hint == "to start over: vmess newvm0 hda delete"
    assert image.read_bytes() == content


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_no_plain_file_is_not_sized(vm: VMDirectory, foreign: Path, kind: str) -> None:
    occupy(vm.path / "newvm0-hda.img", kind, foreign)
    before = fingerprint(foreign)
    os.utime(foreign, ns=before[1:3])
    with (
        within_a_second(),
        pytest.raises(BadFile, match=r"plain file|does not change the size"),
    ):
        set_disk(vm, "hda", "8M")
    assert fingerprint(foreign) == before
    assert not foreign.with_name("nowhere").exists()


def test_c18_a_disk_the_file_system_cannot_hold_leaves_nothing(vm: VMDirectory) -> None:
    with writes_limited_to(M), pytest.raises(Failed, match="cannot be created"):
        set_disk(vm, "hda", "8G")
    assert list(vm.path.iterdir()) == []


def test_c18_a_disk_that_cannot_grow_stays_as_it_is(vm: VMDirectory) -> None:
    image, content = image_with_content(vm, 2 * M)
    with writes_limited_to(2 * M), pytest.raises(Failed, match="cannot be enlarged"):
        set_disk(vm, "hda", "8G")
    assert image.read_bytes() == content


def test_disks_are_listed_in_order_with_the_cdrom_last(vm: VMDirectory, foreign: Path) -> None:
    assert disks(vm) == []
    for slot in ("hdd", "hda", "hdc", "hdb"):
        set_disk(vm, slot, "1M")
    set_cdrom(vm, str(foreign), own())
    assert [disk.slot for disk in disks(vm)] == ["hda", "hdb", "hdc", "hdd", "cdrom"]


@pytest.mark.parametrize(
    ("vm_name", "file"),
    [
        ("web0", "web-hda.img"),
        ("web0", "WEB0-hda.img"),
        ("web-1", "Web_1-hda.img"),
        ("web0", "web-cdrom.iso"),
        ("web0", "leaf12-cdrom.iso"),
        ("web0", "my web\t-hda.img"),
    ],
)
def test_a_drive_named_as_its_directory_was_before_keeps_the_vm_from_starting(
    tmp_path: Path, vm_name: str, file: str
) -> None:
    vm = VMDirectory(tmp_path, vm_name)
    make(vm)
    place, name = vm.path / file, vm_name + file[file.rindex("-") :]
    place.write_bytes(bytes(M))
    assert images.foreign(vm) == [printable(file)]
    with pytest.raises(BadFile, match="drives named after another VM") as caught:
        images.check(vm, disks(vm), ())
    subprocess.run(["bash", "-c", str(caught.value.hint)], check=True)
    assert [disk.path for disk in disks(vm)] == [f"{vm.path}/{name}"]
    images.check(vm, disks(vm), ())


@pytest.mark.parametrize(
    "file", ["debian-cdrom.iso", "hda.img", ".web-hda.img", "snap-hda-before-hdb.img", "web-hda.img.old"]
)
def test_other_files_in_the_directory_are_no_drives_of_another_vm(vm: VMDirectory, file: str) -> None:
    (vm.path / file).write_bytes(bytes(M))
    assert images.foreign(vm) == []
    images.check(vm, disks(vm), ())


def test_beside_a_disk_of_the_vm_a_file_may_have_any_name_but_that_of_another_vm(vm: VMDirectory) -> None:
    set_disk(vm, "hda", "1M")
    (vm.path / "data-hdb.img").write_bytes(bytes(M))
    assert images.foreign(vm) == []
    (vm.path / "leaf0-hdb.img").write_bytes(bytes(M))
    assert images.foreign(vm) == ["leaf0-hdb.img"]


def test_a_disk_may_be_a_link_to_an_image_or_a_block_device(vm: VMDirectory, tmp_path: Path) -> None:
    image = tmp_path / "elsewhere.img"
    image.write_bytes(bytes(M))
    (vm.path / "newvm0-hda.img").symlink_to(image)
    device = tmp_path / "device"
    with contextlib.suppress(PermissionError):  # mknod is root's
        os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(7, 0))
        (vm.path / "newvm0-hdb.img").symlink_to(device)
    found = disks(vm)
    assert (found[0].path, found[0].size, found[0].block_device) == (f"{vm.path}/newvm0-hda.img", M, False)
    assert [disk.block_device for disk in found[1:]] == [True] * device.is_block_device()


@pytest.mark.parametrize("kind", ["dangling symlink", "fifo", "character device", "directory", "socket"])
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "behind a link"])
def test_a_drive_that_is_no_image_is_refused(vm: VMDirectory, foreign: Path, kind: str, linked: bool) -> None:
    for name in ("newvm0-hda.img", "newvm0-cdrom.iso"):
        place = vm.path / "thing" if linked else vm.path / name
        occupy(place, kind, foreign)
        if linked:
            (vm.path / name).symlink_to(place)
        with within_a_second(), pytest.raises(BadFile) as caught:
            disks(vm)
        assert f"{vm.path}/{name}" in caught.value.message
        place.rename(vm.path / "aside")
        (vm.path / name).unlink(missing_ok=True)
        (vm.path / "aside").rename(foreign.with_name(f"was {name}"))


# The CD-ROM


@pytest.fixture
def link(vm: VMDirectory) -> Path:
    return vm.path / "newvm0-cdrom.iso"


def test_cdrom_is_a_link_that_is_replaced_and_removed(vm: VMDirectory, link: Path, tmp_path: Path) -> None:
    for name in ("first.iso", "second.iso"):
        (tmp_path / name).write_bytes(b"iso")
        set_cdrom(vm, f"{tmp_path}/{name}", own())
        assert os.readlink(link) == f"{tmp_path}/{name}"
    [disk] = disks(vm)
    assert (disk.slot, disk.path, disk.size, disk.target) == ("cdrom", str(link), 3, f"{tmp_path}/second.iso")
    set_cdrom(vm, None, own())
    set_cdrom(vm, None, own())
    assert list(vm.path.iterdir()) == []
    assert (tmp_path / "second.iso").read_bytes() == b"iso"


@pytest.mark.parametrize("new", ["shadow", None])
def test_a_cdrom_that_is_no_link_is_not_touched(
    vm: VMDirectory, link: Path, foreign: Path, new: str | None
) -> None:
    link.write_bytes(b"an image copied here")
    with pytest.raises(BadFile, match="a plain file"):
        set_cdrom(vm, new and str(foreign), own())
    assert link.read_bytes() == b"an image copied here"
    assert [file.name for file in vm.path.iterdir()] == [link.name]


def refuses_cdrom(vm: VMDirectory, path: str) -> str:
    with within_a_second(), pytest.raises(InvalidValue) as caught:
        set_cdrom(vm, path, own())
    assert caught.value.message.isprintable()
    assert list(vm.path.iterdir()) == []
    return caught.value.message


@pytest.mark.parametrize("path", ["/nowhere/x.iso", "/dev/null/x", "/" + "x" * 300, "/x" * 5000, "/\ud800"])
def test_a_cdrom_that_is_not_there_is_refused(vm: VMDirectory, path: str) -> None:
    assert refuses_cdrom(vm, path).startswith("cdrom ")


@pytest.mark.parametrize(
    "path",
    [
        *("", "x.iso", "../x.iso", "~/x.iso", "/etc/passwd\0.iso"),
        *("nbd:localhost:10809", "fat:rw:/", "json:{}"),
    ],
)
def test_c19_a_cdrom_path_that_is_not_absolute_is_refused(vm: VMDirectory, path: str) -> None:
    assert "is not an absolute path" in refuses_cdrom(vm, path)


@pytest.mark.parametrize("kind", ["fifo", "character device", "directory", "socket"])
def test_a_cdrom_that_is_no_image_is_refused(vm: VMDirectory, tmp_path: Path, foreign: Path, kind: str) -> None:
    occupy(tmp_path / "x.iso", kind, foreign)
    assert f"is a {kind}".lower() in refuses_cdrom(vm, f"{tmp_path}/x.iso").lower()


@pytest.mark.parametrize(
    "name",
    [
        *("nbd:localhost:10809", "fat:rw:.", 'json:{"driver":"nbd"}', "a,b=c:d", 'q"uo te', "new\nline"),
        "latin-\udce9",
    ],
)
def test_c19_names_that_old_qemu_syntax_would_obey_are_plain_file_names(
    vm: VMDirectory, link: Path, tmp_path: Path, name: str
) -> None:
    image = tmp_path / name
    image.write_bytes(b"iso")
    set_cdrom(vm, str(image), own())
    assert os.readlink(link) == str(image)
    assert [(disk.slot, disk.path) for disk in disks(vm)] == [("cdrom", str(link))]


# Records


SINCE = Moment(epoch=1700000000.5, uptime=12345.25, boot="f9ddc47b-268c-4943-beb0-75246bfb392c")
ARGV = ["qemu", "-name", "newvm0", "", "ünï\n", "latin-\udce9"]
RUN = RunRecord(pid=5748, ticks=2**40, display=2811, accel=Accelerator.kvm, argv=ARGV, since=SINCE)
EXIT = ExitRecord(
    pid=5748,
    ticks=7,
    reason="signalled",
    text="killed by signal 9",
    status=-9,
    asked_by=None,
    log=["qemu: bad", ""],
    when=SINCE,
)


def test_records_come_back_as_they_were_written(vm: VMDirectory) -> None:
    assert vm.run_record() is None
    assert vm.exit_record() is None
    vm.write_run_record(RUN)
    assert vm.run_record() == RUN
    vm.write_exit_record(EXIT)
    assert vm.run_record() is None
    assert vm.exit_record() == EXIT
    vm.write_exit_record(dataclasses.replace(EXIT, status=None, asked_by=1000))
    assert vm.exit_record() == dataclasses.replace(EXIT, status=None, asked_by=1000)
    vm.forget_run()


GARBAGE = {
    "empty": b"",
    "half": json.dumps(dataclasses.asdict(RUN)).encode()[:-9],
    "binary": os.urandom(512) + b"\xff",
    "no UTF-8": b'{"pid": "\xff\xfe"}',
    "null": b"null",
    "list": b"[]",
    "number": b"1" * 5000,
    "string": b'"run"',
    "no fields": b"{}",
    "huge": b" " * (vmdir.RECORD_LIMIT + 1),
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"pid":' * 100_000,
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_record(vm: VMDirectory, content: bytes) -> None:
    for name, read in ((vmdir.RUN_RECORD, vm.run_record), (vmdir.EXIT_RECORD, vm.exit_record)):
        (vm.path / name).write_bytes(content)
        with within_a_second(), pytest.raises(BadFile) as caught:
            read()
        assert f"{vm.path}/{name}" in caught.value.message


MOMENT = dataclasses.asdict(SINCE)
WRONG: list[dict[str, Any]] = [
    {"pid": "5748"},
    {"pid": None},
    {"pid": True},
    {"pid": 5748.0},
    {"pid": [5748]},
    {"ticks": "7"},
    {"display": None},
    {"accel": 1},
    {"argv": "qemu"},
    {"argv": ["qemu", 1]},
    {"argv": {"0": "qemu"}},
    {"since": None},
    {"since": 1700000000.5},
    {"since": {}},
    {"since": MOMENT | {"boot": None}},
    {"since": MOMENT | {"uptime": "12"}},
    {"tries": "1"},
    {"tries": True},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_record_with_wrong_types_or_fields_is_none(vm: VMDirectory, change: dict[str, Any]) -> None:
    data = json.dumps(dataclasses.asdict(RUN) | change)
    (vm.path / vmdir.RUN_RECORD).write_text(data, encoding="ascii")
    with pytest.raises(BadFile, match="not a record"):
        vm.run_record()


# Fields that records of earlier versions have not.
NEW = {
    "tries",
    "stopping",
    "serial",
    "memory",
    "cables",
    "oom_counter",
    "oom_kills",
    "hardware",
    "once",
    "images",
    "serials",
}


def test_a_record_of_an_older_or_newer_version_is_read(vm: VMDirectory) -> None:
    older = {name: value for name, value in dataclasses.asdict(RUN).items() if name not in NEW}
    newer = older | {"more": 1, "since": MOMENT | {"more": 1}}
    for data in (older, newer):
        (vm.path / vmdir.RUN_RECORD).write_text(json.dumps(data), encoding="ascii")
        assert vm.run_record() == RUN


@pytest.mark.parametrize("data", [b"1" * 20_000, b"\xff", b"banana"], ids=["too long", "no text", "no size"])
def test_a_setting_that_cannot_be_read_has_a_hint_that_works(vm: VMDirectory, data: bytes) -> None:
    (vm.path / "RAM").write_bytes(data)
    with pytest.raises(BadFile) as caught:
        vm.read_settings()
    ram = BY_FILE["RAM"]
    assert caught.value.hint == f"set it again: vmess {vm.vm} ram {ram.example}"
    vm.write_setting(ram, ram.example)
    assert vm.read_settings()["RAM"] == ram.value(ram.example)


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(RunRecord) if field.name not in NEW]
)
def test_a_record_without_one_of_its_fields_is_none(vm: VMDirectory, field: str) -> None:
    data = {name: value for name, value in dataclasses.asdict(RUN).items() if name != field}
    (vm.path / vmdir.RUN_RECORD).write_text(json.dumps(data), encoding="ascii")
    with pytest.raises(BadFile, match="not a record"):
        vm.run_record()


@pytest.mark.parametrize("number", ["NaN", "-1e999"])
@pytest.mark.parametrize("field", ["epoch", "uptime"])
def test_a_record_with_a_moment_that_is_no_number_is_none(vm: VMDirectory, field: str, number: str) -> None:
    data = json.dumps(dataclasses.asdict(RUN) | {"since": MOMENT | {field: 0.125}}).replace("0.125", number)
    (vm.path / vmdir.RUN_RECORD).write_text(data, encoding="ascii")
    # Its age would be no number either, and JSON has no word for that.
    with pytest.raises(BadFile, match="not a record"):
        vm.run_record()


@pytest.mark.parametrize("kind", KINDS)
def test_c16_a_record_that_is_no_plain_file_is_neither_read_nor_written(
    vm: VMDirectory, foreign: Path, kind: str
) -> None:
    occupy(vm.path / vmdir.RUN_RECORD, kind, foreign)
    before = fingerprint(foreign)
    os.utime(foreign, ns=before[1:3])
    with within_a_second(), pytest.raises(BadFile):
        vm.run_record()
    with within_a_second(), pytest.raises(BadFile):
        vm.write_run_record(RUN)
    assert fingerprint(foreign) == before


@pytest.mark.parametrize("shift", [-3600, 0, 3600])
def test_c29_the_age_of_a_moment_does_not_follow_the_wall_clock(shift: float) -> None:
    now = Moment.now()
    # A moment ten seconds ago, on whose wall clock it was an hour earlier or later than on ours.
    then = Moment(now.epoch - 10 + shift, now.uptime - 10, now.boot)
    assert 10 <= then.age() < 11


def test_the_age_of_a_moment_before_the_boot_is_told_by_the_wall_clock() -> None:
    now = Moment.now()
    assert 3600 <= Moment(now.epoch - 3600, now.uptime + 9999, "another boot").age() < 3601
    assert Moment(now.epoch + 3600, 0.0, "another boot").age() == 0
    assert Moment(now.epoch, now.uptime + 9999, now.boot).age() == 0


# The lock


def test_a_vm_has_one_owner(vm: VMDirectory) -> None:
    first = vm.lock()
    assert first is not None
    assert not os.get_inheritable(first)
    assert vm.lock() is None
    assert vm.lock() is None
    os.close(first)
    again = vm.lock()
    assert again is not None
    os.close(again)


def test_a_child_that_inherits_the_lock_is_the_owner_until_it_ends(vm: VMDirectory) -> None:
    lock = vm.lock()
    assert lock is not None
    with subprocess.Popen(["sleep", "60"], pass_fds=[lock]) as child:
        os.close(lock)
        assert vm.lock() is None
        child.kill()
        child.wait(10 * UNIT)
        lock = vm.lock()
        assert lock is not None
        os.close(lock)


def test_a_child_that_does_not_inherit_the_lock_does_not_hold_it(vm: VMDirectory) -> None:
    lock = vm.lock()
    assert lock is not None
    with subprocess.Popen(["sleep", "60"]) as child:
        os.close(lock)
        lock = vm.lock()
        assert lock is not None
        os.close(lock)
        child.kill()


# Sockets


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_c23_a_listener_is_0600_even_where_the_umask_forbids_nothing(vm: VMDirectory, open_umask: None) -> None:
    with vm.listen(vmdir.QMP_SOCKET):
        assert stat.S_IMODE((vm.path / vmdir.QMP_SOCKET).stat().st_mode) == 0o600


def test_c20_a_socket_path_over_107_bytes_works(tmp_path: Path) -> None:
    root = tmp_path / ("d" * 100) / ("e" * 100) / ("f" * 250)
    root.mkdir(parents=True)
    vm = VMDirectory(root, "newvm0")
    make(vm)
    with vm.listen(vmdir.QMP_SOCKET) as listener, vm.connect(vmdir.QMP_SOCKET) as client:
        peer, _ = listener.accept()
        with peer:
            client.sendall(b"over")
            assert peer.recv(4) == b"over"
    assert len(os.fsencode(vm.path / vmdir.QMP_SOCKET)) > 450
    assert (vm.path / vmdir.QMP_SOCKET).is_socket()


def test_nobody_behind_a_socket_is_one_of_our_errors(vm: VMDirectory) -> None:
    with pytest.raises(Failed, match="cannot be reached"):
        vm.connect(vmdir.QMP_SOCKET)
    vm.listen(vmdir.QMP_SOCKET).close()
    with pytest.raises(Failed, match="connection refused"):
        vm.connect(vmdir.QMP_SOCKET)


def test_c22_a_stale_socket_is_replaced(vm: VMDirectory) -> None:
    vm.listen(vmdir.QMP_SOCKET).close()
    assert (vm.path / vmdir.QMP_SOCKET).is_socket()
    with vm.listen(vmdir.QMP_SOCKET) as listener, vm.connect(vmdir.QMP_SOCKET):
        listener.accept()[0].close()


@pytest.mark.parametrize("kind", ["plain file", "symlink", "dangling symlink", "fifo", "directory"])
def test_c22_what_is_no_socket_is_not_replaced_by_one(vm: VMDirectory, foreign: Path, kind: str) -> None:
    place = vm.path / vmdir.QMP_SOCKET
    if kind == "plain file":
        place.write_bytes(b"precious")
    else:
        occupy(place, kind, foreign)
    mode = place.lstat().st_mode
    with within_a_second(), pytest.raises(BadFile, match="in the place of a socket"):
        vm.listen(vmdir.QMP_SOCKET)
    with pytest.raises(BadFile, match="in the place of a socket"):
        vm.sweep()
    assert place.lstat().st_mode == mode
    assert foreign.read_text(encoding="utf-8") == FOREIGN_TEXT


@pytest.mark.parametrize("content", [b"", b"1\n", b"4194305\n", b"-1\n", b"stranger\n", b"\xff\0", b"9" * M])
def test_c22_a_stale_pid_file_is_removed_whatever_it_says(vm: VMDirectory, content: bytes) -> None:
    (vm.path / vmdir.PID_FILE).write_bytes(content)
    vm.sweep()
    assert list(vm.path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_c22_a_foreign_thing_in_the_pid_files_place_stays(vm: VMDirectory, foreign: Path, kind: str) -> None:
    occupy(vm.path / vmdir.PID_FILE, kind, foreign)
    mode = (vm.path / vmdir.PID_FILE).lstat().st_mode
    with within_a_second(), pytest.raises(BadFile, match=vmdir.PID_FILE):
        vm.sweep()
    assert (vm.path / vmdir.PID_FILE).lstat().st_mode == mode
    assert foreign.read_text(encoding="utf-8") == FOREIGN_TEXT


def test_c22_sweeping_takes_the_sockets_and_the_pid_file_and_nothing_else(
    vm: VMDirectory, foreign: Path
) -> None:
    for name in (vmdir.QMP_SOCKET, vmdir.SERIAL_SOCKET):
        vm.listen(name).close()
    (vm.path / vmdir.PID_FILE).write_text("5748\n", encoding="ascii")
    vm.write_setting(RAM, "2G")
    set_disk(vm, "hda", "1M")
    set_cdrom(vm, str(foreign), own())
    vm.write_exit_record(EXIT)
    with contextlib.chdir(vm.path), socket.socket(socket.AF_UNIX) as other:
        other.bind("other.sock")
    vm.sweep()
    vm.sweep()
    assert sorted(file.name for file in vm.path.iterdir()) == [
        *("RAM", "exit.json", "newvm0-cdrom.iso", "newvm0-hda.img", "other.sock")
    ]


# Logs


def test_a_log_is_appended_to_and_its_tail_is_escaped(vm: VMDirectory) -> None:
    for line in (b"first\n", b"\n", b"\x1b[31mred\xff\n", b"two\rparts"):
        fd = vm.open_log(vmdir.QEMU_LOG)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
    assert vm.log_tail(vmdir.QEMU_LOG, 0) == ["first", r"\x1b[31mred\xff", r"two\rparts"]
    assert vm.log_tail(vmdir.QEMU_LOG, 6) == [r"\x1b[31mred\xff", r"two\rparts"]
    assert vm.log_tail(vmdir.QEMU_LOG, 0, limit=5) == ["parts"]


def test_a_log_that_was_truncated_meanwhile_is_told_from_its_beginning(vm: VMDirectory) -> None:
    (vm.path / vmdir.QEMU_LOG).write_bytes(b"new\n")
    assert vm.log_tail(vmdir.QEMU_LOG, 10_000) == ["new"]
    assert vm.log_tail("missing.log", 0) == []


# The root


def test_listing_ignores_what_is_no_vm(tmp_path: Path) -> None:
    for name in ("b1", "newvm0", "leaf12", "leaf2", "web-1", "a9"):
        make(VMDirectory(tmp_path, name))
    for name in ("Upper0", "nodigit", "b1e0", "ends-", "b" * 31, f"{vmdir.REMOVED}b0-00000000", ".hidden0"):
        (tmp_path / name).mkdir()
    (tmp_path / "file0").touch()
    os.mkfifo(tmp_path / "fifo0")
    (tmp_path / "link0").symlink_to(tmp_path / "b1")
    (tmp_path / os.fsdecode(b"latin\xe90")).mkdir()
    for name in (SHARED_ISOS, "lost+found", f"{vmdir.RENAMING}a0~b0"):
        (tmp_path / name).mkdir()
    found = vmdir.listing(tmp_path)
    assert found.vms == ["a9", "b1", "leaf2", "leaf12", "newvm0", "web-1"]
    assert found.others == ["Upper0", "b1e0", "b" * 31, "ends-", "latin\udce90", "nodigit"]


@pytest.mark.parametrize(
    ("there", "new", "pair"),
    [
        ("lab-bridg", "lab-bridge1", ("lab-bridg", "lab-bridge1")),
        ("lab-bridge1", "lab-bridg", ("lab-bridg", "lab-bridge1")),
        ("lab-bridge64", "lab-bridg", None),
        ("lab-bridg", "lab-bridge", None),
        ("web-1", "web-2", None),
    ],
)
def test_a_vm_and_the_tap_of_another_with_one_name_are_found(
    tmp_path: Path, there: str, new: str, pair: tuple[str, str] | None
) -> None:
    assert vmdir.namesakes(tmp_path, new) is None
    make(VMDirectory(tmp_path, there))
    assert vmdir.namesakes(tmp_path, new) == pair


@pytest.mark.parametrize("name", ["newvm0", "web-1", "a-b-c"])
def test_a_directory_that_is_being_removed_names_its_vm(tmp_path: Path, name: str) -> None:
    directory = VMDirectory(tmp_path, name)
    make(directory)
    assert vmdir.removed(directory.part()) == name


@pytest.mark.parametrize("list_or_find", [vmdir.listing, vmdir.leftovers])
def test_a_root_that_cannot_be_read_is_one_of_our_errors(
    tmp_path: Path, list_or_find: Callable[[Path], object]
) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(Failed, match="cannot be read"):
            list_or_find(root)


def test_a_vm_is_parted_with_in_one_step(vm: VMDirectory, tmp_path: Path) -> None:
    vm.write_setting(RAM, "2G")
    name = vm.part()
    assert [file.name for file in tmp_path.iterdir()] == [name] == vmdir.leftovers(tmp_path)
    assert vmdir.removed(name) == "newvm0"
    assert (tmp_path / name / "RAM").read_text() == "2G\n"
    assert vmdir.listing(tmp_path).vms == []
    with pytest.raises(NoSuchVM):
        vm.part()


@pytest.mark.parametrize(
    "name", ["newvm0", f"{vmdir.MAKING}newvm0-00000000", f"{vmdir.REMOVED}link", f"{vmdir.REMOVED}../a0"]
)
def test_what_was_no_vm_is_not_told_to_be_one(name: str) -> None:
    assert vmdir.removed(name) is None


def test_every_error_of_a_hostile_path_is_printable(tmp_path: Path) -> None:
    root = tmp_path / "we,ird \x1b[2J\nd\udce9"
    root.mkdir()
    vm = VMDirectory(root, "newvm0")
    assert str(vm).isprintable()
    with pytest.raises(VmessError) as missing:
        vm.read_settings()
    make(vm)
    (vm.path / "RAM").write_bytes(b"\x1b[2J\n\0")
    with pytest.raises(VmessError) as bad:
        vm.read_settings()
    for caught in (missing, bad):
        assert caught.value.message.isprintable()
        caught.value.message.encode()
