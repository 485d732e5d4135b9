"""Moves of VMs to other hosts. Pure. Sizes are in bytes."""

import enum

from vmessd.core import words
from vmessd.core.dataclass import dataclass


class MoveStep(enum.StrEnum):
    """A step of a move."""

    powering_down = words.MoveStep.powering_down
    asking = words.MoveStep.asking
    """The other host looks whether the VM can come."""
    copying = words.MoveStep.copying
    connecting = words.MoveStep.connecting
    """The client brings the connections for a guest that runs."""
    mirroring = words.MoveStep.mirroring
    memory = words.MoveStep.memory
    writing = words.MoveStep.writing
    """The other host writes to its disk what is in memory."""
    handing_over = words.MoveStep.handing_over
    """The other host takes over."""
    done = words.MoveStep.done


@dataclass(frozen=True)
class MoveProgress:
    """A step of a move; in the last step, the VM is on one of the hosts and on no other."""

    done: bool
    vm: str
    host: str
    """The other host."""
    step: MoveStep
    sent: int = 0
    """Of the archive."""
    size: int = 0
    """The size of the archive; 0 before it is known."""
    stayed: bool = False
    """In the last step: the VM is here, since the other host has said for certain that it did not arrive."""
    kept: bool = False
    """In the last step: its directory is still here, off, because its owner has one on each host."""
    notes: list[str] | None = None
    """Remarks on what to mind; null if there are none."""
    wants: list[str] | None = None
    """While connecting: the connections to bring by Join, each by Receive with its name there."""
    dirtied: int | None = None
    """Bytes of memory that the guest changes in a second; it moves when this is less than `speed`."""
    speed: int | None = None
    """Bytes that are sent in a second."""
    stood_still: float | None = None
    """In the last step, the seconds that the guest was paused, up to the word that it runs."""


@dataclass(frozen=True)
class Arrival:
    """The beginning or the end of a VM that comes from another host."""

    done: bool
    vm: str | None
    """In the last step, the VM; null if none has arrived."""
