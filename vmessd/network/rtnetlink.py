"""The kernel's links over rtnetlink: what there is, and one request for each thing that is changed.

Everything here blocks, a request for as long as others hold the kernel's one lock on links; callers
are in a thread. Nothing is cached: the kernel is asked when it matters, so there is no picture of it that
could be lost or stale. What :class:`Learned` subscribes to only says that there is something to look at.

Sources: rtnetlink(7), netlink(7), and Linux's include/uapi/linux/{rtnetlink,if_link,if_addr,ip,neighbour}.h.
"""

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

_NEWLINK, _DELLINK, _GETLINK, _GETADDR, _NEWNEIGH, _GETNEIGH = 16, 17, 18, 22, 28, 30
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_DUMP_INTERRUPTED, _ACK_TLVS = 0x10, 0x200
_SOL_NETLINK, _EXT_ACK, _CAP_ACK = 270, 11, 10
_ERROR_TEXT = 1  # NLMSGERR_ATTR_MSG
_NEST = 0x8000

_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _LINKINFO, _ALIAS, _AF_SPEC, _GROUP = 1, 3, 4, 5, 10, 18, 20, 26, 27
_STATS64, _EXT_MASK, _CARRIER = 23, 29, 33
_KIND, _DATA = 1, 2
_SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS
_GEN_MODE, _GEN_MODE_NONE = 8, 1  # IFLA_INET6_ADDR_GEN_MODE: no link-local address by itself
_TUN_OWNER, _TUN_TYPE, _TUN_TAP, _TUN_MULTI_QUEUE = 1, 3, 2, 7
_INET_CONF = 1  # IFLA_INET_CONF: one link's net.ipv4.conf, without sysctl(8)
_RP_FILTER, _ARP_ANNOUNCE, _ARP_IGNORE = 8, 18, 19
_BRIDGE_DELAY, _BRIDGE_STP, _BRIDGE_SNOOPING = 1, 5, 23
_VLAN_ID, _VETH_PEER, _VXLAN_ID, _VXLAN_PORT = 1, 1, 1, 15
_NEIGHBOUR_IP, _NEIGHBOUR_MAC, _NEIGHBOUR_MASTER = 1, 2, 9
_PERMANENT, _FAILED = 0x80, 0x20
_SCOPE_LINK = 253
_ADDRESS_ORIGIN = 11  # IFA_PROTO: of the kernel's own addresses 1 to 3, of others not there; Linux >= 5.18
_AF_BRIDGE = 7

_HEADER = struct.Struct("=IHHII")
_LINK_BODY = struct.Struct("=BxHiII")
_ADDRESS_BODY = struct.Struct("=BBBBI")
_NEIGHBOUR_BODY = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_STATISTICS = struct.Struct("=QQQQ")  # the beginning of rtnl_link_stats64: packets, then bytes

_BUFFER = 256 * 1024
_TOGETHER = 16  # requests sent before their answers are read; the answers have to fit into a buffer
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


Request = tuple[int, int, bytes]
"""Type of message, flags, and what stands behind the header."""


class Refused(OSError):
    """The kernel refused a request; `strerror` has its own words where it gave any."""


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, *inner: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | _NEST, b"".join(inner))


