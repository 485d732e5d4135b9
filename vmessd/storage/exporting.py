"""The export of a VM that is off: its files, piece by piece, as the bytes of one archive.

What belongs to a process of the VM stays behind, and links to CD images do. Disks and bases that are links are
exported with the content of their targets. Everything here blocks, each piece while a mebibyte is read.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vmessd.core import names
from vmessd.core.errors import Failed, printable, reason
from vmessd.storage import archive_format, backing, contents, images, qcow2, safefile
from vmessd.storage.archive_format import CHECKSUMS, END, MANIFEST, Entry, Segment, Segments
from vmessd.storage.contents import StoredBase
from vmessd.storage.images import Disk, Reader
from vmessd.storage.vmdir import TPM_STATE, Hold, VMDirectory

PIECE = 1 << 20
"""Bytes that are read at a time."""


class _Source(NamedTuple):
    """A file to be exported."""

    entry: Entry
    where: str
    data: bytes = b""
    """The content of a setting."""
    fd: int = -1
    """The descriptor of an image."""


class Export:
    """One export. The VM must not be started before :meth:`close`; the object holds its lock until then."""

    def __init__(
        self,
        vm: VMDirectory,
        reader: Reader,
        purpose: str = "being exported",
        *,
        keeps_links: bool = False,
        live: bool = False,
    ) -> None:
        """Lock the VM for a purpose, in words, and open its files.

        `keeps_links`: disks that are links stay behind, because the other host has their targets. `live`: the
        VM runs, so that it is not locked, and its disks go without their contents.

        Raises:
            Locked: another process has locked it.
            BadFile: one of its files is not what it should be, or cannot be read.
        """
        self.left_out: list[str] = []
        """The files that stay behind and that nobody may expect to, each with the reason."""
        self.links: dict[str, str] = {}
        """Those of them that are links, with their targets."""
        self.elsewhere: list[str] = []
        """Those of them that are not in the VM directory, and that its settings name."""
        self.foreign: list[str] = []
        """Those of them that are in the VM directory, and in no export; each with the reason."""
        self.snapshots: dict[str, str] = {}
        """The images of snapshots, by their names in the archive."""
        self._vm = vm.vm
        self._keeps_links = keeps_links
        self._sources: list[_Source] = []
        self._is_live = live
        self.blank: list[str] = []
        """The disks that go without their contents."""
        self._hold = None if live else Hold(vm, purpose)
        self._files: list[int] = []
        try:
            self._collect(vm, reader)
        except BaseException:
            self.close()
            raise
        self._manifest = archive_format.manifest(self._vm, [source.entry for source in self._sources])
        self.size = self._archive_size()
        """The size of the archive in bytes."""

    def close(self) -> None:
        """Close all files and release the lock."""
        while self._files:
            os.close(self._files.pop())
        if self._hold is not None:
            self._hold.close()

    def _archive_size(self) -> int:
        sums = dict.fromkeys([MANIFEST, *(source.entry.file for source in self._sources)], 64 * "0")
        texts = (Entry(MANIFEST, len(self._manifest)), Entry(CHECKSUMS, len(archive_format.checksums(sums))))
        return sum(map(self._room, (*texts, *(source.entry for source in self._sources)))) + len(END)

    def _room(self, entry: Entry) -> int:
        stored = len(entry.map) + entry.data
        return len(archive_format.header(self._vm, entry)) + stored + -stored % archive_format.BLOCK

    def pieces(self) -> Iterator[bytes]:
        """Yield the archive; raises Failed if a file cannot be read or has become shorter."""
        sums: dict[str, str] = {}
        yield from self._text(MANIFEST, self._manifest, sums)
        for source in self._sources:
            if source.fd < 0:
                yield from self._text(source.entry.file, source.data, sums)
            else:
                yield from self._image(source, sums)
        yield from self._text(CHECKSUMS, archive_format.checksums(sums), {})
        yield END

    def _text(self, file: str, data: bytes, sums: dict[str, str]) -> Iterator[bytes]:
        sums[file] = hashlib.sha256(data).hexdigest()
        head = archive_format.header(self._vm, Entry(file, len(data)))
        yield head + data + archive_format.padding(len(data))

    def _image(self, source: _Source, sums: dict[str, str]) -> Iterator[bytes]:
        entry, summed = source.entry, hashlib.sha256()
        summed.update(entry.map)
        yield archive_format.header(self._vm, entry) + entry.map
        for data in _gathered(_data(source)):
            summed.update(data)
            yield data
        sums[entry.file] = summed.hexdigest()
        yield archive_format.padding(entry.data)

    # -- The files --

    def _collect(self, vm: VMDirectory, reader: Reader) -> None:
        """Open all files; what a start would refuse is said here, and not by an import."""
        values = vm.read_settings()
        own = {
            file: contents.own_file(str(vm.path), values[file])
            for file in contents.BOOT_FILES
            if file in values
        }
        disks = images.disks(vm)
        images.check(vm, disks, values.get("RAW", ()))
        if not self._is_live:
            backing.check_not_written(vm, {disk.slot: disk.bases for disk in disks})
        with vm.opened() as directory:
            for file in sorted(os.listdir(directory)):
                if file in own:
                    self._add_boot_file(vm, file, own[file], values[file], reader)
                elif file == TPM_STATE:
                    self._add_tpm(vm)
                elif names.snapshot_of(file):
                    self._must_be_below(file, disks)
                elif file not in own.values():
                    self._add(directory, file)
            for disk in disks:
                self._add_disk(vm, disk, reader)

    def _add_disk(self, vm: VMDirectory, disk: Disk, reader: Reader) -> None:
        if self._stays_link(disk):
            self.links[os.path.basename(disk.path)] = disk.target or ""
            self.left_out.append(f"{os.path.basename(disk.path)} (a link)")
            if disk.slot != names.CDROM:  # who has its image finds those below it there, too
                self.links |= {os.path.basename(base.path): base.target for base in disk.bases}
            return
        if self._is_live and disk.slot != names.CDROM:
            self._add_blank(disk)
            return
        self._add_image(os.path.basename(disk.path), disk.path, reader)
        for depth, base in enumerate(disk.bases, 1):
            stored = StoredBase(disk.slot, depth, base.format).file
            self._add_image(stored, base.path, reader)
            own_name = contents.own_file(str(vm.path), base.target)
            if own_name is not None and names.snapshot_of(own_name):
                self.snapshots[stored] = own_name

    def _must_be_below(self, file: str, disks: Iterable[Disk]) -> None:
        """Note the image of a snapshot as foreign if no disk is based on it: otherwise it goes with that."""
        if not any(file == base.target for disk in disks for base in disk.bases):
            self._leave(f"{printable(file)} (no disk is based on it)")

    def _leave(self, what: str) -> None:
        self.foreign.append(what)
        self.left_out.append(what)

    def _stays_link(self, disk: Disk) -> bool:
        """Tell whether a drive is exported as a link, if at all."""
        return disk.target is not None and (disk.slot == names.CDROM or self._keeps_links)

    def _add(self, directory: int, file: str) -> None:
        if (limit := contents.text_limit(file)) is not None:
            data = safefile.read(directory, file, limit)
            if data is not None:
                self._sources.append(_Source(Entry(file, len(data)), safefile.place(directory, file), data))
        elif file in contents.VARIABLES:
            self._add_plain(directory, file)
        elif file in (MANIFEST, CHECKSUMS) or contents.stays_unsaid(file, self._vm):
            pass
        elif contents.name_in(file, self._vm, self._vm) is None:
            what = "the memory of a snapshot" if names.memory_of(file) else "not a file of a VM"
            self._leave(f"{printable(file)} ({what})")

    def _add_boot_file(self, vm: VMDirectory, file: str, own: str | None, path: str, reader: Reader) -> None:
        """Add what is booted directly, if it is in the VM directory, and the setting that names it."""
        copy = contents.BOOT_FILES[file]
        if own is None:
            self.elsewhere.append(path)
            self.left_out.append(f"{printable(path)} ({file}, which is elsewhere)")
        else:
            self._add_image(copy, f"{vm.path}/{own}", reader)
        data = f"{path if own is None else copy}\n".encode()
        self._sources.append(_Source(Entry(file, len(data)), f"{vm}/{file}", data))

    def _add_tpm(self, vm: VMDirectory) -> None:
        """Add the state of the TPM, which no swtpm changes meanwhile."""
        state = vm.open_tpm_state()
        self._files.append(state)
        if safefile.status(state, contents.TPM_FILE) is not None:
            self._add_plain(state, contents.TPM_FILE)

    def _add_blank(self, disk: Disk) -> None:
        """Add a disk of a guest that runs, without its data; raises Failed if it cannot be mirrored."""
        if disk.bases or disk.block_device:
            what = "has other images below it" if disk.bases else "is a block device"
            raise Failed(
                f"{disk.slot} of {self._vm} {what}, so it does not move while its guest runs",
                hint=f"to power it down for that: vmess {self._vm} move HOST --offline",
            )
        self.blank.append(disk.slot)
        if disk.format == "qcow2":
            image = qcow2.empty(disk.size)
            self._sources.append(
                _Source(Entry(os.path.basename(disk.path), len(image)), printable(disk.path), image)
            )
            return
        fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._files.append(fd)
        entry = Entry(os.path.basename(disk.path), disk.size, Segments())
        self._sources.append(_Source(entry, printable(disk.path), fd=fd))

    def _add_plain(self, directory: int, file: str) -> None:
        """Add a file that QEMU or swtpm may replace; raises BadFile unless it is a plain one."""
        where = safefile.place(directory, file)
        self._add_opened(file, safefile.open_plain(directory, file, os.O_RDONLY), where)

    def _add_image(self, file: str, path: str, reader: Reader) -> None:
        self._add_opened(file, images.open_source(path, reader), printable(path))

    def _add_opened(self, file: str, fd: int, where: str) -> None:
        self._files.append(fd)
        size = os.lseek(fd, 0, os.SEEK_END)
        segments = _segments(fd, size)
        is_full = [*segments[:2]] == [Segment(0, size)]
        entry = Entry(file, size, None if is_full or not size else archive_format.merged(segments))
        self._sources.append(_Source(entry, where, fd=fd))


def _segments(fd: int, size: int) -> Segments:
    """Return where a file has data (lseek(2), SEEK_DATA); all of it if its file system does not know."""
    found, end = Segments(), 0
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
            end = min(os.lseek(fd, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # the rest is a hole
                break
            return Segments((0, size))
        if begin < end:
            found.add(begin, end - begin)
    return found


def _data(source: _Source) -> Iterator[bytes]:
    """Yield the data of an image; raises Failed."""
    segments = source.entry.segments
    for offset, size in (Segment(0, source.entry.size),) if segments is None else segments:
        at, end = offset, offset + size
        while at < end:
            data = _read(source, at, min(PIECE, end - at))
            at += len(data)
            yield data


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces, because the way of each one to the client takes time."""
    parts: list[bytes] = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(parts)
            parts, size = [], 0
    yield b"".join(parts)


def _read(source: _Source, offset: int, size: int) -> bytes:
    try:
        data = os.pread(source.fd, size, offset)
    except OSError as error:
        raise Failed(f"{source.where} cannot be read: {reason(error)}") from None
    if not data:
        raise Failed(
            f"{source.where} has become shorter while it was exported",
            hint="leave it alone, and repeat the export",
        )
    return data
