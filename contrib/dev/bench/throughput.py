"""What wires carry: two guests with Linux on a bridge and on a cable of ours, and on a bridge made by hand."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.daemon import CHECKOUT, PROGRAMS, Daemon
from bench.measuring import quietly, seconds
from bench.wiring import clear

WINDOW, SETTLE = 2.0, 1.0
"""Seconds for which frames are counted, and before that after each change."""
BOOT_TIME = 120.0
"""Seconds that the guests may take until frames flow."""
FLOWING = 2 << 20
"""Bytes after which they do."""
VMS, INTERFACES = 40, 4
BY_HAND = "a bridge by hand"
BOUNDS: dict[str, tuple[str, str, float]] = {
    "a bridge of ours": ("of a bridge by hand", ">=", 0.97),
    "a cable of ours": ("of a bridge by hand", ">=", 0.5),
    "a bridge of ours, captured": ("of it without a capture", ">=", 0.9),
    f"{VMS} VMs with {INTERFACES} interfaces": ("of one ip -batch", "<=", 1.5),
    "processor time of vmessd meanwhile, without a capture": ("of one processor", "<=", 0.01),
}
"""What is measured, what the outcome is a ratio to, and its bound."""
SERVER = "ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up\nwhile :; do nc -l -p 5001 >/dev/null; done\n"
CLIENT = (
    "ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up\n"
    "while :; do dd if=/dev/zero bs=64k 2>/dev/null | nc 10.0.0.1 5001; sleep 1; done\n"
)
ASK = (
    "import sys; sys.path.insert(0, sys.argv[1]); import linuxguest; "
    "print(linuxguest.options(script=sys.argv[2]))"
)
"""The program that makes a guest; it needs the packages of the tests."""


def options(script: str) -> str:
    """Return the EXARGS of a guest with Linux that runs a script, as tests have it; packages may be fetched."""
    command = [str(PROGRAMS / "python"), "-I", "-c", ASK, str(CHECKOUT / "tests" / "support"), script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bench: no guest with Linux: {done.stderr.strip().rpartition(chr(10))[2]}")
    return str(done.stdout).strip()


class Pair:
    """Two QEMUs, of which the second sends to the first."""

    def __init__(self, tap: str, stop: Callable[[], object], go_on: Callable[[], object]) -> None:
        """`tap` is the TAP of the sender. The clocks of guests that are stopped stand still as well."""
        self.tap = tap
        self.stop, self.go_on = stop, go_on

    def sent(self) -> int:
        """Return the bytes that the sender has sent."""
        return int(pathlib.Path(f"/sys/class/net/{self.tap}/statistics/rx_bytes").read_text())

    def wait(self) -> None:
        """Wait until frames flow, for the first time or again; exit if they do not."""
        deadline, enough = time.monotonic() + BOOT_TIME, self.sent() + FLOWING
        while self.sent() < enough:
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: the guests of {self.tap} exchange no frames")
            time.sleep(0.1)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Let the guests run meanwhile."""
        self.go_on()
        try:
            yield
        finally:
            self.stop()

    def rate(self) -> float:
        """Return the throughput, in bytes per second.

        The links of the guests go down and up when they are connected elsewhere. TCP sends again some seconds
        later.
        """
        self.wait()
        time.sleep(SETTLE)
        before, began = self.sent(), time.perf_counter()
        time.sleep(WINDOW)
        return (self.sent() - before) / (time.perf_counter() - began)


