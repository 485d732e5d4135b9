"""The interfaces of one VM, rewired in turn: its NICS file, the host's links, and QEMU's cards while it runs.

A change is made whole or taken back. A TAP whose card the guest has not let go of carries a mark, and
goes when it does, or with the VM's QEMU, whichever daemon sees that.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from vmessd.core import cards, names
from vmessd.core.errors import AlreadyRunning, BadFile, Failed, InvalidValue, NoSuchVM, VmessError, quoted
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.wires import Step, StepKind
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import (
    Forward,
    Wire,
    check_interface,
    file_text,
    parse_wire,
    parse_wires,
    room,
    with_forward,
    without_forward,
)
from vmessd.devices.cables import CABLES, Cables
from vmessd.devices.hotplug import Cards
from vmessd.network.links import Change, Nic
from vmessd.qemu import command_line
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import launcher
from vmessd.vm.environment import Host
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

_T = TypeVar("_T")

NICS, MACS, SLOTS = BY_FILE["NICS"], BY_FILE["MACS"], BY_FILE["SLOTS"]


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
        self.cables = Cables(machine, self.cards, self._turn)
        machine.prepare = self._prepare
        machine.over = lambda: host.duplicates.watch(self.vm, {})

    async def finished(self) -> None:
        """Return when no change is under way, nor what follows from one."""
        async with self._turn:
            pass
        await self.cables.finished()

    async def _prepare(self) -> None:
        """See to cables and MACs of a QEMU whose guest is about to run, or that an earlier daemon started."""
        fresh = self._machine.state is State.starting  # nobody changes its wires now
        try:
            if not self.cards.macs() and (fresh or not await self._machine.files.aside(self._is_noted)):
                return  # it has no cards
            if fresh:
                await self.cables.enforce(self.cards.macs())
            else:
                async with self._turn:
                    await self.cards.learn()
                    await self.cables.enforce(self.cards.macs())
        except VmessError as error:
            log.warning("%s: its cables may be other than noted: %s", self.vm, error.message)
        self._in_background(self._listen())  # it may have to wait for others' links; the guest has not to

    def _is_noted(self) -> bool:
        """Tell whether NICS says anything; blocks. Raises BadFile."""
        return bool(self._machine.home.setting_text(NICS.file))

    async def tap_macs(self) -> dict[str, str]:
        """Return the TAPs' own MACs, by their names, where these do not tell them; raises BadFile."""
        set_ones: dict[int, str] = {}
        with contextlib.suppress(NoSuchVM):  # it may run without a directory
            set_ones = await self._machine.files.aside(self._set_macs)
        return {names.tap(self.vm, index): names.tap_mac(mac) for index, mac in set_ones.items()}

    async def _listen(self) -> None:
        """Listen for the MACs of the QEMU there is."""
        with contextlib.suppress(VmessError):
            taps = {nic.index: nic.tap for nic in await self.nics() if nic.link and not nic.leaving}
            macs = {} if self._is_off else self.cards.macs()
            ports = {index: (mac, taps[index]) for index, mac in macs.items() if index in taps}
            self._host.duplicates.watch(self.vm, ports)

    # -- What there is --

    async def nics(self, files: VMDirectory | None = None) -> list[Nic]:
        """Return the interfaces; raises BadFile where NICS makes no sense, Failed.

        `files` is the VM's directory where it has been read in already.
        """
        return await self._machine.files.aside(functools.partial(self._look, files))

    def _look(self, files: VMDirectory | None = None) -> list[Nic]:
        directory = files or self._machine.home
        return self._network.nics(self.vm, directory.read_setting(NICS))

    async def macs(self, files: VMDirectory | None = None) -> Callable[[int], tuple[str, str]]:
        """Return a function that tells an interface's MAC, and that from the next start on; raises BadFile.

        `files` as for :meth:`nics`.
        """
        directory = files or self._machine.home
        noted = await self._machine.files.aside(functools.partial(directory.read_setting, MACS))
        values = {MACS.file: noted or {}}
        now = {} if self._is_off else self.cards.macs()

        def tell(index: int) -> tuple[str, str]:
            later = launcher.mac(self.vm, index, values)
            return now.get(index, later), later

        return tell

    def _set_macs(self) -> dict[int, str]:
        """Return the MACs of cards, as far as they do not follow from the VM's name; blocks. Raises BadFile."""
        noted: dict[int, str] = self._machine.home.read_setting(MACS) or {}
        return {**noted, **({} if self._is_off else self.cards.macs())}

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
        work = functools.partial(self._machine.change, functools.partial(self._connect, index, wire))
        return await self._carried_through(self.rewired(work))

    async def rewired(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Have this VM rewired in its turn, and its guest notice it; raises whatever the work raises."""
        async with self._turn:
            before = await self._plugged()
            done = await work()
            await self._tell_moves(before)
        return done

    async def _plugged(self) -> dict[int, Wire]:
        """Return what the interfaces of a running VM are plugged into, as far as that can be told."""
        with contextlib.suppress(VmessError):
            return {} if self._is_off else {nic.index: nic.wire for nic in await self.nics() if not nic.leaving}
        return {}

    async def _tell_moves(self, before: Mapping[int, Wire]) -> None:
        """Bounce the links of interfaces that are plugged elsewhere now."""
        now = await self._plugged() if before else {}
        moved = [index for index, wire in before.items() if now.get(index, wire).bridge != wire.bridge]
        for index in moved:
            self._host.duplicates.replugged(self.vm, index)
        await self.cables.bounce(moved)

    async def _carried_through(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what the work returns; it goes on if whoever asked for it leaves."""
        return await asyncio.shield(self._in_background(work))

    def _in_background(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _check_bridges(self, wires: Sequence[Wire]) -> None:
        for wire in wires:
            if wire.bridge is not None and await self._is_vm(wire.bridge):
                raise InvalidValue(f"bridge name '{wire.bridge}' is the name of a VM")

    def _set_off(self, wires: Sequence[Wire]) -> list[Step]:
        """Rewire a VM that does not run.

        In an order that leaves no TAP behind as nobody's where this process dies in between: what is to go is
        marked first, and noted what is made.
        """
        kept = _with_taps(wires)
        notes = self._notes(wires)
        with self._noted(self._network.mark_leaving(self.vm, kept), notes):
            change = self._network.wire(self.vm, dict(enumerate(wires)), self._set_macs() if wires else {})
            try:
                gone = self._network.unwire(self.vm, keep=kept)
            except BaseException:
                change.undo()
                raise
        return gone + change.steps

    def _notes(self, wires: Sequence[Wire], slots: Mapping[int, int] | None = None) -> dict[str, str]:
        """Return what files have to say of these interfaces and no others, `slots` being new; blocks.

        What makes no sense in them now is for the next start to tell.
        """
        directory, there = self._machine.home, range(len(wires))
        notes = {NICS.file: file_text(wires)}
        with contextlib.suppress(BadFile):
            known = {**(directory.read_setting(SLOTS) or {}), **(slots or {})}
            notes[SLOTS.file] = cards.file_text({index: known[index] for index in known if index in there})
        with contextlib.suppress(BadFile):
            notes[CABLES.file] = str((directory.read_setting(CABLES) or cards.Loose()).among(there))
        return notes

    def _write(self, notes: Mapping[str, str | None]) -> dict[str, str | None]:
        """Write notes into their files, all or none; return what those said before. Blocks."""
        directory = self._machine.home
        before: dict[str, str | None] = {}
        try:
            for file, text in notes.items():
                said = None
                with contextlib.suppress(BadFile):
                    said = directory.setting_text(file)
                if file == NICS.file or (said or "") != (text or ""):
                    before[file] = said
                    self._write_one(file, text)
        except BaseException:
            before.pop(file, None)
            self._write_back(before)
            raise
        return before

    def _write_back(self, before: Mapping[str, str | None]) -> None:
        """Put notes back as they were; what cannot be is logged, and `info` tells where the kernel differs."""
        for file, text in before.items():
            try:
                self._write_one(file, text)
            except VmessError as error:
                log.warning("%s: %s; it says what was taken back", self.vm, error.message)

    def _write_one(self, file: str, text: str | None) -> None:
        directory = self._machine.home
        if file == NICS.file:
            directory.note_wires(text or "")
        else:
            directory.write_setting(BY_FILE[file], text or None)

    @contextlib.contextmanager
    def _noted(self, change: Change, notes: Mapping[str, str | None]) -> Iterator[None]:
        """Write notes into their files; take that and the change back if what is inside fails."""
        try:
            before = self._write(notes)
            try:
                yield
            except BaseException:
                self._write_back(before)
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
        if wire.user and nic.wire.user and wire.forwards in ((), nic.wire.forwards):
            return []  # it keeps its forwarded ports
        if not self._is_off:
            self._check_stays(nic, wire)
        change = self._network.wire(self.vm, {index: wire}, self._set_macs())
        with self._noted(change, {NICS.file: file_text(_with(nics, index, wire))}):
            gone = self._network.unwire(self.vm, sorted(nics.keys() - {index})) if wire.user else []
        lost = tuple(forward for forward in nic.wire.forwards if forward not in wire.forwards)
        dropped = [Step(StepKind.dropped, str(Wire(user=True, forwards=lost)))] if lost else []
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
        before = await self._plugged()
        told = await self._change_live(wires, [index for index in range(len(wires)) if index not in have])
        await self._tell_moves(before)
        leaving = sorted(have - set(range(len(wires))))
        pending = await self.cards.unplug(leaving)
        gone = await self._machine.change(functools.partial(self._network.sweep, self.vm))
        await self._listen()
        taps = {index for index, nic in nics.items() if nic.link}
        steps = [
            Step(StepKind.pending if index in pending else StepKind.nonpersistent, names.tap(self.vm, index))
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
        files, directory = self._machine.files, self._machine.home
        values = await files.aside(functools.partial(self._host.settings, directory))
        planned = [Nic(index, names.tap(self.vm, index), wires[index], None, None) for index in missing]
        slots = await self._free_slots(len(wires), missing, values)
        made: Change | None = None
        before: dict[str, str | None] = {}
        mark = functools.partial(self._network.mark_leaving, self.vm, _with_taps(wires))
        marked = await self._machine.change(mark)
        try:
            before = await self._machine.change(lambda: self._write(self._notes(wires, slots)))
            macs = await self._machine.files.aside(self._set_macs)
            wire = functools.partial(self._network.wire, self.vm, dict(enumerate(wires)), macs)
            made = await self._machine.change(wire)
            new = [launcher.card(self.vm, nic, values, slots.get(nic.index)) for nic in planned]
            await self.cards.plug(new, values)
            try:
                await self.cables.replug(missing)
            except BaseException:
                await self.cards.unplug(missing)
                raise
        except BaseException:
            if made is not None:
                await self._machine.change(made.undo)
            await self._machine.change(functools.partial(self._write_back, before))
            await self._machine.change(marked.undo)
            raise
        return made.steps

    async def _free_slots(
        self, count: int, missing: Sequence[int], values: Mapping[str, Any]
    ) -> dict[int, int]:
        """Return PCI slots for cards that are to be plugged; of none where QEMU is to choose."""
        taken = await self.cards.taken_slots() if missing and command_line.has_slots(values) else None
        if taken is None:
            return {}
        others = command_line.slots([index for index in range(count) if index not in missing], values)
        return cards.choose(missing, values.get(SLOTS.file, {}), taken | set(others.values()))

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

    async def cable(self, index: int, *, on: bool) -> str | None:
        """Plug or pull the cable of a card, for now and every start to come; return what there is to say of it.

        Raises:
            InvalidValue: there is no such interface.
            BadFile: what CABLES says makes no sense.
        """
        return await self._carried_through(self._cable(index, on=on))

    async def _cable(self, index: int, *, on: bool) -> str | None:
        async with self._turn:
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
                raise _still_leaving(self.vm, index)
            await self.cables.put(index, on=on)
            return await self.cables.unseen(index)

    async def mac(self, index: int, address: str | None) -> str | None:
        """Give an interface a MAC from the next start on, or with None the one that follows from the VM's name.

        Returns what there is to say of it. Raises InvalidValue, BadFile, Failed.
        """
        if not 0 <= index < room(self.vm):
            raise InvalidValue(
                f"interface {quoted(index)} of {self.vm} is none it can have; {room(self.vm) - 1} is the last"
            )
        text = None if address is None else cards.mac(address)
        async with self._turn:
            await self._machine.change(functools.partial(self._set_mac, index, text))
            now, later = (await self.macs())(index)
            nics = [nic.index for nic in await self.nics() if not nic.leaving]
        if index not in nics:
            with_it = ", with this MAC" if text is not None else ""
            return f"{self.vm} has no interface {index} yet; ifadd gives it one{with_it}"
        if now != later:
            return f"{self.vm} is running; interface {index} is {now} until its next start"
        return None

    def _set_mac(self, index: int, text: str | None) -> None:
        noted: dict[int, str] = dict(self._machine.home.read_setting(MACS) or {})
        noted.pop(index, None)
        if text is not None:
            noted[index] = text
        self._check_mac(index, noted)
        self._machine.home.write_setting(MACS, cards.file_text(noted) or None)

    def _check_mac(self, index: int, noted: Mapping[int, str]) -> None:
        """Raise InvalidValue where another card of the VM, or its bridge, has the MAC; blocks."""
        values = {MACS.file: noted}
        mac = launcher.mac(self.vm, index, values)
        for other in range(room(self.vm)):
            if other != index and launcher.mac(self.vm, other, values) == mac:
                raise InvalidValue(f"MAC {mac} is that of interface {other} of {self.vm} already")
        bridge = next((nic.wire.bridge for nic in self._look() if nic.index == index), None)
        if bridge is not None and self._network.mac_of(bridge) == mac:
            raise InvalidValue(f"MAC {mac} is that of {bridge}, into which the interface is plugged")

    async def forward(self, index: int, forward: Forward, *, on: bool) -> None:
        """Forward a port of the host's to the guest, or no longer, whatever it leads to; noted in NICS.

        Raises:
            InvalidValue: it is no user-mode network, or a port that cannot be.
            Failed: QEMU could not listen there.
        """
        await self._carried_through(self._forward(index, forward, on=on))

    async def _forward(self, index: int, forward: Forward, *, on: bool) -> None:
        async with self._turn:
            nics = {nic.index: nic for nic in await self.nics() if not nic.leaving}
            check_interface(self.vm, index, nics)
            wire = nics[index].wire
            if not wire.user:
                raise InvalidValue(
                    f"interface {index} of {self.vm} is no user network but plugged into {wire}",
                    hint="guests on a bridge are reached by their own addresses",
                )
            after = with_forward(wire, forward) if on else without_forward(wire, forward)
            if not self._is_off:
                await self.cards.forward(index, forward, on=on)
            try:
                await self._note(file_text(_with(nics, index, after)))
            except BaseException:
                if not self._is_off:
                    [before] = set(wire.forwards) ^ set(after.forwards)
                    with contextlib.suppress(VmessError):
                        await self.cards.forward(index, before, on=not on)
                raise

    async def _note(self, text: str) -> None:
        await self._machine.change(functools.partial(self._machine.home.note_wires, text))


def _with(nics: Mapping[int, Nic], index: int, wire: Wire) -> list[Wire]:
    """Return what NICS has to say when one interface is plugged elsewhere; the others as it says now."""
    said = {number: nic.noted or nic.wire for number, nic in nics.items()} | {index: wire}
    return [said.get(number, Wire()) for number in range(max(said) + 1)]


def _with_taps(wires: Sequence[Wire]) -> list[int]:
    """Return which interfaces have a TAP."""
    return [index for index, wire in enumerate(wires) if not wire.user]


def _still_leaving(vm: str, index: int) -> AlreadyRunning:
    return AlreadyRunning(
        f"{names.tap(vm, index)} is still being unplugged: the guest has not let go of it",
        hint="it goes when the guest lets go of it, or when the VM ends",
    )
