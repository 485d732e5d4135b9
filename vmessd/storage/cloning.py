"""The copy of a VM, in a directory that becomes that of the new VM at the very end.

Settings and images are copied, images with shared blocks where the file system can, else without their holes.
A linked clone has the images below its disks in common with its source, by hard links: neither VM writes to
them, and either may be renamed or deleted. What tells one machine from another is not copied. If the source
runs, empty images are made in place of the disks that its guest writes to, and QEMU fills them. Everything here
blocks.
"""

import io
import os
import stat
from collections.abc import Callable, Collection
from typing import NamedTuple

from vmessd.core import cloud_init, hardware, names, settings, startup, wires
from vmessd.core.cloud_init import META_DATA
from vmessd.core.errors import BadFile, Failed, failing, reason
from vmessd.storage import cloud_init as seeds
from vmessd.storage import contents, copying, images, renaming, safefile
from vmessd.storage.images import Disk, Reader
from vmessd.storage.new_directory import NewDirectory
from vmessd.storage.vmdir import TPM_STATE, VALUE_LIMIT, VMDirectory

OF_ITS_OWN = {
    "MACS": "its MACs follow from its name (no MACS)",
    "CABLES": "its cables are plugged in (no CABLES)",
    "IMPAIRMENTS": "its cables are good (no IMPAIRMENTS)",
    TPM_STATE: "it has a new TPM, which knows no secret of the old one",
}
"""Files that only the source has, and what that means."""


class Target(NamedTuple):
    """An empty file for the copy of a disk whose guest runs."""

    disk: Disk
    """The disk that is copied."""
    path: str
    base: tuple[str, str] | None
    """The name of its base for its header, and the format of that; None if it is based on nothing."""


