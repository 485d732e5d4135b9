"""Resumes a guest that QEMU paused because the file system of an image is full.

QEMU pauses a guest whose write fails with ENOSPC (werror=enospc, its default), and repeats the write at
`cont`. There is no notification of free space, so statvfs(3) is polled.
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
"""Free bytes that are required before a guest is resumed ..."""
ENOUGH_SHARE = 20
"""... or, on a small file system, this fraction of its size (1/20)."""
STEADY = 0.5
"""Seconds that a guest must run to count as resumed: the repeated write may fail again."""
NODES_MAX = 64
"""Number of drives whose errors are remembered; a bound, because QEMU is not trusted."""
WORDS = 300
"""Number of characters of a path that are logged."""


class EnospcRecovery:
    """Detects that the guest of one QEMU is paused by ENOSPC, and resumes it when there is space."""

    def __init__(self, vm: str, session: Session) -> None:
        self._vm = vm
        self._session = session
        self._images = Lane(f"the images of {vm}")
        self._errors: dict[str, bool] = {}
        self._lacking: str | None = None
        self._running_since: float | None = None
        self._next = 0.0

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Note a QMP event: the drives whose errors paused the guest, and whether these were ENOSPC."""
        if name == "RESUME":
            self._errors.clear()
        elif name == "BLOCK_IO_ERROR" and data.get("action") == "stop" and len(self._errors) < NODES_MAX:
            node = str(data.get("node-name") or data.get("device"))
            self._errors[node] = self._errors.get(node, True) and data.get("nospace") is True

    def hear(self, runstate: str) -> bool:
        """Note the runstate; tell whether it is time to :meth:`look`."""
        now = asyncio.get_running_loop().time()
        if runstate != Runstate.running:
            self._running_since = None
            return runstate == Runstate.io_error and now >= self._next
        if self._running_since is None:
            self._running_since = now
        elif self._lacking is not None and now - self._running_since >= STEADY:
            log.warning("%s: resumed: there is space for %s", self._vm, self._lacking)
            self._lacking = None
        return False

    async def look(self) -> None:
        """Resume the guest if it is paused by ENOSPC and there is space now.

        Tried at most once per `Timing.probe_every`: the write may need more space than there is.

        Raises:
            MonitorLost: the monitor connection is gone.
        """
        with contextlib.suppress(CommandRefused):
            images = self._starved(await self._session.monitor().images())
            if not images:
                return
            self._say(images)
            try:
                if not await self._images.aside(lambda: all(has_room(image.file) for image in images)):
                    return
            except VmessError:  # the file system hangs
                return
            self._next = asyncio.get_running_loop().time() + self._session.timing.probe_every
            await self._session.execute("cont")
            await asyncio.sleep(2 * STEADY)
            self._session.probe()  # so that :meth:`hear` can log that the guest runs

    def _starved(self, images: Sequence[Image]) -> list[Image]:
        """Return the images that lack space; none if a drive has another error, too.

        Decided by the events; after a restart of the daemon, by the first error of each drive (`query-block`).
        """
        if not all(self._errors.values()):
            return []
        return [image for image in images if (image.node in self._errors if self._errors else image.starved)]

    def _say(self, images: Sequence[Image]) -> None:
        """Log once which images lack space."""
        if self._lacking is None:
            self._lacking = ", ".join(printable(image.name[:WORDS]) for image in images[:NODES_MAX])[:WORDS]
            files = [printable(image.file[:WORDS]) for image in images[:NODES_MAX] if image.file]
            where = ", ".join(files)[: 4 * WORDS]
            where = f" on the file system of {where}" if where else ""
            log.warning("%s: paused: no space for %s%s", self._vm, self._lacking, where)


def has_room(file: str | None) -> bool:
    """Tell whether a write into an image may succeed now, by the free space of its file system.

    True for anything except a regular file: a block device, such as a thin volume, does not report its space.
    """
    try:
        if file is None or not stat.S_ISREG(os.stat(file).st_mode):
            return True
        found = os.statvfs(file)
    except (OSError, ValueError):
        return True
    return is_enough(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


def is_enough(free: int, size: int) -> bool:
    """Tell whether a file system with `free` bytes of `size` has enough space to resume a guest."""
    return free >= max(1, min(ENOUGH, size // ENOUGH_SHARE))
