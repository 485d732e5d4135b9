"""Exports and imports of whole VMs. Pure. Sizes are in bytes."""

from vmessd.core.dataclass import dataclass
from vmessd.core.models.progress import BringStep


@dataclass(frozen=True)
class TransferProgress:
    """The beginning or the end of an export or import, or a step of the disks of an OVA between them."""

    done: bool
    vm: str | None
    """The VM; null at the beginning of an import that takes the name from the archive."""
    size: int | None = None
    """The size of the whole archive: known from the beginning of an export, and at the end of an import."""
    notes: list[str] | None = None
    """Remarks on what was left out, or what to mind; null if there are none."""
    disk: str | None = None
    """The disk that is made of an image in an OVA; null for other steps."""
    step: BringStep | None = None
    """What is done with it."""
    percent: int | None = None
    """How far that is; null if it is not known."""
