"""A real daemon, real clients and real QEMU for the tests; whatever a test starts, it ends.

`daemon` is a `vmessd` process with a VM root of its own, ready by sd_notify(3). Guests are the ROMs of
`guests.py` (up in tens of milliseconds under TCG) or the fake QEMU of `fakeqemu.py`.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import guests
import pytest

TESTS = Path(__file__).parent
FAKE = TESTS / "fakeqemu.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts a daemon, so that `-m 'not qemu'` is the quick part."""
    for item in items:
        if {"daemon", "fake_daemon", "lab"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("qemu")


def wait_for(condition: Callable[[], Any], seconds: float = 10.0, what: str = "it") -> Any:
    """Return the first true value of a condition that no descriptor tells about."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.005)
    return value


def processes_of(root: Path) -> list[int]:
    """Return the pids of all QEMUs, real and fake, whose VM is in a root."""
    marker = f"{root}/".encode()
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            words = Path("/proc", str(int(entry)), "cmdline").read_bytes().split(b"\0")
            if any(word.startswith(marker) and word.endswith(b"/qemu.pid") for word in words):
                found.append(int(entry))
    return found


def end_processes_of(root: Path) -> None:
    """Kill every QEMU of a root and wait until it is gone."""
    for pid in processes_of(root):
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            os.close(fd)
    wait_for(lambda: not processes_of(root), what="the end of all QEMUs")


class Daemon:
    """A vmessd process and the clients that speak to it."""

    def __init__(self, directory: Path, root: Path | None = None) -> None:
        self.root = root or directory / "vms"
        self.socket = directory / "control.sock"
        self.log = directory / "vmessd.log"
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None
        self.arguments = ["--accel", "tcg"]

    def start(self, *, ready: float = 15.0, preexec_fn: Callable[[], object] | None = None) -> "Daemon":
        """Start it and wait for READY=1."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            address = f"\0vmess-test-{os.getpid()}-{id(self)}"
            notify.bind(address)
            notify.settimeout(ready)
            environment = {**os.environ, "NOTIFY_SOCKET": f"@{address[1:]}"}
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [
                        *(sys.executable, "-m", "vmessd", "--vmdir", str(self.root)),
                        *("--socket", str(self.socket), *self.arguments),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=TESTS.parent,
                    preexec_fn=preexec_fn,  # noqa: PLW1509 -- no other thread runs here
                )
            try:
                assert notify.recv(64) == b"READY=1"
            except TimeoutError:
                pytest.fail(f"not ready within {ready} s:\n{self.log.read_text()}")
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon, not the VMs, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.process = None
        return status

    def vmess(self, *words: str | os.PathLike[str], **run: Any) -> subprocess.CompletedProcess[str]:
        """Run the client and return what it said."""
        options: dict[str, Any] = {"timeout": 90, "cwd": TESTS.parent, "stdin": subprocess.DEVNULL, **run}
        return subprocess.run(
            [sys.executable, "-m", "vmessctl", *words],
            env={**os.environ, "VMESS_SOCKET": str(self.socket), "PYTHONPATH": str(TESTS.parent)},
            capture_output=True,
            text=True,
            check=False,
            **options,
        )

    def client(self, *words: str, **popen: Any) -> "subprocess.Popen[str]":
        """Start the client and return the running process."""
        return subprocess.Popen(
            [sys.executable, "-m", "vmessctl", *words],
            env={**os.environ, "VMESS_SOCKET": str(self.socket)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=TESTS.parent,
            **popen,
        )

    def done(self, *words: str | os.PathLike[str]) -> str:
        """Run the client, expect success, and return its standard output."""
        result = self.vmess(*words)
        assert result.returncode == 0, f"vmess {words}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout

    def make(self, vm: str, guest: str | None = "idle", **files: str) -> Path:
        """Make a VM whose firmware is a test guest; `files` are settings such as STOP="1"."""
        directory = self.root / vm
        directory.mkdir(parents=True)
        arguments = shlex.split(files.pop("EXARGS", ""))
        if guest:
            rom = self.directory / f"{guest}.rom"
            rom.write_bytes(guests.rom(guest))
            arguments += ["-bios", str(rom)]
        files.setdefault("RAM", "16M")
        files["EXARGS"] = shlex.join(arguments)
        for name, value in files.items():
            (directory / name).write_text(value)
        return directory

    def make_fake(self, vm: str, mode: str, **files: str) -> Path:
        """Make a VM for the fake QEMU; the daemon has to run with `--qemu` FAKE."""
        return self.make(vm, guest=None, EXARGS=f"-fake {shlex.quote(mode)}", **files)

    def status(self, vm: str) -> dict[str, Any]:
        """Return a VM's status as the daemon tells it."""
        result = self.vmess(vm, "status", "--json")
        assert result.returncode in (0, 3), result.stderr
        status: dict[str, Any] = json.loads(result.stdout)["status"]
        return status

    def wait_state(self, vm: str, state: str, seconds: float = 10.0) -> dict[str, Any]:
        """Wait until a VM is in a state and return its status."""
        found: dict[str, Any] = wait_for(
            lambda: (now := self.status(vm))["state"] == state and now, seconds, f"{vm} {state}"
        )
        return found

    def wait_guest(self, vm: str, said: bytes = b"R", seconds: float = 10.0) -> None:
        """Wait until the guest has printed something on its serial port."""
        log = self.root / vm / "serial.log"
        wait_for(lambda: log.exists() and said in log.read_bytes(), seconds, f"{vm} saying {said!r}")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def close(self) -> None:
        """End the daemon and every QEMU of its root."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
        end_processes_of(self.root)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon with an empty VM root."""
    instance = Daemon(tmp_path)
    try:
        yield instance.start()
    finally:
        instance.close()


@pytest.fixture
def fake_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon whose QEMU is the fake one."""
    instance = Daemon(tmp_path)
    instance.arguments += ["--qemu", str(FAKE)]
    try:
        yield instance.start()
    finally:
        instance.close()
