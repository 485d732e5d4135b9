"""The import of a VM from an archive, into a directory that becomes that of the VM at the very end.

Until then, the name of the directory says that it is being made, so that nobody takes it for a VM, and the next
daemon removes it after a crash. Everything here blocks, each piece as long as its bytes take to be written.
"""

import contextlib
import os
from pathlib import Path

from vmessd.core import settings
from vmessd.core.errors import InvalidValue, failing
from vmessd.core.settings import Setting
from vmessd.storage import contents, copying, renaming, safefile
from vmessd.storage.archive_reader import Reader
from vmessd.storage.tar_reader import Begin, Data, Event, refused
from vmessd.storage.vmdir import TPM_STATE, NewDirectory, VMDirectory

SYNC_EVERY = 256 << 20
"""Bytes after which they are written to disk, so that the end does not wait for all of them."""


class Import:
    """One import. It belongs to one thread at a time; :meth:`close` removes what did not become a VM."""

    def __init__(self, root: Path, name: str | None, *, words_for_qemu: bool) -> None:
        """Import into `root`, under `name` or the name in the archive.

        `words_for_qemu`: this daemon honours settings that pass arguments to QEMU.
        """
        self.vm = name
        """The name of the VM; None while only the archive knows it."""
        self._root = root
        self._words_for_qemu = words_for_qemu
        self._reader = Reader()
        self._new: NewDirectory | None = None
        self._directory = self._file = -1
        self._setting: tuple[Setting, bytearray] | None = None
        self._unwritten = 0

    @property
    def made_of(self) -> str:
        """The name of the VM in the archive."""
        return self._reader.vm

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the archive.

        Raises:
            Failed: the archive is refused, or the file system is full.
            BadFile: there is a VM of this name already.
        """
        events = self._reader.feed(data)
        if self._new is None and self._reader.vm:
            self._begin()
        for event in events:
            self._do(event)

    def finish(self) -> VMDirectory:
        """Check that the archive was whole, and make its directory that of a VM; raises as :meth:`feed`."""
        self._reader.end()
        vm = self._target()
        assert self._new is not None  # noqa: S101 -- a whole archive has begun
        if vm.vm != self._reader.vm:
            renaming.name_bases(self._directory, vm.vm)
        with failing(f"{vm} cannot be created"):
            os.fsync(self._directory)
        self._new.finish()
        with safefile.opened(self._root) as root, contextlib.suppress(OSError):
            os.fsync(root)
        return vm

    def close(self) -> str | None:
        """Remove what did not become a VM; return the name of the directory if that is impossible."""
        for fd in (self._file, self._directory):
            if fd >= 0:
                os.close(fd)
        self._file = self._directory = -1
        return None if self._new is None else self._new.close()

    # -- Steps --

    def _target(self) -> VMDirectory:
        return VMDirectory(self._root, self.vm or self._reader.vm)

    def _begin(self) -> None:
        vm = self._target()
        self.vm = vm.vm
        vm.must_be_new()
        wanted = sum(listed.data for listed in self._reader.files.values())
        with safefile.opened(self._root) as root:
            copying.check_room(root, wanted, str(self._root), f"VM {vm.vm} takes")
        self._new = NewDirectory(vm)
        with failing(f"{vm} cannot be created"):
            self._directory = os.open(self._new.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _do(self, event: Event) -> None:
        if isinstance(event, Begin):
            self._open(event)
        elif isinstance(event, Data):
            self._write(event)
        else:
            self._close_file()

    def _open(self, event: Begin) -> None:
        assert self.vm is not None  # noqa: S101 -- set by the first member
        name = contents.name_in(event.file, self._reader.vm, self.vm)
        assert name is not None  # noqa: S101 -- checked by the reader
        is_setting = contents.is_setting(name)
        self._setting = (settings.BY_FILE[name], bytearray()) if is_setting else None
        with failing(f"{self._target()}/{name} cannot be created"):
            mode = 0o660 if contents.text_limit(name) is None else 0o640
            self._file = self._created(name, mode)
            if base := contents.stored_base(name):
                os.symlink(name, base.link(self.vm), dir_fd=self._directory)
            os.ftruncate(self._file, event.size)

    def _created(self, name: str, mode: int) -> int:
        """Create a file, the state of a TPM in its directory, and return its descriptor; raises OSError."""
        if name != contents.TPM_FILE:
            return safefile.create(self._directory, name, mode)
        os.mkdir(TPM_STATE, mode=0o770, dir_fd=self._directory)
        state = os.open(TPM_STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            file = safefile.create(state, name, mode)
            os.fsync(state)
            return file
        finally:
            os.close(state)

    def _write(self, event: Data) -> None:
        if self._setting is not None:
            self._setting[1].extend(event.data)
        with failing(f"VM {self.vm} cannot be written"):
            copying.write_all(self._file, event.data, event.offset)
            self._unwritten += len(event.data)
            if self._unwritten >= SYNC_EVERY:
                os.fdatasync(self._file)
                self._unwritten = 0

    def _close_file(self) -> None:
        if self._setting is not None:
            self._check_setting(*self._setting)
        with failing(f"VM {self.vm} cannot be written"):
            os.fsync(self._file)
        os.close(self._file)
        self._file = -1

    def _check_setting(self, setting: Setting, data: bytearray) -> None:
        """Refuse a value that a start would refuse."""
        try:
            setting.value(data.decode().strip())
        except UnicodeDecodeError:
            raise refused(f"{setting.file} is not text; it must be {setting.expects}") from None
        except InvalidValue as error:
            raise refused(error.message) from None
        if setting.words_for_qemu and not self._words_for_qemu:
            raise refused(f"its {setting.file} passes arguments to QEMU, which this vmessd does not allow")
