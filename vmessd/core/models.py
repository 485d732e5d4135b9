"""What a VM looks like from outside: the records that go over the control socket.

Durations are in seconds and sizes in bytes. Field names are wire names and stay.
"""

import dataclasses
from typing import Self

from vmessd.core.lifecycle import State
from vmessd.core.records import ExitRecord


@dataclasses.dataclass(frozen=True)
class Exit:
    """How the last run of a VM ended."""

    reason: str
    """Name of a lifecycle.Reason: powered_off, powered_down, reset, panicked, quit, forced ..."""
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
            reason=record.reason,
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
class VMNic:
    """One interface of a VM."""

    index: int
    """Counted from 0."""
    tap: str | None
    """Name of its TAP; None for QEMU's user-mode network."""
    mac: str
    wire: str
    """What it is plugged into, as `ifadd` takes it: a bridge, `-`, or `user` with its forwarded ports."""
    present: bool
    """The TAP exists."""
    leaving: bool
    """It is being unplugged: the guest has not let go of it."""
    cable: bool | None
    """Its cable is in: `cable` pulls it. None where that cannot be known."""
    difference: str | None
    """In what the host's links differ from the NICS file, in words."""
    duplicate: str | None
    """That and where its MAC was heard in its bridge, but not behind its TAP, in words."""
    mac_later: str | None
    """The MAC that it has from the VM's next start on, where that is another one."""


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
    rung: str | None
    """power button, QMP quit, SIGTERM or SIGKILL."""
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

    @classmethod
    def of_rest(cls, note: str) -> Self:
        """Return the only step of a stop where there was no QEMU to stop."""
        return cls(True, None, None, 0.0, 0.0, False, None, note)


@dataclasses.dataclass(frozen=True)
class FleetProgress:
    """A step of bringing all VMs up or down."""

    done: bool
    """The last step; nothing else is said in it."""
    vm: str
    step: str
    """`starting`, `running`, `stopping`, `off` or `failed`."""
    pid: int | None
    rung: str | None
    """Of a stop: power button, QMP quit, SIGTERM or SIGKILL."""
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
