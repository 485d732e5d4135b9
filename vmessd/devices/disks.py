"""The disks of one VM: brought from an image, put on top of one, enlarged, put aside, deleted.

An image that is brought is copied first, and its copy is examined and converted: nobody can change it
meanwhile, and QEMU's user can read it. Until the last step it has a temporary name, which the next daemon
removes if this one dies.
"""

import contextlib
import dataclasses
import functools
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from vmessd.core import names, quantities, refusals, settings
from vmessd.core.errors import BadFile, InvalidValue, VmessError, printable, quoted, reason
from vmessd.core.lifecycle import OFF
from vmessd.core.models.progress import BringProgress, BringStep
from vmessd.core.moves import check_settled
from vmessd.devices.image_work import WORDS, Image, Work, examined, kept, opened
from vmessd.qemu import qemu_img
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import backing, image_formats, images, safefile
from vmessd.storage.backing import Identity
from vmessd.storage.blocking import Lane
from vmessd.storage.image_formats import Source
from vmessd.storage.images import Disk
from vmessd.storage.vmdir import Hold, VMDirectory
from vmessd.vm import pending
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

_TO_STORE = "add it to the image store with vmess images add, and name it; or bring it without --linked"
RESIZE_TIME = 20.0
"""Seconds that QEMU may take to enlarge an image."""


