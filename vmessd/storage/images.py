"""The drives of a VM: images, links to images or block devices, and the link to the CD-ROM image.

The name of an image says its format, which is never probed: `newvm0-hda.img` is raw, and `newvm0-hda.qcow2` is
qcow2. An existing image is never written to and never made smaller. Sizes are in bytes.
"""

import contextlib
import dataclasses
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from vmessd.core import names, quantities, settings
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import BadFile, InvalidValue, VmessError, failing, printable, quoted, reason, shell_line
from vmessd.core.places import SHARED_ISOS
from vmessd.storage import backing, image_formats, plans, safefile
from vmessd.storage.backing import Base, Identity
from vmessd.storage.image_formats import Format
from vmessd.storage.vmdir import VMDirectory

RAW = settings.BY_FILE["RAW"]
_DRIVE_FILE = re.compile(
    rf"([^.].*)-(?:({'|'.join(names.DISKS)})\.(?:img|qcow2|base(?:\.[2-9])?)|(cdrom)\.iso)"
)


@dataclass(frozen=True)
class Disk:
    """A drive as found: the file or block device that QEMU will open."""

    slot: str
    """`hda` to `hdz`, or `cdrom`."""
    path: str
    block_device: bool
    size: int
    """What the guest sees."""
    target: str | None = None
    """The target of the path, if it is a symbolic link."""
    format: str = "raw"
    """`raw` or `qcow2`."""
    stored: int | None = None
    """Bytes that the image takes on the file system; None for a block device."""
    identity: Identity = Identity(0, 0)
    bases: tuple[Base, ...] = ()
    """The images below it, the nearest one first."""


class Reader(Protocol):
    """The user who must be able to read an image."""

    @property
    def name(self) -> str:
        """The name of the user."""

    def may_read(self, path: str) -> bool:
        """Tell whether the user may read the file at `path`."""


def set_disk(vm: VMDirectory, slot: str, text: str) -> str:
    """Create a sparse disk image, or enlarge the existing one; return what was done, in words.

    Raises:
        InvalidValue: not a size, or smaller than the image.
        BadFile: the name belongs to something that is not a plain file, or to an image that is not raw.
        Failed: there is no space, or the file system does not support files of this size.
    """
    wanted = quantities.disk_size(text)
    name = names.disk_file(vm.vm, slot)
    with vm.opened() as directory:
        found = safefile.status(directory, name)
        if found is None:
            must_be_free(vm, directory, slot)
            _create_disk(vm, directory, slot, wanted)
            return f"{name}: created, {quantities.size_text(wanted)}, sparse"
        if stat.S_ISLNK(found.st_mode):
            target = quoted(safefile.link_target(directory, name), 300)
            raise BadFile(
                f"{name} is a link to {target}; vmess does not change the size of its target",
                hint="enlarge the target, or remove the link",
            )
        safefile.must_be_plain(directory, name)
        if not grows(vm.vm, slot, name, found.st_size, text):
            return f"{name}: already has {quantities.size_text(wanted)}, unchanged"
        _check_format(Disk(slot, f"{vm.path}/{name}", False, found.st_size), vm.read_setting(RAW) or ())
        fd = safefile.open_plain(directory, name, os.O_WRONLY)
        try:
            with failing(f"{safefile.place(directory, name)} cannot be enlarged"):
                os.ftruncate(fd, wanted)
        finally:
            os.close(fd)
        return f"{name}: {quantities.size_text(wanted)} now, was {quantities.size_shown(found.st_size)}"


def grows(vm: str, slot: str, name: str, size: int, text: str) -> bool:
    """Tell whether a wanted size enlarges an image of `size` bytes, or is the one that it has.

    Raises:
        InvalidValue: it is smaller.
    """
    wanted = quantities.disk_size(text)
    # The original script wrote one byte at offset <size>, so its images are one byte longer.
    if size in (wanted, wanted + 1):
        return False
    if size > wanted:
        raise InvalidValue(
            f"disk size {quoted(text)} is less than {quantities.size_shown(size)}, the size of {name}; an "
            "image is never made smaller",
            hint=f"to start over: vmess {vm} {slot} delete",
        )
    return True


def there(vm: VMDirectory, directory: int, slot: str) -> str | None:
    """Return the name of the image of a disk, whatever is wrong with it; None if there is none."""
    for form in names.IMAGE_ENDINGS:
        if safefile.status(directory, name := names.disk_file(vm.vm, slot, form)) is not None:
            return name
    return None


