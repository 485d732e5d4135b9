"""The network interfaces of one VM: its NICS file, the links of the host, and the cards of a running QEMU.

Changes happen one at a time, and completely or not at all. A TAP whose card the guest has not released yet
carries a mark. It is deleted when the guest releases the card or QEMU ends, even under a later daemon.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from vmessd.core import impairments, names, nic_hardware
from vmessd.core.errors import AlreadyRunning, BadFile, Failed, InvalidValue, NoSuchVM, VmessError, quoted
from vmessd.core.impairments import Direction
from vmessd.core.lifecycle import OFF, State
from vmessd.core.machine_types import is_q35
from vmessd.core.models.wires import Step, StepKind
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import (
    End,
    Forward,
    Wire,
    cables,
    check_interface,
    file_text,
    parse_wire,
    parse_wires,
    with_forward,
    without_forward,
)
from vmessd.devices.cables import NIC_MODEL, Cables
from vmessd.devices.captures import Captures
from vmessd.devices.hotplug import Cards
from vmessd.devices.impairments import ImpairedCables
from vmessd.devices.macs import Macs
from vmessd.devices.nic_files import NICS, SLOTS, NicFiles
from vmessd.network.changes import Change
from vmessd.network.nics import Nic
from vmessd.network.policy import Tap
from vmessd.qemu import command_line
from vmessd.storage import cable_notes, cable_sockets, cloud_init, images
from vmessd.storage.vmdir import Glance, VMDirectory
from vmessd.vm import launcher
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
        self._files = NicFiles(machine)
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
                        functools.partial(self._arrange_stopped, wires, known), stopped=True
                    )
                except AlreadyRunning:
                    if self._is_off:
                        raise
            self._check_known(known, await self.cabled())
            return await self._arrange_running(wires)

    async def connect(self, index: int, word: str, known: Mapping[int, End] | None = None) -> list[Step]:
        """Plug one interface into another bridge or into none; parameters and errors as for :meth:`arrange`."""
        wire = parse_wire(word)
        await self._check_bridges([wire])
        connect = functools.partial(self._connect, index, wire, known or {})
        return await self._shielded(self.rewired(functools.partial(self._machine.change, connect)))

    def _check_known(self, known: Mapping[int, End], now: Mapping[int, End]) -> None:
        """Raise Failed if the VM has other cables than the caller takes care of."""
        if known != now:
            raise Failed(
                f"the cables of {self.vm} have changed in the meantime; nothing was changed", hint="try again"
            )

    async def rewired(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run a change of connections under the lock and bounce the links that moved; raises what it raises."""
        async with self._lock:
            before = await self._plugged()
            done = await work()
            await self._announce_moves(before)
        return done

    async def _plugged(self) -> dict[int, Wire]:
        """Return the connections of a running VM, by interface; empty if they are unknown."""
        with contextlib.suppress(VmessError):
            return {} if self._is_off else {nic.index: nic.wire for nic in await self.nics() if not nic.leaving}
        return {}

    async def _announce_moves(self, before: Mapping[int, Wire]) -> None:
        """Bounce the links of interfaces that are in another bridge now."""
        now = await self._plugged() if before else {}
        moved = [index for index, wire in before.items() if now.get(index, wire) != wire and not wire.user]
        for index in moved:
            self._host.duplicates.replugged(self.vm, index)
        await self.cables.bounce(moved)

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

    def _arrange_stopped(self, wires: Sequence[Wire], known: Mapping[int, End]) -> list[Step]:
        """Change the interfaces of a VM that is off.

        The order ensures that no stray TAP is left if this process dies in between: TAPs to delete are marked
        first, and TAPs to create are recorded first.
        """
        files, kept = Glance(self._machine.home), _with_taps(wires)
        self._check_known(known, _cabled(files))
        notes = self._files.texts(wires, files=files)
        marked = self._network.mark_leaving(self.vm, kept)
        with self._files.written(marked, notes, files):
            self._plug_sockets(dict(enumerate(wires)))
            macs = self.macs.configured(files) if wires else {}
            honoured = self._honoured(enumerate(wires))
            change = self._network.wire(self.vm, honoured, macs, queued=self._queued(files))
            try:
                gone = self._network.unwire(self.vm, keep=kept) if marked.leaving else []
            except BaseException:
                change.undo()
                raise
        return gone + change.steps

    def _queued(self, home: VMDirectory) -> list[int] | None:
        """Return the interfaces whose card has several queues; None if a setting is wrong; blocks."""
        with contextlib.suppress(VmessError):  # a start complains
            found = {setting.file: home.read_setting(setting) for setting in (QUEUES, NIC_MODEL)}
            return launcher.queued({file: value for file, value in found.items() if value is not None})
        return None

    def _honoured(self, wires: Iterable[tuple[int, Wire]]) -> dict[int, Wire]:
        """Return wires by interface, without cables whose other end does not agree; blocks."""
        return cable_notes.honoured(self._machine.home, dict(wires))

    def _connect(self, index: int, wire: Wire, known: Mapping[int, End]) -> list[Step]:
        nics = {nic.index: nic for nic in self._look()}
        self._check_known(known, cables([nic.noted or Wire() for nic in nics.values()]))
        if index in nics and nics[index].leaving:
            raise _being_unplugged(self.vm, index)
        nics = {number: nic for number, nic in nics.items() if not nic.leaving}
        check_interface(self.vm, index, nics)
        nic = nics[index]
        if wire.user and nic.wire.user and wire.forwards in ((), nic.wire.forwards):
            return []  # it keeps its forwarded ports
        if not self._is_off:
            self._check_unchanged(nic, wire)
        change = self._network.wire(self.vm, self._honoured([(index, wire)]), self.macs.configured())
        with self._files.written(change, {NICS.file: file_text(_with(nics, index, wire))}):
            self._plug_sockets({index: wire})
            gone = self._network.unwire(self.vm, sorted(nics.keys() - {index})) if wire.user else []
        lost = tuple(forward for forward in nic.wire.forwards if forward not in wire.forwards)
        dropped = [Step(StepKind.dropped, str(Wire(user=True, forwards=lost)))] if lost else []
        return change.steps + gone + dropped

    # -- Cables to other VMs --

    async def cabled(self) -> dict[int, End]:
        """Return the other ends of cables by interface, as NICS says; none if it cannot be read.

        Raises TimedOut.
        """
        return await self._machine.files.aside(lambda: _cabled(self._machine.home))

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
            if words := None if self._is_off else self.lost(nic):
                raise Failed(words, hint=f"vmess {self.vm} stop")
            await self._machine.change(lambda: self._note_wire(nics, index, wire))
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
                await self._machine.change(lambda: self._note_wire(nics, index, Wire(cable=new)))

    def _note_wire(self, nics: Mapping[int, Nic], index: int, wire: Wire) -> None:
        """Note a connection in NICS; make the TAP if there is none, and pull a cable out of it; blocks."""
        change = Change(self._network.kernel)
        if not nics[index].by_qemu and (nics[index].link is None or wire == Wire()):
            change = self._network.wire(self.vm, {index: Wire()}, self.macs.configured())
        with self._files.written(change, {NICS.file: file_text(_with(nics, index, wire))}):
            self._plug_sockets({index: wire}, agreed=True)

    def _plug_sockets(self, wires: Mapping[int, Wire], *, agreed: bool = False) -> None:
        """Plug cables of a running VM in where QEMU carries its frames; blocks.

        `agreed`: the other end is about to name this one.
        """
        if self._is_off:
            return  # a start does it
        by_qemu = {nic.index for nic in self._look() if nic.by_qemu and not nic.wire.user}
        concerned = {index: wire for index, wire in wires.items() if index in by_qemu}
        if not concerned:
            return
        with self._machine.home.opened() as directory:
            for index, wire in (concerned if agreed else self._honoured(concerned.items())).items():
                cable_sockets.plug(directory, index, wire.cable)

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

    # -- Changes of a running VM --

    async def _arrange_running(self, wires: Sequence[Wire]) -> list[Step]:
        """Change the interfaces of a running VM: keep existing ones, plug missing ones, unplug surplus ones."""
        have = await self.cards.present()
        nics = {nic.index: nic for nic in await self.nics()}
        for index in [index for index, nic in nics.items() if nic.leaving and index not in have]:
            await self._released(index)  # the guest released it while no daemon ran
        for index in have & set(range(len(wires))):
            if self.cards.is_leaving(index) or index not in nics:  # absent from NICS and the kernel
                raise _being_unplugged(self.vm, index)
            self._check_unchanged(nics[index], wires[index])
        before = await self._plugged()
        told = await self._change_running(wires, [index for index in range(len(wires)) if index not in have])
        await self._announce_moves(before)
        leaving = sorted(have - set(range(len(wires))))
        pending = await self.cards.unplug(leaving)
        gone = await self._machine.change(functools.partial(self._network.sweep, self.vm))
        await self.macs.watch()
        taps = {index for index, nic in nics.items() if nic.link}
        steps = [
            Step(
                StepKind.pending if index in pending else StepKind.nonpersistent,
                names.long_tap(self.vm, index),
            )
            for index in leaving
            if index in pending or index in taps
        ]
        return steps + [step for step in gone if step not in steps] + told

    def lost(self, nic: Nic) -> str | None:
        """Return a warning if the TAP of a running QEMU was deleted, else None."""
        running = self._machine.state in (State.running, State.paused)
        if running and not nic.by_qemu and (nic.link is None or not nic.link.attached):
            return f"QEMU has lost {nic.tap.long}: the VM must be stopped and started"
        return None

    def _check_unchanged(self, nic: Nic, wire: Wire) -> None:
        """Raise if QEMU has lost the TAP of a card, or if the card would need another backend."""
        if nic.wire.user is not wire.user:
            raise InvalidValue(
                f"interface {nic.index} of {self.vm} cannot change between bridge and user network now",
                hint=f"vmess {self.vm} stop",
            )
        if nic.by_qemu and wire.bridge is not None:
            raise InvalidValue(
                f"interface {nic.index} of {self.vm} has no TAP, so it cannot be plugged into a bridge now",
                hint=f"vmess {self.vm} stop",
            )
        if nic.wire.forwards != wire.forwards:
            raise InvalidValue(
                f"interface {nic.index} of {self.vm} is {quoted(nic.wire)}; use forward to change it now",
                hint=f"for example: vmess {self.vm} forward {nic.index} 2222:22",
            )
        if words := self.lost(nic):
            raise Failed(words, hint=f"vmess {self.vm} stop")

    async def _change_running(self, wires: Sequence[Wire], missing: Sequence[int]) -> list[Step]:
        """Make the part of a change that can be undone, and undo it if a step fails.

        The order is that of :meth:`_arrange_stopped`.
        """
        files, directory = self._machine.files, self._machine.home
        values = await files.aside(functools.partial(self._host.settings, directory))
        planned = [self._planned(index, wires[index]) for index in missing]
        slots = await self._free_slots(len(wires), missing, values)
        made: Change | None = None
        before: dict[str, str | None] = {}
        mark = functools.partial(self._network.mark_leaving, self.vm, _with_taps(wires))
        marked = await self._machine.change(mark)
        try:
            before = await self._machine.change(lambda: self._files.write(self._files.texts(wires, slots)))
            macs = await self._machine.files.aside(self.macs.configured)
            made = await self._machine.change(
                lambda: self._network.wire(
                    self.vm, self._honoured(enumerate(wires)), macs, queued=launcher.queued(values)
                )
            )
            await self._machine.change(lambda: self._plug_sockets(dict(enumerate(wires))))
            segments = {nic.index: nic.mtu for nic in await self.nics()}
            planned = [dataclasses.replace(nic, mtu=segments.get(nic.index)) for nic in planned]
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
            await self._machine.change(functools.partial(self._files.restore, before))
            await self._machine.change(marked.undo)
            raise
        return made.steps

    def _planned(self, index: int, wire: Wire) -> Nic:
        by_qemu = not self._network.needs_tap(wire)
        return Nic(index, Tap.of(self.vm, index), wire, None, None, by_qemu=by_qemu)

    async def _free_slots(
        self, count: int, missing: Sequence[int], values: Mapping[str, Any]
    ) -> dict[int, int]:
        """Return PCI slots for new cards; empty if QEMU is to choose. Raises Failed if one has none."""
        missing = command_line.slotted(missing, values)
        pci = await self.cards.pci() if missing else None
        if pci is None:
            return {}
        disks: Sequence[images.Disk] = ()
        seed, home = None, self._machine.home
        with contextlib.suppress(VmessError):  # a start would complain
            disks = await self._machine.files.aside(functools.partial(images.disks, home))
            seed = await self._machine.files.aside(functools.partial(cloud_init.read, home))
        kept = [index for index in range(count) if index not in missing]
        others = command_line.slots(kept, values, disks, cloud_init=seed is not None)
        taken = pci.taken | command_line.slots_of_devices(values, disks) | set(others.values())
        possible = nic_hardware.pluggable(pci.bridges, first_bus=not (pci.bridges and is_q35(values)))
        slots = nic_hardware.choose(missing, values.get(SLOTS.file, {}), others, taken, possible)
        if without := [index for index in missing if index not in slots]:
            raise Failed(
                f"{self.vm} has no PCI slot for interface {without[0]} while it runs; a start makes room",
                hint=f"vmess {self.vm} stop",
            )
        return slots

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
                raise _being_unplugged(self.vm, index)
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
                await self._note(file_text(_with(nics, index, after)))
            except BaseException:
                if not self._is_off:
                    [before] = set(wire.forwards) ^ set(after.forwards)
                    with contextlib.suppress(VmessError):
                        await self.cards.forward(index, before, on=not on)
                raise
            return True

    async def _note(self, text: str) -> None:
        await self._machine.change(functools.partial(self._machine.home.note_wires, text))


def _with(nics: Mapping[int, Nic], index: int, wire: Wire) -> list[Wire]:
    """Return the connections for NICS with one interface changed and the others as they are noted."""
    said = {number: nic.noted or nic.wire for number, nic in nics.items()} | {index: wire}
    return [said.get(number, Wire()) for number in range(max(said) + 1)]


def _cabled(files: VMDirectory) -> dict[int, End]:
    """Return the other ends of cables by interface, as NICS says; none if it cannot be read; blocks."""
    with contextlib.suppress(NoSuchVM, BadFile):
        return cable_notes.noted(files)
    return {}


def _with_taps(wires: Sequence[Wire]) -> list[int]:
    """Return the interfaces that have a TAP."""
    return [index for index, wire in enumerate(wires) if not wire.user]


def _being_unplugged(vm: str, index: int) -> AlreadyRunning:
    return AlreadyRunning(
        f"{names.long_tap(vm, index)} is still being unplugged: the guest has not released it",
        hint="it goes away when the guest releases it, or when the VM ends",
    )
