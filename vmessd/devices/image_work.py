"""An image that somebody brings, on its way to become a disk: copied, examined, converted, checked, named.

Each step works on temporary files in the VM directory, and the last one is a renaming.
"""

import asyncio
import contextlib
import functools
import io
import os
import stat
import threading
from collections.abc import AsyncIterator, Collection, Coroutine
from typing import Any, NamedTuple, Self

from vmessd.core import quantities
from vmessd.core.errors import InvalidValue, VmessError, failing, quoted, reason
from vmessd.core.models.progress import BringProgress, BringStep
from vmessd.qemu import qemu_img
from vmessd.qemu.credentials import Account
from vmessd.storage import backing, copying, image_formats, qcow2, safefile
from vmessd.storage.blocking import Lane
from vmessd.storage.image_formats import Source
from vmessd.storage.vmdir import VMDirectory

WORDS = 300
"""Characters of a name in a message."""


class Image(NamedTuple):
    """An image that somebody brings: an open descriptor, and what it is called in messages."""

    fd: int
    name: str
    found: os.stat_result
    size: int
    """Bytes of the file."""
    formats: Collection[str] | None = None
    """The formats that are said of it; None if nobody says one."""

    @property
    def shown(self) -> str:
        """Its name for messages."""
        return quoted(self.name, WORDS)