def must_be_free(vm: VMDirectory, directory: int, slot: str) -> None:
    """Raise BadFile if there is an image of a disk."""
    name = there(vm, directory, slot)
    if name is not None:
        raise BadFile(
            f"{vm} has a disk {slot} already: {name}; an image is never overwritten",
            hint=f"to put it aside: vmess {vm.vm} {slot} none; to delete it: vmess {vm.vm} {slot} delete",
        )


def _base_links(vm: VMDirectory, directory: int, slot: str) -> dict[str, str]:
    """Return the targets of the links to the bases of a disk, by name; raises BadFile if one is a snapshot.

    A snapshot is a file of the VM that no disk would be based on any more.
    """
    found = {}
    for depth in range(1, names.BASES_MAX + 1):
        name = names.base_file(vm.vm, slot, depth)
        if (target := safefile.link_target(directory, name)) is not None:
            found[name] = target
    taken = [snapshot for target in found.values() if (snapshot := names.snapshot_of(target))]
    if taken:
        raise BadFile(
            f"{slot} of {vm.vm} has snapshots, which belong to no other disk: {', '.join(taken)}",
            hint=f"to merge them into it first: vmess {vm.vm} snapshot delete {taken[0]}",
        )
    return found


def clear_bases(vm: VMDirectory, directory: int, slot: str) -> None:
    """Remove the links to the bases of a disk that is gone; raises Failed."""
    for depth in range(1, names.BASES_MAX + 1):
        safefile.remove(directory, names.base_file(vm.vm, slot, depth))


def _create_disk(vm: VMDirectory, directory: int, slot: str, size: int) -> None:
    name = names.disk_file(vm.vm, slot)
    clear_bases(vm, directory, slot)
    with failing(f"{safefile.place(directory, name)} cannot be created"):
        safefile.create_empty(directory, name, size)


def set_cdrom(vm: VMDirectory, path: str | None, reader: Reader) -> None:
    """Set the CD-ROM to the image at the absolute path `path`; None removes the CD-ROM.

    Raises:
        InvalidValue: there is no such file, it is neither a plain file nor a block device, or `reader` may not
            read it.
        BadFile: the name of the link belongs to something that is not a link.
    """
    name = names.cdrom_file(vm.vm)
    with vm.opened() as directory:
        if path is None:
            found = safefile.status(directory, name)
            if found is not None and not stat.S_ISLNK(found.st_mode):
                raise BadFile(
                    f"{safefile.place(directory, name)} is {safefile.kind(found.st_mode)}, not a link "
                    f"made by vmess; remove it by hand"
                )
            safefile.remove(directory, name, durable=True)
            return
        _check_image(vm, path, reader)
        safefile.link(directory, name, path)


def cdrom_target(vm: VMDirectory) -> str | None:
    """Return the target of the link to the CD-ROM image; None if there is none."""
    with vm.opened() as directory:
        return safefile.link_target(directory, names.cdrom_file(vm.vm))


def disks(vm: VMDirectory) -> list[Disk]:
    """Return the drives of the VM, `hda` first and `cdrom` last.

    Raises:
        BadFile: a drive is neither a plain file nor a block device, or is a dangling link.
    """
    with vm.opened() as directory:
        with failing(f"{vm} cannot be read"):
            there = {names.drive_of(vm.vm, file) for file in os.listdir(directory)}
        found = []
        for slot in (slot for slot in names.DISKS if slot in there):
            with _about(slot):
                found.append(_disk(vm, directory, slot))
        with _about(names.CDROM):
            found.append(_drive(vm, directory, names.CDROM, names.cdrom_file(vm.vm)))
    return [disk for disk in found if disk is not None]


@contextlib.contextmanager
def _about(slot: str) -> Iterator[None]:
    """Note in a BadFile which drive it is about."""
    try:
        yield
    except BadFile as error:
        error.slot = slot
        raise


