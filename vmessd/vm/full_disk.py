"""Whether a VM that stands still because a file system of its images is full can go on.

QEMU pauses a guest whose write finds no space (werror=enospc, its default) and tries the write again at
`cont`. Nothing tells when there is space again, so statvfs(3) is asked every so often.
"""

import asyncio
import contextlib
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from vmessd.core.errors import VmessError, printable
from vmessd.core.words import Runstate
from vmessd.qemu.monitor import CommandRefused, Image
from vmessd.qemu.session import Session
from vmessd.storage.blocking import Lane

log = logging.getLogger(__name__)

ENOUGH = 16 * 1024 * 1024
"""Bytes that have to be free before a guest goes on ..."""
ENOUGH_SHARE = 20
"""... or, on a small file system, one part in so many of it."""
STEADY = 0.5
"""Seconds a guest has to run to count as having gone on: the write that is tried again may fail again."""
NODES_MAX = 64
"""Drives whose errors are kept in mind; what QEMU says is not trusted."""
WORDS = 300
"""Characters of a path that are logged."""


class EnospcRecovery:
    """What one QEMU's guest lacks, and what was said about it."""

    def __init__(self, vm: str, session: Session) -> None:
        self._vm = vm
        self._session = session
        self._images = Lane(f"the images of {vm}")
        self._errors: dict[str, bool] = {}
        self._lacking: str | None = None
        self._running_since: float | None = None
        self._next = 0.0

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Note an event of QEMU's: which drives' errors paused the guest, and whether for lack of space."""
        if name == "RESUME":
            self._errors.clear()
        elif name == "BLOCK_IO_ERROR" and data.get("action") == "stop" and len(self._errors) < NODES_MAX:
            node = str(data.get("node-name") or data.get("device"))
            self._errors[node] = self._errors.get(node, True) and data.get("nospace") is True

    def hear(self, runstate: str) -> bool:
        """Note how the guest is; tell whether it is time to :meth:`look`."""
        now = asyncio.get_running_loop().time()
        if runstate != Runstate.running:
            self._running_since = None
            return runstate == Runstate.io_error and now >= self._next
        if self._running_since is None:
            self._running_since = now
        elif self._lacking is not None and now - self._running_since >= STEADY:
            log.warning("%s: goes on: there is room for %s", self._vm, self._lacking)
            self._lacking = None
        return False

    async def look(self) -> None:
        """Let the guest go on if it stands still for lack of space and there is some now.

        Tried at most as often as QEMU is asked how it is: a write may be larger than what was found free.

        Raises:
            MonitorLost: QEMU cannot be asked any more.
        """
        with contextlib.suppress(CommandRefused):
            images = self._starved(await self._session.monitor().images())
            if not images:
                return
            self._say(images)
            try:
                if not await self._images.aside(lambda: all(has_room(image.file) for image in images)):
                    return
            except VmessError:  # they do not even answer how much room there is
                return
            self._next = asyncio.get_running_loop().time() + self._session.timing.probe_every
            await self._session.execute("cont")
            await asyncio.sleep(2 * STEADY)
            self._session.probe()  # which has it said that the guest goes on, if it does

    def _starved(self, images: Sequence[Image]) -> list[Image]:
        """Return what lacks space, nothing if something else is wrong, too.

        By the events; a daemon that was not there goes by what QEMU remembers: each drive's first error.
        """
        if not all(self._errors.values()):
            return []
        return [image for image in images if (image.node in self._errors if self._errors else image.starved)]

    def _say(self, images: Sequence[Image]) -> None:
        """Log once what the guest waits for."""
        if self._lacking is None:
            self._lacking = ", ".join(printable(image.name[:WORDS]) for image in images[:NODES_MAX])[:WORDS]
            files = [printable(image.file[:WORDS]) for image in images[:NODES_MAX] if image.file]
            where = ", ".join(files)[: 4 * WORDS]
            where = f" on the file system of {where}" if where else ""
            log.warning("%s: paused: no room for %s%s", self._vm, self._lacking, where)


def has_room(file: str | None) -> bool:
    """Tell whether a write into an image may succeed now, as far as its file system tells.

    A block device tells nothing (it may be a thin volume), nor does what is no file: the write is tried.
    """
    try:
        if file is None or not stat.S_ISREG(os.stat(file).st_mode):
            return True
        found = os.statvfs(file)
    except (OSError, ValueError):
        return True
    return is_enough(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def is_enough(free: int, size: int) -> bool:
    """Tell whether a file system with `free` bytes of `size` has enough for a guest to go on."""
    return free >= max(1, min(ENOUGH, size // ENOUGH_SHARE))
