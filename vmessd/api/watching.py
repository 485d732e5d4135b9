"""Live events of VMs, and live serial output."""

import asyncio
import logging
from collections.abc import AsyncIterator

from asyncvarlink import LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core import serial_ports
from vmessd.core.errors import counted
from vmessd.core.models.consoles import SerialPiece
from vmessd.core.models.events import Kind, VMEvent
from vmessd.supervisor import serial_feed

log = logging.getLogger(__name__)

DROP_TIME = 5.0
"""Seconds in which a dropped watcher can still read its queued events."""


class Watching(Caller):
    """Methods that report what happens, until the caller leaves or a run ends."""

    @varlinkmethod(return_parameter="event", delay_generator=False)
    async def Watch(self, *, vms: list[str]) -> AsyncIterator[VMEvent]:
        """Report events of these VMs, or of all if none is named, until the caller leaves. Requires `more`.

        The first event is `watching`, followed by one `now` for each VM with its present state. From then on no
        event is missed. A caller that does not read is dropped when 1024 events wait for it.
        """
        if vms:
            machines = await self._supervisor.machines(vms)
        else:
            machines = await self._supervisor.everyone()
        events = self._supervisor.events
        wanted = frozenset(machine.vm for machine in machines) if vms else frozenset()
        with events.watch(wanted, self._drop) as watcher:  # no await before the states are read
            moment, states = events.moment(), [(machine.vm, machine.state) for machine in machines]
            yield moment.event(Kind.watching, "", counted(len(machines), "VM"), vms=len(machines))
            for vm, state in states:
                yield moment.picture(Kind.now, vm, state.value, state)
            async for event in watcher:
                yield event

    @varlinkmethod(return_parameter="piece", delay_generator=False)
    async def Serial(self, *, vm: str, since: str | None, port: int | None) -> AsyncIterator[SerialPiece]:
        """Report the serial output of a VM until its run ends; if it is off, of its next run. Requires `more`.

        `since` is null for new output only, `start` for the present or last run from its beginning, `recent`
        for the last lines of the present one, or the mark of an earlier piece. If the VM will be restarted by
        its policy, the next run follows. `port` is the number of the serial port; null means the first one.
        """
        async for piece in serial_feed.follow(self._supervisor, vm, since, serial_ports.checked(port)):
            if piece.ended is not None:
                raise LastResult(piece)
            yield piece

    def _drop(self) -> None:
        log.warning("uid %d, pid %d: watcher dropped, it does not read", self._peer.uid, self._peer.pid)
        asyncio.get_running_loop().call_later(DROP_TIME, self._hang_up)
