"""The images below a disk: its bases, named by links in the VM directory.

`newvm0-hda.base` is a link to the image below `newvm0-hda.qcow2`, `newvm0-hda.base.2` to the one below that.
The end of the target's name says its format. QEMU is told every image and its format, so that it follows no
path in a header; the names in the headers only serve `qemu-img`.

A base that has changed makes no sense below the disk any more. So a start remembers size and time of the bases
in a file, and the next one compares them.
"""

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vmessd.core import names
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import BadFile, VmessError, printable, quoted, reason, shell_line
from vmessd.storage import qcow2, safefile, vmdir
from vmessd.storage.qcow2 import Header
from vmessd.storage.vmdir import VMDirectory

RECORD = "bases.json"
RECORD_LIMIT = 256 * 1024
FORMATS = {".img": "raw", ".raw": "raw", ".qcow2": "qcow2"}
"""The format of a base by the end of its name."""
DETACHED = ".detached"
"""The end of the name of a directory with a disk that was put aside; a number may follow."""
LINK = re.compile(r"[a-z][a-z0-9-]*-hd[a-z]\.base(?:\.[2-9])?")
"""The names of links to bases, of any VM."""
_SHOWN = 300
_IMAGE = re.compile(r"[a-z][a-z0-9-]*-hd[a-z]\.(?:img|qcow2)")


class Identity(NamedTuple):
    """What a path leads to."""

    device: int
    inode: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Identity":
        """Return the identity of a file; that of a block device is its number, whatever path leads to it."""
        return cls(-1, found.st_rdev) if stat.S_ISBLK(found.st_mode) else cls(found.st_dev, found.st_ino)


@dataclass(frozen=True)
class Base:
    """An image below a disk."""

    path: str
    """The path of the link in the VM directory."""
    target: str
    """The target of this link."""
    format: str
    """`raw` or `qcow2`."""
    block_device: bool
    size: int
    """Size of the file in bytes."""
    changed: int
    """Time of its last change in nanoseconds since 1970; 0 for a block device."""
    identity: Identity


def header_of(directory: int, name: str) -> Header:
    """Return the header of a qcow2 image.

    Raises:
        BadFile: it cannot be read, or must not be opened; the message names the file.
    """
    where = safefile.place(directory, name)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        raise BadFile(
            f"{where} cannot be read: {reason(error)}; vmessd must check its header before QEMU opens it",
            hint=f"let vmessd read it: chmod g+r {where}",
        ) from None
    try:
        return qcow2.parse(os.pread(fd, qcow2.HEAD, 0))
    except qcow2.Refused as refused:
        hint = "bring another image in its place"
        if isinstance(refused, qcow2.NotQcow2):
            hint = "its name says qcow2; the name of a raw image ends in .img"
        raise BadFile(f"{where} {refused}", hint=hint) from None
    except OSError as error:
        raise BadFile(f"{where} cannot be read: {reason(error)}") from None
    finally:
        os.close(fd)


def virtual_size(directory: int, name: str, form: str) -> int:
    """Return the size of an image of a format, as a guest sees it; raises BadFile, OSError."""
    return header_of(directory, name).size if form == "qcow2" else os.stat(name, dir_fd=directory).st_size


def bases(vm: VMDirectory, directory: int, slot: str, header: Header | None, top: Identity) -> tuple[Base, ...]:
    """Return the bases of a disk, the nearest one first.

    `header` is that of the disk, None for a raw one; `top` is what its name leads to.

    Raises:
        BadFile: a link is missing, superfluous or dangling, a base has no known format, or is there twice.
    """
    found: list[Base] = []
    seen = {top}
    above, name = names.disk_file(vm.vm, slot, "raw" if header is None else "qcow2"), ""
    for depth in range(1, names.BASES_MAX + 2):
        name = names.base_file(vm.vm, slot, depth)
        is_there = safefile.status(directory, name) is not None
        if header is None or header.backing is None:
            if is_there:
                raise _superfluous(directory, name, above, is_raw=header is None)
            break
        if depth > names.BASES_MAX:
            raise BadFile(
                f"{safefile.place(directory, above)} has a base; the limit is {names.BASES_MAX} for a disk"
            )
        if not is_there:
            raise _missing(directory, name, above, header)
        base = _base(vm, directory, name)
        if base.identity in seen:
            raise BadFile(f"{safefile.place(directory, name)}: {quoted(base.target, _SHOWN)} is its own base")
        seen.add(base.identity)
        found.append(base)
        header = header_of(directory, name) if base.format == "qcow2" else None
        above = name
    _check_rest(vm, directory, slot, len(found))
    return tuple(found)


