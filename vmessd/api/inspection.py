"""Queries about VMs: status, details, load, and why they ended."""

import os
from collections.abc import AsyncIterator
from typing import TypedDict

from asyncvarlink import LastResult, varlinkmethod

from vmessd import __version__
from vmessd.api.caller import Caller
from vmessd.core import refusals
from vmessd.core.lifecycle import OFF
from vmessd.core.models.daemon import DaemonStatus
from vmessd.core.models.views import Aspect, Sample, VMOverview, VMView
from vmessd.core.models.vms import Explanation, NotVMs, VMInfo, VMStatus
from vmessd.supervisor.views import views


class Listed(TypedDict):
    """The reply of List."""

    vms: list[VMStatus]
    others: NotVMs | None


class OverviewReply(TypedDict):
    """The reply of Overview."""

    vms: list[VMOverview]
    others: NotVMs | None
    unread: int | None


class Inspection(Caller):
    """Methods that query VMs."""

    @varlinkmethod
    async def List(self) -> Listed:
        """Return the status of all VMs of the daemon's root, sorted by name.

        `others` are directories there that are not VMs; null if there are none.
        """
        return Listed(vms=await self._supervisor.statuses(), others=self._supervisor.not_vms())

    @varlinkmethod
    async def Overview(self) -> OverviewReply:
        """Return what a list shows of all VMs of the daemon's root, sorted by name; `others` as in List.

        `unread` is the number of VMs whose files have not answered within 2 s, so that what was
        known before is returned; null if there are none.
        """
        vms, unread = await self._supervisor.overview()
        return OverviewReply(vms=vms, others=self._supervisor.not_vms(), unread=unread or None)

    @varlinkmethod(return_parameter="status")
    async def Status(self, *, vm: str) -> VMStatus:
        """Return the status of a VM."""
        return await self._supervisor.condition.status(vm)

    @varlinkmethod(return_parameter="info")
    async def Info(self, *, vm: str) -> VMInfo:
        """Return all details of a VM, such as QEMU's command line."""
        return await self._details.info(vm)

    @varlinkmethod(return_parameter="view", delay_generator=False)
    async def Look(self, *, vms: list[str], aspect: Aspect) -> AsyncIterator[VMView]:
        """Return for several VMs what Status, Info, Nics, Addresses or Why return for one. Requires `more`.

        One reply for each VM in the given order; an empty list means all VMs, sorted by name. An error for one
        VM takes the place of its reply.
        """
        wanted = vms or [machine.vm for machine in await self._supervisor.everyone()]
        if not wanted:
            raise refusals.no_vms()
        left = len(wanted)
        async for view in views(self._supervisor, wanted, aspect, self._begin):
            left -= 1
            if not left:
                raise LastResult(view)
            yield view

    @varlinkmethod(return_parameter="daemon")
    async def Daemon(self) -> DaemonStatus:
        """Return where the daemon has its files, when it ends by itself, and who runs it."""
        residence, machines = self._supervisor.host.residence, self._supervisor.known()
        return DaemonStatus(
            __version__,
            os.getpid(),
            str(self._supervisor.root),
            residence.socket,
            residence.log,
            residence.idle_time,
            len(machines),
            sum(machine.state not in OFF for machine in machines),
            residence.kind,
        )

    @varlinkmethod(return_parameter="why")
    async def Why(self, *, vm: str) -> Explanation:
        """Return why a VM is in its state: how its last run ended, and whether it will start again."""
        return await self._supervisor.condition.explain(vm)

    @varlinkmethod(return_parameter="sample", delay_generator=False)
    async def Top(self, *, interval: float) -> AsyncIterator[Sample]:
        """Report the load of all VMs every `interval` seconds (0.2 to 3600). Requires `more`.

        It continues until the caller leaves. The first reply comes earlier, as soon as rates are known.
        """
        async for sample in self._supervisor.sampler.watch(interval):
            yield sample
