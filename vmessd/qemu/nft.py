"""nft(8), which loads the rules of bridges with NAT. It gets CAP_NET_ADMIN, and nothing else does."""

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from vmessd.core.errors import Failed, printable
from vmessd.network import nat_rules
from vmessd.qemu import process
from vmessd.qemu.process import Capability, installed

_LIST = "as root: nft list ruleset"
_T = TypeVar("_T")
TIME = 10.0
"""Seconds in which it must end."""
_SAID = 200
"""Characters of its message in an error."""


def executable() -> str:
    """Return the path of nft; raises Failed."""
    found = installed("nft")
    if found is None:
        raise Failed("NAT needs the program nft, which is not installed", hint="apt-get install nftables")
    return found


def load(commands: str) -> None:
    """Carry out commands of nft, all or none of them; blocks; raises Failed, NotPermitted."""
    _run("-f", "-", said=commands)


def opened_links() -> Mapping[str, frozenset[str]]:
    """Return the links that forward only because vmess had them do so, by table; raises as :func:`load`."""
    ours, others = _read(nat_rules.NAME_SETS, "sets", nat_rules.tables)
    wanted = [nat_rules.list_set(table) for table in ours] if others else [nat_rules.LIST_SETS] if ours else []
    found: dict[str, frozenset[str]] = {}
    for arguments in wanted:
        found |= _read(arguments, "sets", nat_rules.opened_links)
    return found


def dropping() -> str | None:
    """Return which chain of the host drops what is forwarded, as nat_rules.dropping; raises as :func:`load`."""
    return _read(nat_rules.LIST_CHAINS, "chains", nat_rules.dropping)


def _read(arguments: Sequence[str], what: str, reader: Callable[[str], _T]) -> _T:
    """Return what a reader makes of a listing."""
    listing = _run(*arguments)
    try:
        return reader(listing)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failed(
            f"nft does not list its {what} as expected: {printable(listing[:_SAID])}", hint=_LIST
        ) from None


def _run(*arguments: str, said: str = "") -> str:
    command = [executable(), *arguments]
    status, text = process.output_of(command, said.encode(), (Capability.NET_ADMIN,), TIME)
    if status == -signal.SIGKILL:
        raise Failed(f"nft did not end within {TIME:g} s, so it was killed", hint=_LIST)
    if status != 0:
        words = printable(" ".join(text.split())[:_SAID]) or f"exit status {status}"
        raise Failed(f"nft refused the rules of NAT: {words}", hint="does this kernel have nf_tables?")
    return text
