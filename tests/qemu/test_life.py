"""A VM's whole life with real QEMU: start, watch, stop, and every way to end."""

import os
import re
import signal
import time

import pytest
from daemons import UNIT, Daemon, wait_for

pytestmark = [pytest.mark.qemu, pytest.mark.every_python]


def test_a_guest_that_listens_is_powered_down(daemon: Daemon) -> None:
    daemon.make("newvm0")
    started = daemon.done("newvm", "start")
    assert started.startswith("Starting VM: ")
    daemon.wait_guest("newvm0")
    pid = daemon.status("newvm")["pid"]
    assert daemon.done("newvm") == f"VM is running, PID: {pid}\n"
    assert daemon.done("newvm", "stop") == f"Stopping VM PID {pid}\n"
    result = daemon.vmess("newvm")
    assert (result.returncode, result.stdout) == (3, "VM not running (powered down as asked 0 s ago)\n")
    assert daemon.status("newvm")["last_exit"]["asked_by"] == os.getuid()


@pytest.mark.parametrize(
    ("guest", "exargs", "text"),
    [
        ("selfoff", "", "guest powered off"),
        ("instant", "", "guest powered off"),
        ("reset", "-no-reboot", "guest reset, and QEMU was told not to reboot"),
        ("panic", "-device pvpanic", "guest panicked"),
    ],
)
def test_a_guest_that_ends_by_itself(daemon: Daemon, guest: str, exargs: str, text: str) -> None:
    daemon.make("newvm0", guest, EXARGS=exargs)
    daemon.done("newvm", "start")
    exited = daemon.wait_state("newvm", "stopped")["last_exit"]
    assert exited["text"] == text
    assert exited["asked_by"] is None
    assert re.fullmatch(rf"VM not running \({text} [0-9] s ago\)\n", daemon.vmess("newvm").stdout)


def test_a_guest_that_resets_goes_on(daemon: Daemon) -> None:
    daemon.make("newvm0", "reset")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0", b"RR")
    assert daemon.status("newvm")["state"] == "running"


def test_arguments_that_qemu_refuses_are_told_in_its_own_words(daemon: Daemon) -> None:
    daemon.make("newvm0", EXARGS="-foo")
    result = daemon.vmess("newvm", "start")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "vmess: VM newvm0: QEMU did not start: -foo: invalid option",
        "  hint: vmess newvm0 log shows its command line and QEMU's messages",
    ]
    assert daemon.vmess("newvm").stdout == (
        "VM not running (QEMU did not start: -foo: invalid option, 0 s ago)\n"
    )
    assert sorted(path.name for path in (daemon.root / "newvm0").iterdir()) == [
        *("EXARGS", "RAM", "exit.json", "qemu.log", "serial.log"),
    ]


def test_a_paused_guest_is_let_run_for_its_stop(daemon: Daemon) -> None:
    daemon.make("newvm0", EXARGS=f"-qmp unix:{daemon.directory}/own.sock,server=on,wait=off")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0")
    qmp(daemon, "stop")
    daemon.wait_state("newvm", "paused")
    assert daemon.done("newvm").endswith("(paused)\n")
    daemon.done("newvm", "stop")
    assert daemon.status("newvm")["last_exit"]["reason"] == "powered_down"


def qmp(daemon: Daemon, command: str) -> None:
    """Give a QMP command over the VM's own second socket."""
    import json
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(daemon.directory / "own.sock"))
        stream = sock.makefile("rw")
        stream.readline()
        for name in ("qmp_capabilities", command):
            stream.write(json.dumps({"execute": name}) + "\n")
            stream.flush()
            while "return" not in json.loads(stream.readline()):
                pass


def test_c08_a_guest_that_ignores_the_button_is_forced_in_time(daemon: Daemon) -> None:
    daemon.make("newvm0", "ignoring", STOP="1")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0")
    began = time.monotonic()
    result = daemon.vmess("newvm", "stop")
    assert result.returncode == 8
    assert time.monotonic() - began < 1 + 5
    assert "had to use force: QMP quit" in result.stderr
    assert daemon.status("newvm")["last_exit"]["reason"] == "forced"


def test_c09_a_stopped_process_is_killed_in_time(daemon: Daemon) -> None:
    daemon.make("newvm0", STOP="1")
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0")
    os.kill(daemon.status("newvm")["pid"], signal.SIGSTOP)
    began = time.monotonic()
    result = daemon.vmess("newvm", "stop")
    assert result.returncode == 8
    assert time.monotonic() - began < 1 + 5
    assert "had to use force: SIGKILL" in result.stderr


def test_c10_a_kill_from_outside_is_noticed_and_named(daemon: Daemon) -> None:
    daemon.make("newvm0")
    daemon.done("newvm", "start")
    pid = daemon.status("newvm")["pid"]
    os.kill(pid, signal.SIGKILL)
    exited = daemon.wait_state("newvm", "stopped", seconds=1)["last_exit"]
    assert (exited["text"], exited["status"]) == ("killed by signal 9", -9)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 1, "the reaping")


def test_c12_fifty_starts_at_once_give_one_qemu(daemon: Daemon) -> None:
    daemon.make("newvm0")
    clients = [daemon.client("newvm", "start") for _ in range(50)]
    results = [(*client.communicate(timeout=60 * UNIT), client.returncode) for client in clients]
    pid = daemon.status("newvm")["pid"]
    assert [(error, status) for _, error, status in results] == [("", 0)] * 50
    for said, *_ in results:
        assert said.startswith("Starting VM: ") or said == f"VM newvm0 is already running, PID: {pid}\n"
    starts = [line for line in daemon.log.read_text().splitlines() if "started, pid" in line]
    assert len(starts) == 1