def attributes(data: bytes | memoryview, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the attributes in `data` from `offset` on, as type and payload."""
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, bytes(data[offset + 4 : offset + length])
        offset += length + (-length % 4)


def _text(name: str) -> bytes:
    return os.fsencode(name) + b"\0"


def _number(payload: bytes) -> int:
    return int.from_bytes(payload, sys.byteorder)


def _u32(number: int) -> bytes:
    return struct.pack("=I", number)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _flags(flag: int, wanted: bool | None) -> tuple[int, int]:
    return (0, 0) if wanted is None else (flag * wanted, flag)


def _body(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return _LINK_BODY.pack(0, 0, index, flags, change)


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
        ip=str(ipaddress.ip_address(address)) if address and family != _AF_BRIDGE else None,
        permanent=bool(state & _PERMANENT),
    )


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
    parts = [_body(index, up_flag | group_flag, up_mask | group_mask)]
    if name is not None:
        parts.append(attribute(_IFNAME, _text(name)))
    if mtu is not None:
        parts.append(attribute(_MTU, _u32(mtu)))
    if mac is not None:
        parts.append(attribute(_ADDRESS, _mac(mac)))
    if master is not None:
        parts.append(attribute(_MASTER, _u32(master)))
    if alias is not None:
        parts.append(attribute(_ALIAS, os.fsencode(alias)))
    if group is not None:
        parts.append(attribute(_GROUP, _u32(group)))
    return _NEWLINK, 0, b"".join(parts)


def quiet(index: int) -> Request:
    """Return a request that keeps the host from giving itself an IPv6 address on a link.

    Refused with EAFNOSUPPORT where there is no IPv6, and so nothing to keep quiet.
    """
    mode = attribute(_GEN_MODE, bytes([_GEN_MODE_NONE]))
    return _NEWLINK, 0, _body(index) + nested(_AF_SPEC, nested(socket.AF_INET6, mode))


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
    conf = [(_RP_FILTER, 2), (_ARP_ANNOUNCE, 2), (_ARP_IGNORE, 1)]
    settings = nested(_INET_CONF, *(attribute(number, _u32(value)) for number, value in conf))
    snooping = nested(_DATA, attribute(_BRIDGE_SNOOPING, b"\0"))
    return [
        change(index, mtu=IPV6_MTU_MIN - 1),
        (_NEWLINK, 0, _body(index) + nested(_AF_SPEC, nested(socket.AF_INET, settings))),
        (_NEWLINK, 0, _body(index) + nested(_LINKINFO, attribute(_KIND, b"bridge"), snooping)),
    ]


def marked(name: str, alias: str) -> Request:
    """Return a request that gives the link of this name an alias, to be sent along with what makes it."""
    return _NEWLINK, 0, _body() + attribute(_IFNAME, _text(name)) + attribute(_ALIAS, os.fsencode(alias))


def _creation(name: str, kind: str, data: bytes, *more: bytes) -> Request:
    information = nested(_LINKINFO, attribute(_KIND, kind.encode()), nested(_DATA, data))
    return _NEWLINK, _CREATE | _EXCL, b"".join([_body(), attribute(_IFNAME, _text(name)), *more, information])


def new_bridge(name: str, mac: str) -> Request:
    """Return a request for a bridge that never blocks a port: no spanning tree, no delay, no snooping."""
    data = attribute(_BRIDGE_DELAY, _u32(0)) + attribute(_BRIDGE_STP, _u32(0))
    data += attribute(_BRIDGE_SNOOPING, b"\0")
    return _creation(name, "bridge", data, attribute(_ADDRESS, _mac(mac)))


def new_vlan(name: str, parent: int, tag: int) -> Request:
    """Return a request for a VLAN sub-interface of another link."""
    return _creation(name, "vlan", attribute(_VLAN_ID, struct.pack("=H", tag)), attribute(_LINK, _u32(parent)))


def new_veth(name: str, peer: str) -> Request:
    """Return a request for a pair of links: what goes into one comes out of the other."""
    return _creation(name, "veth", attribute(_VETH_PEER, _body() + attribute(_IFNAME, _text(peer))))


def new_vxlan(name: str, identifier: int, port: int) -> Request:
    """Return a request for a VXLAN end point that learns; where to send at first is for `bridge fdb`."""
    data = attribute(_VXLAN_ID, _u32(identifier)) + attribute(_VXLAN_PORT, struct.pack(">H", port))
    return _creation(name, "vxlan", data)


def deletion(index: int) -> Request:
    """Return a request that deletes a link."""
    return _DELLINK, 0, _body(index)


class Netlink:
    """A socket to the kernel for one piece of work. Use as a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._buffer = bytearray(_BUFFER)
        self._sequence = 0

    def __enter__(self) -> Self:
        self._socket.bind((0, 0))
        for option in (_CAP_ACK, _EXT_ACK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    # -- Asking --

    def link(self, name: str) -> Link | None:
        """Return the link that goes by a name, be it one of its alternative ones; None for none."""
        return self.named([name]).get(name)

    def named(self, names: Iterable[str]) -> dict[str, Link]:
        """Return the links that go by these names, by the names asked for; those that are not there miss."""
        asked = list(dict.fromkeys(names))
        found = self._look([_body() + attribute(_IFNAME, _text(name)) for name in asked])
        return {name: link for name, link in zip(asked, found, strict=True) if link}

    def present(self, name: str) -> Link:
        """Return a link that has to be there; raises OSError, ENODEV, if it vanished."""
        link = self.link(name)
        if link is None:
            raise OSError(errno.ENODEV, f"{name} vanished")
        return link

    def link_at(self, index: int) -> Link | None:
        """Return the link with an index; None where there is none."""
        return self._look([_body(index)])[0] if index else None

    def links(self) -> list[Link]:
        """Return all links."""
        mask = attribute(_EXT_MASK, _u32(_SKIP_STATISTICS))
        return [parse_link(body) for kind, body in self._dump(_GETLINK, _body() + mask) if kind == _NEWLINK]

    def carried(self) -> list[tuple[Link, int, int]]:
        """Return all links with the bytes each has received and sent since it was made, as the host sees it."""
        found = []
        for kind, body in self._dump(_GETLINK, _body()):
            statistics = dict(attributes(body, _LINK_BODY.size)).get(_STATS64)
            if kind == _NEWLINK and statistics:
                _, _, received, sent = _STATISTICS.unpack_from(statistics)
                found.append((parse_link(body), received, sent))
        return found

    def addressed(self) -> set[int]:
        """Return the indices of all links on which the host has an IP address that somebody gave it.

        Those that the kernel formed by itself, link-local or as a router advertisement says, do not count.
        """
        replies = [body for _, body in self._dump(_GETADDR, _ADDRESS_BODY.pack(0, 0, 0, 0, 0))]
        formed = [_ADDRESS_ORIGIN in dict(attributes(body, _ADDRESS_BODY.size)) for body in replies]
        found = [_ADDRESS_BODY.unpack_from(body) for body in replies]
        if not any(formed):  # an older kernel, which does not tell
            formed = [scope == _SCOPE_LINK for _, _, _, scope, _ in found]
        return {index for (*_, index), by_itself in zip(found, formed, strict=True) if not by_itself}

    def forwarding(self) -> list[Neighbour]:
        """Return the forwarding tables of all bridges."""
        body = _LINK_BODY.pack(_AF_BRIDGE, 0, 0, 0, 0)
        return [parse_neighbour(reply) for _, reply in self._dump(_GETNEIGH, body)]

    def neighbours(self) -> list[Neighbour]:
        """Return the neighbour tables, IPv4's (ARP) and IPv6's."""
        bodies = [_NEIGHBOUR_BODY.pack(family, 0, 0, 0, 0) for family in (socket.AF_INET, socket.AF_INET6)]
        return [parse_neighbour(reply) for body in bodies for _, reply in self._dump(_GETNEIGH, body)]

    def _look(self, bodies: Sequence[bytes]) -> list[Link | None]:
        """Ask for single links, and return them in this order, None for each that is not there."""
        mask = attribute(_EXT_MASK, _u32(_SKIP_STATISTICS))
        links: list[Link | None] = []
        for start in range(0, len(bodies), _TOGETHER):
            together = bodies[start : start + _TOGETHER]
            before = self._send([(_GETLINK, 0, body + mask) for body in together])
            answers = self._answers(before, len(together))
            for sequence in range(before + 1, before + 1 + len(together)):
                kind, flags, body = answers[sequence]
                error = _refusal(flags, body) if kind == _ERROR else None
                if error is not None and error.errno != errno.ENODEV:
                    raise error
                links.append(parse_link(body) if kind == _NEWLINK else None)
        return links

    # -- Changing --

    def do(self, requests: Iterable[Request], *, tolerate: int = 0) -> None:
        """Carry out requests in order; raises Refused at the first that is refused, but for one errno.

        Those that were sent together with it are carried out all the same.
        """
        waiting = list(requests)
        while waiting:
            together = waiting[:_TOGETHER]
            before = self._send([(kind, flags | _ACK, body) for kind, flags, body in together])
            answers = self._answers(before, len(together))
            for sequence in sorted(answers):
                _, flags, body = answers[sequence]
                if (error := _refusal(flags, body)) is not None and error.errno != tolerate:
                    raise error
            del waiting[:_TOGETHER]

    def delete(self, links: Sequence[Link]) -> None:
        """Delete links, several in one step: each step alone takes the kernel some 20 ms.

        The kernel deletes a *group* of links at once, so they are moved into one of their own first.
        """
        if len(links) <= 1:
            self.do(deletion(link.index) for link in links)
            return
        group = int.from_bytes(os.urandom(4)) | 1 << 31
        while self._mentions(attribute(_GROUP, _u32(group))):
            group = int.from_bytes(os.urandom(4)) | 1 << 31
        self.do((change(link.index, group=group) for link in links), tolerate=errno.ENODEV)
        self.do([(_DELLINK, 0, _body() + attribute(_GROUP, _u32(group)))])

    def _mentions(self, pattern: bytes) -> bool:
        """Tell whether these bytes stand anywhere in what the kernel tells of all links, without reading it."""
        mask = attribute(_EXT_MASK, _u32(_SKIP_STATISTICS))
        return any(pattern in body for _, body in self._dump(_GETLINK, _body() + mask))

    # -- The protocol --

    def _send(self, requests: Sequence[Request]) -> int:
        """Send requests in one go and return the sequence number before the first."""
        before = self._sequence
        packets = []
        for kind, flags, body in requests:
            self._sequence += 1
            size = _HEADER.size + len(body)
            packets.append(_HEADER.pack(size, kind, flags | _REQUEST, self._sequence, 0) + body)
        self._socket.send(b"".join(packets))
        return before

    def _messages(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield the messages of one datagram: type, flags, sequence number, body."""
        end = self._socket.recv_into(self._buffer)
        data = bytes(memoryview(self._buffer)[:end])
        offset = 0
        while offset + _HEADER.size <= end:
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                return
            yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
            offset += length + (-length % 4)

    def _answers(self, before: int, count: int) -> dict[int, tuple[int, int, bytes]]:
        """Return the answers to the last `count` requests, by sequence number: type, flags, body."""
        answers: dict[int, tuple[int, int, bytes]] = {}
        while len(answers) < count:
            for kind, flags, sequence, body in self._messages():
                if sequence > before:  # else what an earlier, failed exchange did not wait for
                    answers[sequence] = (kind, flags, body)
        return answers

    def _dump(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        """Return a whole table; asks anew where it was changed while it was being read."""
        for _ in range(_DUMPS_MAX):
            before = self._send([(kind, _DUMP, body)])
            replies: list[tuple[int, bytes]] = []
            whole, done = True, False
            while not done:
                for reply, flags, sequence, content in self._messages():
                    if sequence <= before:
                        continue
                    whole = whole and not flags & _DUMP_INTERRUPTED
                    if reply in (_DONE, _ERROR) and (error := _refusal(flags, content)):
                        raise error
                    done = done or reply in (_DONE, _ERROR)
                    if reply not in (_DONE, _ERROR):
                        replies.append((reply, content))
            if whole:
                return replies
        raise OSError(errno.EAGAIN, "the host's links change faster than they can be read")


def _refusal(flags: int, body: bytes) -> Refused | None:
    """Return the error that a message of type NLMSG_ERROR or NLMSG_DONE tells of; None for none."""
    number = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if number == 0:
        return None
    words = os.strerror(-number)
    if flags & _ACK_TLVS:  # attributes stand behind the header of the request
        said = dict(attributes(body, 4 + _HEADER.size)).get(_ERROR_TEXT)
        if said:
            words = f"{words} ({said.rstrip(bytes(1)).decode(errors='replace')})"
    return Refused(-number, words)


_NEIGHBOUR_GROUP = 1 << 2  # RTNLGRP_NEIGH, 3, as a bit
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which Python does not know
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_FIND_ATTRIBUTE = 0x100000000 - 0x1000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR
_FILTERED_MAX = 800  # a program has 4096 instructions at most, and each MAC takes five
_LEARNED_BUFFER = 64 * 1024


class Learned:
    """What bridges learn of certain MACs, as the kernel tells it at once (RTNLGRP_NEIGH). Close it in the end.

    The kernel is given the MACs as a filter: a guest that makes bridges learn any number of others wakes up
    nobody. Takes no privilege. Sources: rtnetlink(7), Linux's Documentation/networking/filter.rst and
    fdb_notify() in net/bridge/br_fdb.c.
    """

    def __init__(self) -> None:
        kinds = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kinds, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LEARNED_BUFFER)
        self._filter([])
        self._socket.bind((0, _NEIGHBOUR_GROUP))

    def fileno(self) -> int:
        """Return the descriptor, which can be read from when there is something."""
        return self._socket.fileno()

    def close(self) -> None:
        """Subscribe to nothing any more."""
        self._socket.close()

    def listen(self, macs: Collection[str]) -> None:
        """Hear of these MACs from now on, and of all where they are too many for the kernel."""
        self._filter(sorted(macs) if len(macs) <= _FILTERED_MAX else None)

    def read(self, most: int) -> tuple[list[Neighbour], bool]:
        """Return what was told, at most so many messages, and whether that is all there is by now.

        Where more come than are read, some get lost.
        """
        found: list[Neighbour] = []
        for _ in range(most):
            try:
                data = self._socket.recv(8192)
            except BlockingIOError:
                return found, True
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    continue
                raise
            kind = _HEADER.unpack_from(data)[1] if len(data) >= _HEADER.size + _NEIGHBOUR_BODY.size else 0
            if kind == _NEWNEIGH:
                found.append(parse_neighbour(data[_HEADER.size :]))
        return found, False

    def _filter(self, macs: Sequence[str] | None) -> None:
        program = learned_filter(macs)
        buffer = ctypes.create_string_buffer(program, len(program))
        described = struct.pack("HP", len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
        with contextlib.suppress(OSError):  # without it there is more to read, and that is all
            self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)


def learned_filter(macs: Sequence[str] | None) -> bytes:
    """Return a program for the kernel's packet filter: what bridges learn of these MACs, or of all, passes."""
    keep, drop = (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)
    program = [
        *((0x28, 0, 0, 4), (0x15, 1, 0, socket.htons(_NEWNEIGH)), drop),  # nlmsg_type, in the host's order
        *((0x30, 0, 0, _HEADER.size), (0x15, 1, 0, _AF_BRIDGE), drop),  # ndm_family
        *((0x00, 0, 0, _HEADER.size + _NEIGHBOUR_BODY.size), (0x01, 0, 0, _NEIGHBOUR_MAC)),
        *((0x20, 0, 0, _FIND_ATTRIBUTE), (0x15, 0, 1, 0), drop),
        (0x07, 0, 0, 0),  # the attribute with the MAC begins at X; four bytes on is the MAC
    ]
    for mac in macs or ():
        high, low = struct.unpack(">HI", _mac(mac))
        program += [(0x40, 0, 0, 6), (0x15, 0, 3, low), (0x48, 0, 0, 4), (0x15, 0, 1, high), keep]
    program.append(keep if macs is None else drop)
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
