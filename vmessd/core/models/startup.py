"""The startup configuration of a guest, as the control socket shows it. Pure."""

from vmessd.core.dataclass import dataclass


@dataclass(frozen=True)
class StartupConfiguration:
    """How a guest gets its startup configuration."""

    value: str
    """The way, and what belongs to it, as in the file STARTUP: `cd startup-config`."""
    size: int
    """Bytes of the configuration; its content may be secret."""
    path: str
    """The file that has it."""
    typed: str | None = None
    """For the console: what became of the typing, in words; null if nothing was typed yet, and nobody waits."""
