"""The interfaces of one VM, rewired in turn: its NICS file, the host's links, and QEMU's cards while it runs.

A change is made whole or taken back. A TAP whose card the guest has not let go of carries a mark, and
goes when it does, or with the VM's QEMU, whichever daemon sees that.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vmessd import launch, names, refusals
from vmessd.errors import AlreadyRunning, BadFile, Failed, InvalidValue, VmessError, quoted
from vmessd.host import Host
from vmessd.hotplug import Cards
from vmessd.lifecycle import OFF, State
from vmessd.machine import Machine
from vmessd.network import Change, Nic, Step
from vmessd.settings import BY_FILE
from vmessd.wiring import FORWARDS_MAX, PORT_MAX, Wire, check_interface, file_text, parse_wire, parse_wires

_T = TypeVar("_T")

NICS = BY_FILE["NICS"]


class Wires:
    """The interfaces of one machine."""

    def __init__(self, machine: Machine, host: Host, is_vm: Callable[[str], Awaitable[bool]]) -> None:
        self.vm = machine.vm
        self._machine = machine
        self._host = host
        self._network = host.network
        self._is_vm = is_vm
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.cards = Cards(machine, self._released)

    async def finished(self) -> None:
        """Return when no change is under way."""
        async with self._turn:
            pass

    # -- What there is --

    async def nics(self) -> list[Nic]:
        """Return the interfaces; raises BadFile where NICS makes no sense, Failed."""
        return await self._machine.files.aside(self._look)

    def _look(self) -> list[Nic]:
        directory = self._machine.directory
        return self._network.nics(self.vm, directory.read_setting(NICS))

    @property
    def _is_off(self) -> bool:
        return self._machine.state in OFF

    # -- What is changed --

    async def arrange(self, count: int, words: Sequence[str]) -> list[Step]:
        """Have `count` interfaces, plugged into what the words say, and no others.

        Raises:
            InvalidValue: a word or the number makes no sense.
            VmessError: it could not be done; then nothing was.
        """
        wires = parse_wires(self.vm, count, words)
        await self._check_bridges(wires)
        return await self._carried_through(self._arrange(wires))

    async def _arrange(self, wires: Sequence[Wire]) -> list[Step]:
        async with self._turn:
            if self._is_off:
                try:
                    return await self._machine.change(functools.partial(self._set_off, wires), stopped=True)
                except AlreadyRunning:
                    if self._is_off:
                        raise
            return await self._set_live(wires)

    async def connect(self, index: int, word: str) -> list[Step]:
        """Plug one interface into another bridge, or into none; raises as :meth:`arrange`."""
        wire = parse_wire(word)
        await self._check_bridges([wire])
        async with self._turn:
            return await self._machine.change(functools.partial(self._connect, index, wire))

    async def _carried_through(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what the work returns; it goes on if whoever asked for it leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _check_bridges(self, wires: Sequence[Wire]) -> None:
        for wire in wires:
            if wire.bridge is not None and await self._is_vm(wire.bridge):
                raise InvalidValue(f"bridge name '{wire.bridge}' is the name of a VM")

    def _set_off(self, wires: Sequence[Wire]) -> list[Step]:
        """Rewire a VM that does not run.

        In an order that leaves no TAP behind as nobody's where this process dies in between: what is to go is
        marked first, and noted what is made.
        """
        kept = [index for index, wire in enumerate(wires) if not wire.user]
        with self._noted(self._network.mark_leaving(self.vm, kept), wires):
            change = self._network.wire(self.vm, dict(enumerate(wires)))
            try:
                gone = self._network.unwire(self.vm, keep=kept)
            except BaseException:
                change.undo()
                raise
        return gone + change.steps

    @contextlib.contextmanager
    def _noted(self, change: Change, wires: Sequence[Wire]) -> Iterator[None]:
        """Note the wires in NICS; take that and the change back if what is inside fails."""
        directory = self._machine.directory
        before: str | None = None
        try:
            with contextlib.suppress(BadFile):
                before = directory.setting_text(NICS.file)
            directory.note_wires(file_text(wires))
            try:
                yield
            except BaseException:
                with contextlib.suppress(VmessError):
                    directory.note_wires(before or "")
                raise
        except BaseException:
            change.undo()
            raise

    def _connect(self, index: int, wire: Wire) -> list[Step]:
        nics = {nic.index: nic for nic in self._look()}
        if index in nics and nics[index].leaving:
            raise _still_leaving(self.vm, index)
        nics = {number: nic for number, nic in nics.items() if not nic.leaving}
        check_interface(self.vm, index, nics)
        nic = nics[index]
        if wire.user and nic.wire.user:
            return []  # it keeps its forwarded ports
        if not self._is_off:
            self._check_stays(nic, wire)
        change = self._network.wire(self.vm, {index: wire})
        with self._noted(change, _with(nics, index, wire)):
            gone = self._network.unwire(self.vm, sorted(nics.keys() - {index})) if wire.user else []
        dropped = [Step("dropped", str(nic.wire))] if nic.wire.forwards else []
        return change.steps + gone + dropped

    # -- While it runs --

    async def _set_live(self, wires: Sequence[Wire]) -> list[Step]:
        """Rewire a VM that runs: keep what it has, plug what is missing, unplug what is too much."""
        have = await self.cards.present()
        nics = {nic.index: nic for nic in await self.nics()}
        for index in [index for index, nic in nics.items() if nic.leaving and index not in have]:
            await self._released(index)  # it went while no daemon watched
        for index in have & set(range(len(wires))):
            if self.cards.is_leaving(index) or index not in nics:  # neither file nor kernel want it
                raise _still_leaving(self.vm, index)
            self._check_stays(nics[index], wires[index])
        told = await self._change_live(wires, [index for index in range(len(wires)) if index not in have])
        leaving = sorted(have - set(range(len(wires))))
        pending = await self.cards.unplug(leaving)
        gone = await self._machine.change(functools.partial(self._network.sweep, self.vm))
        taps = {index for index, nic in nics.items() if nic.link}
        steps = [
            Step("pending" if index in pending else "nonpersistent", names.tap(self.vm, index))
            for index in leaving
            if index in pending or index in taps
        ]
        return steps + [step for step in gone if step not in steps] + told

    def lost(self, nic: Nic) -> str | None:
        """Return what is wrong with an interface whose TAP was deleted under its QEMU; None if nothing."""
        running = self._machine.state in (State.running, State.paused)
        if running and not nic.wire.user and (nic.link is None or not nic.link.attached):
            return f"QEMU has lost {nic.tap}: the VM has to be stopped and started"
        return None

    def _check_stays(self, nic: Nic, wire: Wire) -> None:
        """Raise where what QEMU has behind a card is not there, or would have to be something else."""
        if nic.wire.user is not wire.user:
            raise InvalidValue(
                f"interface {nic.index} of {self.vm} cannot change between bridge and user network now",
                hint=f"vmess {self.vm} stop",
            )
        if nic.wire.forwards != wire.forwards:
            raise InvalidValue(
                f"interface {nic.index} of {self.vm} is {quoted(nic.wire)}; forward changes that now",
                hint=f"vmess {self.vm} forward {nic.index} <hostport>:<guestport|none>",
            )
        if words := self.lost(nic):
            raise Failed(words, hint=f"vmess {self.vm} stop")

    async def _change_live(self, wires: Sequence[Wire], missing: Sequence[int]) -> list[Step]:
        """Do all of a change that can be taken back, and take it back where a part of it fails.

        In the order of :meth:`_set_off`.
        """
        files, directory = self._machine.files, self._machine.directory
        values = await files.aside(functools.partial(self._host.settings, directory))
        before = await files.aside(functools.partial(directory.setting_text, NICS.file))
        planned = [Nic(index, names.tap(self.vm, index), wires[index], None, None) for index in missing]
        made: Change | None = None
        mark = functools.partial(self._network.mark_leaving, self.vm, range(len(wires)))
        marked = await self._machine.change(mark)
        try:
            await self._note(file_text(wires))
            wire = functools.partial(self._network.wire, self.vm, dict(enumerate(wires)))
            made = await self._machine.change(wire)
            await self.cards.plug([launch.card(self.vm, nic) for nic in planned], values)
        except BaseException:
            if made is not None:
                await self._machine.change(made.undo)
            with contextlib.suppress(VmessError):
                await self._note(before or "")
            await self._machine.change(marked.undo)
            raise
        return made.steps

    async def _released(self, index: int) -> None:
        """Take away what was behind a card that is gone: QEMU's end first, then the TAP."""
        with contextlib.suppress(VmessError):
            nics = {nic.index: nic for nic in await self.nics()}
            if not self.cards.is_leaving(index) and index in nics and not nics[index].leaving:
                return  # the guest threw it out by itself; it is back at the next start
        await self.cards.take_away(index)
        with contextlib.suppress(VmessError):
            await self._machine.change(functools.partial(self._network.sweep, self.vm))
        self.cards.forget(index)

    async def cable(self, index: int, *, on: bool) -> None:
        """Plug or pull the cable of a card as the guest sees it: its link goes up or down.

        Raises:
            NotRunning: a VM that is off has no such state.
        """
        if self._is_off:
            raise refusals.off(self.vm, "a cable is pulled from a running one")
        async with self._turn:
            check_interface(self.vm, index, await self.cards.present())
            if self.cards.is_leaving(index):
                raise _still_leaving(self.vm, index)
            await self.cards.set_link(index, up=on)

    async def forward(self, index: int, host: int, guest: int | None) -> None:
        """Forward a TCP port of the host's 127.0.0.1 to the guest, or with None no longer; noted in NICS.

        Raises:
            InvalidValue: it is no user-mode network, or a port that cannot be.
            Failed: QEMU could not listen there.
        """
        for port in (host, guest):
            if port is not None and not 1 <= port <= PORT_MAX:
                raise InvalidValue(f"port {quoted(port)} is not a number from 1 to {PORT_MAX}")
        await self._carried_through(self._forward(index, host, guest))

    async def _forward(self, index: int, host: int, guest: int | None) -> None:
        async with self._turn:
            nics = {nic.index: nic for nic in await self.nics() if not nic.leaving}
            check_interface(self.vm, index, nics)
            wire = nics[index].wire
            if not wire.user:
                raise InvalidValue(
                    f"interface {index} of {self.vm} is no user network but plugged into {wire}",
                    hint="guests on a bridge are reached by their own addresses",
                )
            before = dict(wire.forwards)
            if (guest is None) is (host not in before):
                how = f"forwarded already, to {before[host]}" if guest else "not forwarded"
                raise InvalidValue(f"port {host} is {how}")
            after = {port: to for port, to in {**before, host: guest}.items() if to is not None}
            if len(after) > FORWARDS_MAX:
                raise InvalidValue(f"{len(after)} forwarded ports are more than {FORWARDS_MAX}")
            if not self._is_off:
                await self.cards.forward(index, host, guest)
            try:
                await self._note(file_text(_with(nics, index, Wire(user=True, forwards=tuple(after.items())))))
            except BaseException:
                if not self._is_off:
                    await self.cards.forward(index, host, before.get(host))
                raise

    async def _note(self, text: str) -> None:
        await self._machine.change(functools.partial(self._machine.directory.note_wires, text))


def _with(nics: Mapping[int, Nic], index: int, wire: Wire) -> list[Wire]:
    """Return what NICS has to say when one interface is plugged elsewhere; the others as it says now."""
    said = {number: nic.noted or nic.wire for number, nic in nics.items()} | {index: wire}
    return [said.get(number, Wire()) for number in range(max(said) + 1)]


def _still_leaving(vm: str, index: int) -> AlreadyRunning:
    return AlreadyRunning(
        f"{names.tap(vm, index)} is still being unplugged: the guest has not let go of it",
        hint="it goes when the guest lets go of it, or when the VM ends",
    )
