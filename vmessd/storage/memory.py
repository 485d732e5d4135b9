"""The memory of a snapshot: what was in the memory and the devices of the guest when its disks were kept.

The file `snap-NAME.memory` has a head of :data:`HEAD` bytes, which is JSON and zeros, and then what QEMU writes
when it migrates a guest. It gets its name together with the images of the snapshot, by the same plan, see
:mod:`vmessd.storage.plans`. Everything here blocks.
"""

import dataclasses
import json
import os
import stat
from collections.abc import Sequence
from typing import NamedTuple

from vmessd.core import names, records
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import BadFile, Failed, InvalidValue, failing
from vmessd.storage import copying, safefile
from vmessd.storage.plans import Drop, Move, Steps
from vmessd.storage.vmdir import VMDirectory

HEAD = 64 * 1024


@dataclass(frozen=True)
class Origin:
    """The QEMU that a memory comes from. It only fits into one of the same version with the same hardware."""

    vm: str
    directory: str
    qemu: str
    """Its version: `7.2`."""
    argv: list[str]
    """The command line of a start at that time."""
    hardware: dict[str, str] | None
    """Settings and drives as texts, by file and slot."""


class Draft(NamedTuple):
    """A memory that has no place yet."""

    temporary: str
    fd: int
    """Where QEMU writes; behind the head."""

    @property
    def size(self) -> int:
        """The bytes that it takes."""
        return os.fstat(self.fd).st_blocks * 512


def create(vm: VMDirectory, origin: Origin, wanted: int) -> Draft:
    """Create a file for up to `wanted` bytes of memory, readable for us only; raises NoSuchVM, Failed."""
    head = json.dumps(dataclasses.asdict(origin)).encode() + b"\n"
    if len(head) > HEAD:
        raise Failed(
            f"the command line of {vm.vm} is too long to be kept with its memory",
            hint=f"to keep the disks alone: vmess {vm.vm} snapshot take",
        )
    with vm.opened() as directory:
        copying.check_room(directory, wanted, str(vm), "the memory takes up to")
        temporary = safefile.temporary_name(f"{vm.vm}-memory")
        with failing(f"{safefile.place(directory, temporary)} cannot be written"):
            fd = safefile.create(directory, temporary, 0o600)
            try:
                copying.write_all(fd, head.ljust(HEAD, b"\0"), 0)
                os.lseek(fd, HEAD, os.SEEK_SET)
            except BaseException:
                os.close(fd)
                safefile.remove(directory, temporary)
                raise
    return Draft(temporary, fd)


def discard(vm: VMDirectory, draft: Draft) -> None:
    """Close a memory, and remove it if it got no place; raises NoSuchVM, Failed."""
    os.close(draft.fd)
    with vm.opened() as directory:
        safefile.remove(directory, draft.temporary)


def size(vm: VMDirectory, name: str) -> int | None:
    """Return the bytes that the memory of a snapshot takes; None if it has none; raises NoSuchVM."""
    with vm.opened() as directory:
        found = _status(directory, name)
    return None if found is None else found.st_blocks * 512


def _status(directory: int, name: str) -> os.stat_result | None:
    """Return the status of the memory of a snapshot; None if it has none: only a plain file is one."""
    found = safefile.status(directory, names.memory_file(name))
    return found if found is not None and stat.S_ISREG(found.st_mode) else None


def opened(vm: VMDirectory, name: str) -> tuple[Origin, int]:
    """Open the memory of a snapshot; return where it comes from, and a descriptor behind the head.

    Raises:
        InvalidValue: there is none.
        BadFile: the file is not one.
    """
    with vm.opened() as directory:
        file = names.memory_file(name)
        if _status(directory, name) is None:
            raise InvalidValue(
                f"snapshot {name} of {vm.vm} has no memory", hint=f"vmess {vm.vm} snapshot revert {name}"
            )
        where = safefile.place(directory, file)
        with failing(f"{where} cannot be read"):
            fd = safefile.open_plain(directory, file, os.O_RDONLY)
            try:
                head = os.pread(fd, HEAD, 0)
                os.lseek(fd, HEAD, os.SEEK_SET)
                return records.load(json.loads(head.rstrip(b"\0")), Origin), fd
            except (ValueError, RecursionError):
                os.close(fd)
                raise BadFile(
                    f"{where} is not the memory of a guest",
                    hint=f"to go back without it: vmess {vm.vm} snapshot revert {name} --no-memory",
                ) from None
            except BaseException:
                os.close(fd)
                raise


def with_memory(
    taking: tuple[Sequence[Steps], Sequence[Steps]], name: str, draft: Draft, when: float
) -> tuple[list[Steps], list[Steps]]:
    """Return the steps of a snapshot, and those that take it back, with its memory among them."""
    (first, *rest), (back, *others) = taking
    file, inode = names.memory_file(name), os.fstat(draft.fd).st_ino
    move = Move(draft.temporary, file, inode, when)
    steps = dataclasses.replace(first, moves=(*first.moves, move))
    undo = dataclasses.replace(back, drops=(*back.drops, Drop(file, inode)))
    return [steps, *rest], [undo, *others]


def drops(directory: int, snapshots: Sequence[str | None]) -> tuple[Drop, ...]:
    """Return what removes the memories of snapshots."""
    there = [(name, _status(directory, name)) for name in snapshots if name]
    return tuple(Drop(names.memory_file(name), found.st_ino) for name, found in there if found is not None)
