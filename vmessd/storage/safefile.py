"""Files in a directory that somebody else may write to: opened without trust, replaced atomically.

Every function takes the descriptor of an open directory and a plain name in it, follows no symbolic
link, and cannot be made to wait by a FIFO or a device.
"""

import contextlib
import errno
import logging
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from vmessd.core.errors import BadFile, failing, printable, reason

log = logging.getLogger(__name__)

TEMPORARY = ".vmess-tmp-"  # what is left with this prefix after a crash is ours to remove

_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISREG, "a plain file"),
)


def kind(mode: int) -> str:
    """Return in words what sort of file has this `st_mode`."""
    return next((words for test, words in _KINDS if test(mode)), "of unknown kind")


def place(directory: int, name: str) -> str:
    """Return the path of a file for messages."""
    try:
        return printable(os.path.join(os.readlink(f"/proc/self/fd/{directory}"), name))
    except OSError:
        return printable(name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a directory for the length of a `with` and yield its descriptor; raises Failed."""
    with failing(f"{printable(str(path))} cannot be opened"):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


def status(directory: int, name: str) -> os.stat_result | None:
    """Return what a name stands for, not following a link; None where there is nothing.

    Raises:
        BadFile: the directory does not let us look.
    """
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadFile(f"{place(directory, name)} cannot be looked at: {reason(error)}") from error


def must_be_plain(directory: int, name: str) -> None:
    """Raise BadFile where the name is taken by anything but a plain file."""
    found = status(directory, name)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise BadFile(f"{place(directory, name)} is {kind(found.st_mode)}; it has to be a plain file")


def open_plain(directory: int, name: str, flags: int, mode: int = 0o640) -> int:
    """Open a plain file and return the descriptor.

    O_NONBLOCK keeps a FIFO from holding us; for plain files it means nothing.

    Raises:
        FileNotFoundError: there is none and `flags` does not create it.
        BadFile: it is something else than a plain file with one name, or may not be opened.
    """
    must_be_plain(directory, name)
    try:
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=directory)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadFile(f"{place(directory, name)} cannot be opened: {reason(error)}") from error
    try:
        found = os.fstat(fd)
    except OSError as error:
        os.close(fd)
        raise BadFile(f"{place(directory, name)} cannot be looked at: {reason(error)}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        what = "a hard link to another file" if stat.S_ISREG(found.st_mode) else kind(found.st_mode)
        raise BadFile(f"{place(directory, name)} is {what}; it has to be a plain file of its own")
    return fd


def read(directory: int, name: str, limit: int) -> bytes | None:
    """Return what a plain file holds; None where there is no such file.

    Raises:
        BadFile: it is no plain file, cannot be read, or holds more than `limit` bytes.
    """
    try:
        fd = open_plain(directory, name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise BadFile(f"{place(directory, name)} cannot be read: {reason(error)}") from error
    if len(data) > limit:
        raise BadFile(f"{place(directory, name)} holds more than {limit} bytes; it has to be a short value")
    return data


def temporary_name(name: str) -> str:
    """Return a fresh name for what is to become `name`; if a crash leaves it, it is swept."""
    return f"{TEMPORARY}{name}.{os.urandom(4).hex()}"


def write(directory: int, name: str, data: bytes, *, durable: bool = True) -> None:
    """Replace a plain file by one that holds `data`: all of it or the old one, whatever happens.

    `durable` waits until the disk has it; what describes a running process need not, since the
    process does not survive a crash of the host either.

    Raises:
        BadFile: the name is taken by something that is no plain file.
        Failed: it could not be written; the old file is as it was. Nothing is raised once the new one is in
            place: that the directory did not reach the disk then is logged.
    """
    must_be_plain(directory, name)
    temporary = temporary_name(name)
    with failing(f"{place(directory, name)} cannot be written"):
        try:
            fd = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640, dir_fd=directory
            )
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
    if durable:
        _settle(directory, name)


def _settle(directory: int, name: str) -> None:
    """Wait until the disk has what a name stands for now.

    Where that fails the name stands for it all the same, for everybody who looks. So it is a warning, and not
    an error by which a caller would take back what goes with it.
    """
    try:
        os.fsync(directory)
    except OSError as error:
        where = place(directory, name)
        log.warning("%s is changed, but a power cut may undo it: %s", where, reason(error))


def link(directory: int, name: str, target: str) -> None:
    """Make `name` a symbolic link to `target`, replacing the link that is there.

    Raises:
        BadFile: the name is taken by something that is no symbolic link.
        Failed: it could not be made; the old link is as it was. Otherwise as :func:`write`.
    """
    found = status(directory, name)
    if found is not None and not stat.S_ISLNK(found.st_mode):
        raise BadFile(f"{place(directory, name)} is {kind(found.st_mode)}; it has to be a symbolic link")
    temporary = temporary_name(name)
    with failing(f"{place(directory, name)} cannot be made"):
        os.symlink(target, temporary, dir_fd=directory)
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
    _settle(directory, name)


def remove(directory: int, name: str, *, durable: bool = False) -> None:
    """Remove a name; nothing to do where there is none. `durable` as for :func:`write`.

    Raises:
        Failed: it is there and stays.
    """
    with failing(f"{place(directory, name)} cannot be removed"), contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
        if durable:
            _settle(directory, name)


def sweep(directory: int) -> None:
    """Remove what :func:`write` and :func:`link` leave after a crash.

    Raises:
        BadFile, Failed: the directory cannot be read or written to.
    """
    with failing(f"{place(directory, '')} cannot be read"):
        entries = [name for name in os.listdir(directory) if name.startswith(TEMPORARY)]
    for name in entries:
        found = status(directory, name)
        if found and stat.S_IFMT(found.st_mode) in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFSOCK):
            remove(directory, name)


def remove_socket(directory: int, name: str) -> None:
    """Remove a socket that a dead process left.

    Raises:
        BadFile: the name is taken by something else.
    """
    found = status(directory, name)
    if found is None:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise BadFile(
            f"{place(directory, name)} is {kind(found.st_mode)} where a socket has to be; move it away"
        )
    remove(directory, name)


def listener(directory: int, name: str, mode: int, backlog: int = 128) -> socket.socket:
    """Return a listening Unix stream socket of this name, replacing a stale one.

    The mode is set before the socket has a name (Linux takes it from the unbound socket's inode), so
    it is never wider, not even for a moment. The way through /proc lifts the limit of 107 bytes.

    Raises:
        BadFile: the name is taken by something that is no socket.
        Failed: it could not be bound.
    """
    remove_socket(directory, name)
    with failing(f"{place(directory, name)} cannot be bound"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), mode)
        with failing(f"{place(directory, name)} cannot be bound"):
            sock.bind(f"/proc/self/fd/{directory}/{name}")
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def succeeding(directory: int, name: str, mode: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Yield a listening socket and a non-blocking one connected to it.

    If the `with` ends well, the first has taken this name from the socket that had it; the second, which is
    then the caller's to close, stays open. The first is closed here: somebody else holds it by then.

    Raises:
        Failed: it could not be bound or renamed.
    """
    temporary = f"{TEMPORARY}{name}.{os.urandom(4).hex()}"
    try:
        with listener(directory, temporary, mode) as listening:
            connected = connect(directory, temporary)
            try:
                yield listening, connected
                with failing(f"{place(directory, name)} cannot be replaced"):
                    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                connected.close()
                raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise


def connect(directory: int, name: str) -> socket.socket:
    """Return a non-blocking socket connected to the one of this name, whatever the depth of the path.

    Raises:
        Failed: nobody listens there, or those who wait for its owner already fill its queue.
    """
    with failing(f"{place(directory, name)} cannot be reached"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with failing(f"{place(directory, name)} cannot be reached"):
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                sock.connect(f"/proc/self/fd/{found}")  # the very socket, and not what a link leads to
            finally:
                os.close(found)
    except BaseException:
        sock.close()
        raise
    return sock


def link_target(directory: int, name: str) -> str | None:
    """Return where a symbolic link leads, None where it is none."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def device_size(device: int) -> int:
    """Return the bytes of a block device; the kernel counts in 512 (sysfs, block/<dev>/size)."""
    try:
        text = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/size").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text) * 512


def empty(path: Path) -> None:
    """Delete all that a directory holds, following no link. Raises OSError."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in os.listdir(directory):
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
    except RecursionError:
        raise OSError(errno.ELOOP, "directories are nested too deep") from None
    finally:
        os.close(directory)
