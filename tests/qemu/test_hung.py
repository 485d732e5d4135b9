"""A VM root that hangs: a frozen file system for what is written, and one where nothing answers at all.

The first is real: an ext4 in a file, mounted in a namespace of its own and frozen by fsfreeze(8). A thread that
writes there cannot even be killed.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import UNIT, Daemon, end_processes_of, own, processes_of, wait_for

from vmessctl.client import Client

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.path.exists("/dev/loop-control") or not shutil.which("fsfreeze"),
        reason="needs root, loop devices and fsfreeze(8)",
    ),
]

A, B, C, D = (own(letter) for letter in "abcd")

# Mounts an image, then freezes (-f) and thaws (-u) it as it is told; when nobody is left to tell, it thaws.
FREEZER = """
mount -o loop "$1" "$2" || exit 1
echo mounted
while read -r word; do fsfreeze "$word" "$2" && echo "$word"; done
fsfreeze -u "$2" 2>/dev/null
"""

# vmessd that is less patient.
HASTY = """
from vmessd import __main__
from vmessd.storage import blocking
from vmessd.vm import qemu_run, stop
stop.UNDYING = qemu_run.NOTE_TIME = qemu_run.BURY_TIME = 0.5
blocking.LOOK = 1.0
raise SystemExit(__main__.main())
"""

# vmessd whose every access to its VM root hangs while there is a certain file.
SILENT = """
import os, sys, time
root, flag = sys.argv.pop(1), sys.argv.pop(1)
def hang(path):
    while isinstance(path, str | os.PathLike) and os.fspath(path).startswith(root) and os.access(flag, os.F_OK):
        time.sleep(0.01)
def hanging(call):
    return lambda path, *words, **options: (hang(path), call(path, *words, **options))[1]
os.lstat, os.stat = hanging(os.lstat), hanging(os.stat)
sys.addaudithook(lambda event, words: event in ("open", "os.listdir", "os.scandir") and hang(words[0]))
"""


class Freezing(Daemon):
    """A daemon whose VM root is a file system that can be frozen."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.root.mkdir()
        image = directory / "image"
        with image.open("wb") as file:
            file.truncate(16 * 1024 * 1024)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", image], check=True, timeout=30 * UNIT)
        self.freezer = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", FREEZER, "sh", image, self.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("mounted")
        self.wrapper = ("nsenter", f"--mount=/proc/{self.freezer.pid}/ns/mnt", "--")
        self.place = Path(f"/proc/{self.freezer.pid}/root{self.root}")
        """The VM root as it is seen from outside the namespace."""

    def _expect(self, word: str) -> None:
        assert self.freezer.stdout is not None
        assert self.freezer.stdout.readline() == f"{word}\n"

    def _tell(self, word: str) -> None:
        assert self.freezer.stdin is not None
        self.freezer.stdin.write(f"{word}\n")
        self.freezer.stdin.flush()
        self._expect(word)

    def freeze(self) -> None:
        self._tell("-f")

    def thaw(self) -> None:
        self._tell("-u")

    def make(self, vm: str, guest: str | None = "idle", **files: str) -> Path:
        root, self.root = self.root, self.place
        try:
            return super().make(vm, guest, **files)
        finally:
            self.root = root

    def run(self, *vms: str, **files: str) -> None:
        """Make VMs, and start them."""
        for vm in vms:
            self.make(vm, **files)
            self.done(vm, "start")
            wait_for(functools.partial(self.has_printed, vm), what=f"{vm} up")

    def has_printed(self, vm: str) -> bool:
        return b"R" in (self.place / vm / "serial.log").read_bytes()

    def record(self, vm: str, name: str = "exit.json") -> dict[str, Any] | None:
        """Return a record that is on disk."""
        try:
            found: dict[str, Any] = json.loads((self.place / vm / name).read_text())
        except FileNotFoundError:
            return None
        return found

    def close(self) -> None:
        assert self.freezer.stdin is not None
        self.freezer.stdin.close()  # which thaws
        with self.freezer:
            super().close()


@pytest.fixture
def freezing(tmp_path: Path) -> Iterator[Freezing]:
    """A running daemon whose VM root can be frozen."""
    with contextlib.closing(Freezing(tmp_path)) as daemon:
        daemon.start()
        yield daemon


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Freezing]:
    """The same, less patient."""
    with contextlib.closing(Freezing(tmp_path)) as daemon:
        daemon.program = ("-c", HASTY)
        daemon.start()
        yield daemon


def test_c53_a_stop_by_force_does_not_wait_for_a_frozen_vm_root(freezing: Freezing) -> None:
    freezing.run(A, B, RESTART="always")
    freezing.freeze()
    began = time.monotonic()
    done = freezing.vmess(A, "stop", "force")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 8
    assert len(processes_of(freezing.root)) == 1
    assert freezing.status(A)["state"] == "stopped"
    assert freezing.status(A)["last_exit"]["text"] == "forced off"
    began = time.monotonic()
    refused = freezing.vmess(A, "start")
    assert refused.returncode == 6
    assert refused.stderr.startswith(f"vmess: the files of {A} did not answer for ")
    assert time.monotonic() - began < 3
    assert freezing.status(B)["state"] == "running"
    freezing.thaw()
    wait_for(lambda: freezing.record(A), what="the record of the end")
    wait_for(lambda: freezing.record(A, "run.json") is None, what="the end of the record of the run")
    record = freezing.record(A)
    assert record is not None
    assert (record["reason"], record["asked_by"], record["again"]) == ("forced", os.getuid(), False)
    assert "forced off" in freezing.done(A, "why")
    freezing.done(A, "start")
    assert "unexpected" not in freezing.log.read_text()


