"""The status of a VM with what its files say, and why it is in its state."""

import contextlib
import dataclasses
import functools
from collections.abc import Awaitable, Callable

from vmessd.core.errors import VmessError
from vmessd.core.models.vms import Explanation, VMStatus
from vmessd.supervisor.overview import subject
from vmessd.supervisor.readings import Readings
from vmessd.vm import why
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

FILES_TIME = 1.0  # seconds that a status waits for the files of the VM


class Statuses:
    """Combines machines with the readings of their files; `find` returns the machine of a name."""

    def __init__(self, find: Callable[[str], Awaitable[Machine]], host: Host, readings: Readings) -> None:
        self._find = find
        self._host = host
        self._readings = readings

    async def status(self, name: str) -> VMStatus:
        """Return the status of a VM, after a look at its files; raises as Supervisor.machine."""
        machine = await self._find(name)
        await self.look(machine)
        return self.seen(machine)

    async def look(self, machine: Machine) -> None:
        """Read the files of a VM again if they have changed and answer."""
        with contextlib.suppress(VmessError):
            await machine.files.aside(functools.partial(self._readings.read, subject(machine)), FILES_TIME)

    def seen(self, machine: Machine) -> VMStatus:
        """Return the status of a VM and what its files said when they were read last."""
        status, reading = machine.status(), self._readings.get(machine.vm)
        if reading is None:
            return status
        pending = reading.plan.pending and reading.plan.pid == status.pid
        problem = status.problem or reading.problem
        facts = reading.facts
        return dataclasses.replace(
            status, pending=pending, problem=problem, locked=facts.locked, owner=facts.owner or None
        )

    async def explain(self, name: str) -> Explanation:
        """Return why a VM is in its state; raises as Supervisor.machine."""
        machine = await self._find(name)
        await self.look(machine)
        return dataclasses.replace(
            await why.explain(machine, self._host.residence.kind), status=self.seen(machine)
        )
