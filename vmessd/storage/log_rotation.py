"""Logs kept short while their writer writes on: what is old moves to `<log>.1`.

QEMU appends to its logs through descriptors that it keeps for life, so a log cannot be renamed away; its
front is taken off in place. Where the file system can (ext4, XFS, F2FS), FALLOC_FL_COLLAPSE_RANGE does
that between two writes (fallocate(2)): no byte is lost, however fast they come. Elsewhere (tmpfs, btrfs)
all of the log is copied until the copy has caught up, and then truncated at once: what is written in the
microseconds between is lost, and only there, and only of a log above its cap.

Everything here blocks. Nobody else may shorten the same log meanwhile.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from types import TracebackType
from typing import Self

from vmessd.core.errors import BadFile, VmessError, failing, reason
from vmessd.storage import safefile

CAP = 4 * 1024 * 1024
"""Bytes of a log before it is shortened, and of its older part at most.

Some 60 boots of a Linux guest, or 6 minutes of a serial port at full speed (115200 baud). With both
parts of both logs, 100 VMs that do their worst take 1.6 GiB.
"""
OLDER = ".1"

GRAIN = 64 * 1024
"""What is taken off the front is a multiple of this, and so of every usual block size; as much stays,
for those who read the end of a log."""
ROOM = (64, 8, 2)
"""Which part of CAP is left free for what is written while a log is copied, one try after the other."""

_COLLAPSE_RANGE = 0x08  # linux/falloc.h
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_long(path: str) -> bool:
    """Tell whether a log is to be shortened; whatever cannot be looked at is not."""
    try:
        return os.lstat(path).st_size > CAP
    except OSError:
        return False


def shorten(directory: int, name: str, complain: Callable[[str], None]) -> int:
    """Move the older part of a log of more than CAP bytes to `<log>.1`; return how many left its front.

    `<log>.1` is replaced as a whole. Killed at any moment, this leaves the log as it was or shortened,
    and what was cut off in `<log>.1`; besides, at most a temporary file. Where the older part cannot be
    kept, for want of room say, it is cut off all the same, and `complain` is told in one line: the cap
    is there to protect the disk.

    Raises:
        BadFile: the log is not a plain file of its own.
        Failed: it cannot be cut, or not just now; nothing was.
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
            complain(f"{problem}; {where} was shortened all the same, by {cut} bytes")
            return cut
    finally:
        os.close(log)


def _move(directory: int, name: str, log: int) -> int:
    """Shorten the log and keep what is cut off; raises BadFile, OSError."""
    older = f"{name}{OLDER}"
    safefile.must_be_plain(directory, older)
    try:
        return _move_front(directory, older, log) or _move_all(directory, older, log)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
    with contextlib.suppress(VmessError):
        safefile.remove(directory, older)  # it was to be replaced; now it is to make room first
    return _move_front(directory, older, log) or _move_all(directory, older, log)


def _front(log: int) -> int:
    """Return how many bytes are to leave the front of a log."""
    return (os.fstat(log).st_size - GRAIN) // GRAIN * GRAIN


def _move_front(directory: int, older: str, log: int) -> int:
    """Move the front of the log, return its length; 0 where the file system cannot."""
    front = _front(log)
    with _Draft(directory, older, log) as draft:
        # An empty file has nothing to take away. Who could do it says so; who cannot says that.
        if _collapse(draft.fd, GRAIN) != errno.EINVAL:
            return 0
        _copy(log, draft.fd, max(0, front - CAP), front)
        draft.publish()
        return 0 if _collapse(log, front) else front


def _move_all(directory: int, older: str, log: int) -> int:
    """Move all of the log, of which nothing stays, and return how much that was."""
    with _Draft(directory, older, log) as draft:
        begin = end = 0
        for part in ROOM:
            begin = max(0, os.fstat(log).st_size - CAP + CAP // part)
            draft.clear()
            end = _copy(log, draft.fd, begin, begin + CAP)
            if end < begin + CAP:
                break
        draft.publish()  # which takes time, in which more is written
        end = _copy(log, draft.fd, end, begin + CAP)
        os.ftruncate(log, 0)
        return end


def _drop(log: int) -> int:
    """Shorten the log without keeping what is cut off; raises OSError."""
    front = _front(log)
    if _collapse(log, front):
        front = os.fstat(log).st_size
        os.ftruncate(log, 0)
    return front


def _copy(source: int, target: int, begin: int, end: int) -> int:
    """Append bytes `begin` to `end` of a file, or as many as there are; return where they ended."""
    while begin < end and (count := os.copy_file_range(source, target, end - begin, begin)):
        begin += count
    return begin


def _collapse(fd: int, length: int) -> int:
    """Take bytes off the front of a file, in one piece with respect to writers; return errno, 0 if done."""
    import ctypes  # noqa: PLC0415 -- it takes its time, and few logs grow that long

    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except AttributeError:  # a C library other than glibc
        return errno.ENOSYS
    while fallocate(fd, _COLLAPSE_RANGE, ctypes.c_int64(0), ctypes.c_int64(length)):
        if ctypes.get_errno() != errno.EINTR:
            return ctypes.get_errno()
    return 0


class _Draft:
    """A file on its way to replace another: with that one's owner and mode, removed unless published."""

    def __init__(self, directory: int, name: str, like: int) -> None:
        self._directory = directory
        self._name = name
        self._like = like
        self._temporary = safefile.temporary_name(name)
        self.fd = -1

    def __enter__(self) -> Self:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.fd = os.open(self._temporary, flags, 0o600, dir_fd=self._directory)
        return self

    def clear(self) -> None:
        """Begin anew."""
        os.ftruncate(self.fd, 0)
        os.lseek(self.fd, 0, os.SEEK_SET)

    def publish(self) -> None:
        """Put the file in place. On disk it is there before the cut is, also if the host crashes."""
        found = os.fstat(self._like)
        mode = stat.S_IMODE(found.st_mode) & 0o666
        try:
            os.fchown(self.fd, found.st_uid, found.st_gid)
        except PermissionError:
            mode &= 0o600  # our group may not be the one that was meant
        os.fchmod(self.fd, mode)
        os.fdatasync(self.fd)
        os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def __exit__(self, _kind: object, _error: object, _trace: TracebackType | None) -> None:
        os.close(self.fd)
        with contextlib.suppress(OSError):  # published, it is not there any more
            os.unlink(self._temporary, dir_fd=self._directory)
