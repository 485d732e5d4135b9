"""Disks from images: brought, converted, put on a base, enlarged, put aside, deleted. `qemu-img` judges."""

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemons import UNIT, Daemon, own, wait_for
from disk_images import qemu_img
from movers import leaving
from test_full_disk import Cramped, cramped

from vmessctl.client import Client
from vmessd.core.errors import BadFile, Failed, InvalidValue, VmessError

__all__ = ["cramped"]

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")
M = 2**20
FORMATS = {"qcow2": "qcow2", "vmdk": "VMDK", "vdi": "VDI", "vhdx": "VHDX", "vpc": "VHD"}


def raw(place: Path, size: int = 16 * M, seed: int = 1) -> Path:
    """A sparse raw image with data at its beginning and end."""
    with place.open("wb") as file:
        file.truncate(size)
        file.write(random.Random(seed).randbytes(M))
        file.seek(size - 5000)
        file.write(b"the end of the disk")
    return place


def converted(image: Path, form: str, *options: str) -> Path:
    place = image.with_suffix(f".{form}")
    qemu_img("convert", "-f", "raw", "-O", form, *options, image, place)
    return place


def files_of(daemon: Daemon, vm: str = A) -> set[str]:
    """The files of a VM that belong to its disks, and temporary ones."""
    return {name for name in os.listdir(daemon.root / vm) if name.startswith((vm, "."))}


def refusal(daemon: Daemon, *words: str | Path, status: int = 2) -> str:
    """Run the client, expect one line of complaint and perhaps a hint, and that nothing is left."""
    before = files_of(daemon)
    result = daemon.vmess(*words)
    assert result.returncode == status, result
    complaint, *hint = result.stderr.splitlines()
    assert len(hint) <= 1, result.stderr
    assert files_of(daemon) == before
    return complaint.removeprefix("vmess: ")


# Bringing an image


@pytest.mark.parametrize("form", FORMATS)
def test_an_image_of_each_format_is_brought(daemon: Daemon, form: str) -> None:
    daemon.make(A)
    image = raw(daemon.directory / "image")
    brought = converted(image, form, *(["-o", "force_size"] if form == "vpc" else []))
    remark = "" if form == "qcow2" else f" (converted from {FORMATS[form]})"
    assert daemon.done(A, "hda", brought) == f"hda: {A}-hda.qcow2, 16M{remark}\n"
    disk = daemon.root / A / f"{A}-hda.qcow2"
    qemu_img("compare", "-f", "raw", "-F", "qcow2", image, disk)
    qemu_img("check", "-q", "-f", "qcow2", disk)
    assert files_of(daemon) == {disk.name}
    daemon.done(A, "start")


def test_a_raw_image_stays_raw_and_sparse(daemon: Daemon) -> None:
    daemon.make(A)
    image = raw(daemon.directory / "image.raw", 2**30)
    assert daemon.done(A, "hdb", image) == f"hdb: {A}-hdb.img, 1G\n"
    disk = daemon.root / A / f"{A}-hdb.img"
    assert disk.stat().st_blocks * 512 <= 2 * M
    qemu_img("compare", "-f", "raw", "-F", "raw", image, disk)
    assert files_of(daemon) == {disk.name}


@pytest.mark.parametrize(("source", "target"), [("raw", "qcow2"), ("qcow2", "raw"), ("vmdk", "raw")])
def test_an_image_is_converted_to_a_format(daemon: Daemon, source: str, target: str) -> None:
    daemon.make(A)
    image = raw(daemon.directory / "image")
    brought = image if source == "raw" else converted(image, source)
    reply = json.loads(daemon.done(A, "hda", brought, "--format", target, "--json"))["progress"]
    disk = daemon.root / A / f"{A}-hda.{'img' if target == 'raw' else 'qcow2'}"
    assert (reply["file"], reply["size"], reply["source"]) == (disk.name, 16 * M, source)
    qemu_img("compare", "-f", "raw", "-F", target, image, disk)
    assert files_of(daemon) == {disk.name}


