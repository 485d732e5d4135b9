"""Requests to the kernel over rtnetlink, for links and for what redirects their frames. Pure.

:mod:`vmessd.network.rtnetlink` carries them out, also many at once.

Sources: rtnetlink(7), Linux's include/uapi/linux/{if_link,ip,pkt_sched}.h, tc-u32(8),
tc-mirred(8) and tc-netem(8).
"""

import ipaddress
import os
import socket
from typing import Any, NamedTuple

from vmessd.core.models.wires import Impairment
from vmessd.network.netlink_replies import AF_BRIDGE, MULTICAST, NO_MAC, PORT_PASSES, UP, Link

_GEN_MODE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE: no automatic link-local address

IPV6_MTU_MIN = 1280
"""Below this MTU, a link has no IPv6 (RFC 8200, section 5; addrconf_notify() in Linux)."""


class Request(NamedTuple):
    """A request to the kernel, in the terms of pyroute2."""

    verb: str
    """What is asked for, of the kinds that :mod:`vmessd.network.rtnetlink` knows."""
    attributes: tuple[tuple[str, Any], ...] = ()
    """Names and values; the value of a nested attribute is such a tuple."""
    link: int = 0
    """The index of the link; 0 if `name` identifies it."""
    name: bytes = b""
    """The name of the link, if that identifies it."""
    flags: int = 0
    changed: int = 0
    """The mask of flags to change."""
    family: int = 0
    info: int = 0
    """Priority and protocol of a filter; the length of the prefix of an address. A message of tc has handle and
    parent in place of flags and mask."""


class Fields(tuple[tuple[str, Any], ...]):
    """The value of an attribute that has fields, as pairs of name and value, and no attributes within."""

    __slots__ = ()


def _flags(flag: int, wanted: bool | None) -> tuple[int, int]:
    return (0, 0) if wanted is None else (flag * wanted, flag)


def change(  # noqa: PLR0913 -- the kernel takes them all at once
    index: int,
    *,
    name: str | None = None,
    up: bool | None = None,
    master: int | None = None,
    mac: str | None = None,
    alias: str | None = None,
    group: int | None = None,
    mtu: int | None = None,
    multicast: bool | None = None,
) -> Request:
    """Return a request that makes all these changes to a link in one operation."""
    (up_flag, up_mask), (group_flag, group_mask) = _flags(UP, up), _flags(MULTICAST, multicast)
    asked = (
        ("IFLA_IFNAME", None if name is None else os.fsencode(name)),
        ("IFLA_MTU", mtu),
        ("IFLA_ADDRESS", mac),
        ("IFLA_MASTER", master),
        ("IFLA_IFALIAS", None if alias is None else os.fsencode(alias)),
        ("IFLA_GROUP", group),
    )
    attributes = tuple((key, value) for key, value in asked if value is not None)
    return Request("set", attributes, index, flags=up_flag | group_flag, changed=up_mask | group_mask)


def without_link_local(index: int) -> Request:
    """Return a request that prevents automatic IPv6 addresses of the host on a link.

    A kernel without IPv6 refuses it with EAFNOSUPPORT, which is harmless.
    """
    mode = (("IFLA_INET6_ADDR_GEN_MODE", _GEN_MODE_NONE),)
    return Request("set", (("IFLA_AF_SPEC", (("AF_INET6", mode),)),), index)


def without_host_traffic(link: Link) -> list[Request]:
    """Return requests after which the host itself sends nothing on a link. The link must be down.

    They prevent automatic IPv6 addresses. They also make the host leave its multicast groups: a host that
    forwards IPv6 has joined the routers' groups on every link, and reports them when the link comes up (MLD).
    It leaves them when the MTU becomes too small for IPv6, and does not join again on a link without
    IFF_MULTICAST, a flag that affects only the groups of the host itself.
    """
    requests = [without_link_local(link.index)]
    if link.multicast and link.mtu >= IPV6_MTU_MIN:
        requests = [
            change(link.index, multicast=False),
            change(link.index, mtu=IPV6_MTU_MIN - 1),
            change(link.index, mtu=link.mtu),
            *requests,
        ]
    return requests


def baptism(index: int, name: str, alias: str, mtu: int, *between: Request) -> list[Request]:
    """Return requests that mark and then name a new link, on which the host itself sends nothing.

    They do what :func:`without_host_traffic` does, but rename the link while it has no IPv6: the kernel would
    register its settings of IPv6 again under the new name. `between` is carried out before the name is given.
    """
    return [
        change(index, alias=alias, mtu=IPV6_MTU_MIN - 1, multicast=False),
        *between,
        change(index, name=name),
        change(index, mtu=mtu),
        without_link_local(index),
    ]


