"""Parsers for what the kernel says over rtnetlink about links, neighbours and addresses. Pure.

pyroute2 would decode every attribute: 83 MiB and 0.4 s for 800 links. These parsers read only what vmess uses.

Sources: rtnetlink(7), netlink(7), and Linux's include/uapi/linux/{rtnetlink,if_link,if_addr,neighbour}.h,
pkt_cls.h and tc_act/tc_mirred.h there.
"""

import ipaddress
import os
import struct
import sys
from collections.abc import Callable, Iterator

from vmessd.core.dataclass import dataclass

ATTRIBUTE = struct.Struct("=HH")
LINK_BODY = struct.Struct("=BxHiII")
ADDRESS_BODY = struct.Struct("=BBBBI")
NEIGHBOUR_BODY = struct.Struct("=BxxxiHBB")
_STATISTICS = struct.Struct("=QQQQ")  # the beginning of rtnl_link_stats64: packets, then bytes

UP, MULTICAST = 0x1, 0x1000  # IFF_UP, IFF_MULTICAST
_LOOPBACK, _LOWER_UP = 0x8, 0x10000
AF_BRIDGE = 7
"""The family of the forwarding tables of bridges; Python's socket module lacks it."""

_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _ALIAS, _GROUP = 1, 3, 4, 5, 10, 18, 20, 27  # IFLA_*
_QDISC = 6  # IFLA_QDISC, the kind of its queue
_PEER_NAMESPACE = 37  # IFLA_LINK_NETNSID: the lower link, or the other end, is in another network namespace
_STATS64, _CARRIER, _PROPERTIES, _ALTERNATIVE_NAME = 23, 33, 52, 53
_KIND, _DATA, _SLAVE_KIND, _SLAVE_DATA = 1, 2, 4, 5  # IFLA_INFO_*
_BRIDGE_AGEING, _PORT_LEARNING, _PORT_PASSES = 4, 8, 31  # IFLA_BR_AGEING_TIME, IFLA_BRPORT_*
PORT_PASSES = 0xFFFD
"""The reserved addresses 01:80:c2:00:00:0x whose frames a port may forward (br_private.h): not PAUSE."""
_TUN_OWNER, _TUN_TYPE, _TUN_TAP, _TUN_MULTI_QUEUE = 1, 3, 2, 7
_NAMES = (_IFNAME, _ALIAS, _PROPERTIES)
_OTHERS = (_ADDRESS, _MTU, _LINK, _MASTER, _LINKINFO, _GROUP, _QDISC, _CARRIER, _PEER_NAMESPACE)
_OF_LINK = frozenset((*_NAMES, *_OTHERS))
_OF_KIND = {"bridge": frozenset((_BRIDGE_AGEING,)), "tun": frozenset((_TUN_OWNER, _TUN_TYPE, _TUN_MULTI_QUEUE))}
_OF_PORT = frozenset((_PORT_LEARNING, _PORT_PASSES))
_NEIGHBOUR_IP, _NEIGHBOUR_MAC, _NEIGHBOUR_MASTER = 1, 2, 9  # NDA_*
_PERMANENT, _FAILED = 0x80, 0x20  # NUD_*
_FILTER_BODY = struct.Struct("=BxxxiIII")
_FILTER_KIND, _FILTER_OPTIONS, _U32_ACTIONS = 1, 2, 7  # TCA_*
_ACTION_KIND, _ACTION_OPTIONS, _MIRRED_PARAMETERS = 1, 2, 2  # TCA_ACT_*, TCA_MIRRED_PARMS
_MIRRED = struct.Struct("=20xiI")  # struct tc_mirred: tc_gen, eaction, ifindex
_TO_EGRESS = 1  # TCA_EGRESS_REDIR
_ROUTE_BODY = struct.Struct("=BBBBBBBBI")
_ROUTE_TO, _ROUTE_LINK, _ROUTE_TABLE, _ROUTE_HOPS = 1, 4, 15, 9  # RTA_*
_ROUTE_SOURCE, _ROUTE_METRICS, _ROUTE_MTU = 7, 8, 2  # RTA_PREFSRC, RTA_METRICS, RTAX_MTU
_UNICAST, _LOCAL, _BROADCAST, _MAIN = 1, 2, 3, 254  # RTN_*, RT_TABLE_MAIN
_STATIC, _DHCP = 4, 16  # RTPROT_*; those below are the kernel and ip(8)
DEFAULTS_MAX = 1
"""Routes to networks of this length, such as 0.0.0.0/1, are parts of a default route."""
NO_MAC = "00:00:00:00:00:00"
"""In the forwarding table of a VXLAN: all stations that are not known."""
_NEXT_HOP = struct.Struct("=HBBi")
_ADDRESS_OF, _ADDRESS_LOCAL = 1, 2  # IFA_*
_ADDRESS_ORIGIN = 11  # IFA_PROTO: 1 to 3 for addresses that the kernel formed, else absent; Linux >= 5.18


