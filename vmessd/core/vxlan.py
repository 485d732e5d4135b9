"""The peers of VXLANs: the addresses that a segment reaches, and the file that keeps them. Pure."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vmessd.core.errors import BadFile, InvalidValue, quoted
from vmessd.core.wires import NamedKind, bridge_name, kind_by_name, link_name

FILE = "NET_PEERS"
"""File in the VM root: a bridge, a VXLAN, its MTU and its peers on each line. The daemon restores them."""
PEERS_MAX = 64
"""Peers of a VXLAN: each frame for an unknown station is sent to every one of them."""
MTU_MAX = 65535

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Peering(NamedTuple):
    """A VXLAN in a bridge, and the hosts to which it leads."""

    bridge: str
    link: str
    mtu: int
    """What the underlay carried for it when the peers were given, in bytes."""
    peers: tuple[Address, ...]


def overhead(address: Address) -> int:
    """Return what a VXLAN adds to an IP packet in bytes (RFC 7348, section 5): Ethernet, VXLAN, UDP and IP."""
    return 14 + 8 + 8 + (20 if address.version == 4 else 40)


def check_link(link: str) -> None:
    """Raise InvalidValue if a name is not that of a VXLAN."""
    link_name(link, "link name")
    if kind_by_name(link) is not NamedKind.vxlan:
        raise InvalidValue(f"{quoted(link)} is not a VXLAN such as vxlan7; no other link has peers")


def parse_peers(words: Sequence[str]) -> tuple[Address, ...]:
    """Return addresses of other hosts, all of one family; raises InvalidValue."""
    if len(words) > PEERS_MAX:
        raise InvalidValue(f"{len(words)} peers are more than {PEERS_MAX}, the most that a VXLAN can have")
    found: list[Address] = []
    for word in words:
        address = _peer(word)
        if address in found:
            raise InvalidValue(f"peer {address} is named twice")
        if found and address.version != found[0].version:
            raise InvalidValue(
                f"peers {found[0]} and {address} are of IPv4 and IPv6; those of a VXLAN are all of one"
            )
        found.append(address)
    return tuple(found)


def _peer(word: str) -> Address:
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        raise InvalidValue(f"peer {quoted(word)} is not an IPv4 or IPv6 address such as 192.0.2.2") from None
    address = getattr(address, "ipv4_mapped", None) or address
    kinds = {
        "a multicast address": address.is_multicast,
        "a loopback address": address.is_loopback,
        "a link-local address, which says no link": address.is_link_local,
        "no address of a host": address.is_unspecified or (address.version == 4 and address.packed[0] == 0),
    }
    for kind, so in kinds.items():
        if so:
            raise InvalidValue(f"peer {quoted(word)} is {kind}; it must be the address of another host")
    return address


def parse_allowed(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Return a range within which peers may be; raises InvalidValue."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise InvalidValue(f"allow-peers {quoted(text)} is not a range such as 192.0.2.0/24, or *") from None


def parse_file(text: str, where: str) -> list[Peering]:
    """Return the peers in the file, `where` in messages; raises BadFile."""
    found: dict[str, Peering] = {}
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            peering = _parse_line(line)
            if peering.link in found:
                raise InvalidValue(f"{quoted(peering.link)} is there twice")
        except InvalidValue as error:
            raise BadFile(f"{where}: {error.message}", hint=f"correct or delete the file {where}") from None
        found[peering.link] = peering
    return [*found.values()]


def _parse_line(line: str) -> Peering:
    bridge, link, mtu, *peers = line.split() if len(line.split()) > 3 else [""] * 3
    if not (mtu.isascii() and mtu.isdecimal() and len(mtu) <= 5 and int(mtu) <= MTU_MAX):
        raise InvalidValue(f"line {quoted(line)} is not a bridge, a VXLAN, its MTU and its peers")
    bridge_name(bridge)
    check_link(link)
    return Peering(bridge, link, int(mtu), parse_peers(peers))


def file_text(peerings: Iterable[Peering]) -> str:
    """Return the contents of the file."""
    return "".join(f"{one.bridge} {one.link} {one.mtu} {' '.join(map(str, one.peers))}\n" for one in peerings)
