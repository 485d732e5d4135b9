"""The snapshots of a VM: images below its disks, which nobody writes to any more.

A snapshot of `hda` is the image that was the disk until then, `snap-hda-NAME.img` or `.qcow2`, and the disk is
a new qcow2 image on top of it. So snapshots are bases of the disk, named by the same links, see
:mod:`vmessd.storage.backing`, and the file of a snapshot says all about it. Everything here blocks.
"""

import contextlib
import dataclasses
import os
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vmessd.core import names
from vmessd.core.errors import BadFile, Failed, InvalidValue, counted, failing, quoted
from vmessd.core.models.snapshots import Snapshot
from vmessd.storage import backing, copying, images, memory, plans, safefile
from vmessd.storage.backing import Base, Identity
from vmessd.storage.images import Disk
from vmessd.storage.plans import Drop, Move, Steps
from vmessd.storage.vmdir import VMDirectory

SECTOR = 512


class Overlay(NamedTuple):
    """A new image on top of another one, which is not in its place yet."""

    disk: Disk
    temporary: str
    base: str
    """The name of its base for its header."""
    base_format: str

    @property
    def size(self) -> int:
        """Its virtual size in bytes: whole sectors, as QEMU shows them to the guest."""
        return -(-self.disk.size // SECTOR) * SECTOR


class Merge(NamedTuple):
    """The deletion of a snapshot of one disk: what is above it is written into it."""

    disk: Disk
    depth: int
    """The place of the snapshot among the bases of the disk, from 0."""

    @property
    def chain(self) -> list[tuple[str, str]]:
        """The images from the one above the snapshot to the lowest base, as paths and formats."""
        all_of_it = [(self.disk.path, self.disk.format), *((one.path, one.format) for one in self.disk.bases)]
        return all_of_it[self.depth :]

    @property
    def weight(self) -> int:
        """Bytes in the image that is written into the snapshot."""
        return os.stat(self.chain[0][0]).st_blocks * 512


def hard_disks(vm: VMDirectory) -> list[Disk]:
    """Return the disks of a VM, without its CD drive; raises as images.disks."""
    return [disk for disk in images.disks(vm) if disk.slot != names.CDROM]


def of_disk(disk: Disk) -> list[str | None]:
    """Return the names of the snapshots below a disk, the latest one first; None for a base that is none."""
    return [names.snapshot_of(base.target) for base in disk.bases]


def known(disks: Iterable[Disk]) -> list[str]:
    """Return the names of all snapshots, the latest one first."""
    return list(dict.fromkeys(name for disk in disks for name in of_disk(disk) if name))


def listing(vm: VMDirectory) -> list[Snapshot]:
    """Return the snapshots of a VM, the oldest one first; raises as images.disks."""
    disks, broken = hard_disks(vm), merging(vm)
    found: dict[str, Snapshot] = {}
    for name in reversed(known(disks)):
        bases = {disk.slot: disk.bases[of_disk(disk).index(name)] for disk in disks if name in of_disk(disk)}
        below = [
            disk.bases[at + 1].target if at + 1 < len(disk.bases) else ""
            for disk in disks
            if name in of_disk(disk)
            for at in [of_disk(disk).index(name)]
        ]
        stored = [os.stat(base.path) for base in bases.values()]
        found[name] = Snapshot(
            name=name,
            taken=min(one.st_mtime for one in stored),
            size=sum(one.st_blocks * 512 for one in stored),
            disks=list(bases),
            on=[names.snapshot_of(target) or target for target in dict.fromkeys(below) if target],
            merging=name == broken,
            memory=memory.size(vm, name),
        )
    return sorted(found.values(), key=lambda one: (one.taken, -list(found).index(one.name)))


def default_name(disks: Iterable[Disk]) -> str:
    """Return a name by the date that no snapshot has: 2026-11-30, or 2026-11-30-2."""
    there, today = set(known(disks)), time.strftime("%Y-%m-%d")
    number = 1
    while (name := today if number == 1 else f"{today}-{number}") in there:
        number += 1
    return name


def prepare(vm: VMDirectory, name: str | None, slots: Iterable[str] | None = None) -> tuple[str, list[Overlay]]:
    """Return the name of a new snapshot, and for each disk an empty file for the image on top of it.

    `slots` are the drives that the running QEMU has.

    Raises:
        InvalidValue: there is such a snapshot.
        BadFile: there is no disk, or one has too many bases.
        Failed: a file cannot be created.
    """
    disks = [disk for disk in hard_disks(vm) if slots is None or disk.slot in slots]
    if not disks:
        raise BadFile(f"VM {vm.vm} has no disk to take a snapshot of", hint=f"vmess {vm.vm} hda 8G")
    name = name or default_name(disks)
    if name in known(disks):
        raise InvalidValue(
            f"VM {vm.vm} has a snapshot {name} already",
            hint=f"take it under another name; to see all: vmess {vm.vm} snapshot list",
        )
    for disk in disks:
        if len(disk.bases) >= names.BASES_MAX:
            raise BadFile(
                f"{disk.slot} of {vm.vm} is based on {counted(len(disk.bases), 'image')}, which is the limit",
                hint=f"to see which could be deleted: vmess {vm.vm} snapshot list",
            )
        with vm.opened() as directory:
            files = [names.snapshot_file(disk.slot, name, form) for form in names.IMAGE_ENDINGS]
            for file in (*files, names.memory_file(name)):
                if safefile.status(directory, file):
                    raise BadFile(
                        f"{safefile.place(directory, file)} is there, but is not a snapshot of {vm.vm}",
                        hint="move it away, or choose another name",
                    )
    return name, [_overlay(vm, disk, names.snapshot_file(disk.slot, name, disk.format)) for disk in disks]


def _overlay(vm: VMDirectory, disk: Disk, base: str, base_format: str | None = None) -> Overlay:
    with vm.opened() as directory:
        name = safefile.create_temporary(directory, f"{vm.vm}-{disk.slot}")
    return Overlay(disk, name, base, base_format or disk.format)


def clear(vm: VMDirectory, overlays: Iterable[Overlay]) -> None:
    """Remove the files of overlays that got no place; raises NoSuchVM, Failed."""
    with vm.opened() as directory:
        for overlay in overlays:
            safefile.remove(directory, overlay.temporary)


def taking(
    vm: VMDirectory, name: str, overlays: Sequence[Overlay], when: float
) -> tuple[list[Steps], list[Steps]]:
    """Return the steps that put overlays on the disks of a VM, and those that take this back."""
    steps, undo = [], []
    with vm.opened() as directory:
        for overlay in overlays:
            disk = overlay.disk
            before, top = os.path.basename(disk.path), names.disk_file(vm.vm, disk.slot, "qcow2")
            snapshot = names.snapshot_file(disk.slot, name, disk.format)
            old, new = _inode(directory, before), _settled(directory, overlay)
            links = tuple(base.target for base in disk.bases)
            moves = (Move(before, snapshot, old, when), Move(overlay.temporary, top, new))
            steps.append(Steps(disk.slot, (), moves, (snapshot, *links)))
            undo.append(Steps(disk.slot, (Drop(top, new),), (Move(snapshot, before, old),), links))
    return steps, undo


def _inode(directory: int, name: str) -> int:
    found = safefile.status(directory, name)
    if found is None:
        raise Failed(f"{safefile.place(directory, name)} is gone", hint="repeat it")
    return found.st_ino


def _settled(directory: int, overlay: Overlay) -> int:
    """Wait until a new image is on disk, so that a disk is one after a power cut as well; return its inode."""
    with failing(f"{safefile.place(directory, overlay.temporary)} cannot be written to disk"):
        fd = safefile.open_plain(directory, overlay.temporary, os.O_RDONLY)
        try:
            os.fsync(fd)
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)


