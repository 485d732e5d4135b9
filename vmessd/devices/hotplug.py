"""Hot-plug of network cards: plug and unplug cards and set their links through QMP.

Only the guest can release a card, so an unplug has a deadline. A card that the guest still holds then is
*pending*: the caller stops waiting, and the backend of the card is removed when QEMU reports that the card is
gone.

Sources: QEMU's qapi/{qdev,net,qom}.json and docs/specs/acpi_pci_hotplug.txt.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from vmessd.core import nic_hardware
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, NotRunning, VmessError
from vmessd.core.lifecycle import State
from vmessd.core.names import INTERFACES_MAX
from vmessd.core.wires import Forward
from vmessd.qemu import command_line
from vmessd.qemu.command_line import Card
from vmessd.qemu.monitor import CommandRefused, says_forwarded, says_not_forwarded, words
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

log = logging.getLogger(__name__)

UNPLUG_TIME = 5.0
"""Seconds that a guest may take to release network cards; Linux takes some tenths."""

WORDS = 300
"""Maximum characters of an error of QEMU in a message."""

Released = Callable[[int], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Pci:
    """The PCI bus of a running QEMU, with slots as nic_hardware counts them."""

    taken: frozenset[int]
    bridges: frozenset[int]
    """The keys of those nic_hardware.BRIDGES that it has."""


class Cards:
    """The network cards of one machine, by interface."""

    def __init__(self, machine: Machine, released: Released) -> None:
        self.vm = machine.vm
        self._machine = machine
        self._released = released
        self._pid: int | None = None
        self._macs: dict[int, str] = {}
        self._leaving: dict[int, asyncio.Event] = {}
        self._going: dict[int, asyncio.Task[None]] = {}
        machine.device_gone = self._device_gone

    def is_leaving(self, index: int) -> bool:
        """Tell whether the guest was asked to release a card and has not done so yet."""
        self._check_process()
        return index in self._leaving

    def macs(self) -> Mapping[int, str]:
        """Return the known MACs of cards; those of cards on the command line are always known."""
        self._check_process()
        return self._macs

    async def learn(self) -> None:
        """Query the MACs of cards that an earlier daemon plugged; raises as :meth:`present`."""
        present = await self.present()
        for index in present - self._macs.keys():
            mac = await self._property(index, "mac")
            if mac is not None:
                self._macs[index] = mac
        for index in self._macs.keys() - present:
            del self._macs[index]

    async def model(self, index: int) -> str | None:
        """Return the model of a card; None if QEMU does not report it."""
        return await self._property(index, "type")

    async def _property(self, index: int, name: str) -> str | None:
        with contextlib.suppress(Failed):
            path = f"/machine/peripheral/{command_line.card_id(index)}"
            value = await self._execute("qom-get", {"path": path, "property": name})
            return value if isinstance(value, str) and len(value) <= WORDS else None
        return None

    async def pci(self) -> "Pci | None":
        """Return the PCI slots in use and the bridges of cards (qapi/pci.json); None if QEMU reports none.

        Slots behind a bridge are missing in it as long as the guest has given the bus no number.
        """
        try:
            buses = await self._execute("query-pci", {})
        except Failed:
            return None
        first = [bus for bus in _records(buses) if bus.get("bus") == 0]
        devices = [device for bus in first for device in _records(bus.get("devices"))]
        taken = set(_slots(devices))
        numbers = {name: number for number, name in nic_hardware.BRIDGES.items()}
        there = {number: each for each in devices if (number := numbers.get(str(each.get("qdev_id"))))}
        for number, bridge in there.items():
            behind = bridge.get("pci_bridge")
            used = _records(behind.get("devices")) if isinstance(behind, Mapping) else []
            taken |= {nic_hardware.EACH_BUS * number + slot for slot in _slots(used)}
        return Pci(frozenset(taken), frozenset(there)) if taken else None

    async def present(self) -> set[int]:
        """Return the cards of QEMU; raises Failed, NotRunning, TimedOut."""
        self._check_process()
        if self._machine.state not in (State.running, State.paused):
            raise Failed(
                f"VM {self.vm} is {self._machine.state.value}: its interfaces cannot be changed",
                hint=f"vmess {self.vm} status",
            )
        found = await self._execute("qom-list", {"path": "/machine/peripheral"})
        entries = found if isinstance(found, list) else []
        devices = [entry.get("name") for entry in entries if isinstance(entry, Mapping)]
        indices = [command_line.card_index(device) for device in devices if isinstance(device, str)]
        return {index for index in indices if index is not None}

    def _check_process(self) -> None:
        """Discard the state of an earlier QEMU's cards."""
        pid = self._machine.status().pid
        if pid != self._pid:
            self._pid = pid
            self._leaving.clear()
            record = self._machine.record()
            started = command_line.cards_of(record.argv) if record else {}
            self._macs = {index: mac for index, (mac, _tap) in started.items()}

    async def _execute(self, command: str, arguments: dict[str, object]) -> Any:
        """Run a QMP command; raises Failed with the error of QEMU, NotRunning, TimedOut."""
        try:
            return await self._machine.live().execute(command, arguments)
        except CommandRefused as refusal:
            if command == "device_add" and refusal.is_no_hotplug:  # as q35
                raise Failed(
                    f"the machine type of {self.vm} takes no network cards while it runs",
                    hint=f"vmess {self.vm} stop",
                ) from None
            raise refusal.failed(self.vm, command) from None

    async def plug(self, cards: Sequence[Card], values: Mapping[str, Any]) -> None:
        """Plug cards, all or none. Backends come first, because their removal does not depend on the guest.

        Raises:
            Failed, NotRunning, TimedOut: QEMU refused one. Cards plugged before it may be pending.
        """
        backends: list[int] = []
        plugged: list[int] = []
        try:
            for card in cards:
                await self.remove_netdev(card.index)  # left over if the guest ejected the card by itself
                await self._execute("netdev_add", command_line.netdev(card))
                backends.append(card.index)
            for card in cards:
                await self._execute("device_add", command_line.device(card, values))
                plugged.append(card.index)
                self._macs[card.index] = card.mac
        except BaseException:
            await self.unplug(plugged)
            for index in backends:
                await self.remove_netdev(index)
            raise

    async def unplug(self, indices: Collection[int]) -> set[int]:
        """Ask the guest to release cards; return those that it still holds at the deadline.

        A QEMU that has ended meanwhile holds none.
        """
        if not indices:
            return set()
        try:
            run = self._machine.live()
        except NotRunning:
            return set()
        events = {index: self._leaving.setdefault(index, asyncio.Event()) for index in sorted(indices)}
        possible = await asyncio.gather(*(self._request_unplug(run, index) for index in events))
        expected = [event for event, may in zip(events.values(), possible, strict=True) if may]
        ends = {asyncio.create_task(_all_set(expected)), asyncio.create_task(run.over.wait())}
        await asyncio.wait(ends, timeout=UNPLUG_TIME, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        return set() if run.over.is_set() else {index for index, event in events.items() if not event.is_set()}

    async def _request_unplug(self, run: QemuRun, index: int) -> bool:
        """Pull a card's cable and ask the guest to release it; return whether hot-unplug is possible."""
        with contextlib.suppress(VmessError, CommandRefused):
            await run.execute("set_link", {"name": command_line.card_id(index), "up": False})
        try:
            await run.execute("device_del", {"id": command_line.card_id(index)})
        except VmessError as error:
            log.info("%s: card %d: %s", self.vm, index, error.message[:WORDS])
        except CommandRefused as refusal:  # such as a pending unplug
            log.info("%s: card %d: %s", self.vm, index, str(refusal)[:WORDS])
            if refusal.is_not_found and not run.over.is_set():
                self._device_gone(command_line.card_id(index))
            return not refusal.is_no_hotplug
        return True

    def _device_gone(self, identifier: str) -> None:
        """Handle a DEVICE_DELETED event of QEMU."""
        index = command_line.card_index(identifier)
        if index is not None and index < INTERFACES_MAX and index not in self._going:
            work = _while_it_lives(self._machine.live(), self._released(index))
            self._going[index] = asyncio.get_running_loop().create_task(work)
            self._going[index].add_done_callback(lambda _task: self._going.pop(index))

    async def remove_netdev(self, index: int) -> None:
        """Remove the netdev of a card that is gone, if it exists."""
        with contextlib.suppress(VmessError):
            await self._execute("netdev_del", {"id": command_line.netdev_id(index)})

    def forget(self, index: int) -> None:
        """Discard the state of a card that is gone, and wake :meth:`unplug`."""
        self._macs.pop(index, None)
        if index in self._leaving:
            self._leaving.pop(index).set()

    async def set_link(self, index: int, *, up: bool) -> None:
        """Set the link state of a card; raises Failed, NotRunning, TimedOut.

        QEMU does not report it afterwards (7.2: neither in `info network` nor in a property of the card).
        """
        await self._execute("set_link", {"name": command_line.card_id(index), "up": up})

    async def forward(self, index: int, forward: Forward, *, on: bool) -> None:
        """Add or remove a forwarded port; raises Failed, NotRunning, TimedOut.

        QEMU has these commands only in its human monitor, which answers in words. Removing a port that is not
        forwarded is not an error.
        """
        where = f"{forward.protocol}:{forward.address}:{forward.host}"
        line = f"hostfwd_remove {command_line.netdev_id(index)} {where}"
        if on:
            line = f"hostfwd_add {command_line.netdev_id(index)} {command_line.hostfwd(forward)}"
        said = (words(await self._execute("human-monitor-command", {"command-line": line})) or "").strip()
        if not (says_forwarded(said) if on else says_not_forwarded(said)):
            raise Failed(
                f"port {forward.host} of {forward.address} cannot be forwarded: it is in use, privileged, or "
                f"not on this host ({said[:WORDS]})",
                hint="choose another port, or find the process that uses it: "
                f"ss -{forward.protocol[0]}lnp sport = :{forward.host}",
            )


def _records(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects in a list that QEMU returned; none if it is not a list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _slots(devices: Sequence[Mapping[str, Any]]) -> list[int]:
    return [slot for device in devices if isinstance(slot := device.get("slot"), int)]


async def _while_it_lives(run: QemuRun, work: Coroutine[Any, Any, None]) -> None:
    """Do work on a QEMU, and cancel it when the run is over."""
    loop = asyncio.get_running_loop()
    ends = {loop.create_task(work), loop.create_task(run.over.wait())}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()


async def _all_set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()
