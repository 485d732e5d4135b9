"""The import of a VM from an export: its files are checked and written as they come."""

import os
from pathlib import Path

from vmessd.core import settings
from vmessd.core.errors import InvalidValue, failing
from vmessd.core.settings import Setting
from vmessd.storage import contents, copying, renaming, safefile
from vmessd.storage.archive_reader import Reader
from vmessd.storage.incoming import Incoming
from vmessd.storage.tar_reader import Begin, Data, refused
from vmessd.storage.vmdir import TPM_STATE, VMDirectory

SYNC_EVERY = 256 << 20
"""Bytes after which they are written to disk, so that the end does not wait for all of them."""


class Import(Incoming):
    """One import of an export."""

    def __init__(self, root: Path, name: str | None, *, words_for_qemu: bool) -> None:
        """`words_for_qemu`: this daemon honours settings that pass arguments to QEMU."""
        super().__init__(root, name)
        self._words_for_qemu = words_for_qemu
        self._reader: Reader = Reader()
        self._setting: tuple[Setting, bytearray] | None = None
        self._unwritten = 0

    @property
    def made_of(self) -> str:
        """The name of the VM in the archive."""
        return self._reader.vm

    def finish(self) -> VMDirectory:
        """Make the directory that of the VM, whose disks name their bases as its links are called."""
        vm = self._target()
        if vm.vm != self._reader.vm:
            with failing(f"{vm} cannot be created"):
                renaming.name_bases(self.directory.fd, vm.vm)
        return super().finish()

    # -- Steps --

    def _begin(self) -> None:
        if self._reader.vm:
            self._create(self._reader.vm, sum(listed.data for listed in self._reader.files.values()))

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
                os.symlink(name, base.link(self.vm), dir_fd=self.directory.fd)
            os.ftruncate(self._file, event.size)

    def _created(self, name: str, mode: int) -> int:
        """Create a file, the state of a TPM in its directory, and return its descriptor; raises OSError."""
        if name != contents.TPM_FILE:
            return safefile.create(self.directory.fd, name, mode)
        os.mkdir(TPM_STATE, mode=0o770, dir_fd=self.directory.fd)
        state = os.open(TPM_STATE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.directory.fd)
        try:
            file = safefile.create(state, name, mode)
            os.fsync(state)
            return file
        finally:
            os.close(state)

    def _write(self, event: Data) -> None:
        if self._setting is not None:
            self._setting[1].extend(event.data)
        copying.write_all(self._file, event.data, event.offset)
        self._unwritten += len(event.data)
        if self._unwritten >= SYNC_EVERY:
            os.fdatasync(self._file)
            self._unwritten = 0

    def _end_file(self) -> None:
        if self._setting is not None:
            self._check_setting(*self._setting)
        os.fsync(self._file)

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
