"""A start of a VM whose QEMU is not there yet."""

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
"""Seconds after which whoever waits for a start is told that its files do not answer."""
MORE_TIME = 2.0
"""The same for those who come later."""


class Cancellation(NamedTuple):
    """What puts an end to a start."""

    uid: int | None
    """Who asked for it."""
    gentle: bool
    """It was asked for without force."""


class StartAttempt:
    """A start whose QEMU is not there yet."""

    def __init__(self, vm: str, post: Callable[..., None]) -> None:
        self.cancelled: Cancellation | None = None
        """Set when it was called off."""
        self._vm = vm
        self._post = functools.partial(post, of=self)
        self._off = threading.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, directory: VMDirectory, host: Host, tries: int, files: Lane) -> None:
        """Let it happen what comes of it; and that it is late, if it takes long."""

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("%s: unexpected failure of a start", self._vm, exc_info=error)
                self._post(Event.refused, error=refusals.unexpected(self._vm))

        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LAUNCH_TIME, self._post, Event.late)
        self._task = loop.create_task(self._launch(directory, host, tries, files))
        self._task.add_done_callback(done)

    async def _launch(self, directory: VMDirectory, host: Host, tries: int, files: Lane) -> None:
        """Start a QEMU, or find the one that the VM has although it was not known to."""
        try:
            start = functools.partial(launcher.launch, directory, host, tries, self._check)
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
        """Have no QEMU spawned, if that is not done yet."""
        self.cancelled = cancellation
        self._off.set()
        self.hurry()

    def hurry(self) -> None:
        """Have somebody more told soon that it takes long, if it does."""
        loop = asyncio.get_running_loop()
        if self._timer is not None and self._timer.when() <= loop.time():
            self._timer = loop.call_later(MORE_TIME, self._post, Event.late)

    def _check(self) -> None:
        """Raise Failed where it was called off; from any thread."""
        if self._off.is_set():
            raise refusals.called_off(self._vm)

    def settle(self) -> None:
        """Note that it has come to something, or to nothing."""
        if self._timer is not None:
            self._timer.cancel()

    async def finished(self, patience: float) -> None:
        """Return when it has, or after so many seconds."""
        self.settle()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=patience)
