"""Images in the image store, as seen from outside. Pure. Sizes are in bytes."""

from vmessd.core.dataclass import dataclass


@dataclass(frozen=True)
class StoredImage:
    """An image that disks can be based on."""

    name: str
    path: str
    format: str
    """`raw` or `qcow2`."""
    size: int | None
    """What a guest sees; None if its header cannot be used."""
    stored: int
    """What it takes on the file system."""
    users: list[str]
    """The VMs whose disks are based on it."""
