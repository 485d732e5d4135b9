"""One VM on its way to another host: locked, offered and sent; and let be as it was if that fails."""

import asyncio
import contextlib
import dataclasses
import functools
import math
import os
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

from vmessd.core import moves
from vmessd.core.errors import Failed, InvalidValue, TimedOut, VmessError, printable, quoted
from vmessd.core.models.moves import MoveProgress, MoveStep
from vmessd.core.moves import Answer, Ask, MoveRecord, Offer, Stage
from vmessd.core.quantities import size_shown
from vmessd.core.records import Moment
from vmessd.core.refusals import SHOWN_MAX
from vmessd.core.settings import BY_FILE, SHARES
from vmessd.storage import backing
from vmessd.storage import moves as notes
from vmessd.storage.blocking import WRITING_PATIENCE, Lane
from vmessd.storage.exporting import Export
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor import noted_wires
from vmessd.supervisor.move_channel import STALL_TIME, ConnectionBroke, MoveChannel
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

TELL_EVERY = 0.2
"""Seconds between two reports of progress."""
REASON_TIME = 2.0
"""Seconds in which the other side says why it has ended the connection."""


class Order(NamedTuple):
    """What a person wants."""

    host: str
    shared: bool
    """Disks that are links are on the other host as well."""
    start: bool
    """Start it there."""
    bridges: Mapping[str, str]
    """Other names of bridges there, by those here."""
    bandwidth: int | None
    """Bytes that are sent in a second at most."""
    timeout: float | None
    """Seconds until it is given up, unless it is being handed over by then."""
    live: bool = False
    """Its guest continues there."""
    offline: bool = False
    """Power it down before, if it runs, and start it there."""
    uid: int | None = None
    """Who wants it."""
    acts_for: str = ""
    """The owner of VMs for whom that one acts; empty for people."""