def _check_rest(vm: VMDirectory, directory: int, slot: str, depth: int) -> None:
    """Raise BadFile if there are links below the last base."""
    for more in range(depth + 1, names.BASES_MAX + 1):
        name = names.base_file(vm.vm, slot, more)
        if safefile.status(directory, name) is not None:
            before = names.base_file(vm.vm, slot, more - 1)
            raise BadFile(
                f"{safefile.place(directory, name)} is there without {before}",
                hint=shell_line(["rm", f"{vm.path}/{name}"]),
            )


def _superfluous(directory: int, name: str, above: str, *, is_raw: bool) -> BadFile:
    what = "is raw, and a raw image has no base" if is_raw else "has no backing file in its header"
    where = safefile.place(directory, name)
    return BadFile(
        f"{where} is there, but {above} {what}", hint=f"remove the link: {shell_line(['rm', where])}"
    )


def _missing(directory: int, name: str, above: str, header: Header) -> BadFile:
    said = header.backing or ""
    target = said if os.path.isabs(said) else os.path.join("..", said)
    return BadFile(
        f"{safefile.place(directory, above)} has a backing file, {quoted(said, _SHOWN)}, "
        f"and there is no link {name} that allows it",
        hint=f"if it is what you mean: {shell_line(['ln', '-s', target, safefile.place(directory, name)])}",
    )


def _base(vm: VMDirectory, directory: int, name: str) -> Base:
    where = safefile.place(directory, name)
    target = safefile.link_target(directory, name)
    if target is None:
        raise BadFile(f"{where} must be a link to an image; the end of the image's name says its format")
    shown = quoted(target, _SHOWN)
    form = FORMATS.get(os.path.splitext(target)[1])
    if form is None:
        raise BadFile(
            f"{where} is a link to {shown}; its name must be one that says the format",
            hint=f"the name of a base ends in {', '.join(FORMATS)}",
        )
    try:
        found = os.stat(name, dir_fd=directory)
    except OSError as error:
        raise BadFile(
            f"{where} is a link to {shown}: {reason(error)}", hint="put the base back, or correct the link"
        ) from None
    is_block = stat.S_ISBLK(found.st_mode)
    if not is_block and not stat.S_ISREG(found.st_mode):
        raise BadFile(f"{where} is a link to {shown}, {safefile.kind(found.st_mode)}; it must be an image")
    size = safefile.device_size(found.st_rdev) if is_block else found.st_size
    changed = 0 if is_block else found.st_mtime_ns
    return Base(f"{vm.path}/{name}", target, form, is_block, size, changed, Identity.of(found))


# -- Bases and the disks of others --


def _paths(place: str, pattern: re.Pattern[str], *, aside: bool) -> Iterator[str]:
    """Yield the paths of files of a VM whose names match; what cannot be read is left out.

    With `aside`, the files of disks that were put aside count, too.
    """
    with contextlib.suppress(OSError), os.scandir(place) as found:
        for entry in found:
            if pattern.fullmatch(entry.name):
                yield entry.path
            elif aside and DETACHED in entry.name and entry.is_dir(follow_symlinks=False):
                yield from _paths(entry.path, pattern, aside=False)


