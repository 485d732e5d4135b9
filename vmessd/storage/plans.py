"""A change of several files of a VM directory that is completed after a crash.

The change is written to a file before it begins, as names and inodes, so every step can be repeated. Nothing in
this file is trusted: it names entries of its own directory, which whoever wrote it could rename as well.
"""

import contextlib
import dataclasses
import json
import logging
import os
import stat
from typing import Any, NamedTuple, Self

from vmessd.core import names
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import VmessError, failing
from vmessd.storage import safefile

log = logging.getLogger(__name__)

FILE = "plan.json"
MERGING = "merging"
"""The file with the name of the snapshot that is being deleted: its image has begun to change."""
LIMIT = 64 * 1024


class Drop(NamedTuple):
    """A file to remove."""

    name: str
    inode: int


class Move(NamedTuple):
    """A file to rename."""

    source: str
    target: str
    inode: int
    when: float | None = None
    """The time of its last change to set, in seconds since 1970: for a snapshot, when it was taken."""


@dataclass(frozen=True)
class Steps:
    """What is to be done with the images of one disk, in this order."""

    slot: str
    drops: tuple[Drop, ...]
    moves: tuple[Move, ...]
    links: tuple[str, ...]
    """The targets of the links to its bases, the nearest one first."""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """Return the steps that were written; raises LookupError, TypeError, ValueError."""
        drops = tuple(Drop(_entry(name), int(inode)) for name, inode in data["drops"])
        moves = tuple(
            Move(_entry(source), _entry(target), int(inode), None if when is None else float(when))
            for source, target, inode, when in data["moves"]
        )
        links = tuple(str(link) for link in data["links"])
        if data["slot"] not in names.DISKS or len(links) > names.BASES_MAX:
            raise ValueError(data["slot"])
        return cls(str(data["slot"]), drops, moves, links)


@dataclass(frozen=True)
class Plan:
    """A change of the images of a VM."""

    vm: str
    steps: tuple[Steps, ...]
    undo: tuple[Steps, ...] = ()
    """What takes it back. While a QEMU must still agree, the plan stays after its steps are done."""
    run: tuple[int, int] | None = None
    """The PID and the start time of this QEMU."""
    nodes: dict[str, str] | None = None
    """The topmost nodes of its drives when it has agreed, by slot."""


def _entry(name: str) -> str:
    if "/" in name or name in {"", ".", ".."}:
        raise ValueError(name)
    return str(name)


def pending(directory: int, vm: str) -> Plan | None:
    """Return the plan of a VM; None if there is none, or it makes no sense here."""
    try:
        data = json.loads(safefile.read(directory, FILE, LIMIT) or b"null")
        if not isinstance(data, dict) or data["vm"] != vm:
            return None
        steps, undo = (tuple(map(Steps.of, data[key])) for key in ("steps", "undo"))
        run, nodes = data["run"], data["nodes"]
        known = {str(slot): str(node) for slot, node in nodes.items()} if nodes else None
        return Plan(vm, steps, undo, (int(run[0]), int(run[1])) if run else None, known)
    except (VmessError, LookupError, TypeError, ValueError, RecursionError, AttributeError):
        log.warning("%s is not a plan of vmessd, and is ignored", safefile.place(directory, FILE))
        return None


def carry_out(directory: int, plan: Plan) -> None:
    """Write a plan down and carry it out. It stays if it can be undone, until :func:`settle`.

    Raises:
        Failed, BadFile: it cannot be written, and nothing has changed; or a step fails, and it is tried again
            before the next start, or by the next daemon.
    """
    data = json.dumps(dataclasses.asdict(plan)).encode()
    safefile.write(directory, FILE, data + b"\n")
    _do(directory, plan.vm, plan.steps)
    if not plan.undo:
        settle(directory)


def settle(directory: int) -> None:
    """Forget the plan, which was carried out; raises Failed."""
    safefile.remove(directory, FILE, durable=True)


def take_back(directory: int, plan: Plan) -> None:
    """Undo a plan; raises as :func:`carry_out`."""
    carry_out(directory, Plan(plan.vm, plan.undo))


def resume(directory: int, vm: str) -> None:
    """Complete a plan that a crash cut short; one that a QEMU must agree to stays; raises Failed, BadFile."""
    if safefile.status(directory, FILE) is None:
        return
    plan = pending(directory, vm)
    if plan is not None:
        _do(directory, vm, plan.steps)
        if plan.undo:
            return
    settle(directory)


def _do(directory: int, vm: str, plan: tuple[Steps, ...]) -> None:
    for steps in plan:
        with failing(f"{safefile.place(directory, '')}: the images of {steps.slot} cannot be renamed"):
            for drop in steps.drops:
                if _inode(directory, drop.name) == drop.inode:
                    os.unlink(drop.name, dir_fd=directory)
            for move in steps.moves:
                if _inode(directory, move.target) != move.inode == _inode(directory, move.source):
                    os.rename(move.source, move.target, src_dir_fd=directory, dst_dir_fd=directory)
                mark(directory, move)
        for depth in range(1, names.BASES_MAX + 1):
            link = names.base_file(vm, steps.slot, depth)
            wanted = steps.links[depth - 1] if depth <= len(steps.links) else None
            if wanted is None:
                safefile.remove(directory, link)
            elif safefile.link_target(directory, link) != wanted:
                safefile.link(directory, link, wanted)
    with failing(f"{safefile.place(directory, '')} cannot be written"):
        os.fsync(directory)


def _inode(directory: int, name: str) -> int | None:
    found = safefile.status(directory, name)
    return None if found is None else found.st_ino


def mark(directory: int, move: Move) -> None:
    """Make an image read-only that is a snapshot now, and writable if it is a disk; set its time.

    It only protects from mistakes, so a file of somebody else stays as it is.
    """
    with contextlib.suppress(OSError):
        fd = os.open(move.target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_ino == move.inode:
                mode = stat.S_IMODE(found.st_mode)
                is_snapshot = names.snapshot_of(move.target) is not None
                os.fchmod(fd, mode & ~0o222 if is_snapshot else mode | 0o220)
                if move.when is not None:
                    os.utime(fd, (move.when, move.when))
        finally:
            os.close(fd)
