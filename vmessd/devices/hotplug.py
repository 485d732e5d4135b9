"""The network cards of a running QEMU: plugged, unplugged and switched through QMP.

What only the guest can end, its hold on a card, has a deadline. A card that it still holds then is
*pending*; nobody waits for it any more, and what was behind it goes when QEMU says that the card is gone.

Sources: QEMU's qapi/{qdev,net,qom}.json and docs/specs/acpi_pci_hotplug.txt.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from vmessd.core.errors import Failed, VmessError
from vmessd.core.lifecycle import State
from vmessd.core.wires import INTERFACES_MAX, Forward
from vmessd.qemu import command_line
from vmessd.qemu.command_line import Card
from vmessd.qemu.monitor import CommandRefused, says_forwarded, says_forwarded_no_more, words
from vmessd.vm.instance import Run
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

UNPLUG_TIME = 5.0
"""Seconds a guest may take to let go of network cards; Linux takes some tenths."""

WORDS = 300
"""Characters of what QEMU says that are passed on."""

Released = Callable[[int], Coroutine[Any, Any, None]]


class Cards:
    """The network cards of one machine, by their numbers."""

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
        """Tell whether the guest was asked to let go of a card and has not yet."""
        self._mind_the_run()
        return index in self._leaving

    def macs(self) -> Mapping[int, str]:
        """Return the MACs of QEMU's cards, as far as they are known; those it was started with always are."""
        self._mind_the_run()
        return self._macs

    async def learn(self) -> None:
        """Ask for the MACs of cards that an earlier daemon has plugged; raises as :meth:`present`."""
        present = await self.present()
        for index in present - self._macs.keys():
            mac = await self._property(index, "mac")
            if mac is not None:
                self._macs[index] = mac
        for index in self._macs.keys() - present:
            del self._macs[index]

    async def model(self, index: int) -> str | None:
        """Return the model of a card that QEMU has; None where it does not tell."""
        return await self._property(index, "type")

    async def _property(self, index: int, name: str) -> str | None:
        with contextlib.suppress(Failed):
            path = f"/machine/peripheral/{command_line.card_id(index)}"
            value = await self._execute("qom-get", {"path": path, "property": name})
            return value if isinstance(value, str) and len(value) <= WORDS else None
        return None

    async def taken_slots(self) -> set[int] | None:
        """Return which PCI slots of the first bus are taken (qapi/pci.json); None where there is none."""
        try:
            buses = await self._execute("query-pci", {})
        except Failed:
            return None
        first = [bus for bus in _records(buses) if bus.get("bus") == 0]
        devices = [device for bus in first for device in _records(bus.get("devices"))]
        return {slot for device in devices if isinstance(slot := device.get("slot"), int)} or None

    async def present(self) -> set[int]:
        """Return which cards QEMU has; raises Failed, NotRunning, TimedOut."""
        self._mind_the_run()
        if self._machine.state not in (State.running, State.paused):
            raise Failed(
                f"VM {self.vm} is {self._machine.state.value}: its wires stay as they are",
                hint=f"vmess {self.vm} status",
            )
        found = await self._execute("qom-list", {"path": "/machine/peripheral"})
        entries = found if isinstance(found, list) else []
        devices = [entry.get("name") for entry in entries if isinstance(entry, Mapping)]
        indices = [command_line.card_index(device) for device in devices if isinstance(device, str)]
        return {index for index in indices if index is not None}

    def _mind_the_run(self) -> None:
        """Forget what was true of an earlier QEMU's cards."""
        pid = self._machine.status().pid
        if pid != self._pid:
            self._pid = pid
            self._leaving.clear()
            record = self._machine.record()
            started = command_line.cards_of(record.argv) if record else {}
            self._macs = {index: mac for index, (mac, _tap) in started.items()}

    async def _execute(self, command: str, arguments: dict[str, object]) -> Any:
        """Run a QMP command; raises Failed with QEMU's words, NotRunning, TimedOut."""
        try:
            return await self._machine.live().execute(command, arguments)
        except CommandRefused as refusal:
            raise Failed(f"QEMU of {self.vm} refused {command}: {str(refusal)[:WORDS]}") from None

    async def plug(self, cards: Sequence[Card], values: Mapping[str, Any]) -> None:
        """Give QEMU cards, all or none; first all that is behind them, since that can be taken back for sure.

        Raises:
            Failed, NotRunning, TimedOut: it did not take one. A card it had taken may be pending then.
        """
        behind: list[int] = []
        plugged: list[int] = []
        try:
            for card in cards:
                await self.take_away(card.index)  # what a card left behind that the guest threw out by itself
                await self._execute("netdev_add", command_line.netdev(card))
                behind.append(card.index)
            for card in cards:
                await self._execute("device_add", command_line.device(card, values))
                plugged.append(card.index)
                self._macs[card.index] = card.mac
        except BaseException:
            await self.unplug(plugged)
            for index in behind:
                await self.take_away(index)
            raise

    async def unplug(self, indices: Collection[int]) -> set[int]:
        """Have the guest let go of cards; return those it still holds at the deadline."""
        if not indices:
            return set()
        run = self._machine.live()
        events = {index: self._leaving.setdefault(index, asyncio.Event()) for index in sorted(indices)}
        asked = await asyncio.gather(*(self._ask_back(run, index) for index in events))
        hopeful = [event for event, may in zip(events.values(), asked, strict=True) if may]
        ends = {asyncio.create_task(_all_set(hopeful)), asyncio.create_task(run.over.wait())}
        await asyncio.wait(ends, timeout=UNPLUG_TIME, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        return set() if run.over.is_set() else {index for index, event in events.items() if not event.is_set()}

    async def _ask_back(self, run: Run, index: int) -> bool:
        """Pull a card's cable and ask the guest to let go of it; tell whether it could before the VM ends."""
        with contextlib.suppress(VmessError, CommandRefused):
            await run.execute("set_link", {"name": command_line.card_id(index), "up": False})
        try:
            await run.execute("device_del", {"id": command_line.card_id(index)})
        except VmessError as error:
            log.info("%s: card %d: %s", self.vm, index, error.message[:WORDS])
        except CommandRefused as refusal:  # a card that is asked for already is as good as gone
            log.info("%s: card %d: %s", self.vm, index, str(refusal)[:WORDS])
            if refusal.is_of_nothing and not run.over.is_set():
                self._device_gone(command_line.card_id(index))
            return not refusal.is_of_no_hotplug
        return True

    def _device_gone(self, identifier: str) -> None:
        """QEMU says that it has no such device any more."""
        index = command_line.card_index(identifier)
        if index is not None and index < INTERFACES_MAX and index not in self._going:
            work = _while_it_lives(self._machine.live(), self._released(index))
            self._going[index] = asyncio.get_running_loop().create_task(work)
            self._going[index].add_done_callback(lambda _task: self._going.pop(index))

    async def take_away(self, index: int) -> None:
        """Take away what QEMU has behind a card that is gone; what is gone already is no matter."""
        with contextlib.suppress(VmessError):
            await self._execute("netdev_del", {"id": command_line.netdev_id(index)})

    def forget(self, index: int) -> None:
        """Note that nothing is left of a card, and tell whoever waits for that."""
        self._macs.pop(index, None)
        if index in self._leaving:
            self._leaving.pop(index).set()

    async def set_link(self, index: int, *, up: bool) -> None:
        """Plug or pull a card's cable as its guest sees it; raises Failed, NotRunning, TimedOut.

        QEMU tells nobody how it is afterwards (7.2: neither `info network` nor any property of the card).
        """
        await self._execute("set_link", {"name": command_line.card_id(index), "up": up})

    async def forward(self, index: int, forward: Forward, *, on: bool) -> None:
        """Forward a port to a guest's, or no longer; raises Failed, NotRunning, TimedOut.

        QEMU knows these two commands in its human monitor only, and refuses in words. What it does not forward
        any more is as good as ended.
        """
        where = f"{forward.protocol}:{forward.address}:{forward.host}"
        line = f"hostfwd_remove {command_line.netdev_id(index)} {where}"
        if on:
            line = f"hostfwd_add {command_line.netdev_id(index)} {command_line.hostfwd(forward)}"
        said = (words(await self._execute("human-monitor-command", {"command-line": line})) or "").strip()
        if not (says_forwarded(said) if on else says_forwarded_no_more(said)):
            raise Failed(
                f"port {forward.host} of {forward.address} cannot be forwarded: in use, kept for root, or not "
                f"of this host ({said[:WORDS]})",
                hint=f"take another, or find who has it: ss -{forward.protocol[0]}lnp sport = :{forward.host}",
            )


def _records(value: Any) -> list[Mapping[str, Any]]:
    """Return what of an answer of QEMU's is a list of objects."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


async def _while_it_lives(run: Run, work: Coroutine[Any, Any, None]) -> None:
    """Do work on a QEMU, and none of it on the next one."""
    loop = asyncio.get_running_loop()
    ends = {loop.create_task(work), loop.create_task(run.over.wait())}
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()


async def _all_set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        await event.wait()
