"""Whose QEMU it is: looking for the one an earlier daemon left, and keeping the one there is under watch.

The lowest part of a machine: what it has. What it makes of that stands in :mod:`vmessd.vm.machine`.
"""

import abc
import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from vmessd.core import refusals
from vmessd.core.errors import Locked, VmessError
from vmessd.core.lifecycle import Action, Event, State, transition
from vmessd.core.records import ExitRecord
from vmessd.qemu.session import Session, Timing
from vmessd.storage import vmdir
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import restart
from vmessd.vm.host import Host
from vmessd.vm.journal import Journal
from vmessd.vm.launcher import Launched
from vmessd.vm.mailbox import EventMessage, Inbox, Request, dismiss, tell
from vmessd.vm.qemu_run import QemuRun
from vmessd.vm.rediscovery import Findings, Search
from vmessd.vm.start import StartAttempt

BEGIN_TIME = 5.0
"""Seconds that whoever wants something of a guest waits for a start that is under way."""


class MachineBase(abc.ABC):
    """A VM with its QEMU, if it has one, and with those who wait for either."""

    def __init__(self, directory: VMDirectory, host: Host, timing: Timing) -> None:
        self.vm = directory.vm
        self.directory = directory
        self._begun = asyncio.Event()
        """Set while no start is under way."""
        self._begun.set()
        self._state = State.stopped
        self.last_exit: ExitRecord | None = None
        self.found = asyncio.Event()
        """Set once it is known whether an earlier daemon's QEMU lives, and it is held if so."""
        self.settled = asyncio.Event()
        """Set once it is known whether an earlier daemon's QEMU lives, and it had a chance to answer."""
        self.device_gone: Callable[[str], None] = lambda _identifier: None
        """Called with the id of a device that the guest has let go of."""
        self.files = Lane(f"the files of {directory.vm}", f"vmess {directory.vm} stop force works all the same")
        """All that is done to the VM's files: a file system may hang."""
        self._host = host
        self._timing = timing
        self._inbox = Inbox(directory.vm)
        self._journal = Journal(directory.vm, host.events)
        self._attempt: StartAttempt | None = None
        self._run: QemuRun | None = None
        self._search = Search(directory, host, self.files)
        self._pending: restart.Pending | None = None
        self._starters: list[Request] = []
        self._stoppers: list[Request] = []

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self._state

    def _pass(self, event: Event) -> Action:
        """Go where an event leads by the table, and return what is to be done. Nothing else sets the state."""
        self._state, action = transition(self._state, event)
        if self._state is State.starting:
            self._begun.clear()
        else:
            self._begun.set()
        return action

    async def begun(self, patience: float = BEGIN_TIME) -> None:
        """Wait until no start is under way: its guest runs then, or there is none. Raises TimedOut."""
        try:
            await asyncio.wait_for(self._begun.wait(), patience)
        except TimeoutError:
            raise refusals.starting(self.vm) from None

    @abc.abstractmethod
    async def _react(self, message: EventMessage) -> None:
        """Handle a message."""

    @abc.abstractmethod
    async def _rest_if_wanted(self) -> None:
        """Have the VM started again where its last exit says so."""

    async def in_turn(self, *, stopped: bool = False) -> None:
        """Wait until all that has reached the VM until now was handled.

        Raises:
            AlreadyRunning: `stopped` was asked for and the VM is not.
        """
        await self._inbox.change(None, stopped=stopped, patience=0.0)

    def _in_the_way(self) -> VmessError | None:
        """Return why nothing can be done about a VM that is held."""
        return self._search.doubt if self.state is State.held else None

    # -- Looking for a QEMU --

    async def _recover(self) -> None:
        launched = await self._seek(self._search.first)
        if launched is None:
            await self._rest_if_wanted()
            self.settled.set()
            return
        # One that hangs must not make everybody wait who asks how it is.
        asyncio.get_running_loop().call_later(self._timing.settle, self.settled.set)
        await self._react(EventMessage(Event.found, launched=launched))

    async def _seek(self, look: Callable[[], Awaitable[Findings]]) -> Launched | None:
        """Look for a QEMU of an earlier daemon; again and again where nobody can tell whether there is one."""
        found = await look()
        self.last_exit = restart.later(self.last_exit, found.last_exit)
        if found.problem is not None:
            self._search.go_on(found.problem, self._timing.look, self._look_again)
            if isinstance(found.problem, Locked):
                await self._react(EventMessage(Event.held, error=found.problem))
            return found.launched
        self._search.cancel()
        if found.launched is None and self.state is State.held:
            await self._react(EventMessage(Event.free))
        return found.launched

    async def _look_again(self) -> None:
        self._inbox.post(Event.look)
        await self.in_turn()

    async def _look(self, message: EventMessage) -> None:
        """Look for its QEMU again; what was asked for is then carried out, or refused."""
        launched = await self._seek(self._search.look)
        if launched is not None:
            await self._react(EventMessage(Event.found, launched=launched))
        elif self._search.doubt is None:
            await self._rest_if_wanted()
        error = self._in_the_way()
        if message.request is not None and error is not None:
            tell([message.request], error)
        elif message.request is not None:
            await self._react(message)

    async def _hold(self, message: EventMessage) -> None:
        error = message.error or refusals.in_the_way(self.vm)
        self._wait_no_longer()
        self._no_attempt()
        self._search.go_on(error, self._timing.look, self._look_again)
        self._tell_all(error)

    def _no_attempt(self) -> StartAttempt | None:
        """End the start that is under way, and return it."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.settle()
        return attempt

    def _take_in(self, message: EventMessage, launched: Launched) -> bool:
        """Adopt a QEMU that was spawned or found; tell whether there was none yet."""
        if self._run is not None:
            launched.close()
            return False
        run = self._adopt(launched)
        message.launched = None  # should what follows fail, it is taken in all the same
        if message.event is Event.found:
            self._journal.found(run.pid)
            run.ran = True  # whether it did, nobody knows; it was not refused
            dismiss(self._starters, refusals.running(self.vm, run.pid))
        return True

    def _adopt(self, launched: Launched) -> QemuRun:
        """Take a process under watch."""
        self._search.cancel()
        self._wait_no_longer()
        connect = functools.partial(launched.connect, self.directory, vmdir.QMP_SOCKET)
        session = Session(
            connect=lambda: self.files.aside(connect),
            report=lambda event, runstate: self._inbox.post(event, runstate, of=run),
            events=lambda name, data: self._qmp_event(run, name, data),
            timing=self._timing,
        )
        run = QemuRun(self.vm, launched, session)
        attempt = self._no_attempt()
        run.start_cancelled = attempt.cancelled if attempt is not None else None
        self._run = run
        launched.process.watch(lambda: self._ended(run))
        if launched.problem is not None:
            self.mind_directory()
        return run

    def mind_directory(self) -> None:
        """Look whether the directory of a VM that runs is where it should be; nobody waits for that."""
        if self._run is not None:
            self._run.mind_directory(self.directory, self.files)

    # -- What QEMU and the kernel tell --

    def _qmp_event(self, run: QemuRun, name: str, data: Mapping[str, Any]) -> None:
        if run is not self._run:
            return
        self._journal.qmp(run.pid, name, data)
        heard = run.hear(name, data)
        if heard is not None:
            self._inbox.post(*heard, of=run)
        elif name == "DEVICE_DELETED" and isinstance(data.get("device"), str):
            self.device_gone(data["device"])

    def _ended(self, run: QemuRun) -> None:
        """The pidfd says the process has ended; its last messages may still be on the way."""
        run.start_task("last words", self._last_words(run))

    async def _last_words(self, run: QemuRun) -> None:
        try:
            await run.session.drained()
        finally:
            self._inbox.post(Event.exited, of=run)

    # -- Those who wait --

    def _wait_no_longer(self) -> restart.Pending | None:
        """End the pause before a restart and return what was pending."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
        return pending

    def _tell_all(self, news: VmessError) -> None:
        """Tell everybody who waits the same, at last."""
        dismiss(self._starters, news)
        dismiss(self._stoppers, news)
