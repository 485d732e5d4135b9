"""Real daemons for the tests, alone or in a network namespace, the QEMUs they start, and waiting for both."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forkserver
import guests
import netguests
import pace
import psutil
import pytest
from forkserver import Forked

from vmessctl.client import Client
from vmessd.network.links import root_name
from vmessd.network.policy import Access

TESTS = Path(__file__).parents[1]


SUPPORT = TESTS / "support"


def program_of_fake() -> Path:
    """Return the fake QEMU as a program: a few lines beside the Python of the tests, which import its module.

    A module is compiled once, a program at each start: that would be a third of the time until it greets.
    """
    program = Path(sys.prefix, "fakeqemu")
    lines = f"import sys\nsys.path.append({str(SUPPORT)!r})\nimport fakeqemu\nfakeqemu.main(sys.argv[1:])\n"
    text = f"#!{sys.executable} -IS\n{lines}"
    with contextlib.suppress(OSError):
        if program.read_text() == text:
            return program
    unfinished = program.with_name(f"fakeqemu.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.chmod(0o755)
    unfinished.rename(program)  # others may start it at this moment
    return program


FAKE = program_of_fake()


PROGRAM: tuple[str, ...] = ("-m", "vmessd")
CLIENT = (sys.executable, "-IS", str(SUPPORT / "vmess.py"))
"""The client's command as `vmess`: it begins in half the time of `python -m vmessctl`."""
AS_VMESSCTL = (sys.executable, "-m", "vmessctl")
FORKED = {CLIENT: "vmess", AS_VMESSCTL: "vmessctl"}
"""By the command of the client: the name by which it is called."""


STARTERS = {"daemon", "fake_daemon", "lab", "wired", "make_wired", "shared_wired", "stage"}
"""The fixtures that start daemons, or machines with one."""


UNIT = pace.UNIT


def own(letter: str) -> str:
    """A VM name that no other run of the tests has, so that no two want one VNC display at one moment."""
    return letter + "".join("abcdefghij"[int(digit)] for digit in str(os.getpid())) + "0"


