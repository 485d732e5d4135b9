"""The peers of VXLANs: the entries by which a VXLAN floods, and what the underlay carries to them.

A frame for a station that is not known yet, and each broadcast, goes to all peers (RFC 7348, section 4.2).
Where a station is, the VXLAN learns from its frames. Everything here blocks.
"""

import contextlib
import errno
from collections.abc import Sequence

from vmessd.core.errors import Failed, InvalidValue, NotPermitted
from vmessd.core.models.wires import Step, VxlanPeer
from vmessd.core.vxlan import Address, Peering, overhead
from vmessd.network import netlink_requests
from vmessd.network.bridges import MTU_MIN, Segments
from vmessd.network.cables import MTU
from vmessd.network.changes import Change
from vmessd.network.links import Network
from vmessd.network.netlink_replies import Link, Way
from vmessd.network.policy import describe, segment_mtu
from vmessd.network.rtnetlink import Netlink


def carried(network: Network, bridge: str, link: str, peers: Sequence[Address]) -> tuple[int, list[VxlanPeer]]:
    """Return the MTU that the routes to all peers leave for a VXLAN, and the peers; changes nothing.

    Raises:
        InvalidValue: an address is not that of another host.
        NotPermitted: the link is not vmess's own.
        Failed: there is no route to a peer, or it leads back into the segment, or carries too little.
    """
    found, mtu = [], MTU
    with network.kernel() as kernel:
        own = kernel.named([bridge, link])
        _check(network, own.get(link))
        inside = {one.index for one in own.values()}
        for peer in peers:
            way = _way(kernel, peer)
            out = kernel.link_at(way.index)
            if out is None:
                raise Failed(f"there is no route to the peer {peer}", hint=f"ip route get {peer}")
            if out.index in inside:
                raise Failed(
                    f"the route to the peer {peer} leads out of {out.name}, into the segment itself",
                    hint=f"choose an address that the host reaches without it: ip route get {peer}",
                )
            leaves = min(out.mtu, way.mtu or out.mtu) - overhead(peer)
            if leaves < MTU_MIN:
                raise Failed(
                    f"the route to the peer {peer} leaves an MTU of {leaves}; {MTU_MIN} is the least",
                    hint=f"give the link or the route a greater one: ip link show {out.name}",
                )
            mtu = min(mtu, leaves)
            found.append(VxlanPeer(str(peer), way.source or ""))
    return mtu, found


def _way(kernel: Netlink, peer: Address) -> Way:
    """Return the route to another host; raises InvalidValue, Failed."""
    try:
        way = kernel.way(peer)
    except OSError as error:
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            raise
        way = Way()
    if way.is_local:
        raise InvalidValue(f"peer {peer} is an address of this host; name the other hosts only")
    if way.is_broadcast:
        raise InvalidValue(f"peer {peer} is a broadcast address; it must be the address of another host")
    if not way.index:
        raise Failed(f"there is no route to the peer {peer}", hint=f"ip route get {peer}")
    return way


def _check(network: Network, link: Link | None) -> None:
    """Raise unless a link is missing, or a VXLAN of ours."""
    if link is None:
        return
    network.access.check_root(link)
    if link.kind != "vxlan":
        raise Failed(f"{link.name} is {describe(link)}, not a VXLAN", hint="take another name, such as vxlan7")
    if not network.access.is_own(link):
        raise NotPermitted(
            f"{link.name} was not made by vmess, so its peers are left alone", hint="take another name"
        )


def lay(network: Network, segments: Segments, peering: Peering) -> list[Step]:
    """Make a VXLAN lead to these peers and no others, in its bridge; both are made if necessary.

    The MTU of the segment becomes that of the VXLAN. A smaller one that somebody set by hand stays.

    Raises NotPermitted, Failed, InvalidValue; everything was undone then.
    """
    with network.kernel() as kernel:
        own = kernel.named([peering.bridge, peering.link])
    bridge, link = own.get(peering.bridge), own.get(peering.link)
    now = segment_mtu(bridge) if bridge else None
    follows = now is None or now > peering.mtu or (link is not None and now == link.mtu)

    def first(kernel: Netlink, change: Change) -> None:
        found = kernel.link(peering.link)
        _check(network, found)
        if found is None:
            found = segments.make_vxlan(kernel, change, peering.link, ipv6=peering.peers[0].version == 6)
        _set_mtu(kernel, change, found, peering.mtu)
        _flood(kernel, change, found, peering.peers)

    mtu = peering.mtu if follows else None
    return segments.vlan(peering.bridge, [peering.link], {}, mtu=mtu, first=first)


def clear(network: Network, name: str, *, may_be_gone: bool = False) -> None:
    """Have a VXLAN lead nowhere; it stays where it is. Raises NotPermitted, Failed."""
    with network.change() as (kernel, change):
        link = kernel.link(name)
        if link is None and may_be_gone:
            return
        if link is None:
            raise Failed(f"there is no link {name}", hint="vmess net show")
        _check(network, link)
        _flood(kernel, change, link, ())


def _set_mtu(kernel: Netlink, change: Change, link: Link, mtu: int) -> None:
    if link.mtu != mtu:
        back = [netlink_requests.change(link.index, mtu=link.mtu)]
        change.reversals.append(lambda kernel: kernel.do(back, tolerate=errno.ENODEV))
        kernel.do([netlink_requests.change(link.index, mtu=mtu)])


def _flood(kernel: Netlink, change: Change, link: Link, peers: Sequence[Address]) -> None:
    """Make the entries by which a VXLAN floods these."""
    there = {*kernel.flooding().get(link.index, ())}
    more = [peer for peer in peers if peer not in there]
    fewer = sorted(there - {*peers}, key=str)

    def back(kernel: Netlink) -> None:
        with contextlib.suppress(OSError):  # it may be gone
            kernel.do(netlink_requests.flooding(link.index, peer, gone=True) for peer in more)
            kernel.do(netlink_requests.flooding(link.index, peer, gone=False) for peer in fewer)

    change.reversals.append(back)
    try:
        kernel.do(netlink_requests.flooding(link.index, peer, gone=False) for peer in more)
        kernel.do(
            (netlink_requests.flooding(link.index, peer, gone=True) for peer in fewer), tolerate=errno.ENOENT
        )
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        family, other = ("IPv4", "IPv6") if more[0].version == 6 else ("IPv6", "IPv4")
        raise Failed(
            f"{link.name} was made for peers of {family}, so it cannot have one of {other}, {more[0]}",
            hint=f"vmess net delete {link.name}, and then this command again",
        ) from None
