"""Copies of images: shared blocks where the file system can (FICLONE), else only the data between the holes.

Everything here blocks. Sources: ioctl_ficlone(2), copy_file_range(2), lseek(2). Sizes and offsets are in bytes.
"""

import contextlib
import errno
import fcntl
import io
import os
import stat
import struct
from collections.abc import Callable, Iterator

from vmessd.core.errors import Failed, reason
from vmessd.core.quantities import size_shown

FICLONE = 0x40049409
FS_IOC_UNRESVSP64, _SPACE = 0x4030582B, "hh4xqq24x"
"""Frees a range of a file, as fallocate(2) with FALLOC_FL_PUNCH_HOLE; struct space_resv (linux/falloc.h)."""
PIECE = 8 * 2**20
"""Bytes that are copied between two reports."""
GRAIN = 64 * 1024
"""Zeros of this length become a hole, where the kernel cannot copy."""
_ZEROS = bytes(GRAIN)
_CANNOT = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ETXTBSY)


Report = Callable[[int], None]
"""Called with the number of bytes that were handled; it may raise :exc:`Cancelled`."""


class Cancelled(Exception):
    """The copy was cancelled."""


def copy(
    source: io.FileIO,
    target: io.FileIO,
    size: int,
    report: Report = lambda _done: None,
    *,
    durable: bool = False,
) -> None:
    """Copy the first `size` bytes of a file or block device to an empty file; `durable` waits for the disk.

    Both files are closed here, because only this thread knows when it no longer uses them.

    Raises:
        Cancelled: `report` raised it.
        Failed: there is no space, the source became shorter, or cannot be read.
    """
    with source, target:
        try:
            if not _cloned(source.fileno(), target.fileno(), size):
                os.ftruncate(target.fileno(), size)
                for begin, end in _data(source.fileno(), size):
                    _copy_range(source.fileno(), target.fileno(), begin, end, report)
                found = os.fstat(source.fileno())
                if stat.S_ISREG(found.st_mode) and found.st_size < size:
                    raise _became_shorter()
            if durable:
                os.fsync(target.fileno())
        except OSError as error:
            raise Failed(f"the image cannot be copied: {reason(error)}") from error


def _cloned(source: int, target: int, size: int) -> bool:
    """Share all blocks of the source, if the file system can; tell whether this was done."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:
        return False
    if os.fstat(target).st_size != size:  # it has grown or shrunk meanwhile
        os.ftruncate(target, 0)
        return False
    return True


def _data(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges that contain data; all of it where holes are not known."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
            end = min(size, os.lseek(source, begin, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            begin, end = at, size
        if begin >= size:
            return
        yield begin, end
        at = end


def _copy_range(source: int, target: int, begin: int, end: int, report: Report) -> None:
    copy_piece = _by_kernel
    while begin < end:
        try:
            done = copy_piece(source, target, begin, min(PIECE, end - begin))
        except OSError as error:
            if copy_piece is not _by_kernel or error.errno not in _CANNOT:
                raise
            copy_piece = _by_hand
            continue
        if not done:
            raise _became_shorter()
        begin += done
        report(begin)


def _by_kernel(source: int, target: int, begin: int, count: int) -> int:
    return os.copy_file_range(source, target, count, begin, begin)


def _by_hand(source: int, target: int, begin: int, count: int) -> int:
    """Copy a piece by reading and writing it, without long runs of zeros."""
    data = os.pread(source, min(count, 2**20), begin)
    write_sparse(target, data, begin)
    return len(data)


def write_sparse(target: int, data: bytes, place: int) -> None:
    """Write the data at a place where nothing was written, without long runs of zeros; raises OSError."""
    for at in range(0, len(data), GRAIN):
        grain = data[at : at + GRAIN]
        if grain != _ZEROS[: len(grain)]:
            write_all(target, grain, place + at)


def write_all(target: int, data: bytes | memoryview, place: int) -> None:
    """Write all of the data at a place; raises OSError."""
    while data:
        written = os.pwrite(target, data, place)
        data, place = data[written:], place + written


def _became_shorter() -> Failed:
    return Failed("the image became shorter while it was copied", hint="bring it when nobody writes to it")


def can_share(source: int, name: str, target: int) -> bool:
    """Tell whether a file of a directory can have its blocks in common with a copy in another; blocks."""
    with contextlib.suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            probe = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=target)
            try:
                fcntl.ioctl(probe, FICLONE, fd)
                return True
            finally:
                os.close(probe)
        finally:
            os.close(fd)
    return False


def dig_holes(fd: int, size: int) -> None:
    """Free the space of ranges of a file that have some, but contain zeros that nobody wrote or read.

    Where the file system cannot, nothing is done.
    """
    at = 0
    with contextlib.suppress(OSError):
        for begin, end in [*_data(fd, size), (size, size)]:
            if begin > at:
                fcntl.ioctl(fd, FS_IOC_UNRESVSP64, struct.pack(_SPACE, 0, os.SEEK_SET, at, begin - at))
            at = end


def allocated(found: os.stat_result) -> int:
    """Return the bytes that a copy of a file will take at most."""
    return min(found.st_size, found.st_blocks * 512)


def check_room(directory: int, wanted: int, where: str, what: str = "the image takes") -> None:
    """Raise Failed if the file system of a directory has less free space than `wanted`, which `what` takes."""
    with contextlib.suppress(OSError):
        found = os.fstatvfs(directory)
        free = found.f_bavail * found.f_frsize
        if free < wanted:
            raise Failed(
                f"{where} has {size_shown(free)} free, and {what} {size_shown(wanted)}",
                hint=f"to see what fills it: df -h {where}",
            )