class Disks:
    """The disks of one machine."""

    def __init__(self, machine: Machine, host: Host) -> None:
        self.vm = machine.vm
        self._machine = machine
        self._host = host
        self._busy: set[str] = set()
        """The slots to which an image is being brought."""

    # -- Images that are brought --

    async def bring(self, slot: str, fd: int, name: str, form: str | None) -> AsyncIterator[BringProgress]:
        """Copy an image to a disk that is not there, converted to `form` if that is given; yield the progress.

        Without `form`, a raw image stays raw, and any other becomes qcow2. Nothing is left if it fails, or the
        caller leaves.

        Raises:
            InvalidValue: the descriptor, the slot or the format is wrong; or the image refers to other files.
            AlreadyRunning: the VM is not stopped.
            Locked: the VM was locked meanwhile.
            BadFile: there is such a disk.
            Failed: there is no space, or the image is damaged.
        """
        _check_words(slot, form)
        lane = Lane(f"the image for {slot} of {self.vm}", "is its file system there?")
        async with self._slot(slot):
            yield BringProgress(False, BringStep.copying)
            image = await lane.aside(functools.partial(opened, fd, name))
            source = await lane.aside(functools.partial(examined, image))
            target = form or kept(source)
            async with self._begun(slot, lane, image) as work:
                async for progress in work.made(self._host.account, source, target):
                    yield progress
                finish = functools.partial(self._finish, work, slot, target)
                file, size = await self._machine.change(finish, stopped=True)
            yield BringProgress(True, BringStep.done, 100, source.format, file, size)

    def _begun(
        self, slot: str, lane: Lane, image: Image | None
    ) -> contextlib.AbstractAsyncContextManager[Work]:
        return Work.begun(self._machine.directory, f"{self.vm}-{slot}", lane, image)

    def _finish(self, work: Work, slot: str, form: str, base: str | None = None) -> tuple[str, int]:
        """Make an image a disk, on top of `base`; return its name and virtual size; blocks.

        Links of a disk that is gone are removed first. A link without its disk is ignored, so that the last
        renaming is what counts. A VM that was locked meanwhile, or is being moved, does not get it; raises
        Locked.
        """
        vm, name = self._machine.directory, names.disk_file(self.vm, slot, form)
        check_settled(self.vm, vm.move)
        if (remark := vm.setting_text(settings.LOCK)) is not None:
            raise refusals.locked(self.vm, remark)
        with vm.opened() as directory:
            images.must_be_free(vm, directory, slot)
            images.clear_bases(vm, directory, slot)
            if base is not None:
                safefile.link(directory, names.base_file(self.vm, slot, 1), base)
            size = work.take(directory, name, form)
        if base is not None:
            with contextlib.suppress(VmessError):  # it only misses a change before the first start
                found = {disk.slot: (disk.identity, disk.bases) for disk in images.disks(vm)}
                backing.remember(vm, found)
        return name, size

    @contextlib.asynccontextmanager
    async def _slot(self, slot: str) -> AsyncIterator[None]:
        """Keep others from bringing an image to the same disk; raises AlreadyRunning, BadFile."""
        if slot in self._busy:
            raise BadFile(f"an image is being brought to {slot} of {self.vm}", hint="wait until it is there")
        self._busy.add(slot)
        try:
            await self._machine.change(
                functools.partial(_check_free, self._machine.directory, slot), stopped=True
            )
            yield
        finally:
            self._busy.discard(slot)

    async def put_on(self, slot: str, fd: int, path: str) -> BringProgress:
        """Make a new disk on top of an image at an absolute path, which `fd` shows that the caller may read.

        Raises:
            InvalidValue: the path is not that of the descriptor, or its name does not say the image's format.
            AlreadyRunning, BadFile, Failed: as :meth:`bring`; or a VM writes to the image.
        """
        _check_words(slot, None)
        lane = Lane(f"the base for {slot} of {self.vm}", "is its file system there?")
        async with self._slot(slot):
            image = await lane.aside(functools.partial(opened, fd, path))
            source = await lane.aside(functools.partial(examined, image))
            root = self._machine.directory.path.parent
            await lane.aside(functools.partial(_check_base, image, source, root, self._host))
            async with self._begun(slot, lane, None) as work:
                base = names.base_file(self.vm, slot, 1)
                size = source.size or 0
                await qemu_img.create_overlay(self._host.account, work.path, (base, source.format), size)
                await lane.aside(work.settle)
                note = await lane.aside(functools.partial(_protect, image))
                finish = functools.partial(self._finish, work, slot, "qcow2", path)
                file, size = await self._machine.change(finish, stopped=True)
        return BringProgress(True, BringStep.done, 100, source.format, file, size, note)

    # -- Disks that are there --

    async def set_size(self, slot: str, text: str) -> str | None:
        """Create a disk, or enlarge it, at once if the VM runs; return what was done, in words.

        Raises:
            InvalidValue: not a size, or smaller than the image.
            AlreadyRunning: the VM runs without this disk.
            BadFile, Failed: as images.set_disk; or QEMU refuses.
        """
        quantities.disk_size(text)
        record = self._machine.record()
        if self._machine.state not in OFF and record is not None and slot in (record.hardware or {}):
            return await self._grow_live(slot, text)
        directory = self._machine.directory
        plan = functools.partial(_growing_qcow2, directory, slot, text)
        found = await self._machine.change(plan, stopped=True)
        if found is None:
            return await self._machine.change(
                functools.partial(images.set_disk, directory, slot, text), stopped=True
            )
        disk, hold = found
        with contextlib.closing(found):
            if hold is not None:
                wanted = quantities.disk_size(text)
                await qemu_img.resize(self._host.account, disk.path, disk.format, wanted)
        return _grown(disk, text, changed=hold is not None)

    async def _grow_live(self, slot: str, text: str) -> str:
        """Have QEMU enlarge an image. Its guest sees the new size at once, or when it looks again."""
        found = await self._machine.files.aside(functools.partial(images.disks, self._machine.home))
        disk = next((disk for disk in found if disk.slot == slot), None)
        if disk is None:
            raise BadFile(f"{self.vm} runs with {slot}, but its image is gone", hint=f"vmess {self.vm} info")
        _check_own(disk)
        changed = images.grows(self.vm, slot, os.path.basename(disk.path), disk.size, text)
        if changed:
            await self._machine.begun()
            size = quantities.disk_size(text)
            try:
                node = await self._machine.live().node_of(slot)
                resize: dict[str, object] = {"node-name": node, "size": size}
                await self._machine.live().execute("block_resize", resize, RESIZE_TIME)
            except CommandRefused as refusal:
                raise refusal.failed(self.vm, "block_resize") from None
            drive = pending.drive_text(dataclasses.replace(disk, size=size))
            await self._machine.note_drive(slot, drive)
        return _grown(disk, text, changed=changed)

    async def detach(self, slot: str) -> str | None:
        """Put the image of a disk aside; return what was done; raises AlreadyRunning, Failed."""
        return await self._machine.change(
            functools.partial(
                images.detach, self._machine.directory, slot, as_root=bool(self._host.account.entry)
            ),
            stopped=True,
        )

    async def delete(self, slot: str) -> str | None:
        """Delete the image of a disk; return what was done; raises AlreadyRunning, BadFile, Failed."""
        _check_words(slot, None)
        return await self._machine.change(
            functools.partial(images.delete, self._machine.directory, slot), stopped=True
        )


