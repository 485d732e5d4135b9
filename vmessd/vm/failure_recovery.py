"""What is done where the handling of a message fails in a way that nobody foresaw.

A VM is left in no state without a way out, and nobody is left waiting for what will not come.
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
"""Seconds until the next try where even the mending of a failure failed."""


class FailureRecovery(MachineBase):
    """A VM that is mended; what that takes, a machine does anyway."""

    @abc.abstractmethod
    async def _bury(self, message: EventMessage) -> None:
        """See to the end of a QEMU, or of a start that came to none."""

    @abc.abstractmethod
    async def _stop(self, run: QemuRun, stop: Stop) -> None:
        """Take the first step of a stop."""

    @abc.abstractmethod
    async def _climb(self, message: EventMessage) -> None:
        """Take the step of a stop that is due."""

    @abc.abstractmethod
    async def _started(self, message: EventMessage) -> None:
        """Tell whoever waits for a start that the guest runs."""

    @abc.abstractmethod
    async def _hangs(self, message: EventMessage) -> None:
        """Tell whoever waits for a start that QEMU does not answer."""

    @abc.abstractmethod
    async def _rest(self, message: EventMessage) -> None:
        """Let the pause before a restart begin."""

    def _give_up_on(self, message: EventMessage | Job, error: Exception) -> None:
        """Leave nobody waiting, and the VM in no state without a way out."""
        failure = error if isinstance(error, VmessError) else refusals.unexpected(self.vm)
        if failure is error:
            log.warning("%s: %s", self.vm, failure.message)
        else:
            log.error("%s: unexpected failure", self.vm, exc_info=error)
        if isinstance(message, Job):
            message.settle(error=failure)
            message = EventMessage(Event.look)  # all else that fails of a job is for whoever asked
        if message.request is not None:
            tell([message.request], failure)
        amiss = EventMessage(Event.amiss, cause=message.cause or message, error=failure)
        if message.event is Event.amiss:  # not even that could be mended
            asyncio.get_running_loop().call_later(MEND_PAUSE, self._inbox.put, amiss)
        else:
            self._inbox.put(amiss)

    async def _mend(self, message: EventMessage) -> None:
        """See to it that the state has a way out, and that nobody waits for what will not come."""
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
        if cause.event in (Event.found, Event.look):  # whether there is one, is not known
            self.settled.set()
            self._search.go_on(failure, self._timing.look, self._look_again)
        if self.state is State.waiting and self._pending is None:
            await self._rest(cause)
        elif self.state is State.stopped:
            self._wait_no_longer()

    async def _climb_on(self, run: QemuRun, cause: EventMessage) -> None:
        """Go on with a stop that has no next step, or was not even begun."""
        if run.stop is None:
            gentle = cause.event is Event.stop
            grace = float(settings.GRACE_DEFAULT) if gentle else 0.0
            uid = cause.asker().uid
            await self._stop(run, Stop(ladder(grace) if gentle else by_force(), grace, uid, gentle=gentle))
        elif not run.stop.goes_on():
            await self._climb(cause)
