"""Clones of VMs: copies and linked ones. `qemu-img` judges what is in their disks."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from daemons import UNIT, Daemon, own, wait_for
from test_disks import child_of
from test_snapshots import M, image, images, kept, listed, made, same, top_of, write

from vmessd.core import names

pytestmark = pytest.mark.qemu

A, B, C = own("a"), own("b"), own("c")


def files(daemon: Daemon, vm: str) -> set[str]:
    return set(os.listdir(daemon.root / vm))


def hidden(daemon: Daemon) -> list[str]:
    return [name for name in os.listdir(daemon.root) if name.startswith(".")]


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_c101_a_clone_has_the_disks_and_settings_and_an_identity_of_its_own(daemon: Daemon, form: str) -> None:
    made(daemon, form)
    content = kept(daemon, "source")
    place = daemon.root / A
    for file, text in {
        "SMBIOS": "serial=A1,product=X,uuid=6c1f2a9e-8d5b-4f0a-9e3c-2b7d41c05f68",
        "MACS": "02:00:00:00:00:07",
        "RAM": "32M",
        "NICS": "user:2222:22",
        "META_DATA": "instance-id: iid-1\nlocal-hostname: a\nkey: value",
        "notes.txt": "mine",
    }.items():
        (place / file).write_text(f"{text}\n")
    (place / f"{A}-cdrom.iso").symlink_to(image(daemon.directory / "cd.iso"))
    result = daemon.vmess(A, "clone", B)
    assert result.returncode == 0, result
    assert "SMBIOS without uuid and serial" in result.stderr
    assert "its MACs follow from its name" in result.stderr
    assert "another instance-id" in result.stderr
    assert "it forwards the same ports of the host" in result.stderr
    new = daemon.root / B
    assert files(daemon, B) == {
        *("SMBIOS", "RAM", "NICS", "META_DATA", "EXARGS"),
        names.disk_file(B, "hda", form),
        f"{B}-cdrom.iso",
    }
    assert (new / "SMBIOS").read_text() == "product=X\n"
    meta = (new / "META_DATA").read_text()
    assert ("iid-1\n" not in meta, "local-hostname" not in meta, "key: value" in meta) == (True, True, True)
    same(daemon, content, B)
    write(daemon, 5)
    same(daemon, content, B)
    assert top_of(daemon, B).stat().st_blocks * 512 <= 4 * M
    assert "exists already" in daemon.vmess(A, "clone", B).stderr
    (new / "NICS").unlink()
    (new / "META_DATA").unlink()
    daemon.done(B, "start", "stop", "force")


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_c102_a_linked_clone_takes_no_space_and_neither_changes_the_other(daemon: Daemon, form: str) -> None:
    made(daemon, form)
    content = kept(daemon, "source")
    result = daemon.vmess(A, "clone", B, "--linked")
    assert result.returncode == 0, result
    assert f"{A} has a snapshot {B} now, which both are based on" in result.stderr
    base = f"snap-hda-{B}.{names.IMAGE_ENDINGS[form]}"
    assert images(daemon, B) == {f"{B}-hda.qcow2", f"{B}-hda.base", base}
    assert (daemon.root / A / base).samefile(daemon.root / B / base)
    assert top_of(daemon, B).stat().st_size < M
    for vm, number in ((A, 1), (B, 2)):
        same(daemon, content, vm)
        write(daemon, number, vm)
    kept_a, kept_b = kept(daemon, "a"), kept(daemon, "b", B)
    daemon.done(A, "start", "stop", "force")
    daemon.done(B, "start", "stop", "force")
    for vm in (A, B):
        result = daemon.vmess(vm, "snapshot", "delete", B)
        assert (result.returncode, "must not change" in result.stderr) == (1, True)
    daemon.done(B, "clone", C, "--linked")
    daemon.done(A, "snapshot", "revert", B, "--yes")
    same(daemon, content, A)
    same(daemon, kept_b, B)
    same(daemon, kept_b, C)
    daemon.done(A, "rm", "--yes")
    daemon.done(C, "rm", "--yes")
    same(daemon, kept_b, B)
    daemon.done(B, "start", "stop", "force", "snapshot", "delete", B)
    same(daemon, kept_b, B)
    assert kept_a.exists()


def test_c102_a_linked_clone_of_a_vm_that_stands_on_an_image_takes_no_space_either(daemon: Daemon) -> None:
    made(daemon)
    daemon.done(A, "snapshot", "take", "one")
    daemon.done(A, "clone", B, "--linked")
    assert listed(daemon) == ["one"]
    lots = ["qemu-io", "-f", "qcow2", "-c", "write -q -P 7 4M 8M", str(top_of(daemon))]
    subprocess.run(lots, check=True, capture_output=True, timeout=30 * UNIT)
    content = kept(daemon, "source")
    daemon.done(A, "clone", C, "--linked")
    assert listed(daemon) == ["one", C]
    assert top_of(daemon, C).stat().st_size < M
    same(daemon, content, C)
    same(daemon, content)
    daemon.done(C, "rm", "--yes")
    subprocess.run(lots, check=True, capture_output=True, timeout=30 * UNIT)
    daemon.done(A, "clone", C, "--linked")
    assert listed(daemon) == ["one", C, time.strftime("%Y-%m-%d")]
    same(daemon, content, C)


def test_a_clone_of_a_vm_with_snapshots_has_them_too(daemon: Daemon) -> None:
    made(daemon)
    first = kept(daemon, "first")
    daemon.done(A, "snapshot", "take", "one")
    write(daemon, 1)
    second = kept(daemon, "second")
    daemon.done(A, "clone", B)
    same(daemon, second, B)
    assert listed(daemon, B) == ["one"]
    daemon.done(B, "snapshot", "revert", "one", "--yes")
    same(daemon, first, B)
    same(daemon, second)


def test_what_cannot_be_cloned_is_one_line(daemon: Daemon) -> None:
    made(daemon)
    daemon.make(C)
    daemon.done(C, "start")
    for words, status, told in (
        ((A, "clone", A), 2, "cannot be a clone of itself"),
        ((A, "clone", "x" * 300), 2, "at most 30 are allowed"),
        ((A, "clone", "Web_1"), 2, "is not letters a-z"),
        ((A, "clone", C), 1, "exists already"),
    ):
        result = daemon.vmess(*words)
        assert (result.returncode, told in result.stderr) == (status, True), result
        assert result.stderr.count("\n") <= 2
    assert sorted(os.listdir(daemon.root)) == sorted([A, C])


def cut_short(daemon: Daemon, client: "subprocess.Popen[str]", moment: float, what: str) -> None:
    """End the daemon, the client or qemu-img after so many seconds, or as soon as that runs."""
    if what == "qemu-img":
        with contextlib.suppress(AssertionError, psutil.Error):
            if child := wait_for(lambda: child_of(daemon), moment, "qemu-img"):
                child.kill()
        client.communicate(timeout=20 * UNIT)
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        client.wait(moment)
    if what == "client":
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=20 * UNIT)
        return
    daemon.stop(signal.SIGKILL)
    client.communicate(timeout=20 * UNIT)
    daemon.start()


def whole_or_absent(daemon: Daemon, content: Path, status: int, where: str) -> None:
    """Check what is there after a client has ended, with both VMs off, and leave the first one as it was."""
    same(daemon, content)
    if (daemon.root / B).exists():
        same(daemon, content, B)
        daemon.done(B, "rm", "--yes")
    else:
        assert status, where
    for name in listed(daemon):
        daemon.done(A, "snapshot", "delete", name)
    assert images(daemon) == {f"{A}-hda.img"}, where


def test_c103_killed_at_any_moment_the_clone_is_whole_or_absent(
    daemon: Daemon, seed: int, is_long: bool
) -> None:
    made(daemon)
    dice = random.Random(seed)
    with top_of(daemon).open("r+b") as disk:
        disk.truncate(64 * M)
        disk.seek(20 * M)
        disk.write(dice.randbytes(24 * M))
    content = kept(daemon, "source")
    cut = 0
    for number in range(200 if is_long else 8):
        linked = ["--linked"] if dice.random() < 0.4 else []
        what = ("qemu-img", "daemon") if linked else ("daemon", "daemon", "client")
        struck = what[number % len(what)]
        where = f"--seed {seed}, round {number}, {struck}"
        client = daemon.client(A, "clone", B, *linked)
        cut_short(daemon, client, dice.uniform(0.0, 0.25), struck)
        cut += client.returncode != 0
        wait_for(lambda: not hidden(daemon), what=f"no half of a clone: {where}")
        whole_or_absent(daemon, content, client.returncode, where)
    assert cut, "nothing was cut short"


@pytest.mark.alone
def test_c102_a_linked_clone_of_a_large_disk_takes_a_moment(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "hda", "8G", "snapshot", "take", "one")
    took = []
    for number in range(5):
        begin = time.monotonic()
        daemon.done(A, "clone", f"{B[:-1]}{number}", "--linked", "--json")
        took.append(time.monotonic() - begin)
    assert min(took) < 0.25, took


def test_what_is_done_with_images_is_said_as_json_in_raw_units(daemon: Daemon) -> None:
    made(daemon)

    def told(*words: str) -> dict[str, Any]:
        result = daemon.vmess(*words, "--json")
        assert (result.returncode, result.stderr) == (0, ""), result
        said: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return said

    reply = told(A, "clone", B)["progress"]
    assert (reply["vm"], reply["done"]) == (B, True)
    assert told(A, "snapshot", "take", "one")["change"]["disks"] == ["hda"]
    [one] = told(A, "snapshot", "list")["snapshots"]
    assert (one["name"], one["size"], type(one["taken"])) == (
        "one",
        top_of(daemon, B).stat().st_blocks * 512,
        float,
    )
    assert told(A, "snapshot", "revert", "one", "--yes")["change"]["name"] == "one"
    assert told(A, "snapshot", "delete", "one")["progress"]["done"] is True
    assert told("images", "add", str(daemon.directory / "image"), "debian")["progress"]["size"] == 16 * M
    [stored] = told("images")["images"]
    assert (stored["name"], stored["size"]) == ("debian", 16 * M)
    assert told(A, "export", str(daemon.directory / "a.tar"))["progress"]["size"] > M
    assert told("import", str(daemon.directory / "a.tar"), C)["progress"]["vm"] == C
    assert told(C, "hda", "delete", "--yes")["verb"] == "hda"
    assert told("images", "rm", "debian", "--yes")["image"] == "debian"


@pytest.mark.parametrize("words", [("images",), (A, "snapshot", "list")], ids=["images", "snapshot list"])
def test_output_that_nobody_takes_is_a_status(daemon: Daemon, words: tuple[str, ...]) -> None:
    made(daemon)
    daemon.done("images", "add", daemon.directory / "image", "debian")
    daemon.done(A, "snapshot", "take", "one")
    writing = closed_pipe()
    client = daemon.client(*words, stdout=writing)
    os.close(writing)
    assert (client.communicate(timeout=20 * UNIT)[1], client.returncode) == ("", 141)
    with open("/dev/full", "w") as full:
        client = daemon.client(*words, stdout=full)
        assert client.communicate(timeout=20 * UNIT)[1].count("\n") == 1
    assert client.returncode == 1


def closed_pipe() -> int:
    """The end of a pipe that nobody reads from."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_four_at_once_make_one_vm(daemon: Daemon) -> None:
    made(daemon)
    daemon.done(A, "export", str(daemon.directory / "a.tar"))
    for words in ((A, "clone", B), ("import", str(daemon.directory / "a.tar"), B)):
        clients = [daemon.client(*words) for _ in range(4)]
        said = [client.communicate(timeout=30 * UNIT)[1] for client in clients]
        assert sorted(client.returncode == 0 for client in clients) == [False, False, False, True], said
        assert all(text.count("\n") <= 2 for text in said), said
        wait_for(lambda: not hidden(daemon), what="no half of a VM")
        assert sorted(os.listdir(daemon.root)) == [A, B]
        same(daemon, daemon.directory / "image", B)
        daemon.done(B, "rm", "--yes")
