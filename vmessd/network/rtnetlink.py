"""rtnetlink: reading the host's links and changing them.

pyroute2 provides the sockets, encodes requests and decodes refusals. It is imported on first use, in the thread
of the caller: the import takes 0.15 s and 10 MiB, which a daemon without wires never spends. Requests are made
by :mod:`vmessd.network.netlink_requests`, and replies parsed by :mod:`vmessd.network.netlink_replies`.

Everything here blocks, a request for as long as another process holds the kernel's lock on links, so call it
from a thread. Nothing is cached: the kernel is asked each time. A message of :class:`Subscription` is only a
reason to look again.

Sources: rtnetlink(7), netlink(7), and Linux's include/uapi/linux/{rtnetlink,if_link,ip}.h.
"""

import errno
import functools
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeVar

from vmessd.core.names import LINK_NAME_MAX
from vmessd.network import netlink_requests
from vmessd.network.netlink_replies import (
    ADDRESS_BODY,
    AF_BRIDGE,
    ATTRIBUTE,
    LINK_BODY,
    NEIGHBOUR_BODY,
    IPAddress,
    Link,
    Neighbour,
    Route,
    Way,
    group_detector,
    parse_address,
    parse_flooding,
    parse_ip_address,
    parse_link,
    parse_neighbour,
    parse_redirection,
    parse_route,
    parse_traffic,
    parse_way,
)
from vmessd.network.netlink_requests import Fields, Request, change, deletion

_T = TypeVar("_T")

_ERROR, _DONE, _NEWNEIGH = 2, 3, 28
_DUMP_INTERRUPTED = 0x10
_HAS_MESSAGE = 0x200  # NLM_F_ACK_TLVS: the kernel explains its error in words
_SCOPE_LINK = 253

_SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS
_NEIGHBOUR_GROUP = 1 << 2  # RTNLGRP_NEIGH, 3, as a bit
ROUTE_GROUP = 1 << 6
"""Notifications about IPv4 routes: RTNLGRP_IPV4_ROUTE, 7, as a bit."""

_HEADER = struct.Struct("=IHHII")
_CODE = struct.Struct("=i")
_U32 = struct.Struct("=I")
_SEQUENCE_AT = 8  # in a header
_NAME_AT = _HEADER.size + LINK_BODY.size + ATTRIBUTE.size  # the payload of the first attribute

_BUFFER = 256 * 1024
_BATCH = 16  # requests sent before their replies are read; the replies must fit into a buffer
_DATAGRAM = 8192
_ENCODED_MAX = 4096  # messages of some 400 bytes each
_NUMBERS_MAX = 1 << 31  # sequence numbers have 32 bits
_DUMPS_MAX = 20  # attempts at a dump that others keep changing
_WITH_PREFIX = ("add address", "del address", "way")
_ABOUT_NEIGHBOURS = ("append neighbour", "del neighbour")
_NO_FILTER = (errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP)  # the last: a kernel without tc


class Refused(OSError):
    """The kernel refused a request; `strerror` includes its explanation if it gave one."""


_MASK = ("IFLA_EXT_MASK", _SKIP_STATISTICS)


# -- pyroute2 --


class _Pyroute2(NamedTuple):
    """The parts of pyroute2 in use."""

    socket: Any
    verbs: Mapping[str, tuple[Any, int, int]]
    """Class, type and flags of the message for each verb of a request."""


