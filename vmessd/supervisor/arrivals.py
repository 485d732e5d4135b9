"""VMs that come from other hosts: what the source offers is checked, and becomes a VM when it says so.

Until then, all of it is in a directory that the next daemon removes. The VM changes hosts in the moment in
which this directory gets its name: see :mod:`vmessd.core.moves`.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vmessd.core import moves, names
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import (
    Failed,
    InvalidValue,
    NoSuchVM,
    NotPermitted,
    VmessError,
    failing,
    printable,
    quoted,
)
from vmessd.core.models.moves import Arrival
from vmessd.core.moves import Answer, Ask, Decision, MoveRecord, Offer, Said, Stage, Word
from vmessd.core.records import Moment
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import Wire, bridge_name, file_text
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import contents, images, safefile
from vmessd.storage import moves as notes
from vmessd.storage.blocking import Lane
from vmessd.storage.importing import Import
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor import leftovers
from vmessd.supervisor.live_arrival import LiveArrival
from vmessd.supervisor.move_channel import PIECE, ConnectionBroke, MoveChannel
from vmessd.vm import same_machine
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

SOURCE = "the other host"
SAME = "install the same version on both hosts"
REPEAT = "the VM is where it was; repeat the move there"
OFFER_TIME = 30.0
"""Seconds in which a source has to say what it wants."""
GIVING_UP_TIME = 10.0
"""Seconds that a new move waits for the end of one that was given up."""
PATIENCE = 300.0
"""Seconds that a piece may take on the disk."""


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
        check_new: Callable[[str], Coroutine[Any, Any, None]],
        left: Callable[[str], None],
        remove: Callable[[Machine], Coroutine[Any, Any, str | None]],
    ) -> None:
        """`check_new` raises for a name that no VM can get; `left` hears of directories to remove later.

        `remove` removes a VM.
        """
        self._root = root
        self._remove = remove
        self._connections: dict[str, socket.socket] = {}
        """To QEMUs that wait for a guest, by the name that the source was told."""
        self._host = host
        self._machine = machine
        self._check_new = check_new
        self._left = left
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
            offer = await channel.hear(Offer, OFFER_TIME)
            _check(offer)
            if offer.ask == Ask.whether:
                return await self._tell_whether(channel, offer)
            return await self._take(channel, offer, uid)
        except ConnectionBroke:
            raise
        except VmessError as error:
            with contextlib.suppress(ConnectionBroke):
                await channel.say(moves.refusal(error))
            raise

    def _who(self) -> str:
        """Return what this VM root calls itself."""
        return f"{self._host.network.access.root} {self._root.stat().st_ino}"

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
            await channel.say(Answer(Said.absent, who=self._who()))
            return None
        await channel.say(Answer(Said.done, who=self._who()))
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
        await self._check_new(vm)
        await self._given_up(vm)
        if offer.key in self._coming or any(one.vm == vm for one in self._coming.values()):
            raise Failed(f"a VM {vm} is already on its way here", hint="wait until it is there")
        coming = self._coming[offer.key] = _Coming(vm)
        lane = Lane(f"VM root {printable(str(self._root))}")
        incoming = Import(self._root, vm, words_for_qemu=self._host.exargs)
        stage = Stage.arriving if offer.live else Stage.arrived
        record = MoveRecord(stage, offer.key, offer.host, Moment.now())
        last: asyncio.Task[str] | None = None
        try:
            await lane.do(functools.partial(self._check_host, offer))
            await channel.say(Answer(Said.ready, who=self._who()))
            await _fed(incoming, channel, offer, lane)
            await lane.do(functools.partial(self._complete, incoming, offer, record), PATIENCE)
            if offer.live:
                try:
                    await lane.finish(incoming.finish, PATIENCE)
                    last = await self._take_guest(channel, offer, record, coming, uid)
                except BaseException:
                    await asyncio.shield(asyncio.ensure_future(self._drop_what_came(lane, offer)))
                    raise
            else:
                await channel.say(Answer(Said.whole))
                _check_word(coming, offer, await channel.hear(Decision))
                coming.committing = True
                await lane.finish(incoming.finish, PATIENCE)
        finally:
            try:
                await leftovers.clean_up(lane, incoming.close, self._left)
            finally:  # the client may leave during that
                del self._coming[offer.key]
                coming.over.set()
        if last is not None:
            return await asyncio.shield(last)
        return await self._settle(channel, offer, record, uid)

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
        task = asyncio.get_running_loop().create_task(
            self._take_over(machine, channel.kept(), offer, arrived, uid)
        )
        self._last_steps.add(task)
        task.add_done_callback(self._last_steps.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # its client may have left
        return task

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
        """Return when no guest is being taken over."""
        if self._last_steps:
            await asyncio.wait(self._last_steps)

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
                lambda: None, PATIENCE
            )  # after the work that gives it, if the client left during that
            record = await self._record(names.parse(offer.vm))
            if record is not None and (record.key, record.stage) == (offer.key, Stage.arriving):
                await self.drop(await self._machine(offer.vm))
        except VmessError as error:
            log.warning("%s: what came of it is not deleted: %s", offer.vm, error.message)

    async def drop(self, machine: Machine) -> None:
        """Delete a VM whose guest was on its way here, and runs at the source."""
        machine.directory.admits = ""
        with contextlib.suppress(VmessError):
            async for _ in machine.stop(None, force=True):
                pass
        try:
            await self._remove(machine)
        except VmessError as error:
            log.warning("%s: what came of it is not deleted: %s", machine.vm, error.message)

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
            said.append(f"it stands still there: {error}")
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

    # -- What is needed here; blocks --

    def _check_host(self, offer: Offer) -> None:
        """Refuse a VM before anything is copied, if this host lacks something that it needs."""
        directory = VMDirectory(self._root, names.parse(offer.vm))
        directory.must_be_new("rename or delete it, or the one that is to come")
        for path in offer.needs or ():
            if not os.path.isfile(path):
                raise Failed(
                    f"{quoted(path, 300)}, which {directory.vm} needs, is not on this host",
                    hint=f"copy it here: scp -- {path} ...",
                )
        for file, target in (offer.links or {}).items():
            _check_link(directory.vm, file, target, self._host.allow_shares)
        if offer.live:
            same_machine.check_version(self._host, offer.qemu)
        self._host.network.check_bridges([bridge_name(name) for name in (offer.bridges or {}).values()])

    def _complete(self, incoming: Import, offer: Offer, record: MoveRecord) -> None:
        """Put what an archive does not contain into the directory of a VM that has come whole."""
        incoming.end()
        vm, fd = names.parse(offer.vm), incoming.directory.fd
        coming = VMDirectory(self._root, vm, incoming.directory.path)
        for file, target in (offer.links or {}).items():
            if names.drive_of(vm, file) == names.CDROM:
                images.set_cdrom(coming, target, self._host.account)
            else:
                safefile.link(fd, file, target)
        for file, own_name in (offer.snapshots or {}).items():
            _name_snapshot(fd, vm, file, own_name)
        wires: tuple[Wire, ...] = coming.read_setting(BY_FILE["NICS"]) or ()
        bridges = offer.bridges or {}
        renamed = [
            dataclasses.replace(wire, bridge=bridges.get(wire.bridge or "", wire.bridge)) for wire in wires
        ]
        if list(wires) != renamed:
            coming.note_wires(file_text(renamed))
        notes.write(fd, record)


def _check_word(coming: _Coming, offer: Offer, decision: Decision) -> None:
    """Raise Failed unless the source says that this side takes over."""
    if coming.void or (decision.word, decision.key) != (Word.commit, offer.key):
        raise Failed(f"{coming.vm} was not taken over: this move was given up", hint=REPEAT)


def _check(offer: Offer) -> None:
    """Raise for an offer that does not make sense."""
    names.parse(offer.vm)
    if offer.vmess_move != moves.VERSION:
        raise Failed(
            f"the other host moves VMs by version {offer.vmess_move}, and this one by version {moves.VERSION}",
            hint=SAME,
        )
    if offer.ask not in {*Ask} or not 0 < len(offer.key) <= 64 or not offer.key.isalnum() or offer.size < 0:
        raise Failed("the other host offers what does not make sense", hint=SAME)
    if offer.ask == Ask.take and not moves.is_host(offer.host):
        raise Failed(
            f"the other host calls itself {quoted(offer.host)}", hint="there: hostnamectl hostname NAME"
        )


def _check_link(vm: str, file: str, target: str, allowed: Sequence[str] | None) -> None:
    """Refuse a drive whose target is not on this host, or, for a disk, not in a directory that is allowed."""
    slot = names.drive_of(vm, file)
    if slot is None or not os.path.isabs(target) or "\0" in target:
        raise InvalidValue(f"{quoted(file)} is not a drive of {vm} that can be a link to {quoted(target, 300)}")
    if not os.path.exists(target):
        raise Failed(
            f"{file} is a link to {quoted(target, 300)}, which is not on this host",
            hint=f"copy it here, or, where {vm} is now: vmess {vm} cdrom none"
            if slot == names.CDROM
            else "without --shared, its content is copied",
        )
    if slot != names.CDROM and allowed is not None:
        real = os.path.realpath(target)
        if not any(
            os.path.commonpath([real, os.path.realpath(one)]) == os.path.realpath(one) for one in allowed
        ):
            raise NotPermitted(
                f"{file} is a link to {quoted(target, 300)}, which is in no directory that VMs may share",
                hint="an administrator can allow it there: allow-shares in /etc/vmess/vmessd.toml",
            )


def _name_snapshot(directory: int, vm: str, file: str, own_name: str) -> None:
    """Give an image below a disk the name that it has as that of a snapshot; raises Failed."""
    base = contents.stored_base(file)
    if base is None or names.snapshot_of(own_name) is None or safefile.status(directory, own_name) is not None:
        raise Failed(f"{quoted(file)} cannot be the image {quoted(own_name)} of a snapshot", hint=SAME)
    with failing(f"{own_name} cannot be made"):
        os.rename(file, own_name, src_dir_fd=directory, dst_dir_fd=directory)
    safefile.link(directory, base.link(vm), own_name)


async def _fed(incoming: Import, channel: MoveChannel, offer: Offer, lane: Lane) -> None:
    """Take the archive, whose size is known, from the source."""
    left = offer.size
    while left:
        data = await channel.take(min(left, PIECE))
        left -= len(data)
        await lane.do(functools.partial(incoming.feed, data), PATIENCE)
