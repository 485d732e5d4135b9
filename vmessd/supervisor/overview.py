"""The list of all VMs: a line for each, by one look at their files and one at the links of the kernel.

What the files of a VM say is kept until one of them changes, so the next list only asks the file system for
their times. The files are read in a thread with a short deadline: if a disk does not answer, the list shows
what was known, and the states of the VMs in any case.
"""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from vmessd.core import names, settings
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import OFF
from vmessd.core.models.views import VMOverview
from vmessd.core.records import RunRecord
from vmessd.core.settings import BY_FILE, LOCK, UNITS
from vmessd.core.wires import Wire
from vmessd.network.links import Nic
from vmessd.network.neighbours import Tables, best, of_interface
from vmessd.qemu import command_line
from vmessd.storage import blocking, images
from vmessd.storage.vmdir import Glance, VMDirectory
from vmessd.vm import launcher
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

PATIENCE = 2.0
"""Seconds that a list waits for the files of the VMs."""
SETTLED = 2.0
"""Seconds after which a file system gives a new time to a changed file; what is younger is read again."""
RAM_DEFAULT = 128 * UNITS["M"]
"""QEMU's memory without `-m` (QEMU, `default_ram_size`)."""

Stamp = tuple[int, int, int]
"""Inode, time of change in nanoseconds, and size of a file."""


class Subject(NamedTuple):
    """A VM, as the event loop hands it to the thread that reads its files."""

    vm: str
    home: VMDirectory
    record: RunRecord | None
    """The run of its QEMU, if there is one."""
    macs: Mapping[int, str]
    """The MACs of the cards of the running QEMU."""
    runs: bool


class Facts(NamedTuple):
    """What the files of a VM say."""

    stamps: Mapping[str, Stamp | None]
    """The directory, under an empty name, and the files that were read."""
    is_settled: bool
    """No file is so young that it may have changed since without a new time."""
    wires: Sequence[Wire] | None = None
    macs: Mapping[int, str] = {}
    locked: bool = False
    autostart: bool = False
    disk: int | None = None
    problem: str | None = None


class Plan(NamedTuple):
    """What follows from the command lines of QEMU, the running one and that of the next start."""

    key: object
    """What it depends on besides the files."""
    pid: int | None
    """The QEMU that runs."""
    cpus: int | None
    """In force, or else from the next start on; as for `memory`."""
    memory: int | None
    pending: bool = False
    """The two command lines differ."""
    problem: str | None = None
    """Why a start would be refused."""


@dataclass
class Known:
    """What is known of a VM."""

    facts: Facts
    plan: Plan | None = None
    addresses: Sequence[str] = ()