@functools.cache
def _pyroute2() -> _Pyroute2:
    """Import pyroute2 and return the parts in use."""
    from pyroute2 import IPRSocket, netlink  # noqa: PLC0415 -- see the module docstring
    from pyroute2.netlink import rtnl  # noqa: PLC0415
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: PLC0415
    from pyroute2.netlink.rtnl.ndmsg import ndmsg  # noqa: PLC0415
    from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: PLC0415
    from pyroute2.netlink.rtnl.tcmsg import tcmsg  # noqa: PLC0415

    link = _link_message()
    do, dump = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK, netlink.NLM_F_REQUEST | netlink.NLM_F_DUMP
    create = do | netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    append = do | netlink.NLM_F_CREATE | netlink.NLM_F_APPEND
    replace = do | netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
    verbs = {
        "add": (link, rtnl.RTM_NEWLINK, create),
        "set": (link, rtnl.RTM_NEWLINK, do),
        "del": (link, rtnl.RTM_DELLINK, do),
        "name": (link, rtnl.RTM_NEWLINKPROP, create),
        "get": (link, rtnl.RTM_GETLINK, netlink.NLM_F_REQUEST),
        "links": (link, rtnl.RTM_GETLINK, dump),
        "addresses": (ifaddrmsg, rtnl.RTM_GETADDR, dump),
        "add address": (ifaddrmsg, rtnl.RTM_NEWADDR, create),
        "del address": (ifaddrmsg, rtnl.RTM_DELADDR, do),
        "routes": (rtmsg, rtnl.RTM_GETROUTE, dump),
        "way": (rtmsg, rtnl.RTM_GETROUTE, netlink.NLM_F_REQUEST),
        "append neighbour": (ndmsg, rtnl.RTM_NEWNEIGH, append),
        "del neighbour": (ndmsg, rtnl.RTM_DELNEIGH, do),
        "neighbours": (ndmsg, rtnl.RTM_GETNEIGH, dump),
        "add qdisc": (tcmsg, rtnl.RTM_NEWQDISC, create),
        "replace qdisc": (tcmsg, rtnl.RTM_NEWQDISC, replace),
        "del qdisc": (tcmsg, rtnl.RTM_DELQDISC, do),
        "add filter": (tcmsg, rtnl.RTM_NEWTFILTER, create),
        "get filter": (tcmsg, rtnl.RTM_GETTFILTER, netlink.NLM_F_REQUEST),
    }
    return _Pyroute2(IPRSocket, verbs)


def _link_message() -> Any:
    """Return pyroute2's link message, extended by attributes that it cannot encode.

    pyroute2 terminates an alias with a NUL, so that one of 255 bytes does not fit. It decodes the settings of
    net.ipv4.conf (IPV4_DEVCONF_*), but does not encode them.
    """
    from pyroute2.netlink import NLA_F_NESTED, nla, nlmsg  # noqa: PLC0415 -- see the module docstring
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfbase  # noqa: PLC0415

    class Nested(nla):  # type: ignore[misc]
        nla_flags = NLA_F_NESTED

    class Settings(Nested):
        nla_map = (
            (1, "forwarding", "uint32"),
            (8, "rp_filter", "uint32"),
            (18, "arp_announce", "uint32"),
            (19, "arp_ignore", "uint32"),
        )

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


_OF_ONE_LINK: Mapping[str, tuple[Any, Callable[[Any], bytes]]] = {
    "IFLA_ADDRESS": ("00:00:00:00:00:00", lambda mac: bytes.fromhex(mac.replace(":", ""))),
    "IFLA_MASTER": (0, _U32.pack),
}
"""Attributes that differ from link to link: a value in place of any, and a function that encodes one."""


def _encoded(request: Request) -> bytearray:
    """Return a message encoded by pyroute2, without the link it refers to."""
    shapes, own = [], []
    for place, (name, value) in enumerate(request.attributes, start=bool(request.name)):
        if name == "IFLA_IFNAME":
            shapes.append((name, b"?" * len(value)))
            own.append((place, value))
        elif name in _OF_ONE_LINK:
            blank, encode = _OF_ONE_LINK[name]
            shapes.append((name, blank))
            own.append((place, encode(value)))
        else:
            shapes.append((name, value))
    message = bytearray(_template(request.verb, tuple(shapes), len(request.name), request.family))
    places = _places(message) if own else ()
    for place, value in own:
        message[places[place] : places[place] + len(value)] = value
    return message