def test_c53_a_qemu_that_the_kernel_holds_is_told_and_ends_with_the_frost(hasty: Freezing) -> None:
    hasty.run(A, STOP="1")
    hasty.freeze()
    result = hasty.vmess(A, "stop")  # the guest is off at once, and QEMU is to remove its sockets
    assert result.returncode == 6
    assert "does not end after SIGKILL" in result.stderr
    assert hasty.status(A)["state"] == "stopping"
    again = hasty.vmess(A, "stop", "force")
    assert (again.returncode, "SIGKILL" in again.stderr) == (6, True)
    hasty.thaw()
    assert hasty.wait_state(A, "stopped")["last_exit"]["reason"] in ("powered_down", "forced")
    hasty.done(A, "start")


def test_c53_a_log_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    with contextlib.closing(Freezing(tmp_path)) as daemon:
        daemon.program = ("-c", HASTY)
        daemon.log = daemon.place / "vmessd.log"
        daemon.start()
        daemon.run(A, B)
        daemon.freeze()
        began = time.monotonic()
        for vm in (A, B):
            daemon.done(vm, "stop", "force")
        assert time.monotonic() - began < 8
        assert not processes_of(daemon.root)
        daemon.thaw()
        daemon.wait_log(f"{B}: forced off")
        stops = [line.split(": ", 1)[1] for line in daemon.log.read_text().splitlines() if "Stop" in line]
        assert stops == [f"Stop '{vm}', force yes" for vm in (A, B)]
        assert daemon.stop() == 0


def test_c53_calls_that_hang_take_no_others_place(hasty: Freezing) -> None:
    hasty.run(A, B, C)
    hasty.freeze()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(Client([str(hasty.socket)]))) for _ in range(80)]
        for number, client in enumerate(clients):
            vm = (A, C)[number % 2]
            client.send("Set", {"vm": vm, "setting": "smp", "value": "1"})
        began = time.monotonic()
        assert {hasty.status(vm)["state"] for vm in (A, B, C)} == {"running"}
        assert hasty.done("list").count("running") == 3
        assert time.monotonic() - began < 3
        for vm in (A, B, C):
            hasty.done(vm, "stop", "force")
        assert not processes_of(hasty.root)
    hasty.thaw()
    for vm in (A, B, C):
        wait_for(functools.partial(hasty.record, vm), what="the record")


def test_c53_a_daemon_comes_and_goes_while_its_vm_root_is_frozen(hasty: Freezing) -> None:
    hasty.run(A, B)
    hasty.freeze()
    hasty.done(A, "stop", "force")
    first = hasty.process
    assert first is not None
    first.send_signal(signal.SIGTERM)
    # What its thread waits for cannot be ended; all else of it has gone.
    wait_for(lambda: not hasty.socket.exists(), 15, "the end of the control socket")
    hasty.start()
    assert hasty.wait_state(B, "running")["pid"] in processes_of(hasty.root)
    hasty.done(B, "stop", "force")
    assert not processes_of(hasty.root)
    hasty.thaw()
    assert first.wait(10 * UNIT) == 0
    wait_for(lambda: hasty.record(B), what="the record of the end")
    end = hasty.record(A)
    assert end is not None
    assert end["reason"] in ("forced", "unseen")
    end_processes_of(hasty.root)


class Silent(Daemon):
    """A daemon whose VM root can be made to answer nothing."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.flag = directory / "silence"
        self.program = ("-c", SILENT + HASTY, f"{self.root}", f"{self.flag}")

    def close(self) -> None:
        self.flag.unlink(missing_ok=True)
        super().close()


def test_c53_where_nothing_answers_vms_are_shown_and_stopped(tmp_path: Path) -> None:
    with contextlib.closing(Silent(tmp_path)) as daemon:
        daemon.start()
        for vm in (A, B, C):
            daemon.make(vm)
            daemon.done(vm, "start")
            daemon.wait_guest(vm)
        daemon.done(C, "lock", "mine")
        daemon.flag.touch()
        assert daemon.status(A)["state"] == "running"
        assert daemon.done("list").count("running") == 3
        began = time.monotonic()
        daemon.done(A, "stop", "force")
        daemon.done(B, "stop")
        assert daemon.vmess(C, "stop", "force").returncode == 7
        assert time.monotonic() - began < 8
        assert processes_of(daemon.root) == [daemon.status(C)["pid"]]
        assert daemon.vmess(A, "start").returncode == 6
        assert daemon.vmess(A, "info").returncode == 6
        daemon.done("shutdown")
        assert not processes_of(daemon.root)
        daemon.flag.unlink()
        for vm, reason in ((A, "forced"), (B, "powered_down"), (C, "powered_down")):
            file = daemon.root / vm / "exit.json"
            wait_for(file.exists, what=f"the record of {vm}")
            assert json.loads(file.read_text())["reason"] == reason
        daemon.done(A, "start")
        assert "unexpected" not in daemon.log.read_text()
        assert daemon.stop() == 0
