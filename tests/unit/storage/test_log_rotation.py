"""Logs under their cap: shortened on real file systems while somebody writes as fast as can be.

`disk` is a file system that can take the front off a file (ext4, XFS), `memory` one that cannot (tmpfs).
What the daemon makes of it is in test_housekeeping.py.
"""

import contextlib
import errno
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import TESTS, UNIT

from vmessd.core.errors import BadFile, Failed
from vmessd.storage import log_rotation
from vmessd.storage.new_directory import make
from vmessd.storage.vmdir import VMDirectory

K = 1024
CAP = 256 * K  # in place of logfile.CAP, so that much happens in little time
LINE = 13
NAME, OLDER = "serial.log", "serial.log.1"
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")


def stream(begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` of endless numbered lines."""
    first = begin // LINE
    lines = b"".join(b"%012d\n" % number for number in range(first, -(-end // LINE)))
    return lines[begin - first * LINE : end - first * LINE]


def position(part: bytes) -> int:
    """Where in the stream a part of it stands, by its first whole line; fails where it has a gap."""
    partial = part.index(b"\n") + 1
    begin = int(part[partial : partial + LINE]) * LINE - partial
    assert part == stream(begin, begin + len(part)), "a gap"
    return begin


class Place:
    """A VM's directory, with one log that is looked at here."""

    def __init__(self, path: Path) -> None:
        self.vm = VMDirectory(path, "newvm0")
        make(self.vm)
        self.log, self.older = self.vm.path / NAME, self.vm.path / OLDER
        self.complaints: list[str] = []

    def shorten(self) -> int:
        return self.vm.shorten_log(NAME, self.complaints.append)

    def sizes(self) -> tuple[int, int]:
        return self.log.stat().st_size, self.older.stat().st_size

    def names(self) -> list[str]:
        return sorted(os.listdir(self.vm.path))


def collapses(path: Path) -> bool:
    """Tell whether a file system can take the front off a file."""
    with tempfile.TemporaryFile(dir=path) as file:
        return log_rotation._collapse(file.fileno(), log_rotation.GRAIN) == errno.EINVAL


@pytest.fixture
def disk(tmp_path: Path) -> Place:
    if not collapses(tmp_path):
        pytest.skip(f"the file system of {tmp_path} cannot take the front off a file")
    return Place(tmp_path)


@pytest.fixture
def memory() -> Iterator[Place]:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs on /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="vmess-test-") as path:
        assert not collapses(Path(path))
        yield Place(Path(path))


@pytest.fixture(params=["disk", "memory"])
def place(request: pytest.FixtureRequest) -> Place:
    chosen: Place = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def low_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_rotation, "CAP", CAP)


# What is moved, and what stays


def test_a_log_up_to_its_cap_is_left_alone(place: Place) -> None:
    assert place.shorten() == 0
    place.log.write_bytes(bytes(log_rotation.CAP))
    before = place.log.stat()
    assert not place.vm.has_long_log()
    assert place.shorten() == 0
    assert place.log.stat() == before
    assert place.names() == [NAME]


@pytest.mark.parametrize("size", [1, 100, 64 * K, 64 * K + 1, 100_000])
@pytest.mark.usefixtures("low_cap")
def test_what_is_cut_off_is_in_the_older_part(disk: Place, size: int) -> None:
    disk.log.write_bytes(stream(0, CAP + size))
    disk.log.chmod(0o604)
    inode = disk.log.stat().st_ino
    assert disk.vm.has_long_log()
    cut = disk.shorten()
    live, older = disk.log.read_bytes(), disk.older.read_bytes()
    assert (disk.log.stat().st_ino, disk.names()) == (inode, [NAME, OLDER])
    assert older + live == stream(max(0, cut - CAP), CAP + size)
    assert len(live) == CAP + size - cut
    assert log_rotation.GRAIN <= len(live) < 2 * log_rotation.GRAIN, "as much as readers of the end may want"
    assert len(older) <= CAP
    assert stat.S_IMODE(disk.older.stat().st_mode) == 0o604
    assert not disk.vm.has_long_log()


@pytest.mark.usefixtures("low_cap")
def test_without_help_of_the_file_system_all_of_it_is_moved(memory: Place) -> None:
    memory.log.write_bytes(stream(0, CAP + 10))
    memory.log.chmod(0o604)
    inode = memory.log.stat().st_ino
    assert memory.shorten() == CAP + 10
    assert (memory.log.stat().st_ino, memory.sizes()[0], memory.names()) == (inode, 0, [NAME, OLDER])
    older = memory.older.read_bytes()
    assert CAP * 62 // 64 <= len(older) <= CAP
    assert older == stream(CAP + 10 - len(older), CAP + 10)
    assert stat.S_IMODE(memory.older.stat().st_mode) == 0o604


def test_a_hundred_megabytes_come_back_to_the_cap_with_the_newest(place: Place) -> None:
    block, count = 2**20, 100
    with place.log.open("wb") as file:
        for number in range(count):
            file.write(b"%7d\n" % number * (block // 8))
    cut = place.shorten()
    live, older = place.log.read_bytes(), place.older.read_bytes()
    assert len(live) == count * block - cut <= log_rotation.CAP
    assert log_rotation.CAP * 62 // 64 <= len(older) <= log_rotation.CAP
    kept = older + live
    assert kept[:8] == b"%7d\n" % (count - -(-len(kept) // block))
    assert kept[-8:] == b"%7d\n" % (count - 1)


@pytest.mark.usefixtures("low_cap")
def test_the_older_part_is_replaced_as_a_whole_with_the_log_s_mode_and_owner(place: Place) -> None:
    place.older.write_bytes(b"older still" * CAP)
    place.older.chmod(0o666)
    place.log.write_bytes(stream(0, CAP + 10))
    place.log.chmod(0o600)
    if os.getuid() == 0:
        os.chown(place.log, 4711, 4712)
    place.shorten()
    found, wanted = place.older.stat(), place.log.stat()
    assert (found.st_uid, found.st_gid, found.st_mode) == (wanted.st_uid, wanted.st_gid, wanted.st_mode)
    position(place.older.read_bytes())


@pytest.mark.usefixtures("low_cap")
def test_nobody_else_gets_to_read_where_the_owner_cannot_be_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    place.log.write_bytes(bytes(CAP + 1))
    place.log.chmod(0o664)
    assert place.shorten()
    assert stat.S_IMODE(place.older.stat().st_mode) == 0o600


@pytest.mark.usefixtures("low_cap")
def test_control_characters_stay_in_the_files(place: Place) -> None:
    data = bytes(range(256)) * (CAP // 256 + 1)
    place.log.write_bytes(data)
    place.shorten()
    kept = place.older.read_bytes() + place.log.read_bytes()
    assert data.endswith(kept)


@pytest.mark.usefixtures("low_cap")
def test_the_beginning_of_a_run_s_words_follows_the_cut(place: Place) -> None:
    old, new = b"of an earlier run\n" * 20_000, b"one\ntwo\n"
    place.log.write_bytes(old + new)
    start = max(0, len(old) - place.shorten())
    # What the file system could not leave in the log is in the older part, which nobody reads on.
    assert place.vm.log_tail(NAME, start) == (["one", "two"] if place.log.stat().st_size else [])
    with place.log.open("ab") as file:
        file.write(b"three\n")
    assert place.vm.log_tail(NAME, start)[-1] == "three"
    assert b"earlier" not in "".join(place.vm.log_tail(NAME, start)).encode()


# A writer that never stops

WRITER = """
import os, sys

log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
number = 0
while os.path.exists(sys.argv[2]):
    os.write(log, b"".join(b"%012d\\n" % n for n in range(number, number + 20)))
    number += 20
print(number)
"""


@contextlib.contextmanager
def flood(place: Place) -> Iterator[Callable[[], int]]:
    """Have numbered lines appended as fast as can be; yields what ends that and returns the bytes written."""
    going = place.vm.path.parent / "going"
    going.touch()
    argv = [sys.executable, "-c", WRITER, str(place.log), str(going)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:

        def end() -> int:
            going.unlink()
            said, _ = writer.communicate(timeout=20 * UNIT)
            return int(said) * LINE

        try:
            yield end
        finally:
            writer.kill()


@pytest.mark.parametrize(("cap", "times"), [(CAP, 40), (log_rotation.CAP, 5)])
def test_no_byte_is_lost_or_doubled_under_a_flood(
    disk: Place, monkeypatch: pytest.MonkeyPatch, cap: int, times: int
) -> None:
    monkeypatch.setattr(log_rotation, "CAP", cap)
    total = rounds = 0
    with flood(disk) as end:
        deadline = time.monotonic() + 60 * UNIT
        while rounds < times:
            assert time.monotonic() < deadline
            if cut := disk.shorten():
                rounds += 1
                total += cut
                older = disk.older.read_bytes()
                # To the byte: what stands before `total` in all that was ever written.
                assert len(older) == min(cut, cap)
                assert older == stream(total - len(older), total)
        written = end()
    assert disk.log.read_bytes() == stream(total, written)
    assert disk.complaints == []


@pytest.mark.usefixtures("low_cap")
def test_without_help_of_the_file_system_what_is_kept_has_no_gap(memory: Place) -> None:
    rounds, reached = 0, 0
    with flood(memory) as end:
        deadline = time.monotonic() + 60 * UNIT
        while rounds < 40:
            assert time.monotonic() < deadline
            if memory.shorten():
                rounds += 1
                older = memory.older.read_bytes()
                assert CAP // 3 <= len(older) <= CAP
                begin = position(older)
                assert begin >= reached, "doubled"
                reached = begin + len(older)
        end()
    if rest := memory.log.read_bytes():
        assert position(rest) >= reached


# Killed at any moment

SHORTENER = """
import os, signal, sys
from pathlib import Path
from vmessd.storage import log_rotation
from vmessd.storage.vmdir import VMDirectory

log_rotation.CAP = int(sys.argv[2])
place, call = VMDirectory(Path(sys.argv[1]), "newvm0"), sys.argv[3]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if call == "collapse":
    real = log_rotation._collapse
    log_rotation._collapse = lambda fd, length: real(fd, length) if length == log_rotation.GRAIN else die()
elif call == "ftruncate":
    os.ftruncate = lambda fd, size: os.fstat(fd).st_size and die()  # of the log: the draft is empty
elif call != "nothing":
    setattr(os, call, die)
while True:
    if place.shorten_log("serial.log", print) and call == "nothing":
        print("once", flush=True)
"""


def shortener(place: Place, call: str = "nothing") -> "subprocess.Popen[bytes]":
    """Start a process that shortens the log again and again, and dies where it would make a call."""
    argv = [sys.executable, "-c", SHORTENER, str(place.vm.path.parent), str(log_rotation.CAP), call]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=TESTS.parent)


def whole(place: Place, *, at_least: int) -> tuple[int, int]:
    """Check that both parts together have no gap; return where in the stream they begin and end.

    Killed between the two steps, the log still has what the older part has, too.
    """
    parts = [file.read_bytes() for file in (place.older, place.log) if file.exists()]
    spans = [(begin := position(part), begin + len(part)) for part in parts if part]
    begin, end = min(begin for begin, _ in spans), spans[-1][1]
    assert max(begin for begin, _ in spans) <= min(end for _, end in spans), "lost"
    assert end - begin >= at_least
    return begin, end


@pytest.mark.usefixtures("low_cap")
def test_killed_at_random_moments_it_loses_nothing(disk: Place) -> None:
    left = 0
    with flood(disk) as end:
        for _ in range(10):
            with shortener(disk) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(random.random() / 50)
                process.kill()
            whole(disk, at_least=CAP)
            temporaries = set(disk.names()) - {NAME, OLDER}
            assert len(temporaries) <= 1
            left += len(temporaries)
            disk.vm.sweep_temporaries()
            assert disk.names() == [NAME, OLDER]
        written = end()
    disk.shorten()
    assert position(disk.log.read_bytes()) + disk.sizes()[0] == written
    print(f"{left} of 10 deaths left a temporary file")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("call", ["copy_file_range", "fchmod", "fdatasync", "rename", "collapse", "ftruncate"])
@pytest.mark.usefixtures("low_cap")
def test_killed_before_any_step_it_loses_nothing(place: Place, call: str, *, old: bool) -> None:
    steps_of_collapse = {"ftruncate": False, "collapse": True}
    if steps_of_collapse.get(call, collapses(place.vm.path)) != collapses(place.vm.path):
        return
    end = 2 * CAP + 1000
    if old:
        place.older.write_bytes(stream(0, CAP))
        place.log.write_bytes(stream(CAP, end))
    else:
        end = CAP + 1000
        place.log.write_bytes(stream(0, end))
    with shortener(place, call) as process:
        assert process.wait(20 * UNIT) == -signal.SIGKILL
    begin, end_found = whole(place, at_least=min(end, CAP))
    assert end_found == end
    assert begin == 0 or call in ("collapse", "ftruncate"), "replaced only as the last step but one"
    assert len(set(place.names()) - {NAME, OLDER}) == (0 if call in ("collapse", "ftruncate") else 1)
    place.vm.sweep_temporaries()
    assert place.shorten()
    whole(place, at_least=CAP * 62 // 64)
    assert place.names() == [NAME, OLDER]


# Names that are taken by something else

KINDS: dict[str, Callable[[Path, Path], object]] = {
    "a symbolic link": lambda name, foreign: name.symlink_to(foreign),
    "a FIFO": lambda name, _foreign: os.mkfifo(name),
    "a directory": lambda name, _foreign: name.mkdir(),
    "a hard link": lambda name, foreign: name.hardlink_to(foreign),
}


@pytest.fixture
def foreign(place: Place) -> Path:
    """A long file of somebody else's."""
    file = place.vm.path.parent / "foreign"
    file.write_bytes(b"foreign\n" * CAP)
    return file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("low_cap")
def test_c16_a_log_that_is_no_plain_file_of_its_own_is_refused(place: Place, foreign: Path, kind: str) -> None:
    KINDS[kind](place.log, foreign)
    before, itself = foreign.stat(), place.log.lstat()
    began = time.monotonic()
    with pytest.raises(BadFile, match=f"{NAME} is {kind}.* must be a plain file"):
        place.shorten()
    assert time.monotonic() - began < 1
    assert (foreign.stat(), place.log.lstat()) == (before, itself)
    assert place.names() == [NAME]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("low_cap")
def test_c16_an_older_part_that_is_no_plain_file_is_left_alone_and_the_cap_holds(
    place: Place, foreign: Path, kind: str
) -> None:
    KINDS[kind](place.older, foreign)
    before, itself = foreign.read_bytes(), place.older.lstat()
    place.log.write_bytes(stream(0, CAP + 10))
    began = time.monotonic()
    cut = place.shorten()
    assert time.monotonic() - began < 1
    assert foreign.read_bytes() == before
    assert cut == CAP + 10 - place.log.stat().st_size > 0
    assert place.names() == [NAME, OLDER]
    if kind == "a hard link":  # the name is replaced, the other one stays: as after `cp -al`
        assert (foreign.stat().st_nlink, place.complaints) == (1, [])
        position(place.older.read_bytes())
    else:
        assert place.older.lstat() == itself
        where = place.vm.path
        (complaint,) = place.complaints
        assert complaint == (
            f"{where}/{OLDER} is {kind}; it must be a plain file; "
            f"{where}/{NAME} was shortened anyway, by {cut} bytes"
        )


@pytest.mark.usefixtures("low_cap")
def test_what_will_pass_costs_no_log(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_descriptors(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    place.log.write_bytes(bytes(CAP + 1))
    with monkeypatch.context() as patch:
        patch.setattr(log_rotation._Draft, "__enter__", out_of_descriptors)
        with pytest.raises(Failed, match=f"{NAME} cannot be shortened: too many open files"):
            place.shorten()
    assert (place.log.stat().st_size, place.complaints, place.names()) == (CAP + 1, [], [NAME])
    assert place.shorten()


@pytest.mark.usefixtures("low_cap")
def test_a_front_that_cannot_be_taken_off_after_all_is_moved_with_the_rest(
    disk: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = log_rotation._collapse
    monkeypatch.setattr(
        log_rotation,
        "_collapse",
        lambda fd, length: real(fd, length) if length == log_rotation.GRAIN else errno.EINVAL,
    )
    disk.log.write_bytes(stream(0, 2 * CAP))
    assert disk.shorten() == 2 * CAP
    assert disk.log.stat().st_size == 0
    older = disk.older.read_bytes()
    assert position(older) + len(older) == 2 * CAP
    assert disk.complaints == []


# No room


@pytest.fixture(params=["tmpfs", "ext4"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A file system of a megabyte or so."""
    point = tmp_path / "tiny"
    point.mkdir()
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(point)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(2**21)
        make = ["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", str(image)]
        if subprocess.run(make, check=False, capture_output=True, timeout=30 * UNIT).returncode:
            pytest.skip("no mkfs.ext4 here")
        mount = ["mount", "-o", "loop", str(image), str(point)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True, timeout=30 * UNIT)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        yield Place(point)
    finally:
        subprocess.run(["umount", str(point)], check=True, timeout=30 * UNIT)


def fill(place: Place, *, but: int = 0) -> Path:
    """Fill the file system, and give back a part of it."""
    filler = place.vm.path.parent / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - but)
    os.sync()
    return filler


@as_root
@pytest.mark.usefixtures("low_cap")
def test_c18_on_a_full_disk_the_log_is_capped_all_the_same(tiny: Place) -> None:
    tiny.log.write_bytes(stream(0, CAP + 10))
    fill(tiny)
    cut = tiny.shorten()
    assert cut == CAP + 10 - tiny.log.stat().st_size > 0
    (complaint,) = tiny.complaints
    where = tiny.vm.path
    assert complaint == (
        f"{where}/{OLDER} cannot be written: no space left on device; "
        f"{where}/{NAME} was shortened anyway, by {cut} bytes"
    )
    assert tiny.names() == [NAME]
    tiny.log.write_bytes(stream(0, CAP + 10)[: CAP - 1])  # what was cut off has become room


@as_root
@pytest.mark.usefixtures("low_cap")
def test_c18_on_a_full_disk_the_older_part_makes_room_for_the_newer(tiny: Place) -> None:
    tiny.older.write_bytes(stream(0, CAP))
    tiny.log.write_bytes(stream(CAP, 2 * CAP + 10))
    fill(tiny)
    assert tiny.shorten()
    assert tiny.complaints == []
    assert tiny.names() == [NAME, OLDER]
    live, older = tiny.log.read_bytes(), tiny.older.read_bytes()
    kept = older + live
    assert position(kept) + len(kept) == 2 * CAP + 10
    assert len(kept) >= CAP * 62 // 64