@dataclass(frozen=True)
class Link:
    """A network interface of the host, as the kernel describes it."""

    index: int
    name: str
    """Its primary name, even if it was looked up by an alternative one."""
    kind: str
    """`bridge`, `tun`, `vlan`, `veth`, `vxlan`, `bond` ...; empty for a network card and the loopback."""
    master: int
    """Index of the bridge (or bond) it is a port of; 0 for none."""
    parent: int
    """Index of its lower link or its veth peer; 0 for none, and for one in another network namespace."""
    up: bool
    attached: bool
    """It has a carrier: in the case of a TAP, a process is attached to it."""
    loopback: bool
    mac: str
    alias: str
    group: int
    tap: bool
    """It is a TAP (not a TUN)."""
    owner: int | None
    """The uid that may attach to a TAP; None if anybody may."""
    multi_queue: bool
    mtu: int = 0
    multicast: bool = False
    """IFF_MULTICAST: the host may join multicast groups on it."""
    other_names: tuple[str, ...] = ()
    """Its alternative names."""
    hub: bool = False
    """It is a bridge that remembers no stations."""
    learns: bool = True
    """If it is a port of a bridge: it learns which stations are behind it."""
    passes: bool = False
    """If it is a port of a bridge: it forwards frames to reserved addresses."""
    impaired: bool = False
    """What it sends is delayed or lost on purpose, by netem."""


@dataclass(frozen=True)
class IPAddress:
    """An IP address of the host."""

    index: int
    """Its link."""
    address: ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class Route:
    """A route of the host to other stations."""

    to: ipaddress.IPv4Network
    indices: tuple[int, ...]
    """The links that it leads out of."""
    is_main: bool
    """It is in the main table."""


@dataclass(frozen=True)
class Way:
    """How a packet to an address leaves."""

    index: int = 0
    """The link; 0 if no route leads to another station."""
    source: str | None = None
    """The address of the host that it has as its source."""
    mtu: int = 0
    """That of the route in bytes, 0 if it has none of its own."""
    is_local: bool = False
    """The address is one of the host."""
    is_broadcast: bool = False


@dataclass(frozen=True)
class Neighbour:
    """An entry of a forwarding or neighbour table."""

    index: int
    """The link: the port of a bridge, or the link that leads to the neighbour."""
    master: int
    mac: str
    ip: str | None
    """None in the forwarding table of a bridge."""
    permanent: bool


