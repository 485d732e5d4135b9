"""The rules of a bridge with NAT, as commands for nft(8): a table of its own for each bridge. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vmessd.core.nat import Nat

OPENED = "opened"
"""The set of links in a table; see :func:`rules`."""
_PREFIX = "vmess_"


def table(bridge: str) -> str:
    """Return the name of the table of a bridge."""
    return f"{_PREFIX}{bridge}"


def removal(bridge: str) -> str:
    """Return the commands for nft that delete the table of a bridge, whether there is one or not."""
    return f"table inet {table(bridge)}\ndelete table inet {table(bridge)}\n"


def rules(nat: Nat, opened: Sequence[str]) -> str:
    """Return the commands for nft(8) that replace the table of a bridge at once.

    From the host, guests get DHCP, DNS and answers to ping. They reach what the host reaches, and nobody
    begins a connection to them except the host, or by a DNAT of the administrator. Nothing of IPv6 passes.

    `opened` are links that forward only because vmess had them do so: they pass nothing but what belongs to a
    connection with NAT. The set with their names is also the note about which links these are.
    """
    bridge, net, host = nat.bridge, nat.network, nat.address
    listed = ", ".join(f'"{link}"' for link in opened)
    elements = f"elements = {{ {listed} }}" if opened else ""
    return f"""{removal(bridge)}table inet {table(bridge)} {{
    set {OPENED} {{ type ifname; {elements} }}
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "{bridge}" jump guests
    }}
    chain guests {{
        meta nfproto ipv6 drop
        ct state established,related accept
        udp dport 67 accept
        ip daddr {host} udp dport 53 accept
        ip daddr {host} tcp dport 53 accept
        ip daddr {host} icmp type echo-request accept
        reject with icmpx admin-prohibited
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
        oifname "{bridge}" meta nfproto ipv6 drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{bridge}" oifname "{bridge}" accept
        iifname @{OPENED} ct status & (snat | dnat) == 0 drop
        iifname "{bridge}" jump leaving
        oifname "{bridge}" jump entering
    }}
    chain leaving {{
        meta nfproto ipv6 drop
        ip saddr != {net} drop
        tcp flags syn tcp option maxseg size set rt mtu
    }}
    chain entering {{
        meta nfproto ipv6 drop
        ct state established,related accept
        ct status dnat accept
        drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {net} oifname != "{bridge}" masquerade
    }}
}}
"""


LIST_SETS = ("-j", "list", "sets", "inet")
"""The arguments of nft for what :func:`opened_links` reads."""
NAME_SETS = ("-j", "-t", "list", "sets", "inet")
"""The same for what :func:`tables` reads: without the elements, of which sets of others may have a million."""


def list_set(table: str) -> tuple[str, ...]:
    """Return the arguments of nft for what :func:`opened_links` reads of one table."""
    return ("-j", "list", "set", "inet", table, OPENED)


def tables(listing: str) -> tuple[list[str], bool]:
    """Return the tables with such a set, and whether there are sets of others, too; raises ValueError."""
    sets = [entry["set"] for entry in json.loads(listing)["nftables"] if "set" in entry]
    ours = [str(one["table"]) for one in sets if _is_note(one)]
    return ours, len(ours) < len(sets)


def _is_note(one: Mapping[str, Any]) -> bool:
    return one.get("name") == OPENED and str(one.get("table", "")).startswith(_PREFIX)


def opened_links(listing: str) -> Mapping[str, frozenset[str]]:
    """Return which links forward only because vmess had them do so, by table; raises ValueError."""
    found = {}
    for entry in json.loads(listing)["nftables"]:
        one = entry.get("set", {})
        if _is_note(one):
            found[one["table"]] = frozenset(map(str, one.get("elem", ())))
    return found


LIST_CHAINS = ("-j", "list", "chains")
"""The arguments of nft for what :func:`dropping` reads."""


def dropping(listing: str) -> str | None:
    """Return which chain of the host's firewall drops what is forwarded and not accepted there; None for none.

    No rule of another table can overrule that. Docker makes such a chain. Raises ValueError.
    """
    for entry in json.loads(listing)["nftables"]:
        chain = entry.get("chain", {})
        if (
            chain.get("hook") == "forward"
            and chain.get("policy") == "drop"
            and chain.get("family") in ("ip", "inet")
        ):
            return f"{chain['family']} {chain['table']} {chain['name']}"
    return None
