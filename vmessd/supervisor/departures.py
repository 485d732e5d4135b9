"""VMs that leave for other hosts: offered, sent, handed over, and removed here when the other side has them.

Everything up to the handing over is undone if it fails, and by the next daemon. From then on until the other
side answers, the VM is not touched: see :mod:`vmessd.core.moves`.
"""

import asyncio
import contextlib
import dataclasses
import functools
import math
import os
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from vmessd.core import moves
from vmessd.core.errors import Failed, InvalidValue, Locked, TimedOut, VmessError, printable, quoted
from vmessd.core.models.moves import MoveProgress, MoveStep
from vmessd.core.moves import Answer, Ask, Decision, MoveRecord, Offer, Said, Stage, Word
from vmessd.core.records import Moment
from vmessd.core.refusals import SHOWN_MAX
from vmessd.core.settings import BY_FILE, SHARES, size_shown
from vmessd.core.wires import file_text
from vmessd.storage import backing
from vmessd.storage import moves as notes
from vmessd.storage.blocking import Lane
from vmessd.storage.exporting import Export
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor.move_channel import STALL_TIME, ConnectionBroke, MoveChannel
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

PATIENCE = 300.0
"""Seconds that a piece may take on the disk."""
TELL_EVERY = 0.2
"""Seconds between two reports of progress."""
COMMIT_TIME = 120.0
"""Seconds in which the other side has to say that it has the VM; it has written everything by then."""
REASON_TIME = 2.0
"""Seconds in which the other side says why it has ended the connection."""


class Order(NamedTuple):
    """What a person wants."""

    host: str
    shared: bool
    """Disks that are links are on the other host as well."""
    start: bool
    """Start it over there."""
    bridges: Mapping[str, str]
    """Other names of bridges over there, by those here."""
    bandwidth: int | None
    """Bytes that are sent in a second at most."""
    timeout: float | None
    """Seconds until it is given up, unless it is being handed over by then."""


class Departures:
    """The VMs that leave one VM root."""

    def __init__(
        self,
        host: Host,
        machine: Callable[[str], Coroutine[Any, Any, Machine]],
        check_remark: Callable[[Machine], Awaitable[object]],
        remove: Callable[[Machine], Coroutine[Any, Any, str | None]],
    ) -> None:
        """`check_remark` raises for a VM that is locked; `remove` removes one that is on another host."""
        self._host = host
        self._machine = machine
        self._check_remark = check_remark
        self._remove = remove
        self._last_steps: set[asyncio.Task[MoveProgress]] = set()

    async def move(self, name: str, order: Order, passed: socket.socket) -> AsyncGenerator[MoveProgress, None]:
        """Move a VM that is off through a connection to the other host; takes over the socket.

        For a VM that was handed over without an answer, ask the other host instead.

        Raises:
            Locked: it is locked, or being moved; or nobody knows whether it has arrived.
            AlreadyRunning: it is not off.
            BadFile, Failed, TimedOut: it cannot go. It is here, unless Locked is raised.
            VmessError: the other host has refused it.
        """
        channel = MoveChannel(passed, order.host)
        try:
            machine = await self._machine(name)
            await self._check_remark(machine)
            yield MoveProgress(False, machine.vm, order.host, MoveStep.asking)
            _check_free(machine.directory)
            if machine.directory.move is not None:
                yield await self._asked_again(machine, order, channel)
                return
            leaving = _Leaving(machine, order, channel, self._host)
            try:
                await leaving.begin()
                async with contextlib.aclosing(leaving.send()) as steps:
                    async for step in steps:
                        yield step
                yield leaving.step(MoveStep.handing_over)
            except BaseException:
                await leaving.undo()
                raise
            yield await self._finished(machine.vm, self._hand_over(leaving))
        except ConnectionBroke as error:
            raise Failed(
                error.message, hint="the VM is here as before; repeat the move when the connection works"
            ) from None
        finally:
            channel.close()

    async def decide(self, name: str, *, here: bool) -> str | None:
        """End a doubt as a person says: a VM is `here`, or the other host has it, so that it is removed here.

        Raises:
            Locked: the other host is asked at this moment.
            Failed: there is no doubt.
        """
        machine = await self._machine(name)
        if any(task.get_name() == machine.vm for task in self._last_steps):
            raise Locked(
                f"VM {machine.vm} is being handed over, and the other host has still time to answer",
                hint=f"wait {COMMIT_TIME:g} s at most, and look: vmess {machine.vm} status",
            )
        directory, move = machine.directory, machine.directory.move
        stage = move.stage if move is not None else None
        if here and stage in (Stage.handed_over, Stage.arrived, Stage.unknown):
            await machine.change(functools.partial(notes.forget, directory))
            return None
        if not here and stage == Stage.handed_over:
            return await self._remove(machine)
        raise Failed(
            f"there is nothing to decide: VM {machine.vm} is here, and on no other host as far as vmessd knows",
            hint=f"vmess {machine.vm} status",
        )

    async def _finished(self, vm: str, work: Coroutine[Any, Any, MoveProgress]) -> MoveProgress:
        """Return the result of a last step, which is carried out even if the client leaves."""
        task = asyncio.get_running_loop().create_task(work, name=vm)
        self._last_steps.add(task)
        task.add_done_callback(self._last_steps.discard)
        return await asyncio.shield(task)

    async def finished(self) -> None:
        """Return when no VM is being handed over."""
        if self._last_steps:
            await asyncio.wait(self._last_steps)

    async def _hand_over(self, leaving: "_Leaving") -> MoveProgress:
        """Have the other side take over, and remove the VM here when it has done so."""
        channel = leaving.channel.kept()
        try:
            await self._taken_over(leaving, channel)
            leaving.export.close()
            return await self._tidied(leaving.machine, leaving.record, channel, leaving.step(MoveStep.done))
        finally:
            channel.close()

    async def _taken_over(self, leaving: "_Leaving", channel: MoveChannel) -> None:
        """Ask the other side to take over; raises what it answers, or Locked if it does not answer."""
        try:
            await leaving.note_handing_over()
            await channel.say(Decision(Word.commit, leaving.record.key))
            said = await channel.hear(Answer, COMMIT_TIME)
        except (ConnectionBroke, VmessError):
            if leaving.record.stage == Stage.handed_over:
                leaving.export.close()
                raise moves.doubtful(leaving.vm, leaving.order.host) from None
            await leaving.undo()
            raise
        if said.said == Said.refused:
            await leaving.undo()
            raise moves.error_of(said, leaving.order.host)
        if said.said != Said.done:
            leaving.export.close()
            raise moves.doubtful(leaving.vm, leaving.order.host)

    async def _tidied(
        self, machine: Machine, record: MoveRecord, channel: MoveChannel, last: MoveProgress
    ) -> MoveProgress:
        """Remove a VM that the other side has, and tell it so; return the last step with remarks."""
        said: list[str] = []
        try:
            if note := await self._remove(machine):
                said.append(note)
            await channel.say(Decision(Word.forget, record.key))
            if (answer := await channel.hear(Answer)).notes:
                said += [f"{record.host}: {note}" for note in answer.notes]
        except ConnectionBroke as error:
            said.append(f"{record.host} may still note that it came from here: {error.message}")
        except VmessError as error:
            said.append(f"it is on {record.host}, but what was here is not deleted: {error.message}")
        return dataclasses.replace(last, done=True, notes=said or None)

    async def _asked_again(self, machine: Machine, order: Order, channel: MoveChannel) -> MoveProgress:
        """Ask the other host whether a VM has arrived that was handed over; end the doubt accordingly."""
        record, vm = machine.directory.move, machine.vm
        assert record is not None  # noqa: S101 -- checked by the caller
        if order.host != record.host:
            raise moves.doubtful(vm, record.host)
        await channel.say(Offer(moves.VERSION, Ask.whether, record.key, vm))
        answer = await channel.answer()
        if answer.who != record.who:
            raise Failed(
                f"{order.host} is not the VM root that {vm} was handed over to: it is {quoted(answer.who)}, "
                f"not {quoted(record.who)}",
                hint=moves.way_out(vm, record.host),
            )
        last = MoveProgress(True, vm, order.host, MoveStep.done)
        if answer.said == Said.done:
            return await self._finished(vm, self._tidied(machine, record, channel.kept(), last))
        if answer.said != Said.absent:
            raise moves.doubtful(vm, record.host)
        await machine.change(functools.partial(notes.forget, machine.directory))
        return dataclasses.replace(last, stayed=True)