def remember(vm: VMDirectory) -> list[Disk]:
    """Remember the bases of the disks as they are now, and return the disks; raises as images.disks, Failed."""
    found = images.disks(vm)
    backing.remember(vm, {disk.slot: (disk.identity, disk.bases) for disk in found})
    return found


# -- Back to a snapshot --


def newer(vm: VMDirectory, name: str) -> list[str]:
    """Return the snapshots that are newer than one; raises InvalidValue if there is no such snapshot."""
    disks = hard_disks(vm)
    must_be_there(vm, disks, name)
    return [
        one
        for one in known(disks)
        if any(one in (found := of_disk(disk)) and name in found[found.index(one) + 1 :] for disk in disks)
    ]


def must_be_there(vm: VMDirectory, disks: Iterable[Disk], name: str) -> None:
    """Raise InvalidValue if there is no such snapshot."""
    there = known(disks)
    if name not in there:
        shown = f"; there are {', '.join(there)}" if there else ""
        raise InvalidValue(
            f"VM {vm.vm} has no snapshot {quoted(name)}{shown}", hint=f"vmess {vm.vm} snapshot list"
        )


def prepare_revert(vm: VMDirectory, name: str) -> list[Overlay]:
    """Return for each disk of a snapshot an empty file for a new image on top of it.

    Raises:
        InvalidValue: there is no such snapshot, or its deletion has begun.
        Failed: a file cannot be created.
    """
    disks = hard_disks(vm)
    must_be_there(vm, disks, name)
    if merging(vm) == name:
        raise InvalidValue(
            f"snapshot {name} of {vm.vm} is half deleted, and no longer what it was",
            hint=f"to complete that: vmess {vm.vm} snapshot delete {name}",
        )
    found = []
    for disk in disks:
        if name in of_disk(disk):
            base = disk.bases[of_disk(disk).index(name)]
            found.append(_overlay(vm, _sized(vm, disk, base.path), base.target, base.format))
    return found


