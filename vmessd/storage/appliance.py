"""The import of a VM from an OVA, into a directory that becomes that of the VM at the very end.

The images of its disks are written as they come, and converted there by others. Everything here blocks, each
piece as long as its bytes take to be written.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vmessd.core import names, settings
from vmessd.core.errors import InvalidValue, failing, printable, quoted
from vmessd.core.settings import size_text
from vmessd.storage import backing, copying, ovf, safefile
from vmessd.storage.ova_reader import Reader
from vmessd.storage.ovf import Machine
from vmessd.storage.tar_reader import Begin, Data, Event, refused
from vmessd.storage.vmdir import NewDirectory, VMDirectory

PIECE = 1 << 20
"""Bytes that are unpacked at a time."""
_GZIP = 16 + zlib.MAX_WBITS
SHOWN = 200
"""Characters of the networks and files in a remark."""


class Part(NamedTuple):
    """The image of a disk, as it was in the OVA."""

    slot: str
    name: str
    """Its name in the OVA."""
    file: str
    """Its temporary name."""
    disk: ovf.Disk


class _Unpacked:
    """A file that is being written, unpacked if it is compressed, without long runs of zeros."""

    def __init__(self, fd: int, disk: ovf.Disk) -> None:
        assert disk.file is not None  # noqa: S101 -- it has one, because that is what comes
        self.fd = fd
        self._name = disk.file.name
        self._unpacking = zlib.decompressobj(_GZIP) if disk.file.is_packed else None
        self._size = 0
        self._most = disk.capacity + disk.capacity // 8 + (64 << 20)
        """An image is not much larger than what is in it; a compressed one could be endless."""

    def write(self, data: bytes) -> None:
        """Write the next bytes of the archive; raises Failed, OSError."""
        for piece in self._pieces(data):
            copying.write_sparse(self.fd, piece, self._size)
            self._size += len(piece)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if self._unpacking is None:
            yield data
            return
        while data:
            try:
                piece = self._unpacking.decompress(data, PIECE)
            except zlib.error:
                raise refused(f"{quoted(self._name)} is damaged: gzip cannot unpack it") from None
            yield piece
            if self._size > self._most:
                raise refused(f"{quoted(self._name)} is much larger than its disk when it is unpacked")
            data = self._unpacking.unconsumed_tail

    def finish(self) -> None:
        """End it with its last hole; raises Failed, OSError."""
        if self._unpacking is not None and (not self._unpacking.eof or self._unpacking.unused_data):
            raise refused(f"{quoted(self._name)} is damaged: gzip does not end where the file ends")
        os.ftruncate(self.fd, self._size)


class ApplianceImport:
    """One import of an OVA, used as `Import` of an export, with :meth:`keep` before the end."""

    def __init__(self, root: Path, name: str | None) -> None:
        """Import into `root`, under `name` or the name in the descriptor."""
        self.vm = name
        """The name of the VM; None while only the descriptor knows it."""
        self.parts: list[Part] = []
        """The images that are to be converted, and then kept."""
        self._root = root
        self._reader = Reader()
        self._new: NewDirectory | None = None
        self._directory = -1
        self._disks: dict[str, tuple[str, ovf.Disk]] = {}
        """Slot and disk, by the name of the file in the OVA."""
        self._writing: _Unpacked | None = None
        self._notes: list[str] = []

    @property
    def home(self) -> VMDirectory:
        """The directory that will be that of the VM, where it is now."""
        assert self._new is not None  # noqa: S101 -- it was begun before there is a disk
        return VMDirectory(self._root, self._target().vm, self._new.path)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the OVA.

        Raises:
            Failed: the OVA is refused, or the file system is full.
            BadFile: there is a VM of this name already.
        """
        events = self._reader.feed(data)
        if self._new is None and self._reader.machine is not None:
            self._begin(self._reader.machine)
        for event in events:
            self._do(event)

    def end(self) -> None:
        """Check that the OVA was whole; raises Failed."""
        self._reader.end()

    def keep(self, part: Part, file: str, form: str) -> None:
        """Make an image of a format, under its temporary name, the disk of the VM.

        Raises:
            Failed: it is raw and ends before its disk does; it cannot be renamed.
        """
        with failing(f"{self._target()} cannot be created"):
            name = names.disk_file(self._target().vm, part.slot, form)
            self._compare(part, self._size(file, form), form)
            os.rename(file, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def finish(self) -> VMDirectory:
        """Write the settings and empty disks, and make the directory that of the VM; raises as :meth:`feed`."""
        vm, machine = self._target(), self._machine()
        for file, text in {**settings.OF_NEW_VM, **machine.settings}.items():
            safefile.write(self._directory, file, f"{text}\n".encode())
        for slot, disk in zip(names.DISKS, machine.disks, strict=False):
            if disk.file is None:
                self._make_empty(names.disk_file(vm.vm, slot), disk.capacity)
        with failing(f"{vm} cannot be created"):
            os.fsync(self._directory)
        assert self._new is not None  # noqa: S101 -- as above
        self._new.finish()
        with safefile.opened(self._root) as root, contextlib.suppress(OSError):
            os.fsync(root)
        return vm

    def notes(self) -> list[str]:
        """Return remarks on what differs from what the OVA says."""
        machine, found = self._machine(), [*self._notes]
        if machine.networks:
            shown = printable(", ".join(machine.networks))[:SHOWN]
            count = len(machine.networks)
            way = f"vmess {self.vm} ifadd {count} {' '.join(['user'] * count)}"
            found.append(
                f"its interfaces are connected to nothing, and should be to {shown}; to user networks: {way}"
            )
        if machine.controller:
            shown = printable(machine.controller)[:SHOWN]
            bus = machine.settings.get("DISK_BUS", "ide")
            way = f"vmess {self.vm} disk-bus scsi"
            found.append(f"its disks are on {bus} in place of {shown}; if it needs SCSI: {way}")
        if self._reader.left_out:
            found.append(f"not imported: {printable(', '.join(self._reader.left_out))[:SHOWN]}")
        return found

    def close(self) -> str | None:
        """Remove what did not become a VM; return the name of the directory if that is impossible."""
        for fd in (-1 if self._writing is None else self._writing.fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._writing, self._directory = None, -1
        return None if self._new is None else self._new.close()

    # -- Steps --

    def _machine(self) -> Machine:
        assert self._reader.machine is not None  # noqa: S101 -- a whole archive has a descriptor
        return self._reader.machine

    def _target(self) -> VMDirectory:
        assert self.vm is not None  # noqa: S101 -- known since the descriptor
        return VMDirectory(self._root, self.vm)

    def _begin(self, machine: Machine) -> None:
        self.vm = self.vm or _named(machine.name)
        vm = self._target()
        vm.must_be_new()
        files = [(slot, disk) for slot, disk in zip(names.DISKS, machine.disks, strict=False)]
        self._disks = {disk.file.name: (slot, disk) for slot, disk in files if disk.file is not None}
        self._check_room(sum(disk.file.size or 0 for _, disk in files if disk.file is not None))
        self._new = NewDirectory(vm)
        with failing(f"{vm} cannot be created"):
            self._directory = os.open(self._new.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _check_room(self, wanted: int) -> None:
        with safefile.opened(self._root) as root:
            copying.check_room(root, wanted, str(self._root), f"VM {self.vm} takes")

    def _do(self, event: Event) -> None:
        if isinstance(event, Begin):
            self._open(event)
        elif isinstance(event, Data):
            self._write(event.data)
        else:
            self._close_file()

    def _open(self, event: Begin) -> None:
        slot, disk = self._disks[event.file]
        self._check_room(event.size)
        name = safefile.create_temporary(self._directory, f"{self.vm}-{slot}")
        self.parts.append(Part(slot, event.file, name, disk))
        with failing(f"VM {self.vm} cannot be written"):
            fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directory)
        self._writing = _Unpacked(fd, disk)

    def _write(self, data: bytes) -> None:
        assert self._writing is not None  # noqa: S101 -- a file has begun
        with failing(f"VM {self.vm} cannot be written"):
            self._writing.write(data)

    def _close_file(self) -> None:
        assert self._writing is not None  # noqa: S101 -- as above
        with failing(f"VM {self.vm} cannot be written"):
            self._writing.finish()
        os.close(self._writing.fd)
        self._writing = None

    def _size(self, file: str, form: str) -> int:
        if form == "qcow2":
            return backing.header_of(self._directory, file).size
        return os.stat(file, dir_fd=self._directory).st_size

    def _compare(self, part: Part, size: int, form: str) -> None:
        """Compare the virtual size of an image with the descriptor, which some vendors round."""
        sizes = f"has {size_text(size)}, and its descriptor says {size_text(part.disk.capacity)}"
        if form == "raw" and size < part.disk.capacity:  # any other image says itself where it ends
            raise refused(f"{quoted(part.name)} {sizes}")
        if size != part.disk.capacity:
            self._notes.append(f"its disk {part.slot} {sizes}")

    def _make_empty(self, name: str, size: int) -> None:
        with failing(f"{self._target()} cannot be created"):
            fd = safefile.create(self._directory, name)
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)


def _named(text: str) -> str:
    """Return the name of a VM that has the name of a machine in an OVA; raises Failed."""
    try:
        return names.parse(text)
    except InvalidValue:
        like = names.like(text)
        raise refused(
            f"its machine is called {quoted(text)}, which is not the name of a VM",
            hint=f"name the VM: vmess import FILE {like[0] if like else 'newvm'}",
        ) from None
