"""The deletion of a snapshot of a running VM, as changes of files.

QEMU copies the images of the snapshot into those above, which then are based on what is below. The images of
the snapshot are only read, so until everything is copied, it can be called off; then, they are removed.
Everything here blocks.
"""

import os
from collections.abc import Collection, Iterable
from typing import NamedTuple

from vmessd.core import names
from vmessd.core.errors import BadFile
from vmessd.storage import backing, copying, memory, plans, safefile, snapshots
from vmessd.storage.backing import Base
from vmessd.storage.images import Disk
from vmessd.storage.plans import Drop, Move, Steps
from vmessd.storage.vmdir import VMDirectory


class Pull(NamedTuple):
    """The deletion of a snapshot of one disk: what is in its image goes into the one above."""

    disk: Disk
    depth: int
    """The place of the snapshot among the bases of the disk, from 0."""

    @property
    def snapshot(self) -> Base:
        """The image of the snapshot."""
        return self.disk.bases[self.depth]

    @property
    def above(self) -> str:
        """The name of the image above, which is always a qcow2 image of the VM."""
        return self.disk.bases[self.depth - 1].target if self.depth else os.path.basename(self.disk.path)

    @property
    def below(self) -> Base | None:
        """What the snapshot is based on; None if that is nothing."""
        return self.disk.bases[self.depth + 1] if self.depth + 1 < len(self.disk.bases) else None


def prepare(vm: VMDirectory, name: str, slots: Collection[str]) -> list[Pull]:
    """Return what must be copied to delete a snapshot; `slots` are the drives that the running QEMU has.

    Raises:
        InvalidValue: there is no such snapshot.
        BadFile: the VM runs without one of its disks; another VM is based on an image above; or another
            deletion has begun.
        Failed: there is no space.
    """
    disks = snapshots.hard_disks(vm)
    snapshots.must_be_there(vm, disks, name)
    snapshots.check_no_other_merge(vm, disks, name)
    pulls = [
        Pull(disk, snapshots.of_disk(disk).index(name)) for disk in disks if name in snapshots.of_disk(disk)
    ]
    for pull in pulls:
        _check(vm, pull, name, slots)
    with vm.opened() as directory:
        wanted = sum(copying.allocated(os.stat(pull.snapshot.path)) for pull in pulls)
        copying.check_room(directory, wanted, str(vm), f"while the VM runs, deleting {name} takes up to")
    return pulls


def _check(vm: VMDirectory, pull: Pull, name: str, slots: Collection[str]) -> None:
    if pull.disk.slot not in slots:
        raise BadFile(
            f"{vm.vm} runs without {pull.disk.slot}, so snapshot {name} was not deleted",
            hint=f"vmess {vm.vm} stop snapshot delete {name}",
        )
    snapshots.check_above(vm, pull.disk, pull.depth)
    if pull.depth:
        snapshots.check_unshared(vm, pull.disk.bases[pull.depth - 1])


def steps(vm: VMDirectory, pulls: Iterable[Pull]) -> tuple[tuple[Steps, ...], tuple[Steps, ...]]:
    """Return the steps that delete the snapshot once everything is copied, and those that leave it as it was.

    The second ones put back what tells of a snapshot above when it was taken: the time of its image.
    """
    without, as_before = [], []
    with vm.opened() as directory:
        marks = plans.unmarked(directory)
        for pull in pulls:
            links = tuple(base.target for base in pull.disk.bases)
            above = safefile.status(directory, pull.above)
            kept: tuple[Move, ...] = ()
            if pull.depth and above is not None:
                kept = (Move(pull.above, pull.above, above.st_ino, above.st_mtime),)
            kept_memory = memory.drops(directory, [names.snapshot_of(pull.snapshot.target)])
            gone = (Drop(pull.snapshot.target, pull.snapshot.identity.inode), *marks, *kept_memory)
            rest = (*links[: pull.depth], *links[pull.depth + 1 :])
            lowest = "" if pull.below else pull.above
            without.append(Steps(pull.disk.slot, gone, kept, rest, lowest))
            as_before.append(Steps(pull.disk.slot, (), kept, links))
    return tuple(without), tuple(as_before)


def begin(vm: VMDirectory, pulls: Iterable[Pull]) -> None:
    """Let QEMU write to snapshots above, and forget the times of bases, which change; raises Failed."""
    with vm.opened() as directory:
        safefile.remove(directory, backing.RECORD)
        for pull in pulls:
            if pull.depth:
                snapshots.make_writable(directory, pull.above)
