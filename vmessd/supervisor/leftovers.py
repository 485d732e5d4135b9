"""The leftovers of removed VMs, until they are deleted; and VMs that are being renamed, until they are.

A VM is removed in one step: its directory is renamed. Then its TAPs and files are deleted, which may fail, for
example on a broken disk. The renamed directory stays until everything is deleted, so that a later daemon finds
it. This daemon tries again after a pause that grows. A directory in the middle of a renaming is found and
completed in the same way.
"""

import functools
import logging
import math
import os
import time
from pathlib import Path

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, NotPermitted, TimedOut, VmessError, printable, reason
from vmessd.core.refusals import LOG
from vmessd.network.links import Network
from vmessd.storage import renaming, safefile, vmdir
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory

log = logging.getLogger(__name__)

PAUSE, PAUSE_MAX = 1.0, 300.0
"""Seconds until the next attempt: after the first failure, and at most."""
PATIENCE = 300.0
"""Seconds that the deletion of the files of a VM may take."""


@dataclass
class _Left:
    """A directory to delete."""

    pause: float = 0.0
    due: float = 0.0
    """When the next attempt is due, by the monotonic clock."""
    said: str | None = None
    """The last message about it in the log."""

    def postpone(self) -> None:
        """Begin the next pause, twice as long."""
        self.pause = min(max(PAUSE, 2 * self.pause), PAUSE_MAX)
        self.due = time.monotonic() + self.pause


class Leftovers:
    """The leftovers in one VM root."""

    def __init__(self, root: Path, network: Network) -> None:
        self._root = root
        self._network = network
        self._left: dict[str, _Left] = {}
        self._files = Lane(f"what is left of VMs in {printable(str(root))}")

    def find(self) -> None:
        """Find the leftovers of earlier daemons; blocks. Raises Failed if the root cannot be read."""
        for name in vmdir.leftovers(self._root):
            self.remember(name)

    def remember(self, name: str) -> None:
        """Schedule the deletion of the directory of this name. May be called from any thread."""
        self._left.setdefault(name, _Left())

    def clear(self, name: str) -> str | None:
        """Delete the TAPs and files of a VM by the present name of its directory; blocks.

        Returns a note for the user, if there is one. What cannot be deleted is tried again later.

        Raises:
            Failed: a file cannot be deleted.
        """
        left = self._left.setdefault(name, _Left())
        left.due = math.inf  # until this attempt is over
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

    def rename(self, vm: VMDirectory, new: str) -> str | None:
        """Rename a VM and delete its TAPs; blocks. Return a note for the user, if there is one.

        If something fails, the VM keeps its name. Should even this be impossible, it is tried again later.

        Raises:
            Locked, BadFile: as renaming.begun.
            Failed: it was not renamed.
        """
        with renaming.begun(vm, new) as name:
            left = self._left.setdefault(name, _Left())
            left.due = math.inf  # until this attempt is over
            try:
                now = renaming.complete(self._root, name)
            except Failed as error:
                self._say(left, error.message)
                left.postpone()
                raise
            self._left.pop(name, None)
        if now != new:
            raise Failed(
                f"{vm.vm} was not renamed to {new}: a drive could not be renamed, or the name is taken",
                hint=f"to see why: {LOG}",
            )
        trouble = self._unwire(vm.vm)
        return f"its old TAPs stay until net prune: {trouble.message}" if trouble else None

    def _clear(self, name: str) -> str | None:
        if pair := renaming.pair(name):
            if not os.path.lexists(self._root / name):  # completed just now
                self._left.pop(name, None)
                return None
            now = renaming.complete(self._root, name)
            self._left.pop(name, None)
            log.warning("%s: the renaming to %s was cut short; the VM is %s now", *pair, now)
            self._unwire(pair[0])
            return None
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
                raise Failed(words, hint="vmessd tries again from time to time") from None
        if not again:
            self._left.pop(name, None)
        if trouble is None:
            return None
        # If the daemon may not delete TAPs, the user who made them can.
        return f"{vm} is deleted, but its TAPs stay{' for now' if again else ''}: {trouble.message}"

    def _unwire(self, vm: str) -> VmessError | None:
        """Delete the TAPs of a removed VM, unless a VM of that name exists again; return an error."""
        try:
            if not VMDirectory(self._root, vm).exists():
                self._network.unwire(vm)
        except VmessError as error:
            return error
        return None

    def _shown(self, name: str) -> str:
        """Return the description of a directory in messages."""
        if pair := renaming.pair(name):
            return f"{printable(str(self._root / name))}, VM {pair[0]} while it is renamed to {pair[1]},"
        return f"{printable(str(self._root / name))}, all that is left of {vmdir.removed(name) or 'a VM'},"

    def _say(self, left: _Left, words: str | None) -> None:
        if words is not None and words != left.said:
            log.warning("%s", words)
        left.said = words

    async def complete_renamings(self) -> None:
        """Try again now to complete renamings that could be neither completed nor undone."""
        for name, left in self._left.items():
            if renaming.pair(name) and left.due != math.inf:
                left.due = 0.0
        await self.retry()

    async def retry(self, patience: float = PATIENCE) -> None:
        """Make the attempts that are due."""
        now = time.monotonic()
        for name, left in list(self._left.items()):
            if left.due <= now:
                await self._retry(name, left, patience)

    async def _retry(self, name: str, left: _Left, patience: float) -> None:
        try:
            await self._files.do(functools.partial(self.clear, name), patience)
        except VmessError as error:  # logged by `clear`, except for a timeout
            if isinstance(error, TimedOut):
                self._say(left, f"{self._shown(name)} takes long")
            left.due = max(left.due, time.monotonic() + PAUSE)
        except Exception:
            log.exception("unexpected failure while removing %s", printable(name))
        else:
            if name not in self._left and renaming.pair(name) is None:
                log.info("%s is removed now", printable(str(self._root / name)))
