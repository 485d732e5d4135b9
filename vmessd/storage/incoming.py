"""What arrives as an archive, and becomes a VM at the very end: an export, or an OVA.

The archive is fed piece by piece. Everything here blocks, each piece as long as its bytes take to be written.
"""

import os
from pathlib import Path

from vmessd.core.errors import failing
from vmessd.storage import copying, safefile
from vmessd.storage.new_directory import NewDirectory
from vmessd.storage.tar_reader import Begin, Data, Tar
from vmessd.storage.vmdir import VMDirectory


class Incoming:
    """One archive. It belongs to one thread at a time; :meth:`close` removes what did not become a VM."""

    _reader: Tar

    def __init__(self, root: Path, name: str | None) -> None:
        """Import into `root`, under `name` or the name in the archive."""
        self.vm = name
        """The name of the VM; None while only the archive knows it."""
        self._root = root
        self._new: NewDirectory | None = None
        self._file = -1
        """The descriptor of the file that is being written."""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the archive.

        Raises:
            Failed: the archive is refused, or the file system is full.
            BadFile: there is a VM of this name already.
        """
        events = self._reader.feed(data)
        if self._new is None:
            self._begin()
        for event in events:
            if isinstance(event, Begin):
                self._open(event)
            elif isinstance(event, Data):
                with failing(f"VM {self.vm} cannot be written"):
                    self._write(event)
            else:
                with failing(f"VM {self.vm} cannot be written"):
                    self._end_file()
                os.close(self._file)
                self._file = -1

    def end(self) -> None:
        """Check that the archive was whole; raises Failed."""
        self._reader.end()

    def finish(self) -> VMDirectory:
        """Make the directory that of the VM; raises as :meth:`feed`."""
        self.directory.finish()
        return self._target()

    def close(self) -> str | None:
        """Remove what did not become a VM; return the name of the directory if that is impossible."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        return None if self._new is None else self._new.close()

    @property
    def directory(self) -> NewDirectory:
        """The directory that will be that of the VM."""
        assert self._new is not None  # noqa: S101 -- it is there before any file
        return self._new

    def _target(self) -> VMDirectory:
        assert self.vm is not None  # noqa: S101 -- known before there is a directory
        return VMDirectory(self._root, self.vm)

    def _create(self, name: str, wanted: int) -> None:
        """Create the directory of a VM, which has `name` if it was not given one; `wanted` is in bytes."""
        self.vm = self.vm or name
        self._target().must_be_new()
        self._check_room(wanted)
        self._new = NewDirectory(self._target())

    def _check_room(self, wanted: int) -> None:
        with safefile.opened(self._root) as root:
            copying.check_room(root, wanted, str(self._root), f"VM {self.vm} takes")

    # -- What kinds of archives differ in --

    def _begin(self) -> None:
        """Create the directory, if enough was read to know of which VM."""
        raise NotImplementedError

    def _open(self, event: Begin) -> None:
        """Open the file that begins."""
        raise NotImplementedError

    def _write(self, event: Data) -> None:
        """Write data to the file that is open; raises Failed, OSError."""
        raise NotImplementedError

    def _end_file(self) -> None:
        """Complete the file that is open; raises Failed, OSError."""
        raise NotImplementedError
