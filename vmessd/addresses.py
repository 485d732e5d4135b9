"""What a guest's addresses are, as far as the host can tell without asking the guest. Pure.

The host sees MACs behind a TAP in its bridge's forwarding table, and IP addresses of those it has
spoken to in its neighbour tables (ARP, NDP). A link-local address follows from a MAC (RFC 4291,
appendix A) where the guest forms it that way, which Linux does without NetworkManager or privacy extensions.
"""

import ipaddress
from collections.abc import Sequence
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


def of_interface(
    interface: int,
    mac: str,
    port: int,
    forwarding: Sequence[Neighbour],
    neighbours: Sequence[Neighbour],
    names: dict[int, str],
) -> list[VMAddress]:
    """Return the addresses behind one TAP.

    Args:
        interface: which interface of the VM.
        mac: of its network card.
        port: index of its TAP.
        forwarding: the forwarding tables of all bridges.
        neighbours: the neighbour tables.
        names: of links, by index.
    """
    found = []
    for station in behind(port, mac, forwarding):
        heard = any(entry.index == port and entry.mac == station for entry in forwarding if not entry.permanent)
        expected = link_local(station)
        for entry in neighbours:
            if entry.mac == station and entry.ip:
                table = f"neighbour table of the host on {names.get(entry.index, entry.index)}"
                found.append(VMAddress(interface, station, entry.ip, seen=True, source=table))
        if not any(address.address == expected for address in found):
            where = "its frames were heard" if heard else "nothing was heard from it"
            source = f"follows from the MAC; {where}"
            found.append(VMAddress(interface, station, expected, seen=False, source=source))
    return found
