"""The daemon itself, as it tells its clients. Pure."""

from vmessd.core.dataclass import dataclass


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


@dataclass(frozen=True)
class Residence:
    """Where a daemon has its files, and how long it stays without work."""

    socket: str = ""
    log: str | None = None
    idle_time: float | None = None