def test_what_is_there_is_never_overwritten(daemon: Daemon) -> None:
    daemon.make(A)
    image = raw(daemon.directory / "image.raw")
    daemon.done(A, "hda", "8M")
    told = refusal(daemon, A, "hda", image, status=1)
    assert told == f"{daemon.root}/{A} has a disk hda already: {A}-hda.img; an image is never overwritten"
    daemon.done(A, "start")
    assert "must be stopped" in refusal(daemon, A, "hdb", image, status=1)


def test_a_file_that_is_no_image_is_refused(daemon: Daemon) -> None:
    daemon.make(A)
    fifo = daemon.directory / "fifo"
    os.mkfifo(fifo)
    (daemon.directory / "empty").touch()
    for file, why in {
        "/dev/zero": "is a character device; it must be an image file",
        str(daemon.directory): "is a directory; it must be an image",
        str(fifo): "is a FIFO; it must be an image file",
        str(daemon.directory / "empty"): "has 0 bytes; it must have 1 byte to 64T",
        str(daemon.directory / "none.qcow2"): "cannot be opened: no such file or directory",
    }.items():
        assert refusal(daemon, A, "hda", file).endswith(f" '{file}' {why}")
    assert refusal(daemon, A, "hda", "banana") == "there is no image 'banana' in the image store"
    for words in (
        ("8G", "--linked"),
        ("delete", "--linked"),
        (str(fifo), "--yes"),
        ("none", "--format", "raw"),
    ):
        assert " is for hda with " in refusal(daemon, A, "hda", *words)
    assert "neither raw nor qcow2" in refusal(daemon, A, "hda", raw(daemon.directory / "r"), "--format", "vdi")


# Images that lie, and what they would open


def forged(daemon: Daemon) -> dict[str, tuple[Path, str]]:
    """Images that lead elsewhere, made by qemu-img, and damaged ones."""
    place = daemon.directory
    secret = raw(place / "secret.img")
    qemu_img("create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", place / "backed.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={place / 'x.data'}", place / "data.qcow2", "1M")
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", secret, place / "split.vmdk")
    qemu_img("create", "-q", "-f", "vmdk", place / "parent.vmdk", "16M")
    qemu_img("create", "-q", "-f", "vmdk", "-b", place / "parent.vmdk", "-F", "vmdk", place / "child.vmdk")
    loop = bytearray(converted(secret, "qcow2").read_bytes())
    table = int.from_bytes(loop[40:48], "big")  # its first entry leads to the table itself
    loop[table : table + 8] = (table | 1 << 63).to_bytes(8, "big")
    (place / "loop.qcow2").write_bytes(loop)
    (place / "cut.qcow2").write_bytes(loop[: table + 4096])
    shutil.copy(secret, place / "overwritten.vmdk")
    (place / "cut.vmdk").write_bytes(converted(secret, "vmdk").read_bytes()[: 80 * 1024])
    return {
        "backed": (place / "backed.qcow2", "is based on another image, its backing file"),
        "data": (place / "data.qcow2", "external data file, which could be any file of the host"),
        "split": (place / "split.vmdk", "names other files, its extents"),
        "child": (place / "child.vmdk", "is based on another image, its parent"),
        "loop": (place / "loop.qcow2", "damaged"),
        "cut": (place / "cut.qcow2", "damaged"),
        "overwritten": (place / "overwritten.vmdk", "is not the VMDK image that it should be"),
    }


def test_c81_an_image_that_lies_or_leads_elsewhere_is_one_line_and_leaves_nothing(daemon: Daemon) -> None:
    daemon.make(A)
    for image, why in forged(daemon).values():
        result = daemon.vmess(A, "hda", image)
        assert result.returncode in (1, 2)
        assert why in result.stderr.splitlines()[0], result.stderr
        assert files_of(daemon) == set()
    daemon.vmess(A, "hda", daemon.directory / "cut.vmdk")  # QEMU reads zeros there, or refuses
    assert not any(name.startswith(".") for name in files_of(daemon))


