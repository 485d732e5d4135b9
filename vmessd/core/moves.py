"""Moves of VMs to other hosts: what is noted on disk, and what the two daemons say to each other. Pure.

The source keeps the VM until the other side says that it has it. So there is one doubt only: the source has
asked the other side to take over, and has heard nothing since. Then the VM runs on neither side until the other
side was asked again, or a person has decided.

The two daemons exchange lines of JSON, one record each, through the session of ssh(1) between two clients.
After `Offer` and the first `Answer`, the archive of the VM follows, without a frame: both know its size. None
follows where the VM has a directory on both hosts, by its owner: its guest goes from the one to the other.
"""

import dataclasses
import enum
import json
from typing import Any, TypeVar

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import BY_WIRE_NAME, Failed, Locked, VmessError, printable
from vmessd.core.records import Moment, load

_T = TypeVar("_T")

VERSION = 1
"""The version of what is said here, which rises if an older vmess could not follow."""
LINE_MAX = 1 << 20
"""Bytes of a line."""
HOST_MAX = 255


class Stage(enum.StrEnum):
    """How far a move has come, as a VM directory notes it."""

    leaving = "leaving"
    """At the source: nothing is decided. A daemon that finds it later forgets it."""
    handed_over = "handed-over"
    """At the source: the other side was asked to take over, and may have done so."""
    arriving = "arriving"
    """At the destination: a guest that runs is on its way here. A daemon that finds it later deletes it."""
    arrived = "arrived"
    """At the destination: the VM is here, and the source may not know it yet."""
    unknown = "unknown"
    """The note cannot be read."""


@dataclass(frozen=True)
class MoveRecord:
    """A move, as the file `move.json` in the directory of the VM has it."""

    stage: str
    """A :class:`Stage`."""
    key: str
    """The random name of the move, by which both sides mean the same one."""
    host: str
    """The other side: the host as the person has called it, or where it came from."""
    when: Moment
    paused: bool = False
    """At the destination: its guest does not run yet, which it has to. At the source: its guest was paused."""
    who: str = ""
    """What the other side calls itself; only this one is believed that the VM has not arrived."""
    twin: bool = False
    """Both hosts have a directory of the VM, which stays there whatever becomes of the move."""


class Ask(enum.StrEnum):
    """What the source wants first."""

    take = "take"
    """The VM is to come: an :class:`Offer` with all its fields."""
    whether = "whether"
    """Has this VM arrived by this move? If not, it must never do so any more."""


@dataclass(frozen=True)
class Offer:
    """The first line of the source."""

    vmess_move: int
    """:data:`VERSION`."""
    ask: str
    """An :class:`Ask`."""
    key: str
    vm: str
    host: str = ""
    """The name of the source."""
    size: int = 0
    """Bytes of the archive."""
    stored: int = 0
    """Bytes that its disks take."""
    links: dict[str, str] | None = None
    """Drives that are links there, and become the same links here, with their targets."""
    snapshots: dict[str, str] | None = None
    """Images below disks, by the names in the archive, that are those of snapshots, by their own names."""
    bridges: dict[str, str] | None = None
    """The bridges of its interfaces, with the names that they have here."""
    needs: list[str] | None = None
    """Other files of the host that it names, such as a kernel."""
    start: bool = False
    """It ran, and is to be started here."""
    live: bool = False
    """Its guest runs, and continues here."""
    runs: bool = False
    """It is not paused there."""
    disks: list[str] | None = None
    """Of a guest that runs, the disks whose contents are mirrored."""
    qemu: str = ""
    """The version of its QEMU."""
    argv: list[str] | None = None
    """The command line that gives the guest its hardware."""
    directory: str = ""
    """The directory of the VM in that command line."""
    cpu: dict[str, str] | None = None
    """The features of its CPU, as :mod:`vmessd.devices.cpu_features` has them."""
    owner: str = ""
    """Of a guest that its owner moves: what OWNER says. The guest may continue in a directory that is there."""


@dataclass(frozen=True)
class Answer:
    """A line of the destination."""

    said: str
    """A :class:`Said`."""
    message: str = ""
    """Of an error."""
    hint: str | None = None
    error: str = ""
    """The last part of its name on the wire."""
    who: str = ""
    """What a VM root calls itself: it tells hosts apart that a person calls by one name, at different times."""
    channels: list[str] | None = None
    """With `whole`, of a guest that runs: the connections that are missing."""
    notes: list[str] | None = None
    """Remarks; they are for the person."""
    twin: bool = False
    """With `ready`: the guest continues in a directory that is there, so no archive is to come."""


