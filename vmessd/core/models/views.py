"""Queries about several VMs, and the load of all of them. Pure."""

import enum
from typing import Self

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import NoSuchVM, VmessError
from vmessd.core.lifecycle import State
from vmessd.core.models.vms import Explanation, VMInfo, VMStatus
from vmessd.core.models.wires import VMAddress, VMNic


class Aspect(enum.Enum):
    """What a query asks about each VM: the name of a field of :class:`VMView`."""

    status = "status"
    info = "info"
    nics = "nics"
    addresses = "addresses"
    why = "why"


@dataclass(frozen=True)
class Refusal:
    """An error for one of several VMs."""

    error: str
    """The name of the error in this interface, as a call for this VM alone would return it."""
    message: str
    hint: str | None
    directory: str | None = None
    """As in the error NoSuchVM."""

    @classmethod
    def of(cls, error: VmessError) -> Self:
        """Return the refusal for an error."""
        directory = error.directory if isinstance(error, NoSuchVM) else None
        return cls(error.wire_name(), error.message, error.hint, directory)


@dataclass(frozen=True)
class VMView:
    """The answer for one VM, or the error."""

    vm: str
    """The name as given in the call."""
    refusal: Refusal | None = None
    status: VMStatus | None = None
    info: VMInfo | None = None
    nics: list[VMNic] | None = None
    addresses: list[VMAddress] | None = None
    why: Explanation | None = None


@dataclass(frozen=True)
class VMOverview:
    """One VM in a list of all. null: not known, for example because its files do not answer."""

    name: str
    state: State
    pid: int | None
    uptime: float | None
    """Seconds since the start of QEMU."""
    runstate: str | None
    """The last runstate that QEMU reported."""
    cpus: int | None
    """Virtual processors: of the running QEMU, else of the next start."""
    memory: int | None
    """Memory of the guest in bytes, as for `cpus`."""
    disk: int | None
    """The size of its disks in bytes as the guest sees it, without the CD-ROM. A sparse image takes less."""
    addresses: list[str]
    """The addresses of its guest that the host knows, the best first."""
    locked: bool | None
    autostart: bool | None
    pending: bool
    """Settings were changed since the start; they take effect at the next start."""
    problem: str | None
    """What is wrong with it, or why a start would be refused."""
    owner: str | None = None
    """As in VMStatus."""


@dataclass(frozen=True)
class VMStats:
    """The load of a VM, averaged over the interval between two samples. null: not known, or not applicable."""

    name: str
    state: State
    pid: int | None
    uptime: float | None
    """Seconds since the start of QEMU."""
    cpu: float | None
    """Processors that QEMU used: 1.0 is one processor of the host all the time."""
    rss: int | None
    """Resident memory of QEMU in bytes."""
    threads: int | None
    read: float | None
    """Bytes per second from the drives."""
    written: float | None
    """Bytes per second to the drives."""
    received: float | None
    """Bytes per second to the guest through its TAPs; a user-mode network does not count."""
    sent: float | None
    """Bytes per second from the guest through its TAPs."""


@dataclass(frozen=True)
class Sample:
    """The load of all VMs."""

    time: float
    """Seconds since 1970."""
    interval: float
    """Seconds since the previous sample, over which the rates are averaged."""
    vms: list[VMStats]
