"""Every call into libc fails once: whatever was being done, nothing is lost, doubled, orphaned or stuck.

An operation is done once to count its calls. Then it is done again for each of them, which fails or kills the
daemon; afterwards VM, process, files and links have to agree with each other and with what was answered, and
the same thing has to work. The ordinary tests draw a call for each error, `--long` takes all of them.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import UNIT, WiredDaemon, end_processes_of, held_by, processes_of
from faults import MODES, Faults, library, open_files

from vmessctl.client import Client
from vmessd.core.errors import NoSuchVM, VmessError

pytestmark = pytest.mark.qemu

VM = "leaf0"
ORDER_TIME = 15.0
"""Seconds until everything is in order: a QEMU may have to be asked how it is, and forced."""
OFF = ("stopped", "waiting")
RUNNING = ("running", "paused")
OF_A_RUN = {"qmp.sock", "serial.sock", "qemu.pid", "run.json"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """Something that is asked of the daemon, and what holds when it said that it was done."""

    method: str
    parameters: dict[str, Any]
    done: Callable[["Bench"], bool]
    runs: bool = False
    """The VM runs before it."""
    wires: tuple[str, ...] = ()
    """What the VM has before it."""


@dataclasses.dataclass
class Bench:
    """A daemon whose calls fail, and its only VM."""

    daemon: WiredDaemon
    faults: Faults
    iso: Path
    descriptors: int = 0

    # Asking

    def ask(self, method: str, **parameters: Any) -> str | None:
        """Make a call to its last reply; return the error's name, None for a good end."""
        try:
            with contextlib.closing(Client([str(self.daemon.socket)], 30)) as client:
                client.send(method, parameters, more=method in ("Start", "Stop"))
                while client.receive()[1]:
                    pass
        except VmessError as error:
            return type(error).__name__
        return None

    def status(self) -> dict[str, Any] | None:
        try:
            return self.daemon.status(VM)
        except NoSuchVM:
            return None

    def state(self) -> str:
        status = self.status()
        return "gone" if status is None else str(status["state"])

    def noted(self) -> list[str]:
        return (self.daemon.noted(VM) or "").split()

    def taps(self) -> set[str]:
        return {name for name in self.daemon.links() if name.startswith(f"{VM}e")}

    def entries(self) -> set[str]:
        with contextlib.suppress(FileNotFoundError):
            return set(os.listdir(self.daemon.root / VM))
        return set()

    # One round

    def prepare(self, operation: Operation) -> None:
        self.daemon.make(VM, "idle", STOP="1")
        if operation.wires:
            assert self.ask("SetNics", vm=VM, count=len(operation.wires), wires=list(operation.wires)) is None
        if operation.runs:
            assert self.ask("Start", vm=VM) is None

    def strike(self, operation: Operation, number: int, error: int) -> None:
        """Do the operation with one of its calls failing, and see that all is well."""
        self.prepare(operation)
        pids = processes_of(self.daemon.root)
        with self.faults.struck_at(number, error):
            answer = self.ask(operation.method, vm=VM, **operation.parameters)
        if self.faults.struck and error == 0:
            self.restart()
        self.come_to_order()
        if answer is None:
            assert operation.done(self), f"said to be done, and {self.picture()}"
        elif operation.runs and operation.method != "Stop" and error:
            assert processes_of(self.daemon.root) == pids, f"the QEMU is lost: {self.picture()}"
        surprised = "Traceback" in self.daemon.log.read_text()
        assert not surprised, "the daemon met what it did not expect"
        self.again(operation)
        self.clear()

    def again(self, operation: Operation) -> None:
        """What failed works now; what was done already is refused in words at most.

        A guest that was to let go of a card again, and does not, keeps it until it is off.
        """
        answer = self.ask(operation.method, vm=VM, **operation.parameters)
        if answer == "AlreadyRunning" and len(self.taps()) > len(self.noted()):
            assert self.ask("Stop", vm=VM, force=True) is None
            assert self.ask("Start", vm=VM) is None
            answer = self.ask(operation.method, vm=VM, **operation.parameters)
        assert operation.done(self), f"a second time: {answer}, {self.picture()}"

    def restart(self) -> None:
        assert self.daemon.process is not None
        assert self.daemon.process.wait(10 * UNIT) == -signal.SIGKILL
        self.daemon.start()
        self.descriptors = open_files(self.daemon.pid)

    def come_to_order(self) -> None:
        deadline = time.monotonic() + ORDER_TIME
        while complaints := list(self.complaints()):
            if time.monotonic() > deadline:
                raise AssertionError("; ".join(complaints))
            time.sleep(0.01)

    def complaints(self) -> Iterator[str]:
        """Yield what does not fit together; some of it may only not fit yet."""
        state, qemus, entries, taps = self.state(), processes_of(self.daemon.root), self.entries(), self.taps()
        assert len(qemus) < 2, f"{VM} has {len(qemus)} QEMUs"
        if state not in (*OFF, *RUNNING, "gone"):
            yield f"{VM} is {state}"
        if bool(qemus) is not (state in RUNNING):
            yield f"{VM} is {state}, and its QEMUs are {qemus}"
        if not qemus:
            told = self.daemon.log.read_text()  # what cannot be removed goes with the next start
            why = {entry: [f"/{entry} cannot be"] for entry in OF_A_RUN}
            why["run.json"].append("/exit.json cannot be")
            left = [entry for entry in entries & OF_A_RUN if not any(words in told for words in why[entry])]
            if f"/{VM} cannot be opened" not in told:
                yield from (f"{VM} is {state}, and has {entry}" for entry in left)
        yield from (
            f"{entry} is left" for entry in {*entries, *os.listdir(self.daemon.root)} if entry[0] == "."
        )
        wanted = {f"{VM}e{index}" for index, word in enumerate(self.noted()) if word != "user"}
        held = set().union(*map(held_by, qemus))  # a guest may keep a card that is to go until it is off
        if state != "gone" and taps - wanted - held:
            yield f"{taps - wanted - held} are there, and NICS is {self.noted()}"
        if state == "gone" and taps:
            yield f"{taps} are left of a VM that is gone"

    def picture(self) -> str:
        qemus = processes_of(self.daemon.root)
        return f"{self.state()}, QEMUs {qemus}, NICS {self.noted()}, TAPs {self.taps()}, files {self.entries()}"

    def clear(self) -> None:
        """Remove the VM by the daemon's own means, and see that nothing is left."""
        self.ask("Stop", vm=VM, force=True)
        assert self.ask("Remove", vm=VM) in (None, "NoSuchVM")
        assert self.ask("NetPrune") is None
        assert self.daemon.wiring() == {}
        assert set(os.listdir(self.daemon.root)) <= {"NET_IGNORE"}
        assert not processes_of(self.daemon.root)

    def mend(self) -> None:
        """Begin the next round from nothing after one that went wrong."""
        end_processes_of(self.daemon.root)
        self.daemon.stop(signal.SIGKILL)
        for name in self.daemon.wiring():
            subprocess.run(["ip", "-n", self.daemon.namespace.name, "link", "del", name], check=False)
        for entry in os.listdir(self.daemon.root):
            shutil.rmtree(self.daemon.root / entry, ignore_errors=True)
        self.daemon.log.write_text("")
        self.daemon.start()