def _places(message: bytearray) -> list[int]:
    """Return where the values of the attributes of a link message are, in order."""
    found, offset = [], _HEADER.size + LINK_BODY.size
    while offset + ATTRIBUTE.size <= len(message):
        length, _ = ATTRIBUTE.unpack_from(message, offset)
        found.append(offset + ATTRIBUTE.size)
        offset += length + (-length % 4)
    return found


@functools.lru_cache(_ENCODED_MAX)
def _template(verb: str, attributes: tuple[tuple[str, Any], ...], name_length: int, family: int) -> bytes:
    """Return a message encoded by pyroute2, without the link it refers to, and what is that link's own.

    Encoding takes up to 0.2 ms, and most messages are the same for each link.
    """
    if name_length:
        key = "IFLA_IFNAME" if name_length <= LINK_NAME_MAX else "IFLA_ALT_IFNAME"
        attributes = ((key, b"?" * name_length), *attributes)
    message_class, kind, flags = _pyroute2().verbs[verb]
    message = message_class()
    message["family"] = family  # by which pyroute2 encodes the addresses of routes
    message["attrs"] = _nested(attributes)["attrs"]
    message["header"] = {"type": kind, "flags": flags}
    message.encode()
    return bytes(message.data)


def _nested(attributes: tuple[tuple[str, Any], ...]) -> dict[str, list[tuple[str, Any]]]:
    """Return attributes in the form that pyroute2 expects."""
    return {"attrs": [*map(_pair, attributes)]}


def _value(value: Any) -> Any:
    if isinstance(value, Fields):
        return {name: [*map(_pair, part)] if name == "attrs" else part for name, part in value}
    return _nested(value) if isinstance(value, tuple) else value


def _pair(attribute: tuple[str, Any]) -> tuple[str, Any]:
    name, value = attribute
    return name, _value(value)


def any_link(matches: Callable[[str], object]) -> bool:
    """Tell whether there may be a link whose primary name matches.

    This avoids an import of pyroute2 that would find nothing. Once it is imported, the answer is always yes.
    The names come from if_nameindex(3): an ioctl for a single name makes the kernel try to load a module of
    that name first.
    """
    return "pyroute2" in sys.modules or any(matches(name) for _, name in socket.if_nameindex())


def _parser(marshal: Any, read: Callable[[bytes], object]) -> Callable[[bytes, int, int], Any]:
    """Return a parser for pyroute2 that stores `read(body)` under the key `found`.

    Its results have the shape that pyroute2 requires of a message. Refusals with words are left to pyroute2.
    """

    def parse(data: bytes, offset: int, length: int) -> Any:
        _, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        header = {"type": kind, "flags": flags, "sequence_number": sequence, "error": None}
        body = data[offset + _HEADER.size : offset + length]
        if kind not in (_ERROR, _DONE):
            return {"header": header, "found": read(body)}
        code = _CODE.unpack_from(body)[0] if len(body) >= _CODE.size else 0
        if code and kind == _ERROR and flags & _HAS_MESSAGE:
            return marshal.parse_one_message(kind, flags, sequence, data, offset, length)
        if code:
            header["error"] = OSError(-code, os.strerror(-code))
        return {"header": header}

    return parse


def _refusal(message: Any) -> Refused | None:
    """Return the error that a message of the kernel reports; None if it reports none."""
    error = message["header"].get("error")
    if error is None:
        return None
    number, said = error.args
    words = os.strerror(number)
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    return Refused(number, words if said in (None, words) else f"{words} ({said})")


