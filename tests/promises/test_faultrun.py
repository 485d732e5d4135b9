"""The fault run: the daemon is killed at random moments of starts, stops and rewiring; all is well each time.

What is asked for and when the daemon is killed is drawn from a seed before anything begins, so that
`contrib/check --long --seed N` does the same things at the same moments again. What then happens at those
moments is up to the machine.
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import pytest
from daemons import WiredDaemon, held_by, processes_of
from wired_vms import releasing

from vmessctl.client import Client
from vmessd.core.errors import VmessError
from vmessd.core.names import tap, tap_parts

MakeWired = Callable[..., WiredDaemon]

ROUNDS = 210
SHORT_ROUNDS, SHORT_SEED = 10, 35

VMS = {
    "leaf0": "idle",
    "spine0": "idle",
    "lamb0": "releasing",
    "mule0": "ignoring",
    "mayfly0": "selfoff",
    "cat0": "selfoff",
    "phoenix0": "reset",
    "fickle0": "idle",
}
SETTINGS = {"mule0": {"STOP": "1"}, "cat0": {"RESTART": "always"}, "fickle0": {"CPU": "best"}}
FICKLE = "fickle0"  # the one that is removed and made again
SHORT_LIVED = {"mayfly0", "cat0"}  # end by themselves
SIZES = ("16M", "18M", "20M")
WORDS = ("red", "red", "green", "blue", "-", "-", "user")

LATEST_KILL = 0.06
"""Seconds after the actions were sent; within them QEMUs are spawned, links made and cards plugged."""
ORDER_TIME = 15.0
"""Seconds until everything has to be in order after a restart: a QEMU may have to be asked how it is."""
READY_TIME = 5.0

RUNNING = ("running", "paused")
OFF = ("stopped", "waiting")
CONFIG = {"EXARGS", "RAM"}
MADE = {"CPU"}
"""What a VM that is made has from the beginning."""
OF_A_RUN = {"qmp.sock", "serial.sock", "qemu.pid", "run.json"}


@dataclasses.dataclass(frozen=True)
class Action:
    """One call of the daemon's."""

    method: str
    vm: str
    parameters: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def streams(self) -> bool:
        return self.method in ("Start", "Stop")

    @property
    def rewires(self) -> bool:
        return self.method in ("SetNics", "Connect")

    def __str__(self) -> str:
        return f"{self.method} {self.vm} {dict(self.parameters) or ''}".rstrip()


@dataclasses.dataclass(frozen=True)
class Round:
    """What happens between two starts of the daemon: calls, each list over one connection, and the kill."""

    calls: tuple[tuple[Action, ...], ...]
    delay: float
    again: float | None
    """Seconds after which the next daemon is killed, too, before it can have met all VMs again."""

    def __str__(self) -> str:
        calls = "; ".join(" then ".join(map(str, actions)) for actions in self.calls)
        again = "" if self.again is None else f", and again after {self.again * 1000:.1f}"
        return f"{calls}; killed after {self.delay * 1000:.1f} ms{again}"


def schedule(seed: int, rounds: int) -> list[Round]:
    """Draw a fault run."""
    dice = random.Random(seed)
    return [
        Round(
            tuple(_calls(dice) for _ in range(dice.randint(1, 5))),
            dice.uniform(0, LATEST_KILL),
            dice.uniform(0, LATEST_KILL) if dice.random() < 0.15 else None,
        )
        for _ in range(rounds)
    ]


def _calls(dice: random.Random) -> tuple[Action, ...]:
    vm = dice.choice(list(VMS))
    (kind,) = dice.choices(
        ["start", "stop", "force", "ifadd", "ifdel", "connect", "ram", "ignore", "fickle"],
        [34, 10, 12, 16, 6, 8, 4, 2, 8],
    )
    if kind == "start":
        return (Action("Start", vm),)
    if kind in ("stop", "force"):
        return (Action("Stop", vm, {"force": kind == "force"}),)
    if kind == "ifadd":
        count = dice.randint(0, 3)
        words = [dice.choice(WORDS) for _ in range(count)]
        return (Action("SetNics", vm, {"count": count, "wires": words}),)
    if kind == "ifdel":
        return (Action("SetNics", vm, {"count": 0, "wires": []}),)
    if kind == "connect":
        word = dice.choice(WORDS)
        return (Action("Connect", vm, {"interface": dice.randrange(3), "wire": word}),)
    if kind == "ram":
        return (Action("Set", vm, {"setting": "ram", "value": dice.choice(SIZES)}),)
    if kind == "ignore":
        return (Action("NetIgnore", "", {"name": f"docker{dice.randrange(9)}"}),)
    again = (Action("Remove", FICKLE), Action("Make", FICKLE))
    return dice.choice([again, again[:1], (*again, Action("Start", FICKLE))])


