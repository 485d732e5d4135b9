"""A directory that becomes that of a VM at the very end.

Its name says until then that it is being made. So nobody takes it for a VM, and the next daemon removes it
after a crash. Everything here blocks.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from vmessd.core.errors import VmessError, failing
from vmessd.storage import safefile
from vmessd.storage.vmdir import MAKING, VMDirectory


class NewDirectory:
    """A directory in the making; :meth:`close` removes what did not become a VM."""

    def __init__(self, vm: VMDirectory) -> None:
        """Create it; raises Failed, BadFile."""
        vm.must_be_new()
        self._vm = vm
        self._is_there = False
        self.path = vm.path.with_name(f"{MAKING}{vm.vm}-{os.urandom(4).hex()}")
        with failing(f"{vm} cannot be created"):
            # Others must not open it, because then they could lock it. The group may be QEMU's, and only
            # passes.
            self.path.mkdir(mode=0o710)
            try:
                self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                with contextlib.suppress(OSError):
                    self.path.rmdir()
                raise
        self._is_there = True

    def finish(self) -> None:
        """Make it that of the VM, also after a power cut.

        Raises:
            Failed, BadFile: another process was faster, or it cannot be renamed.
        """
        self._vm.must_be_new()
        with failing(f"{self._vm} cannot be created"):
            os.fsync(self.fd)
            try:
                self.path.rename(self._vm.path)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    self._vm.must_be_new()
                raise
        self._is_there = False
        with contextlib.suppress(VmessError, OSError), safefile.opened(self._vm.path.parent) as root:
            os.fsync(root)

    def close(self) -> str | None:
        """Remove what did not become a VM; return its name in the root if that is impossible."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._is_there:
            try:
                safefile.empty(self.path)
                self.path.rmdir()
            except OSError:
                return self.path.name
            self._is_there = False
        return None


def make(
    vm: VMDirectory,
    files: Mapping[str, str] = MappingProxyType({}),
    left: Callable[[str], None] = lambda _name: None,
) -> None:
    """Create the directory of a VM atomically, with settings by file name.

    If the temporary directory cannot be removed after an error, `left` is called with its name in the root.

    Raises:
        Failed: it could not be created, or exists already.
    """
    vm.must_be_new("leave out make")
    new = NewDirectory(vm)
    try:
        with failing(f"{vm} cannot be created"):
            for file, text in files.items():
                safefile.write(new.fd, file, f"{text}\n".encode())
        new.finish()
    finally:
        if name := new.close():
            left(name)
