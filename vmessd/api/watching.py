"""What happens to VMs, and what they print, as it does."""

import asyncio
import logging
from collections.abc import AsyncIterator

from asyncvarlink import LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.models.consoles import SerialPiece
from vmessd.core.models.events import Kind, VMEvent
from vmessd.supervisor import serial_feed

log = logging.getLogger(__name__)

DROP_TIME = 5.0
"""Seconds in which a watcher that was dropped may still read what is there for it, and that it was."""


class Watching(Caller):
    """Methods that tell what happens, until the caller leaves or a run ends."""

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def Watch(self, *, vms: list[str]) -> AsyncIterator[VMEvent]:
        """Tell what happens to these VMs, to all where none is named, until the caller leaves. Wants `more`.

        First comes an event `watching`, then one `now` for each VM with its state at that moment; from
        then on nothing is missed. A caller that does not read is dropped when 1024 events wait for it.
        """
        if vms:
            machines = await self._supervisor.machines(vms)
        else:
            machines = await self._supervisor.everyone()
        events = self._supervisor.events
        wanted = frozenset(machine.vm for machine in machines) if vms else frozenset()
        with events.watch(wanted, self._drop) as watcher:  # in one go with looking at the states
            moment, states = events.moment(), [(machine.vm, machine.state) for machine in machines]
            yield moment.event(Kind.watching, "", f"{len(machines)} VMs", vms=len(machines))
            for vm, state in states:
                yield moment.picture(Kind.now, vm, state.value, state)
            async for event in watcher:
                yield event

    @varlinkmethod(return_parameter="piece", delay_generator=False)
    async def Serial(self, *, vm: str, since: str | None) -> AsyncIterator[SerialPiece]:
        """Tell what a VM prints on its serial port until its run ends; of one that is off, the next run's.

        From now on, or with `start` from the beginning of the present or last run, or from the mark of an
        earlier piece. Wants `more`. A VM that is to be started again by itself is followed into the next run.
        """
        async for piece in serial_feed.follow(self._supervisor, vm, since):
            if piece.ended is not None:
                raise LastResult(piece)
            yield piece

    def _drop(self) -> None:
        log.warning("uid %d, pid %d: a watcher that does not read is dropped", self._peer.uid, self._peer.pid)
        asyncio.get_running_loop().call_later(DROP_TIME, self._hang_up)
