"""A node of a cluster on which something is amiss: nobody else is killed, and no stop fails that need not."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, has_ended, wait_for
from ocf import Resource

VM = "newvm0"
HOLDER = """\
import fcntl, os, struct, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
fcntl.fcntl(file, int(sys.argv[2]), struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
print(flush=True)
time.sleep(600)
"""


@pytest.fixture
def resource(fake_daemon: Daemon) -> Resource:
    fake_daemon.make_fake(VM, "good")
    fake_daemon.done(VM, "cluster", "on")
    return Resource(fake_daemon, VM)


@pytest.fixture
def holders() -> Iterator[list["subprocess.Popen[bytes]"]]:
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for each in started:
            each.kill()
            each.wait()
            assert each.stdout is not None
            each.stdout.close()


def held(
    holders: "list[subprocess.Popen[bytes]]", path: Path, *words: str, kind: int = fcntl.F_SETLK
) -> "subprocess.Popen[bytes]":
    """Have a process lock a file."""
    process = subprocess.Popen(
        [sys.executable, "-ISc", HOLDER, path, str(kind), *words], stdout=subprocess.PIPE
    )
    holders.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.mark.parametrize("kind", ["its own", "of an open file description"])
def test_a_process_that_is_not_the_qemu_is_not_killed(
    resource: Resource, holders: "list[subprocess.Popen[bytes]]", tmp_path: Path, kind: str
) -> None:
    resource.daemon.stop(signal.SIGKILL)
    lock = fcntl.F_SETLK if kind == "its own" else fcntl.F_OFD_SETLK
    other = held(holders, tmp_path / "other.lock", kind=lock)
    pid_file = resource.daemon.root / VM / "qemu.pid"
    pid_file.unlink(missing_ok=True)
    pid_file.hardlink_to(tmp_path / "other.lock")
    for words in (("stop", "--by-lock"), ("stop", "force", "--by-lock"), ("status", "--monitor")):
        done = resource.as_owner(*words)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "holds the lock of its qemu.pid, and is not its QEMU" in done.stderr
    assert other.poll() is None


def test_a_qemu_that_answers_letter_by_letter_is_ended_in_time(
    resource: Resource, holders: "list[subprocess.Popen[bytes]]"
) -> None:
    place = resource.daemon.root / VM
    resource.daemon.stop(signal.SIGKILL)
    (place / "STOP").write_text("1\n")
    (place / "qmp.sock").unlink(missing_ok=True)
    qemu = held(holders, place / "qemu.pid", "-pidfile", str(place / "qemu.pid"))

    def drip() -> None:
        connected, _ = listener.accept()
        try:
            while True:
                connected.sendall(b"{")
                time.sleep(0.2)
        except OSError:
            connected.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "qmp.sock"))
        listener.listen()
        threading.Thread(target=drip, daemon=True).start()
        begun = time.monotonic()
        assert resource.as_owner("stop", "--by-lock", "--timeout", "30").returncode == 0
    assert time.monotonic() - begun < 15 * UNIT
    assert qemu.wait() == -signal.SIGTERM


def test_a_stop_ends_in_time_although_vmessd_hangs_meanwhile(resource: Resource) -> None:
    (resource.daemon.root / VM / "EXARGS").write_text("-fake ignore\n")
    assert resource.do("start") == "success"
    pid = resource.daemon.status(VM)["pid"]
    assert isinstance(pid, int)
    daemon = resource.daemon.pid

    def hang() -> None:
        time.sleep(1)
        os.kill(daemon, signal.SIGSTOP)

    thread = threading.Thread(target=hang)
    thread.start()
    begun = time.monotonic()
    try:
        assert resource.do("stop", CRM_meta_timeout=14_000) == "success"
        assert time.monotonic() - begun < 14
        wait_for(lambda: has_ended(pid))
        shown = resource.as_owner("status", "--monitor", "--json").stdout
        assert json.loads(shown)["no daemon"] == "vmessd did not answer within 5 s"
    finally:
        thread.join()
        os.kill(daemon, signal.SIGCONT)


def test_a_stop_does_not_fail_for_a_parameter_that_is_wrong(resource: Resource) -> None:
    for name in ("New VM", "", "-h", "a--b", "a-", "0a", "web1e0", "x" * 31, "a\nb", "list"):
        expected = "not running" if name == "list" else "misconfigured"
        assert (name, resource.do("monitor", name=name)) == (name, expected)
        assert resource.do("stop", name=name) == "success"
    assert resource.do("start") == "success"
    assert resource.do("stop", unresponsive="restrat", error="", CRM_meta_timeout="") == "success"
    assert resource.daemon.status(VM)["state"] == "stopped"


def test_without_the_program_the_lock_of_qemu_is_the_truth(resource: Resource, tmp_path: Path) -> None:
    gone = tmp_path / "no"
    assert [resource.do(action, program=gone) for action in ("monitor", "start", "stop")] == [
        *("not installed", "not installed", "success")
    ]
    assert resource.do("start") == "success"
    assert resource.do("monitor", program=gone) == "degraded"
    assert resource.do("stop", program=gone) == "failed"
    assert resource.said == f"{gone} is not here, and {VM} runs"
    assert resource.do("stop") == "success"
    assert resource.do("stop", program=gone) == "success"


def test_an_owner_that_cannot_be_read_is_told_once(resource: Resource) -> None:
    place, do = resource.daemon.root / VM, resource.daemon.vmessctl
    (place / "AUTOSTART").write_text("on\n")
    for text in ("nobody\n", "", "pacemaker\u2028web\n", "pacemaker \x1b[31m\n"):
        (place / "OWNER").write_text(text)
        shown = do(VM, "status").stdout
        assert shown.count("OWNER ") == 1, shown
        assert "; OWNER" not in shown
        checked = do(VM, "cluster", "check")
        assert checked.returncode == 1
        assert checked.stderr.startswith(f"vmessctl: VM {VM}: ")
        assert "is not pacemaker" in checked.stderr
        assert resource.do("start") == "failed"
        assert "nothing to start" in do("boot").stdout
