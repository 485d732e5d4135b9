"""Disks of either format and on other images: real QEMU opens what the links allow, and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import guests
import pytest
from daemons import Daemon, own, wait_for
from disk_images import qemu_img

A, B = own("a"), own("b")
M = 2**20


def opened(daemon: Daemon, vm: str) -> dict[str, bool]:
    """The plain files that the QEMU of a VM has open, each with whether it may write to it."""
    pid, found = daemon.status(vm)["pid"], dict[str, bool]()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = os.readlink(f"/proc/{pid}/fd/{fd}")
        if path.startswith(str(daemon.directory)) and Path(path).suffix in (".img", ".qcow2", ".raw"):
            info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
            flags = int(next(line.split()[1] for line in info.splitlines() if line.startswith("flags:")), 8)
            found[path] = found.get(path, False) or flags & os.O_ACCMODE != os.O_RDONLY
    return found


@pytest.fixture
def shelf(daemon: Daemon) -> Path:
    """Images: a bootable bottom.img, below it middle.qcow2, and what nobody may open: secret.img."""
    place = daemon.directory / "shelf, 1"
    place.mkdir()
    (place / "bottom.img").write_bytes(guests.boot_sector("polite").ljust(M, b"\0"))
    (place / "secret.img").write_bytes(bytes(M))
    qemu_img("create", "-f", "qcow2", "-b", "secret.img", "-F", "raw", place / "middle.qcow2", cwd=place)
    return place


def chain(daemon: Daemon, shelf: Path) -> Path:
    """A VM that boots from hda, which stands on middle.qcow2 and bottom.img by its links alone."""
    place = daemon.make(A, guest=None)
    (place / f"{A}-hda.base").symlink_to(shelf / "middle.qcow2")
    (place / f"{A}-hda.base.2").symlink_to(shelf / "bottom.img")
    top = place / f"{A}-hda.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", shelf / "secret.img", "-F", "raw", top, "1M")
    return place


def refusal(daemon: Daemon, vm: str = A) -> str:
    result = daemon.vmess(vm, "start")
    assert (result.returncode, result.stderr.count("\n")) == (1, 2), result
    return result.stderr


def test_c79_an_image_opens_nothing_but_what_the_links_beside_it_allow(daemon: Daemon, shelf: Path) -> None:
    place = chain(daemon, shelf)
    before = {file: file.read_bytes() for file in shelf.iterdir()}
    daemon.done(A, "start")
    daemon.wait_guest(A)  # it has booted what is in bottom.img
    assert opened(daemon, A) == {
        f"{place}/{A}-hda.qcow2": True,
        f"{shelf}/middle.qcow2": False,
        f"{shelf}/bottom.img": False,
    }
    daemon.done(A, "stop", "force")
    assert {file: file.read_bytes() for file in shelf.iterdir()} == before
    (place / f"{A}-hda.base.2").unlink()
    assert "newvm" not in (told := refusal(daemon))
    assert f"{A}-hda.base has a backing file, 'secret.img', and there is no link {A}-hda.base.2" in told


@pytest.mark.parametrize("at", ["hda.qcow2", "hda.base"])
def test_c79_an_external_data_file_is_not_opened_at_any_depth(daemon: Daemon, shelf: Path, at: str) -> None:
    place = chain(daemon, shelf)
    image = place / f"{A}-{at}"
    image.unlink()
    options = f"data_file={shelf / 'data.img'},data_file_raw=on".replace("shelf, 1", "shelf,, 1")
    made = daemon.directory / "made.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, made, "1M")
    image.symlink_to(made)
    assert f"{A}-{at} has an external data file, which could be any file of the host" in refusal(daemon)


def test_c79_a_raw_disk_stays_raw_whatever_a_guest_writes_to_it(daemon: Daemon, shelf: Path) -> None:
    place = daemon.make(A)
    shutil.copy(shelf / "middle.qcow2", place / f"{A}-hda.img")
    assert f"{A}-hda.img is a qcow2 image; it must be raw" in refusal(daemon)
    daemon.done(A, "raw", "hda")
    daemon.done(A, "start")
    assert opened(daemon, A) == {f"{place}/{A}-hda.img": True}


def test_c80_a_base_that_is_not_what_it_was_is_named_and_nothing_starts(daemon: Daemon, shelf: Path) -> None:
    place = chain(daemon, shelf)
    daemon.done(A, "start", "stop", "force")
    bottom = shelf / "bottom.img"
    found = bottom.stat()
    with bottom.open("r+b") as file:
        file.write(b"\0")
    os.utime(bottom, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert f"'{bottom}' has changed since the last start; hda is based on it" in (told := refusal(daemon))
    assert f"rm {place}/bases.json" in told
    assert f"'{bottom}' has changed" in daemon.status(A)["problem"]
    os.utime(bottom, ns=(found.st_atime_ns, found.st_mtime_ns))
    daemon.done(A, "start", "stop", "force")
    bottom.rename(shelf / "aside.img")
    assert f"{A}-hda.base.2 is a link to '{bottom}': no such file" in refusal(daemon)
    (shelf / "aside.img").rename(bottom)
    other = daemon.make(B)
    (other / f"{B}-hdb.img").symlink_to(bottom)
    assert f"a base of {A} is the disk of VM {B}, which may write to it: {B}-hdb.img" in refusal(daemon)
    (other / f"{B}-hdb.img").unlink()
    daemon.done(A, "start")


def test_c80_a_link_to_what_is_no_image_is_one_line_and_opens_nothing(daemon: Daemon) -> None:
    place, link = daemon.make(A), daemon.root / A / f"{A}-hda.base"
    odd: dict[str, Callable[[Path], object]] = {
        "fifo.img": os.mkfifo,
        "directory.img": lambda path: path.mkdir(),
        "device.img": lambda path: path.symlink_to("/dev/zero"),
        "loop.img": lambda path: path.symlink_to(path),
        "gone.img": lambda _path: None,
        "disk.qcow2": lambda path: path.symlink_to(place / f"{A}-hda.qcow2"),
        "device": lambda path: path.symlink_to("/dev/zero"),
    }
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", "x", "-F", "raw", place / f"{A}-hda.qcow2", "1M")
    for name, make in odd.items():
        make(daemon.directory / name)
        link.symlink_to(daemon.directory / name)
        before = sorted(os.listdir(place))
        for words in (
            ("start",),
            ("clone", B),
            ("clone", B, "--linked"),
            ("snapshot", "take", "s"),
            ("export", "-"),
        ):
            result = daemon.vmess(A, *words)
            assert (result.returncode, result.stderr.count("\n") <= 2) == (1, True), (name, result)
            assert f"{daemon.directory / name}'" in result.stderr, (name, result)
        assert sorted(os.listdir(place)) == before, name
        assert not (daemon.root / B).exists(), name
        link.unlink()


def test_a_qcow2_disk_is_used_shown_and_renamed(daemon: Daemon, shelf: Path) -> None:
    place = chain(daemon, shelf)
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", f"{A}-hda.base", "-F", "qcow2", place / f"{A}-hda.qcow2")
    info = json.loads(daemon.done(A, "info", "--json"))["info"]
    [drive] = info["drives"]
    assert (drive["size"], drive["format"]) == (M, "qcow2")
    assert drive["bases"] == [f"{shelf}/middle.qcow2", f"{shelf}/bottom.img"]
    assert 0 < drive["stored"] <= M
    line = next(line for line in daemon.done(A, "info").splitlines() if line.startswith("hda: "))
    assert ", 1M, qcow2, " in line
    assert line.endswith(f" stored, on {shelf}/middle.qcow2, on {shelf}/bottom.img")
    longer = f"{A}-with-a-longer-name"
    daemon.done(A, "rename", longer)
    image = daemon.root / longer / f"{longer}-hda.qcow2"
    said = json.loads(qemu_img("info", "--output=json", image))
    assert said["backing-filename"] == f"{longer}-hda.base"
    daemon.done(longer, "start")
    daemon.wait_guest(longer)


def test_a_guest_writes_to_its_disk_and_not_to_the_base(daemon: Daemon) -> None:
    base = daemon.directory / "base.img"
    base.write_bytes(bytes(4 * M))
    base.chmod(0o440)
    place = daemon.make(A, guest="filler")
    (place / f"{A}-hda.base").symlink_to(base)
    top = place / f"{A}-hda.qcow2"
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", f"{A}-hda.base", "-F", "raw", top, "4M")
    daemon.done(A, "start")
    daemon.wait_guest(A, b"E")
    daemon.done(A, "stop", "force")
    assert base.read_bytes() == bytes(4 * M)
    qemu_img("check", "-q", top)
    wait_for(lambda: top.stat().st_size > M // 2, what="a disk that has grown")
