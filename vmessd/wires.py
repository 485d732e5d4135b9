"""The cables of one VM, rewired in turn: on files and links, and through QMP while it runs.

A change is made whole or taken back. What only the guest can end, its hold on a network card, has a
deadline; after it the card is *pending*: its TAP carries a mark and goes when the guest lets go of the
card, or with the VM's QEMU, whichever daemon sees that.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from vmessd import cmdline, launch, names
from vmessd.errors import AlreadyRunning, BadFile, Failed, InvalidValue, NotRunning, VmessError, quoted
from vmessd.lifecycle import State
from vmessd.machine import Machine
from vmessd.monitor import CommandRefused
from vmessd.network import Change, Network, Nic, Step
from vmessd.settings import BY_FILE
from vmessd.wiring import PORT_MAX, Wire, check_interface, file_text, parse_wire, parse_wires

log = logging.getLogger(__name__)

_T = TypeVar("_T")

NICS = BY_FILE["NICS"]
UNPLUG_TIME = 5.0
"""Seconds a guest may take to let go of a network card; Linux takes some tenths."""


class Wires:
    """The interfaces of one machine."""

    def __init__(self, machine: Machine, network: Network, is_vm: Callable[[str], bool]) -> None:
        self.vm = machine.vm
        self._machine = machine
        self._network = network
        self._is_vm = is_vm
        self._turn = asyncio.Lock()
        self._pid: int | None = None
        self._leaving: dict[int, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.unplugged: set[int] = set()
        """Cards whose cable was pulled by `cable`, as far as this daemon knows."""
        machine.device_gone = self._device_gone

    # -- What there is --

    async def nics(self) -> list[Nic]:
        """Return the interfaces; raises BadFile where NICS makes no sense, Failed."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> list[Nic]:
        directory = self._machine.directory
        return self._network.nics(self.vm, directory.read_setting(NICS))

    @property
    def _is_off(self) -> bool:
        return self._machine.state is State.stopped

    # -- What is changed --

    async def arrange(self, count: int, words: Sequence[str]) -> list[Step]:
        """Have `count` interfaces, plugged into what the words say, and no others.

        Raises:
            InvalidValue: a word or the number makes no sense.
            VmessError: it could not be done; then nothing was.
        """
        wires = parse_wires(self.vm, count, words)
        self._check_bridges(wires)
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
        self._check_bridges([wire])
        async with self._turn:
            return await self._machine.change(functools.partial(self._connect, index, wire))

    async def _carried_through(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what the work returns; it goes on if whoever asked for it leaves."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    def _check_bridges(self, wires: Sequence[Wire]) -> None:
        for wire in wires:
            if wire.bridge is not None and self._is_vm(wire.bridge):
                raise InvalidValue(f"bridge name '{wire.bridge}' is the name of a VM")

    def _set_off(self, wires: Sequence[Wire]) -> list[Step]:
        """Rewire a VM that does not run."""
        change = self._network.wire(self.vm, dict(enumerate(wires)))
        kept = [index for index, wire in enumerate(wires) if not wire.user]
        with self._noted(change, wires):
            gone = self._network.unwire(self.vm, keep=kept)
        return gone + change.steps

    @contextlib.contextmanager
    def _noted(self, change: Change, wires: Sequence[Wire]) -> Any:
        """Note the wires in NICS; take that and the change back if what is inside fails."""
        directory = self._machine.directory
        before: str | None = None
        with contextlib.suppress(BadFile):
            before = directory.setting_text(NICS.file)
        try:
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
        nics = {nic.index: nic for nic in self._look() if not nic.leaving}
        check_interface(self.vm, index, nics)
        nic = nics[index]
        if not self._is_off:
            _check_stays(self.vm, nic, wire)
        if not self._is_off and nic.link is None and not wire.user:
            raise Failed(
                f"TAP {nic.tap} is gone although QEMU has it", hint=f"vmess {self.vm} stop, then start"
            )
        change = self._network.wire(self.vm, {index: wire})
        with self._noted(change, _with(nics, index, wire)):
            gone = self._network.unwire(self.vm, sorted(nics.keys() - {index})) if wire.user else []
        return change.steps + gone

    # -- While it runs --

    def _mind_the_run(self) -> None:
        """Forget what was true of an earlier QEMU's cards."""
        pid = self._machine.status().pid
        if pid != self._pid:
            self._pid = pid
            self._leaving.clear()
            self.unplugged.clear()

    async def _set_live(self, wires: Sequence[Wire]) -> list[Step]:
        """Rewire a VM that runs: keep what it has, plug what is missing, unplug what is too much."""
        have = await self._plugged()
        nics = {nic.index: nic for nic in await self.nics()}
        await self._finish([index for index, nic in nics.items() if nic.leaving and index not in have])
        for index in have & set(range(len(wires))):
            if index in self._leaving or index not in nics:  # QEMU has it, and neither file nor kernel want it
                raise _still_leaving(self.vm, index)
            _check_stays(self.vm, nics[index], wires[index])
        told = await self._change_live(wires, [index for index in range(len(wires)) if index not in have])
        leaving = sorted(have - set(range(len(wires))))
        pending = await self._unplug(leaving)
        gone = await self._machine.change(functools.partial(self._network.sweep, self.vm))
        taps = {index for index, nic in nics.items() if nic.link}
        steps = [
            Step("pending" if index in pending else "nonpersistent", names.tap(self.vm, index))
            for index in leaving
            if index in pending or index in taps
        ]
        return steps + [step for step in gone if step not in steps] + told

    async def _change_live(self, wires: Sequence[Wire], missing: Sequence[int]) -> list[Step]:
        """Do all of a change that can be taken back, and take it back where a part of it fails."""
        done: list[Change] = []
        kept = range(len(wires))
        try:
            wire = functools.partial(self._network.wire, self.vm, dict(enumerate(wires)))
            done.append(await self._machine.change(wire))
            mark = functools.partial(self._network.mark_leaving, self.vm, kept)
            done.append(await self._machine.change(mark))
            await self._plug(wires, missing)
            await self._note(wires)
        except BaseException:
            for change in reversed(done):
                await self._machine.change(change.undo)
            raise
        return done[0].steps

    async def _plugged(self) -> set[int]:
        """Return which network cards QEMU has."""
        self._mind_the_run()
        if self._machine.state not in (State.running, State.paused):
            raise Failed(f"VM {self.vm} is {self._machine.state.value}: its wires stay as they are")
        try:
            found = await self._machine.live().execute("qom-list", {"path": "/machine/peripheral"})
        except CommandRefused as refusal:
            raise Failed(f"QEMU does not say which network cards it has: {refusal}") from None
        devices = [entry.get("name") for entry in found if isinstance(entry, Mapping)] if found else []
        indices = [cmdline.card_index(device) for device in devices if isinstance(device, str)]
        return {index for index in indices if index is not None}

    async def _plug(self, wires: Sequence[Wire], missing: Sequence[int]) -> None:
        """Give QEMU network cards; first all that is behind them, since that can be taken back for sure."""
        values = await asyncio.to_thread(self._machine.directory.read_settings)
        cards = {
            index: launch.card(self.vm, Nic(index, names.tap(self.vm, index), wires[index], None, None))
            for index in missing
        }
        behind: list[int] = []
        plugged: list[int] = []
        try:
            for index, card in cards.items():
                await self._machine.live().execute("netdev_add", cmdline.netdev(card))
                behind.append(index)
            for index, card in cards.items():
                await self._machine.live().execute("device_add", cmdline.device(card, values))
                plugged.append(index)
        except (CommandRefused, VmessError) as error:
            await self._unplug(plugged)
            for index in behind:
                with contextlib.suppress(CommandRefused, VmessError):
                    await self._machine.live().execute("netdev_del", {"id": cmdline.netdev_id(index)})
            if isinstance(error, CommandRefused):
                raise Failed(f"QEMU did not take a network card of {self.vm}: {error}") from None
            raise

    async def _unplug(self, indices: Collection[int]) -> set[int]:
        """Have the guest let go of network cards; return those it still holds at the deadline."""
        if not indices:
            return set()
        run = self._machine.live()
        events = {index: self._leaving.setdefault(index, asyncio.Event()) for index in sorted(indices)}
        hopeless = set()
        for index in events:
            try:
                await run.execute("device_del", {"id": cmdline.card_id(index)})
            except (CommandRefused, VmessError) as refusal:
                # "already in the process of unplug" is as good as done; "not found" is done.
                log.info("%s: card %d: %s", self.vm, index, refusal)
                if "not found" in str(refusal):
                    self._device_gone(cmdline.card_id(index))
                elif "hotplug" in str(refusal):
                    hopeless.add(index)
        ends = [asyncio.create_task(event.wait()) for index, event in events.items() if index not in hopeless]
        over = asyncio.create_task(run.over.wait())
        deadline = asyncio.get_running_loop().time() + UNPLUG_TIME
        while (waiting := {end for end in ends if not end.done()}) and not over.done():
            left = deadline - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait({*waiting, over}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
        for task in (*ends, over):
            task.cancel()
        return set() if run.over.is_set() else {index for index, event in events.items() if not event.is_set()}

    def _device_gone(self, identifier: str) -> None:
        """QEMU has no such device any more: take away what was behind it, if that was to go."""
        index = cmdline.card_index(identifier)
        if index is not None:
            task = asyncio.get_running_loop().create_task(self._finish([index]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, indices: Sequence[int]) -> None:
        """Take away what was behind cards that are gone: QEMU's end first, then the TAP."""
        for index in indices:
            with contextlib.suppress(CommandRefused, VmessError):
                nics = {nic.index: nic for nic in await self.nics()}
                if index not in self._leaving and index in nics and not nics[index].leaving:
                    continue  # the guest threw it out by itself; it is back at the next start
                await self._machine.live().execute("netdev_del", {"id": cmdline.netdev_id(index)})
            with contextlib.suppress(VmessError):
                await self._machine.change(functools.partial(self._network.sweep, self.vm))
            self.unplugged.discard(index)
            if index in self._leaving:
                self._leaving.pop(index).set()

    async def cable(self, index: int, *, on: bool) -> None:
        """Plug or pull the cable of a card as the guest sees it: its link goes up or down.

        Raises:
            NotRunning: a VM that is off has no such state.
        """
        if self._is_off:
            raise NotRunning(f"VM not running: {self.vm}; a cable is pulled from a running one")
        async with self._turn:
            have = await self._plugged()
            check_interface(self.vm, index, have)
            try:
                await self._machine.live().execute("set_link", {"name": cmdline.card_id(index), "up": on})
            except CommandRefused as refusal:
                raise Failed(f"QEMU did not switch the link of interface {index}: {refusal}") from None
        (self.unplugged.discard if on else self.unplugged.add)(index)

    async def forward(self, index: int, host: int, guest: int | None) -> None:
        """Forward a TCP port of the host's 127.0.0.1 to the guest, or with None no longer; noted in NICS.

        Raises:
            InvalidValue: it is no user-mode network, or a port that cannot be.
            Failed: QEMU could not listen there.
        """
        for port in (host, guest):
            if port is not None and not 1 <= port <= PORT_MAX:
                raise InvalidValue(f"port {quoted(port)} is not a number from 1 to {PORT_MAX}")
        async with self._turn:
            nics = {nic.index: nic for nic in await self.nics() if not nic.leaving}
            check_interface(self.vm, index, nics)
            wire = nics[index].wire
            if not wire.user:
                raise InvalidValue(
                    f"interface {index} of {self.vm} is no user network but plugged into {wire}",
                    hint="guests on a bridge are reached by their own addresses",
                )
            ports = dict(wire.forwards)
            if (guest is None) is (host not in ports):
                raise InvalidValue(
                    f"port {host} is {'not forwarded' if guest is None else 'forwarded already'}"
                )
            ports.pop(host, None) if guest is None else ports.update({host: guest})
            wires = _with(nics, index, Wire(user=True, forwards=tuple(ports.items())))
            if not self._is_off:
                await self._forward_live(index, host, guest)
            try:
                await self._note(wires)
            except BaseException:
                if not self._is_off:
                    await self._forward_live(index, host, dict(wire.forwards).get(host))
                raise

    async def _note(self, wires: Sequence[Wire]) -> None:
        await self._machine.change(functools.partial(self._machine.directory.note_wires, file_text(wires)))

    async def _forward_live(self, index: int, host: int, guest: int | None) -> None:
        """Tell QEMU, which knows these two commands in its human monitor only."""
        rule = f"tcp:127.0.0.1:{host}"
        line = f"hostfwd_remove {cmdline.netdev_id(index)} {rule}"
        if guest is not None:
            line = f"hostfwd_add {cmdline.netdev_id(index)} {cmdline.forward(host, guest)}"
        try:
            said = await self._machine.live().execute("human-monitor-command", {"command-line": line})
        except CommandRefused as refusal:
            said = str(refusal)
        words = str(said).strip()
        if words and "removed" not in words:
            raise Failed(f"port {host} of 127.0.0.1 is not forwarded: {words}")


def _with(nics: Mapping[int, Nic], index: int, wire: Wire) -> list[Wire]:
    """Return what NICS has to say when one interface is plugged elsewhere; the others as it says now."""
    said = {number: nic.noted or nic.wire for number, nic in nics.items()} | {index: wire}
    return [said.get(number, Wire()) for number in range(max(said) + 1)]


def _check_stays(vm: str, nic: Nic, wire: Wire) -> None:
    """Raise InvalidValue where a card that QEMU has would need something else behind it."""
    if nic.wire.user is not wire.user:
        raise InvalidValue(
            f"interface {nic.index} of {vm} cannot change between bridge and user network while it runs",
            hint=f"vmess {vm} stop",
        )
    if nic.wire.forwards != wire.forwards:
        raise InvalidValue(
            f"interface {nic.index} of {vm} forwards '{nic.wire}' and not '{wire}' while the VM runs",
            hint=f"vmess {vm} forward {nic.index} <hostport>:<guestport|none>",
        )


def _still_leaving(vm: str, index: int) -> AlreadyRunning:
    return AlreadyRunning(
        f"{names.tap(vm, index)} is still being unplugged: the guest has not let go of it",
        hint="it goes when the guest lets go of it, or when the VM ends",
    )
