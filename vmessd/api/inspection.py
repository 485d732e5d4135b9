"""How VMs are, each and all of them."""

from collections.abc import AsyncIterator

from asyncvarlink import LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core import refusals
from vmessd.core.models.views import Aspect, Sample, VMView
from vmessd.core.models.vms import Explanation, VMInfo, VMStatus
from vmessd.supervisor.views import views
from vmessd.vm.why import explain


class Inspection(Caller):
    """Methods that tell how VMs are."""

    @varlinkmethod(return_parameter="vms")
    async def List(self) -> list[VMStatus]:
        """Return every VM of the daemon's root, sorted by name."""
        return await self._supervisor.statuses()

    @varlinkmethod(return_parameter="status")
    async def Status(self, *, vm: str) -> VMStatus:
        """Return how a VM is."""
        return (await self._supervisor.machine(vm)).status()

    @varlinkmethod(return_parameter="info")
    async def Info(self, *, vm: str) -> VMInfo:
        """Return all there is to say of a VM, QEMU's command line for one."""
        return await self._details.info(vm)

    @varlinkmethod(return_parameter="view", delay_generator=False)
    async def Look(self, *, vms: list[str], aspect: Aspect) -> AsyncIterator[VMView]:
        """Tell of several VMs, or of all, what Status, Info, Nics, Addresses or Why tell of one.

        A reply for each, in this order, and by name where none is named; what is wrong with one of them is
        told in its place. Wants `more`.
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

    @varlinkmethod(return_parameter="why")
    async def Why(self, *, vm: str) -> Explanation:
        """Return why a VM is as it is: how its last run ended, and what comes of that."""
        return await explain(await self._supervisor.machine(vm))

    @varlinkmethod(return_parameter="sample", delay_generator=False)
    async def Top(self, *, interval: float) -> AsyncIterator[Sample]:
        """Tell how busy all VMs are, every so many seconds (0.2 to 3600) until the caller leaves. Wants `more`.

        The first reply comes sooner, as soon as there are rates to tell.
        """
        async for sample in self._supervisor.sampler.watch(interval):
            yield sample
