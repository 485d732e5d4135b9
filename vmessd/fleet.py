"""All VMs at once: the order in which they come up with the host and go down with it.

What was begun goes on if whoever asked leaves.
"""

import asyncio
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

from vmessd import refusals, settings, threads
from vmessd.errors import Failed, VmessError
from vmessd.lifecycle import OFF, State
from vmessd.machine import Machine
from vmessd.report import FleetProgress, StopProgress
from vmessd.settings import Autostart
from vmessd.supervisor import Supervisor

log = logging.getLogger(__name__)

Tell = Callable[[FleetProgress], None]

ORDER_TIME = 2.0
"""Seconds that reading a VM's order may take where it has to go down all the same."""
ROUNDS = 3
"""How often a shutdown looks for VMs that were started while it was under way."""


def waves(orders: Mapping[str, int]) -> list[list[str]]:
    """Return VMs in the order in which they come up; those of one list come up together."""
    return [
        sorted(vm for vm, order in orders.items() if order == wave) for wave in sorted(set(orders.values()))
    ]


def summary(machines: Iterable[Machine]) -> str:
    """Return how all VMs are in one line: `5 VMs, 3 running; waiting for r1 (power button, 12 s)`."""
    states = {machine.vm: machine.state for machine in machines}
    running = sum(state not in OFF for state in states.values())
    text = f"{len(states)} VM{'' if len(states) == 1 else 's'}, {running} running"
    stops = [(machine.vm, stop) for machine in machines if (stop := machine.stopping()) is not None]
    going = [f"{vm} ({stop.rung}, {stop.elapsed:.0f} s)" for vm, stop in stops]
    return f"{text}; waiting for {', '.join(going)}" if going else text


