"""`vmessd --shutdown`: all VMs are powered down, whatever is wrong with the settings, daemon or none."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from daemons import TESTS, UNIT, Daemon, own

from vmessd import powerdown
from vmessd.config import read
from vmessd.core.errors import InvalidValue
from vmessd.qemu import credentials
from vmessd.qemu.process import OptionUse
from vmessd.storage import blocking
from vmessd.vm.host import Host

A, B = own("p"), own("q")

# A file with one mistake, and what of it is said.
MISTAKES = (
    ("vmdir = '{root}'\nunknown = 1\n", "'unknown' is not one of vmdir, "),
    ("vmdir = '{root}'\naccel = 'xen'\n", "accel 'xen' is not one of auto, kvm, tcg"),
    ("vmdir = '{root}'\nshutdown-time = 1\n", "shutdown-time '1' is not auto or a number from 10 "),
    ("vmdir = '{root}'\nallow-links = 'eth1'\n", "allow-links 'eth1' must be a list of strings"),
    ("vmdir = '{root}'\nsocket = ''\n", "socket is empty"),
    ("vmdir = '{root}'\naccel = tcg\n", "is not TOML: Invalid value"),
    ("accel = 'tcg\nvmdir = '{root}'\n", "is not TOML: "),
    ("allow-links = [\n'eth1'\nvmdir = '{root}'\n", "is not TOML: "),
    ("vmdir = '/elsewhere'\nvmdir = '{root}'\n", "is not TOML: Cannot overwrite a value"),
    ("vmdir = '{root}'\n\udcff\n", "is not TOML: "),
    ("vmdir = '{root}'\nx = " + "9" * 5000, "is not TOML: "),
    ("vmdir = '{root}'\nx = " + "[" * 5000, "is not TOML: "),
    ("vmdir = '{root}'\n[vmessd]\nvmdir = '/elsewhere'\n", "'vmessd' is not one of vmdir, "),
    ("vmdir = '{root}'\n[vmessd\nvmdir = '/elsewhere'\n", "is not TOML: "),
)


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_c52_what_can_be_read_is_taken_and_the_rest_passed_over(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "vmessd.toml"
    file.write_bytes(text.replace("{root}", "/srv/vms").encode(errors="surrogateescape"))
    found = read(["--shutdown", "--service", "--config", str(file)], {})
    assert found.vmdir == Path("/srv/vms")
    assert said in " ".join(found.passed_over)
    assert all(words.startswith(f"configuration {file}") for words in found.passed_over)
    assert found.elsewhere
    with pytest.raises(InvalidValue):
        read(["--service", "--config", str(file)], {})


def test_c52_where_nothing_can_be_read_the_defaults_are_taken(tmp_path: Path) -> None:
    wrong = tmp_path / "vmessd.toml"
    wrong.write_text("vmdir = 7\nqemu-user = ''\nexargs = 'maybe'\n")
    for file in (wrong, tmp_path / "missing", tmp_path):
        found = read(["--shutdown", "--service", "--config", str(file)], {"VMESS_VMDIR": "~nobody-at-all/x"})
        assert (found.vmdir, found.qemu_user) == (Path("/var/lib/vmess"), "vmess-qemu")
        assert "vmdir '~nobody-at-all/x' begins with a user who has no home directory" in found.passed_over
    assert not found.elsewhere, "a root was named"
    with pytest.raises(InvalidValue):  # who types it is there to mend it
        read(["--shutdown", "--vmdir", ""], {})


def vmessd(*words: str | os.PathLike[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "vmessd", "--shutdown", *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=TESTS.parent,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said = process.communicate(timeout=30 * UNIT)[1]
    assert "Traceback" not in said
    return process.returncode, said


def record(daemon: Daemon, vm: str) -> str:
    text: str = json.loads((daemon.root / vm / "exit.json").read_text())["text"]
    return text


@pytest.fixture
def dead(daemon: Daemon) -> Daemon:
    """A daemon that died, and left a guest that listens to its power button."""
    daemon.make(A, "listener")
    daemon.done(A, "start")
    daemon.wait_guest(A, b"button.\r\n")
    daemon.stop(signal.SIGKILL)
    return daemon


ALL_WRONG = """
qemu = "no-such-qemu"
qemu-user = "nobody-at-all"
accel = "xen"
socket = "/dev/null"
vmdir = "{root}"
this is no TOML
"""


@pytest.mark.parametrize("text", [ALL_WRONG, ALL_WRONG.replace("this is no TOML", "")], ids=["no TOML", "TOML"])
def test_c52_a_mistake_in_the_file_keeps_no_guest_from_its_button(dead: Daemon, text: str) -> None:
    file = dead.directory / "vmessd.toml"
    file.write_text(text.replace("{root}", str(dead.root)))
    status, said = ended(vmessd("--config", file))
    assert status == 0
    assert record(dead, A) == "powered down as asked"
    assert (dead.root / A / "serial.log").read_bytes().endswith(b"Good night.\r\n")
    for words in ("accel 'xen' is not one of", "qemu-user 'nobody-at-all' is not a user", "; this is ignored"):
        assert words in said
    refused = subprocess.run(
        [sys.executable, "-m", "vmessd", "--config", file], capture_output=True, check=False, cwd=TESTS.parent
    )
    assert refused.returncode == 2, "a daemon does not start with it"


def test_c52_check_says_what_a_shutdown_passes_over(tmp_path: Path) -> None:
    file = tmp_path / "vmessd.toml"
    file.write_text(f"vmdir = '{tmp_path}/vms'\nqemu = 'no-such-qemu'\nunknown = 1\n")
    words = [sys.executable, "-m", "vmessd", "--shutdown", "--check", "--config", str(file)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, cwd=TESTS.parent, timeout=20 * UNIT
    )
    assert f"vmdir = {tmp_path}/vms\n" in done.stdout
    assert done.stderr.startswith(f"vmessd: ignored: configuration {file}: 'unknown' is not one of ")


def test_a_daemon_that_serves_is_asked(daemon: Daemon) -> None:
    daemon.make(A, "listener")
    daemon.make(B, "ignoring", STOP="0")
    daemon.done(A, B, "start")
    for vm in (A, B):
        daemon.wait_guest(vm)
    file = daemon.directory / "vmessd.toml"  # of a socket that no client would look for
    file.write_text(f'vmdir = "{daemon.root}"\nsocket = "{daemon.socket}"\n')
    status, said = ended(vmessd("--config", file))
    assert status == 8
    assert f"{A}: powered down as asked" in said
    assert f"{B}: forced off" in said
    daemon.wait_log("Shutdown ''")
    assert daemon.status(A)["last_exit"]["text"] == "powered down as asked"
    assert ended(vmessd("--config", file))[0] == 0, "nothing is left to be done"


def test_c52_a_daemon_that_dies_meanwhile_is_stood_in_for(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="1", AUTOSTART="on 90")
    daemon.make(B, "listener", AUTOSTART="on 10")
    daemon.done(A, B, "start")
    for vm in (A, B):
        daemon.wait_guest(vm)
    going = vmessd("--vmdir", daemon.root, "--socket", daemon.socket)
    daemon.wait_state(A, "stopping")
    daemon.stop(signal.SIGKILL)
    assert ended(going)[0] == 8
    assert (record(daemon, A), record(daemon, B)) == ("forced off", "powered down as asked")


IMPATIENT = (
    "from vmessd import powerdown, __main__; powerdown.PATIENCE = 0.2; raise SystemExit(__main__.main())"
)


def test_a_root_that_somebody_has_who_does_not_answer_is_told(tmp_path: Path) -> None:
    (tmp_path / "vms").mkdir()
    lock = os.open(tmp_path / "vms", os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                IMPATIENT,
                "--shutdown",
                "--vmdir",
                tmp_path / "vms",
                "--socket",
                tmp_path / "s",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=TESTS.parent,
            timeout=20 * UNIT,
        )
    finally:
        os.close(lock)
    assert done.returncode == 7
    assert f"VMs in {tmp_path}/vms were not powered down: another vmessd serves the VM root" in done.stderr


def test_a_root_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    status, said = ended(vmessd("--vmdir", tmp_path / "vms"))
    assert (status, list(tmp_path.iterdir())) == (0, [])
    assert said.rstrip().endswith(f"there is no VM root {tmp_path}/vms, so nothing to power down")


async def test_a_root_that_does_not_answer_holds_no_other_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, stat = threading.Event(), os.stat
    hung = tmp_path / "hung"
    hung.mkdir()

    def hanging(path: Any, *words: Any, **options: Any) -> os.stat_result:
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(hung)):
            answers.wait(5 * UNIT)
        return stat(path, *words, **options)

    monkeypatch.setattr(blocking, "LOOK", 0.2)
    monkeypatch.setattr(os, "stat", hanging)
    host = Host(qemu="none", accel="tcg")
    try:
        began = time.monotonic()
        slow = asyncio.create_task(powerdown._Root(hung, host, []).down())
        await asyncio.sleep(0)
        assert await powerdown._Root(tmp_path / "nowhere", host, []).down() == 0
        sights = [OptionUse(f"{root}/alpha0/qemu.pid", 4711, 1) for root in (hung, tmp_path)]
        runs_as = credentials.Account("q", 4711, 4711)
        assert await powerdown._other_roots(None, runs_as, sights) == [tmp_path]
        assert time.monotonic() - began < 3
        assert not slow.done()
        slow.cancel()
    finally:
        answers.set()


# Where else there are VMs


async def test_c52_roots_are_found_by_the_processes_of_their_vms(tmp_path: Path) -> None:
    for name in ("known", "other", "foreign"):
        (tmp_path / name / "alpha0").mkdir(parents=True)
    (tmp_path / "link").symlink_to("known")
    if os.geteuid() == 0:
        os.chown(tmp_path / "foreign", 4242, 4242)
    ours, theirs = credentials.Account("q", 4711, 4711), 1
    seen = [
        OptionUse(f"{tmp_path}/other/alpha0/qemu.pid", 4711, 1),
        OptionUse(f"{tmp_path}/other/beta0/qemu.pid", 4711, 1),
        OptionUse(f"{tmp_path}/link/alpha0/qemu.pid", 4711, 1),
        OptionUse(f"{tmp_path}/nowhere/alpha0/qemu.pid", 4711, 1),
        OptionUse(f"{tmp_path}/known/alpha0/qemu.pid", 4711, 1),
        OptionUse(f"{tmp_path}/other/Alpha/qemu.pid", 4711, 1),
        OptionUse(f"{tmp_path}/other/alpha0/other.pid", 4711, 1),
        OptionUse("alpha0/qemu.pid", 4711, 1),
        OptionUse("\0/alpha0/qemu.pid", 4711, 1),
        OptionUse(f"{tmp_path}/alpha0/qemu.pid", theirs, 1),
        *([OptionUse(f"{tmp_path}/foreign/alpha0/qemu.pid", 4711, 1)] if os.geteuid() == 0 else []),
    ]
    known = await powerdown._looked_at(tmp_path / "known")
    assert await powerdown._other_roots(known, ours, seen) == [tmp_path / "other"]


def test_c52_a_user_without_a_name_is_known_by_the_group_of_the_root(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = read(["--shutdown", "--vmdir", str(tmp_path), "--qemu-user", "nobody-at-all"], {})
    group = tmp_path.stat().st_gid
    seen = [
        OptionUse(f"{tmp_path}/alpha0/qemu.pid", 4711, group + 1),
        OptionUse("/elsewhere/alpha0/qemu.pid", 4712, group),
        OptionUse(f"{tmp_path}/alpha0/qemu.pid", 0, group),
        OptionUse(f"{tmp_path}/alpha0/qemu.pid", 4713, group),
    ]
    assert powerdown._account(config, seen, tmp_path.stat()).uid == 4713
    assert powerdown._account(config, seen[:3], tmp_path.stat()) == credentials.own()
    assert powerdown._account(config, seen, None) == credentials.own()
    assert "qemu-user 'nobody-at-all' is not a user of this host; this is ignored" in caplog.text


# The time it may take


@pytest.mark.parametrize("where", ["option", "file"])
def test_a_daemon_that_serves_is_told_in_what_time(daemon: Daemon, where: str) -> None:
    daemon.make(A, "ignoring", STOP="60")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    words = ["--vmdir", str(daemon.root), "--socket", str(daemon.socket)]
    if where == "option":
        words += ["--shutdown-time", "10"]
    else:
        file = daemon.directory / "vmessd.toml"
        file.write_text("shutdown-time = 10\n")
        words += ["--config", str(file)]
    assert ended(vmessd(*words))[0] == 8
    daemon.wait_log(f"{A}: grace period cut from 60 s to ")


async def test_a_queue_that_others_fill_is_waited_in(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                other = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                other.setblocking(False)
                other.connect(str(tmp_path / "s"))
        waits = asyncio.create_task(asyncio.to_thread(powerdown._connected, tmp_path / "s"))
        done, _ = await asyncio.wait({waits}, timeout=0.1)
        assert not done
        listening.accept()[0].close()
        with await asyncio.wait_for(waits, 5 * UNIT) as connected:
            assert connected.getpeername() == str(tmp_path / "s")