class Leaving:
    """One VM that is off, on its way to another host."""

    is_live = False
    """Its guest runs meanwhile."""

    def __init__(self, machine: Machine, order: Order, channel: MoveChannel, host: Host) -> None:
        self.machine = machine
        self.vm = machine.vm
        self.order = order
        self.channel = channel
        self.record = MoveRecord(Stage.leaving, os.urandom(16).hex(), order.host, Moment.now())
        self.export: Export
        self._host = host
        self._lane = Lane(f"the file system of {printable(str(machine.directory))}")
        self._sent = 0
        self._has_begun = self._is_noted = False
        self._last_answer = Answer("")
        self._loop = asyncio.get_running_loop()
        self._deadline = math.inf if order.timeout is None else self._loop.time() + order.timeout
        machine.directory.move = self.record  # at once: nothing else is to begin

    def step(self, step: MoveStep) -> MoveProgress:
        """Return how far it is."""
        size = self.export.size if self._has_begun else 0
        return MoveProgress(False, self.vm, self.order.host, step, self._sent, size)

    async def begin(self) -> None:
        """Lock the VM, and offer it; raises as :meth:`Departures.move`."""
        directory = self.machine.directory
        make = functools.partial(self._opened, directory)
        await self.machine.change(make, stopped=not self.is_live, patience=WRITING_PATIENCE)
        bridges = await self._lane.do(functools.partial(_bridges, directory))
        if unknown := self.order.bridges.keys() - bridges:
            raise InvalidValue(
                f"{self.vm} has no interface in bridge {quoted(min(unknown))}", hint=f"vmess {self.vm} info"
            )
        await self.channel.say(
            Offer(
                *(moves.VERSION, Ask.take, self.record.key, self.vm),
                host=os.uname().nodename[: moves.HOST_MAX],
                size=self.export.size,
                links=self.export.links,
                snapshots=self.export.snapshots,
                bridges={bridge: self.order.bridges.get(bridge, bridge) for bridge in bridges},
                needs=self.export.elsewhere,
                start=self.order.start,
                **self._more(),
            )
        )
        answer = self._loop.create_task(self.channel.answer(None))
        try:
            ready = await self._answered(answer, STALL_TIME)
        finally:
            answer.cancel()
            await asyncio.wait({answer})
        self.record = dataclasses.replace(self.record, who=ready.who, twin=ready.twin and self._has_twin())

    def _has_twin(self) -> bool:
        """Tell whether the other side may have a directory of the VM, in which its guest continues."""
        return False

    def _more(self) -> dict[str, Any]:
        """Return what else an offer says."""
        return {}

    def _opened(self, directory: VMDirectory) -> None:
        """Note the move and the interfaces of a VM, and open its files; blocks."""
        notes.read(directory)  # what cannot be read is not overwritten
        backing.check_stands_alone(directory, "moved")
        if directory.read_setting(BY_FILE[SHARES]):
            raise Failed(
                f"{self.vm} shares directories of this host, which do not go along",
                hint=f"vmess {self.vm} share; vmess {self.vm} share del TAG",
            )
        noted_wires.update(self._host.network, directory)
        export = Export(
            directory, self._host.account, "being moved", keeps_links=self.order.shared, live=self.is_live
        )
        try:
            if export.foreign:
                raise Failed(
                    f"{directory} has files that do not go along, and would be lost: "
                    f"{', '.join(export.foreign[:SHOWN_MAX])}",
                    hint=f"move them away first; to see the snapshots: vmess {self.vm} snapshot list",
                )
            self._is_noted = True
            with directory.opened() as place:
                notes.write(place, self.record)
        except BaseException:
            export.close()
            raise
        self.export, self._has_begun = export, True  # here: the caller may be gone, and `undo` comes after this

    async def send(self) -> AsyncGenerator[MoveProgress, None]:
        """Send the VM until the other side has all of it; raises as Departures.move."""
        async with contextlib.aclosing(self._send_archive()) as steps:
            async for step in steps:
                yield step

    async def _send_archive(self) -> AsyncGenerator[MoveProgress, None]:
        """Send the archive until the other side has all of it on its disk; raises as Departures.move."""
        pieces, told, begun = self.export.pieces(), 0.0, self._loop.time()
        if self.record.twin:
            pieces = iter(())
        answer = self._loop.create_task(self.channel.answer(None))
        try:
            while (piece := await self._lane.do(lambda: next(pieces, None), WRITING_PATIENCE)) is not None:
                await self._send_unless(answer, piece)
                self._sent += len(piece)
                if time.monotonic() - told >= TELL_EVERY:
                    told = time.monotonic()
                    yield self.step(MoveStep.copying)
                if self.order.bandwidth:
                    await self._wait_unless(answer, begun + self._sent / self.order.bandwidth)
            yield self.step(MoveStep.writing)
            self._last_answer = await self._answered(answer, STALL_TIME)
        except ConnectionBroke:
            await self._answered(answer, REASON_TIME)  # the other side may say why it has ended it
            raise
        finally:
            answer.cancel()
            await asyncio.wait({answer})

    async def _answered(self, answer: "asyncio.Task[Answer]", patience: float) -> Answer:
        """Return an answer; raises the error that it is, ConnectionBroke, TimedOut."""
        try:
            async with asyncio.timeout(min(patience, max(0.0, self._deadline - self._loop.time()))):
                return await asyncio.shield(answer)
        except TimeoutError:
            self._check_time()
            raise ConnectionBroke(f"{self.order.host}: no answer within {patience:g} s") from None

    async def _wait_unless(self, answer: "asyncio.Task[Answer]", until: float) -> None:
        """Wait until a time or an answer; raises as :meth:`_answered` for an error, or if the time is over."""
        left = min(until, self._deadline) - self._loop.time()
        if left > 0:
            await asyncio.wait({answer}, timeout=left)
        self._check_time()
        if answer.done():
            await answer

    def _check_time(self) -> None:
        """Raise TimedOut if the move has taken as long as it may."""
        if self._loop.time() >= self._deadline:
            raise TimedOut(
                f"{self.vm} was not on {self.order.host} within {self.order.timeout:g} s; it is here as before",
                hint=self._too_slow(),
            )

    def _too_slow(self) -> str:
        """Return a hint for a move that has taken too long."""
        return f"{size_shown(self._sent)} were sent; give it more time"

    async def _send_unless(self, answer: "asyncio.Task[Answer]", piece: bytes) -> None:
        """Send a piece, unless the other side refuses the VM before it has everything."""
        sending = self._loop.create_task(self.channel.send(piece))
        left = None if self._deadline == math.inf else max(0.0, self._deadline - self._loop.time())
        try:
            await asyncio.wait({sending, answer}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            await self._wait_unless(answer, 0.0)
            await sending
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def note_handing_over(self) -> None:
        """Note on disk that the VM is not to be touched here any more; raises BadFile, Failed."""
        handed = dataclasses.replace(self.record, stage=Stage.handed_over)
        await self._lane.finish(functools.partial(notes.note, self.machine.directory, handed), WRITING_PATIENCE)
        self.record = handed

    def last(self) -> MoveProgress:
        """Return the last step, when the other side has the VM."""
        return dataclasses.replace(self.step(MoveStep.done), kept=self.record.twin)

    async def end_here(self, uid: int | None) -> None:
        """End the QEMU here, when all of its guest is on the other host."""

    async def undo(self) -> None:
        """Let the VM be as it was."""
        directory = self.machine.directory

        def forget() -> None:
            with contextlib.suppress(VmessError):  # the next daemon does it otherwise
                if self._is_noted:
                    notes.forget(directory)
            directory.move = None
            if self._has_begun:
                self.export.close()

        with contextlib.suppress(VmessError):
            # After the work that has noted it, which continues if its caller was cancelled.
            await asyncio.shield(self.machine.files.see_to(forget))


def _bridges(directory: VMDirectory) -> set[str]:
    """Return the bridges of a VM as it has noted them; blocks."""
    wires = directory.read_setting(BY_FILE["NICS"]) or ()
    return {wire.bridge for wire in wires if wire.bridge is not None}
