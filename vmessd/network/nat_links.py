"""The links of a bridge with NAT: its address and MTU, and which links of the host forward.

As everywhere, the kernel is the truth, and a change is made completely or not at all. What is there already is
left as it is, so that the same call repairs what somebody took away. Everything here blocks.
"""

import errno
import ipaddress
import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from vmessd.core.errors import Failed, NotPermitted
from vmessd.core.nat import Nat, is_plain
from vmessd.network import netlink_requests
from vmessd.network.changes import Change
from vmessd.network.links import Network
from vmessd.network.netlink_replies import DEFAULTS_MAX, Link
from vmessd.network.policy import is_made_by_vmess, segment_mtu, shown
from vmessd.network.ports import MTU_DEFAULT, mtu_of
from vmessd.network.rtnetlink import Netlink

MTU_MIN = 576  # what every IPv4 host must be able to receive (RFC 791)
_CONF = Path("/proc/sys/net/ipv4/conf")

Load = Callable[[Sequence[str]], None]
"""Loads the rules of a bridge; gets the links that vmess has forward from now on."""


def _forwards(link: str) -> bool:
    """Tell whether the host forwards what it receives on a link; `all` and `default` are links, too."""
    try:
        return Path(_CONF, link, "forwarding").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False  # it has vanished, or has no IPv4


def free(network: Network, nat: Nat) -> None:
    """Raise Failed unless the bridge of this name can have NAT and the range is free; changes nothing.

    Raises:
        NotPermitted: the bridge is not vmess's own.
    """
    with network.kernel() as kernel:
        found = kernel.link(nat.bridge)
        _check_bridge(network, kernel, nat, found)
        _check_range(kernel, nat, found)


def _check_bridge(network: Network, kernel: Netlink, nat: Nat, bridge: Link | None) -> None:
    if bridge is None:
        return
    network.access.check_bridge(bridge, nat.bridge)
    network.access.check_root(bridge)
    if not network.access.is_own(bridge):
        raise NotPermitted(
            f"bridge {bridge.name} is not vmess's own, so it gets neither an address nor NAT",
            hint="take another name; net nat makes the bridge",
        )
    here = [one.address for one in kernel.addresses(socket.AF_INET) if one.index == bridge.index]
    if others := [str(address) for address in here if address != _host(nat)]:
        raise Failed(
            f"{bridge.name} has the address {others[0]} already, so it does not get {nat.address}",
            hint=f"as root: ip address del {others[0]} dev {bridge.name}",
        )
    mtu = segment_mtu(bridge)
    if mtu is not None and mtu < MTU_MIN:
        raise Failed(
            f"the MTU of {bridge.name} is {mtu}; IPv4 needs {MTU_MIN} or more",
            hint=f"vmess net vlan {bridge.name} --mtu {MTU_DEFAULT}",
        )


def _check_range(kernel: Netlink, nat: Nat, bridge: Link | None) -> None:
    """Raise Failed if the host has an address in the range, or a route into it, on another link."""
    names = {link.index: shown(link) for link in kernel.links()}
    own = bridge.index if bridge is not None else 0
    for one in kernel.addresses(socket.AF_INET):
        if one.index != own and one.address.network.overlaps(nat.network):
            where = names.get(one.index, "a link")
            raise _taken(nat, f"{where} has the address {one.address}")
    for route in kernel.routes():
        others = [index for index in route.indices if index != own]
        if others and route.to.prefixlen > DEFAULTS_MAX and route.to.overlaps(nat.network):
            raise _taken(nat, f"a route to {route.to} leads out of {names.get(others[0], 'a link')}")


def _taken(nat: Nat, why: str) -> Failed:
    return Failed(
        f"range {nat.network} is in use: {why}", hint="choose another range; ip route lists those in use"
    )


def _host(nat: Nat) -> ipaddress.IPv4Interface:
    return ipaddress.IPv4Interface((nat.address, nat.network.prefixlen))


def mtu(network: Network, nat: Nat) -> int:
    """Return the MTU of the segment of a bridge in bytes, as guests should know it; raises Failed."""
    with network.kernel() as kernel:
        return segment_mtu(kernel.present(nat.bridge)) or MTU_DEFAULT


