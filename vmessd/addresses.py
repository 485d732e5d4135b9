"""What a guest's addresses are, as far as the host can tell without asking the guest. Pure.

The host sees MACs behind a TAP in its bridge's forwarding table, and IP addresses of those it has
spoken to in its neighbour tables (ARP, NDP). A link-local address follows from a MAC (RFC 4291,
appendix A) where the guest forms it that way, which Linux does without NetworkManager or privacy extensions.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmessd.netlink import Neighbour

USER_ADDRESS = "10.0.2.15"
"""What QEMU's user-mode network gives its only guest by DHCP (QEMU, "network backends")."""


@dataclass(frozen=True)
class VMAddress:
    """An address of a guest."""

    interface: int
    mac: str
    address: str
    seen: bool
    """The host has seen it in use; else it is what it should be."""
    source: str
    """How it is known, in words."""


def link_local(mac: str) -> str:
    """Return the IPv6 link-local address whose interface identifier is the MAC's EUI-64."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + octets[:3] + b"\xff\xfe" + octets[3:]))


def behind(port: int, mac: str, forwarding: Sequence[Neighbour]) -> list[str]:
    """Return the MACs behind a port of a bridge: the card's own, and what else was heard there."""
    heard = {entry.mac for entry in forwarding if entry.index == port and entry.master and not entry.permanent}
    return [mac, *sorted(heard - {mac})]


@dataclass(frozen=True)
class Tables:
    """What the host has heard."""

    forwarding: Sequence[Neighbour]
    """The forwarding tables of all bridges."""
    neighbours: Sequence[Neighbour]
    names: Mapping[int, str]
    """Of the links, by index."""


def of_interface(interface: int, mac: str, port: int, tables: Tables) -> list[VMAddress]:
    """Return the addresses behind a TAP, `port` being its index and `mac` the network card's."""
    found = []
    for station in behind(port, mac, tables.forwarding):
        heard = any(entry.index == port and entry.mac == station for entry in tables.forwarding)
        expected = link_local(station)
        known = {entry.ip: entry.index for entry in tables.neighbours if entry.mac == station and entry.ip}
        for ip, index in known.items():
            source = f"the host's neighbour table, on {tables.names.get(index, index)}"
            found.append(VMAddress(interface, station, ip, seen=True, source=source))
        if expected not in known:
            source = f"follows from the MAC; {'its frames were' if heard else 'nothing was'} heard"
            found.append(VMAddress(interface, station, expected, seen=False, source=source))
    return found
