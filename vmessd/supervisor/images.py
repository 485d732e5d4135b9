"""The images in the image store of a VM root: brought, listed, deleted; disks are put on top of them."""

import contextlib
import functools
import os
from collections.abc import AsyncIterator
from pathlib import Path

from vmessd.core.errors import BadFile, failing
from vmessd.core.models.images import StoredImage
from vmessd.core.models.progress import BringProgress, BringStep
from vmessd.devices.disks import Disks
from vmessd.devices.image_work import Work, examined, kept, opened
from vmessd.storage import image_store
from vmessd.storage.blocking import Lane
from vmessd.storage.image_store import ImageStore
from vmessd.vm.host import Host

MODE = 0o440
"""Of an image in the image store: read-only, for the daemon and the group, which may be that of QEMU."""


class Images:
    """The image store of one VM root."""

    def __init__(self, root: Path, host: Host) -> None:
        self._store = ImageStore(root)
        self._host = host
        self._files = Lane(f"the images in {self._store.home}", "is its file system there?")
        self._busy: set[str] = set()
        """The names of images that are being brought."""

    async def all(self) -> list[StoredImage]:
        """Return all images by name; raises BadFile, Failed."""
        return await self._files.aside(self._store.images)

    async def add(self, name: str, fd: int, called: str) -> AsyncIterator[BringProgress]:
        """Bring an image to the image store; as Disks.bring, but for the name of the image."""
        image_store.check_name(name)
        if name in self._busy:
            raise BadFile(f"image {name} is being brought", hint="wait until it is there")
        self._busy.add(name)
        try:
            yield BringProgress(False, BringStep.copying)
            lane = Lane(f"the image {name}", "is its file system there?")
            await lane.aside(self._store.make)
            await lane.aside(functools.partial(self._store.must_be_free, name))
            image = await lane.aside(functools.partial(opened, fd, called))
            source = await lane.aside(functools.partial(examined, image))
            form = kept(source)
            async with Work.begun(self._store.home, name, lane, image) as work:
                async for progress in work.made(self._host.account, source, form):
                    yield progress
                file, size = await lane.aside(functools.partial(self._finish, work, name, form))
            yield BringProgress(True, BringStep.done, 100, source.format, file, size)
        finally:
            self._busy.discard(name)

    def _finish(self, work: Work, name: str, form: str) -> tuple[str, int]:
        self._store.must_be_free(name)
        file = image_store.file_name(name, form)
        with self._store.home.opened() as directory:
            with failing(f"{self._store.home}/{file} cannot be protected"):
                os.chmod(work.path, MODE)
            return file, work.take(directory, file, form)

    async def remove(self, name: str) -> None:
        """Delete an image; raises InvalidValue, BadFile, Failed."""
        await self._files.do(functools.partial(self._store.remove, name))

    async def put_on(self, disks: Disks, slot: str, name: str) -> BringProgress:
        """Make a new disk of a VM, based on an image; raises as Disks.put_on, InvalidValue."""
        image = await self._files.aside(functools.partial(self._store.find, name))
        with contextlib.ExitStack() as stack:
            fd = await self._files.aside(functools.partial(_open, image.path))
            stack.callback(os.close, fd)
            return await disks.put_on(slot, fd, image.path)


def _open(path: str) -> int:
    with failing(f"{path} cannot be opened"):
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
