"""A disk that becomes full at any tenth of what makes images: a line says so, and nothing half-made stays."""

import os
import random
import re
import resource
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import guests
import pytest
from daemons import Daemon, own
from disk_images import qemu_img
from small import MIB, SmallDaemon, small_daemon

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")
DATA, SHORT_DATA = 32 * MIB, 8 * MIB
OVERLAY = 256 * 1024
"""Bytes that a new image on top of another takes, and what goes with it."""


class Case(NamedTuple):
    """Something that writes images."""

    words: tuple[str, ...]
    """The command line; `FILE` is a raw image, `PACKED` the same as qcow2, `NEW` a file to be made."""
    makes: str
    """What is there afterwards, below the small file system."""
    bytes: int | None = None
    """How much it writes; None is as much as the disk has."""
    before: tuple[tuple[str, ...], ...] = ()
    """What is done first."""
    after: tuple[tuple[str, ...], ...] = ()
    """What takes it back."""
    runs: bool = False
    """The VM runs."""
    stays: str = ""
    """A snapshot of the VM that is left, as the hint says."""


TAKEN = f"vms/{A}/snap-hda-s.img"
GONE = ((B, "rm", "--yes"),)
CASES = {
    "clone": Case((A, "clone", B), f"vms/{B}", after=GONE),
    "linked clone": Case(
        (A, "clone", B, "--linked"), f"vms/{B}", OVERLAY, after=(*GONE, (A, "snapshot", "delete", B)), stays=B
    ),
    "image": Case((A, "hdb", "FILE"), f"vms/{A}/{A}-hdb.img", after=((A, "hdb", "delete", "--yes"),)),
    "image to qcow2": Case(
        (A, "hdb", "FILE", "--format", "qcow2"),
        f"vms/{A}/{A}-hdb.qcow2",
        after=((A, "hdb", "delete", "--yes"),),
    ),
    "qcow2 to raw": Case(
        (A, "hdb", "PACKED", "--format", "raw"),
        f"vms/{A}/{A}-hdb.img",
        after=((A, "hdb", "delete", "--yes"),),
    ),
    "import": Case(("import", "ARCHIVE", B), f"vms/{B}", after=GONE),
    "export": Case((A, "export", "NEW"), "new.tar"),
    "snapshot": Case((A, "snapshot", "take", "s"), TAKEN, OVERLAY, after=((A, "snapshot", "delete", "s"),)),
    "snapshot of a running VM": Case(
        (A, "snapshot", "take", "s"),
        TAKEN,
        OVERLAY,
        after=((A, "stop", "force"), (A, "snapshot", "delete", "s")),
        runs=True,
    ),
}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallDaemon]:
    """A running daemon, and a VM with a disk."""
    daemon = small_daemon(tmp_path, 4 * DATA)
    try:
        daemon.start()
        directory = daemon.seen(daemon.root / A)
        directory.mkdir()
        (tmp_path / "idle.rom").write_bytes(guests.rom("idle"))
        (directory / "EXARGS").write_text(shlex.join(["-bios", str(tmp_path / "idle.rom")]))
        (directory / "RAM").write_text("16M")
        raw(directory / f"{A}-hda.img", DATA, 1)
        yield daemon
    finally:
        daemon.close()


def raw(path: Path, data: int, seed: int) -> Path:
    """Make a sparse image with so much data in it."""
    with path.open("wb") as image:
        image.truncate(2 * data)
        image.seek(data // 2)
        image.write(random.Random(seed).randbytes(data))
    return path


def files(daemon: SmallDaemon) -> set[str]:
    """Return the files below the small file system."""
    top = daemon.seen(daemon.small)
    return {str(Path(place, name).relative_to(top)) for place, _, names in os.walk(top) for name in names}


def words_of(case: Case, daemon: SmallDaemon, data: int) -> list[str]:
    """Return the command line of a case, with the files that it needs."""
    image, packed = daemon.directory / "image.raw", daemon.directory / "image.qcow2"
    if not image.exists():
        raw(image, data, 2)
        qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", image, packed)
    archive = daemon.directory / "archive.tar"
    if "ARCHIVE" in case.words and not archive.exists():
        daemon.done(A, "export", str(archive))
    place = {"FILE": image, "PACKED": packed, "ARCHIVE": archive, "NEW": daemon.small / "new.tar"}
    return [str(place.get(word, word)) for word in case.words]


def content(daemon: SmallDaemon) -> Callable[[], None]:
    """Return what checks that the disk of the VM has the content that it has now."""
    kept = daemon.directory / "kept.raw"
    daemon.within("qemu-img", "convert", "-f", "raw", "-O", "raw", daemon.root / A / f"{A}-hda.img", kept)

    def check() -> None:
        [top] = [
            path for end in ("img", "qcow2") if daemon.seen(path := daemon.root / A / f"{A}-hda.{end}").exists()
        ]
        form = "raw" if top.suffix == ".img" else "qcow2"
        daemon.within("qemu-img", "compare", "-U", "-f", "raw", "-F", form, kept, top)

    return check


@pytest.mark.long  # what is filled while it writes must write for a while
@pytest.mark.parametrize("name", CASES)
def test_c84_a_disk_that_is_full_at_any_tenth_leaves_nothing_half_made(small: SmallDaemon, name: str) -> None:
    case = CASES[name]
    words, same = words_of(case, small, DATA), content(small)
    wanted, cut = case.bytes or DATA, 0
    for tenth in range(10):
        if case.runs:
            small.done(A, "start")
        before, used = files(small), small.used()
        with small.filling(used + wanted * tenth // 10):
            result = small.vmess_inside(*words)
        where = f"{name}, full at {tenth}/10: {result}"
        same()
        if result.returncode == 0:
            assert small.seen(small.small / case.makes).exists(), where
            for back in case.after:
                small.done(*back)
            small.seen(small.small / "new.tar").unlink(missing_ok=True)
            continue
        cut += 1
        complaint, *hint = result.stderr.splitlines()
        if any(f"snapshot delete {case.stays}" in line for line in hint if case.stays):
            small.done(A, "snapshot", "delete", case.stays)
        assert re.search("no space|free, and", complaint, re.IGNORECASE), where
        assert len(hint) <= 1, where
        assert files(small) == before, where
        assert small.used() <= used + 16 * 4096, where
        if case.runs:
            assert small.status(A)["state"] == "running", where
            small.done(A, "stop", "force")
    assert cut, "nothing was cut short"
    result = small.vmess_inside(*words)
    assert result.returncode == 0, result


@pytest.mark.parametrize("form", ["raw", pytest.param("qcow2", marks=pytest.mark.long)])
def test_c84_a_file_that_may_not_become_larger_leaves_nothing(daemon: Daemon, form: str) -> None:
    place = daemon.make(A)
    image = raw(daemon.directory / "image.raw", SHORT_DATA, 1)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (SHORT_DATA, SHORT_DATA))
    before = set(os.listdir(place))
    result = daemon.vmess(A, "hda", image, "--format", form)
    assert result.returncode == 1, result
    assert "file too large" in result.stderr.splitlines()[0].lower()
    assert set(os.listdir(place)) == before
    daemon.done(A, "hda", "1M", "start")
