"""Recovery after an unexpected failure in the handling of a message.

No VM stays in a state that it cannot leave, and no client waits for ever.
"""

import abc
import asyncio
import logging

from vmessd.core import refusals, settings
from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import OFF, Event, State, by_force, ladder
from vmessd.vm.machine_base import MachineBase
from vmessd.vm.mailbox import EventMessage, Job, tell
from vmessd.vm.qemu_run import QemuRun
from vmessd.vm.stop import Stop

log = logging.getLogger(__name__)

MEND_PAUSE = 5.0
"""Seconds until the next attempt if the recovery itself failed."""


class FailureRecovery(MachineBase):
    """A VM that recovers from failures. It uses actions that a machine has anyway."""

    @abc.abstractmethod
    async def _bury(self, message: EventMessage) -> None:
        """Handle the end of a QEMU, or of a start without one."""

    @abc.abstractmethod
    async def _stop(self, run: QemuRun, stop: Stop) -> None:
        """Take the first step of a stop."""

    @abc.abstractmethod
    async def _climb(self, message: EventMessage) -> None:
        """Take the next step of a stop."""

    @abc.abstractmethod
    async def _started(self, message: EventMessage) -> None:
        """Tell the clients that wait for a start that the guest runs."""

    @abc.abstractmethod
    async def _hangs(self, message: EventMessage) -> None:
        """Tell the clients that wait for a start that QEMU does not answer."""

    @abc.abstractmethod
    async def _rest(self, message: EventMessage) -> None:
        """Begin the pause before a restart."""

    def _give_up_on(self, message: EventMessage | Job, error: Exception) -> None:
        """Log a failure, tell the client of the message, and post `amiss` for the recovery."""
        failure = error if isinstance(error, VmessError) else refusals.unexpected(self.vm)
        if failure is error:
            log.warning("%s: %s", self.vm, failure.message)
        else:
            log.error("%s: unexpected failure", self.vm, exc_info=error)
        if isinstance(message, Job):
            message.settle(error=failure)
            message = EventMessage(Event.look)  # which failed: errors of the work go to the caller alone
        if message.request is not None:
            tell([message.request], failure)
        amiss = EventMessage(Event.amiss, cause=message.cause or message, error=failure)
        if message.event is Event.amiss:  # the recovery failed
            asyncio.get_running_loop().call_later(MEND_PAUSE, self._inbox.put, amiss)
        else:
            self._inbox.put(amiss)

    async def _mend(self, message: EventMessage) -> None:
        """Make sure that the VM can leave its state, and that no client waits for ever."""
        cause, failure = message.cause or message, message.error or refusals.unexpected(self.vm)
        if cause.launched is not None and self._run is None:
            self._adopt(cause.launched)
            cause.launched = None
            if self.state in (*OFF, State.held):
                self._pass(Event.found)
        if self._run is not None:
            await self._mend_run(self._run, cause)
        elif self.state is State.held:
            await self._hold(EventMessage(Event.held, error=cause.error or self._search.doubt or failure))
        elif self._attempt is None and self.state not in OFF:
            await self._bury(EventMessage(Event.refused, error=failure))
        elif self._attempt is None:
            await self._mend_off(cause, failure)
            self._tell_all(failure)
        elif cause.event is Event.late:
            self._tell_all(failure)

    async def _mend_run(self, run: QemuRun, cause: EventMessage) -> None:
        if self.state is State.stopping:
            await self._climb_on(run, cause)
        if run.launched.process.has_ended():
            self._ended(run)
        run.session.begin()
        if self._starters and self.state in (State.running, State.paused):
            await self._started(cause)
        elif self._starters and self.state is not State.starting:
            await self._hangs(cause)

    async def _mend_off(self, cause: EventMessage, failure: VmessError) -> None:
        if cause.event in (Event.found, Event.look):  # it is not known whether there is a QEMU
            self.settled.set()
            self._search.go_on(failure, self._timing.look, self._look_again)
        if self.state is State.waiting and self._pending is None:
            await self._rest(cause)
        elif self.state is State.stopped:
            self._wait_no_longer()

    async def _climb_on(self, run: QemuRun, cause: EventMessage) -> None:
        """Continue a stop that has no next step, or begin one that was not begun."""
        if run.stop is None:
            gentle = cause.event is Event.stop
            grace = float(settings.GRACE_DEFAULT) if gentle else 0.0
            uid = cause.asker().uid
            await self._stop(run, Stop(ladder(grace) if gentle else by_force(), grace, uid, gentle=gentle))
        elif not run.stop.goes_on():
            await self._climb(cause)
