"""Detection of duplicate MACs: the MAC of a running VM appears at another port of its bridge.

A MAC follows from the name of a VM, so two hosts that share a segment, for example over VXLAN, may use it
twice; each then receives part of the frames. A bridge that sees a MAC at a new port moves it there, and the
kernel sends a notification. The daemon listens for the MACs of running VMs with TAPs, and for no others. Guests
control the rate of notifications, so reading is limited, and links are examined once a second.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vmessd.core.errors import VmessError, printable
from vmessd.network.fdb_events import FDBEvents
from vmessd.network.links import Network
from vmessd.network.policy import Tap, shown
from vmessd.storage import blocking

log = logging.getLogger(__name__)

READ_MOST = 128
"""Messages to read at once; with the pause, at most 500 a second."""
READ_PAUSE = 0.25
LOOK_AFTER = 0.2
"""Seconds from a message until its links are examined."""
LOOK_EVERY = 1.0
PLACES_MAX = 8
"""Ports of one MAC to examine at once."""
REPLUGGED = 2.0
"""Seconds after a change of connections during which earlier frames of the VM may still arrive."""
FORGOTTEN = 300.0
"""Seconds after which a duplicate is forgotten if not seen again, as in bridges (IEEE 802.1D)."""
WARN_EVERY = 60.0
"""Seconds between two warnings about one interface."""


class Port(NamedTuple):
    """The interface that a MAC belongs to."""

    vm: str
    interface: int
    tap: Tap


class Duplicate(NamedTuple):
    """A duplicate of a MAC."""

    where: str
    """The port and the bridge."""
    at: float
    """CLOCK_MONOTONIC, in seconds."""


class Duplicates:
    """The MACs of all running VMs, and their duplicates."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.report: Callable[[str, str], None] = lambda _vm, _text: None
        """Called with the name of a VM and a text about a new duplicate."""
        self._ports: dict[str, dict[int, tuple[str, Tap]]] = {}
        self._by_mac: dict[str, list[Port]] = {}
        self._replugged: dict[tuple[str, int], float] = {}
        self._duplicates: dict[tuple[str, int], Duplicate] = {}
        self._warned: dict[tuple[str, int], float] = {}
        self._fdb: FDBEvents | None = None
        self._suspects: dict[str, set[tuple[int, int]]] = {}
        self._look: asyncio.Task[None] | None = None
        self._closed = False

    # -- Interface --

    def watch(self, vm: str, cards: Mapping[int, tuple[str, Tap]]) -> None:
        """Listen for these MACs of a VM: MAC and TAP by interface. An empty mapping ends it."""
        if self._closed:
            return
        before = self._ports.pop(vm, {})
        if cards:
            self._ports[vm] = dict(cards)
        for index in [*before, *(index for name, index in self._replugged if name == vm)]:
            if before.get(index) != cards.get(index) or index not in cards:
                self._forget(vm, index)
        self._by_mac = {}
        for name, ports in self._ports.items():
            for index, (mac, tap) in ports.items():
                self._by_mac.setdefault(mac, []).append(Port(name, index, tap))
        self._listen()

    def replugged(self, vm: str, index: int) -> None:
        """Record that an interface has just been connected to another bridge."""
        self._forget(vm, index)
        self._replugged[vm, index] = time.monotonic()

    def remark(self, vm: str, index: int) -> str | None:
        """Return a text about a duplicate of an interface's MAC; None if there is none."""
        duplicate = self._duplicates.get((vm, index))
        mac = self._mac(vm, index)
        if duplicate is None or not mac or time.monotonic() - duplicate.at > FORGOTTEN:
            return None
        ago = f"{time.monotonic() - duplicate.at:.0f} s ago"
        return f"MAC {mac} of interface {index} was also seen at {duplicate.where}, {ago}: {_remedy(vm, index)}"

    def close(self) -> None:
        """Stop listening."""
        self._closed = True
        self._ports, self._by_mac = {}, {}
        self._listen()
        if self._look is not None:
            self._look.cancel()

    def _mac(self, vm: str, index: int) -> str:
        """Return the MAC of an interface; empty if it is not watched any more."""
        return self._ports[vm][index][0] if index in self._ports.get(vm, {}) else ""

    def _forget(self, vm: str, index: int) -> None:
        for records in (self._duplicates, self._warned, self._replugged):
            records.pop((vm, index), None)

    # -- Notifications --

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._by_mac and self._fdb is None:
                self._fdb = FDBEvents()
                loop.add_reader(self._fdb.fileno(), self._read)
            if self._fdb is not None and self._by_mac:
                self._fdb.listen(self._by_mac)
        except OSError as error:
            log.warning("duplicate MACs will not be detected: %s", error)
        if self._fdb is not None and not self._by_mac:
            loop.remove_reader(self._fdb.fileno())
            self._fdb.close()
            self._fdb = None

    def _read(self) -> None:
        if self._fdb is None:
            return
        loop = asyncio.get_running_loop()
        fdb = self._fdb
        entries, is_all = fdb.read(READ_MOST)
        for entry in entries:
            places = self._suspects.setdefault(entry.mac, set()) if entry.mac in self._by_mac else set()
            if entry.master and len(places) < PLACES_MAX:
                places.add((entry.index, entry.master))
        if self._suspects and (self._look is None or self._look.done()):
            self._look = loop.create_task(self._look_soon())
        if not is_all:
            loop.remove_reader(fdb.fileno())
            loop.call_later(READ_PAUSE, self._continue_reading, fdb)

    def _continue_reading(self, fdb: FDBEvents) -> None:
        if fdb is self._fdb:
            asyncio.get_running_loop().add_reader(fdb.fileno(), self._read)

    async def _look_soon(self) -> None:
        while self._suspects:
            await asyncio.sleep(LOOK_AFTER)
            suspects, self._suspects = self._suspects, {}
            seen = [
                (port, place)
                for mac, places in suspects.items()
                for port in self._by_mac.get(mac, ())
                for place in places
            ]
            with contextlib.suppress(VmessError):
                for port, where in await blocking.call(self._elsewhere, seen):
                    self._note(port, where)
            await asyncio.sleep(LOOK_EVERY)

    def _elsewhere(self, seen: Sequence[tuple[Port, tuple[int, int]]]) -> list[tuple[Port, str]]:
        """Return the MACs that the bridge of their TAP learned at another port, and that port."""
        found = []
        with self._network.kernel() as kernel:
            taps = kernel.named({port.tap.name for port, _ in seen})
            for port, (index, master) in seen:
                tap = taps.get(port.tap.name)
                if tap is None or tap.master != master or tap.index == index:
                    continue
                other, bridge = kernel.link_at(index), kernel.link_at(master)
                if other and bridge:
                    found.append((port, f"{printable(shown(other))} in bridge {printable(bridge.name)}"))
        return found

    def _note(self, port: Port, where: str) -> None:
        key, now = (port.vm, port.interface), time.monotonic()
        mac = self._mac(port.vm, port.interface)
        own = {tap.long for _, tap in self._ports.get(port.vm, {}).values()}
        if (
            port.tap.long not in own or where.partition(" ")[0] in own
        ):  # a guest that bridges or bonds its own cards
            return
        if now - self._replugged.get(key, -REPLUGGED) < REPLUGGED:
            return
        before = self._duplicates.get(key)
        self._duplicates[key] = Duplicate(where, now)
        new = before is None or before.where != where or now - before.at > FORGOTTEN
        if new and now - self._warned.get(key, -WARN_EVERY) >= WARN_EVERY:
            self._warned[key] = now
            text = f"MAC {mac} of interface {port.interface} was also seen at {where}"
            log.warning("%s: %s: %s", port.vm, text, _remedy(port.vm, port.interface))
            self.report(port.vm, text)


def _remedy(vm: str, index: int) -> str:
    return f"another machine has it, or the segment has a loop; vmess {vm} mac {index} <address> sets another"
