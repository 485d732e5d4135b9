"""What the files of the VMs say, and what follows for the next start.

It is kept until one of the files changes, so the next look only asks the file system for their times. The files
are read in a thread with a short deadline.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from vmessd.core import names, ownership, quantities, refusals, startup
from vmessd.core.errors import NoSuchVM, VmessError
from vmessd.core.quantities import UNITS
from vmessd.core.records import RunRecord
from vmessd.core.settings import BY_FILE, LOCK, OWNER
from vmessd.core.wires import Wire
from vmessd.network.nics import Nic
from vmessd.network.policy import Tap
from vmessd.qemu import command_line
from vmessd.qemu.shared_directories import MEMORY_DEFAULT
from vmessd.storage import cloud_init, images, owner
from vmessd.storage.vmdir import Glance, VMDirectory
from vmessd.vm import launcher, pending
from vmessd.vm.host import Host

SETTLED = 2.0
"""Seconds after which a file system gives a new time to a changed file; what is younger is read again."""

TEXTS = frozenset({*BY_FILE, *cloud_init.SOURCES, startup.CONFIGURATION})
"""The files that people write."""

Stamp = tuple[int, int, int]
"""Inode, time of change in nanoseconds, and size of a file."""


class Subject(NamedTuple):
    """A VM, as the event loop hands it to the thread that reads its files."""

    vm: str
    home: VMDirectory
    record: RunRecord | None
    """The run of its QEMU, if there is one."""


class Facts(NamedTuple):
    """What the files of a VM say."""

    stamps: Mapping[str, Stamp | None]
    """The directory, under an empty name, and the files that were read."""
    is_settled: bool
    """No file is so young that it may have changed since without a new time."""
    wires: Sequence[Wire] | None = None
    macs: Mapping[int, str] = {}
    locked: bool = False
    owner: str = ""
    """Who decides about it in place of people; empty for nobody, and for one that cannot be read."""
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
    """Something was changed since the start."""
    problem: str | None = None
    """Why a start would be refused."""


class Reading(NamedTuple):
    """What is known of a VM."""

    facts: Facts
    plan: Plan

    @property
    def problem(self) -> str | None:
        """What is wrong with its files."""
        return self.facts.problem or self.plan.problem


class Readings:
    """The latest readings of all VMs. Threads update them; a reading is replaced as a whole."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._known: dict[str, Reading] = {}

    def get(self, vm: str) -> Reading | None:
        """Return what is known of a VM without a look at its files; None if they were never read."""
        return self._known.get(vm)

    def forget_all_but(self, vms: Collection[str]) -> None:
        """Forget the VMs that no longer exist."""
        for vm in self._known.keys() - set(vms):
            self._known.pop(vm, None)

    def read(self, subject: Subject, files: VMDirectory | None = None) -> Reading:
        """Return what the files of a VM say, read again if one of them has changed; blocks.

        `files` are those of the subject, if they were read in part already.
        """
        known = self._known.get(subject.vm)
        runs = subject.record is not None
        key = (self._host.accelerator(None), subject.record.pid if subject.record else None)
        facts = known.facts if known and is_current(subject.home, known.facts, runs=runs) else None
        if known and facts and known.plan.key == key:
            return known
        files = files or Glance(subject.home)
        facts = facts or read_facts(files, runs=runs)
        reading = self._known[subject.vm] = Reading(facts, self._plan(key, subject, facts, files))
        return reading

    def _plan(self, key: object, subject: Subject, facts: Facts, files: VMDirectory) -> Plan:
        """Compare the present QEMU with that of the next start; an error of the latter is a problem."""
        record = subject.record
        display = record.display if record else names.display(subject.vm)
        following: list[str] = []
        changed = False
        problem = None
        try:
            spec = launcher.specify(files, self._host, display, _nics(subject, facts))
            following = command_line.build(spec, self._host.qemu)
            if record is not None:
                changed = pending.is_changed(record, pending.hardware(files, spec.disks), spec.disks, following)
        except VmessError as error:
            problem = _within(subject.home, error)
        pid, now = (record.pid, record.argv) if record else (None, following)
        return Plan(key, pid, *hardware(now), pending=changed, problem=problem)


def _nics(subject: Subject, facts: Facts) -> list[Nic]:
    """Return the interfaces to compare command lines with; their connections do not matter."""
    if subject.record is not None:
        indices = [*command_line.cards_of(subject.record.argv)]
    else:
        indices = [*range(len(facts.wires or ()))]
    return [Nic(index, Tap.of(subject.vm, index), None, None, None) for index in indices]


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
        (_stamp(f"{path}/{name}") if name in TEXTS or not name else _drive_stamp(f"{path}/{name}", runs=runs))
        == stamp
        for name, stamp in facts.stamps.items()
    )


def _stamps(home: VMDirectory, *, runs: bool) -> dict[str, Stamp | None]:
    """Return the stamps of the directory, under an empty name, and of the files that matter."""
    path = str(home.path)
    found = {"": _stamp(f"{path}/")}
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            if name in TEXTS:
                found[name] = _stamp(f"{path}/{name}")
            elif names.drive_of(home.vm, name):
                found[name] = _drive_stamp(f"{path}/{name}", runs=runs)
    return found


def read_facts(files: VMDirectory, *, runs: bool) -> Facts:
    """Read the files of a VM; the first error becomes the problem."""
    stamps = _stamps(files, runs=runs)
    youngest = max(stamp[1] for stamp in stamps.values() if stamp) if any(stamps.values()) else 0
    facts = Facts(stamps, youngest < time.time_ns() - int(SETTLED * 1e9))
    values: dict[str, Any] = {}
    problems: list[str] = []
    for file in ("NICS", "MACS", "AUTOSTART"):
        try:
            values[file] = files.read_setting(BY_FILE[file])
        except VmessError as error:
            problems.append(_within(files, error))
    disk = None
    try:
        if foreign := images.foreign(files):
            problems.append(refusals.foreign_drives(files.vm, foreign))
        disk = sum(one.size for one in images.disks(files) if one.slot != names.CDROM)
    except VmessError as error:
        problems.append(_within(files, error))
    owned_by = owner.decides(files) if OWNER in stamps else ""
    return facts._replace(
        wires=values.get("NICS"),
        macs=values.get("MACS") or {},
        locked=LOCK in stamps,
        owner=owned_by if owned_by in ownership.OWNERS else "",
        autostart=values.get("AUTOSTART") is not None and not owned_by,
        disk=disk,
        problem=next(iter(problems), None),
    )


def _within(home: VMDirectory, error: VmessError) -> str:
    """Return the message of an error; a file of the VM at its beginning is named without its directory.

    Of a VM that runs, the directory may be gone: nobody is told to make one.
    """
    if isinstance(error, NoSuchVM):
        return f"its directory {home} does not exist"
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
        return MEMORY_DEFAULT if value is None else quantities.size(value, bare=UNITS["M"])
    except ValueError:
        return None
