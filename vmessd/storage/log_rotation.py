"""Rotation of logs while QEMU writes to them: the older part moves to `<log>.1`.

QEMU keeps the descriptors of its logs open, so a log cannot be renamed; its front is removed in place. On ext4,
XFS and F2FS, FALLOC_FL_COLLAPSE_RANGE does this atomically between two writes (fallocate(2)), and no byte is
lost. On other file systems (tmpfs, btrfs) the log is copied until the copy has caught up, and then truncated;
bytes written in the microseconds between are lost.

Everything here blocks. Nobody else may shorten the same log at the same time.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vmessd.core.errors import BadFile, VmessError, counted, failing, reason
from vmessd.storage import safefile

CAP = 4 * 1024 * 1024
"""Size above which a log is shortened, and maximum size of its older part, in bytes.

This is about 60 boots of a Linux guest, or 6 minutes of a serial port at full speed (115200 baud). Both parts
of both logs of 100 VMs take at most 1.6 GiB.
"""
OLDER = ".1"

GRAIN = 64 * 1024
"""What is cut off is a multiple of this, and so of every usual block size. At least as much stays, for readers
of the end of a log."""
ROOM = (64, 8, 2)
"""One part in so many of CAP is reserved for what is written while a log is copied, in successive attempts."""

_COLLAPSE_RANGE = 0x08  # linux/falloc.h
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_long(path: str) -> bool:
    """Tell whether a log needs to be shortened; False where it cannot be accessed."""
    try:
        return os.lstat(path).st_size > CAP
    except OSError:
        return False


def shorten(directory: int, name: str, complain: Callable[[str], None]) -> int:
    """Move the older part of a log of more than CAP bytes to `<log>.1`; return how many bytes were cut off.

    `<log>.1` is replaced atomically. If the daemon is killed at any moment, the log is unchanged, or shortened
    with the rest in `<log>.1`; a temporary file may remain. If the older part cannot be kept, for example for
    lack of space, it is cut off anyway, because the cap protects the disk; `complain` gets one line about it.

    Raises:
        BadFile: the log is not a plain file of its own.
        Failed: the log cannot be shortened, perhaps only now; it is unchanged.
    """
    try:
        log = safefile.open_plain(directory, name, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        if os.fstat(log).st_size <= CAP:
            return 0
        where = safefile.place(directory, name)
        with failing(f"{where} cannot be shortened"):
            try:
                return _move(directory, name, log)
            except BadFile as error:
                problem = error.message
            except OSError as error:
                if error.errno in _PASSING:
                    raise
                problem = f"{where}{OLDER} cannot be written: {reason(error)}"
            cut = _drop(log)
            complain(f"{problem}; {where} was shortened anyway, by {counted(cut, 'byte')}")
            return cut
    finally:
        os.close(log)


def _move(directory: int, name: str, log: int) -> int:
    """Shorten the log and keep what is cut off, return its size; raises BadFile, OSError."""
    older = f"{name}{OLDER}"
    safefile.must_be_plain(directory, older)
    try:
        return _move_front(directory, older, log) or _move_all(directory, older, log)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
    with contextlib.suppress(VmessError):
        safefile.remove(directory, older)  # to make room; it would be replaced anyway
    return _move_front(directory, older, log) or _move_all(directory, older, log)


def _front(log: int) -> int:
    """Return how many bytes to cut off the front of a log."""
    return (os.fstat(log).st_size - GRAIN) // GRAIN * GRAIN


def _move_front(directory: int, older: str, log: int) -> int:
    """Move the front of the log, return its size; 0 where the file system does not support it."""
    front = _front(log)
    with _Draft(directory, older, log) as draft:
        # A probe: on an empty file, a file system that supports this fails with EINVAL.
        if _collapse(draft.fd, GRAIN) != errno.EINVAL:
            return 0
        _copy(log, draft.fd, max(0, front - CAP), front)
        draft.publish()
        return 0 if _collapse(log, front) else front


def _move_all(directory: int, older: str, log: int) -> int:
    """Move the whole log, leaving it empty, and return its size."""
    with _Draft(directory, older, log) as draft:
        begin = end = 0
        for part in ROOM:
            begin = max(0, os.fstat(log).st_size - CAP + CAP // part)
            draft.clear()
            end = _copy(log, draft.fd, begin, begin + CAP)
            if end < begin + CAP:
                break
        draft.publish()  # this takes time, and QEMU writes meanwhile
        end = _copy(log, draft.fd, end, begin + CAP)
        os.ftruncate(log, 0)
        return end


def _drop(log: int) -> int:
    """Shorten the log without keeping what is cut off, return its size; raises OSError."""
    front = _front(log)
    if _collapse(log, front):
        front = os.fstat(log).st_size
        os.ftruncate(log, 0)
    return front


def _copy(source: int, target: int, begin: int, end: int) -> int:
    """Append bytes `begin` to `end` of a file, or as many as there are; return the end of what was copied."""
    while begin < end and (count := os.copy_file_range(source, target, end - begin, begin)):
        begin += count
    return begin


def _collapse(fd: int, length: int) -> int:
    """Cut bytes off the front of a file, atomically for writers; return an errno, 0 for success."""
    import ctypes  # noqa: PLC0415 -- it takes long to import, and few logs grow that long

    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except AttributeError:  # a C library other than glibc
        return errno.ENOSYS
    while fallocate(fd, _COLLAPSE_RANGE, ctypes.c_int64(0), ctypes.c_int64(length)):
        if ctypes.get_errno() != errno.EINTR:
            return ctypes.get_errno()
    return 0


class _Draft:
    """A file that will replace another, with the owner and mode of `like`; removed unless published."""

    def __init__(self, directory: int, name: str, like: int) -> None:
        self._directory = directory
        self._name = name
        self._like = like
        self._temporary = safefile.temporary_name(name)
        self.fd = -1

    def __enter__(self) -> Self:
        self.fd = safefile.create(self._directory, self._temporary, 0o600)
        return self

    def clear(self) -> None:
        """Begin again with an empty file."""
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)

    def publish(self) -> None:
        """Put the file in place. It is on disk before the log is cut, even if the host crashes."""
        found = os.fstat(self._like)
        mode = stat.S_IMODE(found.st_mode) & 0o666
        try:
            os.fchown(self.fd, found.st_uid, found.st_gid)
        except PermissionError:
            mode &= 0o600  # our group may be another one
        os.fchmod(self.fd, mode)
        os.fdatasync(self.fd)
        os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def __exit__(self, _kind: object, _error: object, _trace: TracebackType | None) -> None:
        os.close(self.fd)
        with contextlib.suppress(OSError):  # if it was published, it no longer exists
            os.unlink(self._temporary, dir_fd=self._directory)
