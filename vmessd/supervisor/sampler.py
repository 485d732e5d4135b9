"""Samples of the load of all VMs, for `top`. Nothing here runs without a watcher.

There is no sampling task. Each watcher asks for a look at all VMs when its interval is over; concurrent
watchers share a look. A look does not wait for a QEMU that does not answer.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, NamedTuple

from vmessd.core import names
from vmessd.core.errors import InvalidValue, NotRunning, VmessError
from vmessd.core.lifecycle import State
from vmessd.core.models.views import Sample, VMStats
from vmessd.core.models.vms import VMStatus
from vmessd.core.refusals import going_away
from vmessd.network.links import Network
from vmessd.qemu import usage
from vmessd.qemu.usage import Flow, Usage
from vmessd.storage import blocking
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

INTERVAL_MIN, INTERVAL_MAX = 0.2, 3600.0
FIRST = 0.5
"""Maximum of seconds until the first sample of a watcher: a rate needs two looks."""
SHARED_FOR = 0.1
"""Seconds during which watchers share a look."""
PATIENCE = 0.1
"""Seconds that a look waits for the answers of the QEMUs."""


class Gauges(NamedTuple):
    """The counters of one VM in a look."""

    status: VMStatus
    usage: Usage | None = None
    drives: Flow | None = None
    links: Flow | None = None


class Look(NamedTuple):
    """All VMs at one moment."""

    at: float
    time: float
    vms: Mapping[str, Gauges]


class Sampler:
    """Looks at all VMs on behalf of watchers."""

    def __init__(self, machines: Callable[[], Coroutine[Any, Any, list[Machine]]], network: Network) -> None:
        self._machines = machines
        self._network = network
        self._watchers = 0
        self._look: asyncio.Task[Look] | None = None
        self._began = -math.inf
        self._drives: dict[str, _Drives] = {}
        self._ending = asyncio.Event()

    async def watch(self, interval: float) -> AsyncIterator[Sample]:
        """Yield a sample every `interval` seconds until the daemon ends; the first one comes sooner.

        Raises:
            InvalidValue: the interval is out of bounds.
            Failed: the daemon ends.
        """
        if not INTERVAL_MIN <= interval <= INTERVAL_MAX:
            raise InvalidValue(
                f"interval {interval:g} is not a number of seconds from {INTERVAL_MIN:g} to {INTERVAL_MAX:g}"
            )
        loop = asyncio.get_running_loop()
        self._watchers += 1
        try:
            before = await self._shared_look()
            due = loop.time() + min(interval, FIRST)
            while not await self._ends_before(due):
                after = await self._shared_look()
                yield sample(before, after)
                before, due = after, max(due + interval, loop.time() + SHARED_FOR)
        finally:
            self._watchers -= 1
            if not self._watchers:
                self._forget()
        raise going_away()

    async def close(self) -> None:
        """End all watches."""
        self._ending.set()
        self._forget()
        await asyncio.sleep(0)

    def _forget(self) -> None:
        for vm in list(self._drives):
            self._drives.pop(vm).leave()
        self._look = None

    async def _ends_before(self, due: float) -> bool:
        """Wait until `due`, and tell whether the daemon ends before that."""
        try:
            async with asyncio.timeout_at(due):
                return await self._ending.wait()
        except TimeoutError:
            return False

    async def _shared_look(self) -> Look:
        """Return a new look, or one that has just begun."""
        now = asyncio.get_running_loop().time()
        if self._look is None or (self._look.done() and now - self._began >= SHARED_FOR):
            self._began = now
            self._look = asyncio.create_task(self._all())
        return await asyncio.shield(self._look)

    async def _all(self) -> Look:
        machines = await self._machines()
        runs = {machine.vm: run for machine in machines if (run := _run(machine)) is not None}
        asked = self._ask(machines, runs)
        loop = asyncio.get_running_loop()
        enough = loop.time() + PATIENCE
        used, carried = await blocking.call(self._kernel, {vm: run.pid for vm, run in runs.items()})
        if asked:
            await asyncio.wait(asked, timeout=max(0.0, enough - loop.time()))
        vms = {}
        for machine in machines:
            vm, run = machine.vm, runs.get(machine.vm)
            vms[vm] = Gauges(machine.status())
            if run is not None and _run(machine) is run and not run.launched.process.has_ended():
                drives = self._drives.get(vm)
                vms[vm] = Gauges(machine.status(), used[vm], drives.flow if drives else None, carried.get(vm))
        return Look(loop.time(), time.time(), vms)

    def _ask(self, machines: list[Machine], runs: Mapping[str, QemuRun]) -> "set[asyncio.Task[None]]":
        """Ask the QEMUs for the counters of their drives; return the tasks to wait for."""
        for vm in [vm for vm, drives in self._drives.items() if runs.get(vm) is not drives.run]:
            self._drives.pop(vm).leave()
        asked = set()
        for machine in machines:
            if machine.vm in runs and machine.state is not State.unresponsive:
                drives = self._drives.setdefault(machine.vm, _Drives(runs[machine.vm]))
                if (task := drives.ask()) is not None:
                    asked.add(task)
        return asked

    def _kernel(self, pids: Mapping[str, int]) -> tuple[dict[str, Usage | None], dict[str, Flow]]:
        """Return the usage of the processes and the counters of the TAPs; blocks."""
        used = {vm: usage.usage(pid) for vm, pid in pids.items()}
        try:
            carried = self._network.traffic() if pids else {}
        except VmessError:
            carried = {}
        at = time.monotonic()
        return used, {vm: Flow(at, counters) for vm, counters in carried.items()}


class _Drives:
    """The counters of the drives of one VM."""

    def __init__(self, run: QemuRun) -> None:
        self.run = run
        self.flow: Flow | None = None
        """The last answer."""
        self._task: asyncio.Task[None] | None = None

    def ask(self) -> "asyncio.Task[None] | None":
        """Ask, unless the last question is still open: questions would pile up for a QEMU that hangs."""
        if self._task is not None and not self._task.done():
            return None
        self._task = asyncio.create_task(self._hear())
        return self._task

    def leave(self) -> None:
        """Cancel the question."""
        if self._task is not None:
            self._task.cancel()

    async def _hear(self) -> None:
        counters = await self.run.transferred(None)
        self.flow = Flow(asyncio.get_running_loop().time(), counters)


def _run(machine: Machine) -> QemuRun | None:
    try:
        return machine.live()
    except NotRunning:
        return None


def sample(before: Look, after: Look) -> Sample:
    """Return the sample between two looks."""
    vms = [_vm(before.vms.get(vm), after.vms[vm]) for vm in sorted(after.vms, key=names.natural)]
    return Sample(after.time, after.at - before.at, vms)


def _vm(before: Gauges | None, after: Gauges) -> VMStats:
    status = after.status
    if before is None or before.status.pid != status.pid:
        before = Gauges(status)  # another QEMU, with other counters
    read, written = usage.rates(before.drives, after.drives)
    received, sent = usage.rates(before.links, after.links)
    return VMStats(
        name=status.name,
        state=status.state,
        pid=status.pid,
        uptime=status.uptime,
        cpu=usage.load(before.usage, after.usage),
        rss=after.usage.rss if after.usage else None,
        threads=after.usage.threads if after.usage else None,
        read=read,
        written=written,
        received=received,
        sent=sent,
    )