def _links(root: Path, vms: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield VMs, each with a path to which a link of it to a base leads.

    The links of a disk that was put aside lead from the VM directory, where they belong.
    """
    for vm in vms:
        for link in _paths(str(root / vm), LINK, aside=True):
            with contextlib.suppress(OSError):
                yield vm, os.path.join(root, vm, os.readlink(link))


def users(root: Path, identity: Identity) -> list[str]:
    """Return the VMs of a root that have an image among their bases; raises Failed."""
    return all_users(root).get(identity, [])


def all_users(root: Path) -> dict[Identity, list[str]]:
    """Return the VMs of a root that have images among their bases, by image; raises Failed."""
    found: dict[Identity, set[str]] = {}
    for vm, path in _links(root, vmdir.listing(root).vms):
        with contextlib.suppress(OSError):
            found.setdefault(Identity.of(os.stat(path)), set()).add(vm)
    return {identity: sorted(vms, key=names.natural) for identity, vms in found.items()}


def writers(root: Path, identities: Collection[Identity], but: str = "") -> list[tuple[str, str]]:
    """Return the VMs, except one, whose disk is one of these images, each with its file; raises Failed."""
    found = []
    for vm in (one for one in vmdir.listing(root).vms if one != but):
        for path in _paths(str(root / vm), _IMAGE, aside=False):
            with contextlib.suppress(OSError):
                if Identity.of(os.stat(path)) in identities:
                    found.append((vm, os.path.basename(path)))
    return found


def check_not_written(vm: VMDirectory, slots: Mapping[str, tuple[Base, ...]]) -> None:
    """Check that no base of a VM is the disk of another VM, whose guest would write to it; blocks.

    Raises:
        BadFile: one is.
        Failed: the VM root cannot be read.
    """
    wanted = {base.identity: base for found in slots.values() for base in found}
    if not wanted:
        return
    for other, file in writers(vm.path.parent, wanted, but=vm.vm):
        raise BadFile(
            f"a base of {vm.vm} is the disk of VM {other}, which may write to it: {file}",
            hint=f"make a copy of it the base, or detach it there: vmess {other} info",
        )


def check_unused(vm: VMDirectory, name: str, identity: Identity) -> None:
    """Raise BadFile if the disk of another VM is based on this image; blocks."""
    others = users(vm.path.parent, identity)
    if others:
        raise BadFile(
            f"{vm}/{name} is a base of {', '.join(others[:10])}, whose disk would be lost",
            hint=f"see it: vmess {others[0]} info",
        )


def name_base(directory: int, name: str, old: Callable[[str], bool], new: str) -> None:
    """Have the header of a qcow2 image name its base `new`, if `old` is true of the name in it.

    One write, in general of less than a page. A header that cannot be changed stays: the name is only for
    `qemu-img`. Raises OSError.
    """
    with contextlib.suppress(VmessError, FileNotFoundError, qcow2.Refused):
        fd = safefile.open_plain(directory, name, os.O_RDWR)
        try:
            head = os.pread(fd, qcow2.HEAD, 0)
            header = qcow2.parse(head)
            if header.backing is not None and header.backing != new and old(header.backing):
                os.pwrite(fd, qcow2.with_backing(head, header, new), 0)
        finally:
            os.close(fd)


def check_stands_alone(vm: VMDirectory, what: str) -> None:
    """Raise BadFile if the disk of another VM is based on a file in the directory of a VM; blocks.

    `what` is what must not be done: `deleted`. What two VMs have in common by a hard link is a file of both.
    """
    root, place = vm.path.parent, f"{os.path.realpath(vm.path)}/"
    for other, path in _links(root, (one for one in vmdir.listing(root).vms if one != vm.vm)):
        if (target := os.path.realpath(path)).startswith(place):
            raise BadFile(
                f"a disk of VM {other} is based on {printable(target)}, so {vm.vm} was not {what}",
                hint=f"to see it: vmess {other} info",
            )


# -- Bases that have changed --


def _read_record(vm: VMDirectory) -> dict[str, Any]:
    """Return what was remembered of the bases, by slot; empty where that is unknown."""
    with contextlib.suppress(VmessError, ValueError, RecursionError):
        with vm.opened() as directory:
            data = safefile.read(directory, RECORD, RECORD_LIMIT)
        found = json.loads(data or b"{}")
        return found if isinstance(found, dict) else {}
    return {}


def _remembered(top: Identity, found: tuple[Base, ...]) -> dict[str, Any]:
    return {"image": top.inode, "bases": [[base.target, base.size, base.changed] for base in found]}


def remember(vm: VMDirectory, slots: Mapping[str, tuple[Identity, tuple[Base, ...]]]) -> None:
    """Remember the bases of a VM as they are now, by slot; raises as :func:`safefile.write`."""
    wanted = {slot: _remembered(top, found) for slot, (top, found) in slots.items() if found}
    if wanted == _read_record(vm):
        return
    with vm.opened() as directory:
        if wanted:
            safefile.write(directory, RECORD, json.dumps(wanted, indent=1).encode() + b"\n", durable=False)
        else:
            safefile.must_be_plain(directory, RECORD)
            safefile.remove(directory, RECORD)


def check_unchanged(vm: VMDirectory, slot: str, top: Identity, found: tuple[Base, ...]) -> None:
    """Raise BadFile if a base is not what it was at the last start of the same disk."""
    known = _read_record(vm).get(slot) if found else None
    if not isinstance(known, dict) or known.get("image") != top.inode:
        return
    before = known.get("bases")
    now = _remembered(top, found)["bases"]
    if before == now or not isinstance(before, list):
        return
    pairs = zip(found, now, [*before, *[None] * len(now)], strict=False)
    wrong = next((base for base, new, old in pairs if new != old), found[-1])
    raise BadFile(
        f"{wrong.path}: {quoted(wrong.target, _SHOWN)} has changed since the last start; {slot} is based on it",
        hint=f"put it back; or if {slot} fits it as it is now: {shell_line(['rm', f'{vm.path}/{RECORD}'])}",
    )


def shown(found: Iterable[Base]) -> list[str]:
    """Return the targets of bases for people."""
    return [printable(base.target) for base in found]
