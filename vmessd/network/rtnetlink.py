"""The kernel's links over rtnetlink: what there is, and one request for each thing that is changed.

pyroute2 speaks it: it has the sockets, writes the requests and reads the refusals. It is imported at the first
word that is said here, in the thread of whoever says it: that takes some 0.15 s and 10 MiB, which a daemon
without wires never spends. Of 800 links it would decode 83 MiB in 0.4 s, so what the kernel tells is read by
parsers of ours, which take what is asked for here and leave the rest.

Everything here blocks, a request for as long as others hold the kernel's one lock on links; callers
are in a thread. Nothing is cached: the kernel is asked when it matters, so there is no picture of it that
could be lost or stale. What :class:`Subscription` hears only says that there is something to look at.

Sources: rtnetlink(7), netlink(7), and Linux's include/uapi/linux/{rtnetlink,if_link,if_addr,ip,neighbour}.h.
"""

import errno
import functools
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

_T = TypeVar("_T")

# Of replies, what is read here.
_NEWLINK, _NEWNEIGH = 16, 28
_ERROR, _DONE = 2, 3
_DUMP_INTERRUPTED, _WORDS = 0x10, 0x200  # NLM_F_ACK_TLVS: the kernel gives words, too
_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _ALIAS, _GROUP = 1, 3, 4, 5, 10, 18, 20, 27
_STATS64, _CARRIER = 23, 33
_KIND, _DATA = 1, 2
_TUN_OWNER, _TUN_TYPE, _TUN_TAP, _TUN_MULTI_QUEUE = 1, 3, 2, 7
_NEIGHBOUR_IP, _NEIGHBOUR_MAC, _NEIGHBOUR_MASTER = 1, 2, 9
_PERMANENT, _FAILED = 0x80, 0x20
_SCOPE_LINK = 253
_ADDRESS_ORIGIN = 11  # IFA_PROTO: of the kernel's own addresses 1 to 3, of others not there; Linux >= 5.18

_SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS
_GEN_MODE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE: no link-local address by itself
_NEIGHBOUR_GROUP = 1 << 2  # RTNLGRP_NEIGH, 3, as a bit
AF_BRIDGE = 7
"""Of the forwarding tables of bridges; Python does not know it."""

_HEADER = struct.Struct("=IHHII")
_CODE = struct.Struct("=i")
_U32 = struct.Struct("=I")
_SEQUENCE_AT = 8  # of a header
_LINK_BODY = struct.Struct("=BxHiII")
_ADDRESS_BODY = struct.Struct("=BBBBI")
_NEIGHBOUR_BODY = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_NAME_AT = _HEADER.size + _LINK_BODY.size + _ATTRIBUTE.size  # of the first attribute's payload
_STATISTICS = struct.Struct("=QQQQ")  # the beginning of rtnl_link_stats64: packets, then bytes

_BUFFER = 256 * 1024
_TOGETHER = 16  # requests sent before their answers are read; the answers have to fit into a buffer
_DATAGRAM = 8192
_WRITTEN_MAX = 4096  # messages of some 400 bytes each
_NUMBERS_MAX = 1 << 31  # they have 32 bits
_DUMPS_MAX = 20  # attempts at a dump that others keep changing
_UP = 1
_MULTICAST = 0x1000
_LOWER_UP = 0x10000
_LOOPBACK = 0x8


IPV6_MTU_MIN = 1280
"""A link with a smaller MTU has no IPv6 at all (RFC 8200, section 5; addrconf_notify() in Linux)."""


@dataclass(frozen=True)
class Link:
    """A network interface as the kernel has it."""

    index: int
    name: str
    """The first of its names; it may have been asked for by another."""
    kind: str
    """`bridge`, `tun`, `vlan`, `veth`, `vxlan`, `bond` ...; empty for a card or the loopback."""
    master: int
    """Index of the bridge (or bond) it is a port of; 0 for none."""
    parent: int
    """Index of the link it lives on or is paired with; 0 for none."""
    up: bool
    attached: bool
    """It has a carrier: for a TAP, some process holds it."""
    loopback: bool
    mac: str
    alias: str
    group: int
    tap: bool
    """It is a TAP (and no TUN)."""
    owner: int | None
    """The uid that may attach to a TAP; None where anybody may."""
    multi_queue: bool
    mtu: int = 0
    multicast: bool = False
    """The host may join multicast groups there by itself."""