def give(network: Network, nat: Nat, opened: Collection[str], load: Load, unload: Callable[[], None]) -> Change:
    """Make the host a station on a bridge, and have it forward between the bridge and its uplinks.

    Args:
        network: the links of the host.
        nat: the bridge, which is created if necessary, and its range.
        opened: links that forward only because vmess had them do so, as noted in the rules.
        load: loads the rules; called before the host can be reached on the bridge.
        unload: deletes the rules, if a later step fails.

    Raises:
        NotPermitted: the bridge is not vmess's own, or CAP_NET_ADMIN is missing.
        Failed: the range is in use, or the kernel or nft refused. Everything was undone.
    """
    with network.change() as (kernel, change):
        found = kernel.link(nat.bridge)
        _check_bridge(network, kernel, nat, found)
        _check_range(kernel, nat, found)
        if found is None:
            network.check_idle(kernel)
        bridge = network.make_bridge(kernel, change, nat.bridge, found, deliberate=True)
        is_new = bridge.index not in {one.index for one in kernel.addresses(socket.AF_INET)}
        uplinks = [link for link in _uplinks(kernel) if _is_ours_to_open(link.name, opened)]
        if is_new:
            change.reversals.append(lambda kernel: _take(network, kernel, nat, (), unload))
        load(sorted(link.name for link in uplinks))
        shut = [link.index for link in (bridge, *uplinks) if not _forwards(link.name)]
        if is_new:
            change.reversals.append(lambda kernel: _forward(kernel, shut, on=False))
        _be_a_station(network, kernel, nat, bridge)
        _forward(kernel, shut, on=True)
    return change


def _uplinks(kernel: Netlink) -> list[Link]:
    """Return the links that routes of the main table lead out of, except bridges of vmess."""
    indices = {index for route in kernel.routes() if route.is_main for index in route.indices}
    found = kernel.links_at(sorted(indices)).values()
    return [link for link in found if not (link.loopback or is_made_by_vmess(link)) and is_plain(link.name)]


def _is_ours_to_open(link: str, opened: Collection[str]) -> bool:
    """Tell whether a link does not forward by the administrator's will: not at all, or only by ours."""
    return not _forwards(link) or (link in opened and not _forwards("all"))


def _forward(kernel: Netlink, indices: Iterable[int], *, on: bool) -> None:
    kernel.do((netlink_requests.forwarding(index, on=on) for index in indices), tolerate=errno.ENODEV)


def _be_a_station(network: Network, kernel: Netlink, nat: Nat, bridge: Link) -> None:
    """Give the host its address on the bridge. The MTU of ports follows, and IPv6 has no address there."""
    stations = {*kernel.addressed(), bridge.index}
    now = replace(bridge, mtu=segment_mtu(bridge) or MTU_DEFAULT)
    _fit_ports(network, kernel, now, stations)
    kernel.do([netlink_requests.change(bridge.index, mtu=now.mtu)])
    kernel.do([netlink_requests.without_link_local(bridge.index)], tolerate=errno.EAFNOSUPPORT)
    formed = [one for one in kernel.addresses(socket.AF_INET6) if one.index == bridge.index]
    gone = (
        netlink_requests.address(one.address, bridge.index, gone=True)
        for one in formed
        if one.address.is_link_local
    )
    kernel.do(gone, tolerate=errno.EADDRNOTAVAIL)
    kernel.do([netlink_requests.address(_host(nat), bridge.index, gone=False)], tolerate=errno.EEXIST)


def _fit_ports(network: Network, kernel: Netlink, bridge: Link, stations: Collection[int]) -> None:
    """Give our ports of a bridge the MTU that they have beside these stations, and have them learn."""
    ports = [port for port in kernel.ports(bridge.index) if network.access.is_own(port)]
    fitting = {port.index: mtu_of(port, bridge, stations) for port in ports}
    wrong = [port.index for port in ports if port.mtu != fitting[port.index]]
    kernel.do(netlink_requests.change(index, mtu=fitting[index]) for index in wrong)
    network.ports.tune(kernel, {bridge.index: bridge}, stations)


def take(network: Network, nat: Nat, closing: Collection[str], unload: Callable[[], None]) -> None:
    """Undo :func:`give`. The bridge stays, and what is not there any more is left out.

    `closing` are the links that forward only because vmess had them do so for this bridge.
    """
    with network.kernel() as kernel:
        _take(network, kernel, nat, closing, unload)


def _take(
    network: Network, kernel: Netlink, nat: Nat, closing: Collection[str], unload: Callable[[], None]
) -> None:
    bridge = kernel.link(nat.bridge)
    if bridge is not None and network.access.is_own(bridge):
        kernel.do([netlink_requests.address(_host(nat), bridge.index, gone=True)], tolerate=errno.EADDRNOTAVAIL)
        if not _forwards("default"):
            _forward(kernel, [bridge.index], on=False)
        stations = kernel.addressed()
        if bridge.index not in stations:
            kernel.do(netlink_requests.silence(bridge.index))
        _fit_ports(network, kernel, kernel.present(bridge.name), stations)
    if closing and not _forwards("all"):
        _forward(kernel, [link.index for link in kernel.named(sorted(closing)).values()], on=False)
    unload()
