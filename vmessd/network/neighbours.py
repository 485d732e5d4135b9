"""The addresses of a guest, as far as the host can tell without asking the guest. Pure.

The forwarding table of a bridge has the MACs behind a TAP. The neighbour tables of the host (ARP, NDP) have the
IP addresses that the host has talked to, and dnsmasq notes what it gave guests by DHCP. A link-local address
follows from the MAC (RFC 4291, appendix A) if the guest forms it that way, as Linux does without NetworkManager
or privacy extensions.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vmessd.core.dataclass import dataclass
from vmessd.core.models.wires import VMAddress
from vmessd.network.netlink_replies import Neighbour

USER_ADDRESS = "10.0.2.15"
"""The address that QEMU's user-mode network gives the guest by DHCP (QEMU, "network backends")."""
STATIONS_MAX = 64
"""MACs to report besides the guest's own: a guest may send frames from any number."""


def link_local(mac: str) -> str:
    """Return the IPv6 link-local address whose interface identifier is the MAC's EUI-64."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + octets[:3] + b"\xff\xfe" + octets[3:]))


class Leased(NamedTuple):
    """An address that a guest got by DHCP from the host, and that is valid now."""

    mac: str
    ip: str
    bridge: str


@dataclass(frozen=True)
class Tables:
    """The tables of the host."""

    forwarding: Sequence[Neighbour]
    """The forwarding tables of all bridges."""
    neighbours: Sequence[Neighbour]
    names: Mapping[int, str]
    """The names of links, by index."""
    spoken: frozenset[int] = frozenset()
    """The TAPs on which frames were heard, without a note of whose they were (Netlink.spoken)."""
    leases: Sequence[Leased] = ()
    """What guests got on bridges with NAT."""


def behind(port: int, mac: str, forwarding: Sequence[Neighbour]) -> list[str]:
    """Return the MACs behind a port of a bridge: the card's own, then at most STATIONS_MAX learned ones."""
    heard = {entry.mac for entry in forwarding if entry.index == port and entry.master and not entry.permanent}
    return [mac, *sorted(heard - {mac})[:STATIONS_MAX]]


def best(addresses: Sequence[VMAddress]) -> list[str]:
    """Return the known addresses without duplicates: first IPv4, then IPv6, then link-local ones."""

    def order(address: str) -> int:
        return 0 if ":" not in address else 2 if address.startswith("fe80:") else 1

    known = dict.fromkeys(found.address for found in addresses if found.known)
    return sorted(known, key=order)


def of_interface(interface: int, mac: str, port: int, tables: Tables) -> list[VMAddress]:
    """Return the addresses behind a TAP; `port` is its index, `mac` the MAC of the network card."""
    stations = behind(port, mac, tables.forwarding)
    heard = {entry.mac for entry in tables.forwarding if entry.index == port and not entry.permanent}
    heard |= {mac} if port in tables.spoken else set()
    known: dict[str, dict[str, int]] = {station: {} for station in stations}
    for entry in tables.neighbours:
        if entry.mac in known and entry.ip:
            known[entry.mac][entry.ip] = entry.index
    found = []
    for station in stations:
        for ip, index in known[station].items():
            source = f"neighbour table, {tables.names.get(index, index)}"
            found.append(VMAddress(interface, station, ip, seen=True, source=source, known=True))
        for lease in tables.leases:
            if lease.mac == station and lease.ip not in known[station]:
                source = f"DHCP, {lease.bridge}"
                found.append(VMAddress(interface, station, lease.ip, seen=True, source=source, known=True))
        if link_local(station) not in known[station]:
            source = f"EUI-64 of the MAC, {'which was' if station in heard else 'not'} heard"
            own = link_local(station)
            found.append(VMAddress(interface, station, own, False, source, known=station in heard))
    return found
