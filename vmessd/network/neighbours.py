"""What a guest's addresses are, as far as the host can tell without asking the guest. Pure.

The host sees MACs behind a TAP in its bridge's forwarding table, and IP addresses of those it has
spoken to in its neighbour tables (ARP, NDP). A link-local address follows from a MAC (RFC 4291,
appendix A) where the guest forms it that way, which Linux does without NetworkManager or privacy extensions.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmessd.core.models.wires import VMAddress
from vmessd.network.rtnetlink import Neighbour

USER_ADDRESS = "10.0.2.15"
"""What QEMU's user-mode network gives its only guest by DHCP (QEMU, "network backends")."""
STATIONS_MAX = 64
"""A guest may send frames from any number of MACs; so many are told besides its own."""


def link_local(mac: str) -> str:
    """Return the IPv6 link-local address whose interface identifier is the MAC's EUI-64."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + octets[:3] + b"\xff\xfe" + octets[3:]))


@dataclass(frozen=True)
class Tables:
    """What the host has heard."""

    forwarding: Sequence[Neighbour]
    """The forwarding tables of all bridges."""
    neighbours: Sequence[Neighbour]
    names: Mapping[int, str]
    """Of the links, by index."""


def behind(port: int, mac: str, forwarding: Sequence[Neighbour]) -> list[str]:
    """Return the MACs behind a port of a bridge: the card's own, and of what else was heard the first."""
    heard = {entry.mac for entry in forwarding if entry.index == port and entry.master and not entry.permanent}
    return [mac, *sorted(heard - {mac})[:STATIONS_MAX]]


def of_interface(interface: int, mac: str, port: int, tables: Tables) -> list[VMAddress]:
    """Return the addresses behind a TAP, `port` being its index and `mac` the network card's."""
    stations = behind(port, mac, tables.forwarding)
    heard = {entry.mac for entry in tables.forwarding if entry.index == port and not entry.permanent}
    known: dict[str, dict[str, int]] = {station: {} for station in stations}
    for entry in tables.neighbours:
        if entry.mac in known and entry.ip:
            known[entry.mac][entry.ip] = entry.index
    found = []
    for station in stations:
        for ip, index in known[station].items():
            source = f"neighbour table, {tables.names.get(index, index)}"
            found.append(VMAddress(interface, station, ip, seen=True, source=source, known=True))
        if link_local(station) not in known[station]:
            source = f"EUI-64 of the MAC, {'which was' if station in heard else 'not'} heard"
            own = link_local(station)
            found.append(VMAddress(interface, station, own, False, source, known=station in heard))
    return found
