"""What a VM looks like from outside: how it is, what it consists of, why it ended. Pure.

Durations are in seconds and sizes in bytes.
"""

import dataclasses
from typing import Self

from vmessd.core.lifecycle import Policy, Reason, State
from vmessd.core.models.wires import VMNic
from vmessd.core.records import ExitRecord


@dataclasses.dataclass(frozen=True)
class Exit:
    """How the last run of a VM ended."""

    reason: Reason
    text: str
    """The same in words."""
    age: float
    """Seconds since."""
    status: int | None
    """QEMU's exit status, negative for a signal; None where it cannot be known."""
    asked_by: int | None
    """The uid that asked for the stop."""
    log: list[str]
    """The last lines QEMU wrote."""
    note: str | None
    """What its restart policy made of it, where that came to nothing."""

    @classmethod
    def of(cls, record: ExitRecord) -> Self:
        """Return what an exit record says, as of now."""
        return cls(
            reason=Reason.of(record.reason),
            text=record.text,
            age=record.when.age(),
            status=record.status,
            asked_by=record.asked_by,
            log=record.log,
            note=record.note,
        )


@dataclasses.dataclass(frozen=True)
class Restart:
    """The start that a VM's restart policy is about to make."""

    attempt: int
    """Counted from 1: restarts in a row."""
    limit: int
    """Restarts in a row after which it is given up."""
    due: float
    """Seconds until then."""


@dataclasses.dataclass(frozen=True)
class VMStatus:
    """One VM in one line."""

    name: str
    state: State
    pid: int | None
    uptime: float | None
    """Seconds since QEMU was started."""
    runstate: str | None
    """What QEMU last said of the guest, such as running, paused, io-error."""
    last_exit: Exit | None
    restart: Restart | None
    """In state `waiting`."""
    problem: str | None = None
    """What keeps it from being handled like any other, and what mends that: see state `held`."""


@dataclasses.dataclass(frozen=True)
class Drive:
    """One drive of a VM."""

    slot: str
    path: str
    target: str | None
    """Where the path leads if it is a symbolic link."""
    size: int
    read: int | None
    """Bytes the guest has read; None while the VM is off or does not answer."""
    written: int | None


@dataclasses.dataclass(frozen=True)
class Value:
    """One setting of a VM as its file has it."""

    name: str
    value: str


@dataclasses.dataclass(frozen=True)
class VMInfo:
    """All there is to say of one VM."""

    status: VMStatus
    directory: str
    nics: list[VMNic]
    command: list[str]
    """QEMU's command line: the one it runs with, else the one a start would use. Empty: see problem."""
    problem: str | None
    """What a start would say, now or when the VM is off: why there is no command line for it."""
    display: int | None
    """VNC display in force; the TCP port on 127.0.0.1 is 5900 more."""
    accel: str | None
    cpu: str | None
    """QEMU's words for the CPU; None where it has its default."""
    serial: str
    """Path of the serial console's socket; what it prints is logged beside it."""
    changed: bool
    """It runs with other settings than it has now: they take effect at its next start."""
    settings: list[Value]
    """As their files have them."""
    drives: list[Drive]


@dataclasses.dataclass(frozen=True)
class End:
    """What is on record of a run that ended, besides what `status.last_exit` has."""

    pid: int
    when: float
    """Seconds since 1970, by the wall clock of then."""
    user: str | None
    """Name of the user who asked for it, where there is such a user."""
    tries: int
    """Restarts in a row that led to it."""
    console: list[str]
    """The last lines the guest printed on its serial port, escaped."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why a VM is as it is."""

    status: VMStatus
    """In `last_exit`: how the last run ended, who asked for it, QEMU's exit status and last words."""
    end: End | None
    """None where it never ended."""
    policy: Policy
    """What RESTART says."""
    autostart: bool
    """It comes up with the host."""