def _check_words(slot: str, form: str | None) -> None:
    """Raise InvalidValue for an unknown slot or format."""
    if slot not in names.DISKS:
        raise InvalidValue(f"disk {quoted(slot)} is none of {names.DISKS[0]} to {names.DISKS[-1]}")
    if form is not None and form not in names.IMAGE_ENDINGS:
        raise InvalidValue(f"format {quoted(form)} is neither {' nor '.join(names.IMAGE_ENDINGS)}")


def _check_free(vm: VMDirectory, slot: str) -> None:
    with vm.opened() as directory:
        images.must_be_free(vm, directory, slot)


def _check_base(image: Image, source: Source, root: Path, host: Host) -> None:
    """Check that an image can be a base: by its path, its name, and who writes to it; blocks."""
    try:
        found = os.stat(image.name)
    except (PermissionError, FileNotFoundError) as error:  # the service sees no home directory, for example
        raise InvalidValue(
            f"base {image.shown} cannot be seen by vmessd: {reason(error)}", hint=_TO_STORE
        ) from None
    except (OSError, ValueError):
        found = None
    if not os.path.isabs(image.name) or found is None or Identity.of(found) != Identity.of(image.found):
        raise InvalidValue(f"base {image.shown} is not the absolute path of the image that was passed along")
    said = backing.FORMATS.get(os.path.splitext(image.name)[1])
    if said != source.format:
        endings = " or ".join(end for end, form in backing.FORMATS.items() if form == source.format)
        raise InvalidValue(
            f"base {image.shown} is a {image_formats.SHOWN[source.format]} image, and its name must say so",
            hint=f"rename it to end in {endings}" if endings else "bring it without --linked",
        )
    if not host.account.may_read(image.name):
        raise InvalidValue(
            f"base {image.shown} is not readable for {host.account.name}, the user of QEMU", hint=_TO_STORE
        )
    for vm, file in backing.writers(root, [Identity.of(image.found)]):
        raise BadFile(
            f"base {image.shown} is the disk of VM {vm}, which may write to it: {file}",
            hint="bring a copy of it, without --linked",
        )


def _protect(image: Image) -> str | None:
    """Take the write permissions from a base that is ours; return a remark if it is not."""
    mode = stat.S_IMODE(image.found.st_mode)
    if stat.S_ISBLK(image.found.st_mode) or not mode & 0o222:
        return None
    if image.found.st_uid == os.geteuid():
        with contextlib.suppress(OSError):
            os.fchmod(image.fd, mode & ~0o222)
            return f"{printable(image.name)} is read-only now, because a disk is based on it"
    return f"{printable(image.name)} must not be changed any more, because a disk is based on it"


def _check_own(disk: Disk) -> None:
    """Raise BadFile if a disk is a link, whose target is somebody else's."""
    if disk.target is not None:
        raise BadFile(
            f"{printable(disk.path)} is a link to {quoted(disk.target, WORDS)}; vmess does not change "
            "the size of its target",
            hint="enlarge the target, or remove the link",
        )


class _Growing(NamedTuple):
    """A qcow2 disk, and what keeps its VM from being started; None if the disk has the wanted size."""

    disk: Disk
    hold: Hold | None

    def close(self) -> None:
        """Let the VM go."""
        if self.hold is not None:
            self.hold.close()


def _growing_qcow2(vm: VMDirectory, slot: str, text: str) -> _Growing | None:
    """Return a qcow2 disk, with its VM held if it is to grow; None if there is no such disk; blocks."""
    disk = next((disk for disk in images.disks(vm) if disk.slot == slot and disk.format == "qcow2"), None)
    if disk is None:
        return None
    _check_own(disk)
    if not images.grows(vm.vm, slot, os.path.basename(disk.path), disk.size, text):
        return _Growing(disk, None)
    return _Growing(disk, Hold(vm, "having a disk enlarged"))


def _grown(disk: Disk, text: str, *, changed: bool) -> str:
    wanted, name = quantities.size_text(quantities.disk_size(text)), os.path.basename(disk.path)
    if not changed:
        return f"{name}: already has {wanted}, unchanged"
    return f"{name}: {wanted} now, was {quantities.size_shown(disk.size)}"
