"""Clones of VMs that run: copies of one moment, and linked ones. `qemu-img` judges what is in their disks."""

import contextlib
import json
import os
import random
import signal
import subprocess

import pytest
from backdoor import Backdoor, failures, words
from daemons import UNIT, Daemon, own, wait_for
from disk_images import qemu_img
from test_clone import files, hidden, whole_or_absent
from test_snapshots import M, image, images, listed, top_of

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")


LOTS = 48 * M
"""Bytes whose copy takes QEMU a moment."""


def made(daemon: Daemon, form: str = "raw", size: int = 64 * M) -> None:
    daemon.make(A, EXARGS=words(daemon, A))
    with image(daemon.directory / "image", size).open("r+b") as file:
        file.seek(12 * M)
        file.write(random.Random(size).randbytes(M) * (LOTS // M))
    daemon.done(A, "hda", daemon.directory / "image", "--format", form)


def begun(daemon: Daemon, door: Backdoor, number: int) -> tuple["subprocess.Popen[str]", list[str]]:
    """Begin to clone the VM; return the client, and the jobs, of which one is paused; some are too fast."""
    while True:
        client = daemon.client(A, "clone", B)
        if jobs := door.paused("copy-", number):
            return client, jobs
        client.communicate(timeout=30 * UNIT)
        daemon.done(B, "rm", "--yes")


def copied(daemon: Daemon, slot: str = "hda", vm: str = A) -> bytes:
    """What the disk of a VM that is off contains."""
    top, place = top_of(daemon, vm, slot), daemon.directory / "copied"
    qemu_img("convert", "-f", "raw" if top.suffix == ".img" else "qcow2", "-O", "raw", top, place)
    return place.read_bytes()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_c162_a_clone_of_a_running_vm_is_of_one_moment_of_all_disks(daemon: Daemon, form: str) -> None:
    made(daemon, form, 64 * M + (form == "raw"))  # as the original script made them, one byte longer
    daemon.done(A, "hdb", "8M", "start")
    with Backdoor(daemon, A) as door:
        door.write(1, 5 * M, 65536)
        door.write(2, M, 65536, "hdb")
        if form == "qcow2":
            daemon.done(A, "snapshot", "take", "one")
            door.write(3, 6 * M, 65536)
            door.write(4, 12 * M, LOTS)
        client, jobs = begun(daemon, door, 2)
        for at in (M, 5 * M, 6 * M, 9 * M):
            door.write(77, at, 65536)
        door.write(78, M, 65536, "hdb")
        door.resume(jobs)
        said = client.communicate(timeout=30 * UNIT)
        assert client.returncode == 0, said
        assert "as after a power failure" in said[1]
        door.io(f"read -q -P 77 {9 * M} 65536")
        assert door.jobs() == []
        assert not [node for node in door.execute("query-named-block-nodes") if "copy" in node["node-name"]]
    assert files(daemon, B) >= {"EXARGS", "RAM"}
    assert not files(daemon, B) & {"qmp.sock", "run.json", "qemu.log", "qemu.pid", "serial.log"}
    content, second = copied(daemon, vm=B), copied(daemon, "hdb", B)
    expected = bytearray((daemon.directory / "image").read_bytes())
    expected[5 * M : 5 * M + 65536] = bytes([1]) * 65536
    if form == "qcow2":
        expected[6 * M : 6 * M + 65536] = bytes([3]) * 65536
        expected[12 * M : 12 * M + LOTS] = bytes([4]) * LOTS
        assert listed(daemon, B) == ["one"]
    assert content[: len(expected)] == bytes(expected)
    assert not any(content[len(expected) :])
    assert second == bytes(M) + bytes([2]) * 65536 + bytes(8 * M - M - 65536)
    assert sum(file.lstat().st_blocks for file in (daemon.root / B).iterdir()) * 512 < (LOTS + 6 * M) * (
        1 + (form == "qcow2")
    )
    for file in (daemon.root / B).glob("*.qcow2"):
        qemu_img("check", "-q", "-f", "qcow2", file)
    (daemon.root / B / "EXARGS").unlink()
    daemon.done(B, "start", "stop", "force")
    daemon.done(A, "stop", "force")
    assert not failures(daemon, A)
    assert copied(daemon)[5 * M : 5 * M + 65536] == bytes([77]) * 65536
    daemon.done(A, "start", "stop", "force")


def test_c162_a_linked_clone_of_a_running_vm_stands_on_a_snapshot(daemon: Daemon) -> None:
    made(daemon)
    daemon.done(A, "start")
    with Backdoor(daemon, A) as door:
        door.write(1, 5 * M, 65536)
        result = daemon.vmess(A, "clone", B, "--linked")
        assert result.returncode == 0, result
        assert f"{A} has a snapshot {B} now, which both are based on" in result.stderr
        door.write(2, 5 * M, 65536)
        base = f"snap-hda-{B}.img"
        assert images(daemon, B) == {f"{B}-hda.qcow2", f"{B}-hda.base", base}
        assert (daemon.root / A / base).samefile(daemon.root / B / base)
        assert copied(daemon, vm=B)[5 * M : 5 * M + 65536] == bytes([1]) * 65536
        (daemon.root / B / "EXARGS").unlink()
        daemon.done(B, "start")
        assert daemon.done(A, "snapshot", "delete", B) == f"snapshot {B} deleted\n"
        door.write(3, 6 * M, 65536)
        daemon.done(B, "stop", "force", "snapshot", "delete", B)
    daemon.done(A, "stop", "force")
    assert not failures(daemon, A)
    assert copied(daemon)[5 * M : 5 * M + 65536] == bytes([2]) * 65536
    content = bytearray((daemon.directory / "image").read_bytes())
    content[5 * M : 5 * M + 65536] = bytes([1]) * 65536
    assert copied(daemon, vm=B) == content
    assert images(daemon, B) == {f"{B}-hda.img"}
    daemon.done(A, "start", "stop", "force")


def test_c163_a_client_that_leaves_leaves_nothing_of_the_copy(daemon: Daemon) -> None:
    made(daemon)
    daemon.done(A, "start")
    with Backdoor(daemon, A) as door:
        client, _ = begun(daemon, door, 1)
        assert daemon.status(A)["runstate"] == "running"
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=20 * UNIT)
        wait_for(lambda: not hidden(daemon), what="no half of a clone")
        assert door.jobs() == []
        assert not [node for node in door.execute("query-named-block-nodes") if "copy" in node["node-name"]]
        door.write(5, 5 * M, 65536)
    assert sorted(os.listdir(daemon.root)) == [A]
    daemon.done(A, "stop", "force")
    assert not failures(daemon, A)
    assert images(daemon) == {f"{A}-hda.img"}


@pytest.mark.timeout(600 * UNIT)  # the long one
def test_c163_killed_at_any_moment_the_copy_is_whole_or_absent(
    daemon: Daemon, seed: int, is_long: bool
) -> None:
    made(daemon)
    dice, cut = random.Random(seed), 0
    for number in range(60 if is_long else 2):
        where = f"--seed {seed}, round {number}"
        content = daemon.directory / "content"
        content.write_bytes(copied(daemon))
        daemon.done(A, "start")
        linked = ["--linked"] if is_long and dice.random() < 0.3 else []
        client = daemon.client(A, "clone", B, *linked)
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(dice.uniform(0.0, 0.3))
        if number % 3 != 1:
            daemon.stop(signal.SIGKILL)
        if number % 3 != 0:
            os.kill(json.loads((daemon.root / A / "run.json").read_text())["pid"], signal.SIGKILL)
        client.communicate(timeout=30 * UNIT)
        cut += client.returncode != 0
        if number % 3 != 1:
            daemon.start()
        wait_for(lambda: not hidden(daemon), what=f"no half of a clone: {where}")
        if number % 3 == 0:
            with Backdoor(daemon, A) as door:
                wait_for(lambda: door.jobs() == [], what=f"no job: {where}")
            daemon.done(A, "stop", "force")
        daemon.wait_state(A, "stopped")
        assert not failures(daemon, A), where
        assert listed(daemon) in ([], [B]), where
        whole_or_absent(daemon, content, client.returncode, where)
    assert cut or not is_long, "nothing was cut short"
