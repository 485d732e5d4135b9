"""Which VMs a pattern stands for: `'lab*'`, or all of them. Pure: the daemon is asked elsewhere."""

from __future__ import annotations

from vmessctl.cli import grammar
from vmessctl.cli.verbs import ALL, PROGRAM, Invocation
from vmessd.core.errors import NoSuchVM, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 8
"""How many VMs a hint names."""


def filled(invocation: Invocation, known: Sequence[str]) -> Invocation:
    """Return a line with VMs in the place of its patterns.

    Args:
        invocation: the line.
        known: the VMs there are.

    Raises:
        NoSuchVM: a pattern matches none.
        InvalidValue: there are too many for a verb.
    """
    return _with(invocation, chosen(invocation.vms, known))


def chosen(words: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the VMs that names and patterns stand for, each once; raises NoSuchVM."""
    from fnmatch import fnmatchcase  # noqa: PLC0415 -- it imports re

    vms: list[str] = []
    for word in words:
        found = [vm for vm in known if fnmatchcase(vm, word)] if grammar.is_pattern(word) else [word]
        if not found:
            raise _no_match(word, known)
        vms += found
    return tuple(dict.fromkeys(vms))


def _no_match(pattern: str, known: Sequence[str]) -> NoSuchVM:
    if not known:
        return NoSuchVM("there is no VM yet", hint=f"make one: {PROGRAM} newvm make")
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return NoSuchVM(
        f"no VM matches {quoted(pattern)}",
        hint=f"there are: {', '.join(known[:SHOWN])}{more}; {ALL.flag} stands for all",
    )


def _with(invocation: Invocation, vms: tuple[str, ...]) -> Invocation:
    grammar.check_number(invocation.command, vms)
    then = _with(invocation.then, vms) if invocation.then else None
    return Invocation(invocation.command, vms, invocation.arguments, invocation.options, then)
