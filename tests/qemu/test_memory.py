"""Snapshots with the memory of the guest, which goes on from there. It knows in its memory where it is."""

import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from backdoor import Backdoor, words
from daemons import UNIT, Daemon, own, wait_for
from test_snapshots import M, image, images, listed, same

pytestmark = pytest.mark.qemu

A = own("a")


def made(daemon: Daemon, **files: str) -> Path:
    """Make a VM with a disk whose guest counts letters; return a model of its disk."""
    daemon.make(A, "counter", EXARGS=words(daemon, A), **files)
    place = image(daemon.directory / "model")
    daemon.done(A, "hda", place)
    return place


def letter(daemon: Daemon) -> str:
    """Ask the guest for its next letter."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10 * UNIT)
        connection.connect(str(daemon.root / A / "serial.sock"))
        connection.sendall(b"?")
        return connection.recv(1).decode()


def started(daemon: Daemon) -> None:
    log = daemon.root / A / "serial.log"
    log.unlink(missing_ok=True)
    daemon.done(A, "start")
    daemon.wait_guest(A)


def write(daemon: Daemon, place: Path, pattern: int) -> None:
    """Have the disk of the guest written, and the model."""
    with Backdoor(daemon, A) as door:
        door.write(pattern, 3 * M, 65536)
    with place.open("r+b") as file:
        file.seek(3 * M)
        file.write(bytes([pattern]) * 65536)


def leftovers(daemon: Daemon) -> list[str]:
    return [name for name in os.listdir(daemon.root / A) if name.startswith((".", "plan", "merging"))]


def test_c170_a_guest_goes_on_from_its_memory_with_the_disks_of_the_same_instant(daemon: Daemon) -> None:
    place = made(daemon)
    started(daemon)
    write(daemon, place, 1)
    assert [letter(daemon), letter(daemon)] == ["a", "b"]
    result = daemon.vmess(A, "snapshot", "take", "one", "--memory")
    assert (result.returncode, "the guest was paused for at most" in result.stdout) == (0, True), result
    assert "the disks and the memory are those of the same instant" in result.stderr
    memory = daemon.root / A / "snap-one.memory"
    assert memory.stat().st_mode & 0o777 == 0o400
    assert daemon.status(A)["state"] == "running"
    then = place.read_bytes()
    write(daemon, place, 2)
    assert [letter(daemon), letter(daemon)] == ["c", "d"]
    assert "with memory" in daemon.done(A, "snapshot")
    for _ in range(2):
        daemon.done(A, "stop", "force")
        assert "and running" in daemon.done(A, "snapshot", "revert", "one", "--yes")
        assert letter(daemon) == "c"
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert letter(daemon) == "d"
    daemon.done(A, "stop", "force")
    place.write_bytes(then)
    same(daemon, place)
    assert daemon.done(A, "snapshot", "revert", "one", "--no-memory", "--yes") == "back to snapshot one\n"
    started(daemon)
    assert letter(daemon) == "a"
    daemon.done(A, "stop", "force", "snapshot", "delete", "one")
    assert not memory.exists()
    assert images(daemon) == {f"{A}-hda.img"}


def test_c171_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(daemon: Daemon) -> None:
    place = made(daemon)
    assert daemon.vmess(A, "snapshot", "take", "one", "--memory").returncode == 3
    started(daemon)
    daemon.done(A, "snapshot", "take", "one", "--memory")
    write(daemon, place, 2)
    daemon.done(A, "ram", "32M")
    waits = daemon.vmess(A, "snapshot", "take", "two", "--memory")
    assert (waits.returncode, f"RAM of {A} will change at its next start" in waits.stderr) == (1, True), waits
    daemon.done(A, "suspend", "ram", "16M")
    paused = daemon.vmess(A, "snapshot", "take", "two", "--memory")
    assert (paused.returncode, f"{A} is paused" in paused.stderr) == (1, True), paused
    daemon.done(A, "stop", "force", "rng", "on")
    other = daemon.vmess(A, "snapshot", "revert", "one", "--yes")
    assert other.returncode == 1
    assert other.stderr.splitlines() == [
        "vmess: the memory of snapshot one does not fit: RNG is on, and was not set",
        f"  hint: to go back without it: vmess {A} snapshot revert one --no-memory",
    ]
    assert daemon.status(A)["state"] == "stopped"
    same(daemon, place)
    daemon.done(A, "rng", "none", "snapshot", "revert", "one", "--yes")
    assert letter(daemon) == "a"


def test_c172_a_memory_that_cannot_be_kept_or_loaded_leaves_the_guest_or_the_disks(daemon: Daemon) -> None:
    place = made(daemon, RESTART="always")
    started(daemon)
    daemon.done(A, "snapshot", "take", "one", "--memory")
    daemon.done(A, "stop", "force")
    memory = daemon.root / A / "snap-one.memory"
    memory.chmod(0o600)
    with memory.open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) // 2)
    cut = daemon.vmess(A, "snapshot", "revert", "one", "--yes")
    assert (
        cut.returncode,
        f"the disks of {A} are back at one, but its guest does not continue" in cut.stderr,
    ) == (1, True)
    assert cut.stderr.count("\n") == 2, cut.stderr
    daemon.wait_state(A, "stopped")
    same(daemon, place)
    memory.write_bytes(b"{}")
    bad = daemon.vmess(A, "snapshot", "revert", "one", "--yes")
    assert (bad.returncode, "is not the memory of a guest" in bad.stderr) == (1, True), bad
    daemon.done(A, "snapshot", "delete", "one")
    exargs = (daemon.root / A / "EXARGS").read_text()
    (daemon.root / A / "EXARGS").write_text(
        f"{exargs} -device ivshmem-plain,memdev=m -object memory-backend-ram,id=m,size=1M"
    )
    started(daemon)
    blocked = daemon.vmess(A, "snapshot", "take", "one", "--memory")
    assert (blocked.returncode, blocked.stdout) == (1, ""), blocked
    assert f"QEMU of {A} refused to keep the memory" in blocked.stderr
    assert [daemon.status(A)["state"], letter(daemon), listed(daemon)] == ["running", "a", []]
    assert not leftovers(daemon)


@pytest.mark.parametrize("complete", [False, True], ids=["under way", "complete"])
def test_c174_what_a_daemon_that_was_killed_has_left_is_ended_and_the_guest_runs(
    daemon: Daemon, complete: bool
) -> None:
    made(daemon)
    started(daemon)
    daemon.stop(signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as listener, Backdoor(daemon, A) as door:
        listener.bind(str(daemon.directory / "memory.sock"))
        listener.listen(1)
        door.execute("migrate-set-parameters", **{"max-bandwidth": 2**30 if complete else 10_000})
        door.execute("migrate", uri=f"unix:{daemon.directory}/memory.sock")
        with listener.accept()[0] as connection:
            connection.settimeout(10 * UNIT)
            while complete and connection.recv(2**20):
                pass
            wanted = "completed" if complete else "active"
            wait_for(lambda: door.execute("query-migrate").get("status") == wanted, what=wanted)
            assert complete == (door.execute("query-status")["status"] == "postmigrate")
            daemon.start()
            wait_for(lambda: daemon.status(A)["state"] == "running", what="its guest")
            ended = "completed" if complete else "cancelled"
            wait_for(lambda: door.execute("query-migrate")["status"] == ended, what=ended)
    assert letter(daemon) == "a"


@pytest.mark.long
@pytest.mark.timeout(900 * UNIT)
@pytest.mark.parametrize("does", ["take", "revert"])
def test_c173_killed_at_any_moment_it_is_there_with_its_memory_or_not_at_all(
    daemon: Daemon, seed: int, does: str
) -> None:
    place, dice = made(daemon), random.Random(seed)
    started(daemon)
    cut = 0
    for number in range(60):
        where = f"--seed {seed}, round {number}"
        expected = chr(ord(letter(daemon)) + 1)
        write(daemon, place, 1 + number)
        if does == "revert":
            daemon.done(A, "snapshot", "take", "s", "--memory", "stop", "force")
            client = daemon.client(A, "snapshot", "revert", "s", "--yes")
        else:
            client = daemon.client(A, "snapshot", "take", "s", "--memory")
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(dice.uniform(0.0, 0.4))
        kills = number % 3
        if kills != 1:
            daemon.stop(signal.SIGKILL)
        pid = running(daemon) if kills != 0 else None
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        client.communicate(timeout=30 * UNIT)
        cut += client.returncode != 0
        if kills != 1:
            daemon.start()
        wait_for(lambda: not leftovers(daemon), what=f"what is left is settled: {where}")
        wait_for(functools.partial(settled, daemon, pid), what=f"a state: {where}")
        if daemon.status(A)["state"] == "running":
            if does == "revert" or kills == 0:
                assert letter(daemon) == expected, where
            daemon.done(A, "stop", "force")
        there = listed(daemon)
        assert client.returncode or there == ["s"], where
        assert (daemon.root / A / "snap-s.memory").exists() == (there == ["s"]), where
        same(daemon, place)
        if there:
            daemon.done(A, "snapshot", "revert", "s", "--yes")
            assert letter(daemon) == expected, where
            daemon.done(A, "stop", "force", "snapshot", "delete", "s")
            same(daemon, place)
        assert images(daemon) == {f"{A}-hda.img"}, where
        started(daemon)
    assert cut, "nothing was cut short"


def settled(daemon: Daemon, killed: int | None) -> bool:
    """Tell whether the VM is off or runs, and the daemon knows of the QEMU that was killed."""
    status = daemon.status(A)
    return status["state"] in ("stopped", "running") and (killed is None or status["pid"] != killed)


def running(daemon: Daemon) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        found: int = json.loads((daemon.root / A / "run.json").read_text())["pid"]
        return found if Path(f"/proc/{found}").exists() else None
    return None
