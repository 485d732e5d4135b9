"""What a daemon finds when it starts: VMs that went on without it, records that lie, and litter."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import TESTS, UNIT, Daemon, own, processes_of, wait_for

from vmessctl.client import Client

pytestmark = pytest.mark.qemu


A, B, C = own("a"), own("b"), own("c")


def started(daemon: Daemon, vm: str, **files: str) -> int:
    """Make a VM, start it, wait until its guest is up, and return the pid."""
    daemon.make(vm, **files)
    daemon.done(vm, "start")
    daemon.wait_guest(vm)
    pid: int = daemon.status(vm)["pid"]
    return pid


def restart(daemon: Daemon, number: signal.Signals = signal.SIGKILL) -> None:
    daemon.stop(number)
    daemon.start()


def listed(daemon: Daemon) -> dict[str, dict[str, Any]]:
    client = Client([str(daemon.socket)])
    try:
        return {status["name"]: status for status in client.call("List")["vms"]}
    finally:
        client.close()


def is_running(status: dict[str, Any], pid: int) -> bool:
    return (status["state"], status["pid"]) == ("running", pid)


@contextlib.contextmanager
def ended_at_last(process: "subprocess.Popen[Any]") -> Iterator["subprocess.Popen[Any]"]:
    try:
        yield process
    finally:
        process.kill()
        process.wait(10 * UNIT)


# Whoever comes next knows the VMs


def test_c02_a_killed_daemon_is_followed_by_one_that_knows_its_vms(daemon: Daemon) -> None:
    pids = {vm: started(daemon, vm) for vm in (A, B)}
    daemon.make(C)
    restart(daemon)
    found = listed(daemon)
    assert {vm: (status["state"], status["pid"]) for vm, status in found.items()} == {
        A: ("running", pids[A]),
        B: ("running", pids[B]),
        C: ("stopped", None),
    }
    again = daemon.vmess(A, "start")
    assert again.returncode == 0
    assert again.stdout == f"VM {A} is already running, PID: {pids[A]}\n"
    assert daemon.done(A, "stop") == f"Stopping VM PID {pids[A]}\n"
    exited = daemon.status(A)["last_exit"]
    assert (exited["reason"], exited["status"], exited["asked_by"]) == ("powered_down", None, os.getuid())
    assert processes_of(daemon.root) == [pids[B]]


def test_c04_sigterm_leaves_the_vms_to_the_next_daemon(daemon: Daemon) -> None:
    pid = started(daemon, A)
    assert daemon.stop(signal.SIGTERM) == 0
    assert not daemon.socket.exists()
    assert processes_of(daemon.root) == [pid]
    daemon.start()
    assert is_running(daemon.status(A), pid)
    daemon.done(A, "stop", "force")
    assert daemon.status(A)["last_exit"]["reason"] == "forced"
    assert not processes_of(daemon.root)


def test_c10_an_adopted_vm_that_is_killed_is_noticed(daemon: Daemon) -> None:
    pid = started(daemon, A)
    restart(daemon)
    assert is_running(daemon.status(A), pid)
    os.kill(pid, signal.SIGKILL)
    assert daemon.wait_state(A, "stopped", seconds=1)["last_exit"]["asked_by"] is None


def test_an_adopted_vm_can_be_stopped_and_started_again(daemon: Daemon) -> None:
    pid = started(daemon, A)
    restart(daemon)
    assert is_running(daemon.status(A), pid)
    daemon.done(A, "stop")
    daemon.done(A, "start")
    daemon.wait_state(A, "running")
    assert daemon.status(A)["pid"] != pid


SABOTAGE = ("deleted", "empty", "garbage", "of another VM", "a link", "a FIFO", "a directory")


def sabotage(record: Path, how: str, other: Path) -> None:
    """Make a run record useless."""
    record.unlink()
    if how == "empty":
        record.touch()
    elif how == "garbage":
        record.write_bytes(b'\xff{"pid": ')
    elif how == "of another VM":
        record.write_bytes(other.read_bytes())
    elif how == "a link":
        record.symlink_to(other)
    elif how == "a FIFO":
        os.mkfifo(record)
    elif how == "a directory":
        record.mkdir()


@pytest.mark.parametrize("how", SABOTAGE)
def test_c02_a_vm_whose_record_is_lost_is_found_by_looking(daemon: Daemon, how: str) -> None:
    pid, other = started(daemon, A), started(daemon, B)
    daemon.stop(signal.SIGKILL)
    sabotage(daemon.root / A / "run.json", how, daemon.root / B / "run.json")
    daemon.start()
    before = listed(daemon)
    start = daemon.vmess(A, "start")
    assert sorted(processes_of(daemon.root)) == sorted([pid, other])
    assert is_running(before[B], other)
    assert is_running(before[A], pid), f"run.json {how}: {before[A]}"
    assert (start.returncode, start.stdout) == (0, f"VM {A} is already running, PID: {pid}\n")
    assert daemon.vmess(A, "rm", "--yes").returncode == 1
    assert (daemon.root / A / "EXARGS").exists()
    daemon.done(A, "stop")
    assert daemon.status(A)["last_exit"]["reason"] == "powered_down"
    assert is_running(daemon.status(B), other)


def test_an_end_that_nobody_watched_is_told_as_one(daemon: Daemon) -> None:
    pid = started(daemon, A)
    daemon.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(daemon.root), what="the end of QEMU")
    daemon.start()
    result = daemon.vmess(A)
    assert result.returncode == 3
    assert result.stdout.startswith("VM not running (ended while no vmessd was watching ")
    exited = daemon.status(A)["last_exit"]
    assert (exited["reason"], exited["status"], exited["asked_by"]) == ("unseen", None, None)
    assert exited["log"] == [], "a command line is no last word"
    directory = daemon.root / A
    assert not {"run.json", "qmp.sock", "serial.sock", "qemu.pid"} & set(os.listdir(directory))
    noted = (directory / "exit.json").read_bytes()
    restart(daemon)
    assert daemon.status(A)["last_exit"]["reason"] == "unseen"
    assert (directory / "exit.json").read_bytes() == noted
    daemon.done(A, "start")


# A daemon that dies at any moment


def owners(daemon: Daemon) -> dict[str, list[int]]:
    """The QEMUs there are, by their VM."""
    found: dict[str, list[int]] = {}
    for pid in processes_of(daemon.root):
        with contextlib.suppress(OSError, StopIteration):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            path = next(word for word in words if word.endswith("/qemu.pid"))
            found.setdefault(Path(path).parent.name, []).append(pid)
    return found


def is_consistent(daemon: Daemon) -> bool:
    """Each VM runs, with the pid that is said, or is stopped and has no QEMU."""
    there = owners(daemon)
    for vm, status in listed(daemon).items():
        pids = there.pop(vm, [])
        wanted = {"running": [status["pid"]], "stopped": []}.get(status["state"])
        if pids != wanted:
            return False
    return not there


def test_c02_killed_at_random_moments_no_vm_is_lost_or_doubled(daemon: Daemon) -> None:
    dice = random.Random(2)
    vms = [A, B, C]
    for vm in vms:
        daemon.make(vm)
    seen = set()
    for turn in range(15):
        for vm in dice.sample(vms, dice.randint(1, 3)):
            client = Client([str(daemon.socket)])
            if dice.random() < 0.6:
                client.send("Start", {"vm": vm}, more=True)
            else:
                client.send("Stop", {"vm": vm, "force": dice.random() < 0.6}, more=True)
            client.close()
        time.sleep(dice.uniform(0, 0.15))  # the moment is what the dice say
        restart(daemon)
        doubled = {vm: pids for vm, pids in owners(daemon).items() if len(pids) > 1}
        assert not doubled, f"turn {turn}"
        wait_for(lambda: is_consistent(daemon), what=f"order after turn {turn}: {owners(daemon)}")
        seen |= {status["state"] for status in listed(daemon).values()}
    assert seen == {"running", "stopped"}
    for vm in vms:
        assert daemon.vmess(vm, "stop", "force").returncode in (0, 3)
    assert not processes_of(daemon.root)
    for vm in vms:
        left = set(os.listdir(daemon.root / vm))
        assert left <= {"EXARGS", "RAM", "exit.json", "qemu.log", "serial.log"}


STOPPER = """#!/bin/sh
# Stops the daemon that starts it, then becomes QEMU.
{wait}
kill -STOP $PPID
exec qemu-system-x86_64 "$@"
"""


@pytest.mark.parametrize("noted", [False, True], ids=["before it is noted", "before it may run"])
def test_c02_a_start_cut_short_is_carried_through_by_the_next_daemon(tmp_path: Path, noted: bool) -> None:
    daemon = Daemon(tmp_path)
    record = daemon.make(A) / "run.json"
    stopper = tmp_path / "stopper"
    stopper.write_text(STOPPER.format(wait=f"until [ -e '{record}' ]; do sleep 0.01; done" if noted else ""))
    stopper.chmod(0o755)
    daemon.arguments += ["--qemu", str(stopper)]
    try:
        daemon.start()
        client = Client([str(daemon.socket)])
        client.send("Start", {"vm": A}, more=True)
        stat = Path(f"/proc/{daemon.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="the daemon's stop")
        daemon.stop(signal.SIGKILL)
        client.close()
        if not noted:
            record.unlink(missing_ok=True)  # the shell may have been slow
        daemon.start()
        status = daemon.wait_state(A, "running")
        daemon.wait_guest(A)
        assert processes_of(daemon.root) == [status["pid"]]
        daemon.done(A, "stop")
    finally:
        daemon.close()


# A QEMU that does not answer


def test_c06_a_hung_qemu_holds_nobody_up_and_is_not_started_twice(daemon: Daemon) -> None:
    hung, well = started(daemon, A), started(daemon, B)
    daemon.stop(signal.SIGKILL)
    os.kill(hung, signal.SIGSTOP)
    daemon.start(ready=5)
    found = listed(daemon)
    assert (found[A]["state"], found[A]["pid"]) == ("unresponsive", hung)
    assert is_running(found[B], well)
    assert daemon.done(A) == f"VM is running, PID: {hung} (unresponsive: QEMU does not answer)\n"
    start = daemon.vmess(A, "start")
    assert start.returncode == 1
    assert f"VM {A} is already running, PID: {hung}" in start.stderr
    assert daemon.vmess(A, "rm", "--yes").returncode == 1
    assert daemon.vmess(A, "info").returncode == 0
    daemon.done(B, "stop")
    assert owners(daemon) == {A: [hung]}
    os.kill(hung, signal.SIGCONT)
    assert daemon.wait_state(A, "running", seconds=5)["pid"] == hung
    daemon.done(A, "stop")


# Strangers


def ticks_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@pytest.mark.parametrize("forged", ["wrong ticks", "right ticks", "right ticks of another boot"])
def test_c11_a_stranger_with_the_recorded_pid_is_left_alone(daemon: Daemon, forged: str) -> None:
    pid = started(daemon, A)
    record = daemon.root / A / "run.json"
    content = json.loads(record.read_text())
    assert content["pid"] == pid
    daemon.done(A, "stop", "force")
    daemon.stop(signal.SIGKILL)
    with ended_at_last(subprocess.Popen(["sleep", "300"])) as stranger:
        content["pid"] = stranger.pid
        content["ticks"] = ticks_of(stranger.pid) + (forged == "wrong ticks")
        if forged.endswith("boot"):
            content["since"]["boot"] = "00000000-0000-0000-0000-000000000000"
        record.write_text(json.dumps(content))
        daemon.start()
        status = daemon.status(A)
        assert (status["state"], status["last_exit"]["reason"]) == ("stopped", "unseen")
        assert not record.exists()
        record.write_text(json.dumps(content))
        for words in (["stop"], ["stop", "force"]):
            assert daemon.done(A, *words).startswith(f"VM not running: {A}")
        daemon.done(A, "start")
        daemon.wait_guest(A, b"RR")
        daemon.done(A, "stop")
        record.write_text(json.dumps(content))
        daemon.done(A, "rm", "--yes")
        assert not (daemon.root / A).exists()
        assert stranger.poll() is None
        assert Path(f"/proc/{stranger.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


# Litter


def stale_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(place))


@pytest.mark.parametrize("content", [b"", b"1\n", b"4194999\n", b"\xff\0 no pid", b"sleeper"])
def test_c22_whatever_a_pid_file_says_the_vm_starts(daemon: Daemon, content: bytes) -> None:
    with ended_at_last(subprocess.Popen(["sleep", "300"])) as stranger:
        directory = daemon.make(A)
        (directory / "qemu.pid").write_bytes(f"{stranger.pid}\n".encode() if content == b"sleeper" else content)
        stale_socket(directory / "qmp.sock")
        stale_socket(directory / "serial.sock")
        restart(daemon)
        daemon.done(A, "start")
        daemon.wait_guest(A)
        assert int((directory / "qemu.pid").read_text()) == daemon.status(A)["pid"]
        daemon.done(A, "stop")
        assert stranger.poll() is None


def test_c22_a_daemon_clears_away_its_own_litter_and_no_more(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    directory = daemon.make(A)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter").write_text("mine")
    ours = [directory / ".vmess-tmp-RAM.0123abcd", directory / ".vmess-tmp-link.0123abcd"]
    ours[0].write_text("2")
    ours[1].symlink_to(foreign)
    parting = daemon.root / f".vmess-removed-{B}-0123abcd"
    (parting / "sub").mkdir(parents=True)
    (parting / "sub" / "image").write_text("x")
    (parting / "link").symlink_to(foreign)
    theirs = [
        directory / "notes.tmp",
        directory / ".vmess-tmp-dir.0123abcd" / "file",
        daemon.root / ".vmess" / "file",
        daemon.root / "vmess_removed-b0" / "file",
        daemon.root / "Capital0" / ".vmess-tmp-RAM.0123abcd",
    ]
    for file in theirs:
        file.parent.mkdir(exist_ok=True)
        file.write_text("theirs")
    away = daemon.root / ".vmess-removed-link-0123abcd"
    away.symlink_to(foreign)
    stale_socket(daemon.socket)
    try:
        daemon.start()
        assert list(listed(daemon)) == [A]
        assert [file for file in [*ours, parting] if os.path.lexists(file)] == []
        assert [file.read_text() for file in theirs] == ["theirs"] * len(theirs)
        assert (foreign / "letter").read_text() == "mine"
        daemon.done(A, "start")
        daemon.done(A, "stop", "force")
    finally:
        daemon.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("qmp.sock", kind) for kind in ("file", "directory", "link")),
        *(("qemu.pid", kind) for kind in ("directory", "link")),
    ],
)
def test_c22_what_is_not_its_own_is_not_removed_for_a_start(daemon: Daemon, name: str, kind: str) -> None:
    directory = daemon.make(A)
    foreign = daemon.directory / "foreign"
    foreign.write_text("mine")
    place = directory / name
    if kind == "file":
        place.write_text("mine")
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(foreign)
    restart(daemon)
    result = daemon.vmess(A, "start")
    assert result.returncode == 1
    assert result.stderr.startswith(f"vmess: {place} is a ")
    assert "Traceback" not in result.stderr + daemon.log.read_text()
    assert os.path.lexists(place)
    assert foreign.read_text() == "mine"
    assert not processes_of(daemon.root)


# Two daemons


def second(root: Path, control: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "vmessd", "--vmdir", str(root), "--socket", str(control), "--accel", "tcg"],
        capture_output=True,
        text=True,
        check=False,
        cwd=TESTS.parent,
        timeout=20 * UNIT,
    )


def test_c22_a_root_and_a_socket_have_one_daemon(daemon: Daemon) -> None:
    pid = started(daemon, A)
    for root, control, what in (
        (daemon.root, daemon.directory / "other.sock", f"the VM root {daemon.root}"),
        (daemon.directory / "other", daemon.socket, f"the control socket {daemon.socket}"),
    ):
        result = second(root, control)
        assert result.returncode == 7
        complaint, hint = result.stderr.splitlines()[-2:]
        assert complaint == f"vmessd: another vmessd serves {what}"
        assert hint.startswith("  hint: ")
    assert is_running(daemon.status(A), pid)
    assert not (daemon.directory / "other.sock").exists()


@pytest.mark.alone
def test_fifty_vms_are_adopted_within_a_second_though_one_of_them_hangs(daemon: Daemon) -> None:
    vms = [own(f"{one}{other}") for one in "fghij" for other in "abcdefghij"]
    for vm in vms:
        daemon.make(vm)
    assert daemon.vmess(*vms, "start").returncode == 0
    pids = {name: status["pid"] for name, status in listed(daemon).items()}
    os.kill(pids[vms[7]], signal.SIGSTOP)
    daemon.stop(signal.SIGKILL)
    began = time.monotonic()
    daemon.start()
    assert time.monotonic() - began <= 1.0
    found = listed(daemon)
    assert {name: status["pid"] for name, status in found.items()} == pids
    states = {name: status["state"] for name, status in found.items()}
    assert states == {**dict.fromkeys(vms, "running"), vms[7]: "unresponsive"}


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 2**40])
def test_a_recorded_pid_that_is_none_is_nobodys(daemon: Daemon, pid: int) -> None:
    directory = daemon.root / A
    started(daemon, A)
    record = json.loads((directory / "run.json").read_text())
    daemon.done(A, "stop")
    daemon.stop()
    (directory / "run.json").write_text(json.dumps(record | {"pid": pid}))
    daemon.start()
    assert listed(daemon)[A]["state"] == "stopped"
    assert "cannot be watched" not in daemon.log.read_text()
