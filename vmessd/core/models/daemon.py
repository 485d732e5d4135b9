"""The daemon itself, as it tells its clients. Pure."""

import enum

from vmessd.core import words
from vmessd.core.dataclass import dataclass


class DaemonKind(enum.StrEnum):
    """Who runs a daemon. Only a service starts VMs when the host boots or its user logs in."""

    service = words.DaemonKind.service
    """The service manager of the host."""
    own_service = words.DaemonKind.own_service
    """Another service manager, mostly that of a user."""
    private = words.DaemonKind.private
    """In the background, started by the first client that needed it."""
    by_hand = words.DaemonKind.by_hand
    """In the foreground of a terminal or a program."""


@dataclass(frozen=True)
class DaemonStatus:
    """The daemon that answers."""

    version: str
    pid: int
    vmdir: str
    """Path of the VM root."""
    socket: str
    """Path of the control socket."""
    log: str | None
    """Path of the log; null if it is standard error, such as the journal of the service."""
    idle_time: float | None
    """Seconds without a running VM and without a client after which it ends; null: never."""
    vms: int
    running: int
    """How many of the VMs have a QEMU."""
    kind: DaemonKind | None = None
    """Who runs it; null: an older vmessd does not say so."""


@dataclass(frozen=True)
class Residence:
    """Where a daemon has its files, how long it stays without work, and who runs it."""

    socket: str = ""
    log: str | None = None
    idle_time: float | None = None
    kind: DaemonKind = DaemonKind.by_hand
