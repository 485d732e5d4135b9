"""Periodic work: shorten logs, look for OOM kills, delete the leftovers of VMs."""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from vmessd.core.errors import NoSuchVM, NotRunning, VmessError
from vmessd.core.lifecycle import OFF
from vmessd.storage import vmdir
from vmessd.storage.blocking import Lane
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks at the logs: a flood of output may exceed their size limit for this long."""


class Housekeeping:
    """The periodic work for the machines of a supervisor; `run` is its task.

    `look` is called every second, and `tidy`, unless it is still running.
    """

    def __init__(
        self, machines: Mapping[str, Machine], look: Callable[[], None], tidy: Callable[[], Awaitable[None]]
    ) -> None:
        self._machines = machines
        self._look = look
        self._tidy = tidy
        self._tidying = False
        self._logs = Lane("the logs of VMs")
        self._busy: set[str] = set()
        self._complaints: set[tuple[str, str]] = set()
        """The VMs and logs whose problem was logged; a VM is removed when it stops."""

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(EVERY)
                self._look()
                if not self._tidying:
                    self._tidying = True
                    group.create_task(self._run_tidy())
                for machine in await self._with_long_logs():
                    self._busy.add(machine.vm)
                    group.create_task(self._shorten(machine))

    async def _run_tidy(self) -> None:
        try:
            await self._tidy()
        finally:
            self._tidying = False

    async def _with_long_logs(self) -> list[Machine]:
        """Return the VMs whose logs are too long and not being shortened."""
        running = {vm: one for vm, one in self._machines.items() if one.state not in OFF}
        self._complaints = {(vm, name) for vm, name in self._complaints if vm in running or not vm}
        idle = [machine for vm, machine in running.items() if vm not in self._busy]
        try:
            return await self._logs.aside(functools.partial(_with_long_logs, idle)) if idle else []
        except VmessError:  # the files do not answer, or there is no thread; tried again next time
            return []
        except Exception:
            if self._is_news("", ""):
                log.exception("unexpected failure while looking at the logs")
            return []

    async def _shorten(self, machine: Machine) -> None:
        """Shorten the logs of a VM, in order with its start, end and removal."""
        try:
            problems = await machine.change(functools.partial(_shorten, machine))
        except VmessError:  # the VM is gone, or as above
            return
        except Exception:
            if self._is_news(machine.vm, ""):
                log.exception("%s: unexpected failure", machine.vm)
            return
        finally:
            self._busy.discard(machine.vm)
        for name, problem in problems.items():
            if self._is_news(machine.vm, name):
                log.warning("%s: %s", machine.vm, problem)

    def _is_news(self, vm: str, name: str) -> bool:
        """Tell whether no problem of this log was logged yet, and note that one is now."""
        news = (vm, name) not in self._complaints
        self._complaints.add((vm, name))
        return news


def _with_long_logs(machines: Sequence[Machine]) -> list[Machine]:
    return [machine for machine in machines if machine.home.has_long_log()]


def _shorten(machine: Machine) -> dict[str, str]:
    """Shorten the logs that are too long, and return the problems by log."""
    problems: dict[str, str] = {}
    for name in vmdir.LOGS:
        complain = functools.partial(problems.__setitem__, name)
        cut = 0
        try:
            cut = machine.home.shorten_log(name, complain)
        except NoSuchVM:  # QEMU runs without its directory
            return {}
        except VmessError as error:
            complain(error.message)
        if cut and name == vmdir.QEMU_LOG:
            _lost_front(machine, cut)
    return problems


def _lost_front(machine: Machine, cut: int) -> None:
    """Adapt the offset at which the present run begins, if there is one."""
    with contextlib.suppress(NotRunning):
        launched = machine.live().launched
        launched.log_start = max(0, launched.log_start - cut)