class Clone:
    """One clone. It belongs to one thread at a time; :meth:`close` removes what did not become a VM."""

    def __init__(
        self,
        vm: VMDirectory,
        new: VMDirectory,
        reader: Reader,
        *,
        linked: bool,
        live: Collection[str] = (),
    ) -> None:
        """`live` are the drives that a running QEMU has; a linked clone of them is empty on top."""
        self._vm = vm
        self._new = new
        self._reader = reader
        self.linked = linked
        self._live = frozenset(live) - {names.CDROM}
        self._directory: NewDirectory | None = None
        self.notes: list[str] = []
        """What differs, and what is not there."""
        self.targets: list[Target] = []
        """What is to be filled, once settings and all other images are copied."""

    def copy(self, report: Callable[[int], None]) -> None:
        """Copy settings and images into the new directory; `report` gets percents, and may raise.

        Raises:
            BadFile, Failed: a file cannot be read or written, there is no space, or there is such a VM.
            copying.Cancelled: `report` raised it.
        """
        disks = images.disks(self._vm)
        self._directory = NewDirectory(self._new)
        target = self._directory.fd
        with self._vm.opened() as source:
            self._copy_settings(source, target)
            sizes = [self._weight(disk) for disk in disks]
            if not self._shares_blocks(source, target, disks):
                what = "while the VM runs, the copy takes up to" if self._live else "the image takes"
                copying.check_room(target, sum(sizes), str(self._new), what)
            done, total = 0, max(1, sum(sizes))
            for disk, size in zip(disks, sizes, strict=True):
                begin = done

                def told(fraction: float, begin: int = begin, size: int = size) -> None:
                    report(min(100, int(100 * (begin + fraction * size) / total)))

                self._copy_disk(source, target, disk, told)
                done += size

    def finish(self) -> None:
        """Make the directory that of the VM; raises Failed."""
        assert self._directory is not None  # noqa: S101 -- it was copied before
        with failing(f"{self._new} cannot be written"):
            for one in self.targets:
                if one.disk.format == "raw":
                    _trim(one.path, one.disk.size)
            renaming.name_bases(self._directory.fd, self._new.vm)
        self._directory.finish()

    def close(self) -> str | None:
        """Remove what did not become a VM; return the name of the directory if that is impossible."""
        return None if self._directory is None else self._directory.close()

    # -- Settings --

    def _copy_settings(self, source: int, target: int) -> None:
        for file in sorted(os.listdir(source)):
            if snapshot := names.memory_of(file):
                self.notes.append(f"the memory of snapshot {snapshot} is not copied: {self._vm.vm} has it")
            elif file in OF_ITS_OWN:
                self.notes.append(OF_ITS_OWN[file])
            elif file in contents.BOOT_FILES:
                self._copy_boot_file(target, file)
            elif file == "NICS":
                self._copy_wires(source, target)
            elif contents.is_setting(file) or file in contents.VARIABLES:
                self._copy_file(source, target, file)
            elif file in cloud_init.ON_MEDIUM and file != META_DATA:
                data = safefile.read(source, file, cloud_init.LIMIT)
                safefile.write(target, file, data or b"")
            elif file == startup.CONFIGURATION:
                safefile.write(target, file, safefile.read(source, file, startup.LIMIT) or b"")
        if any(safefile.status(source, file) for file in cloud_init.ON_MEDIUM):
            meta = safefile.read(source, META_DATA, cloud_init.LIMIT) or b""
            safefile.write(target, META_DATA, seeds.renewed(meta, f"iid-{os.urandom(8).hex()}"))
            self.notes.append(f"cloud-init runs again, because {META_DATA} has another instance-id")

    def _copy_boot_file(self, target: int, file: str) -> None:
        """Copy the setting, and what is booted directly, if it is in the VM directory."""
        path, copy = self._vm.read_setting(settings.BY_FILE[file]) or "", contents.BOOT_FILES[file]
        if own := contents.own_file(str(self._vm.path), path):
            self._copy_image(own, target, copy, lambda _fraction: None)
        safefile.write(target, file, f"{copy if own else path}\n".encode())

    def _copy_wires(self, source: int, target: int) -> None:
        """Copy NICS without cables to other VMs, which only the source has; as it is if it is invalid."""
        setting = settings.BY_FILE["NICS"]
        try:
            noted = self._vm.read_setting(setting) or ()
        except BadFile:
            self._copy_file(source, target, setting.file)
            return
        if ends := wires.cables(noted):
            shown = ", ".join(map(str, ends.values()))
            self.notes.append(f"its cables are not plugged into {shown}, where {self._vm.vm} is")
        kept = [wires.Wire() if wire.cable else wire for wire in noted]
        safefile.write(target, setting.file, f"{wires.file_text(kept)}\n".encode())

    def _copy_file(self, source: int, target: int, file: str) -> None:
        limit = VALUE_LIMIT if contents.is_setting(file) else 128 * 2**20
        data = safefile.read(source, file, limit)
        if file == "SMBIOS" and data is not None:
            data = self._without_identity(data)
        if data is not None:
            safefile.write(target, file, data)
            if file in contents.VARIABLES:
                os.chmod(file, 0o660, dir_fd=target)

    def _without_identity(self, data: bytes) -> bytes | None:
        pairs: dict[str, str] = self._vm.read_setting(settings.BY_FILE["SMBIOS"]) or {}
        gone = [key for key in hardware.SMBIOS_IDENTITY if key in pairs]
        if not gone:
            return data
        self.notes.append(f"SMBIOS without {' and '.join(gone)}")
        kept = {key: value for key, value in pairs.items() if key not in gone}
        return f"{hardware.smbios_text(kept)}\n".encode() if kept else None

    # -- Images --

    def _own_bases(self, disk: Disk) -> list[str]:
        """Return the images below a disk that are files of the VM directory."""
        return [base.target for base in disk.bases if "/" not in base.target]

    def _weight(self, disk: Disk) -> int:
        """Return how many bytes the copy of a drive takes at most."""
        if disk.slot == names.CDROM and disk.target is not None:
            return 0
        if disk.slot in self._live and disk.format == "raw":  # QEMU writes zeros for its holes
            return disk.size
        if disk.slot in self._live and self.linked:
            return 0
        below = [] if self.linked else [f"{self._vm.path}/{name}" for name in self._own_bases(disk)]
        return sum(
            disk.size if stat.S_ISBLK((found := os.stat(path)).st_mode) else copying.allocated(found)
            for path in [disk.path, *below]
        )

    def _shares_blocks(self, source: int, target: int, disks: list[Disk]) -> bool:
        """Tell whether the copies will take no space of their own."""
        plain = [os.path.basename(disk.path) for disk in disks if disk.target is None]
        return bool(plain) and not self._live and copying.can_share(source, plain[0], target)

    def _copy_disk(self, source: int, target: int, disk: Disk, told: Callable[[float], None]) -> None:
        new = self._name(disk)
        if disk.slot == names.CDROM and disk.target is not None:
            os.symlink(disk.target, new, dir_fd=target)
            return
        for depth, base in enumerate(disk.bases, 1):
            os.symlink(base.target, names.base_file(self._new.vm, disk.slot, depth), dir_fd=target)
        for name in self._own_bases(disk):
            if self.linked:
                self._link(source, target, name)
            else:
                self._copy_image(name, target, name, lambda _fraction: told(0.0))
        if disk.slot in self._live:
            self._create_target(target, disk, new)
        else:
            self._copy_image(os.path.basename(disk.path), target, new, told)

    def _create_target(self, target: int, disk: Disk, new: str) -> None:
        with failing(f"{safefile.place(target, new)} cannot be created"):
            safefile.create_empty(target, new, disk.size if disk.format == "raw" else 0)
        assert self._directory is not None  # noqa: S101 -- `target` is this directory
        base = None
        if disk.bases:
            name = disk.bases[0].target
            link = names.base_file(self._new.vm, disk.slot, 1)
            base = (name if names.snapshot_of(name) else link, disk.bases[0].format)
        self.targets.append(Target(disk, f"{self._directory.path}/{new}", base))

    def _name(self, disk: Disk) -> str:
        if disk.slot == names.CDROM:
            return names.cdrom_file(self._new.vm)
        return names.disk_file(self._new.vm, disk.slot, disk.format)

    def _link(self, source: int, target: int, name: str) -> None:
        """Have an image in both directories."""
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            raise Failed(
                f"{safefile.place(source, name)} cannot be shared: {reason(error)}",
                hint=f"copy it: vmess {self._vm.vm} clone {self._new.vm}",
            ) from None

    def _copy_image(self, name: str, target: int, new: str, told: Callable[[float], None]) -> None:
        with io.FileIO(images.open_source(f"{self._vm.path}/{name}", self._reader), "r") as image:
            found, size = os.fstat(image.fileno()), image.seek(0, os.SEEK_END)
            is_snapshot = names.snapshot_of(name) is not None
            with failing(f"{safefile.place(target, new)} cannot be created"):
                copied = safefile.create(target, new, 0o440 if is_snapshot else 0o660)

            def report(done: int) -> None:
                told(done / max(1, size))

            copying.copy(image, io.FileIO(copied, "w"), size, report, durable=True)
        if is_snapshot:
            os.utime(new, (found.st_mtime, found.st_mtime), dir_fd=target)


def _trim(path: str, size: int) -> None:
    """Give a raw image that QEMU has written its size in bytes again, and its holes; raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)  # QEMU writes whole sectors
        copying.dig_holes(fd, size)
    finally:
        os.close(fd)


def forwards(vm: VMDirectory) -> list[str]:
    """Return a remark if both VMs forward the same ports of the host; raises BadFile."""
    noted = vm.read_setting(settings.BY_FILE["NICS"]) or ()
    ports = [forward.port for wire in noted for forward in wire.forwards]
    return [f"it forwards the same ports of the host: {', '.join(ports)}"] if ports else []