def wait_for(condition: Callable[[], Any], seconds: float = 10.0, what: str = "it") -> Any:
    """Return the first true value of a condition that no descriptor tells about; `seconds` are of UNIT.

    It is asked for a quarter of the time at most: some conditions start programs.
    """
    deadline = time.monotonic() + seconds * UNIT
    while True:
        begin = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        assert now < deadline, f"{what} did not happen in {seconds * UNIT:g} s"
        time.sleep(max(0.005, min(0.2, 3 * (now - begin))))


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for what nothing tells about, and let others of the event loop work; `seconds` are of UNIT."""
    async with asyncio.timeout(seconds * UNIT):
        while not condition():  # noqa: ASYNC110 -- as it says
            await asyncio.sleep(0.005)


def processes_of(root: Path) -> list[int]:
    """Return the pids of all QEMUs, real and fake, whose VM is in a root."""
    word = re.compile(rb"(?:^|\0)" + re.escape(os.fsencode(root)) + rb"/[^\0]*/qemu[.]pid(?:\0|$)")
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/cmdline", "rb", 0) as words:
                if word.search(words.read()):
                    found.append(int(entry))
    return found


def has_ended(pid: int) -> bool:
    """Tell whether a process has ended, also if its parent has not asked how."""
    with contextlib.suppress(OSError):
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    return True


def end_processes_of(root: Path) -> None:
    """Kill every QEMU of a root and wait until it is gone."""
    while pids := processes_of(root):
        for pid in pids:
            with contextlib.suppress(OSError):
                fd = os.pidfd_open(pid)
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)
        wait_for(lambda: not processes_of(root), what="the end of all QEMUs")


def generated(kind: str, place: Path) -> list[str]:
    """Have manual pages or completions written, and return the names that were."""
    done = subprocess.run(
        [sys.executable, "-m", "vmessctl.generate", kind, place],
        capture_output=True,
        text=True,
        check=True,
        cwd=TESTS.parent,
        timeout=30 * UNIT,
    )
    written = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert written == sorted(done.stdout.split())
    return written


class Daemon:
    """A vmessd process and the clients that speak to it."""

    forks = True
    """It is forked from a fork server where nothing speaks against that."""

    def __init__(self, directory: Path, root: Path | None = None) -> None:
        self.root = root or directory / "vms"
        self.socket = directory / "control.sock"
        self.log = directory / "vmessd.log"
        self.directory = directory
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.arguments = ["--accel", "tcg"]
        self.inside: tuple[str, ...] = ()
        """A command that becomes the program behind it: what daemon and clients are started by."""
        self.wrapper: tuple[str, ...] = ()
        """The same, for the daemon alone."""
        self.program = PROGRAM

    def start(self, *, ready: float = 15.0, preexec_fn: Callable[[], object] | None = None) -> "Daemon":
        """Start it and wait for READY=1."""
        # A path, since an abstract address ends at a network namespace; a short one, by unix(7).
        with (
            tempfile.TemporaryDirectory(prefix="vmess-test-") as place,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        ):
            address = Path(place, "notify")
            notify.bind(str(address))
            address.chmod(0o666)
            address.parent.chmod(0o711)
            notify.settimeout(ready * UNIT)
            environment = {**os.environ, "NOTIFY_SOCKET": str(address)}
            with self.log.open("ab") as log:
                self.process = self._spawn(environment, log.fileno(), preexec_fn)
            try:
                assert notify.recv(1024).splitlines()[0] == b"READY=1"
            except TimeoutError:
                pytest.fail(f"not ready within {ready * UNIT:g} s:\n{self.log.read_text()}")
        return self

    def _spawn(
        self, environment: dict[str, str], log: int, preexec_fn: Callable[[], object] | None
    ) -> "subprocess.Popen[bytes] | Forked":
        arguments = ("--vmdir", str(self.root), "--socket", str(self.socket), *self.arguments)
        *_, namespace = self.inside or (None,)
        is_plain = not self.wrapper and preexec_fn is None
        if self.forks and is_plain and (not self.inside or self.inside == inside(str(namespace))):
            _, program, *words = self.program  # -m vmessd or -c CODE
            code = None if self.program == PROGRAM else program
            name = "vmessd" if code is None else "-c"
            server = "vmessd, wired" if self.inside and code is None else "vmessd"
            return forkserver.server(server).start(
                (name, *words, *arguments), environment, (log, log), namespace=namespace, code=code
            )
        return subprocess.Popen(
            [*self.inside, *self.wrapper, sys.executable, *self.program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=TESTS.parent,
            preexec_fn=preexec_fn,  # noqa: PLW1509 -- no other thread runs here
        )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon, not the VMs, and return its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20 * UNIT)
        self.process = None
        return status

    def environment(self) -> dict[str, str]:
        """Return the variables of a client."""
        return {**os.environ, "VMESS_SOCKET": str(self.socket), "PYTHONPATH": str(TESTS.parent)}

    def vmess(
        self, *words: str | os.PathLike[str], program: tuple[str, ...] = CLIENT, **run: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the client and return what it said."""
        options: dict[str, Any] = {"timeout": 90 * UNIT, "cwd": TESTS.parent, **run}
        environment = self.environment()
        *_, namespace = self.inside or (None,)
        if (
            self.forks
            and program in FORKED
            and set(options) == {"timeout", "cwd"}
            and (not self.inside or self.inside == inside(str(namespace)))
            and forkserver.server("vmessctl").suits(environment)
        ):
            command = [FORKED[program], *(os.fspath(word) for word in words)]
            return forkserver.ran(command, environment, namespace=namespace, **options)
        return subprocess.run(
            [*self.inside, *program, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            **{"stdin": subprocess.DEVNULL, **options},
        )

    def vmessctl(self, *words: str | os.PathLike[str], **run: Any) -> subprocess.CompletedProcess[str]:
        """As :meth:`vmess`, by the other name of the client."""
        return self.vmess(*words, program=AS_VMESSCTL, **run)

    def client(self, *words: str, **popen: Any) -> "subprocess.Popen[str]":
        """Start the client and return the running process."""
        return subprocess.Popen(
            [*self.inside, *CLIENT, *words],
            env={**os.environ, "VMESS_SOCKET": str(self.socket)},
            text=True,
            cwd=TESTS.parent,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | popen,
        )

    def done(self, *words: str | os.PathLike[str]) -> str:
        """Run the client, expect success, and return its standard output."""
        result = self.vmess(*words)
        assert result.returncode == 0, f"vmess {words}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout

    def make(self, vm: str, guest: str | None = "idle", **files: str) -> Path:
        """Make a VM whose firmware is a test guest; `files` are settings such as STOP="1".

        `talker` is the guest of `netguests.py`, with its model of network card.
        """
        directory = self.root / vm
        directory.mkdir(parents=True)
        arguments = shlex.split(files.pop("EXARGS", ""))
        if guest:
            rom = self.directory / f"{guest}.rom"
            rom.write_bytes(netguests.rom() if guest == "talker" else guests.rom(guest))
            arguments += ["-bios", str(rom)]
        if guest == "talker":
            files.setdefault("NIC_MODEL", netguests.MODEL)
        files.setdefault("RAM", "16M")
        files["EXARGS"] = shlex.join(arguments)
        for name, value in files.items():
            (directory / name).write_text(value)
        return directory

    def make_fake(self, vm: str, mode: str, **files: str) -> Path:
        """Make a VM for the fake QEMU; the daemon has to run with `--qemu` FAKE."""
        return self.make(vm, guest=None, EXARGS=f"-fake {shlex.quote(mode)}", **files)

    def status(self, vm: str) -> dict[str, Any]:
        """Return a VM's status as the daemon tells it, sooner than a client starts: some pass in a second."""
        with contextlib.closing(Client([str(self.socket)])) as client:
            status: dict[str, Any] = client.call("Status", vm=vm)["status"]
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

    def wait_log(self, text: str, seconds: float = 10.0) -> None:
        """Wait until the daemon has logged something."""
        wait_for(lambda: text in self.log.read_text(), seconds, f"{text!r} in the log")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def close(self) -> None:
        """End the daemon and every QEMU of its root, one that is about to become a QEMU as well."""
        spawned: list[psutil.Process] = []
        if self.process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                spawned = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait(10 * UNIT)
        for child in spawned:
            with contextlib.suppress(psutil.NoSuchProcess):  # it knows a pid that was given to another
                child.kill()
        end_processes_of(self.root)


def a_qemu_that_hangs_is_told(daemon: Daemon, vm: str, *words: str) -> None:
    """Have a VM's QEMU stand still, see that a verb says so, and end it."""
    os.kill(daemon.status(vm)["pid"], signal.SIGSTOP)
    result = daemon.vmess(vm, *words)
    assert (result.returncode, result.stdout) == (6, "")
    assert "does not answer" in result.stderr.splitlines()[0]
    daemon.done(vm, "stop", "force")


def inside(namespace: str) -> tuple[str, ...]:
    """Return the words that run a command in a network namespace."""
    return ("ip", "netns", "exec", namespace)


class Namespace:
    """A network namespace: links, addresses and ports of its own, gone when it is closed."""

    _numbers = itertools.count()

    def __init__(self, *, loopback: bool = True) -> None:
        self.name = f"vmesstest-{os.getpid()}-{next(self._numbers)}"
        self.inside = inside(self.name)
        made = subprocess.run(["ip", "netns", "add", self.name], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
        if loopback:
            self.ip("link set lo up")

    def run(self, *words: str, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a command in the namespace to its end."""
        options = {"timeout": 30 * UNIT, "capture_output": True, "text": True, **options}
        done = subprocess.run([*self.inside, *words], check=False, **options)
        assert done.returncode == 0 or not check, f"{words}: {done.stderr}"
        return done

    def ip(self, *lines: str) -> None:
        """Do what lines of ip(8) say, without the word `ip`."""
        batch = "".join(f"{line}\n" for line in lines)
        command = ["ip", "-n", self.name, "-batch", "-"]
        subprocess.run(command, input=batch, text=True, check=True, timeout=30 * UNIT)

    def can(self, line: str) -> bool:
        """Try a line of ip(8) that adds what this kernel may not have."""
        words = ["ip", "-n", self.name, *line.split()]
        return subprocess.run(words, capture_output=True, check=False, timeout=30 * UNIT).returncode == 0

    def links(self) -> dict[str, dict[str, Any]]:
        """Return all links but the loopback by name, with all that ip(8) knows of them."""
        command = ["ip", "-n", self.name, "-details", "-json", "link", "show"]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30 * UNIT)
        return {link["ifname"]: link for link in json.loads(shown.stdout) if link.get("ifname") != "lo"}

    def wiring(self) -> dict[str, str | None]:
        """Return all links but the loopback, each with the bridge it is a port of."""
        return {name: link.get("master") for name, link in self.links().items()}

    def close(self) -> None:
        """End every process of the namespace and remove it."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False, timeout=30 * UNIT
        )
        for pid in listed.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", self.name], check=True, timeout=30 * UNIT)


def held_by(pid: int) -> set[str]:
    """Return the TAPs that a process is attached to (Linux, drivers/net/tun.c: tun_chr_show_fdinfo)."""
    held = set()
    with contextlib.suppress(OSError):
        for entry in os.listdir(f"/proc/{pid}/fdinfo"):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/fdinfo/{entry}").read_text().splitlines()
                held |= {line.split()[1] for line in lines if line.startswith("iff:")}
    return held


class WiredDaemon(Daemon):
    """A daemon in a network namespace."""

    def __init__(self, directory: Path, namespace: Namespace) -> None:
        super().__init__(directory)
        self.namespace = namespace
        self.inside = namespace.inside
        self.ip = namespace.ip
        self.links = namespace.links
        self.wiring = namespace.wiring

    def mark(self, *, leaving: bool = False) -> str:
        """Return the ifalias of a link of this daemon's."""
        return Access(0, root=root_name(self.root)).mark(leaving=leaving)

    def noted(self, vm: str) -> str | None:
        """Return what a VM's NICS file says, None where there is none."""
        file = self.root / vm / "NICS"
        return file.read_text().strip() if file.exists() else None

    def mentions(self, text: str) -> bool:
        """Tell whether the daemon's log holds a text."""
        return text in self.log.read_text()


def lines_of(daemon: WiredDaemon, *words: str) -> list[str]:
    return daemon.done(*words).splitlines()


def refused(daemon: WiredDaemon, status: int, *words: str) -> str:
    """Run the client, expect one line of complaint (and at most one of a hint), and return the line."""
    result = daemon.vmess(*words)
    said = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (status, ""), (words, result)
    assert 1 <= len(said) <= 2, (words, said)
    assert said[0].startswith("vmess: "), (words, said)
    assert len(said) == 1 or said[1].startswith("  hint: "), (words, said)
    return said[0]


def need_wires() -> None:
    """Skip a test where this user or host has no network namespaces or TAPs."""
    missing = [
        *([] if os.geteuid() == 0 else ["root"]),
        *([] if os.path.exists("/dev/net/tun") else ["/dev/net/tun"]),
        *([] if shutil.which("ip") else ["ip(8) of iproute2"]),
    ]
    if missing:
        pytest.skip(f"tests of links in a network namespace need {' and '.join(missing)}")
