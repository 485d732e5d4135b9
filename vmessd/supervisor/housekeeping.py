"""What is seen to all the time: that logs stay short, whom the kernel kills, that nothing is left over."""

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
"""Seconds from one look at the logs to the next: how long a flood may exceed the cap."""


class Housekeeping:
    """Looks after the machines of a supervisor; `run` is its task.

    `look` is called every second, too, and `tidy` unless it is still under way.
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
        """VMs and logs of which it was said what is wrong; forgotten when the VM stops."""

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(EVERY)
                self._look()
                if not self._tidying:
                    self._tidying = True
                    group.create_task(self._see_it_tidied())
                for machine in await self._with_long_logs():
                    self._busy.add(machine.vm)
                    group.create_task(self._shorten(machine))

    async def _see_it_tidied(self) -> None:
        try:
            await self._tidy()
        finally:
            self._tidying = False

    async def _with_long_logs(self) -> list[Machine]:
        """Return the VMs whose logs are too long, and are not being shortened already."""
        running = {vm: one for vm, one in self._machines.items() if one.state not in OFF}
        self._complaints = {(vm, name) for vm, name in self._complaints if vm in running or not vm}
        idle = [machine for vm, machine in running.items() if vm not in self._busy]
        try:
            return await self._logs.aside(functools.partial(_with_long_logs, idle)) if idle else []
        except VmessError:  # they do not answer, or no thread is to be had; there may be one next time
            return []
        except Exception:
            if self._is_news("", ""):
                log.exception("unexpected failure of a look at the logs")
            return []

    async def _shorten(self, machine: Machine) -> None:
        """Shorten a VM's logs, in turn with all else that happens to it: its start, its end, its removal."""
        try:
            problems = await machine.change(functools.partial(_shorten, machine))
        except VmessError:  # gone meanwhile; or as above
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
        """Tell whether nothing was said of this log yet, and note that now it is."""
        news = (vm, name) not in self._complaints
        self._complaints.add((vm, name))
        return news


def _with_long_logs(machines: Sequence[Machine]) -> list[Machine]:
    return [machine for machine in machines if machine.home.has_long_log()]


def _shorten(machine: Machine) -> dict[str, str]:
    """Shorten the logs that are too long, and return what did not work, by log."""
    problems: dict[str, str] = {}
    for name in vmdir.LOGS:
        complain = functools.partial(problems.__setitem__, name)
        cut = 0
        try:
            cut = machine.home.shorten_log(name, complain)
        except NoSuchVM:  # QEMU goes on without its directory
            return {}
        except VmessError as error:
            complain(error.message)
        if cut and name == vmdir.QEMU_LOG:
            _lost_front(machine, cut)
    return problems


def _lost_front(machine: Machine, cut: int) -> None:
    """Have the record of where this run's words begin follow, if there is a run."""
    with contextlib.suppress(NotRunning):
        launched = machine.live().launched
        launched.log_start = max(0, launched.log_start - cut)