class Said(enum.StrEnum):
    """What an answer says."""

    ready = "ready"
    """The archive may come."""
    whole = "whole"
    """All of it is on disk, and nothing but the word is missing."""
    closed = "closed"
    """The disks of a guest are no longer open to the source."""
    loaded = "loaded"
    """All of a guest is here; it is paused."""
    done = "done"
    """The VM is here now."""
    absent = "absent"
    """It has not arrived, and will not."""
    forgotten = "forgotten"
    """The destination no longer notes where the VM came from."""
    refused = "refused"
    """An error, after which nothing of this move is left there."""


class Word(enum.StrEnum):
    """What the source says later."""

    close = "close"
    """All of the disks was sent, and the guest is paused."""
    load = "load"
    """All of the memory was sent."""
    commit = "commit"
    """Take over."""
    forget = "forget"
    """Nothing of the VM is left here."""


@dataclass(frozen=True)
class Decision:
    """A later line of the source."""

    word: str
    """A :class:`Word`."""
    key: str


def is_host(text: str) -> bool:
    """Tell whether a text can be what messages call a host."""
    return 0 < len(text) <= HOST_MAX and printable(text) == text


def line(record: Offer | Answer | Decision) -> bytes:
    """Return a record as a line."""
    return json.dumps(dataclasses.asdict(record)).encode() + b"\n"


def read(data: bytes, kind: type[_T]) -> _T:
    """Return the record in a line of somebody else; raises Failed."""
    try:
        decoded: Any = json.loads(data)
        return load(decoded, kind)
    except (ValueError, RecursionError):
        shown = printable(data[:60].decode(errors="replace").strip())
        raise Failed(
            f"what came is not a line of a move: {shown!r}",
            hint="on the host that the VM is on: vmess newvm move HOST",
        ) from None


def refusal(error: VmessError) -> Answer:
    """Return the answer for an error."""
    return Answer(Said.refused, error.message, error.hint, type(error).__name__)


def error_of(answer: Answer, host: str) -> VmessError:
    """Return the error that an answer is, as the source reports it."""
    kind = next((one for one in BY_WIRE_NAME.values() if one.__name__ == answer.error), Failed)
    hint = f"on {host}: {answer.hint}" if answer.hint else None
    return kind(f"{host}: {answer.message}", hint)


# -- Refusals --


def told(vm: str, move: MoveRecord | None) -> str | None:
    """Return in words what is to be known of a VM in a move; None if that is nothing."""
    if move is None or move.stage == Stage.arrived:
        return None
    if move.stage == Stage.arriving:
        return f"is on its way from {move.host}"
    if move.stage == Stage.leaving:
        return f"is being moved to {move.host}"
    if move.stage == Stage.unknown:
        return f"its move.json does not say where it is; if no other host has it: vmess {vm} move --take"
    unsure = f"handed over to {move.host}, which has not said that it arrived"
    return f"{unsure}: vmess {vm} move {move.host} asks again"


def check_settled(vm: str, move: MoveRecord | None) -> None:
    """Raise Locked for a VM that is not to be changed because of a move."""
    if move is None or move.stage == Stage.arrived:
        return
    if move.stage == Stage.leaving:
        raise leaving(vm, move.host)
    if move.stage == Stage.arriving:
        raise Locked(f"VM {vm} is on its way here from {move.host}", hint="wait until it is there")
    raise unread(vm) if move.stage == Stage.unknown else doubtful(vm, move.host)


def unread(vm: str) -> Locked:
    """Return the error for anything with a VM whose note of a move cannot be read."""
    return Locked(
        f"move.json of VM {vm} does not say where {vm} is, so it must not run here",
        hint=f"if no other host has it: vmess {vm} move --take",
    )


def leaving(vm: str, host: str) -> Locked:
    """Return the error for a change of a VM that is being moved."""
    return Locked(f"VM {vm} is being moved to {host}", hint="wait until that is done, or end it with Ctrl-C")


def doubtful(vm: str, host: str) -> Locked:
    """Return the error for anything with a VM that may have arrived on another host."""
    return Locked(doubt(vm, host), hint=way_out(vm, host))


def doubt(vm: str, host: str) -> str:
    """Return in words that nobody knows where a VM is."""
    return f"VM {vm} was handed over to {host}, which has not said that it arrived; it must not run here"


def way_out(vm: str, host: str) -> str:
    """Return what a person can do about it."""
    return (
        f"to ask again: vmess {vm} move {host}; if {host} is lost for ever: vmess {vm} move --take; "
        f"if it is there for certain: vmess {vm} move --drop"
    )


def untold(vm: str, host: str, what: str) -> Locked:
    """Return the error for what would make the destination forget a VM of which the source is not sure."""
    return Locked(
        f"VM {vm} came from {host}, which does not know yet that it arrived, so it was not {what}",
        hint=f"repeat the move on {host}, which asks here; if nothing is left there: vmess {vm} move --take",
    )
