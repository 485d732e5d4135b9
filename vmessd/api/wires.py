"""A VM's interfaces, and the host's bridges and links."""

from asyncvarlink import varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.errors import printable, quoted
from vmessd.core.models.events import Kind
from vmessd.core.models.wires import Segment, Step, VMAddress, VMNic
from vmessd.core.wires import checked_forward
from vmessd.storage import blocking


class Wires(Caller):
    """Methods for a VM's interfaces and for the host's links."""

    @varlinkmethod(return_parameter="nics")
    async def Nics(self, *, vm: str) -> list[VMNic]:
        """Return a VM's interfaces and what they are plugged into."""
        return await self._details.nics(vm)

    @varlinkmethod(return_parameter="steps")
    async def SetNics(self, *, vm: str, count: int, wires: list[str]) -> list[Step]:
        """Have a VM have `count` interfaces and no others; returns what was done, in order.

        Each wire is a bridge, made if need be, or `-` for none, or `user` (`user:2222:22,udp:5353:53`) for
        QEMU's user-mode network; those without a word are in no bridge. On a running VM cards come and
        go; a step `pending` tells of one that the guest has not let go of.
        """
        steps = await (await self._supervisor.begun_wires(vm)).arrange(count, wires)
        self._tell(Kind.wires, vm, f"ifadd {count} {printable(' '.join(wires)[:300])}".strip())
        return steps

    @varlinkmethod(return_parameter="steps")
    async def Connect(self, *, vm: str, interface: int, wire: str) -> list[Step]:
        """Plug one interface, counted from 0, into another bridge; `-` is none."""
        steps = await (await self._supervisor.begun_wires(vm)).connect(interface, wire)
        self._tell(Kind.wires, vm, f"connect {interface} {printable(wire)}")
        return steps

    @varlinkmethod(return_parameter="note")
    async def Cable(self, *, vm: str, interface: int, on: bool) -> str | None:
        """Plug or pull the cable of an interface as its guest sees it, now and at every start to come.

        Returns what there is to say about it, if anything: that this model of card has no link state.
        """
        note = await (await self._supervisor.begun_wires(vm)).cable(interface, on=on)
        self._tell(Kind.wires, vm, f"cable {interface} {'on' if on else 'off'}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Mac(self, *, vm: str, interface: int, mac: str | None) -> str | None:
        """Give an interface a MAC from its next start on; null is for the one that follows from the VM's name.

        Returns what there is to say about it, if anything.
        """
        note = await (await self._supervisor.begun_wires(vm)).mac(interface, mac)
        self._tell(Kind.wires, vm, f"mac {interface} {'none' if mac is None else quoted(mac, 300)}")
        return note

    @varlinkmethod
    async def Forward(  # noqa: PLR0913 -- what was not said before 0.1.0 may be left out
        self,
        *,
        vm: str,
        interface: int,
        host: int,
        guest: int | None,
        protocol: str | None,
        address: str | None,
    ) -> None:
        """Forward a port of the host's into a user-mode network, to a guest's; null in its place ends it.

        The protocol is `tcp`, which null stands for, or `udp`; the address is one of the host's, of IPv4,
        null standing for 127.0.0.1. Any other lets other hosts in.
        """
        forward = checked_forward(protocol, address, host, 1 if guest is None else guest)
        await (await self._supervisor.begun_wires(vm)).forward(interface, forward, on=guest is not None)
        self._tell(Kind.wires, vm, f"forward {interface} {forward.port}:{'none' if guest is None else guest}")

    @varlinkmethod(return_parameter="addresses")
    async def Addresses(self, *, vm: str) -> list[VMAddress]:
        """Return a VM's addresses, and how each is known."""
        return await self._details.addresses(vm)

    @varlinkmethod(return_parameter="segments")
    async def NetShow(self) -> list[Segment]:
        """Return the host's bridges with their ports, but for those that are ignored."""
        return await blocking.call(self._supervisor.segments.show)

    @varlinkmethod(return_parameter="steps")
    async def NetVlan(self, *, bridge: str, interfaces: list[str]) -> list[Step]:
        """Put interfaces into a bridge, all of them made if need be; returns what was done, in order."""
        return await self._supervisor.vlan(bridge, interfaces)

    @varlinkmethod(return_parameter="steps")
    async def NetAdd(self, *, interface: str) -> list[Step]:
        """Make a link and set it up, in no bridge; it is no longer ignored."""
        return await blocking.call(self._supervisor.segments.add, interface)

    @varlinkmethod(return_parameter="steps")
    async def NetDelete(self, *, interface: str) -> list[Step]:
        """Delete a link of vmess's own that nobody uses."""
        return await self._supervisor.delete_link(interface)

    @varlinkmethod
    async def NetIgnore(self, *, name: str) -> None:
        """Have NetShow leave a link out."""
        await blocking.call(self._supervisor.segments.ignore, name)

    @varlinkmethod(return_parameter="names")
    async def NetIgnored(self) -> list[str]:
        """Return the links that NetShow leaves out."""
        return await blocking.call(self._supervisor.segments.ignored)

    @varlinkmethod(return_parameter="steps")
    async def NetPrune(self) -> list[Step]:
        """Delete the bridges vmess made that have neither a port nor an address."""
        return await blocking.call(self._supervisor.segments.prune)
