"""Progress of starts, stops and of bringing images. Pure. Durations are in seconds."""

import dataclasses
import enum
from typing import Self

from vmessd.core import words
from vmessd.core.accelerators import Accelerator
from vmessd.core.dataclass import dataclass
from vmessd.core.lifecycle import Rung


@dataclass(frozen=True)
class WithoutKvm:
    """Why a VM runs under TCG although it may use KVM."""

    reason: str
    hint: str | None
    """What to type, if that may help."""


@dataclass(frozen=True)
class StartProgress:
    """A step of a start: first the command line, then the process."""

    done: bool
    pid: int | None
    command: list[str]
    accel: Accelerator | None = None
    without_kvm: WithoutKvm | None = None
    """In the last step: why it runs without KVM although it may use it. A daemon tells each user only once."""


@dataclass(frozen=True)
class StopProgress:
    """A step of a stop: a rung of the ladder; in the last step, how the VM ended."""

    done: bool
    pid: int | None
    rung: Rung | None
    elapsed: float
    """Seconds since the stop began."""
    grace: float
    """The grace period: seconds in total before force is used."""
    forced: bool
    """Force had to be used in a graceful stop."""
    text: str | None
    """How the VM ended, in words."""
    note: str | None
    """A remark, for example that the STOP file is invalid."""

    def about(self, vm: str) -> Self:
        """Return the step with the name of the VM in the note, since a client shows the note as it is."""
        return dataclasses.replace(self, note=f"{vm}: {self.note}")

    @classmethod
    def of_rest(cls, note: str) -> Self:
        """Return the only step of a stop that found no QEMU."""
        return cls(True, None, None, 0.0, 0.0, False, None, note)


class FleetStep(enum.StrEnum):
    """A step of booting or shutting down all VMs."""

    starting = words.FleetStep.starting
    running = words.FleetStep.running
    stopping = words.FleetStep.stopping
    off = words.FleetStep.off
    failed = words.FleetStep.failed


@dataclass(frozen=True)
class FleetProgress:
    """A step of booting or shutting down all VMs."""

    done: bool
    """The last step; its other fields have no meaning."""
    vm: str
    step: FleetStep
    pid: int | None
    rung: Rung | None
    """In a stop."""
    grace: float
    """In a stop: the grace period, in seconds."""
    forced: bool
    """Force had to be used."""
    text: str | None
    """How a stop ended or why something failed, in words."""
    status: int
    """The exit status for a failure."""
    left: float | None = None
    """In a shutdown: seconds until all VMs should be off."""


class BringStep(enum.StrEnum):
    """A step of bringing an image."""

    copying = words.BringStep.copying
    converting = words.BringStep.converting
    checking = words.BringStep.checking
    writing = words.BringStep.writing
    done = words.BringStep.done


@dataclass(frozen=True)
class BringProgress:
    """A step of bringing an image; the last step says what is there now."""

    done: bool
    step: BringStep
    percent: int | None = None
    """Of this step."""
    source: str | None = None
    """The format of the image that was brought."""
    file: str | None = None
    """The name of the new disk in the VM directory."""
    size: int | None = None
    """Bytes that the guest will see."""
    note: str | None = None
    """A remark."""
