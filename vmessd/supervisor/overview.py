"""The list of all VMs: a line for each, by one look at their files and one at the links of the kernel.

The files are read in a thread with a short deadline: if a disk does not answer, the list shows what was known,
and the states of the VMs in any case.
"""

import contextlib
import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import OFF
from vmessd.core.models.views import VMOverview
from vmessd.core.models.wires import VMAddress
from vmessd.network.neighbours import Tables, best, of_interface
from vmessd.network.netlink_replies import Link
from vmessd.storage import blocking
from vmessd.supervisor.readings import Plan, Readings, Subject, hardware
from vmessd.vm import launcher
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

PATIENCE = 2.0
"""Seconds that a list waits for the files of the VMs."""


class Overviews:
    """Makes the list."""

    def __init__(
        self, machines: Callable[[], Coroutine[Any, Any, list[Machine]]], host: Host, readings: Readings
    ) -> None:
        self._machines = machines
        self._host = host
        self._readings = readings
        self._addresses: Mapping[str, Sequence[str]] = {}
        self._lane = blocking.Lane("the files of the VMs")
        self._unread: set[str] = set()
        """VMs whose files have not answered in the latest round."""

    async def all(self, macs: Callable[[str], Mapping[int, str]]) -> tuple[list[VMOverview], int]:
        """Return a line for each VM, by name; `macs` gives the MACs of the cards of a running VM.

        The number is of VMs whose lines may show what was known before, because their files are slow.

        Raises:
            Failed: the VM root cannot be read.
        """
        machines = await self._machines()
        cards = {one.vm: macs(one.vm) for one in machines if one.state not in OFF}
        subjects = [subject(one) for one in machines]
        with contextlib.suppress(VmessError):  # the lines show what is known
            await self._lane.do(functools.partial(self._read, subjects, cards), PATIENCE)
        # Before the lines, since the thread may still be reading.
        unread = sum(one.vm in self._unread or self._readings.get(one.vm) is None for one in machines)
        return [self._line(one) for one in machines], unread

    # -- In a thread --

    def _read(self, subjects: Sequence[Subject], cards: Mapping[str, Mapping[int, str]]) -> None:
        """Read the files of VMs that have changed, and find the addresses of those with `cards`."""
        vms = [subject.vm for subject in subjects]
        self._readings.forget_all_but(vms)
        self._unread = set(vms)
        for one in subjects:
            self._readings.read(one)
            self._unread.discard(one.vm)
        self._find_addresses(cards)

    def _find_addresses(self, cards: Mapping[str, Mapping[int, str]]) -> None:
        """Note the addresses of the running VMs, by their interfaces and the MACs of their cards."""
        facts = {vm: reading.facts for vm in cards if (reading := self._readings.get(vm))}
        try:
            nics = self._host.network.nics_of({vm: own.wires for vm, own in facts.items()})
        except VmessError:
            nics = {}
        taps = {vm: [nic for nic in own if nic.link] for vm, own in nics.items()}
        links = [nic.link for own in taps.values() for nic in own if nic.link]
        tables = self._tables(links) if links else None
        found: dict[str, list[str]] = {}
        for vm, own in taps.items():
            seen: list[VMAddress] = []
            for nic in own:
                mac = cards[vm].get(nic.index, launcher.mac(vm, nic.index, {"MACS": facts[vm].macs}))
                if tables is not None and nic.link is not None:
                    seen += of_interface(nic.index, mac, nic.link.index, tables)
            found[vm] = best(seen)
        self._addresses = found

    def _tables(self, taps: Sequence[Link]) -> Tables | None:
        """Return the neighbour and forwarding tables of the host; None if the kernel does not give them."""
        try:
            leases = self._host.leases()
            with self._host.network.kernel() as kernel:
                return Tables(kernel.forwarding(), kernel.neighbours(), {}, kernel.spoken(taps), leases)
        except VmessError:
            return None

    # -- In the event loop --

    def _line(self, machine: Machine) -> VMOverview:
        status, record = machine.status(), machine.record()
        reading = self._readings.get(machine.vm)
        facts, plan = reading or (None, None)
        if plan is None or plan.pid != status.pid:  # the files do not answer, or it has started meanwhile
            plan = Plan(None, status.pid, *hardware(record.argv if record else ()))
        return VMOverview(
            name=status.name,
            state=status.state,
            pid=status.pid,
            uptime=status.uptime,
            runstate=status.runstate,
            cpus=plan.cpus,
            memory=plan.memory,
            disk=facts.disk if facts else None,
            addresses=[] if machine.state in OFF else list(self._addresses.get(machine.vm, ())),
            locked=facts.locked if facts else None,
            autostart=facts.autostart if facts else None,
            pending=plan.pending,
            problem=status.problem or (reading.problem if reading else None),
            owner=(facts.owner or None) if facts else None,
        )


def subject(machine: Machine) -> Subject:
    """Return what a thread needs of a VM to read its files."""
    return Subject(machine.vm, machine.home, machine.record())
