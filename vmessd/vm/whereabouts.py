"""Where the directory of a running VM is: its QEMU keeps two locks in it, which follow it wherever it goes.

Everything here blocks, for less than a millisecond on a healthy disk.
"""

import contextlib
import itertools
import os
import stat
from pathlib import Path

from vmessd.core.errors import shell_line
from vmessd.qemu.command_line import ChildFd
from vmessd.storage.vmdir import VMDirectory


def look(directory: VMDirectory, pid: int) -> tuple[VMDirectory | None, str | None]:
    """Return where the directory of a VM's QEMU is, if not where it should be, and how that is mended."""
    lock = _lock(pid)
    try:
        link: str | None = os.readlink(lock)
    except OSError:
        link = None
    home = _home_by_pid_file(directory, pid) if link is None else _home_by_link(link, lock)
    if home is None:
        return None, "its directory is gone"
    with contextlib.suppress(OSError):
        if os.path.samestat(home.stat(), directory.path.lstat()):
            return None, None
    moved = VMDirectory(home.parent, directory.vm, home)
    back = way_back(home, directory.path)
    if not os.path.lexists(directory.path):
        return moved, f"its directory is {moved} now; to put it back: {back}"
    other = "a symbolic link" if directory.path.is_symlink() else "another directory"
    return moved, f"it runs in {moved}, and {directory} is {other}; to put it back: {back}"


def place(directory: VMDirectory, pid: int) -> VMDirectory | None:
    """Return where the directory of a VM's QEMU is now; None where it is gone."""
    if is_at_home(directory, pid):
        return directory
    moved, problem = look(directory, pid)
    return moved if problem is not None else directory


def is_at_home(directory: VMDirectory, pid: int) -> bool:
    """Tell whether the directory of a VM's QEMU is where it should be; so is that of one which has ended."""
    try:
        found = os.stat(_lock(pid))
    except PermissionError:
        keeper = directory.keeper()
        return keeper == pid or (keeper is None and _seems_at_home(directory, pid))
    except OSError:
        return True
    try:
        return os.path.samestat(found, directory.path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _seems_at_home(directory: VMDirectory, pid: int) -> bool:
    """Tell whether there is a directory of the name, and no other has the pid file."""
    try:
        is_there = stat.S_ISDIR(directory.path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return is_there and _home_by_pid_file(directory, pid) is None


def lives_in(pid: int, directory: VMDirectory, was: str) -> bool:
    """Tell whether a QEMU has locked this directory; where nobody lets us look, by the path it was told."""
    with contextlib.suppress(OSError):
        try:
            return os.path.samefile(_lock(pid), directory.path)
        except PermissionError:
            return os.path.samefile(was, directory.path)
    return False


def way_back(home: Path, target: Path) -> str:
    """Return the commands that move a directory to where it should be, out of the way what is there."""
    back = shell_line(["mv", str(home), str(target)])
    if target.is_symlink():
        return f"{shell_line(['rm', str(target)])} && {back}"
    if not os.path.lexists(target):
        return back
    numbers = itertools.chain([""], itertools.count(2))
    aside = next(path for number in numbers if not os.path.lexists(path := f"{target}.aside{number}"))
    return f"{shell_line(['mv', str(target), aside])} && {back}"


def _lock(pid: int) -> str:
    return f"/proc/{pid}/fd/{ChildFd.lock:d}"


def _home_by_link(link: str, lock: str) -> Path | None:
    try:
        return Path(link) if os.path.samefile(link, lock) else None
    except OSError:
        return None


def _home_by_pid_file(directory: VMDirectory, pid: int) -> Path | None:
    """Return the directory whose pid file a QEMU keeps; its own descriptors are not ours to see.

    It is one of the root, or where a link of the VM's name leads.
    """
    root = directory.path.parent
    if directory.keeper() == pid:
        return directory.path
    with contextlib.suppress(OSError, RuntimeError):
        led = VMDirectory(root, directory.vm, directory.path.resolve(strict=True))
        if led.keeper() == pid:
            return led.path
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and VMDirectory(root, entry.name).keeper() == pid:
                return Path(entry.path)
    return None
