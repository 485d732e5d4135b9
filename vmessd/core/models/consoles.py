"""The ways to look into a VM: its screen, its serial console, and what it printed there. Pure.

A descriptor that is handed over belongs to the library of the control socket: the records that carry one
are declared in :mod:`vmessd.api.looking`.
"""

import dataclasses
import enum

from vmessd.core import words


class Ending(enum.StrEnum):
    """Why a serial console was taken away: what its leash says behind the sentence for a person."""

    taken_over = words.Ending.taken_over
    """Somebody else has it."""
    unread = words.Ending.unread
    """It was not read."""


@dataclasses.dataclass(frozen=True)
class VMRelay:
    """Where one connection to a VM's VNC server is waited for."""

    address: str
    port: int
    timeout: float
    """Seconds after which it is not any more."""


@dataclasses.dataclass(frozen=True)
class SerialPiece:
    """Some of what a VM printed."""

    data: str
    """The bytes in Base64 (RFC 4648); none in the first piece, which tells that the watch stands."""
    mark: str
    """The place behind it: with this as `since`, another call goes on from there."""
    gap: bool
    """What came before it is not in the log any more."""
    ended: str | None
    """In the last piece: how the run ended, in words."""