class _Socket:
    """A netlink socket of pyroute2, with requests and replies."""

    def __init__(self) -> None:
        self._kernel = _pyroute2().socket(groups=0, ext_ack=True)
        self._socket: socket.socket = self._kernel.socket
        self._buffer = bytearray(_BUFFER)
        self.number = 0
        """The sequence number of the last request."""
        self.close: Callable[[], None] = self._kernel.close

    def send(self, requests: Sequence[Request], read: Callable[[bytes], object]) -> range:
        """Send requests in one datagram and return their sequence numbers; `read` will parse the replies."""
        numbers = range(self.number + 1, self.number + 1 + len(requests))
        self.number = numbers[-1]
        parser = _parser(self._kernel.marshal, read)
        packets = bytearray()
        for number, request in zip(numbers, requests, strict=True):
            start = len(packets)
            packets += _encoded(request)
            _U32.pack_into(packets, start + _SEQUENCE_AT, number)
            packets[start + _HEADER.size] = request.family
            if request.name:
                packets[start + _NAME_AT : start + _NAME_AT + len(request.name)] = request.name
            if request.verb in _WITH_PREFIX:
                body = (request.family, request.info, 0, 0, request.link)
                ADDRESS_BODY.pack_into(packets, start + _HEADER.size, *body)
            elif request.verb in _ABOUT_NEIGHBOURS:
                body = (request.family, request.link, request.info, request.flags, 0)
                NEIGHBOUR_BODY.pack_into(packets, start + _HEADER.size, *body)
            elif request.link or request.changed:
                body = (request.family, 0, request.link, request.flags, request.changed)
                LINK_BODY.pack_into(packets, start + _HEADER.size, *body)
            if request.info and request.verb not in (*_WITH_PREFIX, *_ABOUT_NEIGHBOURS):
                _U32.pack_into(packets, start + _HEADER.size + LINK_BODY.size, request.info)
        self._kernel.marshal.seq_map = dict.fromkeys(numbers, parser)
        self._socket.send(packets)
        return numbers

    def receive(self) -> bytes:
        """Return the next datagram."""
        end = self._socket.recv_into(self._buffer)
        return bytes(memoryview(self._buffer)[:end])

    def read(self, datagram: bytes) -> Iterator[Any]:
        """Yield the messages of a datagram, each parsed as its request demands."""
        yield from self._kernel.marshal.parse(datagram)


