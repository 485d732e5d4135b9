"""How far what takes its time has come. Pure. Durations are in seconds."""

import dataclasses
import enum
from typing import Self

from vmessd.core import words
from vmessd.core.lifecycle import Rung


@dataclasses.dataclass(frozen=True)
class StartProgress:
    """A step of a start: first the command line, at the end the process."""

    done: bool
    pid: int | None
    command: list[str]


@dataclasses.dataclass(frozen=True)
class StopProgress:
    """A step of a stop: a rung of the ladder, at the end how it ended."""

    done: bool
    pid: int | None
    rung: Rung | None
    elapsed: float
    """Seconds since the stop began."""
    grace: float
    """Seconds the guest has in all before it is forced."""
    forced: bool
    """A graceful stop that did not do: force had to be used."""
    text: str | None
    """How it ended, in words."""
    note: str | None
    """What else there is to say, such as that the STOP file makes no sense."""

    def about(self, vm: str) -> Self:
        """Return the step with a note that names the VM, for a client that shows it as it is."""
        return dataclasses.replace(self, note=f"{vm}: {self.note}")

    @classmethod
    def of_rest(cls, note: str) -> Self:
        """Return the only step of a stop where there was no QEMU to stop."""
        return cls(True, None, None, 0.0, 0.0, False, None, note)


class FleetStep(enum.StrEnum):
    """What happens to one of all VMs."""

    starting = words.FleetStep.starting
    running = words.FleetStep.running
    stopping = words.FleetStep.stopping
    off = words.FleetStep.off
    failed = words.FleetStep.failed


@dataclasses.dataclass(frozen=True)
class FleetProgress:
    """A step of bringing all VMs up or down."""

    done: bool
    """The last step; nothing else is said in it."""
    vm: str
    step: FleetStep
    pid: int | None
    rung: Rung | None
    """Of a stop."""
    grace: float
    """Of a stop: seconds the guest has in all before it is forced."""
    forced: bool
    """Force had to be used."""
    text: str | None
    """How a stop ended, or why it failed, in words."""
    status: int
    """Exit status that belongs to a failure."""
    left: float | None = None
    """Of a shutdown: seconds in which all VMs are to be off."""