def attributes(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes in `data` from `offset` on, as type and payload."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, bytes(data[offset + 4 : offset + length])
        offset += length + (-length % 4)


def _selected(data: bytes, offset: int, wanted: frozenset[int]) -> dict[int, bytes]:
    """Return the attributes of the kinds `wanted` in `data` from `offset` on; most are of no interest."""
    found: dict[int, bytes] = {}
    end, unpack = len(data), ATTRIBUTE.unpack_from
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        if kind & 0x3FFF in wanted:
            found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _number(payload: bytes) -> int:
    return int.from_bytes(payload, sys.byteorder)


def parse_link(body: bytes) -> Link:
    """Return the link in the body of an RTM_NEWLINK message."""
    _, _, index, flags, _ = LINK_BODY.unpack_from(body)
    found = _selected(body, LINK_BODY.size, _OF_LINK)
    info = dict(attributes(found.get(_LINKINFO, b"")))
    kind = info.get(_KIND, b"").rstrip(b"\0").decode(errors="replace")
    data = _selected(info.get(_DATA, b""), 0, _OF_KIND[kind]) if kind in _OF_KIND else {}
    tun, bridge = (data if kind == "tun" else {}), (data if kind == "bridge" else {})
    is_port = info.get(_SLAVE_KIND) == b"bridge\0"
    port = _selected(info.get(_SLAVE_DATA, b""), 0, _OF_PORT) if is_port else {}
    properties = attributes(found.get(_PROPERTIES, b""))
    return Link(
        index=index,
        name=os.fsdecode(found.get(_IFNAME, b"").rstrip(b"\0")),
        kind=kind,
        master=_number(found.get(_MASTER, b"")),
        parent=0 if _PEER_NAMESPACE in found else _number(found.get(_LINK, b"")),
        up=bool(flags & UP),
        attached=bool(_number(found.get(_CARRIER, b""))) or bool(flags & _LOWER_UP),
        loopback=bool(flags & _LOOPBACK),
        mac=found.get(_ADDRESS, b"").hex(":"),
        alias=os.fsdecode(found.get(_ALIAS, b"").rstrip(b"\0")),
        group=_number(found.get(_GROUP, b"")),
        tap=_number(tun.get(_TUN_TYPE, b"")) == _TUN_TAP,
        owner=_number(tun[_TUN_OWNER]) if _TUN_OWNER in tun else None,
        multi_queue=bool(_number(tun.get(_TUN_MULTI_QUEUE, b""))),
        mtu=_number(found.get(_MTU, b"")),
        multicast=bool(flags & MULTICAST),
        other_names=tuple(
            os.fsdecode(payload.rstrip(b"\0")) for kind, payload in properties if kind == _ALTERNATIVE_NAME
        ),
        hub=_BRIDGE_AGEING in bridge and _number(bridge[_BRIDGE_AGEING]) == 0,
        impaired=found.get(_QDISC) == b"netem\0",
        passes=_number(port.get(_PORT_PASSES, b"")) == PORT_PASSES,
        learns=_PORT_LEARNING not in port or bool(_number(port[_PORT_LEARNING])),
    )


def parse_neighbour(body: bytes) -> Neighbour:
    """Return the entry in the body of an RTM_NEWNEIGH message."""
    family, index, state, _, _ = NEIGHBOUR_BODY.unpack_from(body)
    found = dict(attributes(body, NEIGHBOUR_BODY.size))
    address = found.get(_NEIGHBOUR_IP)
    return Neighbour(
        index=index,
        master=_number(found.get(_NEIGHBOUR_MASTER, b"")),
        mac="" if state & _FAILED else found.get(_NEIGHBOUR_MAC, b"").hex(":"),
        ip=str(ipaddress.ip_address(address)) if address and family != AF_BRIDGE else None,
        permanent=bool(state & _PERMANENT),
    )


def parse_traffic(body: bytes) -> tuple[Link, int, int] | None:
    """Return a link and the bytes it has received and sent; None if the message has no statistics."""
    statistics = dict(attributes(body, LINK_BODY.size)).get(_STATS64)
    if not statistics:
        return None
    _, _, received, sent = _STATISTICS.unpack_from(statistics)
    return parse_link(body), received, sent


def parse_address(body: bytes) -> tuple[int, int, bool]:
    """Return the link's index and the scope of an IP address, and whether it says that the kernel formed it."""
    _, _, _, scope, index = ADDRESS_BODY.unpack_from(body)
    return index, scope, _ADDRESS_ORIGIN in dict(attributes(body, ADDRESS_BODY.size))


def parse_ip_address(body: bytes) -> IPAddress:
    """Return the IP address in the body of an RTM_NEWADDR message."""
    _, prefix, _, _, index = ADDRESS_BODY.unpack_from(body)
    found = dict(attributes(body, ADDRESS_BODY.size))
    payload = found.get(_ADDRESS_LOCAL) or found[_ADDRESS_OF]
    return IPAddress(index, ipaddress.ip_interface((payload, prefix)))


def parse_route(body: bytes) -> Route | None:
    """Return the IPv4 route in the body of an RTM_NEWROUTE message; None if it leads to no other station."""
    _, prefix, _, _, table, _, _, kind, _ = _ROUTE_BODY.unpack_from(body)
    if kind != _UNICAST:
        return None
    found = dict(attributes(body, _ROUTE_BODY.size))
    to = ipaddress.IPv4Network((found.get(_ROUTE_TO, bytes(4)), prefix))
    links = (
        [_number(found[_ROUTE_LINK])] if _ROUTE_LINK in found else [*_next_hops(found.get(_ROUTE_HOPS, b""))]
    )
    return Route(to, tuple(links), (_number(found.get(_ROUTE_TABLE, b"")) or table) == _MAIN)


def concerns_uplinks(body: bytes) -> bool:
    """Tell whether a message about an IPv4 route may change by which links the host reaches others.

    Daemons for BGP or OSPF change routes by the thousand. These leave by links that have a route of the kernel
    to their own network, so only default routes of daemons count, and all routes of people and of DHCP.
    """
    prefix: int
    _, prefix, _, _, table, protocol, _, kind, _ = _ROUTE_BODY.unpack_from(body)
    is_ours = prefix <= DEFAULTS_MAX or protocol <= _STATIC or protocol == _DHCP
    return kind == _UNICAST and table == _MAIN and is_ours


def parse_way(body: bytes) -> Way:
    """Return the route in the answer to the question how a packet leaves."""
    _, _, _, _, _, _, _, kind, _ = _ROUTE_BODY.unpack_from(body)
    found = dict(attributes(body, _ROUTE_BODY.size))
    source = found.get(_ROUTE_SOURCE)
    metrics = dict(attributes(found.get(_ROUTE_METRICS, b"")))
    hops = [*_next_hops(found.get(_ROUTE_HOPS, b""))] or [0]
    index = _number(found[_ROUTE_LINK]) if _ROUTE_LINK in found else hops[0]
    return Way(
        index if kind == _UNICAST else 0,
        str(ipaddress.ip_address(source)) if source else None,
        _number(metrics.get(_ROUTE_MTU, b"")),
        kind == _LOCAL,
        kind == _BROADCAST,
    )


def parse_flooding(body: bytes) -> tuple[int, ipaddress.IPv4Address | ipaddress.IPv6Address] | None:
    """Return a VXLAN's index and an address to which it floods; None for another entry."""
    _, index, _, _, _ = NEIGHBOUR_BODY.unpack_from(body)
    found = dict(attributes(body, NEIGHBOUR_BODY.size))
    if _NEIGHBOUR_IP not in found or any(found.get(_NEIGHBOUR_MAC, b"1")):
        return None
    return index, ipaddress.ip_address(found[_NEIGHBOUR_IP])


def _next_hops(payload: bytes) -> Iterator[int]:
    """Yield the links of a route with several next hops (struct rtnexthop)."""
    offset = 0
    while offset + _NEXT_HOP.size <= len(payload):
        length, _, _, index = _NEXT_HOP.unpack_from(payload, offset)
        yield index
        offset += max(length + (-length % 4), _NEXT_HOP.size)


def parse_redirection(body: bytes) -> int | None:
    """Return the target of the redirection in the body of RTM_NEWTFILTER; None for another filter."""
    found = dict(attributes(body, _FILTER_BODY.size))
    actions = dict(attributes(dict(attributes(found.get(_FILTER_OPTIONS, b""))).get(_U32_ACTIONS, b"")))
    if found.get(_FILTER_KIND) != b"u32\0" or len(actions) != 1:
        return None
    (only,) = actions.values()
    action = dict(attributes(only))
    parameters = dict(attributes(action.get(_ACTION_OPTIONS, b""))).get(_MIRRED_PARAMETERS, b"")
    if action.get(_ACTION_KIND) != b"mirred\0" or len(parameters) < _MIRRED.size:
        return None
    effect, target = _MIRRED.unpack_from(parameters)
    return target if effect == _TO_EGRESS else None


def group_detector(group: int) -> Callable[[bytes], bool]:
    """Return a function that says whether the body of an RTM_NEWLINK message may name this link group.

    It searches for the bytes of the attribute, so it may say yes by mistake, but never no.
    """
    pattern = ATTRIBUTE.pack(8, _GROUP) + struct.pack("=I", group)
    return lambda body: pattern in body
