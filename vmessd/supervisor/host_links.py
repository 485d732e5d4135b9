"""What clients do to the links of the host: bridges, VLANs, VXLANs and NAT. A link may belong to a VM."""

import dataclasses
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from vmessd.core import names
from vmessd.core.contract import METHODS, Needs
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.models.wires import BridgeNat, Peered, Segment, Step
from vmessd.core.wires import tap_below
from vmessd.network.bridges import TOGETHER_MAX
from vmessd.storage import blocking, cable_notes
from vmessd.supervisor.registry import Supervisor


class HostLinks:
    """The links of the host, beside the VMs of a supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._looks = blocking.Lane("a look at the bridges of this host")

    async def shown(self) -> list[Segment]:
        """Return the bridges with their ports and their NAT; raises Failed."""
        supervisor = self._supervisor
        unseen = [] if supervisor.host.network.may_make_taps else await supervisor.everyone()
        vms = [machine.directory for machine in unseen]
        found, nats = await self._looks.aside(
            lambda: (supervisor.segments.show(cable_notes.number_among(vms)), supervisor.nats.reports()),
            blocking.PATIENCE,
        )
        shown = [dataclasses.replace(one, nat=nats.pop(one.bridge or "", None)) for one in found]
        return [*shown, *(Segment(bridge, True, [], None, [], nat=nat) for bridge, nat in nats.items())]

    async def vlan(
        self, bridge: str, interfaces: Sequence[str], *, hub: bool | None = None, mtu: int | None = None
    ) -> list[Step]:
        """Connect interfaces to a bridge; raises as Segments.vlan, and InvalidValue for the name of a VM."""
        supervisor = self._supervisor
        await self._check_bridge(bridge)
        concerned = [await supervisor.wires(vm) for vm in await self._owners(interfaces)]
        macs: dict[str, str] = {}
        for wires in concerned:
            macs |= await wires.macs.of_taps()
        vms = [wires.vm for wires in concerned]
        put_in = functools.partial(
            self._supervisor.segments.vlan, bridge, interfaces, macs, vms, hub=hub, mtu=mtu
        )
        work: Callable[[], Coroutine[Any, Any, list[Step]]] = functools.partial(blocking.call, put_in)
        for wires in concerned:
            work = functools.partial(wires.rewired, work)
        steps = [*await work(), *await supervisor.peerings.follow(bridge, interfaces)]
        supervisor.nats.look()
        return steps

    async def peers(self, bridge: str, link: str, peers: Sequence[str]) -> Peered:
        """Have a VXLAN lead to peers; raises as Peerings.set, and InvalidValue for the name of a VM."""
        await self._check_bridge(bridge)
        return await self._supervisor.peerings.set(bridge, link, peers)

    async def nat(self, bridge: str, addresses: str | None) -> BridgeNat | None:
        """Give a bridge NAT for a range, or end that (None); raises as Nats, InvalidValue for a VM's name."""
        if addresses is None:
            await self._supervisor.nats.off(bridge)
            return None
        await self._check_bridge(bridge)
        return await self._supervisor.nats.on(bridge, addresses)

    async def add(self, name: str) -> list[Step]:
        """Create a link; raises as Segments.add."""
        return await blocking.call(
            functools.partial(self._supervisor.segments.add, name, await self._owners([name]))
        )

    async def delete(self, name: str) -> list[Step]:
        """Delete a link; raises as Segments.delete. A link of a VM is deleted in order with its messages.

        Raises:
            AlreadyRunning: the VM that the link belongs to is not stopped.
        """
        supervisor = self._supervisor
        supervisor.nats.check_without(name)
        work = functools.partial(self._supervisor.segments.delete, name)
        vm = await self._owner(name)
        if vm is not None and tap_below(name) == name:
            off = METHODS["NetDelete"].needs is Needs.off
            return await (await supervisor.machine(vm)).change(work, stopped=off)
        steps = await blocking.call(work)
        await supervisor.peerings.forget(name)
        return steps

    async def prune(self) -> list[Step]:
        """Delete TAPs of VMs that are gone, and unused bridges; raises as Segments.prune, and TimedOut."""
        is_gone = await self._supervisor.gone()
        return await blocking.call(functools.partial(self._supervisor.segments.prune, is_gone))

    async def check_unlocked(self, links: Sequence[str]) -> None:
        """Raise as Locks.check_unlocked for the VMs that these links belong to."""
        for vm in await self._owners(links):
            await self._supervisor.locks.check_unlocked(vm)

    async def _check_bridge(self, bridge: str) -> None:
        if await self._supervisor.is_vm(bridge):
            raise InvalidValue(f"bridge name {quoted(bridge)} is the name of a VM")

    async def _owners(self, links: Sequence[str]) -> list[str]:
        """Return the VMs that links belong to by their names. Links beyond TOGETHER_MAX are ignored."""
        owners = {await self._owner(link) for link in [*dict.fromkeys(links)][:TOGETHER_MAX]}
        return sorted(vm for vm in owners if vm is not None)

    async def _owner(self, link: str) -> str | None:
        """Return the VM that there is whose TAP, or a VLAN on it, has this name; None if there is none."""
        name = tap_below(link)
        if names.hashed_tap(name) is not None:
            found = await self._supervisor.names_found()
            return next((vm for vm in found if names.interface_of(vm, name) is not None), None)
        parts = names.tap_parts(name, loosely=True)
        return parts[0] if parts is not None and await self._supervisor.exists(parts[0]) else None