def _sized(vm: VMDirectory, disk: Disk, path: str) -> Disk:
    """Return a disk with the virtual size of one of its bases."""
    base = next(base for base in disk.bases if base.path == path)
    if base.format == "raw":
        return dataclasses.replace(disk, size=base.size)
    with vm.opened() as directory:
        return dataclasses.replace(disk, size=backing.header_of(directory, os.path.basename(path)).size)


def reverting(vm: VMDirectory, name: str, overlays: Sequence[Overlay]) -> list[Steps]:
    """Return the steps that go back to a snapshot: present disks and newer snapshots are removed."""
    steps = []
    with vm.opened() as directory:
        for overlay in overlays:
            disk = overlay.disk
            at = of_disk(disk).index(name)
            top = names.disk_file(vm.vm, disk.slot, "qcow2")
            gone = [top, *(base.target for base in disk.bases[:at] if names.snapshot_of(base.target))]
            drops = tuple(Drop(file, _inode(directory, file)) for file in gone)
            drops += memory.drops(directory, [names.snapshot_of(file) for file in gone])
            move = Move(overlay.temporary, top, _settled(directory, overlay))
            links = tuple(base.target for base in disk.bases[at:])
            steps.append(Steps(disk.slot, drops, (move,), links))
    return steps


# -- Without a snapshot --


def merging(vm: VMDirectory) -> str | None:
    """Return the snapshot whose deletion has begun; None if there is none; raises NoSuchVM, BadFile."""
    with vm.opened() as directory:
        data = safefile.read(directory, plans.MERGING, 100)
    return None if data is None else data.decode(errors="replace").strip()


def begin_merge(vm: VMDirectory, name: str) -> list[Merge]:
    """Mark a snapshot as half deleted, and return what must be merged.

    Raises:
        InvalidValue: there is no such snapshot.
        BadFile: another VM is based on it; or another deletion has begun.
        Failed: a file cannot be written.
    """
    disks = hard_disks(vm)
    must_be_there(vm, disks, name)
    check_no_other_merge(vm, disks, name)
    merges = [Merge(disk, of_disk(disk).index(name)) for disk in disks if name in of_disk(disk)]
    for merge in merges:
        _check_merge(vm, merge, name)
    with vm.opened() as directory:
        safefile.write(directory, plans.MERGING, f"{name}\n".encode())
        safefile.remove(directory, backing.RECORD)  # it has the time of the image that changes now
        for merge in merges:
            # qemu-img opens the image above for writing as well.
            for base in merge.disk.bases[max(0, merge.depth - 1) : merge.depth + 1]:
                make_writable(directory, base.target)
    return merges


def check_no_other_merge(vm: VMDirectory, disks: Iterable[Disk], name: str) -> None:
    """Raise BadFile if the deletion of another snapshot has begun."""
    broken = merging(vm)
    if broken in known(disks) and broken != name:
        raise BadFile(
            f"snapshot {broken} of {vm.vm} is half deleted", hint=f"vmess {vm.vm} snapshot delete {broken}"
        )


def _check_merge(vm: VMDirectory, merge: Merge, name: str) -> None:
    base = merge.disk.bases[merge.depth]
    check_unshared(vm, base)
    check_above(vm, merge.disk, merge.depth)
    if base.format == "raw" or not base.block_device:
        with vm.opened() as directory:
            wanted = max(0, min(merge.weight, merge.disk.size - os.stat(base.path).st_blocks * 512))
            copying.check_room(directory, wanted, str(vm), f"merging snapshot {name} takes up to")


def check_unshared(vm: VMDirectory, base: Base) -> None:
    """Raise BadFile if another VM is based on a snapshot, too, which must not change for that."""
    others = [one for one in backing.users(vm.path.parent, base.identity) if one != vm.vm]
    if others or os.stat(base.path).st_nlink > 1:
        name, shown = names.snapshot_of(base.target), ", ".join(others[:10]) or "another VM"
        raise BadFile(
            f"snapshot {name} of {vm.vm} is a base of {shown}, too, and must not change",
            hint=f"see it: vmess {others[0]} snapshot list" if others else None,
        )


