"""Where the directory of a running VM is. Its QEMU holds two locks in it, which follow it when it is moved.

Everything here blocks, for less than a millisecond on a healthy disk.
"""

import contextlib
import enum
import itertools
import os
import stat
from pathlib import Path
from typing import NamedTuple

from vmessd.core.errors import shell_line
from vmessd.qemu.command_line import ChildFd
from vmessd.storage.vmdir import VMDirectory


class Displacement(enum.Enum):
    """How the directory of a QEMU is not in its place."""

    removed = "it is gone"
    renamed = "it has another path, and nothing is in its place"
    linked = "it has another path, and a symbolic link is in its place"
    replaced = "it has another path, and something else is in its place"


class Location(NamedTuple):
    """Where the directory of a QEMU is."""

    displacement: Displacement | None
    """None if the directory is in its place."""
    directory: VMDirectory | None
    """None if it is gone."""
    problem: str | None = None
    """What `status` says about a displacement, and the commands that undo it."""

    @property
    def key(self) -> tuple[Displacement | None, Path | None]:
        """The location without the words: equal if the directory is in the same place."""
        return self.displacement, self.directory.path if self.directory is not None else None


class Whereabouts:
    """Where the directory of one QEMU was seen last. From any thread."""

    def __init__(self, directory: VMDirectory, pid: int) -> None:
        self._place = directory
        self._pid = pid
        self.location = Location(None, directory)
        """The result of the last :meth:`look`."""

    @property
    def directory(self) -> VMDirectory:
        """The directory as it was seen last; its original place if it was gone."""
        return self.location.directory or self._place

    def is_at_home(self) -> bool:
        """Tell whether the directory is in its place; also true if the QEMU has ended."""
        return is_at_home(self._place, self._pid)

    def look(self) -> Location:
        """Look where the directory is."""
        self.location = look(self._place, self._pid)
        return self.location

    def find(self) -> VMDirectory | None:
        """Look where the directory is, and return it; None if it is gone.

        The end of the QEMU may come before the next look; it is then recorded in the directory found here.
        """
        if self.is_at_home():
            return self._place
        location = look(self._place, self._pid)
        if location.displacement is not None and location.directory is not None:
            self.location = location
        return location.directory


def look(directory: VMDirectory, pid: int) -> Location:
    """Return where the directory of a QEMU is that was started in `directory`."""
    lock = _lock(pid)
    try:
        link: str | None = os.readlink(lock)
    except OSError:
        link = None
    home = _home_by_pid_file(directory, pid) if link is None else _home_by_link(link, lock)
    if home is None:
        return Location(Displacement.removed, None, "its directory is gone")
    with contextlib.suppress(OSError):
        if os.path.samestat(home.stat(), directory.path.lstat()):
            return Location(None, directory)
    moved = VMDirectory(home.parent, directory.vm, home)
    back = way_back(home, directory.path)
    if not os.path.lexists(directory.path):
        words = f"its directory is {moved} now; to put it back: {back}"
        return Location(Displacement.renamed, moved, words)
    is_link = directory.path.is_symlink()
    displacement, other = (
        (Displacement.linked, "a symbolic link") if is_link else (Displacement.replaced, "another directory")
    )
    return Location(
        displacement, moved, f"it runs in {moved}, and {directory} is {other}; to put it back: {back}"
    )


def is_at_home(directory: VMDirectory, pid: int) -> bool:
    """Tell whether the directory of a QEMU is in its place; also true if the QEMU has ended."""
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
    """Tell whether the directory exists, and no other one has the locked pid file."""
    try:
        is_there = stat.S_ISDIR(directory.path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return is_there and _home_by_pid_file(directory, pid) is None


def lives_in(pid: int, directory: VMDirectory, was: str) -> bool:
    """Tell whether a QEMU has locked this directory; if its descriptors are not readable, by its path `was`."""
    with contextlib.suppress(OSError):
        try:
            return os.path.samefile(_lock(pid), directory.path)
        except PermissionError:
            return os.path.samefile(was, directory.path)
    return False


def way_back(home: Path, target: Path) -> str:
    """Return the commands that move a directory to its place, and what is there out of the way."""
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
    """Return the directory whose pid file a QEMU has locked, for a QEMU whose descriptors are not readable.

    It is in the VM root, or the target of a symbolic link with the name of the VM.
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