class _Leaving:
    """One VM on its way to another host."""

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
        await self.machine.change(make, stopped=True, patience=PATIENCE)
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
            )
        )
        answer = self._loop.create_task(self.channel.answer(None))
        try:
            ready = await self._answered(answer, STALL_TIME)
        finally:
            answer.cancel()
            await asyncio.wait({answer})
        self.record = dataclasses.replace(self.record, who=ready.who)

    def _opened(self, directory: VMDirectory) -> None:
        """Note the move and the interfaces of a VM, and open its files; blocks."""
        notes.read(directory)  # what cannot be read is not overwritten
        backing.check_stands_alone(directory, "moved")
        if directory.read_setting(BY_FILE[SHARES]):
            raise Failed(
                f"{self.vm} shares directories of this host, which do not go along",
                hint=f"vmess {self.vm} share; vmess {self.vm} share del TAG",
            )
        nics = self._host.network.nics(self.vm, directory.read_setting(BY_FILE["NICS"]))
        nics = [nic for nic in nics if not nic.leaving]
        if any(nic.noted != nic.wire for nic in nics):
            directory.note_wires(file_text([nic.wire for nic in nics]))
        export = Export(directory, self._host.account, "being moved", keeps_links=self.order.shared)
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
        """Send the archive until the other side has all of it on its disk; raises as Departures.move."""
        pieces, told, begun = self.export.pieces(), 0.0, self._loop.time()
        answer = self._loop.create_task(self.channel.answer(None))
        try:
            while (piece := await self._lane.do(lambda: next(pieces, None), PATIENCE)) is not None:
                await self._send_unless(answer, piece)
                self._sent += len(piece)
                if time.monotonic() - told >= TELL_EVERY:
                    told = time.monotonic()
                    yield self.step(MoveStep.copying)
                if self.order.bandwidth:
                    await self._wait_unless(answer, begun + self._sent / self.order.bandwidth)
            yield self.step(MoveStep.writing)
            await self._answered(answer, STALL_TIME)
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
                hint=f"{size_shown(self._sent)} were sent; give it more time",
            )

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
        await self._lane.finish(functools.partial(notes.note, self.machine.directory, handed), PATIENCE)
        self.record = handed

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
            # After the work that has noted it, which goes on if its caller was cancelled.
            await asyncio.shield(self.machine.files.see_to(forget))


def _check_free(directory: VMDirectory) -> None:
    """Raise Locked for a VM in another move; one that was handed over is for :meth:`_asked_again`."""
    move = directory.move
    if move is not None and move.stage == Stage.arrived:
        raise moves.untold(directory.vm, move.host, "moved")
    if move is not None and move.stage != Stage.handed_over:
        moves.check_settled(directory.vm, move)


def _bridges(directory: VMDirectory) -> set[str]:
    """Return the bridges of a VM as it has noted them; blocks."""
    wires = directory.read_setting(BY_FILE["NICS"]) or ()
    return {wire.bridge for wire in wires if wire.bridge is not None}
