"""All VMs at once: the order in which they come up with the host and go down with it.

What was begun goes on if whoever asked leaves.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vmessd.core import refusals, settings, timetable
from vmessd.core.errors import Failed, InvalidValue, TimedOut, VmessError
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.progress import FleetProgress, FleetStep, StopProgress
from vmessd.core.settings import Autostart
from vmessd.storage import blocking
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

Tell = Callable[[FleetProgress], None]

ROUNDS = 3
"""How often a shutdown looks for VMs that were started while it was under way."""
READ_TIME = 3.0
"""Seconds that the files of VMs have to say in which order and with what grace they go down."""


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

    def __init__(self, supervisor: Supervisor, host: Host) -> None:
        self._supervisor = supervisor
        self._host = host
        self._descents: set[_Descent] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._boots: set[asyncio.Task[None]] = set()
        """Those of them that bring VMs up."""
        self._shutdowns: set[asyncio.Task[None]] = set()
        """Those that bring them down."""

    def close(self) -> None:
        """Let what is under way come to no more."""
        for task in self._tasks:
            task.cancel()

    def boot(self, uid: int | None, at_once: int = settings.AT_ONCE_MAX) -> AsyncIterator[FleetProgress]:
        """Start the VMs that are to start with the host; yield each step, at last a done one.

        At most `at_once` are on their way up at any moment.

        Raises:
            Failed: a shutdown put an end to it, or is under way.
        """
        return self._told(lambda tell: self._boot(uid, tell, at_once), self._boots)

    def shutdown(self, uid: int | None, within: float | None = None) -> AsyncIterator[FleetProgress]:
        """Stop all VMs, gracefully and in reverse order; yield each step, at last a done one.

        `within` is in how many seconds all are to be off; None for what the daemon's settings say.

        Raises:
            InvalidValue: `within` is out of bounds.
        """
        if within is not None and not timetable.SHORTEST <= within <= timetable.LONGEST:
            bounds = f"from {timetable.SHORTEST} to {timetable.LONGEST}"
            raise InvalidValue(f"{within:g} is not a number of seconds {bounds} for all VMs to be off in")
        return self._told(lambda tell: self._shutdown(uid, within, tell), self._shutdowns)

    def left(self) -> float | None:
        """Return the seconds in which all VMs are to be off; None where no shutdown is under way."""
        return max((descent.left() for descent in self._descents), default=None)

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
        yield _step("", FleetStep.off, done=True)

    # -- Up --

    async def _boot(self, uid: int | None, tell: Tell, at_once: int) -> None:
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
        places = asyncio.Semaphore(at_once)
        for number, wave in enumerate(orders, 1):
            await asyncio.gather(*(self._start(vm, uid, tell, places) for vm in wave))
            if number < len(orders):
                await asyncio.sleep(max(wanted[vm].delay for vm in wave))

    async def _start(self, vm: str, uid: int | None, tell: Tell, places: asyncio.Semaphore) -> None:
        async with places:
            tell(_step(vm, FleetStep.starting))
            try:
                machine = await self._supervisor.machine(vm)
                async for progress in machine.start(uid):
                    if progress.done:
                        tell(_step(vm, FleetStep.running, pid=progress.pid))
            except VmessError as error:
                log.warning("%s: it was to start with the host: %s", vm, error.message)
                tell(_failure(vm, error))

    # -- Down --

    async def _shutdown(self, uid: int | None, within: float | None, tell: Tell) -> None:
        boots = list(self._boots)
        for task in boots:
            task.cancel()
        await asyncio.gather(*boots, return_exceptions=True)
        descent = _Descent(uid, tell)
        try:
            for _ in range(ROUNDS):
                machines = await self._everyone()
                going = [
                    one for one in machines if one.state is not State.stopped and one.vm not in descent.late
                ]
                if not going:
                    break
                plans = await _plans(going)
                if descent not in self._descents:
                    graces = [plan.grace for plan in plans.values()]
                    descent.begin(within or self._host.shutdown_time or timetable.whole(graces))
                    self._descents.add(descent)
                descent.failed.clear()
                await descent.go(going, plans)
                if len(descent.failed) == len(going):  # nothing has ended that could have held the others
                    break
            await descent.end()
            descent.tell_failures()
            await self._tell_strays(tell)
        finally:
            self._descents.discard(descent)
            descent.leave()

    async def _tell_strays(self, tell: Tell) -> None:
        """Tell of QEMUs of this root that are left and no VM has: the last word is the host's."""
        try:
            strays = await asyncio.wait_for(self._supervisor.strays(), READ_TIME)
        except (TimeoutError, VmessError, RuntimeError) as error:
            log.warning("whether any QEMU is left cannot be told: %s", str(error) or "it takes too long")
            return
        for one in strays:
            tell(_failure(one.vm, refusals.stray(one.vm, one.pid)))

    async def _everyone(self) -> list[Machine]:
        """Return all VMs, those that are known where the VM root does not answer."""
        with contextlib.suppress(TimeoutError, VmessError, RuntimeError):
            return await asyncio.wait_for(self._supervisor.everyone(), READ_TIME)
        return self._supervisor.known()


class _Plan(NamedTuple):
    """How a VM goes down."""

    order: int = settings.ORDER_DEFAULT
    grace: float = float(settings.GRACE_DEFAULT)


