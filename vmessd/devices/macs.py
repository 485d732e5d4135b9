"""The MACs of the network cards of one VM: those noted in MACS, and those that the running QEMU has."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping

from vmessd.core import names, nic_hardware
from vmessd.core.errors import InvalidValue, NoSuchVM, VmessError, quoted
from vmessd.core.lifecycle import OFF
from vmessd.core.names import INTERFACES_MAX
from vmessd.core.settings import BY_FILE
from vmessd.devices.hotplug import Cards
from vmessd.network.nics import Nic
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import launcher
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

MACS = BY_FILE["MACS"]


class Macs:
    """The MACs of one machine, by interface; `lock` is the lock of its network interfaces."""

    def __init__(
        self, machine: Machine, host: Host, cards: Cards, look: Callable[[], list[Nic]], lock: asyncio.Lock
    ) -> None:
        """`look` returns the interfaces; it blocks."""
        self.vm = machine.vm
        self._machine = machine
        self._host = host
        self._cards = cards
        self._look = look
        self._lock = lock

    async def of_taps(self) -> dict[str, str]:
        """Return the MACs of TAPs, by name, for TAPs whose MAC may not follow from the name; raises BadFile."""
        macs: dict[int, str] = {}
        with contextlib.suppress(NoSuchVM):  # it may run without a directory
            macs = await self._machine.files.aside(self.configured)
        return {names.tap(self.vm, index): names.tap_mac(mac) for index, mac in macs.items()}

    async def now_and_later(self, files: VMDirectory | None = None) -> Callable[[int], tuple[str, str]]:
        """Return a function from an interface to its MAC now and its MAC after the next start; raises BadFile.

        `files` as for NetworkInterfaces.nics.
        """
        directory = files or self._machine.home
        noted = await self._machine.files.aside(functools.partial(directory.read_setting, MACS))
        values = {MACS.file: noted or {}}
        now = self.present()

        def macs_of(index: int) -> tuple[str, str]:
            later = launcher.mac(self.vm, index, values)
            return now.get(index, later), later

        return macs_of

    def present(self) -> Mapping[int, str]:
        """Return the MACs of the cards of the running QEMU, as far as they are known."""
        return {} if self._machine.state in OFF else dict(self._cards.macs())

    def configured(self, files: VMDirectory | None = None) -> dict[int, str]:
        """Return the MACs of cards, by MACS and by the running QEMU; blocks. Raises BadFile.

        `files` as for NetworkInterfaces.nics.
        """
        noted: dict[int, str] = (files or self._machine.home).read_setting(MACS) or {}
        return {**noted, **self.present()}

    async def watch(self) -> None:
        """Detect duplicates of the MACs of the present QEMU."""
        with contextlib.suppress(VmessError):
            taps = {nic.index: nic.tap for nic in await self._nics() if nic.link and not nic.leaving}
            ports = {index: (mac, taps[index]) for index, mac in self.present().items() if index in taps}
            self._host.duplicates.watch(self.vm, ports)

    async def _nics(self) -> list[Nic]:
        return await self._machine.files.aside(self._look)

    async def set(self, index: int, address: str | None) -> str | None:
        """Set the MAC of an interface from the next start; None restores the one derived from the VM's name.

        Returns a remark or None. Raises InvalidValue, BadFile, Failed.
        """
        if not 0 <= index < INTERFACES_MAX:
            raise InvalidValue(
                f"{self.vm} cannot have interface {quoted(index)}; the last one is {INTERFACES_MAX - 1}"
            )
        text = None if address is None else nic_hardware.mac(address)
        async with self._lock:
            await self._machine.change(functools.partial(self._note, index, text))
            now, later = (await self.now_and_later())(index)
            nics = [nic.index for nic in await self._nics() if not nic.leaving]
        if index not in nics:
            with_it = ", with this MAC" if text is not None else ""
            return f"{self.vm} has no interface {index} yet; ifadd adds one{with_it}"
        if now != later:
            return f"{self.vm}: interface {index} is {now} until its next start"
        return None

    def _note(self, index: int, text: str | None) -> None:
        noted: dict[int, str] = dict(self._machine.home.read_setting(MACS) or {})
        noted.pop(index, None)
        if text is not None:
            noted[index] = text
        self._check(index, noted)
        self._machine.home.write_setting(MACS, nic_hardware.file_text(noted) or None)

    def _check(self, index: int, noted: Mapping[int, str]) -> None:
        """Raise InvalidValue if another card of the VM, or its bridge, has the MAC; blocks."""
        values = {MACS.file: noted}
        mac = launcher.mac(self.vm, index, values)
        for other in range(INTERFACES_MAX):
            if other != index and launcher.mac(self.vm, other, values) == mac:
                raise InvalidValue(f"MAC {mac} belongs to interface {other} of {self.vm} already")
        bridge = next((nic.wire.bridge for nic in self._look() if nic.index == index), None)
        if bridge is not None and self._host.network.mac_of(bridge) == mac:
            raise InvalidValue(f"MAC {mac} belongs to {bridge}, the bridge of this interface")