class ByHand:
    """The QEMU of a VM of ours once more, without its daemon, and with a TAP by hand."""

    DROPPED = ("-chardev", "-mon", "-serial", "-add-fd", "-pidfile", "-name", "-vnc", "-S", "-no-reboot")

    def __init__(self, command: list[str], number: int, scratch: pathlib.Path) -> None:
        tap, monitor = f"hand{number}", scratch / f"hand{number}.qmp"
        options: list[list[str]] = []
        for word in command[1:]:
            if word.startswith("-"):
                options.append([word])
            else:
                options[-1].append(word)
        words = [command[0], "-qmp", f"unix:{monitor},server=on,wait=off"]
        for option, *value in options:
            if option == "-netdev":
                words += [option, f"tap,id=net0,ifname={tap},script=no,downscript=no"]
            elif option not in self.DROPPED:
                words += [option, *value]
        quietly("ip", "tuntap", "add", tap, "mode", "tap", "user", "0")
        quietly("ip", "link", "set", tap, "master", "byhand", "up")
        with (scratch / f"{tap}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*words, "-display", "none"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while not monitor.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"bench: QEMU by hand: {(scratch / f'{tap}.log').read_text()}")
            time.sleep(0.02)
        self._link = socket.socket(socket.AF_UNIX)
        self._link.connect(str(monitor))
        self._replies = self._link.makefile("rb")
        self.do("qmp_capabilities")

    def do(self, command: str) -> None:
        """Carry out a QMP command."""
        self._link.sendall(json.dumps({"execute": command}).encode())
        while "return" not in (reply := json.loads(self._replies.readline())):
            if "error" in reply:
                raise SystemExit(f"bench: QEMU by hand: {command}: {reply['error']}")

    def close(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        self._replies.close()
        self._link.close()


def all_do(machines: list[ByHand], command: str) -> None:
    """Have several carry out a QMP command."""
    for machine in machines:
        machine.do(command)


def processor_time(pid: int) -> float:
    """Return the processor time of a process, in seconds."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def started(daemon: Daemon, guests: dict[str, str]) -> list[list[str]]:
    """Start VMs of ours on a bridge; return the command lines of their QEMUs."""
    lines = []
    for vm, exargs in guests.items():
        daemon.call("Make", vm=vm)
        settings = {"RAM": "192M", "NIC_MODEL": "virtio", "NIC_EXARGS": "romfile=", "EXARGS": exargs}
        for name, value in settings.items():
            (daemon.root / vm / name).write_text(value)
        daemon.call("SetNics", vm=vm, count=1, wires=["ours"])
        command(daemon, vm, "start")
        pid = daemon.call("Status", vm=vm)["status"]["pid"]
        lines.append(pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1])
    return lines


@contextlib.contextmanager
def pairs(daemon: Daemon, scratch: pathlib.Path, guests: dict[str, str]) -> Iterator[tuple[Pair, Pair]]:
    """Yield two VMs of ours on a bridge, and the same QEMUs by hand, stopped after frames have flowed."""
    quietly("ip", "link", "add", "byhand", "type", "bridge")
    quietly("ip", "link", "set", "byhand", "up")
    lines, theirs = started(daemon, guests), []
    ours = Pair(
        "b0e0",
        lambda: command(daemon, *guests, "suspend"),
        lambda: command(daemon, *guests, "resume"),
    )
    try:
        ours.wait()
        ours.stop()
        theirs += [ByHand(line, number, scratch) for number, line in enumerate(lines)]
        hand = Pair("hand1", lambda: all_do(theirs, "stop"), lambda: all_do(theirs, "cont"))
        hand.wait()
        hand.stop()
        yield ours, hand
    finally:
        for qemu in theirs:
            qemu.close()
        command(daemon, *guests, "stop", "force")


def command(daemon: Daemon, *words: str) -> None:
    """Run a command line of the client."""
    quietly(PROGRAMS / "vmessctl", *words, env=daemon.environment)


@contextlib.contextmanager
def captured(daemon: Daemon, vm: str) -> Iterator[None]:
    """Capture an interface meanwhile."""
    words = [str(PROGRAMS / "vmessctl"), vm, "capture", "0", "/dev/null"]
    client = subprocess.Popen(
        words, env=daemon.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
        if client.poll() is not None:
            raise SystemExit("bench: the capture has ended")
    finally:
        client.send_signal(signal.SIGINT)
        client.wait()


def carried(daemon: Daemon, scratch: pathlib.Path, guests: dict[str, str], runs: int) -> dict[str, list[float]]:
    """Measure throughputs in turn, in bytes per second, and the processor time of the daemon."""
    found: dict[str, list[float]] = {BY_HAND: [], **{what: [] for what in BOUNDS}}
    bridge, cable, capture, _, processor = BOUNDS
    with pairs(daemon, scratch, guests) as (ours, theirs):
        for _ in range(runs):
            with theirs.running():
                found[BY_HAND].append(theirs.rate())
            with ours.running():
                before, began = processor_time(daemon.process.pid), time.perf_counter()
                found[bridge].append(ours.rate())
                used = processor_time(daemon.process.pid) - before
                found[processor].append(used / (time.perf_counter() - began))
                with captured(daemon, "b0"):
                    found[capture].append(ours.rate())
                command(daemon, "a0", "connect", "0", "-")
                command(daemon, "b0", "connect", "0", "a0:0")
                found[cable].append(ours.rate())
                command(daemon, "b0", "connect", "0", "ours")
                command(daemon, "a0", "connect", "0", "ours")
    return found


def wired(daemon: Daemon, scratch: pathlib.Path, runs: int) -> tuple[list[float], list[float]]:
    """Return the seconds in which interfaces of many VMs are connected, and those of one `ip -batch`."""
    vms, bridges = [f"w-{number}" for number in range(VMS)], [f"seg{number}" for number in range(INTERFACES)]
    for vm in vms:
        daemon.call("Make", vm=vm)
    lines = [f"link add {bridge}x type bridge\nlink set {bridge}x up" for bridge in bridges]
    for number in range(VMS * INTERFACES):
        bridge = bridges[number % INTERFACES]
        lines.append(f"tuntap add t{number}x mode tap user 0\nlink set t{number}x master {bridge}x up")
    batch = scratch / "wires.batch"
    batch.write_text("\n".join(lines) + "\n")
    ours, theirs = [], []

    for _ in range(runs):
        theirs.append(seconds(lambda: quietly("ip", "-batch", batch)))
        clear()
        ours.append(seconds(lambda: command(daemon, *vms, "ifadd", str(INTERFACES), *bridges)))
        command(daemon, *vms, "ifdel")
        command(daemon, "net", "prune")
    return ours, theirs


def judged(found: dict[str, list[float]], batch: list[float]) -> list[dict[str, Any]]:
    """Return medians, outcomes, and whether each outcome is within its bound."""
    middle = {what: statistics.median(figures) for what, figures in found.items()}
    bridge, _, capture, many, processor = BOUNDS
    rows = []
    for what, (of, sign, bound) in BOUNDS.items():
        base = {capture: middle[bridge], many: statistics.median(batch), processor: 1.0}
        outcome = middle[what] / base.get(what, middle[BY_HAND])
        holds = outcome >= bound if sign == ">=" else outcome <= bound
        row = {"what": what, "median": middle[what], "outcome": round(outcome, 3), "of": of}
        rows.append({**row, "sign": sign, "bound": bound, "holds": holds})
    return rows


def measure_wires(scratch: pathlib.Path, guests: dict[str, str], runs: int, as_json: bool) -> bool:
    """Measure and print everything; return whether all bounds hold."""
    daemon = Daemon(scratch, PROGRAMS, "--accel", "tcg")
    try:
        ours, batch = wired(daemon, scratch, runs)
        found = carried(daemon, scratch, guests, runs)
    finally:
        daemon.close()
    many = [*BOUNDS][3]
    rows = judged({**found, many: ours}, batch)
    if as_json:
        json.dump(rows, sys.stdout, indent=1)
        print()
        return all(row["holds"] for row in rows)
    print(
        f"Between two guests with Linux, medians of {runs} runs in turn; {BY_HAND} carries "
        f"{statistics.median(found[BY_HAND]) * 8 / 1e6:.0f} Mbit/s:"
    )
    for row in rows:
        held = "" if row["holds"] else "NOT "
        print(f"  {row['what']:<54} {row['outcome']:6.3f} {row['of']:<24} {held}{row['sign']} {row['bound']:g}")
    return all(row["holds"] for row in rows)


def guests() -> dict[str, str]:
    """Return the EXARGS of the receiver and of the sender, by VM."""
    return {"a0": options(SERVER), "b0": options(CLIENT)}
