"""Expansion of patterns such as `'lab*'`, and of `--all`, to names of VMs. Pure."""

from __future__ import annotations

from vmessctl.cli import grammar
from vmessctl.cli.verbs import ALL, PROGRAM, Invocation
from vmessd.core.errors import NoSuchVM, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SHOWN = 8
"""Maximum number of VMs that a hint names."""


def expanded(invocation: Invocation, known: Sequence[str]) -> Invocation:
    """Return a line with its patterns replaced by names of VMs.

    Args:
        invocation: the line.
        known: all existing VMs.

    Raises:
        NoSuchVM: a pattern matches no VM.
        InvalidValue: there are too many VMs for a verb.
    """
    return _with(invocation, chosen(invocation.vms, known))


def chosen(words: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the VMs that names and patterns stand for, without duplicates; raises NoSuchVM."""
    from fnmatch import fnmatchcase  # noqa: PLC0415 -- it imports re

    vms: list[str] = []
    for word in words:
        found = [vm for vm in known if fnmatchcase(vm, word.lower())] if grammar.is_pattern(word) else [word]
        if not found:
            raise _no_match(word, known)
        vms += found
    return tuple(dict.fromkeys(vms))


def _no_match(pattern: str, known: Sequence[str]) -> NoSuchVM:
    if not known:
        return NoSuchVM("there are no VMs yet", hint=f"make one: {PROGRAM} newvm make")
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return NoSuchVM(
        f"no VM matches {quoted(pattern)}",
        hint=f"there are: {', '.join(known[:SHOWN])}{more}; {ALL.flag} stands for all",
    )


def _with(invocation: Invocation, vms: tuple[str, ...]) -> Invocation:
    grammar.check_number(invocation.command, vms)
    then = _with(invocation.then, vms) if invocation.then else None
    return Invocation(invocation.command, vms, invocation.arguments, invocation.options, then)