def silence(index: int) -> list[Request]:
    """Return requests that keep the host off a bridge until it is given an address there.

    - IPv6: the MTU of the bridge itself is too small. Frames between ports are limited by the ports' MTU only.
    - IPv4: without an address, rp_filter 2 drops every packet. With an address, it accepts every source that
      the host has a route to.
    - ARP: no replies for other addresses of the host (arp_ignore 1), no requests from them (arp_announce 2).
    - Multicast: no groups joined, because snooping is off. Multicast therefore reaches every port.

    Bridges of earlier versions also get the setting of :func:`new_bridge` that they lack.

    Source: Linux's Documentation/networking/ip-sysctl.rst; measured on 6.18.
    """
    conf = (("rp_filter", 2), ("arp_announce", 2), ("arp_ignore", 1))
    settings = ("IFLA_AF_SPEC", (("AF_INET", (("IFLA_INET_CONF", conf),)),))
    passing = _linkinfo("bridge", (("IFLA_BR_MCAST_SNOOPING", 0), ("IFLA_BR_GROUP_FWD_MASK", _OF_BRIDGE)))
    return [Request("set", (("IFLA_MTU", IPV6_MTU_MIN - 1), settings, passing), index)]


def forwarding(index: int, *, on: bool) -> Request:
    """Return a request that has the host forward what it receives on a link, or not.

    The sysctl net.ipv4.conf.LINK.forwarding is the same, but only root can write it.
    """
    settings = (("AF_INET", (("IFLA_INET_CONF", (("forwarding", int(on)),)),)),)
    return Request("set", (("IFLA_AF_SPEC", settings),), index)


def address(address: ipaddress.IPv4Interface | ipaddress.IPv6Interface, index: int, *, gone: bool) -> Request:
    """Return a request that gives the host an IP address on a link, or takes it away.

    The kernel says EEXIST where it is there, and EADDRNOTAVAIL where it is not.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    here = [("IFA_LOCAL", str(address.ip)), ("IFA_ADDRESS", str(address.ip))]
    if address.version == 4 and not gone:
        here.append(("IFA_BROADCAST", str(address.network.broadcast_address)))
    verb = "del address" if gone else "add address"
    return Request(verb, tuple(here), index, family=family, info=address.network.prefixlen)


def set_alias(name: str, alias: str) -> Request:
    """Return a request that sets the alias of a link by its name; send it together with the link's creation."""
    return Request("set", (("IFLA_IFALIAS", os.fsencode(alias)),), name=os.fsencode(name))


def add_name(index: int, name: str) -> Request:
    """Return a request that gives a link an alternative name, of up to 127 bytes (ALTIFNAMSIZ)."""
    return Request("name", (("IFLA_PROP_LIST", (("IFLA_ALT_IFNAME", os.fsencode(name)),)),), index)


def _linkinfo(kind: str, data: tuple[tuple[str, Any], ...]) -> tuple[str, Any]:
    return "IFLA_LINKINFO", (("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", data))


def _creation(name: str, kind: str, data: tuple[tuple[str, Any], ...], *more: tuple[str, Any]) -> Request:
    return Request("add", (("IFLA_IFNAME", os.fsencode(name)), *more, _linkinfo(kind, data)))


def new_bridge(name: str, mac: str) -> Request:
    """Return a request for a bridge without spanning tree, forward delay and multicast snooping.

    It forwards frames to all reserved addresses that the kernel allows; see :func:`passing`.
    """
    data = (
        ("IFLA_BR_FORWARD_DELAY", 0),
        ("IFLA_BR_STP_STATE", 0),
        ("IFLA_BR_MCAST_SNOOPING", 0),
        ("IFLA_BR_GROUP_FWD_MASK", _OF_BRIDGE),
    )
    return _creation(name, "bridge", data, ("IFLA_ADDRESS", mac))


_OF_BRIDGE = 0xFFF8
"""The reserved addresses 01:80:c2:00:00:0x whose frames a bridge, and a port, may forward (br_private.h).

Only a port can have LACP forwarded (2), and nothing has PAUSE (1). Frames of spanning tree (0) pass without it.
"""
AGEING = 30000
"""The time in hundredths of a second for which a bridge remembers where a station is, by default."""