OPERATIONS = {
    "start": Operation("Start", {}, lambda b: b.state() == "running", wires=("red", "-")),
    "stop": Operation("Stop", {"force": False}, lambda b: b.state() == "stopped", runs=True, wires=("red",)),
    "force": Operation("Stop", {"force": True}, lambda b: b.state() == "stopped", runs=True, wires=("red",)),
    "ifadd": Operation(
        "SetNics",
        {"count": 3, "wires": ["red", "blue", "-"]},
        lambda b: b.noted() == ["red", "blue", "-"] and len(b.taps()) == 3,
        wires=("red",),
    ),
    "ifadd-live": Operation(
        "SetNics",
        {"count": 2, "wires": ["red", "blue"]},
        lambda b: b.noted() == ["red", "blue"] and len(b.taps()) == 2,
        runs=True,
        wires=("red",),
    ),
    "ifdel": Operation(
        "SetNics", {"count": 0, "wires": []}, lambda b: not b.noted() and not b.taps(), wires=("red", "-")
    ),
    "cdrom": Operation("Set", {"setting": "cdrom"}, lambda b: f"{VM}-cdrom.iso" in b.entries()),
    "hda": Operation("Set", {"setting": "hda", "value": "2M"}, lambda b: f"{VM}-hda.img" in b.entries()),
    "rm": Operation("Remove", {}, lambda b: b.state() == "gone" and not b.taps(), wires=("red", "-")),
}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled once."""
    return library(tmp_path_factory.mktemp("libcfaults"))


@pytest.fixture
def bench(make_wired: Callable[..., WiredDaemon], tmp_path: Path, built: Path) -> Iterator[Bench]:
    """A daemon whose calls can be made to fail."""
    daemon = make_wired()
    iso = tmp_path / "boot.iso"
    iso.write_bytes(bytes(2048))
    with Faults(tmp_path, built) as faults:
        daemon.wrapper = faults.wrapper
        daemon.start()
        yield Bench(daemon, faults, iso)


def operation_of(bench: Bench, name: str) -> Operation:
    operation = OPERATIONS[name]
    if name == "cdrom":
        operation = dataclasses.replace(operation, parameters={"setting": "cdrom", "value": str(bench.iso)})
    return operation


def calls_of(bench: Bench, operation: Operation) -> int:
    """Count the calls of an operation that succeeds."""
    bench.prepare(operation)
    with bench.faults.struck_at(0, 0):
        assert bench.ask(operation.method, vm=VM, **operation.parameters) is None
    count = bench.faults.count
    assert operation.done(bench)
    bench.come_to_order()
    bench.clear()
    return count


def inject(bench: Bench, name: str, choose: Callable[[int], list[tuple[int, str]]]) -> None:
    """Strike an operation at the calls and with the errors that `choose` picks; report all that went wrong."""
    operation, failures = operation_of(bench, name), []
    count = calls_of(bench, operation)
    assert count > 10, "the library is not loaded"
    for number, mode in choose(count):
        try:
            bench.strike(operation, number, MODES[mode])
        except (AssertionError, VmessError) as failure:
            what = f"call {number}, {bench.faults.name(number)}, {mode}: {str(failure).splitlines()[0]}"
            failures.append("\n    ".join([what, *bench.daemon.log.read_text().splitlines()[-3:]]))
            bench.mend()
    print(f"{name}: {count} calls, {len(failures)} failures")
    if failures:
        pytest.fail(f"{name}, of {count} calls:\n" + "\n".join(failures), pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_c78_an_error_of_libc_loses_nothing(bench: Bench, name: str) -> None:
    dice = random.Random(name)
    inject(bench, name, lambda count: [(dice.randint(1, count), mode) for mode in MODES])


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_c78_an_error_of_any_call_of_libc_loses_nothing(bench: Bench, name: str, mode: str) -> None:
    inject(bench, name, lambda count: [(number, mode) for number in range(1, count + 1)])