def handed(daemon: Daemon, method: str, fds: list[int], **parameters: Any) -> dict[str, Any]:
    """Call a method with descriptors as another program would, and return the last reply."""
    message = {
        "method": f"org.emptystack.vmess.{method}",
        "parameters": parameters,
        "more": method in ("Bring", "AddImage"),
    }
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(30 * UNIT)
        connected.connect(str(daemon.socket))
        socket.send_fds(connected, [json.dumps(message).encode() + b"\0"], fds)
        heard = b""
        while True:
            heard += connected.recv(65536)
            *replies, _ = heard.split(b"\0")
            for reply in map(json.loads, replies):
                if not reply.get("continues"):
                    found: dict[str, Any] = reply
                    return found


def test_c82_a_caller_brings_what_it_can_read_and_nothing_else(daemon: Daemon) -> None:
    daemon.make(A)
    mine, other = raw(daemon.directory / "mine.img"), raw(daemon.directory / "other.img", seed=2)
    before = daemon.descriptors()
    common = {"vm": A, "slot": "hda", "image": 0}
    with mine.open("rb") as file:
        fd = file.fileno()
        lacking = handed(daemon, "Bring", [], **common, name=str(other), into=None)
        assert "passed along with the call" in lacking["parameters"]["message"]
        several = handed(daemon, "Bring", [fd, fd], **common, name="x", into=None)
        assert several["parameters"] == lacking["parameters"]
        wrong = handed(daemon, "PutOn", [fd], **common, path=str(other))
        assert "is not the absolute path of the image that was passed along" in wrong["parameters"]["message"]
        unseen = handed(daemon, "PutOn", [fd], **common, path=f"{mine}.elsewhere")["parameters"]
        assert "cannot be seen by vmessd: no such file or directory" in unseen["message"]
        assert "vmess images add" in unseen["hint"]
        done = handed(daemon, "Bring", [fd], **common, name=str(other), into=None)
        assert done["parameters"]["progress"]["done"] is True
    blind = os.open(other, os.O_PATH)
    writer = os.open(other, os.O_WRONLY)
    for useless in (blind, writer):
        told = handed(daemon, "Bring", [useless], **common | {"slot": "hdb"}, name="x", into=None)
        assert "cannot be read: bad file descriptor" in told["parameters"]["message"]
        os.close(useless)
    assert (daemon.root / A / f"{A}-hda.img").read_bytes() == mine.read_bytes()
    assert files_of(daemon) == {f"{A}-hda.img"}
    wait_for(lambda: daemon.descriptors() == before, what="the end of all descriptors")


def test_c82_descriptors_that_nobody_asked_for_are_closed(daemon: Daemon) -> None:
    before = daemon.descriptors()
    with contextlib.ExitStack() as stack, open("/dev/null", "rb") as file:
        for _ in range(40):
            connected = stack.enter_context(socket.socket(socket.AF_UNIX))
            connected.connect(str(daemon.socket))
            for _ in range(5):
                socket.send_fds(connected, [b"{"], [file.fileno()] * 100)
                socket.send_fds(connected, [b"{"], [file.fileno()])
        daemon.done("list")
        wait_for(lambda: daemon.descriptors() <= before + 40 + 32, what="what one user may pass along")
    wait_for(lambda: daemon.descriptors() == before, what="the end of all descriptors")


# Ends at any moment