def check_above(vm: VMDirectory, disk: Disk, depth: int) -> None:
    """Raise BadFile if a base of a disk is below another base, which is not a snapshot of the VM."""
    if depth and names.snapshot_of(disk.bases[depth - 1].target) is None:
        raise BadFile(
            f"{disk.bases[depth].path} is below an image that is not a snapshot of {vm.vm}",
            hint=f"vmess {vm.vm} info",
        )


def make_writable(directory: int, name: str) -> None:
    """Let the user of QEMU write to an image of the directory; raises Failed."""
    found = safefile.status(directory, name) if "/" not in name else None
    if found is not None and stat.S_ISREG(found.st_mode):
        with failing(f"{safefile.place(directory, name)} cannot be made writable"):
            os.chmod(name, stat.S_IMODE(found.st_mode) | 0o220, dir_fd=directory)


def merged(vm: VMDirectory, merges: Iterable[Merge]) -> list[Steps]:
    """Return the steps after what was above a snapshot was written into it: it takes the place of that."""
    steps = []
    with vm.opened() as directory:
        marks = plans.unmarked(directory)
        for merge in merges:
            disk, at = merge.disk, merge.depth
            targets = [base.target for base in disk.bases]
            base = disk.bases[at]
            above = os.path.basename(disk.path) if at == 0 else targets[at - 1]
            upper = names.snapshot_of(above)
            new = (
                names.snapshot_file(disk.slot, upper, base.format)
                if upper
                else names.disk_file(vm.vm, disk.slot, base.format)
            )
            found = safefile.status(directory, above)
            when = found.st_mtime if found is not None and upper else None
            kept = memory.drops(directory, [names.snapshot_of(targets[at])])
            drops = (Drop(above, _inode(directory, above)), *marks, *kept)
            move = Move(targets[at], new, _inode(directory, targets[at]), when)
            links = [*targets[: at - 1], new, *targets[at + 1 :]] if at else targets[1:]
            steps.append(Steps(disk.slot, drops, (move,), tuple(links)))
    return steps


def misnamed(vm: VMDirectory) -> list[tuple[str, tuple[str, str]]]:
    """Return the images whose header names another base than they have, with its name and format.

    QEMU gets every base by its link; the names in headers are for `qemu-img`.
    """
    found: list[tuple[str, tuple[str, str]]] = []
    with vm.opened() as directory:
        for disk in hard_disks(vm):
            above, form = os.path.basename(disk.path), disk.format
            for base in disk.bases:
                if form == "qcow2" and "/" not in above and _names_another(directory, above, base):
                    found.append((above, (base.target, base.format)))
                above, form = base.target, base.format
    return found


def _names_another(directory: int, image: str, base: Base) -> bool:
    """Tell whether the header of an image names a base that is not there, or another one.

    A base that is not a snapshot may have any name that the person who brought the image has given it.
    """
    header = backing.header_of(directory, image)
    name = header.backing or ""
    if names.snapshot_of(base.target):
        return (name, header.backing_format) != (base.target, base.format)
    if not names.snapshot_of(name) and not backing.LINK.fullmatch(name):
        return False
    try:
        return Identity.of(os.stat(name, dir_fd=directory)) != base.identity
    except OSError:
        return True


@contextlib.contextmanager
def writable(vm: VMDirectory, name: str) -> Iterator[None]:
    """Make an image writable for a `with` block; its time stays as it is, which every VM on it has noted."""
    with vm.opened() as directory:
        found = safefile.status(directory, name)
        safefile.remove(directory, backing.RECORD)  # a crash leaves another time
        make_writable(directory, name)
        try:
            yield
        finally:
            if found is not None:
                plans.mark(directory, Move(name, name, found.st_ino))
                with contextlib.suppress(OSError):
                    os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=directory)


def name_bases(vm: VMDirectory, disks: Iterable[Disk]) -> None:
    """Have the headers of disks name their bases directly, because the links to them are about to move."""
    with vm.opened() as directory:
        for disk in disks:
            if disk.bases and disk.target is None:
                link = names.base_file(vm.vm, disk.slot, 1)
                with contextlib.suppress(OSError):
                    name, base = os.path.basename(disk.path), disk.bases[0].target
                    backing.name_base(directory, name, link.__eq__, base)
