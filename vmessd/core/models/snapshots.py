"""Snapshots and clones of VMs. Pure. Sizes are in bytes, times in seconds since 1970."""

from vmessd.core.dataclass import dataclass


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of the disks of a VM, and of its memory where that was asked for."""

    name: str
    taken: float
    """When it was taken."""
    size: int
    """Bytes that its images take on the file system."""
    disks: list[str]
    """The disks that it contains: `hda` to `hdz`."""
    on: list[str]
    """What its images are based on: an older snapshot, or the target of a link; empty for whole images."""
    merging: bool = False
    """Its deletion has begun, and is completed by repeating it."""
    memory: int | None = None
    """Bytes that the memory of the guest takes; null if it was not kept."""


@dataclass(frozen=True)
class SnapshotChange:
    """What was done with a snapshot."""

    name: str
    disks: list[str]
    notes: list[str]
    """Remarks."""
    stood_still: float | None = None
    """Seconds that a running guest was paused at most; null if the VM was off."""
    memory: int | None = None
    """Bytes that the memory of the guest takes; null if it was not kept."""
    runs: bool = False
    """The guest continues from the memory that was kept."""


@dataclass(frozen=True)
class MergeProgress:
    """A step of the deletion of a snapshot, whose images are merged with those above."""

    done: bool
    percent: int | None = None
    disks: list[str] | None = None
    """In the last step: the disks whose images were merged."""
    notes: list[str] | None = None
    """Remarks on what differs from before."""


@dataclass(frozen=True)
class CloneProgress:
    """A step of a clone; the last one says what is there now."""

    done: bool
    vm: str
    """The new VM."""
    percent: int | None = None
    notes: list[str] | None = None
    """Remarks on what differs, and what to mind."""
