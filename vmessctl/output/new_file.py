"""A file that the client writes: it must not be there before, and gets its name when it is whole."""

from __future__ import annotations

import os
import sys

from vmessd.core.errors import InvalidValue, failing, printable, quoted

STANDARD = "-"
"""The word that means standard output, or input."""


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
        self._temporary: str | None = None
        """Its name until it is whole, where the file system has no files without a name."""
        self._fd = -1

    def __enter__(self) -> int:
        if self._file == STANDARD:
            return sys.stdout.fileno()
        with failing(f"{printable(self._file)} cannot be created"):
            try:
                self._fd = os.open(self._parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
            except OSError:
                name = os.path.join(self._parent, f".{os.path.basename(self._file)}.{os.getpid()}")
                self._fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                self._temporary = name
        return self._fd

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._file == STANDARD:
            return
        try:
            if error is None:
                with failing(f"{printable(self._file)} cannot be written"):
                    os.fsync(self._fd)
                    self._give_name()
        finally:
            os.close(self._fd)
            if self._temporary is not None:
                os.unlink(self._temporary)

    def _give_name(self) -> None:
        """Link the file to its name, which must be free; raises OSError."""
        directory = os.open(self._parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # With a descriptor, this is linkat(2), which follows the link in /proc (open(2), O_TMPFILE).
            source = self._temporary or f"/proc/self/fd/{self._fd}"
            os.link(source, self._file, src_dir_fd=directory if self._temporary is None else None)
            os.fsync(directory)
        finally:
            os.close(directory)