def test_a_seed_is_a_schedule() -> None:
    assert schedule(1, 50) == schedule(1, 50) != schedule(2, 50)
    assert schedule(1, 50)[:10] == schedule(1, 10)


# What there is


def owners(root: Path) -> dict[str, list[int]]:
    """Return the QEMUs there are, by their VM."""
    found: dict[str, list[int]] = {}
    marker = f"{root}/".encode()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for word in Path("/proc", entry, "cmdline").read_bytes().split(b"\0"):
                if word.startswith(marker) and word.endswith(b"/qemu.pid"):
                    found.setdefault(Path(word.decode()).parent.name, []).append(int(entry))
    return found


@contextlib.contextmanager
def client_of(daemon: WiredDaemon) -> Iterator[Client]:
    with contextlib.closing(Client([str(daemon.socket)])) as client:
        yield client


class FaultRun:
    """A fault run and what is known of it so far."""

    def __init__(self, daemon: WiredDaemon, seed: int) -> None:
        self.daemon = daemon
        self.seed = seed
        self.ready: list[float] = []
        self.kills = 0
        self._statuses: dict[str, dict[str, Any]] = {}
        self._rewired: set[str] = set()
        """VMs whose wires may have been changed half way since they were started."""
        self._stops: set[str] = set()
        """VMs that may end by a stop that was asked for."""
        self._before: dict[str, dict[str, Any]] = {}
        self._configs: dict[str, set[str]] = {}

    def make_vms(self) -> None:
        for vm, guest in VMS.items():
            files = {"RAM": SIZES[0], **SETTINGS.get(vm, {})}
            if guest == "releasing":
                releasing(self.daemon, vm, **files)
            else:
                self.daemon.make(vm, guest, **files)

    def run(self, rounds: int) -> None:
        for number, what in enumerate(schedule(self.seed, rounds)):
            try:
                self._round(what)
            except (AssertionError, VmessError) as failure:
                log = "\n".join(self.daemon.log.read_text().splitlines()[-40:])
                pytest.fail(f"--seed {self.seed}, round {number} ({what}): {failure}\n{log}", pytrace=False)

    def _round(self, what: Round) -> None:
        actions = [action for calls in what.calls for action in calls]
        self._rewired |= {action.vm for action in actions if action.rewires}
        stopped_before, self._stops = self._stops, {a.vm for a in actions if a.method in ("Stop", "Remove")}
        may_end = SHORT_LIVED | stopped_before | self._stops
        clients = [Client([str(self.daemon.socket)]) for _ in what.calls]
        for client, calls in zip(clients, what.calls, strict=True):
            for action in calls:
                target = {"vm": action.vm} if action.vm else {}
                client.send(action.method, {**target, **action.parameters}, more=action.streams)
        time.sleep(what.delay)  # the moment is what the dice say
        self._kill_and_restart()
        for client in clients:
            client.close()
        if what.again is not None:
            time.sleep(what.again)
            self._kill_and_restart()
        self._come_to_order()
        for vm, before in self._before.items():
            now = self._statuses.get(vm)
            lost = before["pid"] and vm not in may_end and before["pid"] != (now and now["pid"])
            assert not lost, f"{vm}, pid {before['pid']}, is lost: {now}"
        self._before = dict(self._statuses)
        self._mind_directories({action.method for action in actions if action.vm == FICKLE})

    def _kill_and_restart(self) -> None:
        self.daemon.stop(signal.SIGKILL)
        self.kills += 1
        begun = time.monotonic()
        self.daemon.start()
        self.ready.append(time.monotonic() - begun)
        assert self.ready[-1] <= READY_TIME, f"ready only after {self.ready[-1]:.1f} s"

    def _come_to_order(self) -> None:
        deadline = time.monotonic() + ORDER_TIME
        while complaints := list(self._complaints()):
            if time.monotonic() > deadline:
                raise AssertionError("; ".join(complaints))
            time.sleep(0.01)
        assert "Traceback" not in self.daemon.log.read_text(), "the daemon met what it did not expect"

    # What has to hold

    def _complaints(self) -> Iterator[str]:
        """Yield what is not in order; some of it may only not be so yet."""
        with client_of(self.daemon) as client:
            self._statuses = {status["name"]: status for status in client.call("List")["vms"]}
            nics = {vm: self._nics(client, vm) for vm in self._statuses}
        running = {vm: status["pid"] for vm, status in self._statuses.items() if status["state"] in RUNNING}
        self._rewired -= {vm for vm, status in self._statuses.items() if status["state"] in OFF}
        yield from self._about_processes(running)
        yield from self._about_files(running)
        yield from self._about_links(running, nics)

    @staticmethod
    def _nics(client: Client, vm: str) -> list[dict[str, Any]]:
        with contextlib.suppress(VmessError):  # removed since it was listed
            found: list[dict[str, Any]] = client.call("Nics", vm=vm)["nics"]
            return found
        return []

    def _about_processes(self, running: Mapping[str, int]) -> Iterator[str]:
        there = owners(self.daemon.root)
        for vm, pids in there.items():
            assert len(pids) == 1, f"{vm} has {len(pids)} QEMUs: {pids}"
            if vm not in self._statuses:
                yield f"a QEMU of {vm}, which is not listed: {pids}"
        for vm, status in self._statuses.items():
            if status["state"] not in RUNNING + OFF:
                yield f"{vm} is {status['state']}"
            if there.get(vm, []) != ([running[vm]] if vm in running else []):
                yield f"{vm} is {status['state']}, pid {status['pid']}, and its QEMUs are {there.get(vm)}"

    def _about_files(self, running: Mapping[str, int]) -> Iterator[str]:
        for entry in os.listdir(self.daemon.root):
            if entry.startswith("."):
                yield f"{entry} is left in the VM root"
        for vm in self._statuses:
            entries = set(self._listing(vm))
            yield from (f"{vm}/{entry} is left" for entry in entries if entry.startswith("."))
            found = entries & OF_A_RUN
            if vm not in running and found:
                yield f"{vm} is off and has {', '.join(sorted(found))}"
            if vm in running and found != OF_A_RUN:
                yield f"{vm} runs without {', '.join(sorted(OF_A_RUN - found))}"
            if vm in running and found == OF_A_RUN and self._recorded(vm) != running[vm]:
                yield f"{vm} has pid {running[vm]}, and {self._recorded(vm)} on record"
            if "RAM" in entries and (size := (self.daemon.root / vm / "RAM").read_text().strip()) not in SIZES:
                yield f"{vm} has {size!r} of RAM"

    def _listing(self, vm: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.daemon.root / vm)
        return []

    def _recorded(self, vm: str) -> object:
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.daemon.root / vm / "run.json").read_text())["pid"]
        return None

    def _about_links(
        self, running: Mapping[str, int], nics: Mapping[str, list[dict[str, Any]]]
    ) -> Iterator[str]:
        links = self.daemon.links()
        taps = {name: link for name, link in links.items() if link["linkinfo"]["info_kind"] == "tun"}
        held = {vm: held_by(pid) for vm, pid in running.items()}
        for name, link in links.items():
            if name not in taps and link.get("ifalias") != self.daemon.mark():
                yield f"{name} is not known to be vmess's own"
        for name, link in taps.items():
            vm, index = tap_parts(name) or ("", 0)
            interfaces = {nic["index"] for nic in nics.get(vm, ()) if nic["present"]}
            is_held = name in held.get(vm, ())
            if vm not in self._statuses or index not in interfaces:
                yield f"{name} is left, and no interface of a VM"
            elif link.get("ifalias") == self.daemon.mark(leaving=True) and not is_held:
                yield f"{name} was to go with its QEMU, and is left"
            elif vm in running and not is_held and not self._may_lack_cards(vm):
                yield f"{name} is there, and QEMU does not have it"
        yield from self._about_wires(running, held, taps.keys())

    def _about_wires(
        self, running: Mapping[str, int], held: Mapping[str, set[str]], taps: AbstractSet[str]
    ) -> Iterator[str]:
        for vm in running:
            yield from (f"{name} was deleted under its QEMU" for name in held[vm] - taps)
            for index, word in enumerate((self.daemon.noted(vm) or "").split()):
                missing = not word.startswith("user") and tap(vm, index) not in taps
                if missing and not self._may_lack_cards(vm):
                    yield f"{vm} runs without {tap(vm, index)}, which NICS has in {word}"

    def _may_lack_cards(self, vm: str) -> bool:
        """Tell whether a running VM may have an interface in NICS or a TAP that its QEMU does not have.

        A daemon that dies between noting wires, making TAPs and plugging cards leaves it so: nobody knows what
        was asked for any more. `info` says what QEMU lacks, and the next `ifadd` or start gives it the card.
        """
        return vm in self._rewired

    def _mind_directories(self, asked: set[str]) -> None:
        """See that VM directories are whole or gone; to one that was made anew, do what a person would.

        `asked` is what was asked for of the VM that is removed and made again.
        """
        for vm, config in self._configs.items():
            found = CONFIG & set(self._listing(vm))
            anew = vm == FICKLE and "Make" in asked and "EXARGS" not in found
            gone = vm == FICKLE and "Remove" in asked and vm not in self._statuses
            assert config <= found or anew or gone, f"{vm} is half there: {found} of {config}"
        if FICKLE in self._statuses and "EXARGS" not in self._listing(FICKLE):
            self._furnish()
        self._configs = {vm: CONFIG & set(self._listing(vm)) for vm in self._statuses}

    def _furnish(self) -> None:
        (self.daemon.root / FICKLE / "EXARGS").write_text(f"-bios {self.daemon.directory}/idle.rom\n")
        (self.daemon.root / FICKLE / "RAM").write_text(f"{SIZES[0]}\n")

    # The end

    def finish(self) -> None:
        """See that all VMs still do what they are for, and that nothing is left of them afterwards."""
        daemon = self.daemon
        if not (daemon.root / FICKLE).exists():
            daemon.done(FICKLE, "make")
            self._furnish()
        for vm in VMS:
            assert daemon.vmess(vm, "stop", "force").returncode in (0, 3)
        for vm in VMS:
            daemon.done(vm, "start")
        self._rewired.clear()  # each has all its cards now
        self._come_to_order()
        for vm in VMS:
            stopped = daemon.vmess(vm, "stop").returncode
            assert stopped in ({0, 3} if vm in SHORT_LIVED else {8} if vm == "mule0" else {0}), (
                f"{vm}: {stopped}"
            )
        self._come_to_order()
        assert all(status["state"] == "stopped" for status in self._statuses.values()), self._statuses
        for vm in VMS:
            daemon.done(vm, "ifdel")
            left = set(self._listing(vm))
            own = {*CONFIG, *MADE, *SETTINGS.get(vm, {})}
            assert left <= {*own, "exit.json", "qemu.log", "serial.log"}, (vm, left)
        daemon.done("net", "prune")
        assert daemon.wiring() == {}
        for vm in VMS:
            daemon.done(vm, "rm", "--yes")
        assert os.listdir(daemon.root) in ([], ["NET_IGNORE"])
        assert not processes_of(daemon.root)


def fault_run(daemon: WiredDaemon, seed: int, rounds: int) -> None:
    begun = time.monotonic()
    run = FaultRun(daemon, seed)
    run.make_vms()
    daemon.start()
    run.run(rounds)
    run.finish()
    median, worst = statistics.median(run.ready), max(run.ready)
    starts = daemon.log.read_text().count("started, pid")
    print(
        f"--seed {seed}: {run.kills} kills in {time.monotonic() - begun:.0f} s, {starts} starts seen through; "
        f"ready again in {median:.2f} s, {worst:.2f} s at worst"
    )


@pytest.mark.slow
def test_c02_killed_while_starting_stopping_and_rewiring(make_wired: MakeWired) -> None:
    fault_run(make_wired(), SHORT_SEED, SHORT_ROUNDS)


@pytest.mark.long
@pytest.mark.alone  # each start is in time, which a disk that others write to can delay
@pytest.mark.timeout(3600)
def test_c02_killed_hundreds_of_times(make_wired: MakeWired, seed: int) -> None:
    fault_run(make_wired(), seed, ROUNDS)