def passing(index: int) -> Request:
    """Return a request that has a port of a bridge forward frames to reserved addresses.

    A port forgets that when it moves to another bridge.
    """
    return _port(index, (("IFLA_BRPORT_GROUP_FWD_MASK", PORT_PASSES),))


def learning(index: int, *, on: bool) -> Request:
    """Return a request that has a port forget which stations are behind it, and learn that again or not."""
    return _port(index, (("IFLA_BRPORT_LEARNING", int(on)), ("IFLA_BRPORT_FLUSH", None)))


def _port(index: int, data: tuple[tuple[str, Any], ...]) -> Request:
    info = (("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", data))
    return Request("set", (("IFLA_LINKINFO", info),), index)


def ageing(index: int, hundredths: int) -> Request:
    """Return a request for how long a bridge remembers stations; 0 makes it a hub, which remembers none."""
    return Request("set", (_linkinfo("bridge", (("IFLA_BR_AGEING_TIME", hundredths),)),), index)


def new_vlan(name: str, parent: int, tag: int) -> Request:
    """Return a request for a VLAN sub-interface of another link."""
    return _creation(name, "vlan", (("IFLA_VLAN_ID", tag),), ("IFLA_LINK", parent))


def new_veth(name: str, peer: str) -> Request:
    """Return a request for a pair of links: what goes into one comes out of the other."""
    return _creation(name, "veth", (("VETH_INFO_PEER", (("IFLA_IFNAME", os.fsencode(peer)),)),))


def new_vxlan(name: str, identifier: int, port: int, *, ipv6: bool = False) -> Request:
    """Return a request for a VXLAN endpoint that learns, without a peer; see :func:`flooding`.

    It is for peers of IPv4 unless it has a local address of IPv6, of which :: is any (vxlan_core.c).
    """
    local = (("IFLA_VXLAN_LOCAL6", "::"),) if ipv6 else ()
    return _creation(name, "vxlan", (("IFLA_VXLAN_ID", identifier), ("IFLA_VXLAN_PORT", port), *local))


_NOARP_PERMANENT = 0x40 | 0x80  # NUD_NOARP, NUD_PERMANENT: it does not age
_SELF = 0x02  # NTF_SELF: of the VXLAN, not of the bridge whose port it is


def flooding(index: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address, *, gone: bool) -> Request:
    """Return a request that has a VXLAN send frames for unknown stations to an address, or not any more.

    `bridge fdb append 00:00:00:00:00:00 dev vxlan7 dst ADDRESS` is the same. The kernel accepts an entry that
    is there, says ENOENT where there is none, and EAFNOSUPPORT for an address of the other family.
    """
    attributes = (("NDA_DST", str(address)), ("NDA_LLADDR", NO_MAC))
    verb = "del neighbour" if gone else "append neighbour"
    return Request(verb, attributes, index, flags=_SELF, family=AF_BRIDGE, info=_NOARP_PERMANENT)


