"""VMs that leave for other hosts: offered, sent, handed over, and removed here when the other side has them.

Everything up to the handing over is undone if it fails, and by the next daemon. From then on until the other
side answers, the VM is not touched: see :mod:`vmessd.core.moves`.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from vmessd.core import moves, names
from vmessd.core.errors import Failed, Locked, NoSuchVM, NotRunning, VmessError, quoted
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.moves import MoveProgress, MoveStep
from vmessd.core.moves import Answer, Ask, Decision, MoveRecord, Offer, Said, Stage, Word
from vmessd.devices import live_memory, live_move
from vmessd.devices.snapshots import Snapshots
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import moves as notes
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor.leaving import Leaving, Order
from vmessd.supervisor.live_departure import LiveDeparture
from vmessd.supervisor.move_channel import ConnectionBroke, MoveChannel
from vmessd.supervisor.taking_back import TakingBack
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

COMMIT_TIME = 120.0
"""Seconds in which the other side has to say that it has the VM; it has written everything by then."""


class Departures:
    """The VMs that leave one VM root."""

    def __init__(
        self,
        host: Host,
        machine: Callable[[str], Coroutine[Any, Any, Machine]],
        snapshots: Callable[[str], Coroutine[Any, Any, Snapshots]],
        taking_back: TakingBack,
        remove: Callable[[Machine], Coroutine[Any, Any, str | None]],
    ) -> None:
        """`remove` removes a VM that is on another host."""
        self._host = host
        self._machine = machine
        self._snapshots = snapshots
        self._taking_back = taking_back
        self._remove = remove
        self._leaving: dict[str, Leaving] = {}
        self._last_steps: set[asyncio.Task[MoveProgress]] = set()

    async def move(self, name: str, order: Order, passed: socket.socket) -> AsyncGenerator[MoveProgress, None]:
        """Move a VM through a connection to the other host; takes over the socket.

        For a VM that was handed over without an answer, ask the other host instead.

        Raises:
            Locked: it is being moved; or nobody knows whether it has arrived.
            AlreadyRunning: it is in another state than `order` says, or its images are in use.
            BadFile, Failed, TimedOut: it cannot go. It is here, unless Locked is raised.
            VmessError: the other host has refused it.
        """
        channel = MoveChannel(passed, order.host)
        try:
            snapshots = await self._snapshots(name)
            machine = snapshots.machine
            yield MoveProgress(False, machine.vm, order.host, MoveStep.asking)
            _check_free(machine.directory)
            if machine.directory.move is not None:
                yield await self._asked_again(machine, order, channel)
                return
            ran = order.offline and machine.state not in OFF
            try:
                async with contextlib.aclosing(self._leave(snapshots, order, channel)) as steps:
                    async for step in steps:
                        yield step
            except BaseException:
                if ran:
                    await self._taking_back.see_to("", self._start_again(machine.vm, order.uid))
                raise
        except ConnectionBroke as error:
            raise Failed(
                error.message, hint="the VM is here as before; repeat the move when the connection works"
            ) from None
        finally:
            channel.close()

    async def _leave(
        self, snapshots: Snapshots, order: Order, channel: MoveChannel
    ) -> AsyncGenerator[MoveProgress, None]:
        machine = snapshots.machine
        if order.offline and machine.state not in OFF:
            with contextlib.suppress(NotRunning):  # it has ended meanwhile
                async for _ in machine.stop(order.uid, force=False):
                    yield MoveProgress(False, machine.vm, order.host, MoveStep.powering_down)
            order = order._replace(start=True)
        if order.live:
            await snapshots.looked_after()  # which takes a moment after each start of vmessd, and in a listing
        if machine.directory.move is not None:  # somebody else moves it meanwhile
            raise moves.leaving(machine.vm, machine.directory.move.host)
        with contextlib.ExitStack() as images:
            if order.live:  # what becomes a snapshot meanwhile would not go along, and be deleted here
                images.enter_context(snapshots.alone())
            leaving = (LiveDeparture if order.live else Leaving)(machine, order, channel, self._host)
            self._leaving[machine.vm] = leaving
            try:
                await leaving.begin()
                async with contextlib.aclosing(leaving.send()) as steps:
                    async for step in steps:
                        yield step
                if not leaving.is_live:  # whose guest is paused
                    yield leaving.step(MoveStep.handing_over)
            except BaseException:
                await self._taking_back.see_to(machine.vm, leaving.undo())
                raise
            finally:
                del self._leaving[machine.vm]
            last = self._hand_over(leaving, images.pop_all())
        yield await self._finished(machine.vm, last)

    async def _start_again(self, vm: str, uid: int | None) -> None:
        """Start a VM that was powered down to leave, unless it has left, or nobody knows."""
        if handed_over := [task for task in self._last_steps if task.get_name() == vm]:
            await asyncio.wait(handed_over)
        try:
            machine = await self._machine(vm)
            with contextlib.suppress(NotRunning):
                async for _ in machine.stop(uid, force=False):  # it may not be off yet
                    pass
            if machine.directory.move is None:
                async for _ in machine.start(uid):
                    pass
        except NoSuchVM:
            return
        except VmessError as error:
            log.warning("%s: it did not leave, and is not started again: %s", vm, error.message)

    def join(self, name: str, connection: str, passed: socket.socket) -> None:
        """Take a connection for a guest that is being moved; raises Failed if there is none."""
        leaving = self._leaving.get(names.parse(name))
        if not isinstance(leaving, LiveDeparture):
            passed.close()
            raise Failed(f"no guest of VM {names.parse(name)} is being moved", hint="repeat the move")
        leaving.join(connection, passed)

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
        if not here and move is not None and move.twin:
            raise Failed(
                f"VM {machine.vm} has a directory on both hosts, and the one here is not deleted by that",
                hint=f"vmess {machine.vm} move --take lets {machine.vm} start here again",
            )
        if not here and stage == Stage.handed_over:
            return await self._remove(machine)
        raise Failed(
            f"there is nothing to decide: VM {machine.vm} is here, and on no other host as far as vmessd knows",
            hint=f"vmess {machine.vm} status",
        )

    async def settle(self, machine: Machine) -> None:
        """End what an earlier daemon has left of a move in a QEMU that was adopted."""
        if machine.state is State.starting:
            return
        move = machine.directory.move
        try:
            run = machine.live()
            run.stays = machine.directory.stood_still
            await live_move.end_left(run)
            if move is not None and move.stage == Stage.handed_over:  # the other side was not asked: QEMU lives
                await live_memory.end_left(run)
                await machine.files.do(functools.partial(notes.forget, machine.directory))
        except (VmessError, CommandRefused) as error:
            log.warning("%s: what is left of its move: %s", machine.vm, error)

    async def _finished(self, vm: str, work: Coroutine[Any, Any, MoveProgress]) -> MoveProgress:
        """Return the result of a last step, which is carried out even if the client leaves."""
        task = asyncio.get_running_loop().create_task(work, name=vm)
        self._last_steps.add(task)
        task.add_done_callback(self._last_steps.discard)
        return await asyncio.shield(task)

    async def finished(self) -> None:
        """Return when no VM is being handed over, or let be as it was."""
        if work := self._last_steps | self._taking_back.tasks:
            await asyncio.wait(work)

    async def _hand_over(self, leaving: Leaving, images: contextlib.ExitStack) -> MoveProgress:
        """Have the other side take over, and remove the VM here when it has done so.

        The images of a guest are free again in the end.
        """
        channel = leaving.channel.kept()
        with images, contextlib.closing(channel):
            await self._taken_over(leaving, channel)
            last = leaving.last()
            leaving.export.close()
            return await self._tidied(leaving.machine, leaving.record, channel, last)

    async def _taken_over(self, leaving: Leaving, channel: MoveChannel) -> None:
        """Ask the other side to take over; raises what it answers, or Locked if it does not answer."""
        asked = False
        try:
            await leaving.note_handing_over()
            await leaving.end_here(leaving.order.uid)
            asked = True
            await channel.say(Decision(Word.commit, leaving.record.key))
            said = await channel.hear(Answer, COMMIT_TIME)
        except (ConnectionBroke, VmessError):
            if asked:
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
        """Remove a VM that the other side has, and tell it so; return the last step with remarks.

        Its twin stays: nothing of the move is left in it, and its owner may start it.
        """
        said: list[str] = []
        try:
            if record.twin:
                await machine.change(functools.partial(notes.forget, machine.directory), stopped=True)
            elif note := await self._remove(machine):
                said.append(note)
            await channel.say(Decision(Word.forget, record.key))
            if (answer := await channel.hear(Answer)).notes:
                said += [f"{record.host}: {note}" for note in answer.notes]
        except ConnectionBroke as error:
            said.append(f"{record.host} may still note that it came from here: {error.message}")
        except VmessError as error:
            what = "the note of the move" if record.twin else "what was here"
            said.append(f"it is on {record.host}, but {what} is not deleted: {error.message}")
        return dataclasses.replace(last, done=True, notes=[*(last.notes or ()), *said] or None)

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
        last = MoveProgress(True, vm, order.host, MoveStep.done, kept=record.twin)
        if answer.said == Said.done:
            return await self._finished(vm, self._tidied(machine, record, channel.kept(), last))
        if answer.said != Said.absent:
            raise moves.doubtful(vm, record.host)
        await machine.change(functools.partial(notes.forget, machine.directory))
        return dataclasses.replace(last, stayed=True, kept=False)


def _check_free(directory: VMDirectory) -> None:
    """Raise Locked for a VM in another move; one that was handed over is for :meth:`_asked_again`."""
    move = directory.move
    if move is not None and move.stage == Stage.arrived:
        raise moves.untold(directory.vm, move.host, "moved")
    if move is not None and move.stage != Stage.handed_over:
        moves.check_settled(directory.vm, move)
