"""VMs that come from other hosts: what the source offers is checked, and becomes a VM when it says so.

Until then, all of it is in a directory that the next daemon removes. The VM changes hosts in the moment in
which this directory gets its name: see :mod:`vmessd.core.moves`.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple

from vmessd.core import moves, names
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import (
    Failed,
    NoSuchVM,
    VmessError,
    failing,
    printable,
)
from vmessd.core.models.moves import Arrival
from vmessd.core.moves import Answer, Ask, Decision, MoveRecord, Offer, Said, Stage, Word
from vmessd.core.records import Moment
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import blocking
from vmessd.storage import moves as notes
from vmessd.storage.blocking import WRITING_PATIENCE, Lane
from vmessd.storage.importing import Import
from vmessd.supervisor import offers, twins
from vmessd.supervisor.live_arrival import LiveArrival
from vmessd.supervisor.move_channel import PIECE, ConnectionBroke, MoveChannel
from vmessd.supervisor.new_vms import NewVMs
from vmessd.supervisor.taking_back import TakingBack
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

SOURCE = "the other host"
REPEAT = "the VM is where it was; repeat the move there"
GIVING_UP_TIME = 10.0
"""Seconds that a new move waits for the end of one that was given up."""


@dataclass
class _Coming:
    """A VM on its way here."""

    vm: str
    void: bool = False
    """The source was told that it does not arrive."""
    committing: bool = False
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Receipt(NamedTuple):
    """A step of an arrival; the first one has the client's end of the socket."""

    arrival: Arrival
    channel: socket.socket | None = None