def way(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Request:
    """Return a request for the route by which a packet to an address leaves."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return Request("way", (("RTA_DST", str(address)),), family=family, info=address.max_prefixlen)


def new_ifb(name: str) -> Request:
    """Return a request for a link to which frames can be redirected, and which hands them back (ifb)."""
    kind = ("IFLA_LINKINFO", (("IFLA_INFO_KIND", "ifb"),))
    return Request("add", (("IFLA_IFNAME", os.fsencode(name)), kind))


def deletion(index: int) -> Request:
    """Return a request that deletes a link."""
    return Request("del", link=index)


def move(  # noqa: PLR0913 -- the kernel takes them all at once
    link: Link,
    master: int,
    *,
    up: bool,
    mac: str | None = None,
    alias: str | None = None,
    mtu: int | None = None,
) -> list[Request]:
    """Return requests that plug a link into another bridge (0: into none).

    The link is never up without a bridge: frames of the guest would reach the network stack of the host. Send
    them with `tolerate=EAFNOSUPPORT`.
    """
    aside = link.up and (link.master != master or not up)
    requests = [change(link.index, up=False)] if aside else []
    down = aside or not link.up
    if down and master:
        # Out of its bridge first, whose MTU may follow that of its ports.
        requests += [change(link.index, master=0)] if link.master else []
        requests += without_host_traffic(link)
    requests.append(change(link.index, master=master, mac=mac, alias=alias, mtu=mtu))
    return requests + ([change(link.index, up=True)] if up and down else [])


# -- Redirections: what comes out of a link goes into another one --

_INGRESS, _INGRESS_PARENT = 0xFFFF0000, 0xFFFFFFF1  # the handle of the ingress qdisc, and TC_H_INGRESS
_FIRST_FILTER = 0x80000800  # the handle of the first u32 filter
_EVERYTHING = 1 << 16 | socket.htons(0x0003)  # priority 1, ETH_P_ALL
_TO_EGRESS, _STOLEN = 1, 4  # TCA_EGRESS_REDIR, TC_ACT_STOLEN
_EVERY_FRAME = Fields((("keys", ("0x0/0x0+0",)),))


def redirection(index: int, target: int) -> list[Request]:
    """Return requests after which every frame that comes out of a link goes into another one, unchanged.

    Frames do not reach the network stack of the host: a filter takes them off before (tc-u32(8),
    tc-mirred(8)). They are dropped while the target is down, and after its deletion. The link must have nothing
    at its ingress: :func:`no_redirection`.
    """
    parameters = Fields((("action", _STOLEN), ("eaction", _TO_EGRESS), ("ifindex", target)))
    action = (("TCA_ACT_KIND", "mirred"), ("TCA_ACT_OPTIONS", (("TCA_MIRRED_PARMS", parameters),)))
    options = (("TCA_U32_SEL", _EVERY_FRAME), ("TCA_U32_ACT", (("TCA_ACT_PRIO_1", action),)))
    attributes = (("TCA_KIND", "u32"), ("TCA_OPTIONS", options))
    return [
        Request("add qdisc", (("TCA_KIND", "ingress"),), index, flags=_INGRESS, changed=_INGRESS_PARENT),
        Request("add filter", attributes, index, changed=_INGRESS, info=_EVERYTHING),
    ]


def no_redirection(index: int) -> Request:
    """Return a request that ends the redirection of a link. Without one, the kernel says ENOENT."""
    return Request("del qdisc", (), index, changed=_INGRESS_PARENT)  # with a handle, it may say EINVAL


def redirection_of(index: int) -> Request:
    """Return a request for the filter that :func:`redirection` gives a link."""
    return Request("get filter", (), index, flags=_FIRST_FILTER, changed=_INGRESS, info=_EVERYTHING)


# -- Impairments: netem, where frames leave a link --

_ROOT = 0xFFFFFFFF  # TC_H_ROOT
_NETEM = 0x7665 << 16  # the handle of ours, 7665: as tc shows it, "ve" in ASCII
FRAMES_MAX = 1000
"""Frames that netem holds at a time, its own default: a guest must not fill the memory of the host."""
_TICK = 64e-9  # seconds, of which netem counts delays (PSCHED_SHIFT)
_ALL = 0xFFFFFFFF  # the chance of a certain event


def netem(index: int, impairment: Impairment) -> Request:
    """Return a request that has what leaves a link impaired like this, from now on.

    Frames that are already delayed stay so. A part that is left out would stay as it was (netem_change() in
    Linux), so all are there.
    """
    fields = Fields(
        (
            ("delay", round(impairment.delay / _TICK)),
            ("limit", FRAMES_MAX),
            ("loss", _chance(impairment.loss)),
            ("gap", int(impairment.reorder > 0)),
            ("duplicate", _chance(impairment.duplicate)),
            ("jitter", round(impairment.jitter / _TICK)),
            ("attrs", _netem_attributes(impairment)),
        )
    )
    attributes = (("TCA_KIND", "netem"), ("TCA_OPTIONS", fields))
    return Request("replace qdisc", attributes, index, flags=_NETEM, changed=_ROOT)


def _netem_attributes(impairment: Impairment) -> tuple[tuple[str, Any], ...]:
    none = (("delay_corr", 0), ("loss_corr", 0), ("dup_corr", 0))
    rate = (("rate", impairment.rate // 8), ("packet_overhead", 0), ("cell_size", 0), ("cell_overhead", 0))
    return (
        ("TCA_NETEM_CORR", Fields(none)),
        ("TCA_NETEM_REORDER", Fields((("prob_reorder", _chance(impairment.reorder)), ("corr_reorder", 0)))),
        ("TCA_NETEM_CORRUPT", Fields((("prob_corrupt", _chance(impairment.corrupt)), ("corr_corrupt", 0)))),
        ("TCA_NETEM_RATE", Fields(rate)),
    )


def _chance(fraction: float) -> int:
    return round(fraction * _ALL)


def no_netem(index: int) -> Request:
    """Return a request that ends :func:`netem`. If the link has another queue, the kernel says EINVAL."""
    return Request("del qdisc", (), index, flags=_NETEM, changed=_ROOT)
