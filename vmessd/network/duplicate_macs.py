"""MACs of VMs that run, heard where they are not: somebody else has the same, and gets half of what is sent.

A MAC follows from a VM's name, so two hosts that share a segment, as over a VXLAN, may have it twice. A bridge
that hears a MAC at another port than before moves it there, and the kernel tells. That is listened to while VMs
with TAPs run, and only for their MACs. Guests decide how often it is told: so much is read at once, and it is
looked into once a second.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vmessd.core.errors import VmessError, printable
from vmessd.network.learned import Learned
from vmessd.network.links import Network
from vmessd.storage import blocking

log = logging.getLogger(__name__)

READ_MOST = 128
"""Messages that are read at once; with the pause after them, some 500 a second, whatever guests send."""
READ_PAUSE = 0.25
LOOK_AFTER = 0.2
"""Seconds from a message to the look at the links it is about."""
LOOK_EVERY = 1.0
PLACES_MAX = 8
"""Places where one MAC was learned that are looked at at once."""
REPLUGGED = 2.0
"""Seconds after a change of wires in which the VM's own frames may still be on their way."""
FORGOTTEN = 300.0
"""Seconds after which a duplicate that is not heard any more is forgotten, as bridges do (IEEE 802.1D)."""
COMPLAIN_EVERY = 60.0
"""Seconds between two lines of the log about one interface."""

_Told = Callable[[str, str], None]


class Port(NamedTuple):
    """Where a MAC belongs."""

    vm: str
    interface: int
    tap: str


class Heard(NamedTuple):
    """A MAC that was heard elsewhere."""

    where: str
    """The port of the bridge, and the bridge."""
    at: float
    """By CLOCK_MONOTONIC."""


class Duplicates:
    """The MACs of all VMs that run, and which of them were heard elsewhere."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.told: _Told = lambda _vm, _text: None
        """Called with a VM and what is new about one of its MACs."""
        self._ports: dict[str, dict[int, tuple[str, str]]] = {}
        self._by_mac: dict[str, list[Port]] = {}
        self._replugged: dict[tuple[str, int], float] = {}
        self._heard: dict[tuple[str, int], Heard] = {}
        self._complained: dict[tuple[str, int], float] = {}
        self._learned: Learned | None = None
        self._suspects: dict[str, set[tuple[int, int]]] = {}
        self._look: asyncio.Task[None] | None = None
        self._closed = False

    # -- What is asked and told --

    def watch(self, vm: str, cards: Mapping[int, tuple[str, str]]) -> None:
        """Listen for the MACs of a VM: by interface, MAC and TAP; no others of it. None ends it."""
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
        """Note that an interface has been plugged elsewhere just now."""
        self._forget(vm, index)
        self._replugged[vm, index] = time.monotonic()

    def remark(self, vm: str, index: int) -> str | None:
        """Return what there is to say of an interface's MAC, as of now; None if nothing."""
        heard = self._heard.get((vm, index))
        mac = self._ports.get(vm, {}).get(index, ("", ""))[0]
        if heard is None or not mac or time.monotonic() - heard.at > FORGOTTEN:
            return None
        ago = f"{time.monotonic() - heard.at:.0f} s ago"
        return f"MAC {mac} of interface {index} was also heard at {heard.where}, {ago}: {_cure(vm, index)}"

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        self._ports, self._by_mac = {}, {}
        self._listen()
        if self._look is not None:
            self._look.cancel()

    def _forget(self, vm: str, index: int) -> None:
        for noted in (self._heard, self._complained, self._replugged):
            noted.pop((vm, index), None)

    # -- What the kernel tells --

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self._by_mac and self._learned is None:
                self._learned = Learned()
                loop.add_reader(self._learned.fileno(), self._read)
            if self._learned is not None and self._by_mac:
                self._learned.listen(self._by_mac)
        except OSError as error:
            log.warning("nobody tells of MACs that are there twice: %s", error)
        if self._learned is not None and not self._by_mac:
            loop.remove_reader(self._learned.fileno())
            self._learned.close()
            self._learned = None

    def _read(self) -> None:
        if self._learned is None:
            return
        loop = asyncio.get_running_loop()
        learned = self._learned
        entries, whole = learned.read(READ_MOST)
        for entry in entries:
            places = self._suspects.setdefault(entry.mac, set()) if entry.mac in self._by_mac else set()
            if entry.master and len(places) < PLACES_MAX:
                places.add((entry.index, entry.master))
        if self._suspects and (self._look is None or self._look.done()):
            self._look = loop.create_task(self._look_soon())
        if not whole:
            loop.remove_reader(learned.fileno())
            loop.call_later(READ_PAUSE, self._read_on, learned)

    def _read_on(self, learned: Learned) -> None:
        if learned is self._learned:
            asyncio.get_running_loop().add_reader(learned.fileno(), self._read)

    async def _look_soon(self) -> None:
        while self._suspects:
            await asyncio.sleep(LOOK_AFTER)
            suspects, self._suspects = self._suspects, {}
            heard = [
                (port, place)
                for mac, places in suspects.items()
                for port in self._by_mac.get(mac, ())
                for place in places
            ]
            with contextlib.suppress(VmessError):
                for port, where in await blocking.call(self._elsewhere, heard):
                    self._tell(port, where)
            await asyncio.sleep(LOOK_EVERY)

    def _elsewhere(self, heard: Sequence[tuple[Port, tuple[int, int]]]) -> list[tuple[Port, str]]:
        """Return which MACs were learned in their TAP's own bridge, but at another port; and where."""
        found = []
        with self._network.kernel() as kernel:
            taps = kernel.named({port.tap for port, _ in heard})
            for port, (index, master) in heard:
                tap = taps.get(port.tap)
                if tap is None or tap.master != master or tap.index == index:
                    continue
                other, bridge = kernel.link_at(index), kernel.link_at(master)
                if other and bridge:
                    found.append((port, f"{printable(other.name)} in bridge {printable(bridge.name)}"))
        return found

    def _tell(self, port: Port, where: str) -> None:
        key, now = (port.vm, port.interface), time.monotonic()
        mac, tap = self._ports.get(port.vm, {}).get(port.interface, ("", ""))
        own = {tap for _, tap in self._ports.get(port.vm, {}).values()}
        if tap != port.tap or where.partition(" ")[0] in own:  # a guest that bridges or bonds its own cards
            return
        if now - self._replugged.get(key, -REPLUGGED) < REPLUGGED:
            return
        before = self._heard.get(key)
        self._heard[key] = Heard(where, now)
        new = before is None or before.where != where or now - before.at > FORGOTTEN
        if new and now - self._complained.get(key, -COMPLAIN_EVERY) >= COMPLAIN_EVERY:
            self._complained[key] = now
            text = f"MAC {mac} of interface {port.interface} was also heard at {where}"
            log.warning("%s: %s: %s", port.vm, text, _cure(port.vm, port.interface))
            self.told(port.vm, text)


def _cure(vm: str, index: int) -> str:
    return f"another machine has it, or the segment is a loop; vmess {vm} mac {index} <address> sets another"
