"""The import of a VM from an OVA.

The images of its disks are written as they come, and converted in the directory of the VM by others.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vmessd.core import names, settings
from vmessd.core.errors import Failed, InvalidValue, failing, printable, quoted
from vmessd.core.quantities import size_text
from vmessd.storage import backing, copying, ovf, safefile
from vmessd.storage.incoming import Incoming
from vmessd.storage.ova_reader import Reader
from vmessd.storage.ovf import Machine
from vmessd.storage.tar_reader import Begin, Data, refused
from vmessd.storage.vmdir import VMDirectory

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
        self._fd = fd
        self._name = disk.file.name
        self._unpacking = zlib.decompressobj(_GZIP) if disk.file.is_packed else None
        self._size = 0
        self._most = disk.capacity + disk.capacity // 8 + (64 << 20)
        """An image is not much larger than what is in it; a compressed one could be endless."""

    def write(self, data: bytes) -> None:
        """Write the next bytes of the archive; raises Failed, OSError."""
        for piece in self._pieces(data):
            copying.write_sparse(self._fd, piece, self._size)
            self._size += len(piece)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if self._unpacking is None:
            yield data
            return
        while data:
            if self._unpacking.eof:  # zlib would gather in memory what follows
                raise self._ends_early()
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
            raise self._ends_early()
        os.ftruncate(self._fd, self._size)

    def _ends_early(self) -> Failed:
        return refused(f"{quoted(self._name)} is damaged: gzip does not end where the file ends")


class ApplianceImport(Incoming):
    """One import of an OVA, with :meth:`keep` for each of its images before the end."""

    def __init__(self, root: Path, name: str | None) -> None:
        super().__init__(root, name)
        self.parts: list[Part] = []
        """The images that are to be converted, and then kept."""
        self._reader: Reader = Reader()
        self._disks: dict[str, tuple[str, ovf.Disk]] = {}
        """Slot and disk, by the name of the file in the OVA."""
        self._writing: _Unpacked | None = None
        self._notes: list[str] = []

    @property
    def home(self) -> VMDirectory:
        """The directory that will be that of the VM, where it is now."""
        return VMDirectory(self._root, self._target().vm, self.directory.path)

    def keep(self, part: Part, file: str, form: str) -> None:
        """Make an image of a format, under its temporary name, the disk of the VM.

        Raises:
            Failed: it is raw and ends before its disk does; it cannot be renamed.
        """
        with failing(f"{self._target()} cannot be created"):
            name = names.disk_file(self._target().vm, part.slot, form)
            self._compare(part, backing.virtual_size(self.directory.fd, file, form), form)
            os.rename(file, name, src_dir_fd=self.directory.fd, dst_dir_fd=self.directory.fd)

    def finish(self) -> VMDirectory:
        """Write the settings and empty disks, and make the directory that of the VM; raises as :meth:`feed`."""
        vm, machine, directory = self._target(), self._machine(), self.directory.fd
        for file, text in {**settings.OF_NEW_VM, **machine.settings}.items():
            safefile.write(directory, file, f"{text}\n".encode())
        for slot, disk in zip(names.DISKS, machine.disks, strict=False):
            if disk.file is None:
                with failing(f"{vm} cannot be created"):
                    safefile.create_empty(directory, names.disk_file(vm.vm, slot), disk.capacity)
        return super().finish()

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

    # -- Steps --

    def _machine(self) -> Machine:
        assert self._reader.machine is not None  # noqa: S101 -- a whole archive has a descriptor
        return self._reader.machine

    def _begin(self) -> None:
        machine = self._reader.machine
        if machine is None:
            return
        there = zip(names.DISKS, machine.disks, strict=False)
        self._disks = {disk.file.name: (slot, disk) for slot, disk in there if disk.file is not None}
        wanted = sum(disk.file.size or 0 for _, disk in self._disks.values() if disk.file is not None)
        self._create(self.vm or _named(machine.name), wanted)

    def _open(self, event: Begin) -> None:
        slot, disk = self._disks[event.file]
        self._check_room(event.size)
        name = safefile.create_temporary(self.directory.fd, f"{self.vm}-{slot}")
        self.parts.append(Part(slot, event.file, name, disk))
        with failing(f"VM {self.vm} cannot be written"):
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(name, flags, dir_fd=self.directory.fd)
        self._writing = _Unpacked(self._file, disk)

    def _write(self, event: Data) -> None:
        assert self._writing is not None  # noqa: S101 -- a file has begun
        self._writing.write(event.data)

    def _end_file(self) -> None:
        assert self._writing is not None  # noqa: S101 -- as above
        self._writing.finish()

    def _compare(self, part: Part, size: int, form: str) -> None:
        """Compare the virtual size of an image with the descriptor, which some vendors round."""
        sizes = f"has {size_text(size)}, and its descriptor says {size_text(part.disk.capacity)}"
        if form == "raw" and size < part.disk.capacity:  # any other image says itself where it ends
            raise refused(f"{quoted(part.name)} {sizes}")
        if size != part.disk.capacity:
            self._notes.append(f"its disk {part.slot} {sizes}")


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
