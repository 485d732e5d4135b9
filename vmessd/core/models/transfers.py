"""Exports and imports of whole VMs. Pure. Sizes are in bytes."""

from vmessd.core.dataclass import dataclass


@dataclass(frozen=True)
class TransferProgress:
    """The beginning or the end of an export or import."""

    done: bool
    vm: str | None
    """The VM; null at the beginning of an import that takes the name from the archive."""
    size: int | None = None
    """The size of the whole archive: known from the beginning of an export, and at the end of an import."""
    notes: list[str] | None = None
    """Remarks on what was left out, or what to mind; null if there are none."""