def _ends(datagram: bytes, number: int) -> bool:
    """Tell whether a datagram contains the end of the reply to the request with this sequence number."""
    return any(sequence == number and kind in (_ERROR, _DONE) for _, kind, sequence in _messages(datagram))


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where the bodies of the messages of a datagram begin, and the kinds and numbers of the messages."""
    offset = 0
    while (body := offset + _HEADER.size) <= len(datagram):
        length, kind, _, sequence, _ = _HEADER.unpack_from(datagram, offset)
        yield body, kind, sequence
        offset = max(offset + length + (-length % 4), body)


_SPARE: list[_Socket] = []
"""An idle socket for the next user: pyroute2 takes 0.1 ms to open another."""


class Netlink:
    """A netlink socket for one task, opened at the first request. Use it as a context manager."""

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

    # -- Queries --

    def link(self, name: str) -> Link | None:
        """Return the link with a primary or alternative name; None if there is none."""
        return self.named([name]).get(name)

    def named(self, names: Iterable[str]) -> dict[str, Link]:
        """Return the links with these names, by the names asked for. Missing links are left out."""
        asked = list(dict.fromkeys(names))
        found = self._query([Request("get", (_MASK,), name=os.fsencode(name)) for name in asked])
        return {name: link for name, link in zip(asked, found, strict=True) if link}

    def present(self, name: str) -> Link:
        """Return a link that must exist; raises OSError, ENODEV, if it vanished."""
        link = self.link(name)
        if link is None:
            raise OSError(errno.ENODEV, f"{name} vanished")
        return link

    def link_at(self, index: int) -> Link | None:
        """Return the link with an index; None if there is none."""
        return self._query([Request("get", (_MASK,), index)])[0] if index else None

    def links_at(self, indices: Iterable[int]) -> dict[int, Link]:
        """Return the links with these indices, by index. Missing links are left out."""
        found = self._query([Request("get", (_MASK,), index) for index in dict.fromkeys(indices)])
        return {link.index: link for link in found if link}

    def redirections(self, indices: Iterable[int]) -> dict[int, int]:
        """Return the targets of redirections by the indices of links; 0 for a target that was deleted.

        Links without a redirection, as :func:`netlink_requests.redirection` makes it, are left out.
        """
        asked = list(dict.fromkeys(indices))
        found: dict[int, int] = {}
        for start in range(0, len(asked), _BATCH):
            batch = asked[start : start + _BATCH]
            requests = map(netlink_requests.redirection_of, batch)
            for index, message in zip(batch, self._answers([*requests], parse_redirection), strict=True):
                error = _refusal(message)
                if error is not None and error.errno not in _NO_FILTER:
                    raise error
                if error is None and message["found"] is not None:
                    found[index] = message["found"]
        return found

    def links(self) -> list[Link]:
        """Return all links."""
        return self._dump(Request("links", (_MASK,)), parse_link)

    def spoken(self, links: Iterable[Link]) -> frozenset[int]:
        """Return those TAPs whose guest has sent frames and whose MACs no bridge learns, by index.

        These are TAPs with a cable, and those on a segment of two.
        """
        quiet = [link.index for link in links if link.tap and link.up and not (link.master and link.learns)]
        heard: set[int] = set()
        for start in range(0, len(quiet), _BATCH):
            batch = quiet[start : start + _BATCH]
            answers = self._answers([Request("get", (), index) for index in batch], parse_traffic)
            found = [message["found"] for message in answers if _refusal(message) is None]
            heard |= {link.index for link, received, _ in filter(None, found) if received}
        return frozenset(heard)

    def ports(self, bridge: int) -> list[Link]:
        """Return the ports of a bridge, by its index."""
        return self._dump(Request("links", (_MASK, ("IFLA_MASTER", bridge))), parse_link)

    def traffic(self) -> list[tuple[Link, int, int]]:
        """Return all links with the bytes that the host has received and sent on each since its creation."""
        return [found for found in self._dump(Request("links"), parse_traffic) if found is not None]

    def addressed(self) -> set[int]:
        """Return the indices of all links on which the host has a configured IP address.

        Addresses that the kernel formed (link-local, or from a router advertisement) do not count.
        """
        found = self._dump(Request("addresses"), parse_address)
        if not any(formed for *_, formed in found):  # a kernel before 5.18 does not say
            return {index for index, scope, _ in found if scope != _SCOPE_LINK}
        return {index for index, _, formed in found if not formed}

    def addresses(self, family: int) -> list[IPAddress]:
        """Return the IP addresses of the host; the family is AF_INET or AF_INET6."""
        return self._dump(Request("addresses", family=family), parse_ip_address)

    def routes(self) -> list[Route]:
        """Return the IPv4 routes of the host to other stations, of all tables."""
        found = self._dump(Request("routes", family=socket.AF_INET), parse_route)
        return [route for route in found if route is not None]

    def forwarding(self) -> list[Neighbour]:
        """Return the forwarding tables of all bridges."""
        return self._dump(Request("neighbours", family=AF_BRIDGE), parse_neighbour)

    def flooding(self) -> dict[int, list[ipaddress.IPv4Address | ipaddress.IPv6Address]]:
        """Return the addresses to which VXLANs send frames for unknown stations, by the index of the link."""
        found: dict[int, list[ipaddress.IPv4Address | ipaddress.IPv6Address]] = {}
        for entry in self._dump(Request("neighbours", family=AF_BRIDGE), parse_flooding):
            if entry is not None:
                found.setdefault(entry[0], []).append(entry[1])
        return found

    def way(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Way:
        """Return how a packet to an address leaves; raises Refused, mostly ENETUNREACH."""
        (message,) = self._answers([netlink_requests.way(address)], parse_way)
        if (error := _refusal(message)) is not None:
            raise error
        found: Way = message["found"]
        return found

    def neighbours(self) -> list[Neighbour]:
        """Return the neighbour tables of IPv4 (ARP) and IPv6 (NDP)."""
        families = (socket.AF_INET, socket.AF_INET6)
        tables = (self._dump(Request("neighbours", family=family), parse_neighbour) for family in families)
        return [entry for table in tables for entry in table]

    def _query(self, requests: Sequence[Request]) -> list[Link | None]:
        """Request single links and return them in this order, with None for each missing one."""
        links: list[Link | None] = []
        for start in range(0, len(requests), _BATCH):
            for message in self._answers(requests[start : start + _BATCH], parse_link):
                error = _refusal(message)
                if error is not None and error.errno != errno.ENODEV:
                    raise error
                links.append(None if error else message["found"])
        return links

    # -- Changes --

    def do(self, requests: Iterable[Request], *, tolerate: int = 0) -> None:
        """Carry out requests in order; raises Refused for the first error other than `tolerate` (an errno).

        Other requests of the same batch are carried out nevertheless.
        """
        waiting = list(requests)
        for start in range(0, len(waiting), _BATCH):
            for message in self._answers(waiting[start : start + _BATCH], bytes):
                if (error := _refusal(message)) is not None and error.errno != tolerate:
                    raise error

    def delete(self, links: Sequence[Link]) -> None:
        """Delete links in one request, because each deletion takes the kernel some 20 ms.

        The kernel can delete a *group* of links at once, so several links first move to a new group.
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
        """Tell whether a link may be in this group."""
        return any(self._dump(Request("links", (_MASK,)), group_detector(group)))

    # -- Requests and replies --

    def _kernel(self) -> "_Socket":
        if self._used is None:
            try:
                self._used = _SPARE.pop()
            except IndexError:
                self._used = _Socket()
        return self._used

    def _answers(self, requests: Sequence[Request], read: Callable[[bytes], object]) -> list[Any]:
        """Carry out requests and return the reply to each."""
        kernel = self._kernel()
        numbers = kernel.send(requests, read)
        answers: dict[int, Any] = {}
        while len(answers) < len(numbers):
            for message in kernel.read(kernel.receive()):
                if message["header"]["sequence_number"] >= numbers[0]:  # else left over from an earlier failure
                    answers[message["header"]["sequence_number"]] = message
        return [answers[number] for number in numbers]

    def _dump(self, request: Request, read: Callable[[bytes], _T]) -> list[_T]:
        """Return a whole table. Repeats the request if the table changed during the dump.

        All datagrams are received before any is parsed, to keep the dump short.
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
    """Non-blocking notifications of the kernel, about neighbours unless others are wanted. Close it after use.

    Create it in a thread unless pyroute2 is imported already.
    """

    def __init__(self, buffer_size: int, groups: int = _NEIGHBOUR_GROUP) -> None:
        """Create the socket, not yet subscribed, with a receive buffer of `buffer_size` bytes."""
        self._kernel = _pyroute2().socket(groups=groups, rcvbuf=buffer_size)
        self._kernel.marshal.seq_map[0] = _parser(self._kernel.marshal, parse_neighbour)
        self.socket: socket.socket = self._kernel.socket
        self.socket.setblocking(False)
        self.close: Callable[[], None] = self._kernel.close

    def listen(self) -> None:
        """Subscribe; raises OSError."""
        try:
            self._kernel.bind()
        except KeyError:  # pyroute2 has tried all its addresses
            raise OSError(errno.EADDRINUSE, "no netlink address is available") from None

    def drain(self, matters: Callable[[bytes], bool]) -> bool:
        """Read all that is there; tell whether the body of a message matters, or some were lost.

        Raises OSError.
        """
        found = False
        while True:
            try:
                data = self.socket.recv(_DATAGRAM)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
            else:
                found = found or any(matters(data[body:]) for body, _, _ in _messages(data))

    def receive(self) -> list[Neighbour]:
        """Return the entries of one datagram; raises BlockingIOError if there is none, and OSError."""
        told = self._kernel.marshal.parse(self.socket.recv(_DATAGRAM))
        return [message["found"] for message in told if message["header"]["type"] == _NEWNEIGH]
