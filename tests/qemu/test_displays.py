"""VNC displays on a host whose other users want to leave none: starts are neither refused nor slow."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, WiredDaemon, end_processes_of, own

from vmessd.core import names
from vmessd.core.errors import StartFailed
from vmessd.core.lifecycle import State
from vmessd.network import displays
from vmessd.network.displays import LOOKS, NONE, Displays
from vmessd.qemu import command_line, monitor
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

A = own("v")
VNC = "-vnc 127.0.0.1:2223,password=on"
PIECES = 8
"""Processes that share the work, since each has a limit of descriptors."""
AS_SOMEBODY = """
import resource, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = []
for display in range(1 + int(sys.argv[2]), 65536 - 5900, int(sys.argv[3])):
    if sys.argv[1] == "names":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(f"\\0vmess-display-{display}")
    else:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 5900 + display))
        sock.listen(1)
    held.append(sock)
print("here", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def taken(daemon: WiredDaemon, what: str) -> Iterator[None]:
    """Others have all of them in the daemon's network namespace."""
    command = [*daemon.inside, sys.executable, "-IS", "-c", AS_SOMEBODY, what]
    pipe = subprocess.PIPE
    others = [
        subprocess.Popen([*command, str(piece), str(PIECES)], stdin=pipe, stdout=pipe)
        for piece in range(PIECES)
    ]
    try:
        for other in others:
            assert other.stdout is not None
            assert other.stdout.readline() == b"here\n"
        yield
    finally:
        for other in others:
            other.kill()
            other.communicate(timeout=20 * UNIT)


def duration_of(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


@pytest.mark.parametrize("what", ["names", "ports"])
def test_c49_who_takes_all_names_or_ports_of_displays_keeps_no_vm_from_starting(
    wired: WiredDaemon, what: str
) -> None:
    wired.make(A)
    usual = duration_of(lambda: wired.done(A, "start"))
    wired.done(A, "stop", "force")
    with taken(wired, what):
        assert duration_of(lambda: wired.done(A, "start")) < usual + 1
        if what == "names":
            assert f"VNC display: {names.display(A)} " in wired.done(A, "info")
        else:
            assert "-vnc none,password=on" in wired.done(A, "info")
            assert "VNC display" not in wired.done(A, "info")
            wired.stop()
            wired.start()
            wired.done(A, "vnc", "5900")
    if what == "ports":  # a viewer on this host needs a port, too
        viewer = "import socket; print(socket.create_connection(('127.0.0.1', 5900), 5).recv(12))"
        assert "RFB 003.008" in wired.namespace.run(sys.executable, "-c", viewer).stdout


async def test_c49_a_port_that_is_lost_at_the_last_moment_means_another_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Daemon(tmp_path)
    lab.make(A, RESTART="always")
    wanted = names.display(A)
    looks = iter([True])
    really = displays._is_free
    monkeypatch.setattr(displays, "_is_free", lambda number: next(looks, False) or really(number))
    try:
        async with Supervisor(lab.root, Host("/usr/bin/qemu-system-x86_64", "tcg")) as supervisor:
            machine = await supervisor.machine(A)
            with socket.create_server(("127.0.0.1", names.VNC_PORT + wanted)):
                commands = await started(machine)
            assert machine.state is State.running
            assert [command_line.display_of(command) for command in commands[:-1]] == [wanted, wanted + 1]
            assert command_line.display_of(commands[-1]) == wanted + 1
            async for _ in machine.stop(0, force=True):
                pass
    finally:
        end_processes_of(lab.root)


async def started(machine: Machine) -> list[list[str]]:
    """Start a VM and return the command lines that were told."""
    return [progress.command async for progress in machine.start(0)]


async def test_a_port_that_is_lost_again_and_again_ends_the_start_with_qemus_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Daemon(tmp_path)
    lab.make(A)
    monkeypatch.setattr(displays, "_is_free", lambda _number: True)
    try:
        async with Supervisor(lab.root, Host("/usr/bin/qemu-system-x86_64", "tcg")) as supervisor:
            machine = await supervisor.machine(A)
            with socket.create_server(("127.0.0.1", names.VNC_PORT + names.display(A))):
                with pytest.raises(StartFailed, match="Address already in use"):
                    await started(machine)
                tries = (lab.root / A / "qemu.log").read_text().count(" -name ")
            assert tries == displays.LOST_MAX + 1
            assert machine.state is State.stopped
    finally:
        end_processes_of(lab.root)


def test_the_search_for_a_display_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    monkeypatch.setattr(displays, "_is_free", tried.append)
    free = Displays()
    for number in range(50):
        free.hold("other0", 2811 + number)
    assert free.claim(A, 2811) == NONE
    assert tried[:LOOKS] == list(range(2861, 2861 + LOOKS)), "those of other VMs cost nothing"
    assert len(tried) <= 2 * LOOKS
    assert free.claim(A, names.DISPLAY_MAX) == NONE
    assert {number for number in tried if not 1 <= number <= names.DISPLAY_MAX} == set()


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        (
            f"qemu-system-x86_64: {VNC}: Failed to find an available port: Address already in use",
            True,
        ),
        ("qemu-system-x86_64: -netdev user,id=net0,hostfwd=tcp::1-:2: Address already in use", False),
        (f"qemu-system-x86_64: {VNC}: Cannot assign requested address", False),
    ],
)
def test_qemus_word_about_a_lost_display_is_understood(line: str, lost: bool) -> None:
    assert monitor.says_display_taken(["something else", line]) is lost
