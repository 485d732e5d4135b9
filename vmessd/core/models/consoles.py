"""Access to a VM: its screen, its serial console, and its serial output. Pure.

Records that carry descriptors need the library of the control socket; they are in :mod:`vmessd.api.looking`.
"""

import enum

from vmessd.core import words
from vmessd.core.dataclass import dataclass


class Ending(enum.StrEnum):
    """Why a serial console was taken away: the last packet on its leash, after a sentence for a person."""

    taken_over = words.Ending.taken_over
    """Another client has it."""
    unread = words.Ending.unread
    """The client did not read it."""


@dataclass(frozen=True)
class VMRelay:
    """A TCP port that accepts one connection to a VM's VNC server."""

    address: str
    port: int
    timeout: float
    """Seconds after which the port is closed."""


@dataclass(frozen=True)
class SerialPiece:
    """A piece of a VM's serial output."""

    data: str
    """The bytes in Base64 (RFC 4648); empty in the first piece, which says that the watch has begun."""
    mark: str
    """The place after it; another call with this as `since` continues there."""
    gap: bool
    """Output before it is missing, because it is no longer in the log."""
    ended: str | None
    """In the last piece: how the run ended, in words."""
