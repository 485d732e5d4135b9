"""A guest that comes from another host while it runs: a QEMU waits for it, and lets it run in the end."""

import asyncio
import contextlib
import dataclasses
import functools
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from vmessd.core.errors import Failed, NotRunning, printable
from vmessd.core.moves import Answer, Decision, MoveRecord, Offer, Said, Word
from vmessd.devices import cpu_features
from vmessd.devices.live_move import Incoming
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import moves as notes
from vmessd.storage import safefile
from vmessd.storage.memory import Origin
from vmessd.supervisor.move_channel import MoveChannel
from vmessd.vm import same_machine
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

_T = TypeVar("_T")


class LiveArrival:
    """One guest on its way here."""

    def __init__(self, machine: Machine, offer: Offer, host: Host, channel: MoveChannel) -> None:
        self._machine = machine
        self._offer = offer
        self._host = host
        self._channel = channel
        self._incoming: Incoming

    async def begin(self, uid: int | None) -> dict[str, socket.socket]:
        """Start a QEMU that waits; return connections to it by names that only the source is told.

        Raises:
            VmessError: the guest would not fit into it, or it does not start.
        """
        machine, offer = self._machine, self._offer
        origin = Origin(offer.vm, offer.directory, offer.qemu, offer.argv or [], None)
        fits = functools.partial(same_machine.check_arrival, machine.directory, self._host, origin)
        await machine.files.do(fits)
        machine.directory.admits = offer.key
        try:
            async for _ in machine.start(uid):
                pass
        finally:
            machine.directory.admits = ""
        await self._check_cpu()
        self._incoming = Incoming(machine.live(), offer.disks or [])
        try:
            with safefile.opened(machine.directory.path) as place:
                found = await self._incoming.begin(place)
        except CommandRefused as refusal:
            raise refusal.failed(machine.vm, "to wait for a guest") from None
        return {f"{offer.key}:{name}": one for name, one in found.items()}

    async def _check_cpu(self) -> None:
        """Raise Failed if the guest would miss features of its CPU, which it may use at any moment."""
        found = await cpu_features.of(self._machine.live())
        if missing := cpu_features.lacking(self._offer.cpu or {}, found):
            raise Failed(
                f"the CPU of the guest of {self._machine.vm} has features that this host lacks ({missing})",
                hint="give it a model that both hosts have, with `cpu`, or move it while it is off: --offline",
            )

    async def loaded(self) -> None:
        """Do what the source says until all of the guest is here; raises Failed, ConnectionBroke, TimedOut."""
        try:
            await self._told(Word.close)
            await self._incoming.stop_serving()
            await self._channel.say(Answer(Said.closed))
            await self._told(Word.load)
            await self._incoming.loaded()
            await self._channel.say(Answer(Said.loaded))
        except CommandRefused as refusal:
            raise refusal.failed(self._machine.vm, "a guest") from None

    async def _told(self, word: Word) -> None:
        decision = await self.heard()
        if (decision.word, decision.key) != (word, self._offer.key):
            raise Failed(
                f"{self._machine.vm} was not taken over: this move was given up", hint="repeat the move"
            )

    async def heard(self) -> Decision:
        """Return the next word of the source, which may take long; raises Failed if QEMU ends meanwhile."""
        return await self._while_it_lives(self._channel.hear(Decision, None))

    async def _while_it_lives(self, work: Coroutine[Any, Any, _T]) -> _T:
        loop = asyncio.get_running_loop()
        task, end = loop.create_task(work), loop.create_task(self._incoming.run.over.wait())
        try:
            await asyncio.wait({task, end}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                last = self._machine.last_exit
                why = printable("; ".join(last.log[-2:]) or last.text) if last is not None else "it has ended"
                raise Failed(
                    f"QEMU of {self._machine.vm} ended while its guest arrived: {why}", hint="repeat the move"
                )
            return await task
        finally:
            for one in (task, end):
                one.cancel()
            await asyncio.wait({task, end})

    @staticmethod
    async def resumed(machine: Machine, arrived: MoveRecord) -> MoveRecord:
        """Let a guest run that has arrived, and note it; raises CommandRefused, TimedOut, NotRunning."""
        if not arrived.paused:
            return arrived
        with contextlib.suppress(NotRunning):  # it has ended before a daemon let it run
            await Incoming(machine.live(), ()).go_on()
        runs = dataclasses.replace(arrived, paused=False)
        await machine.files.do(functools.partial(notes.note, machine.directory, runs))
        return runs
