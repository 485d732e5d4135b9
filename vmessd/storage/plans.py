"""A change of several files of a VM directory that is completed after a crash.

The change is written to a file before it begins, as names and inodes, so every step can be repeated. Nothing in
this file is trusted: it names entries of its own directory, which its author could rename as well.
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
from vmessd.core.errors import BadFile, VmessError, failing
from vmessd.storage import qcow2, safefile

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
    lowest: str = ""
    """The image that is based on nothing any more. Its QEMU says so in its header; if that has ended, we do."""

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """Return the steps that were written; raises LookupError, TypeError, ValueError."""
        drops = tuple(Drop(_entry(name), int(inode)) for name, inode in data["drops"])
        moves = tuple(
            Move(_entry(source), _entry(target), int(inode), None if when is None else _time(when))
            for source, target, inode, when in data["moves"]
        )
        links = tuple(map(_text, data["links"]))
        if data["slot"] not in names.DISKS or len(links) > names.BASES_MAX:
            raise ValueError(data["slot"])
        lowest = data.get("lowest", "")
        return cls(str(data["slot"]), drops, moves, links, _entry(lowest) if lowest else "")


@dataclass(frozen=True)
class Plan:
    """A change of the images of a VM."""

    vm: str
    steps: tuple[Steps, ...]
    undo: tuple[Steps, ...] = ()
    """What takes it back."""
    run: tuple[int, int] | None = None
    """The PID and the start time of a QEMU that must do its part. Until it has, the plan stays."""
    nodes: dict[str, str] | None = None
    """The topmost nodes of its drives when it has agreed, by slot; or those that a merge takes out."""
    merges: bool = False
    """Jobs of the QEMU copy the images of a snapshot into those above. With `undo`, it is not certain that they
    have copied everything."""


def _entry(name: str) -> str:
    if "/" in name or name in {"", ".", ".."}:
        raise ValueError(name)
    return _text(name)


def _text(name: str) -> str:
    if "\0" in name:
        raise ValueError(name)
    os.fsencode(name)  # so that the kernel takes it
    return str(name)


def _time(when: float) -> float:
    if not 0 <= float(when) < 2**40:  # also NaN
        raise ValueError(when)
    return float(when)


def pending(directory: int, vm: str) -> Plan | None:
    """Return the plan of a VM; None if there is none, or it makes no sense here."""
    try:
        data = json.loads(safefile.read(directory, FILE, LIMIT) or b"null")
        if not isinstance(data, dict) or data["vm"] != vm:
            return None
        steps, undo = (tuple(map(Steps.of, data[key])) for key in ("steps", "undo"))
        run, nodes = data["run"], data["nodes"]
        known = {str(slot): str(node) for slot, node in nodes.items()} if nodes else None
        of = (int(run[0]), int(run[1])) if run else None
        return Plan(vm, steps, undo, of, known, merges=data.get("merges") is True)
    except (VmessError, LookupError, TypeError, ValueError, OverflowError, RecursionError, AttributeError):
        log.warning("%s is not a plan of vmessd, and is ignored", safefile.place(directory, FILE))
        return None


def text(plan: Plan) -> bytes:
    """Return what is written down of a plan."""
    return json.dumps(dataclasses.asdict(plan)).encode() + b"\n"


def unmarked(directory: int) -> tuple[Drop, ...]:
    """Return what removes the mark of a deletion that has begun; raises BadFile."""
    inode = _inode(directory, MERGING)
    return () if inode is None else (Drop(MERGING, inode),)


def carry_out(directory: int, plan: Plan) -> None:
    """Write a plan down and carry it out. It stays if a QEMU must do its part, until :func:`settle`.

    Raises:
        Failed, BadFile: it cannot be written, and nothing has changed; or a step fails, and it is tried again
            before the next start, or by the next daemon.
    """
    safefile.write(directory, FILE, text(plan))
    _do(directory, plan.vm, plan.steps)
    if plan.run is None:
        settle(directory)


def settle(directory: int) -> None:
    """Forget the plan, which was carried out; raises Failed."""
    safefile.remove(directory, FILE, durable=True)


def forget(directory: int, vm: str, slot: str) -> None:
    """Take a disk whose image has gone out of the plan: it must not meet another. Raises Failed, BadFile."""
    plan = pending(directory, vm)
    if plan is None:
        return
    steps, undo = (tuple(one for one in steps if one.slot != slot) for steps in (plan.steps, plan.undo))
    if not steps and not undo:
        settle(directory)
    elif (steps, undo) != (plan.steps, plan.undo):
        left = Plan(plan.vm, steps, undo, plan.run, plan.nodes, merges=plan.merges)
        safefile.write(directory, FILE, text(left))


def take_back(directory: int, plan: Plan) -> None:
    """Undo a plan; raises as :func:`carry_out`."""
    carry_out(directory, Plan(plan.vm, plan.undo))


def resume(directory: int, vm: str, *, alone: bool = False) -> None:
    """Complete a plan that a crash cut short; raises Failed, BadFile.

    One in which a QEMU has a part stays, unless it is `alone`: this QEMU has ended.
    """
    if safefile.status(directory, FILE) is None:
        return
    plan = pending(directory, vm)
    if plan is not None:
        if alone:
            for steps in plan.steps:
                _put_on_nothing(directory, steps.lowest)
        _do(directory, vm, plan.steps)
        if plan.run is not None and not alone:
            return
    settle(directory)


def _put_on_nothing(directory: int, name: str) -> None:
    """Have the header of an image, if there is one, say that it has no base; raises Failed, BadFile."""
    found = safefile.status(directory, name) if name else None
    if found is None:
        return
    where = safefile.place(directory, name)
    with failing(f"{where} cannot be written"):
        os.chmod(name, stat.S_IMODE(found.st_mode) | stat.S_IWUSR, dir_fd=directory)
        fd = safefile.open_plain(directory, name, os.O_RDWR)
        try:
            if qcow2.parse(os.pread(fd, qcow2.HEAD, 0)).backing is not None:
                os.pwrite(fd, qcow2.NO_BACKING, qcow2.BACKING_PLACE)
                os.fsync(fd)
        except qcow2.Refused as refused:
            raise BadFile(f"{where} {refused}", hint="bring another image in its place") from None
        finally:
            os.close(fd)


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
    """Make a file read-only that belongs to a snapshot now, and writable if it is a disk; set its time.

    It only protects from mistakes, so a file of somebody else stays as it is.
    """
    with contextlib.suppress(OSError):
        fd = os.open(move.target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and found.st_ino == move.inode:
                mode = stat.S_IMODE(found.st_mode)
                is_snapshot = (names.snapshot_of(move.target) or names.memory_of(move.target)) is not None
                os.fchmod(fd, mode & ~0o222 if is_snapshot else mode | 0o220)
                if move.when is not None:
                    os.utime(fd, (move.when, move.when))
        finally:
            os.close(fd)