def child_of(daemon: Daemon) -> psutil.Process | None:
    """The qemu-img that the daemon runs."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(daemon.pid).children():
            if child.name() == "qemu-img":
                return child
    return None


def caught(daemon: Daemon) -> psutil.Process:
    """Stop the qemu-img of the daemon as soon as there is one. It may be quick, so this looks all the time."""
    deadline = time.monotonic() + 10 * UNIT
    while (child := child_of(daemon)) is None:
        assert time.monotonic() < deadline, "qemu-img was not seen"
    child.suspend()
    return child


def test_c83_a_client_that_leaves_takes_its_half_made_disk_with_it(daemon: Daemon) -> None:
    daemon.make(A)
    big = daemon.directory / "big.raw"
    big.write_bytes(random.Random(3).randbytes(96 * M))
    client = daemon.client(A, "hda", str(big), "--format", "qcow2")
    child = caught(daemon)
    assert any(name.startswith(".vmess-tmp-") for name in files_of(daemon))
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=20 * UNIT)
    wait_for(lambda: files_of(daemon) == set(), what="nothing")
    wait_for(lambda: not child.is_running(), what="the end of qemu-img")
    assert daemon.done(A, "hda") == "none\n"
    daemon.done(A, "hda", "8M")


def test_c83_killed_at_any_moment_the_disk_is_there_or_not(daemon: Daemon, seed: int, is_long: bool) -> None:
    daemon.make(A)
    lots = random.Random(seed)
    image = raw(daemon.directory / "image", 24 * M, seed=seed)
    brought = converted(image, "vmdk")
    for number in range(200 if is_long else 8):
        client = daemon.client(A, "hda", str(brought))
        if number % 2:
            with contextlib.suppress(AssertionError, psutil.Error):
                if child := wait_for(lambda: child_of(daemon), 0.3, "qemu-img"):
                    child.kill()
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(lots.uniform(0.0, 0.25))
            daemon.stop(signal.SIGKILL)
        client.kill()
        client.communicate(timeout=20 * UNIT)
        if number % 2 == 0:
            daemon.start()
        wait_for(lambda: not any(name.startswith(".") for name in files_of(daemon)), what="no temporary file")
        left = files_of(daemon)
        assert left <= {f"{A}-hda.qcow2"}, f"--seed {seed}, round {number}"
        if left:
            qemu_img("compare", "-f", "raw", "-F", "qcow2", image, daemon.root / A / f"{A}-hda.qcow2")
            daemon.done(A, "hda", "delete", "--yes")
    assert daemon.done(A, "hda", brought).startswith(f"hda: {A}-hda.qcow2, 24M")


def test_c84_a_full_disk_is_one_line_and_leaves_nothing(cramped: Cramped) -> None:
    place = cramped.inside_small("vm")
    place.mkdir()
    (cramped.root / A).mkdir()
    subprocess.run(
        [
            "nsenter",
            "-t",
            str(cramped.pid),
            "-m",
            "mount",
            "--bind",
            str(cramped.small / "vm"),
            str(cramped.root / A),
        ],
        check=True,
        timeout=20 * UNIT,
    )
    big = cramped.directory / "big.raw"
    big.write_bytes(random.Random(4).randbytes(3 * M))
    for image in (big, converted(big, "qcow2")):
        result = cramped.vmess(A, "hda", image)
        assert result.returncode == 1
        assert " free, and the image takes 3" in result.stderr.splitlines()[0]
    grows = cramped.directory / "grows.qcow2"  # compressed: it takes little until it is converted
    packed = cramped.directory / "packed.raw"
    packed.write_bytes(b"some words that are repeated and repeated" * (4 * M // 41))
    qemu_img("convert", "-c", "-O", "qcow2", "-f", "raw", packed, grows)
    result = cramped.vmess(A, "hda", grows, "--format", "raw")
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert result.stderr.count("\n") <= 2
    assert os.listdir(place) == []


# On top of an image


def test_a_disk_on_a_base_which_is_protected(daemon: Daemon) -> None:
    daemon.make(A)
    image = raw(daemon.directory / "base, 1.raw")
    base = converted(image, "qcow2")
    result = daemon.vmess(A, "hda", "--linked", base)
    assert (result.returncode, result.stdout) == (0, f"hda: {A}-hda.qcow2, 16M\n")
    assert result.stderr == f"{base} is read-only now, because a disk is based on it\n"
    assert base.stat().st_mode & 0o222 == 0
    disk = daemon.root / A / f"{A}-hda.qcow2"
    assert disk.stat().st_size < M
    qemu_img("compare", "-f", "raw", "-F", "qcow2", image, disk)  # the header names the link
    daemon.done(A, "start")
    [drive] = json.loads(daemon.done(A, "info", "--json"))["info"]["drives"]
    assert (drive["bases"], drive["size"]) == ([str(base)], 16 * M)
    daemon.done(A, "stop", "force", "hda", "64M")
    assert daemon.done(A, "hda") == "64M\n"
    qemu_img("check", "-q", disk)
    base.chmod(0o644)
    with base.open("ab") as file:
        file.write(b"x")
    assert "has changed since the last start" in daemon.vmess(A, "start").stderr


def test_a_base_must_say_its_format_and_be_nobodys_disk(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    image = raw(daemon.directory / "image.raw")
    daemon.done(B, "hda", image)
    theirs = daemon.root / B / f"{B}-hda.img"
    assert refusal(daemon, A, "hda", "--linked", theirs, status=1) == (
        f"base '{theirs}' is the disk of VM {B}, which may write to it: {B}-hda.img"
    )
    wrong = shutil.copy(converted(image, "qcow2"), daemon.directory / "wrong.img")
    assert refusal(daemon, A, "hda", "--linked", wrong) == (
        f"base '{wrong}' is a qcow2 image, and its name must say so"
    )
    assert "bring it without --linked" in daemon.vmess(A, "hda", "--linked", converted(image, "vdi")).stderr
    assert "always qcow2" in refusal(daemon, A, "hda", "--linked", image, "--format", "raw")


def test_a_base_that_is_in_use_is_not_deleted(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    daemon.done(B, "hda", raw(daemon.directory / "image.raw"))
    theirs = daemon.root / B / f"{B}-hda.img"
    aside = daemon.root / B / "aside.img"
    theirs.rename(aside)
    daemon.done(A, "hda", "--linked", aside)
    aside.rename(theirs)
    (daemon.root / A / f"{A}-hda.base").unlink()
    (daemon.root / A / f"{A}-hda.base").symlink_to(theirs)
    result = daemon.vmess(B, "hda", "delete", "--yes")
    assert (result.returncode, theirs.exists()) == (1, True)
    assert f"{B}-hda.img is a base of {A}, whose disk would be lost" in result.stderr


# Sizes, and the end of a disk


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_running_vms_disk_grows_at_once_and_never_shrinks(daemon: Daemon, form: str) -> None:
    daemon.make(A)
    daemon.done(A, "hda", raw(daemon.directory / "image.raw"), "--format", form)
    daemon.done(A, "start")
    name = f"{A}-hda.{'img' if form == 'raw' else 'qcow2'}"
    assert f"{name}: 32M now, was 16M" in daemon.vmess(A, "hda", "32M").stderr
    assert f"{name}: already has 32M, unchanged" in daemon.vmess(A, "hda", "32M").stderr
    assert "never made smaller" in refusal(daemon, A, "hda", "16M")
    info = json.loads(daemon.done(A, "info", "--json"))["info"]
    assert (info["drives"][0]["size"], info["pending"], info["changed"]) == (32 * M, [], False)
    assert "must be stopped" in refusal(daemon, A, "hdb", "8M", status=1)
    assert "must be stopped" in refusal(daemon, A, "hda", "none", status=1)
    assert "must be stopped" in refusal(daemon, A, "hda", "delete", "--yes", status=1)
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert json.loads(daemon.done(A, "info", "--json"))["info"]["pending"] == []
    daemon.done(A, "stop", "force")
    assert f"{name}: 64M now, was 32M" in daemon.vmess(A, "hda", "64M").stderr
    said = json.loads(qemu_img("info", "--output=json", "-f", form, daemon.root / A / name))
    assert said["virtual-size"] == 64 * M


def test_a_disk_is_put_aside_and_comes_back(daemon: Daemon) -> None:
    place = daemon.make(A)
    base = raw(daemon.directory / "base.raw")
    daemon.done(A, "hda", "--linked", base)
    for number in ("", ".2"):
        told = daemon.vmess(A, "hda", "none").stderr.strip()
        kept = place / f"{A}-hda.detached{number}"
        said, _, back = told.partition("; to have it back: ")
        assert said == f"{A}-hda.qcow2 is kept in {kept.name}"
        assert set(os.listdir(kept)) == {f"{A}-hda.qcow2", f"{A}-hda.base"}
        assert daemon.done(A, "hda") == "none\n"
        subprocess.run(shlex.split(back), check=True, timeout=10 * UNIT)
        assert os.listdir(kept) == []
        daemon.done(A, "start", "stop", "force")
    assert daemon.vmess(B, "hda", "none").returncode == 4
    assert daemon.done(A, "hda", "delete", "--yes") == f"{A}-hda.qcow2: deleted\n"
    assert {name for name in files_of(daemon) if "detached" not in name} == set()
    assert base.exists()
    assert daemon.done(A, "hda", "delete", "--yes") == "has no hda\n"


def test_a_vm_that_others_stand_on_is_neither_deleted_nor_renamed(daemon: Daemon) -> None:
    place = daemon.make(A)
    daemon.done(A, "hda", raw(daemon.directory / "base.raw"))
    daemon.done(A, "hda", "none")
    base = place / f"{A}-hda.detached" / f"{A}-hda.img"
    daemon.make(B)
    daemon.done(B, "hda", "--linked", base)
    for words, what in ((("rm", "--yes"), "deleted"), (("rename", own("c")), "renamed")):
        result = daemon.vmess(A, *words)
        assert result.returncode == 1
        assert result.stderr.splitlines() == [
            f"vmess: a disk of VM {B} is based on {base}, so {A} was not {what}",
            f"  hint: to see it: vmess {B} info",
        ]
    daemon.done(B, "start", "stop", "force", "rm", "--yes")
    daemon.done(A, "rm", "--yes")


def test_of_a_link_only_the_link_is_deleted(daemon: Daemon) -> None:
    place = daemon.make(A)
    image = raw(daemon.directory / "mine.img")
    (place / f"{A}-hda.img").symlink_to(image)
    assert daemon.done(A, "hda", "delete", "--yes") == (
        f"{A}-hda.img: deleted, a link; {image} is not deleted\n"
    )
    assert image.exists()
    assert "no terminal on which to ask" in refusal(daemon, A, "hda", "delete")


def test_a_locked_vm_keeps_its_disks(daemon: Daemon) -> None:
    daemon.make(A, LOCK="")
    image = raw(daemon.directory / "mine.img")
    for words in ((image,), ("--linked", image), ("delete", "--yes"), ("8M",), ("none",)):
        assert "is locked" in refusal(daemon, A, "hda", *words, status=7)


def locked(daemon: Daemon) -> contextlib.AbstractContextManager[object]:
    (daemon.root / A / "LOCK").write_text("mine\n")
    return contextlib.nullcontext()


@contextlib.contextmanager
def being_moved(daemon: Daemon) -> Iterator[None]:
    with leaving(daemon, A) as (peer, _):
        peer.hear()
        yield


@pytest.mark.parametrize(
    ("taken", "says"),
    [(locked, f"VM {A} is locked: mine"), (being_moved, f"VM {A} is being moved to lab2")],
    ids=["locked", "being moved"],  # A has the number of the process, which parallel runs must not see
)
def test_a_vm_that_is_taken_while_an_image_comes_does_not_get_it(
    daemon: Daemon, taken: Callable[[Daemon], contextlib.AbstractContextManager[object]], says: str
) -> None:
    daemon.make(A)
    image = daemon.directory / "large.img"
    image.write_bytes(random.Random(3).randbytes(64 * M))
    asked = {"vm": A, "slot": "hda", "image": 0, "name": "large.img", "into": "qcow2"}
    message = {"method": "org.emptystack.vmess.Bring", "parameters": asked, "more": True}
    with socket.socket(socket.AF_UNIX) as connected, image.open("rb") as file:
        connected.settimeout(30 * UNIT)
        connected.connect(str(daemon.socket))
        socket.send_fds(connected, [json.dumps(message).encode() + b"\0"], [file.fileno()])
        heard = connected.recv(65536)
        with taken(daemon):
            while b"error" not in heard:
                heard = connected.recv(65536)
    assert says in heard.decode()
    assert files_of(daemon) == set()


def test_errors_of_the_interface_are_ours(daemon: Daemon) -> None:
    daemon.make(A)
    with contextlib.closing(Client([str(daemon.socket)])) as client:
        for error, slot in ((InvalidValue, "cdrom"), (InvalidValue, "../x")):
            with pytest.raises(error):
                client.call("DeleteDisk", vm=A, slot=slot)
    assert issubclass(BadFile, Failed)
    assert issubclass(Failed, VmessError)