def _disk(vm: VMDirectory, directory: int, slot: str) -> Disk | None:
    """Return a disk by the name that is there; None if there is none; raises BadFile."""
    there = {form: names.disk_file(vm.vm, slot, form) for form in names.IMAGE_ENDINGS}
    there = {form: name for form, name in there.items() if safefile.status(directory, name)}
    if len(there) > 1:
        raise BadFile(
            f"{vm} contains both {' and '.join(there.values())}; {slot} can be one of them",
            hint="move one of them away",
        )
    for form, name in there.items():
        disk = _drive(vm, directory, slot, name)
        header = backing.header_of(directory, name) if form == "qcow2" else None
        if disk is not None:
            size = disk.size if header is None else header.size
            found = backing.bases(vm, directory, slot, header, disk.identity)
            return dataclasses.replace(disk, format=form, size=size, bases=found)
    return None


def check(vm: VMDirectory, found: Sequence[Disk], raw: Collection[str]) -> None:
    """Check that the guest gets the intended drives.

    `found` is the result of :func:`disks`; `raw` are slots whose images are raw whatever they look like.

    Raises:
        BadFile: a drive that this VM lacks is there under the name of another VM, because the directory was
            copied or renamed by hand; or an image is not raw. The hint says how to repair it.
    """
    _check_names(vm)
    tops = {disk.identity: disk.slot for disk in found}
    for disk in found:
        with _about(disk.slot):
            _check_disk(vm, disk, raw, tops)


def _check_disk(vm: VMDirectory, disk: Disk, raw: Collection[str], tops: Mapping[Identity, str]) -> None:
    if disk.format == "raw":
        _check_format(disk, raw)
    for base in disk.bases:
        if base.identity in tops:
            raise BadFile(
                f"{printable(base.path)} is a base, and {tops[base.identity]} of the same VM writes to it",
                hint="make a copy of it the base",
            )
        if base.format == "raw" and disk.slot not in raw:
            _check_base(base)
    backing.check_unchanged(vm, disk.slot, disk.identity, disk.bases)


def _check_base(base: Base) -> None:
    """Raise BadFile if a raw base does not look raw."""
    found = image_formats.recognise(*_ends(base))
    if found is not None:
        raise BadFile(
            f"{printable(base.path)} is a link to {quoted(base.target, 300)}, which is a {found.shown} image",
            hint="its extension must say its format: .img for raw, .qcow2 for qcow2",
        )


def foreign(vm: VMDirectory) -> list[str]:
    """Return the drives that are there under the name of another VM, while this VM lacks such a drive.

    The directory was copied or renamed by hand. Raises NoSuchVM, BadFile, Failed.
    """
    return [printable(match[0]) for match in _foreign(vm)]


def _foreign(vm: VMDirectory) -> list[re.Match[str]]:
    with vm.opened() as directory, failing(f"{vm} cannot be read"):
        found = [_DRIVE_FILE.fullmatch(name) for name in sorted(os.listdir(directory))]
    matches = [match for match in found if match is not None and not names.snapshot_of(match[0])]
    filled = {_slot(match) for match in matches if match[1] == vm.vm}
    others = [match for match in matches if match[1] != vm.vm and _slot(match) not in filled]
    has_disks = not filled.isdisjoint(names.DISKS)
    return [match for match in others if _is_meant(vm.vm, match, has_disks=has_disks)]


def _is_meant(vm: str, match: re.Match[str], *, has_disks: bool) -> bool:
    """Tell whether a file was named as a drive of a VM.

    Beside disks of the VM, `data-hdb.img` may be a file of the person's, and so may each `cdrom` without a VM.
    """
    if match[2] is not None and not has_disks:
        return True
    return names.is_full(match[1]) or vm in names.like(match[1])


def _slot(match: re.Match[str]) -> str:
    return match[2] or match[3]


def _check_names(vm: VMDirectory) -> None:
    renames: dict[str, list[str]] = {}
    found = _foreign(vm)
    for match in found:
        line = shell_line(
            ["mv", f"{vm.path}/{match[0]}", f"{vm.path}/{vm.vm}{match[0].removeprefix(match[1])}"]
        )
        renames.setdefault(match[1], []).append(line)
    if renames:
        files = ", ".join(printable(match[0]) for match in found)
        raise BadFile(
            f"{vm} has drives named after another VM: {files}; they must be named after {vm.vm}",
            hint=", or ".join(" && ".join(lines) for lines in renames.values()),
        )