class Overviews:
    """Makes the list."""

    def __init__(self, machines: Callable[[], Coroutine[Any, Any, list[Machine]]], host: Host) -> None:
        self._machines = machines
        self._host = host
        self._known: dict[str, Known] = {}
        self._lane = blocking.Lane("the files of the VMs")

    async def all(self, macs: Callable[[str], Mapping[int, str]]) -> list[VMOverview]:
        """Return a line for each VM, by name; `macs` gives the MACs of the cards of a running VM.

        Raises:
            Failed: the VM root cannot be read.
        """
        machines = await self._machines()
        subjects = [
            Subject(
                one.vm,
                one.home,
                one.record(),
                macs(one.vm),
                one.state not in OFF,
            )
            for one in machines
        ]
        with contextlib.suppress(VmessError):  # the lines show what is known
            await self._lane.do(functools.partial(self._read_all, subjects), PATIENCE)
        return [self._line(one) for one in machines]

    # -- In a thread --

    def _read_all(self, subjects: Sequence[Subject]) -> None:
        """Update what is known of the VMs; blocks. Other threads see each VM before or after its update."""
        for vm in self._known.keys() - {subject.vm for subject in subjects}:
            self._known.pop(vm, None)
        for subject in subjects:
            known = self._known.get(subject.vm)
            runs = subject.record is not None
            if known is None or not is_current(subject.home, known.facts, runs=runs):
                self._known[subject.vm] = Known(read_facts(subject.home, runs=runs))
        kvm = self._host.accelerator(None)
        nics, why = self._nics(subjects)
        for subject in subjects:
            known = self._known[subject.vm]
            own = nics.get(subject.vm, [])
            pid = subject.record.pid if subject.record else None
            key = (kvm, pid, tuple(nic.index for nic in own if not nic.leaving))
            if known.plan is None or known.plan.key != key:
                known.plan = self._plan(key, subject, None if why else own)
        self._find_addresses(subjects, nics)

    def _nics(self, subjects: Sequence[Subject]) -> tuple[Mapping[str, list[Nic]], VmessError | None]:
        """Return the interfaces of the VMs, or why they are not known."""
        noted = {subject.vm: self._known[subject.vm].facts.wires for subject in subjects}
        try:
            return self._host.network.nics_of(noted), None
        except VmessError as error:
            return {}, error

    def _plan(self, key: object, subject: Subject, nics: list[Nic] | None) -> Plan:
        """Compare the command lines of QEMU now and at the next start; an error of the latter is a problem."""
        record = subject.record
        display = record.display if record else names.display(subject.vm)
        following: list[str] = []
        problem = None
        try:
            spec = launcher.specify(Glance(subject.home), self._host, display, nics)
            following = command_line.build(spec, self._host.qemu)
        except VmessError as error:
            problem = _within(subject.home, error)
        differs = bool(record and following) and not command_line.same_but_for_wires(
            following, record.argv if record else ()
        )
        pid, now = (record.pid, record.argv) if record else (None, following)
        return Plan(key, pid, *hardware(now), pending=differs, problem=problem)

    def _find_addresses(self, subjects: Sequence[Subject], nics: Mapping[str, list[Nic]]) -> None:
        """Note the addresses of the VMs that run."""
        taps = {one.vm: [nic for nic in nics.get(one.vm, []) if nic.link] for one in subjects if one.runs}
        tables = self._tables() if any(taps.values()) else None
        for subject in subjects:
            known, found = self._known[subject.vm], []
            for nic in taps.get(subject.vm, []):
                later = launcher.mac(subject.vm, nic.index, {"MACS": known.facts.macs})
                mac = subject.macs.get(nic.index, later)
                if tables is not None and nic.link is not None:
                    found += of_interface(nic.index, mac, nic.link.index, tables)
            known.addresses = best(found)

    def _tables(self) -> Tables | None:
        """Return the neighbour and forwarding tables of the host; None if the kernel does not give them."""
        try:
            with self._host.network.kernel() as kernel:
                return Tables(kernel.forwarding(), kernel.neighbours(), {})
        except VmessError:
            return None

    # -- In the event loop --

    def _line(self, machine: Machine) -> VMOverview:
        status, record = machine.status(), machine.record()
        known = self._known.get(machine.vm)
        facts = known.facts if known else None
        plan = known.plan if known and known.plan else None
        if plan is None or plan.pid != status.pid:  # the files do not answer, or it has started meanwhile
            plan = Plan(None, status.pid, *hardware(record.argv if record else ()))
        return VMOverview(
            name=status.name,
            state=status.state,
            pid=status.pid,
            uptime=status.uptime,
            runstate=status.runstate,
            cpus=plan.cpus,
            memory=plan.memory,
            disk=facts.disk if facts else None,
            addresses=list(known.addresses) if known and machine.state not in OFF else [],
            locked=facts.locked if facts else None,
            autostart=facts.autostart if facts else None,
            pending=plan.pending,
            problem=status.problem or (facts.problem if facts else None) or plan.problem,
        )


def _stamp(path: str, *, follow: bool = False, timed: bool = True) -> Stamp | None:
    try:
        found = os.stat(path, follow_symlinks=follow)
    except OSError:
        return None
    return found.st_ino, max(found.st_mtime_ns, found.st_ctime_ns) if timed else 0, found.st_size


