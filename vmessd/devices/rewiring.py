"""Changes of the number of one VM's interfaces, and of what they are plugged into: NICS, links and cards.

Each is made completely or not at all. The caller holds the lock of the interfaces.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from vmessd.core import names, nic_hardware
from vmessd.core.errors import AlreadyRunning, Failed, InvalidValue, VmessError, quoted
from vmessd.core.lifecycle import OFF, State
from vmessd.core.machine_types import is_q35
from vmessd.core.models.wires import Step, StepKind
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import End, Wire, cables, check_interface, file_text
from vmessd.devices.cables import NIC_MODEL, Cables
from vmessd.devices.hotplug import Cards
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

QUEUES = BY_FILE["QUEUES"]


class Rewiring:
    """Changes of the interfaces of one machine."""

    def __init__(  # noqa: PLR0913, PLR0917 -- all that a change concerns
        self,
        machine: Machine,
        host: Host,
        cards: Cards,
        cables: Cables,
        macs: Macs,
        look: Callable[[], list[Nic]],
        released: Callable[[int], Awaitable[None]],
    ) -> None:
        """`look` returns the interfaces as they are; it blocks. `released` removes what a card has left."""
        self.vm = machine.vm
        self._machine = machine
        self._host = host
        self._network = host.network
        self._cards = cards
        self._cables = cables
        self._macs = macs
        self._look = look
        self._released = released
        self._files = NicFiles(machine)

    @property
    def _is_off(self) -> bool:
        return self._machine.state in OFF

    async def _nics(self) -> list[Nic]:
        return await self._machine.files.aside(self._look)

    def check_known(self, known: Mapping[int, End], now: Mapping[int, End]) -> None:
        """Raise Failed if the VM has other cables than the caller takes care of."""
        if known != now:
            raise Failed(
                f"the cables of {self.vm} have changed in the meantime; nothing was changed", hint="try again"
            )

    async def plugged(self) -> dict[int, Wire]:
        """Return the connections of a running VM, by interface; empty if they are unknown."""
        with contextlib.suppress(VmessError):
            nics = [] if self._is_off else await self._nics()
            return {nic.index: nic.wire for nic in nics if not nic.leaving}
        return {}

    async def announce_moves(self, before: Mapping[int, Wire]) -> None:
        """Bounce the links of interfaces that are in another bridge now."""
        now = await self.plugged() if before else {}
        moved = [index for index, wire in before.items() if now.get(index, wire) != wire and not wire.user]
        for index in moved:
            self._host.duplicates.replugged(self.vm, index)
        await self._cables.bounce(moved)

    # -- A VM that is off --

    def arrange_stopped(self, wires: Sequence[Wire], known: Mapping[int, End]) -> list[Step]:
        """Give a VM that is off these interfaces and no others; blocks.

        The order ensures that no stray TAP is left if this process dies in between: TAPs to delete are marked
        first, and TAPs to create are recorded first.
        """
        files, kept = Glance(self._machine.home), _with_taps(wires)
        self.check_known(known, cable_notes.noted_if_readable(files))
        notes = self._files.texts(wires, files=files)
        marked = self._network.mark_leaving(self.vm, kept)
        with self._files.written(marked, notes, files):
            self._plug_sockets(dict(enumerate(wires)))
            macs = self._macs.configured(files) if wires else {}
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

    # -- One interface --

    def connect(self, index: int, wire: Wire, known: Mapping[int, End]) -> list[Step]:
        """Plug one interface, also of a running VM, into something else; blocks.

        `known` is as for NetworkInterfaces.arrange.
        """
        nics = {nic.index: nic for nic in self._look()}
        self.check_known(known, cables([nic.noted or Wire() for nic in nics.values()]))
        if index in nics and nics[index].leaving:
            raise being_unplugged(self.vm, index)
        nics = {number: nic for number, nic in nics.items() if not nic.leaving}
        check_interface(self.vm, index, nics)
        nic = nics[index]
        if wire.user and nic.wire.user and wire.forwards in ((), nic.wire.forwards):
            return []  # it keeps its forwarded ports
        if not self._is_off:
            self._check_unchanged(nic, wire)
        change = self._network.wire(self.vm, self._honoured([(index, wire)]), self._macs.configured())
        with self._files.written(change, {NICS.file: file_text(with_changed(nics, index, wire))}):
            self._plug_sockets({index: wire})
            gone = self._network.unwire(self.vm, sorted(nics.keys() - {index})) if wire.user else []
        lost = tuple(forward for forward in nic.wire.forwards if forward not in wire.forwards)
        dropped = [Step(StepKind.dropped, str(Wire(user=True, forwards=lost)))] if lost else []
        return change.steps + gone + dropped

    def note(self, nics: Mapping[int, Nic], index: int, wire: Wire) -> None:
        """Note a connection in NICS; make the TAP if there is none, and pull a cable out of it; blocks."""
        change = Change(self._network.kernel)
        if not nics[index].by_qemu and (nics[index].link is None or wire == Wire()):
            change = self._network.wire(self.vm, {index: Wire()}, self._macs.configured())
        with self._files.written(change, {NICS.file: file_text(with_changed(nics, index, wire))}):
            self._plug_sockets({index: wire}, agreed=True)

    def _honoured(self, wires: Iterable[tuple[int, Wire]]) -> dict[int, Wire]:
        """Return wires by interface, without cables whose other end does not agree; blocks."""
        return cable_notes.honoured(self._machine.home, dict(wires))

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

    # -- A running VM --

    async def arrange_running(self, wires: Sequence[Wire]) -> list[Step]:
        """Give a running VM these interfaces and no others."""
        have = await self._cards.present()
        nics = {nic.index: nic for nic in await self._nics()}
        for index in [index for index, nic in nics.items() if nic.leaving and index not in have]:
            await self._released(index)  # the guest released it while no daemon ran
        for index in have & set(range(len(wires))):
            if self._cards.is_leaving(index) or index not in nics:  # absent from NICS and the kernel
                raise being_unplugged(self.vm, index)
            self._check_unchanged(nics[index], wires[index])
        before = await self.plugged()
        told = await self._change_running(wires, [index for index in range(len(wires)) if index not in have])
        await self.announce_moves(before)
        leaving = sorted(have - set(range(len(wires))))
        pending = await self._cards.unplug(leaving)
        gone = await self._machine.change(functools.partial(self._network.sweep, self.vm))
        await self._macs.watch()
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

        The order is that of :meth:`arrange_stopped`.
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
            macs = await self._machine.files.aside(self._macs.configured)
            made = await self._machine.change(
                lambda: self._network.wire(
                    self.vm, self._honoured(enumerate(wires)), macs, queued=launcher.queued(values)
                )
            )
            await self._machine.change(lambda: self._plug_sockets(dict(enumerate(wires))))
            segments = {nic.index: nic.mtu for nic in await self._nics()}
            planned = [dataclasses.replace(nic, mtu=segments.get(nic.index)) for nic in planned]
            new = [launcher.card(self.vm, nic, values, slots.get(nic.index)) for nic in planned]
            await self._cards.plug(new, values)
            try:
                await self._cables.replug(missing)
            except BaseException:
                await self._cards.unplug(missing)
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
        pci = await self._cards.pci() if missing else None
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


def with_changed(nics: Mapping[int, Nic], index: int, wire: Wire) -> list[Wire]:
    """Return the connections for NICS with one interface changed and the others as they are noted."""
    said = {number: nic.noted or nic.wire for number, nic in nics.items()} | {index: wire}
    return [said.get(number, Wire()) for number in range(max(said) + 1)]


def _with_taps(wires: Sequence[Wire]) -> list[int]:
    """Return the interfaces that have a TAP."""
    return [index for index, wire in enumerate(wires) if not wire.user]


def being_unplugged(vm: str, index: int) -> AlreadyRunning:
    """Return the error for a change of an interface whose card the guest has not released yet."""
    return AlreadyRunning(
        f"{names.long_tap(vm, index)} is still being unplugged: the guest has not released it",
        hint="it goes away when the guest releases it, or when the VM ends",
    )
