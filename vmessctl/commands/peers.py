"""The peers of VXLANs: the addresses of hosts, and what is said about them."""

from __future__ import annotations

from vmessctl.output.phrases import phrase
from vmessd.core.errors import Failed, InvalidValue, counted, printable, quoted, shell_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.client import Reply

WORD = "peer"
NONE = "none"
SHOWN = 8
"""Hosts for which the command is shown that they need."""


def split(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """Return the VXLAN and the hosts in the words after a bridge; None where there is no word `peer`.

    Raises InvalidValue. A link that is called `peer` can come first.
    """
    if WORD not in words[1:]:
        return None
    link, word, *hosts = words
    if word != WORD:
        raise InvalidValue(f"{WORD} comes after one VXLAN, such as vxlan7 {WORD} 192.0.2.2")
    if not hosts:
        raise InvalidValue(f"{printable(link)} {WORD} needs the names or addresses of hosts, or {NONE}")
    if NONE in hosts and len(hosts) > 1:
        raise InvalidValue(f"{WORD} {NONE} takes no host, but {quoted(hosts[hosts[0] == NONE])} was given")
    return link, [] if hosts == [NONE] else hosts


def addresses(hosts: Sequence[str]) -> list[str]:
    """Return an address of each host, all of one family, IPv4 if there is a choice.

    Raises:
        Failed: a name has no address.
        InvalidValue: there is no family of which all have one.
    """
    import socket  # noqa: PLC0415 -- the client starts faster without it

    families = (socket.AF_INET, socket.AF_INET6)
    found = [_addresses(host) for host in hosts]
    for family in families:
        if all(family in one for one in found):
            return [one[family] for one in found]
    lacking = [next(host for host, one in zip(hosts, found, strict=True) if f not in one) for f in families]
    raise InvalidValue(
        f"{quoted(lacking[0])} has no IPv4 address, and {quoted(lacking[1])} none of IPv6; "
        "the peers of a VXLAN are all of one family"
    )


def _addresses(host: str) -> dict[int, str]:
    """Return the first address of each family, by family."""
    import socket  # noqa: PLC0415

    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        why = (error.strerror or str(error)).lower() if isinstance(error, OSError) else "not a name of a host"
        raise Failed(
            f"host {quoted(host)} has no address: {printable(why)}",
            hint="give the address in place of the name",
        ) from None
    by_family: dict[int, str] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, str(address[0]))
    return by_family


def said(bridge: str, link: str, hosts: Sequence[str], reply: Reply, program: str) -> list[str]:
    """Return lines about what was done, and what the other hosts need."""
    names = {"bridge": printable(bridge), "link": printable(link)}
    if not reply["peers"]:
        return [phrase("net peer none", **names)]
    peers = [peer["address"] for peer in reply["peers"]]
    lines = [phrase("net peer", peers=", ".join(map(printable, peers)), mtu=reply["mtu"], **names)]
    for host, peer in [*zip(hosts, reply["peers"], strict=True)][:SHOWN]:
        others = [peer["local"] or "ADDRESS", *(one for one in peers if one != peer["address"])]
        line = shell_line([program, "net", "vlan", bridge, link, WORD, *others])
        lines.append(f"on {printable(host)}: {printable(line)}")
    if len(hosts) > SHOWN:
        lines.append(f"on {counted(len(hosts) - SHOWN, 'further host')} likewise")
    return lines