class Work:
    """An image in the making: temporary files in the directory where it will be."""

    def __init__(self, home: VMDirectory, stem: str, lane: Lane, image: Image | None) -> None:
        self._home = home
        self._stem = stem
        self._lane = lane
        self._image = image
        self._files: list[str] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def begun(
        cls, home: VMDirectory, stem: str, lane: Lane, image: Image | None
    ) -> "AsyncIterator[Work]":
        """Yield it with an empty file; in the end, remove what has not got its name."""
        work = cls(home, stem, lane, image)
        try:
            await lane.do(work.create)  # in turn, so that what clears comes behind it
            yield work
        finally:
            await asyncio.shield(lane.see_to(work.clear))

    @classmethod
    def of_file(cls, home: VMDirectory, file: str, lane: Lane, name: str, formats: Collection[str]) -> Self:
        """Return the work on an image that is there already, under a temporary name; blocks; raises OSError.

        `name` is for messages, and `formats` are said of it. The caller has made the file, and removes
        what has not got its name.
        """
        found = os.stat(f"{home.path}/{file}", follow_symlinks=False)
        image = Image(-1, name, found, found.st_size, formats)
        work = cls(home, file.removeprefix(safefile.TEMPORARY), lane, image)
        work._files.append(file)
        return work

    @property
    def file(self) -> str:
        """The name of the latest file."""
        return self._files[-1]

    @property
    def path(self) -> str:
        """The path of the latest file."""
        return f"{self._home.path}/{self._files[-1]}"

    def create(self) -> None:
        """Create one more empty file, which the user of QEMU may write to."""
        with self._home.opened() as directory:
            self._files.append(safefile.create_temporary(directory, self._stem))

    def clear(self) -> None:
        """Remove the files."""
        with contextlib.suppress(VmessError), self._home.opened() as directory:
            for name in self._files:
                safefile.remove(directory, name)

    async def copy(self) -> AsyncIterator[int]:
        """Copy the image to the file; yield percents."""
        assert self._image is not None  # noqa: S101 -- only an overlay has none
        image, percents = self._image, Percents()
        total = image.size if stat.S_ISBLK(image.found.st_mode) else copying.allocated(image.found)
        await self._lane.aside(functools.partial(self._check_room, total))
        with _Duplicate(image.fd) as source:

            def work() -> None:
                if source.taken():
                    target = io.FileIO(os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "w")
                    copying.copy(source.file, target, image.size, report)

            def report(done: int) -> None:
                if source.stop.is_set():
                    raise copying.Cancelled
                percents.set(done * 100 // image.size)

            async for percent in percents.during(self._lane.finish(work)):
                yield percent

    def _check_room(self, wanted: int) -> None:
        with self._home.opened() as directory:
            copying.check_room(directory, wanted, str(self._home))

    def _room_for_one_more(self) -> None:
        self._check_room(copying.allocated(os.stat(self.path)))
        self.create()

    def examine(self) -> Source:
        """Examine the copy; raises InvalidValue, Failed."""
        assert self._image is not None  # noqa: S101
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return examined(self._image._replace(fd=fd))
        finally:
            os.close(fd)

    async def convert(self, account: Account, form: str, target: str) -> AsyncIterator[int]:
        """Convert the copy to one more file; yield percents."""
        before = self.path
        await self._lane.do(self._room_for_one_more)  # in turn, as the first
        percents = Percents()
        conversion = qemu_img.convert(account, (before, form), (self.path, target), percents.set)
        async for percent in percents.during(conversion):
            yield percent
        await self._lane.aside(functools.partial(os.unlink, before))

    async def check(self, account: Account) -> None:
        """Check the structure of the file."""
        await qemu_img.check(account, self.path, "qcow2")

    async def made(self, account: Account, source: Source, form: str) -> AsyncIterator[BringProgress]:
        """Make an image of a format of the one that is brought, which :meth:`take` can give its name.

        A raw image has no header that somebody could change meanwhile, so it is converted as it is, if QEMU's
        user is ours and may read it. Any other one is copied first.
        """
        if source.format == "raw" != form and not account.entry and self._is_file():
            async for percent in self._convert_raw(account, form):
                yield BringProgress(False, BringStep.converting, percent, source.format)
        else:
            async for percent in self.copy():
                yield BringProgress(False, BringStep.copying, percent, source.format)
            if source.format != "raw":  # of the copy, which nobody can change any more
                source = await self._lane.aside(self.examine)
            async for progress in self._converted(account, source, form):
                yield progress
        async for progress in self._settled(account, source, form):
            yield progress

    async def completed(self, account: Account, source: Source, form: str) -> AsyncIterator[BringProgress]:
        """Make an image of a format of the file, which nobody else can change."""
        async for progress in self._converted(account, source, form):
            yield progress
        async for progress in self._settled(account, source, form):
            yield progress

    def _is_file(self) -> bool:
        return self._image is not None and stat.S_ISREG(self._image.found.st_mode)

    async def _convert_raw(self, account: Account, form: str) -> AsyncIterator[int]:
        assert self._image is not None  # noqa: S101
        image, percents = self._image, Percents()
        await self._lane.aside(functools.partial(self._check_room, copying.allocated(image.found)))
        source, target = (qemu_img.PASSED_PATH, "raw"), (self.path, form)
        conversion = qemu_img.convert(account, source, target, percents.set, image.fd)
        async for percent in percents.during(conversion):
            yield percent

    async def _converted(self, account: Account, source: Source, form: str) -> AsyncIterator[BringProgress]:
        if source.format != form:
            async for percent in self.convert(account, source.format, form):
                yield BringProgress(False, BringStep.converting, percent, source.format)

    async def _settled(self, account: Account, source: Source, form: str) -> AsyncIterator[BringProgress]:
        if form == "qcow2":
            yield BringProgress(False, BringStep.checking, None, source.format)
            await self.check(account)
        yield BringProgress(False, BringStep.writing, None, source.format)
        await self._lane.finish(self.settle)

    def settle(self) -> None:
        """Wait until the file is on disk, so that its name never stands for less after a power cut; blocks."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            with failing(f"{self.path} cannot be written to disk"):
                os.fsync(fd)
        finally:
            os.close(fd)

    def take(self, directory: int, name: str, form: str) -> int:
        """Give the file its name, and return its virtual size; blocks.

        Raises:
            BadFile, Failed: it cannot be used, or renamed.
        """
        with failing(f"{safefile.place(directory, name)} cannot be created"):
            size = backing.virtual_size(directory, self._files[-1], form)
            os.rename(self._files[-1], name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
        return size


class _Duplicate:
    """A descriptor of a caller for a thread, which closes it; the caller does, if the thread has not begun."""

    def __init__(self, fd: int) -> None:
        self.file = io.FileIO(os.dup(fd), "r")
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._is_taken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.stop.set()
            if not self._is_taken:
                self.file.close()

    def taken(self) -> bool:
        """Take it in the thread; false if the caller has left."""
        with self._lock:
            self._is_taken = not self.stop.is_set()
            return self._is_taken


class Percents:
    """Percents that a thread or a child reports, for an iterator."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[int | None] = asyncio.Queue()
        self._last = -1

    def set(self, percent: int) -> None:
        """Report a percentage, from any thread; the same one twice is dropped."""
        if percent > self._last:
            self._last = percent
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._news.put_nowait, percent)

    async def during(self, work: Coroutine[Any, Any, None]) -> AsyncIterator[int]:
        """Yield the percents until the work is done; raises as the work, which is cancelled with the caller."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._news.put_nowait(None))
        try:
            while (percent := await self._news.get()) is not None:
                yield percent
            await task
        finally:
            task.cancel()
            await asyncio.wait({task})


def kept(source: Source) -> str:
    """Return the format of an image that is brought without a word about its format."""
    return "raw" if source.format == "raw" else "qcow2"


def opened(fd: int, name: str) -> Image:
    """Return the image behind a descriptor of a caller; raises InvalidValue."""
    shown = quoted(name, WORDS)
    try:
        found = os.fstat(fd)
        is_block = stat.S_ISBLK(found.st_mode)
        if not is_block and not stat.S_ISREG(found.st_mode):
            raise InvalidValue(f"image {shown} is {safefile.kind(found.st_mode)}; it must be an image file")
        size = safefile.device_size(found.st_rdev) if is_block else found.st_size
        os.pread(fd, 1, 0)
    except OSError as error:
        raise InvalidValue(f"image {shown} cannot be read: {reason(error)}") from None
    if not quantities.DISK_MAX >= size > 0:
        raise InvalidValue(f"image {shown} has {size} bytes; it must have 1 byte to 64T")
    return Image(fd, name, found, size, image_formats.by_name(name) or None)


def examined(image: Image) -> Source:
    """Return the format of an image; raises InvalidValue if it is not taken."""
    try:
        return image_formats.examine(image.fd, image.size, image.formats)
    except qcow2.Refused as refused:
        raise InvalidValue(f"image {image.shown} {refused}") from None
    except OSError as error:
        raise InvalidValue(f"image {image.shown} cannot be read: {reason(error)}") from None
