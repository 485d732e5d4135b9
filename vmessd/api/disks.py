"""Disks that come from images, which the caller opens and passes along."""

from collections.abc import AsyncIterator

from asyncvarlink import FileDescriptor, LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.errors import quoted
from vmessd.core.models.events import Kind
from vmessd.core.models.images import StoredImage
from vmessd.core.models.progress import BringProgress


class Disks(Caller):
    """Methods for disks from images. The caller opens the image, so nobody reads what only vmessd may read."""

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Bring(
        self, *, vm: str, slot: str, image: FileDescriptor, name: str, into: str | None
    ) -> AsyncIterator[BringProgress]:
        """Copy an image to a new disk (`hda` to `hdz`) of a stopped VM: a reply for each step. Requires `more`.

        `image` is a descriptor for reading, passed with the call. `name` is for messages; if its end says a
        format, such as `.vmdk`, an image in no known format is refused, and otherwise it is raw. `into` is
        `raw`, `qcow2`, or null, which keeps a raw image raw and makes qcow2 of qcow2, VMDK, VDI, VHD and VHDX.
        Nothing is left if it fails, or the caller leaves.
        """
        disks = await self._supervisor.disks(vm)
        async for progress in disks.bring(slot, image.fileno(), name, into):
            if progress.done:
                self._tell(Kind.setting, vm, f"{slot} {quoted(name, 300)}")
                raise LastResult(progress)
            yield progress

    @varlinkmethod(return_parameter="progress")
    async def PutOn(self, *, vm: str, slot: str, image: FileDescriptor, path: str) -> BringProgress:
        """Make a new disk of a stopped VM that is based on an image, which must not change from now on.

        `path` is the absolute path of the image, and `image` a descriptor of it, passed with the call, which
        shows that the caller may read it. Its extension must say its format: .img, .raw or .qcow2.
        """
        done = await (await self._supervisor.disks(vm)).put_on(slot, image.fileno(), path)
        self._tell(Kind.setting, vm, f"{slot} on {quoted(path, 300)}")
        return done

    @varlinkmethod(return_parameter="progress")
    async def PutOnImage(self, *, vm: str, slot: str, name: str) -> BringProgress:
        """Make a new disk of a stopped VM that is based on an image of the image store."""
        disks = await self._supervisor.disks(vm)
        done = await self._supervisor.images.put_on(disks, slot, name)
        self._tell(Kind.setting, vm, f"{slot} on image {quoted(name, 300)}")
        return done

    @varlinkmethod(return_parameter="images")
    async def Images(self) -> list[StoredImage]:
        """Return the images in the image store, sorted by name, with the VMs whose disks are based on them."""
        return await self._supervisor.images.all()

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def AddImage(self, *, name: str, image: FileDescriptor, file: str) -> AsyncIterator[BringProgress]:
        """Copy an image to the image store: a reply for each step. Requires `more`; otherwise as Bring.

        `file` is what the image is called in messages.
        """
        async for progress in self._supervisor.images.add(name, image.fileno(), file):
            if progress.done:
                raise LastResult(progress)
            yield progress

    @varlinkmethod
    async def RemoveImage(self, *, name: str) -> None:
        """Delete an image from the image store. It is refused while a disk is based on it."""
        await self._supervisor.images.remove(name)

    @varlinkmethod(return_parameter="note")
    async def DeleteDisk(self, *, vm: str, slot: str) -> str | None:
        """Delete the image of a disk of a stopped VM. Returns what was done, or null if there was none."""
        note = await (await self._supervisor.disks(vm)).delete(slot)
        self._tell(Kind.setting, vm, f"{slot} deleted")
        return note