class Fleet:
    """The VMs of a supervisor, brought up and down in order."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._tasks: set[asyncio.Task[None]] = set()
        self._boots: set[asyncio.Task[None]] = set()
        """Those of them that bring VMs up."""
        self._shutdowns: set[asyncio.Task[None]] = set()
        """Those that bring them down."""

    def close(self) -> None:
        """Let what is under way come to no more."""
        for task in self._tasks:
            task.cancel()

    def boot(self, uid: int | None) -> AsyncIterator[FleetProgress]:
        """Start the VMs that are to start with the host; yield each step, at last a done one.

        Raises:
            Failed: a shutdown put an end to it, or is under way.
        """
        return self._told(lambda tell: self._boot(uid, tell), self._boots)

    def shutdown(self, uid: int | None) -> AsyncIterator[FleetProgress]:
        """Stop all VMs, gracefully and in reverse order; yield each step, at last a done one."""
        return self._told(lambda tell: self._shutdown(uid, tell), self._shutdowns)

    async def _told(
        self, work: Callable[[Tell], Coroutine[Any, Any, None]], kind: set[asyncio.Task[None]]
    ) -> AsyncIterator[FleetProgress]:
        news: asyncio.Queue[FleetProgress | None] = asyncio.Queue()
        task = asyncio.create_task(work(news.put_nowait))
        for tasks in (self._tasks, kind):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        task.add_done_callback(lambda _task: news.put_nowait(None))
        while (step := await news.get()) is not None:
            yield step
        if task.cancelled():
            raise Failed("not all VMs came up: they were told to go down again", hint="vmess list")
        await task
        yield _step("", "off", done=True)

    # -- Up --

    async def _boot(self, uid: int | None, tell: Tell) -> None:
        if self._shutdowns:
            raise Failed("all VMs are being stopped", hint="vmess boot, when that is done")
        wanted = {}
        for machine in await self._supervisor.everyone():
            try:
                autostart = await _autostart(machine)
            except VmessError as error:
                tell(_failure(machine.vm, error))
                continue
            if autostart is not None and machine.state in OFF:
                wanted[machine.vm] = autostart
        orders = waves({vm: autostart.order for vm, autostart in wanted.items()})
        for number, wave in enumerate(orders, 1):
            await asyncio.gather(*(self._start(vm, uid, tell) for vm in wave))
            if number < len(orders):
                await asyncio.sleep(max(wanted[vm].delay for vm in wave))

    async def _start(self, vm: str, uid: int | None, tell: Tell) -> None:
        tell(_step(vm, "starting"))
        try:
            machine = await self._supervisor.machine(vm)
            async for progress in machine.start(uid):
                if progress.done:
                    tell(_step(vm, "running", pid=progress.pid))
        except VmessError as error:
            log.warning("%s: it was to start with the host: %s", vm, error.message)
            tell(_failure(vm, error))

    # -- Down --

    async def _shutdown(self, uid: int | None, tell: Tell) -> None:
        boots = list(self._boots)
        for task in boots:
            task.cancel()
        await asyncio.gather(*boots, return_exceptions=True)
        failed: dict[str, VmessError] = {}
        for _ in range(ROUNDS):
            machines = await self._everyone()
            going = [machine for machine in machines if machine.state is not State.stopped]
            failed = {}
            found = await asyncio.gather(*map(_order, going))
            orders = {machine.vm: order for machine, order in zip(going, found, strict=True)}
            for wave in reversed(waves(orders)):
                await asyncio.gather(*(self._stop(m, uid, tell, failed) for m in going if m.vm in wave))
            if len(failed) == len(going):  # what one VM held may be free when another has ended
                break
        for vm, error in failed.items():
            tell(_failure(vm, error))
        await self._tell_strays(tell)

    async def _everyone(self) -> list[Machine]:
        """Return all VMs; where the VM root cannot be read, those that were met so far."""
        try:
            return await self._supervisor.everyone()
        except VmessError as error:
            log.warning("%s; the VMs that are known are stopped", error.message)
            return self._supervisor.known()

    async def _stop(self, machine: Machine, uid: int | None, tell: Tell, failed: dict[str, VmessError]) -> None:
        try:
            async for progress in machine.stop(uid, force=False):
                tell(_stop_step(machine.vm, progress))
        except VmessError as error:
            if machine.state is not State.stopped:  # else it ended by itself, just before it was asked to
                failed[machine.vm] = error

    async def _tell_strays(self, tell: Tell) -> None:
        """Tell of QEMUs of this root that are left and no VM has: the last word is the host's."""
        try:
            strays = await self._supervisor.strays()
        except VmessError as error:
            log.warning("whether any QEMU is left cannot be told: %s", error.message)
            return
        for one in strays:
            tell(_failure(one.vm, refusals.stray(one.vm, one.pid)))


async def _autostart(machine: Machine, patience: float = threads.LOOK) -> Autostart | None:
    """Return how a VM comes up with the host, None if it does not; raises VmessError."""
    file = settings.BY_FILE["AUTOSTART"]
    read = functools.partial(machine.home.read_setting, file)
    value: Autostart | None = await machine.files.aside(read, patience)
    return value


async def _order(machine: Machine) -> int:
    """Return the order in which a VM goes down, also one that nobody ordered to come up."""
    try:
        autostart = await _autostart(machine, ORDER_TIME)
    except VmessError:
        autostart = None
    return autostart.order if autostart else settings.ORDER_DEFAULT


def _step(vm: str, step: str, *, done: bool = False, pid: int | None = None) -> FleetProgress:
    return FleetProgress(done, vm, step, pid, None, 0.0, forced=False, text=None, status=0)


def _failure(vm: str, error: VmessError) -> FleetProgress:
    return dataclasses.replace(_step(vm, "failed"), text=error.message, status=error.status)


def _stop_step(vm: str, progress: StopProgress) -> FleetProgress:
    return FleetProgress(
        done=False,
        vm=vm,
        step="off" if progress.done else "stopping",
        pid=progress.pid,
        rung=progress.rung,
        grace=progress.grace,
        forced=progress.forced,
        text=progress.text or (progress.note or "").removeprefix(f"{vm}: ") or None,
        status=0,
    )
