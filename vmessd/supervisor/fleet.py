"""Boot and shutdown of all VMs, in order. Both continue if the caller leaves."""

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vmessd.core import names, ownership, quantities, refusals, settings, shutdown_time
from vmessd.core.contract import METHODS
from vmessd.core.errors import Failed, InvalidValue, TimedOut, VmessError, counted
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.progress import FleetProgress, FleetStep, StopProgress
from vmessd.core.ownership import Owner
from vmessd.core.settings import Autostart
from vmessd.storage import blocking, owner
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

Tell = Callable[[FleetProgress], None]

ROUNDS = 3
"""How often a shutdown looks for VMs that were started during it."""
READ_TIME = 3.0
"""Seconds that reading the order and the grace period of a VM may take in a shutdown."""


def waves(orders: Mapping[str, int]) -> list[list[str]]:
    """Return the VMs in the order in which they start; the VMs of one list start together."""
    return [
        sorted((vm for vm, order in orders.items() if order == wave), key=names.natural)
        for wave in sorted(set(orders.values()))
    ]


def summary(machines: Iterable[Machine]) -> str:
    """Return the state of all VMs in one line: `5 VMs, 3 running; waiting for r1 (power button, 12 s)`."""
    states = {machine.vm: machine.state for machine in machines}
    running = sum(state not in OFF for state in states.values())
    text = f"{counted(len(states), 'VM')}, {running} running"
    stops = [(machine.vm, stop) for machine in machines if (stop := machine.stopping()) is not None]
    going = [f"{vm} ({stop.rung}, {stop.elapsed:.0f} s)" for vm, stop in stops]
    return f"{text}; waiting for {', '.join(going)}" if going else text


class Fleet:
    """The boot and shutdown of all VMs of a supervisor."""

    def __init__(self, supervisor: Supervisor, host: Host) -> None:
        self._supervisor = supervisor
        self._host = host
        self._shutdowns: set[_Shutdown] = set()
        """The shutdowns whose budget has begun."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._boot_tasks: set[asyncio.Task[None]] = set()
        self._shutdown_tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Cancel what is in progress."""
        for task in self._tasks:
            task.cancel()

    def boot(self, uid: int | None, at_once: int = quantities.AT_ONCE_MAX) -> AsyncIterator[FleetProgress]:
        """Start the VMs that start with the host; yield each step, the last one is done.

        At most `at_once` VMs start at any moment.

        Raises:
            Failed: a shutdown ended the boot, or is in progress.
        """
        return self._told(lambda tell: self._boot(uid, tell, at_once), self._boot_tasks)

    def shutdown(
        self, uid: int | None, within: float | None = None, actor: str | None = None
    ) -> AsyncIterator[FleetProgress]:
        """Stop all VMs, gracefully and in reverse order; yield each step, the last one is done.

        `within` is the time limit for all VMs, in seconds; None for the setting of the daemon. `actor` is the
        owner of VMs for whom it is done, empty for people: VMs of others are left alone. None is for the host
        itself, which goes down whosever they are.

        Raises:
            InvalidValue: `within` is out of bounds.
        """
        if within is not None and not shutdown_time.SHORTEST <= within <= shutdown_time.LONGEST:
            bounds = f"from {shutdown_time.SHORTEST} to {shutdown_time.LONGEST}"
            raise InvalidValue(f"the time limit {within:g} is not a number of seconds {bounds}")
        return self._told(lambda tell: self._shutdown(uid, within, actor, tell), self._shutdown_tasks)

    def left(self) -> float | None:
        """Return the seconds that are left of a shutdown; None if none is in progress."""
        return max((shutdown.left() for shutdown in self._shutdowns), default=None)

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
            raise Failed("not all VMs were started: a shutdown ended the boot", hint="vmess list")
        await task
        yield _step("", FleetStep.off, done=True)

    # -- Up --

    async def _boot(self, uid: int | None, tell: Tell, at_once: int) -> None:
        if self._shutdown_tasks:
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
                log.warning("%s: did not start with the host: %s", vm, error.message)
                tell(_failure(vm, error))

    # -- Down --

    async def _shutdown(self, uid: int | None, within: float | None, actor: str | None, tell: Tell) -> None:
        boots = list(self._boot_tasks)
        for task in boots:
            task.cancel()
        await asyncio.gather(*boots, return_exceptions=True)
        shutdown = _Shutdown(uid, actor, tell)
        try:
            for _ in range(ROUNDS):
                machines = await self._everyone()
                left = [one for one in machines if one.state is not State.stopped]
                plans = await _plans([one for one in left if one.vm not in shutdown.late])
                going = shutdown.allowed(left, plans)
                if not going:
                    break
                if shutdown not in self._shutdowns:
                    graces = [plans[one.vm].grace for one in going]
                    shutdown.begin(within or self._host.shutdown_time or shutdown_time.default(graces))
                    self._shutdowns.add(shutdown)
                shutdown.failed.clear()
                await shutdown.stop_all(going, plans)
                if len(shutdown.failed) == len(going):  # no VM has ended that could have blocked another
                    break
            await shutdown.finish()
            shutdown.tell_failures()
            await self._tell_strays(tell)
        finally:
            self._shutdowns.discard(shutdown)
            shutdown.leave()

    async def _tell_strays(self, tell: Tell) -> None:
        """Report the QEMUs of this root that run without belonging to a known VM."""
        try:
            strays = await asyncio.wait_for(self._supervisor.strays(), READ_TIME)
        except (TimeoutError, VmessError, RuntimeError) as error:
            log.warning("cannot tell whether a QEMU is left: %s", str(error) or "it takes too long")
            return
        for one in strays:
            tell(_failure(one.vm, refusals.stray(one.vm, one.pid)))

    async def _everyone(self) -> list[Machine]:
        """Return all VMs; only the known ones if the VM root does not answer."""
        with contextlib.suppress(TimeoutError, VmessError, RuntimeError):
            return await asyncio.wait_for(self._supervisor.everyone(), READ_TIME)
        return self._supervisor.known()