def _check_format(disk: Disk, raw: Collection[str]) -> None:
    if disk.slot in raw or (disk.slot == names.CDROM and disk.block_device):
        return
    found = image_formats.recognise(*_ends(disk))
    if found is not None:
        raise BadFile(
            f"{printable(disk.path)} is a {found.shown} image; it must be raw, or {disk.slot} must be listed "
            f"in the file {RAW.file} beside it",
            hint=_way(disk, found),
        )


def _way(disk: Disk, found: Format) -> str:
    """Return the shell command that makes the name of an image fit its format, or the image its name."""
    if disk.path.endswith(".img") and found.name == "qcow2" and not found.leads and not disk.block_device:
        return shell_line(["mv", disk.path, f"{disk.path.removesuffix('.img')}.qcow2"])
    return _conversion(disk, found)


def _ends(disk: Disk | Base) -> tuple[bytes, bytes]:
    """Return the first and last bytes of an image; empty where only QEMU may read it."""
    with contextlib.suppress(OSError):
        fd = os.open(disk.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kind = os.fstat(fd).st_mode
            if stat.S_ISREG(kind) or stat.S_ISBLK(kind):
                tail = os.pread(fd, image_formats.TAIL, max(0, disk.size - image_formats.TAIL))
                return os.pread(fd, image_formats.HEAD, 0), tail
        finally:
            os.close(fd)
    return b"", b""


def _conversion(disk: Disk, found: Format) -> str:
    """Return the shell command that makes an image raw.

    It comes with a warning if the image refers to other files: a guest may have written the header, and a
    conversion, for example by root, would copy files that the guest must not see into its disk.
    """
    image = disk.path
    if disk.target is None:
        source, target = f"{image}.{found.name}", image
        last: list[list[str]] = []
    else:
        source, target = os.path.realpath(image), f"{image}.raw"
        last = [["ln", "-sfT", target, image] if disk.slot == names.CDROM else ["mv", "-T", target, image]]
    lines = [["mv", image, source]] if disk.target is None else []
    lines.append(["qemu-img", "convert", "-f", found.name, "-O", "raw", source, target])
    if not disk.block_device:
        lines.append(["cp", "-p", "--attributes-only", source, target])
    text = " && ".join(shell_line(line) for line in [*lines, *last])
    warning = "it refers to other files, and a guest may have written that; if you made it"
    return f"{warning}: {text}" if found.leads else text


def _drive(vm: VMDirectory, directory: int, slot: str, name: str) -> Disk | None:
    if safefile.status(directory, name) is None:
        return None
    where = safefile.place(directory, name)
    try:
        found = os.stat(name, dir_fd=directory)
    except OSError as error:
        target = quoted(safefile.link_target(directory, name), 300)
        way = f"vmess {vm.vm} cdrom none" if slot == names.CDROM else f"remove or correct the link {where}"
        raise BadFile(f"{where} is a link to {target}: {reason(error)}", hint=way) from None
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
        raise BadFile(f"{where} is {safefile.kind(found.st_mode)}; it must be an image or a block device")
    block_device = stat.S_ISBLK(found.st_mode)
    size = safefile.device_size(found.st_rdev) if block_device else found.st_size
    link, stored = safefile.link_target(directory, name), None if block_device else found.st_blocks * 512
    path = str(vm.path / name)
    return Disk(slot, path, block_device, size, link, stored=stored, identity=Identity.of(found))


def check_boot_file(vm: VMDirectory, verb: str, path: str, reader: Reader) -> None:
    """Raise InvalidValue unless `path` is that of a plain file, for `verb`, that `reader` may read."""
    _check_image(vm, os.path.join(vm.path, path), reader, verb, "a plain file")


def _check_image(
    vm: VMDirectory,
    path: str,
    reader: Reader,
    verb: str = names.CDROM,
    what: str = "an ISO image or a CD drive",
) -> None:
    """Raise InvalidValue unless `path` is the absolute path of an image that `reader` may read."""
    if "\0" in path or not os.path.isabs(path):
        raise InvalidValue(f"{verb} path {quoted(path)} is not an absolute path")
    shown = quoted(path, 300)
    shared = vm.path.parent / SHARED_ISOS
    hint = f"put it into {shared}, where QEMU may read it" if shared.is_dir() else None
    if Path(path).parent == shared:
        hint = f"it must be readable for everybody: chmod a+r {printable(path)}"
    try:
        found = os.stat(path)
    except UnicodeEncodeError:
        raise InvalidValue(f"{verb} {shown} is not a path") from None
    except OSError as error:
        raise InvalidValue(f"{verb} {shown}: {reason(error)}", hint=hint) from None
    if not stat.S_ISREG(found.st_mode) and not (verb == names.CDROM and stat.S_ISBLK(found.st_mode)):
        raise InvalidValue(f"{verb} {shown} is {safefile.kind(found.st_mode)}; it must be {what}")
    if not reader.may_read(path):
        raise InvalidValue(f"{verb} {shown} is not readable for {reader.name}, the user of QEMU", hint=hint)


def open_source(path: str, reader: Reader) -> int:
    """Open an image for a copy, and return its descriptor; of a link, `reader` must be able to read the target.

    Raises:
        BadFile: it cannot be read, or is not an image.
    """
    where = printable(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BadFile(f"{where} cannot be read: {reason(error)}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
            raise BadFile(f"{where} is {safefile.kind(found.st_mode)}; it must be an image or a block device")
        if os.path.islink(path) and not reader.may_read(path):
            raise BadFile(f"{where} is a link; its target must be readable for the user of QEMU")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _settle_plan(vm: VMDirectory) -> None:
    """Complete a change of images while they are there: later, it must not meet others of the same names."""
    with contextlib.suppress(VmessError):  # an image for which it fails may go all the same
        vm.settle_plan()


def detach(vm: VMDirectory, slot: str, *, as_root: bool = False) -> str | None:
    """Put the image of a disk aside, with the links to its bases; return what was done; None if there is none.

    The image moves in one step into a new directory beside it, which has the links already. `as_root` says that
    who asks cannot move it back, as with the service.

    Raises:
        BadFile: it has snapshots.
        Failed: it cannot be moved; nothing is changed.
    """
    _settle_plan(vm)
    with vm.opened() as directory:
        name = there(vm, directory, slot)
        if name is None:
            return None
        bases = _base_links(vm, directory, slot)
        place = _new_directory(directory, f"{vm.vm}-{slot}{backing.DETACHED}")
        with (
            failing(f"{safefile.place(directory, name)} cannot be moved"),
            contextlib.ExitStack() as undo,
        ):
            undo.callback(os.rmdir, place, dir_fd=directory)
            for base, target in bases.items():
                os.symlink(target, f"{place}/{base}", dir_fd=directory)
                undo.callback(os.unlink, f"{place}/{base}", dir_fd=directory)
            os.rename(name, f"{place}/{name}", src_dir_fd=directory, dst_dir_fd=directory)
            undo.callback(os.rename, f"{place}/{name}", name, src_dir_fd=directory, dst_dir_fd=directory)
            with safefile.opened(vm.path / place) as aside:
                os.fsync(aside)
            undo.pop_all()
        clear_bases(vm, directory, slot)
        plans.forget(directory, vm.vm, slot)
        back = shell_line(["mv", *(f"{vm.path}/{place}/{file}" for file in (name, *bases)), f"{vm.path}/"])
        return f"{name} is kept in {place}; to have it back{', as root' * as_root}: {back}"


def _new_directory(directory: int, name: str) -> str:
    """Create a directory of this name, or with a number behind it, and return its name; raises Failed."""
    with failing(f"{safefile.place(directory, name)} cannot be created"):
        for number in range(1, 1000):
            tried = name if number == 1 else f"{name}.{number}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(tried, mode=0o750, dir_fd=directory)
                return tried
    raise BadFile(f"{safefile.place(directory, name)} and 998 more are there; move them away by hand")


def delete(vm: VMDirectory, slot: str) -> str | None:
    """Delete the image of a disk; return what was done; None if there is none. The target of a link stays.

    Raises:
        BadFile: another VM is based on it, or it has snapshots.
        Failed: it cannot be deleted.
    """
    _settle_plan(vm)
    with vm.opened() as directory:
        name = there(vm, directory, slot)
        if name is None:
            return None
        _base_links(vm, directory, slot)
        target = safefile.link_target(directory, name)
        if target is None:
            safefile.must_be_plain(directory, name)
            backing.check_unused(vm, name, Identity.of(os.stat(name, dir_fd=directory)))
        safefile.remove(directory, name, durable=True)
        clear_bases(vm, directory, slot)
        plans.forget(directory, vm.vm, slot)
        rest = "" if target is None else f", a link; {printable(target)} is not deleted"
        return f"{name}: deleted{rest}"
