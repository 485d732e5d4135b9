"""Who decides about a VM: people, or the cluster that the file OWNER names. Pure."""

from __future__ import annotations

from vmessd.core.errors import Failed, InvalidValue, Locked, quoted
from vmessd.core.plainrecord import PlainRecord

PACEMAKER = "pacemaker"
OWNERS = (PACEMAKER,)
VARIABLE = "VMESS_OWNER"
"""The environment variable that names the owner for whom a client acts."""
RESOURCE_MAX = 64
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_LATER = _FIRST | frozenset("0123456789-.")
OTHERWISE = (
    f"to do it all the same: the same command with {VARIABLE}={PACEMAKER} before it; the cluster is not asked"
)
"""The hint for what a cluster does not do itself."""

MOVE = "pcs resource move {resource} NODE"
"""The same for a move, which the client refuses before it logs in to the other host."""
UNREAD = "the owner in OWNER, which cannot be read,"
"""Stands for an owner of whom only that is known that there is one."""


class Owner(PlainRecord):
    """What OWNER says."""

    def __init__(self, kind: str, resource: str = "") -> None:
        self.kind = kind
        self.resource = resource
        """The name of the VM as a resource of the cluster; empty for the name of the VM."""


def parse(text: str) -> Owner:
    """Return the owner that a text names: `pacemaker`, or `pacemaker RESOURCE`.

    The resource is the id of an element in the CIB of Pacemaker, so an NCName of XML; here in ASCII.

    Raises:
        ValueError: the text names none.
    """
    kind, *more = text.split() if text.isascii() and text.isprintable() else [""]
    if kind not in OWNERS or len(more) > 1 or not all(map(_is_resource, more)):
        raise ValueError(text)
    return Owner(kind, *more)


def same(vm: str, one: Owner, other: Owner) -> bool:
    """Tell whether two hosts have the same VM of one owner."""
    return (one.kind, one.resource or vm) == (other.kind, other.resource or vm)


def shown(owner: Owner) -> str:
    """Return an owner as OWNER has it."""
    return " ".join(filter(None, (owner.kind, owner.resource)))


def known(kind: str) -> str:
    """Return the kind of an owner; raises InvalidValue."""
    if kind not in OWNERS:
        raise InvalidValue(f"owner {quoted(kind)} is not {' or '.join(OWNERS)}")
    return kind


def _is_resource(word: str) -> bool:
    return word[0] in _FIRST and _LATER.issuperset(word) and len(word) <= RESOURCE_MAX


def refused(vm: str, owner: Owner, instead: str) -> Locked:
    """Return the error for a change that only the owner of a VM may make; `instead` is from the contract."""
    hint = instead.format(vm=vm, resource=owner.resource or vm)
    return Locked(f"VM {vm} belongs to {owner.kind}, which decides about it", hint=hint)


def missing(vm: str, actor: str) -> Locked:
    """Return the error for a start by a cluster to which the VM does not belong on this host."""
    return Locked(
        f"VM {vm} does not belong to {actor} on this host: it has no file OWNER", hint=f"vmess {vm} cluster on"
    )


def second_master(vm: str, verb: str) -> Failed:
    """Return the error for an owner and another one who starts the VM: `verb` sets the other."""
    return Failed(f"{verb} and a cluster must not both decide when {vm} starts", hint=f"vmess {vm} {verb} none")


def idle(owner: str, setting: str) -> str:
    """Return what is wrong with a setting that has no effect as long as a VM has an owner."""
    return f"{setting} has no effect: {owner} decides when it starts"