class _Plan(NamedTuple):
    """The order and the grace period of a VM in a shutdown, and who else may decide about it."""

    order: int = settings.ORDER_DEFAULT
    grace: float = float(settings.GRACE_DEFAULT)
    owner: Owner | None = None


class _Shutdown:
    """A shutdown of all VMs within a budget of time."""

    def __init__(self, uid: int | None, actor: str | None, tell: Tell) -> None:
        self._uid = uid
        self._actor = actor
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._whole = 0.0
        self._deadline = 0.0
        self.failed: dict[str, VmessError] = {}
        """The VMs that could not be stopped at the last attempt."""
        self.late: dict[str, asyncio.Task[None]] = {}
        """The VMs that were not off in time. They do not delay others, and are waited for at the end."""
        self._spared: set[str] = set()
        """The VMs that are left to their owners, which was said."""

    def begin(self, whole: float) -> None:
        """Begin the budget: all VMs are to be off in `whole` seconds from now."""
        self._whole = whole
        self._deadline = self._loop.time() + whole

    def left(self) -> float:
        """Return the remaining seconds of the budget, negative if it is exceeded."""
        return self._deadline - self._loop.time()

    def allowed(self, machines: Sequence[Machine], plans: Mapping[str, _Plan]) -> list[Machine]:
        """Return those of the planned VMs that may be stopped; say once which are left to their owners."""
        found = []
        for one in machines:
            if (plan := plans.get(one.vm)) is None:
                continue
            if plan.owner is None or self._actor in (None, plan.owner.kind):
                found.append(one)
            elif one.vm not in self._spared:
                self._spared.add(one.vm)
                self._say(_failure(one.vm, ownership.refused(one.vm, plan.owner, METHODS["Stop"].owned)))
        return found

    async def stop_all(self, machines: Sequence[Machine], plans: Mapping[str, _Plan]) -> None:
        """Stop VMs, higher orders first; return when they are off, failed or late."""
        left = [
            [one for one in machines if one.vm in wave]
            for wave in reversed(waves({vm: plan.order for vm, plan in plans.items()}))
        ]
        while left:
            graces = [max(plans[one.vm].grace for one in wave) for wave in left]
            grace, together = shutdown_time.allot(graces, self.left() - shutdown_time.FORCE_TIME)
            if together:
                log.warning("stopping %d orders of VMs together: there is no time for each", len(left))
                wave, left = [one for wave in left for one in wave], []
            else:
                wave, *left = left
            stops = {one.vm: asyncio.create_task(self._stop(one, plans[one.vm], grace)) for one in wave}
            self.late |= stops
            await asyncio.wait(stops.values(), timeout=grace + shutdown_time.FORCE_TIME)
            self.late = {vm: task for vm, task in self.late.items() if not task.done() or task.exception()}

    async def finish(self) -> None:
        """Wait for late VMs until the budget is used up, and report those that are not off then."""
        if self.late:
            await asyncio.wait(self.late.values(), timeout=max(shutdown_time.FORCE_TIME, self.left()))
        for vm, task in self.late.items():
            if task.done():
                task.result()
            else:
                words = f"VM {vm} is not off, even after SIGKILL; the shutdown does not wait for it any longer"
                self._say(_failure(vm, TimedOut(words, hint=f"vmess {vm} status")))

    def leave(self) -> None:
        """Stop following the late VMs; their stops continue."""
        for task in self.late.values():
            task.cancel()

    async def _stop(self, machine: Machine, plan: _Plan, within: float) -> None:
        cut = ""
        if plan.grace > within:
            cut = (
                f"grace period cut from {plan.grace:.0f} s to {within:.0f} s: all VMs have {self._whole:.0f} s"
            )
            log.warning("%s: %s", machine.vm, cut)
        try:
            async for progress in machine.stop(self._uid, force=False, within=within):
                self._say(_stop_step(machine.vm, progress, cut))
                cut = ""
        except VmessError as error:
            if machine.state is not State.stopped:  # otherwise it ended by itself just before
                self.failed[machine.vm] = error

    def tell_failures(self) -> None:
        """Report the VMs that could not be stopped. Earlier attempts are not reported."""
        for vm, error in self.failed.items():
            self._say(_failure(vm, error))

    def _say(self, step: FleetProgress) -> None:
        self._tell(dataclasses.replace(step, left=max(0.0, self.left())))


