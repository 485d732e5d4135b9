"""The network interfaces of one VM: its NICS file, the links of the host, and the cards of a running QEMU.

Changes happen one at a time, and completely or not at all. A TAP whose card the guest has not released yet
carries a mark. It is deleted when the guest releases the card or QEMU ends, even under a later daemon.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from vmessd.core import impairments
from vmessd.core.errors import AlreadyRunning, Failed, InvalidValue, VmessError
from vmessd.core.impairments import Direction
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.wires import Step
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import (
    End,
    Forward,
    Wire,
    check_interface,
    file_text,
    parse_wire,
    parse_wires,
    with_forward,
    without_forward,
)
from vmessd.devices.cables import Cables
from vmessd.devices.captures import Captures
from vmessd.devices.hotplug import Cards
from vmessd.devices.impairments import ImpairedCables
from vmessd.devices.macs import Macs
from vmessd.devices.nic_files import NICS
from vmessd.devices.rewiring import Rewiring, being_unplugged, with_changed
from vmessd.network.nics import Nic
from vmessd.storage import cable_notes
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

_T = TypeVar("_T")

QUEUES = BY_FILE["QUEUES"]

_WITHOUT_GUEST = {
    **dict.fromkeys(OFF, "off"),
    State.starting: "starting",
    State.paused: "paused",
}
"""The states in which no guest is at its end of a cable, in words."""


class NetworkInterfaces:
    """The network interfaces of one machine."""

    def __init__(
        self,
        machine: Machine,
        host: Host,
        vms_among: Callable[[Collection[str]], Awaitable[Collection[str]]],
        other_ends: Callable[[str], Awaitable[Mapping[int, str | None]]],
    ) -> None:
        """`vms_among` returns which of these names are those of VMs.

        `other_ends` returns for each cable of a VM why its other end is dead, None if it is live.
        """
        self.vm = machine.vm
        self._machine = machine
        self._host = host
        self._network = host.network
        self._vms_among = vms_among
        self._other_ends = other_ends
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.cards = Cards(machine, self._released)
        self.cables = Cables(machine, self.cards, self._lock)
        self.impairments = ImpairedCables(machine, self._network, self.cables, self._lock)
        self.captures = Captures(machine, self.cards)
        self.macs = Macs(machine, host, self.cards, self._look, self._lock)
        self.rewiring = Rewiring(machine, host, self.cards, self.cables, self.macs, self._look, self._released)
        machine.prepare.append(self._prepare)
        machine.went_on = self._went_on
        machine.over = lambda: host.duplicates.watch(self.vm, {})

    async def finished(self) -> None:
        """Return when no change and no bounce is in progress."""
        async with self._lock:
            self.impairments.finish()
        await self.cables.finished()

    async def _prepare(self) -> None:
        """Set up cables, captures and MACs of a QEMU about to run, or that an earlier daemon started."""
        fresh = self._machine.state is State.starting  # no change of interfaces is possible now
        try:
            if not self.cards.macs() and (fresh or not await self._machine.files.aside(self._has_nics_file)):
                return  # it has no cards
            if fresh:
                await self.cables.enforce(self.cards.macs(), await self._other_ends(self.vm))
            else:
                async with self._lock:
                    await self.cards.learn()
                    await self.cables.enforce(self.cards.macs(), await self._other_ends(self.vm))
        except VmessError as error:
            log.warning("%s: cables may differ from CABLES: %s", self.vm, error.message)
        await self._prepare_impairments(fresh=fresh)
        await self.captures.prepare(fresh=fresh)
        self._in_background(self.macs.watch())  # this may wait for the lock on links; the guest need not

    def _went_on(self) -> None:
        self._in_background(self._show_cables())

    async def _show_cables(self) -> None:
        """Have a guest that was loaded see its cables as they are here, and now."""
        try:
            async with self._lock:
                await self.cables.show(self.cards.macs(), await self._other_ends(self.vm))
        except VmessError as error:
            log.warning("%s: its guest may not see its cables as they are: %s", self.vm, error.message)

    async def _prepare_impairments(self, *, fresh: bool) -> None:
        """Continue the impairments of an earlier daemon, or forget what has ended with an earlier QEMU."""
        try:
            if not await self.impairments.noted():
                return
            await self.impairments.go_on(self.cards.macs(), fresh=fresh)
            if not fresh:  # a start has done so
                await self._machine.files.aside(functools.partial(self._network.impair_all, self.vm))
        except VmessError as error:
            log.warning("%s: cables may differ from IMPAIRMENTS: %s", self.vm, error.message)

    def _has_nics_file(self) -> bool:
        """Tell whether NICS has any text; blocks. Raises BadFile."""
        return bool(self._machine.home.setting_text(NICS.file))

    # -- Queries --

    async def nics(self, files: VMDirectory | None = None) -> list[Nic]:
        """Return the interfaces; raises BadFile if NICS is invalid, Failed.

        `files` is the VM's directory, if it has been read already.
        """
        return await self._machine.files.aside(functools.partial(self._look, files))

    def _look(self, files: VMDirectory | None = None) -> list[Nic]:
        directory = files or self._machine.home
        return self._network.nics(self.vm, directory.read_setting(NICS))

    @property
    def _is_off(self) -> bool:
        return self._machine.state in OFF

    # -- Changes --

    async def arrange(
        self, count: int, words: Sequence[str], known: Mapping[int, End] | None = None
    ) -> list[Step]:
        """Give the VM exactly `count` interfaces, plugged into what the words say.

        The other ends of cables are noted already. `known` are the cables that the VM has, for which the caller
        sees to the other ends.

        Raises:
            InvalidValue: a word or the number is invalid.
            VmessError: the change failed and was undone.
        """
        wires = parse_wires(count, words)
        await self._check_bridges(wires)
        return await self._shielded(self._arrange(wires, known or {}))

    async def _arrange(self, wires: Sequence[Wire], known: Mapping[int, End]) -> list[Step]:
        async with self._lock:
            if self._is_off:
                try:
                    return await self._machine.change(
                        functools.partial(self.rewiring.arrange_stopped, wires, known), stopped=True
                    )
                except AlreadyRunning:
                    if self._is_off:
                        raise
            self.rewiring.check_known(known, await self.cabled())
            return await self.rewiring.arrange_running(wires)

    async def connect(self, index: int, word: str, known: Mapping[int, End] | None = None) -> list[Step]:
        """Plug one interface into another bridge or into none; parameters and errors as for :meth:`arrange`."""
        wire = parse_wire(word)
        await self._check_bridges([wire])
        connect = functools.partial(self.rewiring.connect, index, wire, known or {})
        return await self._shielded(self.rewired(functools.partial(self._machine.change, connect)))

    async def rewired(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run a change of connections under the lock and bounce the links that moved; raises what it raises."""
        async with self._lock:
            before = await self.rewiring.plugged()
            done = await work()
            await self.rewiring.announce_moves(before)
        return done

    async def _shielded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of the work, which continues if the caller is cancelled."""
        return await asyncio.shield(self._in_background(work))

    def _in_background(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _check_bridges(self, wires: Sequence[Wire]) -> None:
        bridges = {wire.bridge for wire in wires if wire.bridge is not None}
        if taken := await self._vms_among(bridges):
            first = next(wire.bridge for wire in wires if wire.bridge in taken)
            raise InvalidValue(f"bridge name '{first}' is the name of a VM")

    # -- Cables to other VMs --

    async def cabled(self) -> dict[int, End]:
        """Return the other ends of cables by interface, as NICS says; none if it cannot be read.

        Raises TimedOut.
        """
        return await self._machine.files.aside(lambda: cable_notes.noted_if_readable(self._machine.home))

    async def why_dead(self, index: int, end: End) -> str | None:
        """Return why an end of a cable is dead, which should lead to `end`; None if it is live.

        A QEMU that does not answer, or is being stopped, has a guest that may run. Raises BadFile, TimedOut.
        """
        if (await self.cabled()).get(index) != end:
            return f"{End(self.vm, index)} is not plugged into {end}"
        if (state := self._machine.state) in _WITHOUT_GUEST:
            return f"{self.vm} is {_WITHOUT_GUEST[state]}"
        out = (await self.cables.loose()).pulled | self.cables.sagging
        return f"the cable is pulled at {End(self.vm, index)}" if index in out else None

    def has_cards(self) -> bool:
        """Tell whether the VM has network cards, or had some when it ran."""
        return bool(self.cards.macs()) or self._is_off

    async def accept(self, index: int, end: End) -> bool:
        """Note a cable from another VM at an interface that has none; return whether it was not noted before.

        The cable is plugged in by a change of the other VM, to which `end` belongs.

        Raises:
            InvalidValue: there is no such interface, or it is not free.
            VmessError: the file cannot be written, or the TAP cannot be created.
        """
        async with self._lock:
            nics = {nic.index: nic for nic in await self.nics() if not nic.leaving}
            check_interface(self.vm, index, nics)
            nic, wire = nics[index], Wire(cable=end)
            if nic.noted == wire:
                return False
            if not await self._is_free(nic):
                raise InvalidValue(
                    f"interface {index} of {self.vm} is plugged into {nic.wire} already",
                    hint=f"vmess {self.vm} connect {index} -",
                )
            if words := None if self._is_off else self.rewiring.lost(nic):
                raise Failed(words, hint=f"vmess {self.vm} stop")
            await self._machine.change(lambda: self.rewiring.note(nics, index, wire))
            return True

    async def _is_free(self, nic: Nic) -> bool:
        """Tell whether nothing is plugged in; a cable whose other end does not agree is nothing."""
        if nic.wire.cable is None:
            return nic.wire == Wire()
        agrees = functools.partial(cable_notes.agrees, self._machine.home, nic.index, nic.wire.cable)
        return not await self._machine.files.aside(agrees)

    async def release(self, index: int, end: End, new: End | None = None) -> None:
        """Note that a cable leads elsewhere now, None for nowhere, if the interface still has it to `end`.

        Raises VmessError.
        """
        async with self._lock:
            nics = {nic.index: nic for nic in await self.nics() if not nic.leaving}
            if index in nics and nics[index].noted == Wire(cable=end):
                await self._machine.change(lambda: self.rewiring.note(nics, index, Wire(cable=new)))

    async def follow(self) -> None:
        """Have the guest see whether the other ends of its cables are live; failures are logged."""
        if self._machine.state not in (State.running, State.paused):
            return
        try:
            async with self._lock:  # so that what is found first is also applied first
                ends = await self._other_ends(self.vm)
                await self.cables.follow(ends, self.cards.macs())
        except VmessError as error:
            log.warning("%s: its links may not follow its cables: %s", self.vm, error.message)

    async def bounce(self, index: int) -> None:
        """Have the guest look for its neighbours again, because its cable leads elsewhere."""
        async with self._lock:
            self._host.duplicates.replugged(self.vm, index)
            await self.cables.bounce([index])

    # -- Cards, their links and forwarded ports --

    async def _released(self, index: int) -> None:
        """Remove the backend of a card that is gone: QEMU's netdev first, then the TAP."""
        with contextlib.suppress(VmessError):
            nics = {nic.index: nic for nic in await self.nics()}
            if not self.cards.is_leaving(index) and index in nics and not nics[index].leaving:
                return  # the guest ejected it; it returns at the next start
        await self.cards.remove_netdev(index)
        with contextlib.suppress(VmessError):
            await self._machine.change(functools.partial(self._network.sweep, self.vm))
        self.cards.forget(index)
        self.captures.unplugged(index)

    async def cable(self, index: int, *, on: bool) -> str | None:
        """Plug or pull the cable of a card, now and at every later start; return a warning or None.

        Raises:
            InvalidValue: there is no such interface.
            BadFile: CABLES is invalid.
        """
        return await self._shielded(self._cable(index, on=on))

    async def _cable(self, index: int, *, on: bool) -> str | None:
        async with self._lock:
            if self._is_off:
                check_interface(self.vm, index, [nic.index for nic in await self.nics() if not nic.leaving])
                try:
                    await self.cables.note(index, on=on)
                    return await self.cables.unseen(index)
                except AlreadyRunning:
                    if self._is_off:
                        raise
            check_interface(self.vm, index, await self.cards.present())
            if self.cards.is_leaving(index):
                raise being_unplugged(self.vm, index)
            await self.impairments.end_flap(index)
            await self.cables.put(index, on=on)
            return await self.cables.unseen(index)

    async def impair(self, index: int, direction: Direction | None, words: Sequence[str]) -> str | None:
        """Impair the cable of an interface, or let it flap; return a warning or None.

        `direction` and `words` are as for ImpairedCables.set; `flap 5s/1s` is for its begin_flap.

        Raises:
            InvalidValue: there is no such interface, or the words are invalid.
            VmessError: as these raise it.
        """
        return await self._shielded(self._impair(index, direction, words))

    async def _impair(self, index: int, direction: Direction | None, words: Sequence[str]) -> str | None:
        async with self._lock:
            nics = {nic.index: nic for nic in await self.nics() if not nic.leaving}
            check_interface(self.vm, index, nics)
            if list(words[:1]) != [impairments.FLAP]:
                await self.impairments.set(nics[index], direction, words)
                return await self._pulled(index)
            if direction is not None or len(words) != 2:
                raise InvalidValue("flap takes two times such as 5s/1s, and no direction: both ends see it")
            await self.impairments.begin_flap(index, words[1])
            return await self.cables.unseen(index)

    async def _pulled(self, index: int) -> str | None:
        """Return a remark if a cable is pulled, which no impairment changes."""
        if index not in (await self.cables.loose()).pulled:
            return None
        return f"this cable is pulled; to plug it in: vmess {self.vm} cable {index} on"

    async def forward(self, index: int, forward: Forward, *, on: bool) -> bool:
        """Add or remove the forwarding of a host port to the guest, recorded in NICS; tell whether it is new.

        Raises:
            InvalidValue: the interface is not a user-mode network, or the port is invalid.
            Failed: QEMU could not listen on the port.
        """
        return await self._shielded(self._forward(index, forward, on=on))

    async def _forward(self, index: int, forward: Forward, *, on: bool) -> bool:
        async with self._lock:
            nics = {nic.index: nic for nic in await self.nics() if not nic.leaving}
            check_interface(self.vm, index, nics)
            wire = nics[index].wire
            if not wire.user:
                raise InvalidValue(
                    f"interface {index} of {self.vm} is not a user network; it is plugged into {wire}",
                    hint="a guest on a bridge is reached at its own address",
                )
            after = with_forward(wire, forward) if on else without_forward(wire, forward)
            if after == wire:
                return False
            if not self._is_off:
                await self.cards.forward(index, forward, on=on)
            try:
                await self._note(file_text(with_changed(nics, index, after)))
            except BaseException:
                if not self._is_off:
                    [before] = set(wire.forwards) ^ set(after.forwards)
                    with contextlib.suppress(VmessError):
                        await self.cards.forward(index, before, on=not on)
                raise
            return True

    async def _note(self, text: str) -> None:
        await self._machine.change(functools.partial(self._machine.home.note_wires, text))
