"""What a VM's interfaces are plugged into, what was done to them, and what is heard behind them. Pure."""

import dataclasses
import enum

from vmessd.core import words


@dataclasses.dataclass(frozen=True)
class VMNic:
    """One interface of a VM."""

    index: int
    """Counted from 0."""
    tap: str | None
    """Name of its TAP; None for QEMU's user-mode network."""
    mac: str
    wire: str
    """What it is plugged into, as `ifadd` takes it: a bridge, `-`, or `user` with its forwarded ports."""
    present: bool
    """The TAP exists."""
    leaving: bool
    """It is being unplugged: the guest has not let go of it."""
    cable: bool | None
    """Its cable is in: `cable` pulls it. None where that cannot be known."""
    difference: str | None
    """In what the host's links differ from the NICS file, in words."""
    duplicate: str | None
    """That and where its MAC was heard in its bridge, but not behind its TAP, in words."""
    mac_later: str | None
    """The MAC that it has from the VM's next start on, where that is another one."""


class StepKind(enum.StrEnum):
    """What was done to a link."""

    persistent = words.StepKind.persistent
    """A TAP is there."""
    nonpersistent = words.StepKind.nonpersistent
    """A TAP is gone ..."""
    pending = words.StepKind.pending
    """... or will be."""
    making = words.StepKind.making
    """A bridge was made ..."""
    exists = words.StepKind.exists
    """... or was there ..."""
    down = words.StepKind.down
    """... and is down."""
    preparing = words.StepKind.preparing
    """What goes into a bridge."""
    subinterface = words.StepKind.subinterface
    pair = words.StepKind.pair
    vxlan = words.StepKind.vxlan
    existing = words.StepKind.existing
    """A link of another kind, which was there."""
    waiting = words.StepKind.waiting
    """It carries a VLAN's frames as soon as it is plugged in itself."""
    deleted = words.StepKind.deleted
    dropped = words.StepKind.dropped
    """Ports are forwarded no longer; the link is how they were written."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One thing that was done, as the client tells it."""

    step: StepKind
    link: str
    uid: int | None = None
    """Of the TAP's owner, where that is what the step is about."""


@dataclasses.dataclass(frozen=True)
class VMAddress:
    """An address of a guest."""

    interface: int
    mac: str
    address: str
    seen: bool
    """The host has seen it in use; else it is what it should be."""
    source: str
    """How it is known, in words."""
    known: bool
    """It is in use, as far as the host can tell: the guest runs, and was heard."""


@dataclasses.dataclass(frozen=True)
class ForeignPort:
    """A link of another VM root that is in a bridge."""

    link: str
    root: str


@dataclasses.dataclass(frozen=True)
class Segment:
    """A bridge and its ports; without a bridge, links of ours that are in none."""

    bridge: str | None
    own: bool
    """vmess made it, and it belongs to this VM root."""
    ports: list[str]
    root: str | None
    """The other VM root that the bridge belongs to."""
    foreign: list[ForeignPort]
    """Which of the ports belong to other VM roots."""
