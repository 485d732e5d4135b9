"""An attempt to start a VM, until its QEMU runs."""

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from vmessd.core import refusals
from vmessd.core.errors import Locked, VmessError
from vmessd.core.lifecycle import Event
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import adoption, launcher
from vmessd.vm.host import Host

log = logging.getLogger(__name__)

LAUNCH_TIME = 15.0
"""Seconds after which the waiting clients are told that the files of the VM do not answer."""
MORE_TIME = 2.0
"""The same for clients that come after that."""


class Cancellation(NamedTuple):
    """A stop that was requested during a start."""

    uid: int | None
    """The user who requested it."""
    gentle: bool
    """It was requested without force."""


class StartAttempt:
    """A start that has no QEMU yet."""

    def __init__(self, vm: str, post: Callable[..., None]) -> None:
        self.cancelled: Cancellation | None = None
        """Set when a stop cancelled it."""
        self._vm = vm
        self._post = functools.partial(post, of=self)
        self._is_cancelled = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, directory: VMDirectory, host: Host, tries: int, files: Lane, memory: str) -> None:
        """Start QEMU in the background and post the outcome; post `late` when this takes long.

        `memory` is the snapshot from whose memory the guest continues, empty if it boots.
        """

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s: unexpected failure of a start", self._vm, exc_info=error)
                self._post(Event.refused, error=refusals.unexpected(self._vm))

        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LAUNCH_TIME, self._post, Event.late)
        self._task = loop.create_task(self._launch(directory, host, tries, files, memory))
        self._task.add_done_callback(done)

    async def _launch(self, directory: VMDirectory, host: Host, tries: int, files: Lane, memory: str) -> None:
        """Start QEMU; if the directory is locked, look for a QEMU of the VM that was not known."""
        try:
            start = functools.partial(launcher.launch, directory, host, tries, self._check, memory)
            self._post(Event.spawned, launched=await files.finish(start, LAUNCH_TIME))
        except Locked as error:
            await self._find(directory, host, files, error)
        except VmessError as error:
            self._post(Event.refused, error=error)

    async def _find(self, directory: VMDirectory, host: Host, files: Lane, locked: Locked) -> None:
        try:
            found = await files.finish(functools.partial(adoption.recover, directory, host))
        except Locked as error:
            self._post(Event.held, error=error)
        except VmessError as error:
            self._post(Event.refused, error=error)
        else:
            if found is None:
                self._post(Event.refused, error=locked)
            else:
                self._post(Event.found, launched=found)

    def call_off(self, cancellation: Cancellation) -> None:
        """Prevent the spawning of QEMU, unless it has happened."""
        self.cancelled = cancellation
        self._is_cancelled.set()
        self.hurry()

    def hurry(self) -> None:
        """Post `late` again soon for another waiting client, if it was posted before."""
        loop = asyncio.get_running_loop()
        if self._timer is not None and self._timer.when() <= loop.time():
            self._timer = loop.call_later(MORE_TIME, self._post, Event.late)

    def _check(self) -> None:
        """Raise Failed if it was cancelled. May be called from any thread."""
        if self._is_cancelled.is_set():
            raise refusals.called_off(self._vm)

    def settle(self) -> None:
        """Stop the timer: the outcome is known."""
        if self._timer is not None:
            self._timer.cancel()

    async def finished(self, patience: float) -> None:
        """Wait until the attempt has finished, at most `patience` seconds."""
        self.settle()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=patience)
