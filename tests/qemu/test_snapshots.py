"""Snapshots of VMs that are off and that run; `qemu-img` judges after each of them."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from daemons import UNIT, Daemon, own, wait_for
from disk_images import qemu_img
from test_disks import caught, child_of

from vmessd.core import names
from vmessd.storage import plans, pulling, safefile, snapshots
from vmessd.storage.plans import Plan
from vmessd.storage.vmdir import VMDirectory

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")
M = 2**20


def image(place: Path, size: int = 16 * M, seed: int = 1) -> Path:
    """A sparse raw image with data in it."""
    with place.open("wb") as file:
        file.truncate(size)
        file.seek(M)
        file.write(random.Random(seed).randbytes(M))
    return place


def top_of(daemon: Daemon, vm: str = A, slot: str = "hda") -> Path:
    [found] = [
        path
        for form in names.IMAGE_ENDINGS
        if (path := daemon.root / vm / names.disk_file(vm, slot, form)).exists()
    ]
    return found


def write(daemon: Daemon, seed: int, vm: str = A, at: int = 3 * M) -> None:
    """Write into the disk of a VM that is off, as its guest would."""
    top = top_of(daemon, vm)
    data = daemon.directory / "data"
    data.write_bytes(random.Random(seed).randbytes(256 * 1024))
    form = "raw" if top.suffix == ".img" else "qcow2"
    subprocess.run(
        ["qemu-io", "-f", form, "-c", f"write -q -s {data} {at} 256k", top],
        check=True,
        capture_output=True,
        timeout=30 * UNIT,
    )


def kept(daemon: Daemon, name: str, vm: str = A) -> Path:
    """A copy of what the disk of a VM contains, by `qemu-img`."""
    place, top = daemon.directory / f"kept-{name}", top_of(daemon, vm)
    qemu_img("convert", "-f", "raw" if top.suffix == ".img" else "qcow2", "-O", "raw", top, place)
    return place


def same(daemon: Daemon, content: Path, vm: str = A) -> None:
    """Have `qemu-img` compare a disk with what it should contain, and check every image of the VM.

    A `qemu-img` that was killed may leave clusters that nothing uses: they take room, and are no error.
    """
    top = top_of(daemon, vm)
    qemu_img("compare", "-f", "raw", "-F", "raw" if top.suffix == ".img" else "qcow2", content, top)
    for file in (daemon.root / vm).glob("*.qcow2"):
        report = subprocess.run(
            ["qemu-img", "check", "--output=json", "-f", "qcow2", file],
            capture_output=True,
            timeout=60 * UNIT,
            check=False,
        )
        assert report.returncode in {0, 3}, report
        assert not {"corruptions", "check-errors"} & {
            key for key, count in json.loads(report.stdout).items() if count
        }


def images(daemon: Daemon, vm: str = A) -> set[str]:
    return {
        name
        for name in os.listdir(daemon.root / vm)
        if name.endswith((".img", ".qcow2")) or ".base" in name or name.startswith((".", "plan", "merging"))
    }


def listed(daemon: Daemon, vm: str = A) -> list[str]:
    found = json.loads(daemon.done(vm, "snapshot", "list", "--json"))["snapshots"]
    return [one["name"] for one in found]


def made(daemon: Daemon, form: str = "raw", vm: str = A) -> None:
    daemon.make(vm)
    daemon.done(vm, "hda", image(daemon.directory / "image"), "--format", form)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_c98_a_snapshot_is_taken_reverted_to_and_deleted(daemon: Daemon, form: str) -> None:
    made(daemon, form)
    before = images(daemon)
    first = kept(daemon, "first")
    assert daemon.done(A, "snapshot", "take", "one") == "snapshot one of hda\n"
    assert daemon.done(A, "snapshot").splitlines()[1].startswith("one ")
    base = f"snap-hda-one.{names.IMAGE_ENDINGS[form]}"
    assert images(daemon) == {f"{A}-hda.qcow2", f"{A}-hda.base", base}
    assert (daemon.root / A / base).stat().st_mode & 0o222 == 0
    same(daemon, first)
    write(daemon, 2)
    second = kept(daemon, "second")
    daemon.done(A, "snapshot", "take", "two")
    write(daemon, 3, at=5 * M)
    third = kept(daemon, "third")
    assert listed(daemon) == ["one", "two"]
    daemon.done(A, "start", "stop", "force")
    daemon.done(A, "snapshot", "revert", "two", "--yes")
    same(daemon, second)
    write(daemon, 3, at=5 * M)
    same(daemon, third)
    daemon.done(A, "snapshot", "take", "three")
    daemon.done(A, "snapshot", "delete", "two")
    same(daemon, third)
    assert listed(daemon) == ["one", "three"]
    daemon.done(A, "start", "stop", "force")
    daemon.done(A, "snapshot", "delete", "one")
    same(daemon, third)
    daemon.done(A, "snapshot", "revert", "three", "--yes", "snapshot", "delete", "three")
    same(daemon, third)
    assert images(daemon) == before
    daemon.done(A, "start", "stop", "force")


def test_c98_who_is_not_root_may_delete_any_snapshot(daemon: Daemon) -> None:
    made(daemon)
    for name in ("one", "two"):
        daemon.done(A, "snapshot", "take", name)
    third = kept(daemon, "third")
    snapshots.begin_merge(VMDirectory(daemon.root, A), "one")
    written = [daemon.root / A / file for file in ("snap-hda-one.img", "snap-hda-two.qcow2")]
    assert [file.stat().st_mode & 0o220 for file in written] == [0o220, 0o220], "qemu-img opens both to write"
    daemon.done(A, "snapshot", "delete", "one")
    assert listed(daemon) == ["two"]
    same(daemon, third)


def test_c98_a_revert_to_an_older_one_removes_newer_ones_and_says_so(daemon: Daemon) -> None:
    made(daemon)
    first = kept(daemon, "first")
    for name in ("one", "two", "three"):
        daemon.done(A, "snapshot", "take", name)
        write(daemon, len(name))
    result = daemon.vmess(A, "snapshot", "revert", "one", "--yes")
    assert (result.stdout, result.stderr) == (
        "back to snapshot one\n",
        f"{A}: newer snapshots are gone: three, two\n",
    )
    same(daemon, first)
    assert images(daemon) == {f"{A}-hda.qcow2", f"{A}-hda.base", "snap-hda-one.img"}
    assert "no terminal on which to ask" in daemon.vmess(A, "snapshot", "revert", "one").stderr


def test_names_and_states_that_are_refused_get_one_line(daemon: Daemon) -> None:
    daemon.make(A)
    for words, status, told in (
        (("take", "x" * 300), 2, "has 300 characters; at most 30 are allowed"),
        (("take", "../x"), 2, "is not letters a-z, digits and hyphens"),
        (("take", "_x"), 2, "is not letters a-z, digits and hyphens"),
        (("take", "x"), 1, "has no disk to take a snapshot of"),
        (("revert", "x", "--yes"), 2, f"VM {A} has no snapshot 'x'"),
        (("delete", "x"), 2, f"VM {A} has no snapshot 'x'"),
        (("delete",), 2, "needs the name of a snapshot"),
        (("revert",), 2, "needs the name of a snapshot"),
        (("mine", "x"), 2, "is none of take, list, revert, delete"),
        (("lisst",), 2, "is none of take, list, revert, delete; did you mean list?"),
    ):
        result = daemon.vmess(A, "snapshot", *words)
        assert (result.returncode, told in result.stderr) == (status, True), result
        assert result.stderr.count("\n") <= 2
    daemon.done(A, "hda", "8M", "snapshot", "take", "one")
    assert "has a snapshot one already" in daemon.vmess(A, "snapshot", "take", "one").stderr
    daemon.done(A, "start")
    result = daemon.vmess(A, "snapshot", "revert", "one", "--yes")
    assert (result.returncode, "must be stopped" in result.stderr) == (1, True)


def test_the_limit_of_a_chain_is_one_line(daemon: Daemon) -> None:
    made(daemon)
    for number in range(names.BASES_MAX):
        daemon.done(A, "snapshot", "take", f"s{number}")
    result = daemon.vmess(A, "snapshot", "take", "more")
    assert (result.returncode, f"hda of {A} is based on 8 images, which is the limit" in result.stderr) == (
        1,
        True,
    )
    assert not any(name.startswith(".") for name in images(daemon))
    daemon.done(A, "start", "stop", "force")


def test_a_renamed_vm_keeps_its_snapshots(daemon: Daemon) -> None:
    made(daemon)
    daemon.done(A, "snapshot", "take")
    [name] = listed(daemon)
    assert name == time.strftime("%Y-%m-%d")
    daemon.done(A, "rename", B)
    assert listed(daemon, B) == [name]
    daemon.done(B, "snapshot", "revert", name, "--yes")
    same(daemon, daemon.directory / "image", B)
    daemon.done(B, "start", "stop", "force")


def test_c99_a_running_guest_has_all_disks_kept_at_one_moment(daemon: Daemon) -> None:
    made(daemon)
    daemon.done(A, "hdb", "16M")
    daemon.done(A, "start")
    for name in ("one", "two"):
        reply = json.loads(daemon.done(A, "snapshot", "take", name, "--json"))["change"]
        assert reply["disks"] == ["hda", "hdb"]
        assert 0 < reply["stood_still"] < 0.1
        assert "as after a power failure" in reply["notes"][-1]
    info = json.loads(daemon.done(A, "info", "--json"))["info"]
    assert (info["pending"], info["changed"], info["problem"]) == ([], False, None)
    assert "32M now, was 16M" in daemon.vmess(A, "hda", "32M").stderr
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert json.loads(daemon.done(A, "info", "--json"))["info"]["pending"] == []
    daemon.done(A, "snapshot", "take", "three")
    daemon.done(A, "stop", "force", "start", "stop", "force")
    assert listed(daemon) == ["one", "two", "three"]
    daemon.done(A, "snapshot", "revert", "one", "--yes")
    same(daemon, daemon.directory / "image")
    daemon.done(A, "start", "stop", "force", "snapshot", "delete", "one")
    assert images(daemon) == {f"{A}-hda.img", f"{A}-hdb.img"}


def test_c100_killed_at_any_moment_the_disk_contains_what_it_did(
    daemon: Daemon, seed: int, is_long: bool
) -> None:
    made(daemon)
    dice = random.Random(seed)
    daemon.done(A, "snapshot", "take", "zero")
    cut = 0
    for number in range(200 if is_long else 8):
        where = f"--seed {seed}, round {number}"
        write(daemon, number)
        content = kept(daemon, "now")
        there = listed(daemon)
        take = len(there) < 2 or (dice.random() < 0.5 and len(there) < 5)
        words = ("take", f"s{number}") if take else ("delete", dice.choice(there))
        client = daemon.client(A, "snapshot", *words)
        if number % 3 == 2:
            with contextlib.suppress(AssertionError, psutil.Error):
                if child := wait_for(lambda: child_of(daemon), 0.3, "qemu-img"):
                    child.kill()
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(dice.uniform(0.0, 0.2))
            daemon.stop(signal.SIGKILL)
            daemon.start()
        client.communicate(timeout=20 * UNIT)
        cut += client.returncode != 0
        wait_for(lambda: not any(name.startswith((".", "plan")) for name in images(daemon)), what="its end")
        left = listed(daemon)
        same(daemon, content)
        assert set(left) ^ set(there) <= {words[1]}, where
        assert client.returncode or (words[1] in left) is take, where
        if "merging" in images(daemon):
            assert "is half deleted" in daemon.vmess(A, "snapshot", "revert", words[1], "--yes").stderr, where
            daemon.done(A, "snapshot", "delete", words[1])
            same(daemon, content)
    assert cut, "nothing was cut short"
    daemon.done(A, "start", "stop", "force")


def test_c100_a_daemon_killed_while_a_running_guest_has_a_snapshot_taken(daemon: Daemon, seed: int) -> None:
    made(daemon)
    dice = random.Random(seed)
    for number in range(6):
        daemon.done(A, "start")
        client = daemon.client(A, "snapshot", "take", "s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(dice.uniform(0.0, 0.2))
        daemon.stop(signal.SIGKILL)
        client.communicate(timeout=20 * UNIT)
        daemon.start()
        assert set(listed(daemon)) <= {"s"}
        assert "plan.json" not in images(daemon), f"--seed {seed}, round {number}"
        daemon.done(A, "stop", "force")
        same(daemon, daemon.directory / "image")
        if listed(daemon):
            daemon.done(A, "snapshot", "delete", "s")
        assert images(daemon) == {f"{A}-hda.img"}


def test_c100_a_vm_that_ends_while_its_snapshot_is_taken(daemon: Daemon, seed: int) -> None:
    made(daemon)
    dice = random.Random(seed)
    for number in range(6):
        daemon.done(A, "start")
        client = daemon.client(A, "snapshot", "take", "s")
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(dice.uniform(0.0, 0.15))
        os.kill(daemon.status(A)["pid"], signal.SIGKILL)
        _, said = client.communicate(timeout=30 * UNIT)
        assert said.count("\n") <= 3, f"--seed {seed}, round {number}: {said}"
        wait_for(lambda: daemon.status(A)["pid"] is None, what="its end")
        assert set(listed(daemon)) <= {"s"}
        same(daemon, daemon.directory / "image")
        daemon.done(A, "start", "stop", "force")
        if listed(daemon):
            daemon.done(A, "snapshot", "delete", "s")
        assert images(daemon) == {f"{A}-hda.img"}


def test_c100_a_client_that_leaves_ends_a_merge_which_can_be_repeated(daemon: Daemon) -> None:
    made(daemon, "qcow2")
    daemon.done(A, "hda", "256M", "snapshot", "take", "one")
    lots = ["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 16M 128M", str(top_of(daemon))]
    subprocess.run(lots, check=True, capture_output=True, timeout=30 * UNIT)
    content = kept(daemon, "now")
    client = daemon.client(A, "snapshot", "delete", "one")
    child = caught(daemon)
    assert "is having a snapshot deleted" in daemon.vmess(A, "start").stderr
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=20 * UNIT)
    wait_for(lambda: not child.is_running(), what="the end of qemu-img")
    same(daemon, content)
    daemon.done(A, "start", "stop", "force", "snapshot", "delete", "one")
    same(daemon, content)
    assert images(daemon) == {f"{A}-hda.qcow2"}


def test_c100_a_disk_under_which_another_vm_stands_is_not_merged(daemon: Daemon) -> None:
    made(daemon)
    daemon.make(B)
    daemon.done(A, "snapshot", "take", "one")
    daemon.done(B, "hda", "--linked", daemon.root / A / "snap-hda-one.img")
    result = daemon.vmess(A, "snapshot", "delete", "one")
    assert (result.returncode, f"is a base of {B}, too, and must not change" in result.stderr) == (1, True)
    assert "merging" not in images(daemon)


def test_a_disk_with_snapshots_is_neither_put_aside_nor_deleted(daemon: Daemon) -> None:
    image(daemon.make(A) / f"{A}-hda.img")
    daemon.done(A, "snapshot", "take", "one")
    before = kept(daemon, "before").read_bytes()
    for words in (("hda", "none"), ("hda", "delete", "--yes")):
        result = daemon.vmess(A, *words)
        assert (result.returncode, result.stdout) == (1, ""), result
        assert result.stderr.splitlines() == [
            f"vmess: hda of {A} has snapshots, which belong to no other disk: one",
            f"  hint: to merge them into it first: vmess {A} snapshot delete one",
        ]
    assert kept(daemon, "after").read_bytes() == before
    daemon.done(A, "snapshot", "delete", "one")
    daemon.done(A, "hda", "delete", "--yes")


@pytest.mark.parametrize("there", [["one"], ["one", "two"]], ids=["on an image", "on a snapshot"])
def test_c161_a_header_is_corrected_once_a_deletion_is_completed_without_its_qemu(
    daemon: Daemon, there: list[str]
) -> None:
    daemon.make(A)
    daemon.done(A, "hda", image(daemon.directory / "image.img"), "--linked")
    for number, name in enumerate(there):
        write(daemon, number, at=(5 + number) * M)
        daemon.done(A, "snapshot", "take", name)
    write(daemon, 9)
    content, top, vm = kept(daemon, "content"), top_of(daemon), VMDirectory(daemon.root, A)
    pulls = pulling.prepare(vm, there[-1], {"hda"})
    gone, below = pulls[0].snapshot.target, pulls[0].below
    assert below is not None
    qemu_img("rebase", "-f", "qcow2", "-b", below.target, "-F", below.format, top)  # as QEMU, which was killed
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", gone, "-F", "qcow2", top)  # before it did this
    steps, _ = pulling.steps(vm, pulls)
    with vm.opened() as directory:
        plan = Plan(A, steps, run=(1, 1), nodes={"hda": "hda-base1"}, merges=True)
        safefile.write(directory, plans.FILE, plans.text(plan))
    assert listed(daemon) == there[:-1]
    assert not images(daemon) & {gone, "plan.json"}
    same(daemon, content)


def test_c100_a_daemon_killed_while_it_corrects_a_header_keeps_no_vm_from_starting(daemon: Daemon) -> None:
    made(daemon)
    daemon.done(A, "snapshot", "take", "one", "snapshot", "take", "two", "start", "stop", "force")
    with snapshots.writable(VMDirectory(daemon.root, A), "snap-hda-two.qcow2"):
        os.utime(daemon.root / A / "snap-hda-two.qcow2")
        daemon.done(A, "start", "stop", "force")


def test_a_header_names_the_base_of_a_snapshot_that_was_taken_of_a_running_vm(daemon: Daemon) -> None:
    daemon.make(A)
    place = image(daemon.directory / "image.img")
    daemon.done(A, "hda", place, "--linked", "start", "snapshot", "take", "one", "stop", "force")
    assert listed(daemon) == ["one"]
    same(daemon, place)
    daemon.done(A, "start", "stop", "force", "clone", B, "--linked")
    assert listed(daemon, B) == ["one"]
    same(daemon, place, B)
    daemon.done(A, "start", "stop", "force")