@dataclass(frozen=True)
class Neighbour:
    """An entry of a forwarding or neighbour table."""

    index: int
    """The link: the port of a bridge, or where the neighbour is."""
    master: int
    mac: str
    ip: str | None
    """None in a bridge's forwarding table."""
    permanent: bool


class Request(NamedTuple):
    """What the kernel is asked for, by the names that pyroute2 has for it."""

    verb: str
    """A key of :attr:`_Speech.verbs`."""
    attributes: tuple[tuple[str, Any], ...] = ()
    """One that holds others has such a tuple for a value."""
    link: int = 0
    """Its index; 0 where it is named."""
    name: bytes = b""
    """Of the link, where that tells which it is."""
    flags: int = 0
    changed: int = 0
    """Which of the flags are to be as said."""
    family: int = 0


class Refused(OSError):
    """The kernel refused a request; `strerror` has its own words where it gave any."""


def attributes(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes in `data` from `offset` on, as type and payload."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, bytes(data[offset + 4 : offset + length])
        offset += length + (-length % 4)


def _number(payload: bytes) -> int:
    return int.from_bytes(payload, sys.byteorder)


def _flags(flag: int, wanted: bool | None) -> tuple[int, int]:
    return (0, 0) if wanted is None else (flag * wanted, flag)


def parse_link(body: bytes) -> Link:
    """Return the link that the body of an RTM_NEWLINK message tells of."""
    _, _, index, flags, _ = _LINK_BODY.unpack_from(body)
    found = dict(attributes(body, _LINK_BODY.size))
    info = dict(attributes(found.get(_LINKINFO, b"")))
    kind = info.get(_KIND, b"").rstrip(b"\0").decode(errors="replace")
    tun = dict(attributes(info.get(_DATA, b""))) if kind == "tun" else {}
    return Link(
        index=index,
        name=os.fsdecode(found.get(_IFNAME, b"").rstrip(b"\0")),
        kind=kind,
        master=_number(found.get(_MASTER, b"")),
        parent=_number(found.get(_LINK, b"")),
        up=bool(flags & _UP),
        attached=bool(_number(found.get(_CARRIER, b""))) or bool(flags & _LOWER_UP),
        loopback=bool(flags & _LOOPBACK),
        mac=found.get(_ADDRESS, b"").hex(":"),
        alias=os.fsdecode(found.get(_ALIAS, b"").rstrip(b"\0")),
        group=_number(found.get(_GROUP, b"")),
        tap=_number(tun.get(_TUN_TYPE, b"")) == _TUN_TAP,
        owner=_number(tun[_TUN_OWNER]) if _TUN_OWNER in tun else None,
        multi_queue=bool(_number(tun.get(_TUN_MULTI_QUEUE, b""))),
        mtu=_number(found.get(_MTU, b"")),
        multicast=bool(flags & _MULTICAST),
    )


def parse_neighbour(body: bytes) -> Neighbour:
    """Return the entry that the body of an RTM_NEWNEIGH message tells of."""
    family, index, state, _, _ = _NEIGHBOUR_BODY.unpack_from(body)
    found = dict(attributes(body, _NEIGHBOUR_BODY.size))
    address = found.get(_NEIGHBOUR_IP)
    return Neighbour(
        index=index,
        master=_number(found.get(_NEIGHBOUR_MASTER, b"")),
        mac="" if state & _FAILED else found.get(_NEIGHBOUR_MAC, b"").hex(":"),
        ip=str(ipaddress.ip_address(address)) if address and family != AF_BRIDGE else None,
        permanent=bool(state & _PERMANENT),
    )


def _carried(body: bytes) -> tuple[Link, int, int] | None:
    """Return a link with the bytes it has received and sent; None where that is not told."""
    statistics = dict(attributes(body, _LINK_BODY.size)).get(_STATS64)
    if not statistics:
        return None
    _, _, received, sent = _STATISTICS.unpack_from(statistics)
    return parse_link(body), received, sent


def _address(body: bytes) -> tuple[int, int, bool]:
    """Return of an IP address the link's index, the scope, and whether it is told that the kernel formed it."""
    _, _, _, scope, index = _ADDRESS_BODY.unpack_from(body)
    return index, scope, _ADDRESS_ORIGIN in dict(attributes(body, _ADDRESS_BODY.size))


def change(  # noqa: PLR0913 -- the kernel takes them all at once, and so does this
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
    """Return a request that changes a link; all of it is one step of the kernel's."""
    (up_flag, up_mask), (group_flag, group_mask) = _flags(_UP, up), _flags(_MULTICAST, multicast)
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


def quiet(index: int) -> Request:
    """Return a request that keeps the host from giving itself an IPv6 address on a link.

    Refused with EAFNOSUPPORT where there is no IPv6, and so nothing to keep quiet.
    """
    mode = (("IFLA_INET6_ADDR_GEN_MODE", _GEN_MODE_NONE),)
    return Request("set", (("IFLA_AF_SPEC", (("AF_INET6", mode),)),), index)


def forgotten(link: Link) -> list[Request]:
    """Return requests after which the host's own stack has nothing to say on a link; for one that is down.

    IPv6 gives itself no address there. Where the host forwards IPv6 it has joined the routers' groups on
    every link, and tells so as soon as the link is up (MLD): it forgets them when the MTU is too small for it,
    and joins none anew on a link without IFF_MULTICAST, which is about nothing but the host's own groups.
    """
    requests = [quiet(link.index)]
    if link.multicast and link.mtu >= IPV6_MTU_MIN:
        requests = [
            change(link.index, multicast=False),
            change(link.index, mtu=IPV6_MTU_MIN - 1),
            change(link.index, mtu=link.mtu),
            *requests,
        ]
    return requests


def silence(index: int) -> list[Request]:
    """Return requests that keep the host off a bridge on which it has no address, until it is given one.

    No IPv6: the MTU of the bridge itself is too small for it, and for no frame between its ports, whose own MTU
    counts. No IPv4: every packet whose source is not expected on the bridge is dropped, and without an
    address none is (rp_filter 2; with an address, all that the host has a route to are). No ARP for the
    host's other addresses (arp_ignore 1), nor with them (arp_announce 2). No groups joined (snooping off, which
    also has multicast reach every port). Linux's Documentation/networking/ip-sysctl.rst; measured on 6.18.
    """
    conf = (("rp_filter", 2), ("arp_announce", 2), ("arp_ignore", 1))
    settings = ("IFLA_AF_SPEC", (("AF_INET", (("IFLA_INET_CONF", conf),)),))
    snooping = _linkinfo("bridge", (("IFLA_BR_MCAST_SNOOPING", 0),))
    return [Request("set", (("IFLA_MTU", IPV6_MTU_MIN - 1), settings, snooping), index)]


def marked(name: str, alias: str) -> Request:
    """Return a request that gives the link of this name an alias, to be sent along with what makes it."""
    return Request("set", (("IFLA_IFALIAS", os.fsencode(alias)),), name=os.fsencode(name))


def _linkinfo(kind: str, data: tuple[tuple[str, Any], ...]) -> tuple[str, Any]:
    return "IFLA_LINKINFO", (("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", data))


def _creation(name: str, kind: str, data: tuple[tuple[str, Any], ...], *more: tuple[str, Any]) -> Request:
    return Request("add", (("IFLA_IFNAME", os.fsencode(name)), *more, _linkinfo(kind, data)))


def new_bridge(name: str, mac: str) -> Request:
    """Return a request for a bridge that never blocks a port: no spanning tree, no delay, no snooping."""
    data = (("IFLA_BR_FORWARD_DELAY", 0), ("IFLA_BR_STP_STATE", 0), ("IFLA_BR_MCAST_SNOOPING", 0))
    return _creation(name, "bridge", data, ("IFLA_ADDRESS", mac))


def new_vlan(name: str, parent: int, tag: int) -> Request:
    """Return a request for a VLAN sub-interface of another link."""
    return _creation(name, "vlan", (("IFLA_VLAN_ID", tag),), ("IFLA_LINK", parent))


def new_veth(name: str, peer: str) -> Request:
    """Return a request for a pair of links: what goes into one comes out of the other."""
    return _creation(name, "veth", (("VETH_INFO_PEER", (("IFLA_IFNAME", os.fsencode(peer)),)),))


def new_vxlan(name: str, identifier: int, port: int) -> Request:
    """Return a request for a VXLAN end point that learns; where to send at first is for `bridge fdb`."""
    return _creation(name, "vxlan", (("IFLA_VXLAN_ID", identifier), ("IFLA_VXLAN_PORT", port)))


def deletion(index: int) -> Request:
    """Return a request that deletes a link."""
    return Request("del", link=index)


_MASK = ("IFLA_EXT_MASK", _SKIP_STATISTICS)


# -- pyroute2 --


class _Speech(NamedTuple):
    """What is used of pyroute2."""

    socket: Any
    verbs: Mapping[str, tuple[Any, int, int]]
    """Class, type and flags of the message for each verb of a request."""


@functools.cache
def _speech() -> _Speech:
    """Import pyroute2 and return what is used of it."""
    from pyroute2 import IPRSocket, netlink  # noqa: PLC0415 -- said at the top
    from pyroute2.netlink import rtnl  # noqa: PLC0415
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: PLC0415
    from pyroute2.netlink.rtnl.ndmsg import ndmsg  # noqa: PLC0415

    link = _link_message()
    do, dump = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
    verbs = {
        "add": (link, rtnl.RTM_NEWLINK, do | netlink.NLM_F_CREATE | netlink.NLM_F_EXCL),
        "set": (link, rtnl.RTM_NEWLINK, do),
        "del": (link, rtnl.RTM_DELLINK, do),
        "get": (link, rtnl.RTM_GETLINK, netlink.NLM_F_REQUEST),
        "links": (link, rtnl.RTM_GETLINK, dump),
        "addresses": (ifaddrmsg, rtnl.RTM_GETADDR, dump),
        "neighbours": (ndmsg, rtnl.RTM_GETNEIGH, dump),
    }
    return _Speech(IPRSocket, verbs)


def _link_message() -> Any:
    """Return pyroute2's message about a link, with what it cannot write in requests.

    It ends an alias with a NUL, which leaves no room for one of 255 bytes; and it knows the settings of
    net.ipv4.conf, which are IPV4_DEVCONF_* here, as they are told only.
    """
    from pyroute2.netlink import NLA_F_NESTED, nla, nlmsg  # noqa: PLC0415 -- said at the top
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfbase  # noqa: PLC0415

    class Nested(nla):  # type: ignore[misc]
        nla_flags = NLA_F_NESTED

    class Settings(Nested):
        nla_map = ((8, "rp_filter", "uint32"), (18, "arp_announce", "uint32"), (19, "arp_ignore", "uint32"))

    class Inet(Nested):
        nla_map = ((1, "IFLA_INET_CONF", "settings"),)
        settings = Settings

    class Inet6(Nested):
        nla_map = ((8, "IFLA_INET6_ADDR_GEN_MODE", "uint8"),)

    class Families(Nested):
        nla_map = ((socket.AF_INET, "AF_INET", "inet"), (socket.AF_INET6, "AF_INET6", "inet6"))
        inet, inet6 = Inet, Inet6

    class Message(ifinfbase, nlmsg):  # type: ignore[misc]
        nla_map = tuple(
            (name, "string" if name == "IFLA_IFALIAS" else kind, *rest)
            for name, kind, *rest in ifinfbase.nla_map
        )
        af_spec = Families

    return Message


@functools.lru_cache(_WRITTEN_MAX)
def _written(verb: str, attributes: tuple[tuple[str, Any], ...], room: int) -> bytes:
    """Return a message, as pyroute2 writes it, without what it is about.

    pyroute2 takes up to 0.1 ms for one, and most are the same for each link. `room` is the length of a name.
    """
    if room:
        attributes = (("IFLA_IFNAME", b"?" * room), *attributes)
    message_class, kind, flags = _speech().verbs[verb]
    message = message_class()
    message["attrs"] = _nested(attributes)["attrs"]
    message["header"] = {"type": kind, "flags": flags}
    message.encode()
    return bytes(message.data)


def _nested(attributes: tuple[tuple[str, Any], ...]) -> dict[str, list[tuple[str, Any]]]:
    """Return attributes as pyroute2 takes them."""
    pairs = [(name, _nested(value) if isinstance(value, tuple) else value) for name, value in attributes]
    return {"attrs": pairs}


def any_link(is_meant: Callable[[str], object]) -> bool:
    """Tell whether a closer look may find a link whose first name is meant.

    Where pyroute2 is there already, the look itself tells; else it is not loaded only to find nothing. This is
    libc's word: an ioctl that asks for one name makes the kernel look for a module of that name first.
    """
    return "pyroute2" in sys.modules or any(is_meant(name) for _, name in socket.if_nameindex())


def _parser(marshal: Any, read: Callable[[bytes], object]) -> Callable[[bytes, int, int], Any]:
    """Return a parser for pyroute2 that puts what `read` makes of a body under `found`.

    What it returns is of the shape that pyroute2 asks of a message. A refusal in words is pyroute2's to read.
    """

    def parse(data: bytes, offset: int, length: int) -> Any:
        _, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        header = {"type": kind, "flags": flags, "sequence_number": sequence, "error": None}
        body = data[offset + _HEADER.size : offset + length]
        if kind not in (_ERROR, _DONE):
            return {"header": header, "found": read(body)}
        code = _CODE.unpack_from(body)[0] if len(body) >= _CODE.size else 0
        if code and kind == _ERROR and flags & _WORDS:
            return marshal.parse_one_message(kind, flags, sequence, data, offset, length)
        if code:
            header["error"] = OSError(-code, os.strerror(-code))
        return {"header": header}

    return parse


def _refusal(message: Any) -> Refused | None:
    """Return the error that a message of the kernel's tells of; None for none."""
    error = message["header"].get("error")
    if error is None:
        return None
    number, said = error.args
    words = os.strerror(number)
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    return Refused(number, words if said in (None, words) else f"{words} ({said})")


class _Socket:
    """A socket of pyroute2's, and what is said and answered on it."""

    def __init__(self) -> None:
        self._kernel = _speech().socket(groups=0, ext_ack=True)
        self._socket: socket.socket = self._kernel.socket
        self._buffer = bytearray(_BUFFER)
        self.number = 0
        """Of the last request."""
        self.close: Callable[[], None] = self._kernel.close

    def send(self, requests: Sequence[Request], read: Callable[[bytes], object]) -> range:
        """Send requests in one go, and have the answers read by `read`; return their sequence numbers."""
        numbers = range(self.number + 1, self.number + 1 + len(requests))
        self.number = numbers[-1]
        parser = _parser(self._kernel.marshal, read)
        packets = bytearray()
        for number, request in zip(numbers, requests, strict=True):
            start = len(packets)
            packets += _written(request.verb, request.attributes, len(request.name))
            _U32.pack_into(packets, start + _SEQUENCE_AT, number)
            packets[start + _HEADER.size] = request.family
            if request.name:
                packets[start + _NAME_AT : start + _NAME_AT + len(request.name)] = request.name
            if request.link or request.changed:
                body = (request.family, 0, request.link, request.flags, request.changed)
                _LINK_BODY.pack_into(packets, start + _HEADER.size, *body)
        self._kernel.marshal.seq_map = dict.fromkeys(numbers, parser)
        self._socket.send(packets)
        return numbers

    def receive(self) -> bytes:
        """Return the next datagram."""
        end = self._socket.recv_into(self._buffer)
        return bytes(memoryview(self._buffer)[:end])

    def read(self, datagram: bytes) -> Iterator[Any]:
        """Yield the messages of a datagram, as the parsers of their requests read them."""
        yield from self._kernel.marshal.parse(datagram)


def _ends(datagram: bytes, number: int) -> bool:
    """Tell whether a datagram ends what is answered to the request of this number."""
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        length, kind, _, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if sequence == number and kind in (_ERROR, _DONE):
            return True
        offset += max(length + (-length % 4), _HEADER.size)
    return False


_SPARE: list[_Socket] = []
"""One that nobody uses now: pyroute2 takes 0.1 ms to open another."""


class Netlink:
    """A socket to the kernel for one piece of work, opened at the first word. Use as a context manager."""

    def __init__(self) -> None:
        self._used: _Socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._used is None:
            return
        if kind is None and not _SPARE and self._used.number < _NUMBERS_MAX:
            _SPARE.append(self._used)
        else:
            self._used.close()
        self._used = None

    # -- Asking --

    def link(self, name: str) -> Link | None:
        """Return the link that goes by a name, be it one of its alternative ones; None for none."""
        return self.named([name]).get(name)

    def named(self, names: Iterable[str]) -> dict[str, Link]:
        """Return the links that go by these names, by the names asked for; those that are not there miss."""
        asked = list(dict.fromkeys(names))
        found = self._look([Request("get", (_MASK,), name=os.fsencode(name)) for name in asked])
        return {name: link for name, link in zip(asked, found, strict=True) if link}

    def present(self, name: str) -> Link:
        """Return a link that has to be there; raises OSError, ENODEV, if it vanished."""
        link = self.link(name)
        if link is None:
            raise OSError(errno.ENODEV, f"{name} vanished")
        return link

    def link_at(self, index: int) -> Link | None:
        """Return the link with an index; None where there is none."""
        return self._look([Request("get", (_MASK,), index)])[0] if index else None

    def links(self) -> list[Link]:
        """Return all links."""
        return self._dump(Request("links", (_MASK,)), parse_link)

    def carried(self) -> list[tuple[Link, int, int]]:
        """Return all links with the bytes each has received and sent since it was made, as the host sees it."""
        return [found for found in self._dump(Request("links"), _carried) if found is not None]

    def addressed(self) -> set[int]:
        """Return the indices of all links on which the host has an IP address that somebody gave it.

        Those that the kernel formed by itself, link-local or as a router advertisement says, do not count.
        """
        found = self._dump(Request("addresses"), _address)
        if not any(formed for *_, formed in found):  # an older kernel, which does not tell
            return {index for index, scope, _ in found if scope != _SCOPE_LINK}
        return {index for index, _, formed in found if not formed}

    def forwarding(self) -> list[Neighbour]:
        """Return the forwarding tables of all bridges."""
        return self._dump(Request("neighbours", family=AF_BRIDGE), parse_neighbour)

    def neighbours(self) -> list[Neighbour]:
        """Return the neighbour tables, IPv4's (ARP) and IPv6's."""
        families = (socket.AF_INET, socket.AF_INET6)
        tables = (self._dump(Request("neighbours", family=family), parse_neighbour) for family in families)
        return [entry for table in tables for entry in table]

    def _look(self, requests: Sequence[Request]) -> list[Link | None]:
        """Ask for single links, and return them in this order, None for each that is not there."""
        links: list[Link | None] = []
        for start in range(0, len(requests), _TOGETHER):
            for message in self._answers(requests[start : start + _TOGETHER], parse_link):
                error = _refusal(message)
                if error is not None and error.errno != errno.ENODEV:
                    raise error
                links.append(None if error else message["found"])
        return links

    # -- Changing --

    def do(self, requests: Iterable[Request], *, tolerate: int = 0) -> None:
        """Carry out requests in order; raises Refused at the first that is refused, but for one errno.

        Those that were sent together with it are carried out all the same.
        """
        waiting = list(requests)
        for start in range(0, len(waiting), _TOGETHER):
            for message in self._answers(waiting[start : start + _TOGETHER], bytes):
                if (error := _refusal(message)) is not None and error.errno != tolerate:
                    raise error

    def delete(self, links: Sequence[Link]) -> None:
        """Delete links, several in one step: each step alone takes the kernel some 20 ms.

        The kernel deletes a *group* of links at once, so they are moved into one of their own first.
        """
        if len(links) <= 1:
            self.do(deletion(link.index) for link in links)
            return
        group = int.from_bytes(os.urandom(4)) | 1 << 31
        while self._is_taken(group):
            group = int.from_bytes(os.urandom(4)) | 1 << 31
        self.do((change(link.index, group=group) for link in links), tolerate=errno.ENODEV)
        self.do([Request("del", (("IFLA_GROUP", group),))])

    def _is_taken(self, group: int) -> bool:
        """Tell whether there may be such a group: its attribute is somewhere in what is told of links."""
        pattern = _ATTRIBUTE.pack(8, _GROUP) + _U32.pack(group)
        return any(self._dump(Request("links", (_MASK,)), lambda body: pattern in body))

    # -- What is sent and received --

    def _kernel(self) -> "_Socket":
        if self._used is None:
            try:
                self._used = _SPARE.pop()
            except IndexError:
                self._used = _Socket()
        return self._used

    def _answers(self, requests: Sequence[Request], read: Callable[[bytes], object]) -> list[Any]:
        """Carry out requests, and return what is answered to each."""
        kernel = self._kernel()
        numbers = kernel.send(requests, read)
        answers: dict[int, Any] = {}
        while len(answers) < len(numbers):
            for message in kernel.read(kernel.receive()):
                if message["header"]["sequence_number"] >= numbers[0]:  # else left of what failed earlier
                    answers[message["header"]["sequence_number"]] = message
        return [answers[number] for number in numbers]

    def _dump(self, request: Request, read: Callable[[bytes], _T]) -> list[_T]:
        """Return a whole table; asks anew where it was changed while it was being received.

        So that this takes no longer than it has to, it is received first and read then.
        """
        kernel = self._kernel()
        for _ in range(_DUMPS_MAX):
            (number,) = kernel.send([request], read)
            datagrams = [kernel.receive()]
            while not _ends(datagrams[-1], number):
                datagrams.append(kernel.receive())
            told = [message for datagram in datagrams for message in kernel.read(datagram)]
            messages = [message for message in told if message["header"]["sequence_number"] == number]
            if (error := _refusal(messages[-1])) is not None:
                raise error
            if not any(message["header"]["flags"] & _DUMP_INTERRUPTED for message in messages):
                return [message["found"] for message in messages if "found" in message]
        raise OSError(errno.EAGAIN, "the host's links change faster than they can be read")


class Subscription:
    """What the kernel tells of neighbours by itself (RTNLGRP_NEIGH), never waited for. Close it in the end.

    Open it when pyroute2 is there already, unless in a thread.
    """

    def __init__(self, room: int) -> None:
        """Do not listen yet; `room` is how many bytes may wait to be read."""
        self._kernel = _speech().socket(groups=_NEIGHBOUR_GROUP, rcvbuf=room)
        self._kernel.marshal.seq_map[0] = _parser(self._kernel.marshal, parse_neighbour)
        self.socket: socket.socket = self._kernel.socket
        self.socket.setblocking(False)
        self.close: Callable[[], None] = self._kernel.close

    def listen(self) -> None:
        """Begin; raises OSError."""
        try:
            self._kernel.bind()
        except KeyError:  # pyroute2 has tried all its addresses
            raise OSError(errno.EADDRINUSE, "no address of rtnetlink is to be had") from None

    def receive(self) -> list[Neighbour]:
        """Return what one datagram tells; raises BlockingIOError where there is none, and OSError."""
        told = self._kernel.marshal.parse(self.socket.recv(_DATAGRAM))
        return [message["found"] for message in told if message["header"]["type"] == _NEWNEIGH]
