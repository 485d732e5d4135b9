"""The renaming of a VM: its directory, and in it the drives, which carry the name of the VM.

The directory first gets a name that says what is being done, as no single call can rename everything. A
daemon that finds a directory of such a name completes the renaming, so a crash at any moment loses nothing.
"""

import contextlib
import errno
import logging
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from vmessd.core import cloud_init, names, startup
from vmessd.core.errors import BadFile, Failed, VmessError, failing, reason
from vmessd.storage import backing, safefile
from vmessd.storage.vmdir import RENAMING, VMDirectory

log = logging.getLogger(__name__)

_PAIR = re.compile(re.escape(RENAMING) + "([^~]+)~([^~]+)")
SLOTS = (*names.DISKS, names.CDROM)


def pair(name: str) -> tuple[str, str] | None:
    """Return the old and the new name of a VM by the name of its directory; None if it is not being renamed."""
    match = _PAIR.fullmatch(name)
    found = (match[1], match[2]) if match else None
    return found if found and all(map(names.is_full, found)) else None


@contextlib.contextmanager
def begun(vm: VMDirectory, new: str) -> Iterator[str]:
    """Give the directory of a VM the name of one that is being renamed to `new`; yield this name.

    The VM is locked for the `with` block, which should call :func:`complete`. A change of its images that its
    QEMU has not lived to see is completed first.

    Raises:
        Locked: a running process has locked the VM.
        Failed: there is something of the new name already, or it cannot be renamed.
        BadFile: there is a drive of the new name already, or that change cannot be completed.
    """
    lock = vm.lock()
    if lock is None:
        raise vm.held("by another process, so it was not renamed")
    try:
        _must_be_free(vm, new)
        vm.settle_plan()  # it names the VM and its files as they are now
        hidden = f"{RENAMING}{vm.vm}~{new}"
        with failing(f"{vm} cannot be renamed"):
            vm.path.rename(vm.path.with_name(hidden))
        yield hidden
    finally:
        os.close(lock)


def _must_be_free(vm: VMDirectory, new: str) -> None:
    target = vm.path.with_name(new)
    if os.path.lexists(target):
        there = VMDirectory(vm.path.parent, new)
        raise Failed(f"{there} exists already, so {vm.vm} was not renamed", hint=f"vmess {new} info")
    with vm.opened() as directory:
        for slot in SLOTS:
            for old_file, new_file in _pairs(vm.vm, new, slot):
                if safefile.status(directory, old_file) and safefile.status(directory, new_file):
                    raise BadFile(
                        f"{vm} contains both {old_file} and {new_file}, so {vm.vm} was not renamed",
                        hint="move one of them away",
                    )


def _pairs(old: str, new: str, slot: str) -> Iterator[tuple[str, str]]:
    """Return the names of the files of a drive before and after a renaming."""
    return zip(names.drive_files(old, slot), names.drive_files(new, slot), strict=True)


def complete(root: Path, name: str) -> str:
    """Complete the renaming of the directory of this name, or undo it; return the name that the VM has now.

    It is undone if a drive cannot be renamed, or somebody has taken the new name. Both can be repeated.

    Raises:
        Failed: neither is possible. The directory keeps its name.
    """
    old, new = pair(name) or ("", "")
    try:
        _rename(root, name, old, new)
    except OSError as error:
        where = VMDirectory(root, name)
        log.warning("%s: cannot be renamed from %s to %s: %s", where, old, new, reason(error))
        try:
            _rename(root, name, new, old)
        except OSError as again:
            raise Failed(
                f"{where}, which is VM {old}, cannot be renamed to {new}: {reason(again)}",
                hint="vmessd tries again from time to time",
            ) from None
        return old
    return new


def _rename(root: Path, name: str, old: str, new: str) -> None:
    """Name drives and directory after `new`; raises OSError."""
    if os.path.lexists(root / new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    directory = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for slot in SLOTS:
            for old_file, new_file in _pairs(old, new, slot):
                _rename_drive(directory, old_file, new_file)
        name_bases(directory, new)
        for medium in (cloud_init.medium_file, startup.cd_file):
            _rename_drive(directory, medium(old), medium(new))
        _redirect_links(directory, new, str(root / old), str(root / new))
        with contextlib.suppress(VmessError):  # a start does it otherwise
            safefile.sweep(directory)
        os.fsync(directory)
    finally:
        os.close(directory)
    os.rename(root / name, root / new)
    with contextlib.suppress(OSError), safefile.opened(root) as parent:
        os.fsync(parent)


def _rename_drive(directory: int, old: str, new: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(old, dir_fd=directory, follow_symlinks=False)
        with contextlib.suppress(FileNotFoundError):
            os.stat(new, dir_fd=directory, follow_symlinks=False)
            return  # somebody has put it there meanwhile; neither is lost
        os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)


def name_bases(directory: int, vm: str) -> None:
    """Have the headers of disks name their bases as the links are called, for `qemu-img`; raises OSError."""
    for slot in names.DISKS:
        link = names.base_file(vm, slot, 1)
        if safefile.status(directory, link) is not None:
            disk = names.disk_file(vm, slot, "qcow2")
            backing.name_base(directory, disk, lambda said: backing.LINK.fullmatch(said) is not None, link)


def _redirect_links(directory: int, vm: str, old: str, new: str) -> None:
    """Correct the drives of a VM that are links to files in its own directory; raises OSError."""
    for file in (file for slot in SLOTS for file in names.drive_files(vm, slot)):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISLNK(os.stat(file, dir_fd=directory, follow_symlinks=False).st_mode):
                continue
            target = os.readlink(file, dir_fd=directory)
            if target.startswith(f"{old}/"):
                temporary = safefile.temporary_name(file)
                os.symlink(f"{new}{target.removeprefix(old)}", temporary, dir_fd=directory)
                os.rename(temporary, file, src_dir_fd=directory, dst_dir_fd=directory)
