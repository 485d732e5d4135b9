"""What cloud-init finds in a VM. Pure."""

from vmessd.core.dataclass import dataclass


@dataclass(frozen=True)
class CloudInitFile:
    """A file in the VM directory that cloud-init gets."""

    name: str
    """`USER_DATA`, `META_DATA` or `NETWORK_CONFIG`."""
    size: int
    kind: str | None
    """What user-data is, by what it begins with, such as `#cloud-config`; null if cloud-init ignores it."""


@dataclass(frozen=True)
class CloudInitSeed:
    """What cloud-init finds at the next start of a VM."""

    instance_id: str
    """A guest that knows it does nothing; it changes with the contents of the files."""
    hostname: str
    user: str | None
    """The user that the verb `cloud-init` has put into USER_DATA; null if the file is of another form."""
    medium: str
    """Path of the medium."""
    files: list[CloudInitFile]