class _Descent:
    """All VMs on their way down, within a budget."""

    def __init__(self, uid: int | None, tell: Tell) -> None:
        self._uid = uid
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._whole = 0.0
        self._deadline = 0.0
        self.failed: dict[str, VmessError] = {}
        """What could not be stopped, the last time it was tried."""
        self.late: dict[str, asyncio.Task[None]] = {}
        """What was not off when it should have been: it is waited for at the end, and holds nobody up."""

    def begin(self, whole: float) -> None:
        """Have all VMs be off in so many seconds from now."""
        self._whole = whole
        self._deadline = self._loop.time() + whole

    def left(self) -> float:
        """Return the seconds that are left of that, less than none where it took longer."""
        return self._deadline - self._loop.time()

    async def go(self, machines: Sequence[Machine], plans: Mapping[str, _Plan]) -> None:
        """Stop VMs, higher orders first; return when those that can be are off."""
        left = [
            [one for one in machines if one.vm in wave]
            for wave in reversed(waves({vm: plan.order for vm, plan in plans.items()}))
        ]
        while left:
            graces = [max(plans[one.vm].grace for one in wave) for wave in left]
            grace, together = timetable.allot(graces, self.left() - timetable.FORCE_TIME)
            if together:
                log.warning("%d orders of VMs go down together: there is no time for each", len(left))
                wave, left = [one for wave in left for one in wave], []
            else:
                wave, *left = left
            stops = {one.vm: asyncio.create_task(self._stop(one, plans[one.vm], grace)) for one in wave}
            self.late |= stops
            await asyncio.wait(stops.values(), timeout=grace + timetable.FORCE_TIME)
            self.late = {vm: task for vm, task in self.late.items() if not task.done() or task.exception()}

    async def end(self) -> None:
        """Wait for what is late until the budget is used up, and say what is not off then."""
        if self.late:
            await asyncio.wait(self.late.values(), timeout=max(timetable.FORCE_TIME, self.left()))
        for vm, task in self.late.items():
            if task.done():
                task.result()
            else:
                words = f"VM {vm} is not off, not even by SIGKILL; it is waited for no longer"
                self._say(_failure(vm, TimedOut(words, hint=f"vmess {vm} status")))

    def leave(self) -> None:
        """Follow nothing any more; what was begun goes on."""
        for task in self.late.values():
            task.cancel()

    async def _stop(self, machine: Machine, plan: _Plan, within: float) -> None:
        cut = ""
        if plan.grace > within:
            cut = (
                f"its grace is cut from {plan.grace:.0f} s to {within:.0f} s: all VMs have {self._whole:.0f} s"
            )
            log.warning("%s: %s", machine.vm, cut)
        try:
            async for progress in machine.stop(self._uid, force=False, within=within):
                self._say(_stop_step(machine.vm, progress, cut))
                cut = ""
        except VmessError as error:
            if machine.state is not State.stopped:  # else it ended by itself, just before it was asked to
                self.failed[machine.vm] = error

    def tell_failures(self) -> None:
        """Say what could not be stopped: what one VM held may have been free when another had ended."""
        for vm, error in self.failed.items():
            self._say(_failure(vm, error))

    def _say(self, step: FleetProgress) -> None:
        self._tell(dataclasses.replace(step, left=max(0.0, self.left())))


async def _plans(machines: Sequence[Machine]) -> dict[str, _Plan]:
    """Return how VMs go down, by name; that of one whose files do not answer is the default."""
    reads = {one.vm: asyncio.create_task(_plan(one)) for one in machines}
    done, slow = await asyncio.wait(reads.values(), timeout=READ_TIME)
    for task in slow:
        task.cancel()
    return {vm: task.result() if task in done else _Plan() for vm, task in reads.items()}


async def _plan(machine: Machine) -> _Plan:
    plan = _Plan()
    with contextlib.suppress(VmessError):
        if (autostart := await _autostart(machine, READ_TIME)) is not None:
            plan = plan._replace(order=autostart.order)
    with contextlib.suppress(VmessError):
        read = functools.partial(_read, machine, "STOP")
        if (grace := await machine.files.aside(read, READ_TIME)) is not None:
            plan = plan._replace(grace=float(grace))
    return plan


async def _autostart(machine: Machine, patience: float = blocking.LOOK) -> Autostart | None:
    """Return how a VM comes up with the host, None if it does not; raises VmessError."""
    read = functools.partial(_read, machine, "AUTOSTART")
    value: Autostart | None = await machine.files.aside(read, patience)
    return value


def _read(machine: Machine, file: str) -> Any:
    """Return the value of a setting, from where the VM's files are now; blocks. Raises as read_setting."""
    return machine.place().read_setting(settings.BY_FILE[file])


def _step(vm: str, step: FleetStep, *, done: bool = False, pid: int | None = None) -> FleetProgress:
    return FleetProgress(done, vm, step, pid, None, 0.0, forced=False, text=None, status=0)


def _failure(vm: str, error: VmessError) -> FleetProgress:
    return dataclasses.replace(_step(vm, FleetStep.failed), text=error.message, status=error.status)


def _stop_step(vm: str, progress: StopProgress, cut: str) -> FleetProgress:
    return FleetProgress(
        done=False,
        vm=vm,
        step=FleetStep.off if progress.done else FleetStep.stopping,
        pid=progress.pid,
        rung=progress.rung,
        grace=progress.grace,
        forced=progress.forced,
        text=progress.text or "; ".join(words for words in (progress.note, cut) if words) or None,
        status=0,
    )