async def _plans(machines: Sequence[Machine]) -> dict[str, _Plan]:
    """Return the plans of VMs by name; the default for a VM whose files do not answer."""
    reads = {one.vm: asyncio.create_task(_plan(one)) for one in machines}
    if not reads:
        return {}
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
    with contextlib.suppress(VmessError):
        found = await machine.files.aside(lambda: owner.read(machine.find_home()), READ_TIME)
        plan = plan._replace(owner=found)
    return plan


async def _autostart(machine: Machine, patience: float = blocking.LOOK) -> Autostart | None:
    """Return the AUTOSTART setting of a VM, None if it has none or an owner; raises VmessError."""
    value: Autostart | None = await machine.files.aside(functools.partial(_read_autostart, machine), patience)
    return value


def _read_autostart(machine: Machine) -> Autostart | None:
    value: Autostart | None = _read(machine, settings.AUTOSTART)
    if value is not None and (decides := owner.decides(machine.find_home())):
        log.warning("%s: %s", machine.vm, ownership.idle(decides, settings.AUTOSTART))
        return None
    return value


def _read(machine: Machine, file: str) -> Any:
    """Return the value of a setting, from the present location of the files; blocks. Raises as read_setting."""
    return machine.find_home().read_setting(settings.BY_FILE[file])


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