class Arrivals:
    """The VMs that come to one VM root."""

    def __init__(  # noqa: PLR0913, PLR0917 -- what becomes of a VM is for others
        self,
        root: Path,
        host: Host,
        machine: Callable[[str], Coroutine[Any, Any, Machine]],
        new_vms: NewVMs,
        taking_back: TakingBack,
        remove: Callable[[Machine], Coroutine[Any, Any, str | None]],
    ) -> None:
        """`remove` removes a VM."""
        self._root = root
        self._remove = remove
        self._connections: dict[str, socket.socket] = {}
        """To QEMUs that wait for a guest, by the name that the source was told."""
        self._host = host
        self._machine = machine
        self._new_vms = new_vms
        self._taking_back = taking_back
        self._last_steps: set[asyncio.Task[str]] = set()
        self._coming: dict[str, _Coming] = {}
        """By the keys of their moves."""

    async def receive(self, uid: int | None) -> AsyncGenerator[Receipt, None]:
        """Do what a source asks for through the socket in the first step.

        Raises:
            VmessError: it was refused, which the source was told; or the connection broke.
        """
        with failing("no socket can be created"):
            ours, theirs = socket.socketpair()
        channel = MoveChannel(ours, SOURCE)
        try:
            yield Receipt(Arrival(False, None), theirs)
            vm = await self._served(channel, uid)
            yield Receipt(Arrival(True, vm))
        except ConnectionBroke as error:
            raise Failed(error.message, hint=REPEAT) from None
        finally:
            channel.close()

    async def _served(self, channel: MoveChannel, uid: int | None) -> str | None:
        """Do what the source asks for, and tell it what is refused; return the VM that has arrived."""
        try:
            offer = await channel.hear(Offer, None)  # before that, it may power the guest down: minutes
            offers.check(offer)
            if offer.ask == Ask.whether:
                return await self._tell_whether(channel, offer)
            return await self._take(channel, offer, uid)
        except ConnectionBroke:
            raise
        except VmessError as error:
            with contextlib.suppress(ConnectionBroke):
                await channel.say(moves.refusal(error))
            raise

    async def _who(self) -> str:
        """Return what this VM root calls itself; raises Failed."""
        with failing(f"{printable(str(self._root))} cannot be read"):
            found = await blocking.call(self._root.stat)
        return f"{self._host.network.access.root} {found.st_ino}"

    # -- A question --

    async def _tell_whether(self, channel: MoveChannel, offer: Offer) -> str | None:
        """Tell the source whether a VM has arrived; if it has not, it will not."""
        coming = self._coming.get(offer.key)
        if coming is not None:
            coming.void = True
            if coming.committing:
                await coming.over.wait()
        record = await self._record(names.parse(offer.vm))
        if record is not None and record.key == offer.key and record.stage == Stage.arriving:
            await self.drop(await self._machine(offer.vm))
            record = None
        if record is None or record.key != offer.key:
            await channel.say(Answer(Said.absent, who=await self._who()))
            return None
        await channel.say(Answer(Said.done, who=await self._who()))
        await self._forget(channel, offer)
        return offer.vm

    async def _record(self, vm: str) -> MoveRecord | None:
        """Return how a VM has come here, if it is not forgotten; raises Failed if this is not known."""
        try:
            machine = await self._machine(vm)
        except NoSuchVM:
            return None
        record = await machine.change(functools.partial(notes.read, machine.directory))
        return record if record is not None and record.stage in (Stage.arrived, Stage.arriving) else None

    async def _forget(self, channel: MoveChannel, offer: Offer) -> None:
        """Wait until nothing of the VM is left at the source, and no longer note where it came from."""
        decision = await channel.hear(Decision)
        machine = await self._machine(offer.vm)
        if decision.word == Word.forget and decision.key == offer.key:
            await machine.change(functools.partial(notes.forget, machine.directory))

    # -- A VM --

    async def _take(self, channel: MoveChannel, offer: Offer, uid: int | None) -> str:
        vm = names.parse(offer.vm)
        twin = await self._twin(offer)
        if twin is None:
            await self._new_vms.check_name(vm)
        await self._given_up(vm)
        if offer.key in self._coming or any(one.vm == vm for one in self._coming.values()):
            raise Failed(f"a VM {vm} is already on its way here", hint="wait until it is there")
        coming = self._coming[offer.key] = _Coming(vm)
        if twin is not None:
            return await self._take_into(twin, channel, offer, coming, uid)
        lane = Lane(f"VM root {printable(str(self._root))}")
        incoming = Import(self._root, vm, words_for_qemu=self._host.exargs)
        stage = Stage.arriving if offer.live else Stage.arrived
        record = MoveRecord(stage, offer.key, offer.host, Moment.now())
        last: asyncio.Task[str] | None = None
        try:
            await lane.do(functools.partial(offers.check_host, offer, self._root, self._host))
            await channel.say(Answer(Said.ready, who=await self._who()))
            await _fed(incoming, channel, offer, lane)
            await lane.do(
                functools.partial(offers.complete, incoming, offer, record, self._root, self._host),
                WRITING_PATIENCE,
            )
            if offer.live:
                try:
                    await lane.finish(incoming.finish, WRITING_PATIENCE)
                    last = await self._take_guest(channel, offer, record, coming, uid)
                except BaseException:
                    await self._taking_back.see_to(vm, self._drop_what_came(lane, offer))
                    raise
            else:
                await channel.say(Answer(Said.whole))
                _check_word(coming, offer, await channel.hear(Decision))
                coming.committing = True
                last = self._seen_to(self._finish(channel.kept(), offer, record, (lane, incoming), uid))
        finally:
            if last is None or offer.live:
                await self._cleaned_up(lane, incoming, offer.key)
        return await asyncio.shield(last)

    async def _twin(self, offer: Offer) -> Machine | None:
        """Return the VM here in which a guest may continue that its owner moves; None if there is none yet."""
        if not (offer.owner and offer.live):
            return None
        with contextlib.suppress(NoSuchVM):
            return await self._machine(offer.vm)
        return None

    async def _take_into(
        self, machine: Machine, channel: MoveChannel, offer: Offer, coming: _Coming, uid: int | None
    ) -> str:
        """Take a guest into the directory that its owner has given it here; it is off again if that fails."""
        record = MoveRecord(Stage.arriving, offer.key, offer.host, Moment.now(), twin=True)
        last: asyncio.Task[str] | None = None
        try:
            twins.check_free(machine.directory)
            machine.directory.move = record  # at once: nothing else is to begin
            try:
                admit = functools.partial(twins.admit, machine.directory, offer, record, self._host)
                await machine.change(admit, stopped=True)
                await channel.say(Answer(Said.ready, who=await self._who(), twin=True))
                last = await self._take_guest(channel, offer, record, coming, uid)
            except BaseException:
                await self._taking_back.see_to(machine.vm, self._let_be(machine, record))
                raise
        finally:
            self._coming.pop(offer.key).over.set()
        return await asyncio.shield(last)

    async def _let_be(self, machine: Machine, record: MoveRecord) -> None:
        """Let a VM be off whose guest does not arrive; one that did not admit it is as it was."""
        try:
            noted = await self._record(
                machine.vm
            )  # after the work that notes it, if the client left during that
            if noted is not None and (noted.key, noted.stage) == (record.key, Stage.arriving):
                await self.drop(machine)
            elif machine.directory.move is record:
                machine.directory.move = None
        except VmessError as error:
            log.warning("%s: what has arrived of it is still there: %s", machine.vm, error.message)

    async def _cleaned_up(self, lane: Lane, incoming: Import, key: str) -> None:
        """Remove what is left of an archive; its VM is not on its way any more."""
        try:
            await self._new_vms.clean_up(lane, incoming.close)
        finally:  # the client may leave during that
            self._coming.pop(key).over.set()

    async def _finish(
        self,
        channel: MoveChannel,
        offer: Offer,
        record: MoveRecord,
        come: tuple[Lane, Import],
        uid: int | None,
    ) -> str:
        """Give a VM its name that has come whole, and do all that follows; raises ConnectionBroke."""
        lane, incoming = come
        try:
            try:
                await lane.finish(incoming.finish, WRITING_PATIENCE)
            finally:
                await self._cleaned_up(lane, incoming, offer.key)
            return await self._settle(channel, offer, record, uid)
        except VmessError as error:
            await channel.say(moves.refusal(error))
            raise ConnectionBroke(error.message) from None
        finally:
            channel.close()

    def _seen_to(self, work: Coroutine[Any, Any, str]) -> "asyncio.Task[str]":
        """Have work done that continues if the client leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._last_steps.add(task)
        task.add_done_callback(self._last_steps.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _given_up(self, vm: str) -> None:
        """Wait a little while a VM of this name is being removed whose source knows that it does not arrive."""
        over = [one.over.wait() for one in self._coming.values() if one.vm == vm and one.void]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GIVING_UP_TIME):
                await asyncio.gather(*over)

    async def _take_guest(
        self, channel: MoveChannel, offer: Offer, record: MoveRecord, coming: _Coming, uid: int | None
    ) -> "asyncio.Task[str]":
        """Have a QEMU wait for a guest until it is here, and take over when the source says so.

        Whatever fails before that, its caller deletes the VM: its guest runs at the source. What follows is
        done in the task that is returned, also if the client leaves: the guest runs nowhere else.
        """
        machine = await self._machine(offer.vm)
        machine.directory.move = record
        arriving = LiveArrival(machine, offer, self._host, channel)
        connections = await arriving.begin(uid)
        self._connections |= connections
        try:
            await channel.say(Answer(Said.whole, channels=list(connections)))
            await arriving.loaded()
            _check_word(coming, offer, await arriving.heard())
        finally:
            for name in connections:
                if (left := self._connections.pop(name, None)) is not None:
                    left.close()
        coming.committing = True
        arrived = dataclasses.replace(record, stage=Stage.arrived, paused=offer.runs)
        return self._seen_to(self._take_over(machine, channel.kept(), offer, arrived, uid))

    async def _take_over(
        self, machine: Machine, channel: MoveChannel, offer: Offer, arrived: MoveRecord, uid: int | None
    ) -> str:
        """Note that a guest has arrived, and do all that follows; raises ConnectionBroke."""
        try:
            await machine.files.finish(functools.partial(notes.note, machine.directory, arrived))
            return await self._settle(channel, offer, arrived, uid)
        except VmessError as error:  # it may be on disk all the same: the source has to ask
            raise ConnectionBroke(f"{machine.vm}: {error.message}") from None
        finally:
            channel.close()

    async def finished(self) -> None:
        """Return when no guest is being taken over, and nothing is taken back."""
        if work := self._last_steps | self._taking_back.tasks:
            await asyncio.wait(work)

    def connection(self, name: str) -> socket.socket:
        """Return a connection to a QEMU that waits for a guest, once; raises Failed."""
        found = self._connections.pop(name, None)
        if found is None:
            raise Failed(
                "there is no such connection: nothing waits for it, or somebody has it", hint="repeat the move"
            )
        return found

    async def _drop_what_came(self, lane: Lane, offer: Offer) -> None:
        """Delete a VM whose guest does not arrive, if it has its name already."""
        try:
            await lane.do(
                lambda: None, WRITING_PATIENCE
            )  # after the work that gives it, if the client left during that
            record = await self._record(names.parse(offer.vm))
            if record is not None and (record.key, record.stage) == (offer.key, Stage.arriving):
                await self.drop(await self._machine(offer.vm))
        except VmessError as error:
            log.warning("%s: what has arrived of it is not deleted: %s", offer.vm, error.message)

    async def drop(self, machine: Machine) -> None:
        """Delete a VM whose guest was on its way here, and runs at the source. A twin stays, and is off."""
        machine.directory.admits = ""
        with contextlib.suppress(VmessError):
            async for _ in machine.stop(None, force=True):
                pass
        try:
            if machine.directory.move is not None and machine.directory.move.twin:
                await machine.change(functools.partial(notes.forget, machine.directory), stopped=True)
            else:
                await self._remove(machine)
        except VmessError as error:
            log.warning("%s: what has arrived of it is not deleted: %s", machine.vm, error.message)

    async def settle(self, machine: Machine) -> None:
        """Delete what an earlier daemon has left of an arrival; let a guest run that has arrived."""
        move = machine.directory.move
        if move is None:
            return
        if move.stage == Stage.arriving:
            log.warning("%s: its arrival from %s was cut short; it is there", machine.vm, move.host)
            await self.drop(machine)
        elif move.stage == Stage.arrived and move.paused:
            with contextlib.suppress(VmessError, CommandRefused):
                await LiveArrival.resumed(machine, move)

    async def _settle(self, channel: MoveChannel, offer: Offer, record: MoveRecord, uid: int | None) -> str:
        """Tell the source that the VM is here, and start it if it ran there."""
        machine = await self._machine(offer.vm)
        machine.directory.move = record
        said: list[str] = []
        try:
            await LiveArrival.resumed(machine, record)
        except (CommandRefused, VmessError) as error:
            said.append(f"it is paused there: {error}")
        try:
            await channel.say(Answer(Said.done))
            await self._forget(channel, offer)
        except ConnectionBroke as error:
            log.warning("%s has arrived, but %s may not know it: %s", machine.vm, offer.host, error.message)
        except VmessError as error:  # it is here all the same
            said.append(f"the note that it came from {offer.host} is still there: {error.message}")
            log.warning(
                "%s has arrived, and is noted as coming from %s: %s", machine.vm, offer.host, error.message
            )
        if offer.start:
            try:
                async for _ in machine.start(uid):
                    pass
            except VmessError as error:
                said.append(f"it did not start there: {error.message}")
        with contextlib.suppress(ConnectionBroke):
            await channel.say(Answer(Said.forgotten, notes=said))
        return machine.vm


def _check_word(coming: _Coming, offer: Offer, decision: Decision) -> None:
    """Raise Failed unless the source says that this side takes over."""
    if coming.void or (decision.word, decision.key) != (Word.commit, offer.key):
        raise Failed(f"{coming.vm} was not taken over: this move was given up", hint=REPEAT)


async def _fed(incoming: Import, channel: MoveChannel, offer: Offer, lane: Lane) -> None:
    """Take the archive, whose size is known, from the source."""
    left = offer.size
    while left:
        data = await channel.take(min(left, PIECE))
        left -= len(data)
        await lane.do(functools.partial(incoming.feed, data), WRITING_PATIENCE)
