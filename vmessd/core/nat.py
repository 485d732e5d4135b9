"""A bridge with NAT: its range of IPv4 addresses, who gets which, and the file that keeps it. Pure."""

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

from vmessd.core.errors import BadFile, InvalidValue, quoted
from vmessd.core.wires import bridge_name

OFF = "off"
"""The word in place of a range that ends the NAT of a bridge."""
FILE = "NET_NAT"
"""File in the VM root: a bridge and its range on each line. The daemon restores them when it starts."""
FORM = "a range of IPv4 addresses such as 10.99.0.0/24"
PREFIX_MIN, PREFIX_MAX = 16, 29
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Nat(NamedTuple):
    """A bridge with NAT. The host has the first address of its range, and guests get the others."""

    bridge: str
    network: ipaddress.IPv4Network

    @property
    def address(self) -> ipaddress.IPv4Address:
        """The address of the host on the bridge."""
        return self.network.network_address + 1

    @property
    def first(self) -> ipaddress.IPv4Address:
        """The first address for guests."""
        return self.network.network_address + 2

    @property
    def last(self) -> ipaddress.IPv4Address:
        """The last address for guests."""
        return self.network.broadcast_address - 1


def is_plain(link: str) -> bool:
    """Tell whether the name of a link can stand in the rules of nft and in an option of dnsmasq."""
    return _PLAIN.fullmatch(link) is not None


def parse(bridge: str, text: str) -> Nat:
    """Return what a bridge and a range say together; raises InvalidValue."""
    bridge_name(bridge)
    if not is_plain(bridge):
        raise InvalidValue(
            f"bridge name {quoted(bridge)} is not for NAT; it must consist of letters, digits and . _ -"
        )
    return Nat(bridge, parse_range(text))


def parse_range(text: str) -> ipaddress.IPv4Network:
    """Return a range for a bridge; raises InvalidValue."""
    address, slash, _ = text.partition("/")
    if ":" in text:
        raise InvalidValue(f"range {quoted(text)} is IPv6; NAT is for IPv4 only, so it must be {FORM}")
    try:
        found = ipaddress.IPv4Network(text, strict=False)
        given = ipaddress.IPv4Address(address)
    except ValueError:
        raise InvalidValue(f"range {quoted(text)} is not {FORM}") from None
    if not slash or not PREFIX_MIN <= found.prefixlen <= PREFIX_MAX:
        raise InvalidValue(f"range {quoted(text)} must have a length from /{PREFIX_MIN} to /{PREFIX_MAX}")
    if given != found.network_address:
        raise InvalidValue(f"range {quoted(text)} does not begin with {given}; its beginning is {found}")
    if (
        found.is_loopback
        or found.is_multicast
        or found.is_link_local
        or found.is_reserved
        or given.packed[0] == 0
    ):
        raise InvalidValue(
            f"range {quoted(text)} has another meaning; choose a private one such as 10.99.0.0/24"
        )
    return found


def parse_allowed(text: str) -> ipaddress.IPv4Network:
    """Return a range of any length, within which bridges may have theirs; raises InvalidValue."""
    try:
        return ipaddress.IPv4Network(text)
    except ValueError:
        raise InvalidValue(f"allow-nat {quoted(text)} is not a range such as 10.99.0.0/16, or *") from None


def parse_file(text: str, where: str) -> list[Nat]:
    """Return the bridges in the file, `where` in messages; raises BadFile."""
    found: dict[str, Nat] = {}
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        try:
            if len(words) != 2:
                raise InvalidValue(f"line {quoted(line)} is not a bridge and a range")
            nat = parse(*words)
            if nat.bridge in found:
                raise InvalidValue(f"bridge {quoted(nat.bridge)} is there twice")
        except InvalidValue as error:
            raise BadFile(f"{where}: {error.message}", hint=f"correct or delete the file {where}") from None
        found[nat.bridge] = nat
    return [*found.values()]


def file_text(nats: Iterable[Nat]) -> str:
    """Return the contents of the file."""
    return "".join(f"{nat.bridge} {nat.network}\n" for nat in nats)
