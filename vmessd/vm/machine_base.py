"""The data of a machine, how it finds, adopts and watches its QEMU, and where its QMP events arrive.

:mod:`vmessd.vm.machine` has the actions.
"""

import abc
import asyncio
import functools
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from vmessd.core import refusals
from vmessd.core.errors import Locked, VmessError
from vmessd.core.lifecycle import Action, Event, State, transition
from vmessd.core.records import ExitRecord
from vmessd.qemu import command_line
from vmessd.qemu.guest_agent import Agent
from vmessd.qemu.session import Session, Timing
from vmessd.storage import vmdir
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import restart
from vmessd.vm.host import Host
from vmessd.vm.journal import Journal
from vmessd.vm.launcher import Beside, Launched
from vmessd.vm.mailbox import EventMessage, Inbox, Request, dismiss, tell
from vmessd.vm.qemu_run import QemuRun, failures_logged
from vmessd.vm.rediscovery import Findings, Search
from vmessd.vm.start import StartAttempt

log = logging.getLogger(__name__)

LEEWAY = 1.0
"""Seconds that a QEMU may take to end after it has closed its connections to the processes beside it."""
BEGIN_TIME = 5.0
"""Seconds that a call which needs a running guest waits for a start in progress, or a QEMU just found."""


class MachineBase(abc.ABC):
    """A VM, its QEMU if it has one, and the clients that wait for its start or stop."""

    def __init__(self, directory: VMDirectory, host: Host, timing: Timing) -> None:
        self.vm = directory.vm
        self.directory = directory
        self._begun = asyncio.Event()
        """Set while no start is in progress."""
        self._begun.set()
        self._state = State.stopped
        self.last_exit: ExitRecord | None = None
        self.found = asyncio.Event()
        """Set once it is known whether a QEMU of an earlier daemon lives; if so, it is adopted."""
        self.settled = asyncio.Event()
        """As :attr:`found`, and that QEMU had time to answer."""
        self.device_gone: Callable[[str], None] = lambda _identifier: None
        """Called with the id of a device that the guest has released (DEVICE_DELETED)."""
        self.tray_opened: Callable[[], None] = lambda: None
        """Called when the tray of a CD drive has opened (DEVICE_TRAY_MOVED)."""
        self.went_on: Callable[[], None] = lambda: None
        """Called when a guest continues that QEMU has loaded: its devices are as they were when it was sent."""
        self.moved: Callable[[], None] = lambda: None
        """Called when the state has changed."""
        self.files = Lane(f"the files of {directory.vm}", f"vmess {directory.vm} stop force works all the same")
        """All work on the files of the VM: a file system may hang."""
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
        """The state of the VM."""
        return self._state

    def _pass(self, event: Event) -> Action:
        """Change the state as the table says, and return the action. Nothing else sets the state."""
        before = self._state
        self._state, action = transition(before, event)
        if self._state is State.starting or event is Event.found:
            self._begun.clear()
        else:
            self._begun.set()
        if self._state is not before:
            self.moved()
        return action

    async def begun(self, patience: float = BEGIN_TIME) -> None:
        """Wait until no start is in progress, and a QEMU of an earlier daemon has answered if it does in time.

        Raises TimedOut if a start takes longer than `patience` seconds.
        """
        if self._begun.is_set():
            return
        try:
            await asyncio.wait_for(self._begun.wait(), patience)
        except TimeoutError:
            if self._state is State.starting:
                raise refusals.starting(self.vm) from None

    @abc.abstractmethod
    async def _react(self, message: EventMessage) -> None:
        """Handle a message."""

    @abc.abstractmethod
    async def _rest_if_wanted(self) -> None:
        """Begin the pause before a restart if the last exit asks for one."""

    async def in_turn(self, *, stopped: bool = False) -> None:
        """Wait until all earlier messages are handled.

        Raises:
            AlreadyRunning: the VM is required to be `stopped`, and it is not.
        """
        await self._inbox.change(None, stopped=stopped, patience=0.0)

    def _in_the_way(self) -> VmessError | None:
        """Return why the VM is held; None if it is not held."""
        return self._search.doubt if self.state is State.held else None

    # -- Looking for a QEMU --

    async def _find_qemu(self) -> None:
        launched = await self._seek(self._search.first)
        if launched is None:
            await self._rest_if_wanted()
            self.settled.set()
            return
        # A QEMU that hangs must not delay clients that ask for its status.
        asyncio.get_running_loop().call_later(self._timing.settle, self.settled.set)
        await self._react(EventMessage(Event.found, launched=launched))

    async def _seek(self, look: Callable[[], Awaitable[Findings]]) -> Launched | None:
        """Look for a QEMU of an earlier daemon; repeat this in the background while the answer is unknown."""
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
        """Look for the QEMU again; then carry out the request of the message, or refuse it."""
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
        """End the start in progress, and return it."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.settle()
        return attempt

    def _take_in(self, message: EventMessage, launched: Launched) -> bool:
        """Adopt a QEMU that was spawned or found, unless the VM has one; tell whether it was adopted."""
        if self._run is not None:
            launched.close()
            return False
        run = self._adopt(launched)
        message.launched = None  # adopted, even if the rest fails
        if message.event is Event.found:
            self._journal.found(run.pid)
            run.ran = True  # not known, but QEMU did not refuse to start
            dismiss(self._starters, refusals.running(self.vm, run.pid))
        return True

    def _adopt(self, launched: Launched) -> QemuRun:
        """Begin to watch a process."""
        self._search.cancel()
        self._wait_no_longer()
        connect = functools.partial(launched.connect, self.vm, vmdir.QMP_SOCKET)
        session = Session(
            connect=lambda: self.files.aside(connect),
            report=lambda event, runstate: self._inbox.post(event, runstate, of=run),
            events=lambda name, data: self._qmp_event(run, name, data),
            timing=self._timing,
        )
        run = QemuRun(self.vm, launched, session)
        if command_line.has_agent(launched.record.argv):
            reach = functools.partial(launched.connect, self.vm, vmdir.AGENT_SOCKET)
            run.agent = Agent(self.vm, lambda: self.files.aside(reach))
        attempt = self._no_attempt()
        run.start_cancelled = attempt.cancelled if attempt is not None else None
        self._run = run
        launched.process.watch(lambda: self._ended(run))
        for one in launched.beside:
            one.process.watch(functools.partial(self._beside_ended, run, one))
        if launched.whereabouts.location.displacement is not None:
            self.mind_directory()
        return run

    def _beside_ended(self, run: QemuRun, one: Beside) -> None:
        """Reap a process beside QEMU, which ends with it; report it if QEMU continues without it."""

        def complain() -> None:
            if run is self._run and not run.launched.process.has_ended():
                run.failed[one.file] = f"{one.what} has failed, status {status}; see qemu.log"
                self._journal.failed(run.pid, run.failed[one.file])

        run.launched.beside.remove(one)
        status = one.process.reap()
        one.process.close()
        asyncio.get_running_loop().call_later(LEEWAY, complain)

    def mind_directory(self) -> None:
        """Check in the background that the directory of a running VM is in its place."""
        if self._run is not None:
            self._run.mind_directory(self.files)

    # -- Events of QEMU and the kernel --

    def _qmp_event(self, run: QemuRun, name: str, data: Mapping[str, Any]) -> None:
        if run is not self._run:
            return
        self._journal.qmp(run.pid, name, data)
        if name == "RESUME" and (run.loads or run.arrives):
            self.went_on()
        heard = run.hear(name, data)
        if heard is not None:
            self._inbox.post(*heard, of=run)
        elif name == "DEVICE_DELETED" and isinstance(data.get("device"), str):
            self.device_gone(data["device"])
        elif name == "DEVICE_TRAY_MOVED" and data.get("tray-open") is True:
            self.tray_opened()

    def _ended(self, run: QemuRun) -> None:
        """The pidfd reports the end of the process; its last QMP messages may still be unread."""
        for one in run.launched.beside:  # if QEMU has not used it, it does not notice
            with failures_logged(self.vm):
                one.process.signal(signal.SIGTERM)
        run.start_task("drain", self._drain(run))

    async def _drain(self, run: QemuRun) -> None:
        try:
            await run.session.drained()
        finally:
            self._inbox.post(Event.exited, of=run)

    # -- Waiting clients --

    def _wait_no_longer(self) -> restart.Pending | None:
        """Cancel the pause before a restart, and return it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
        return pending

    def _tell_all(self, news: VmessError) -> None:
        """Dismiss all waiting clients with an error."""
        dismiss(self._starters, news)
        dismiss(self._stoppers, news)
