"""Interfaces of VMs, and bridges and links of the host."""

from asyncvarlink import varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.errors import printable, quoted
from vmessd.core.impairments import Direction
from vmessd.core.models.events import Kind
from vmessd.core.models.wires import BridgeNat, Peered, Reach, Segment, Step, VMNic
from vmessd.core.wires import checked_forward
from vmessd.storage import blocking


class Wires(Caller):
    """Methods for interfaces of VMs and links of the host."""

    @varlinkmethod(return_parameter="nics")
    async def Nics(self, *, vm: str) -> list[VMNic]:
        """Return the interfaces of a VM and what they are connected to."""
        return await self._details.nics(vm)

    @varlinkmethod(return_parameter="steps")
    async def SetNics(self, *, vm: str, count: int, wires: list[str]) -> list[Step]:
        """Give a VM exactly `count` interfaces. Returns what was done, in order.

        Each wire is a bridge, which is created if necessary, `-` for none, `user` (`user:2222:22,udp:5353:53`)
        for QEMU's user-mode network, or the other end of a cable (`spine0:1`), which is noted there as well.
        Interfaces without a wire are in no bridge.
        On a running VM, NICs are hot-plugged; a step `pending` means that the guest has not released a NIC yet.
        """
        steps = await self._supervisor.cabling.arrange(vm, count, wires)
        self._supervisor.nats.look()
        self._tell(Kind.wires, vm, f"ifadd {count} {printable(' '.join(wires)[:300])}".strip())
        return steps

    @varlinkmethod(return_parameter="steps")
    async def Connect(self, *, vm: str, interface: int, wire: str) -> list[Step]:
        """Connect one interface, counted from 0, to another bridge or, by a cable, to another VM.

        The wire is as for SetNics; `-` disconnects the interface. The other end of a cable must be free, and
        loses it when this end is connected to something else.
        """
        steps = await self._supervisor.cabling.connect(vm, interface, wire)
        self._supervisor.nats.look()
        self._tell(Kind.wires, vm, f"connect {interface} {printable(wire)}")
        return steps

    @varlinkmethod(return_parameter="note")
    async def Cable(self, *, vm: str, interface: int, on: bool) -> str | None:
        """Plug in or pull the cable of an interface, as the guest sees it, now and at all later starts.

        Returns a remark, for example that this model of NIC has no link state, or null.
        """
        note = await self._supervisor.cabling.cable(vm, interface, on=on)
        self._tell(Kind.wires, vm, f"cable {interface} {'on' if on else 'off'}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Impair(self, *, vm: str, interface: int, words: list[str], way: str | None = None) -> str | None:
        """Impair the cable of an interface: delay and lose its frames, now and at all later starts.

        The words are those of the verb `cable`, and replace what was said before: `delay 20ms jitter 5ms
        loss 1% rate 10M duplicate 0.1% reorder 1% corrupt 0.1%`, or `good` for none of it. `way` is `in`
        for frames to the guest, `out` for those from it, or null for both. `flap 5s/1s` plugs the cable in for
        5 seconds and pulls it for 1, in turn, until `good`, another change of the cable, or the end of the VM.

        Returns a remark, as Cable, or null.
        """
        note = await self._supervisor.cabling.impair(vm, interface, Direction.parse(way), words)
        said = printable(" ".join(words)[:300])
        self._tell(Kind.wires, vm, f"cable {interface} {f'{way} ' if way else ''}{said}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Mac(self, *, vm: str, interface: int, mac: str | None) -> str | None:
        """Give an interface a MAC from the next start; null means the default, derived from the VM's name.

        Returns a remark, or null.
        """
        note = await (await self._supervisor.begun_wires(vm)).macs.set(interface, mac)
        self._tell(Kind.wires, vm, f"mac {interface} {'none' if mac is None else quoted(mac, 300)}")
        return note

    @varlinkmethod(return_parameter="note")
    async def Forward(  # noqa: PLR0913 -- later parameters are optional
        self,
        *,
        vm: str,
        interface: int,
        host: int,
        guest: int | None,
        protocol: str | None,
        address: str | None,
    ) -> str | None:
        """Forward a port of the host to a port of the guest in a user-mode network; null as `guest` ends this.

        The protocol is `tcp` (also for null) or `udp`. The address is an IPv4 address of the host; null means
        127.0.0.1, and any other gives other hosts access. Returns a remark if the port is forwarded already, or
        null.
        """
        forward = checked_forward(protocol, address, host, 1 if guest is None else guest)
        wires = await self._supervisor.begun_wires(vm)
        if not await wires.forward(interface, forward, on=guest is not None):
            return f"port {forward.port} is already forwarded to port {guest}"
        self._tell(Kind.wires, vm, f"forward {interface} {forward.port}:{'none' if guest is None else guest}")
        return None

    @varlinkmethod
    async def Addresses(self, *, vm: str) -> Reach:
        """Return the addresses of a VM, and how each is known.

        `only_user` means that all its interfaces are in user-mode networks, whose addresses the host cannot
        reach; it reaches ports that are forwarded. It is null if the VM has no interfaces.
        """
        return await self._details.reach(vm)

    @varlinkmethod(return_parameter="segments")
    async def NetShow(self) -> list[Segment]:
        """Return the bridges of the host with their ports, except ignored ones."""
        return await self._links.shown()

    @varlinkmethod(return_parameter="steps")
    async def NetVlan(
        self, *, bridge: str, interfaces: list[str], hub: bool | None, mtu: int | None
    ) -> list[Step]:
        """Put interfaces into a bridge, creating all of them if necessary. Returns what was done, in order.

        With `hub`, each frame goes to all ports; false ends that. `mtu` is the MTU of the segment in bytes,
        which its TAPs and veth ends get, and guests with virtio at their next start. Cards, VLANs and VXLANs
        keep theirs. Null leaves both as they are.
        """
        return await self._links.vlan(bridge, interfaces, hub=hub, mtu=mtu)

    @varlinkmethod(return_parameter="nat")
    async def NetNat(self, *, bridge: str, range: str | None) -> BridgeNat | None:  # noqa: A002 -- its name
        """Give a bridge of vmess, which is created if necessary, a range of IPv4 addresses: 10.99.0.0/24.

        The host gets the first address of the range, and is router, DHCP and DNS server of the guests. What
        they send to other networks leaves with the address of the host (NAT). A call for the same range repairs
        what is missing. Null as `range` ends all of this; the bridge stays.
        """
        return await self._links.nat(bridge, range)

    @varlinkmethod
    async def NetPeers(self, *, bridge: str, interface: str, peers: list[str]) -> Peered:
        """Have a VXLAN in a bridge lead to these addresses of other hosts and no others; `[]` ends that.

        Bridge and VXLAN are created if necessary. The MTU of the segment becomes what the routes to the peers
        leave for it, unless somebody has set a smaller one. All peers are of IPv4, or all of IPv6. Each of them
        has to name this host as well, and the others.
        """
        return await self._links.peers(bridge, interface, peers)

    @varlinkmethod(return_parameter="steps")
    async def NetAdd(self, *, interface: str) -> list[Step]:
        """Create a link without a bridge and set it up. It is no longer ignored."""
        return await self._links.add(interface)

    @varlinkmethod(return_parameter="steps")
    async def NetDelete(self, *, interface: str) -> list[Step]:
        """Delete a link of vmess that is not in use."""
        return await self._links.delete(interface)

    @varlinkmethod
    async def NetIgnore(self, *, name: str) -> None:
        """Exclude a link from NetShow."""
        await blocking.call(self._supervisor.segments.ignore, name)

    @varlinkmethod(return_parameter="names")
    async def NetIgnored(self) -> list[str]:
        """Return the links that are excluded from NetShow."""
        return await blocking.call(self._supervisor.segments.ignored)

    @varlinkmethod(return_parameter="steps")
    async def NetPrune(self) -> list[Step]:
        """Delete the TAPs of VMs that are gone, and the bridges of vmess without ports and addresses."""
        return await self._links.prune()
