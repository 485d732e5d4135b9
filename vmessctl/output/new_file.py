"""A file that the client writes: it must not be there before, and gets its name when it is whole."""

from __future__ import annotations

import os
import sys

from vmessctl.output import ending
from vmessd.core.errors import InvalidValue, failing, printable, quoted

STANDARD = "-"
"""The word that means standard output, or input."""
NOREPLACE, HERE = 1, -100
"""RENAME_NOREPLACE of renameat2(2), and AT_FDCWD."""


def must_be_new(file: str) -> None:
    """Raise InvalidValue if there is something of this name."""
    if file != STANDARD and os.path.lexists(file):
        raise InvalidValue(
            f"{quoted(file, 300)} exists already; an export never overwrites a file",
            hint="choose another name, or delete the file",
        )


class NewFile:
    """A file to write to. It has its name after the `with` block, unless that fails."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._parent = os.path.dirname(file) or "."
        self._draft: str | None = None
        """Its name until it is whole, where the file system has no files without a name."""
        self._fd = -1

    def __enter__(self) -> int:
        if self._file == STANDARD:
            return sys.stdout.fileno()
        try:
            with failing(f"{printable(self._file)} cannot be created"):
                try:
                    self._fd = os.open(self._parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
                except OSError:
                    self._begin_draft()
        except BaseException:  # a signal too, which ends the program before the block begins
            self._close()
            raise
        return self._fd

    def _begin_draft(self) -> None:
        """Create the file with a name that says that it is not whole; raises OSError."""
        ending.by_exception()
        # Of no other process: the directory may be that of a file server.
        draft = os.path.join(self._parent, f".vmess-{os.urandom(8).hex()}")
        with ending.held_back():
            self._fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            self._draft = draft

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._file == STANDARD:
            return
        try:
            if error is None:
                with failing(f"{printable(self._file)} cannot be written"):
                    os.fsync(self._fd)
                    self._give_name()
        finally:
            self._close()

    def _close(self) -> None:
        """Close the file, and delete it unless it has its name."""
        if self._fd >= 0:
            os.close(self._fd)
        if self._draft is not None:
            os.unlink(self._draft)

    def _give_name(self) -> None:
        """Give the file its name, which must be free; raises OSError."""
        directory = os.open(self._parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if self._draft is None:
                # With a descriptor, this is linkat(2), which follows the link in /proc (open(2), O_TMPFILE).
                os.link(f"/proc/self/fd/{self._fd}", self._file, src_dir_fd=directory)
            else:
                self._name_draft(self._draft)
            os.fsync(directory)
        finally:
            os.close(directory)

    def _name_draft(self, draft: str) -> None:
        try:
            os.link(draft, self._file)
        except FileExistsError:
            raise
        except OSError:  # FAT has no links; NFS has them, and no renaming that does not replace
            with ending.held_back():
                _rename(draft, self._file)
                self._draft = None


def _rename(old: str, new: str) -> None:
    """Rename a file; raises OSError, also if there is one of the new name."""
    import ctypes  # noqa: PLC0415 -- rarely needed, and slow to import

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(HERE, os.fsencode(old), HERE, os.fsencode(new), NOREPLACE):
        raise OSError(number := ctypes.get_errno(), os.strerror(number))
