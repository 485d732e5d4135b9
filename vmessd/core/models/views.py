"""What is told of several VMs at once, and how busy all of them are. Pure."""

import dataclasses
import enum
from typing import Self

from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import State
from vmessd.core.models.vms import Explanation, VMInfo, VMStatus
from vmessd.core.models.wires import VMAddress, VMNic


class Aspect(enum.Enum):
    """What is told of each VM, named as the member of a view that has it."""

    status = "status"
    info = "info"
    nics = "nics"
    addresses = "addresses"
    why = "why"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An error that is about one VM of several."""

    error: str
    """Name of the error in this interface: what the call for that VM alone would have failed with."""
    message: str
    hint: str | None

    @classmethod
    def of(cls, error: VmessError) -> Self:
        """Return how an error is told."""
        return cls(error.wire_name(), error.message, error.hint)


@dataclasses.dataclass(frozen=True)
class VMView:
    """One VM: what was asked for, or why it cannot be told."""

    vm: str
    """As it was named in the call."""
    refusal: Refusal | None = None
    status: VMStatus | None = None
    info: VMInfo | None = None
    nics: list[VMNic] | None = None
    addresses: list[VMAddress] | None = None
    why: Explanation | None = None


@dataclasses.dataclass(frozen=True)
class VMStats:
    """How busy a VM is: what it did between two looks, in the mean. null: not known, or there is none."""

    name: str
    state: State
    pid: int | None
    uptime: float | None
    """Seconds since QEMU was started."""
    cpu: float | None
    """Processors that QEMU kept busy: 1.0 is one of the host's all the time."""
    rss: int | None
    """Bytes of the host's memory that QEMU has."""
    threads: int | None
    read: float | None
    """Bytes per second from the drives."""
    written: float | None
    received: float | None
    """Bytes per second that came to the guest through its TAPs; a user-mode network has none."""
    sent: float | None


@dataclasses.dataclass(frozen=True)
class Sample:
    """How busy all VMs are."""

    time: float
    """Seconds since 1970."""
    interval: float
    """Seconds since the look before, which the rates are over."""
    vms: list[VMStats]
