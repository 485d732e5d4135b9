"""What is left of VMs that are gone, until that is gone as well.

A VM is removed in one step: its directory gets another name. Its TAPs and its files go then, which fails on a
disk that does. The renamed directory stays until all is gone, so that a later daemon knows of it, too; this one
remembers it, and tries again after a pause that grows.
"""

import dataclasses
import functools
import logging
import math
import os
import time
from pathlib import Path

from vmessd.core.errors import Failed, NotPermitted, TimedOut, VmessError, printable, reason
from vmessd.network.links import Network
from vmessd.storage import safefile, vmdir
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory

log = logging.getLogger(__name__)

PAUSE, PAUSE_MAX = 1.0, 300.0
"""Seconds until the next try: after the first that failed, and at most."""
PATIENCE = 300.0
"""Seconds that the files of a VM may take to go."""


@dataclasses.dataclass
class _Left:
    """A directory that is to go."""

    pause: float = 0.0
    due: float = 0.0
    """When it is tried again, by the monotonic clock."""
    said: str | None = None
    """What was logged of it last."""

    def postpone(self) -> None:
        """Let a pause begin."""
        self.pause = min(max(PAUSE, 2 * self.pause), PAUSE_MAX)
        self.due = time.monotonic() + self.pause


class Leftovers:
    """What is left in one VM root."""

    def __init__(self, root: Path, network: Network) -> None:
        self._root = root
        self._network = network
        self._left: dict[str, _Left] = {}
        self._files = Lane(f"what is left of VMs in {printable(str(root))}")

    def find(self) -> None:
        """Remember what a daemon that died left; blocks. Raises Failed where the root cannot be read."""
        for name in vmdir.leftovers(self._root):
            self.remember(name)

    def remember(self, name: str) -> None:
        """Have a directory of this name in the root removed. From any thread."""
        self._left.setdefault(name, _Left())

    def clear(self, name: str) -> str | None:
        """Delete the TAPs and files of a VM by the name that its directory has now; blocks.

        Return what there is to say about it. What does not work is remembered.

        Raises:
            Failed: something in it cannot be deleted.
        """
        left = self._left.setdefault(name, _Left())
        left.due = math.inf  # until it is known what comes of it
        try:
            note = self._clear(name)
        except Failed as error:
            self._say(left, error.message)
            raise
        else:
            self._say(left, note)
        finally:
            left.postpone()
        return note

    def _clear(self, name: str) -> str | None:
        vm, path = vmdir.removed(name), self._root / name
        trouble = self._unwire(vm) if vm else None
        again = trouble is not None and not isinstance(trouble, NotPermitted)
        try:
            safefile.empty(path)
            if not again:
                os.rmdir(path)
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or os.path.lexists(path):
                words = f"{self._shown(name)} cannot be removed: {reason(error)}"
                raise Failed(words, hint="vmessd tries it again from time to time") from None
        if not again:
            self._left.pop(name, None)
        if trouble is None:
            return None
        # Whoever made TAPs for a daemon that may not, can delete them.
        return f"{vm} is deleted, but its TAPs stay{' for now' if again else ''}: {trouble.message}"

    def _unwire(self, vm: str) -> VmessError | None:
        """Delete the TAPs of a VM that is gone, unless there is one of that name again; return what failed."""
        try:
            if not VMDirectory(self._root, vm).exists():
                self._network.unwire(vm)
        except VmessError as error:
            return error
        return None

    def _shown(self, name: str) -> str:
        """Return what a directory is, for messages."""
        return f"{printable(str(self._root / name))}, all that is left of {vmdir.removed(name) or 'a VM'},"

    def _say(self, left: _Left, words: str | None) -> None:
        if words is not None and words != left.said:
            log.warning("%s", words)
        left.said = words

    async def take_up(self, patience: float = PATIENCE) -> None:
        """Try again what is due."""
        now = time.monotonic()
        for name, left in list(self._left.items()):
            if left.due <= now:
                await self._take_up(name, left, patience)

    async def _take_up(self, name: str, left: _Left, patience: float) -> None:
        try:
            await self._files.do(functools.partial(self.clear, name), patience)
        except VmessError as error:  # which is logged already, or tells that it takes long
            if isinstance(error, TimedOut):
                self._say(left, f"{self._shown(name)} takes long to be removed")
            left.due = max(left.due, time.monotonic() + PAUSE)
        except Exception:
            log.exception("unexpected failure while %s is removed", printable(name))
        else:
            if name not in self._left:
                log.info("%s is gone now", printable(str(self._root / name)))
