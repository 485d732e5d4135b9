"""Files in a directory that others may write to: opened without trust, replaced atomically.

The functions take the descriptor of an open directory and the name of an entry. They do not follow symbolic
links, and a FIFO or a device cannot make them wait.
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

from vmessd.core.errors import BadFile, failing, printable, reason, shell_line

log = logging.getLogger(__name__)

TEMPORARY = ".vmess-tmp-"  # prefix of our temporary files, which we remove after a crash

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
    """Return the type of a file with this `st_mode`, in words."""
    return next((words for test, words in _KINDS if test(mode)), "of unknown kind")


def place(directory: int, name: str) -> str:
    """Return the path of a file, for messages."""
    try:
        return printable(os.path.join(os.readlink(f"/proc/self/fd/{directory}"), name))
    except OSError:
        return printable(name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a directory for a `with` block, and yield its descriptor; raises Failed."""
    with failing(f"{printable(str(path))} cannot be opened"):
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


def status(directory: int, name: str) -> os.stat_result | None:
    """Return the status of a name, without following a link; None where it does not exist.

    Raises:
        BadFile: it cannot be accessed.
    """
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadFile(f"{place(directory, name)} cannot be accessed: {reason(error)}") from error


def must_be_plain(directory: int, name: str) -> None:
    """Raise BadFile where the name belongs to anything other than a plain file."""
    found = status(directory, name)
    if found is not None and not stat.S_ISREG(found.st_mode):
        wrong = f"{place(directory, name)} is {kind(found.st_mode)}; it must be a plain file"
        raise BadFile(wrong, hint=_away(directory, name))


def _away(directory: int, name: str) -> str:
    """Return the hint how to move away what has the name of a file of ours."""
    path = place(directory, name)
    return f"to move it away: {shell_line(['mv', '--', path, f'{path}.away'])}"


def open_plain(directory: int, name: str, flags: int, mode: int = 0o640) -> int:
    """Open a plain file and return the descriptor.

    O_NONBLOCK keeps a FIFO from blocking us; it has no effect on plain files.

    Raises:
        FileNotFoundError: it does not exist, and `flags` does not create it.
        BadFile: it is not a plain file, has more than one name, or cannot be opened.
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
        raise BadFile(f"{place(directory, name)} cannot be accessed: {reason(error)}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(fd)
        what = "a hard link to another file" if stat.S_ISREG(found.st_mode) else kind(found.st_mode)
        wrong = f"{place(directory, name)} is {what}; it must be a plain file of its own"
        raise BadFile(wrong, hint=_away(directory, name))
    return fd


def read(directory: int, name: str, limit: int, hint: str | None = None) -> bytes | None:
    """Return the content of a plain file; None where it does not exist. `hint` is for a file that is too long.

    Raises:
        BadFile: it is not a plain file, cannot be read, or has more than `limit` bytes.
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
        wrong = f"{place(directory, name)} has more than {limit} bytes; it must be a short value"
        raise BadFile(wrong, hint=hint)
    return data


def temporary_name(name: str) -> str:
    """Return a new temporary name for a file that will become `name`; :func:`sweep` removes leftovers."""
    return f"{TEMPORARY}{name}.{os.urandom(4).hex()}"


def create(directory: int, name: str, mode: int = 0o660) -> int:
    """Create a file that must not be there, and return its descriptor for writing; raises OSError."""
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=directory)


def create_empty(directory: int, name: str, size: int = 0, mode: int = 0o660) -> None:
    """Create a file of so many bytes, all of them in one hole; it must not be there. Raises OSError."""
    fd = create(directory, name, mode)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(fd)


def create_temporary(directory: int, name: str) -> str:
    """Create an empty file that will become `name`, for the user of QEMU to write to; return its name.

    Raises:
        Failed: it could not be created.
    """
    temporary = temporary_name(name)
    with failing(f"{place(directory, temporary)} cannot be created"):
        create_empty(directory, temporary)
    return temporary