def _drive_stamp(path: str, *, runs: bool) -> Stamp | None:
    """Return the stamp of what a drive is; the guest of a running VM changes the time of its images."""
    return _stamp(path, follow=True, timed=not runs)


def is_current(home: VMDirectory, facts: Facts, *, runs: bool) -> bool:
    """Tell whether the files of a VM are those that were read. A change of names changes the directory."""
    path = str(home.path)
    return facts.is_settled and all(
        (_stamp(f"{path}/{name}") if name in BY_FILE or not name else _drive_stamp(f"{path}/{name}", runs=runs))
        == stamp
        for name, stamp in facts.stamps.items()
    )


def _stamps(home: VMDirectory, *, runs: bool) -> dict[str, Stamp | None]:
    """Return the stamps of the directory, under an empty name, and of the files that matter."""
    path = str(home.path)
    drives = {names.disk_file(home.vm, slot) for slot in names.DISKS} | {names.cdrom_file(home.vm)}
    found = {"": _stamp(f"{path}/")}
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            if name in BY_FILE:
                found[name] = _stamp(f"{path}/{name}")
            elif name in drives:
                found[name] = _drive_stamp(f"{path}/{name}", runs=runs)
    return found


def read_facts(home: VMDirectory, *, runs: bool) -> Facts:
    """Read the files of a VM; the first error becomes the problem."""
    stamps, files = _stamps(home, runs=runs), Glance(home)
    youngest = max(stamp[1] for stamp in stamps.values() if stamp) if any(stamps.values()) else 0
    facts = Facts(stamps, youngest < time.time_ns() - int(SETTLED * 1e9))
    values: dict[str, Any] = {}
    problems: list[str] = []
    for file in ("NICS", "MACS", "AUTOSTART"):
        try:
            values[file] = files.read_setting(BY_FILE[file])
        except VmessError as error:
            problems.append(_within(home, error))
    disk = None
    try:
        disk = sum(one.size for one in images.disks(files) if one.slot != names.CDROM)
    except VmessError as error:
        problems.append(_within(home, error))
    return facts._replace(
        wires=values.get("NICS"),
        macs=values.get("MACS") or {},
        locked=LOCK in stamps,
        autostart=values.get("AUTOSTART") is not None,
        disk=disk,
        problem=next(iter(problems), None),
    )


def _within(home: VMDirectory, error: VmessError) -> str:
    """Return the message of an error; a file of the VM at its beginning is named without its directory."""
    return error.message.removeprefix(f"{home}/")


def _value(argv: Sequence[str], option: str, key: str) -> str | None:
    """Return the last value of an option of QEMU, alone or as `key=value`; None without the option."""
    value = next((word for said, word in reversed([*itertools.pairwise(argv)]) if said == option), None)
    if value is None:
        return None
    parts = value.split(",")
    named = [part.removeprefix(f"{key}=") for part in parts if part.startswith(f"{key}=")]
    return named[0] if named else parts[0]


def hardware(argv: Sequence[str]) -> tuple[int | None, int | None]:
    """Return processors and memory of a command line of QEMU; None for both if there is none."""
    return (processors(argv), memory(argv)) if argv else (None, None)


def processors(argv: Sequence[str]) -> int | None:
    """Return the number of virtual processors of a command line of QEMU; None if EXARGS hides it."""
    value = _value(argv, "-smp", "cpus")
    if value is None:
        return 1
    return int(value) if value.isdecimal() and len(value) <= 5 else None


def memory(argv: Sequence[str]) -> int | None:
    """Return the memory in bytes of a command line of QEMU; None if EXARGS hides it."""
    value = _value(argv, "-m", "size")
    try:
        return RAM_DEFAULT if value is None else settings.size(value, bare=UNITS["M"])
    except ValueError:
        return None