def write(directory: int, name: str, data: bytes, *, durable: bool = True, mode: int = 0o640) -> None:
    """Atomically replace a plain file with one that contains `data`.

    `durable` waits until it is on disk. Records of a running process need not be durable, since the process
    does not survive a crash of the host either.

    Raises:
        BadFile: the name belongs to something that is not a plain file.
        Failed: it could not be written; the old file is unchanged. Once the new file is in place, nothing is
            raised: if the directory cannot be written to disk, this is logged.
    """
    must_be_plain(directory, name)
    temporary = temporary_name(name)
    with failing(f"{place(directory, name)} cannot be written"):
        try:
            with open(create(directory, temporary, mode), "wb") as file:
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
    """Wait until a changed directory entry is on disk.

    A failure is only a warning: the change is visible to everybody, so the caller must not undo what goes with
    it.
    """
    try:
        os.fsync(directory)
    except OSError as error:
        where = place(directory, name)
        log.warning("%s was changed, but a power cut may undo the change: %s", where, reason(error))


def link(directory: int, name: str, target: str) -> None:
    """Make `name` a symbolic link to `target`, replacing an existing link.

    Raises:
        BadFile: the name belongs to something that is not a symbolic link.
        Failed: it could not be created; the old link is unchanged. Otherwise as :func:`write`.
    """
    found = status(directory, name)
    if found is not None and not stat.S_ISLNK(found.st_mode):
        raise BadFile(f"{place(directory, name)} is {kind(found.st_mode)}; it must be a symbolic link")
    temporary = temporary_name(name)
    with failing(f"{place(directory, name)} cannot be created"):
        os.symlink(target, temporary, dir_fd=directory)
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
    _settle(directory, name)


def remove(directory: int, name: str, *, durable: bool = False) -> None:
    """Remove a name if it exists. `durable` as for :func:`write`.

    Raises:
        Failed: it could not be removed.
    """
    with failing(f"{place(directory, name)} cannot be removed"), contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
        if durable:
            _settle(directory, name)


def sweep(directory: int) -> None:
    """Remove what :func:`write`, :func:`link` and :func:`succeeding` leave after a crash.

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
        BadFile: the name belongs to something else.
    """
    found = status(directory, name)
    if found is None:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise BadFile(
            f"{place(directory, name)} is {kind(found.st_mode)} in the place of a socket; move it away"
        )
    remove(directory, name)


def listener(directory: int, name: str, mode: int, backlog: int = 128) -> socket.socket:
    """Return a listening Unix stream socket of this name, replacing a stale one.

    The mode is set before the socket has a name (Linux takes it from the inode of the unbound socket), so it is
    never more permissive. The path through /proc avoids the limit of 107 bytes.

    Raises:
        BadFile: the name belongs to something that is not a socket.
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
    """Yield a listening socket and a non-blocking socket connected to it.

    If the `with` block succeeds, the listening socket replaces the existing one of this name, and the connected
    one stays open for the caller. The listening socket is closed here; another process has inherited it by
    then.

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
    """Return a non-blocking socket connected to the one of this name; the length of the path does not matter.

    Raises:
        Failed: nobody listens there, or its queue is full.
    """
    with failing(f"{place(directory, name)} cannot be reached"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with failing(f"{place(directory, name)} cannot be reached"):
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                sock.connect(f"/proc/self/fd/{found}")  # this socket, never the target of a link
            finally:
                os.close(found)
    except BaseException:
        sock.close()
        raise
    return sock


def link_target(directory: int, name: str) -> str | None:
    """Return the target of a symbolic link; None where it is not one."""
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return None


def device_size(device: int) -> int:
    """Return the size of a block device in bytes; sysfs has it in units of 512 (block/<dev>/size)."""
    try:
        text = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/size").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text) * 512


def empty(path: Path) -> None:
    """Delete the content of a directory without following links. Raises OSError."""
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
