"""A VM as seen from outside: its state, its parts, and how it ended. Pure.

Durations are in seconds and sizes in bytes.
"""

from typing import Self

from vmessd.core.accelerators import Accelerator
from vmessd.core.dataclass import dataclass
from vmessd.core.lifecycle import Policy, Reason, State
from vmessd.core.models.daemon import DaemonKind
from vmessd.core.models.wires import VMNic
from vmessd.core.records import ExitRecord


@dataclass(frozen=True)
class Exit:
    """How the last run of a VM ended."""

    reason: Reason
    text: str
    """The reason in words."""
    age: float
    """Seconds since the end."""
    status: int | None
    """QEMU's exit status, negative for a signal; None where it is unknown."""
    asked_by: int | None
    """The uid that requested the stop."""
    log: list[str]
    """The last lines that QEMU wrote."""
    note: str | None
    """Why the restart policy did not start it again."""

    @classmethod
    def of(cls, record: ExitRecord) -> Self:
        """Return the content of an exit record, with its present age."""
        return cls(
            reason=Reason.of(record.reason),
            text=record.text,
            age=record.when.age(),
            status=record.status,
            asked_by=record.asked_by,
            log=record.log,
            note=record.note,
        )


@dataclass(frozen=True)
class Restart:
    """The next start by a VM's restart policy."""

    attempt: int
    """The number of this restart in a row, from 1."""
    limit: int
    """The maximum number of restarts in a row."""
    due: float
    """Seconds until the start."""


@dataclass(frozen=True)
class VMStatus:
    """A summary of one VM."""

    name: str
    state: State
    pid: int | None
    uptime: float | None
    """Seconds since the start of QEMU."""
    runstate: str | None
    """The last runstate that QEMU reported, such as running, paused, io-error."""
    last_exit: Exit | None
    restart: Restart | None
    """In state `waiting`."""
    problem: str | None = None
    """What is wrong with it, or why a start would be refused; see state `held`."""
    pending: bool | None = None
    """Settings were changed since the start; they take effect at the next start. null: not known."""
    locked: bool | None = None
    """It is locked against changes. null: not known."""
    owner: str | None = None
    """Who decides about it in place of people, such as pacemaker. null: nobody does, or not known."""
    left: float | None = None
    """In state `stopping`: seconds until QEMU is killed, if it does not end before. null: it was killed."""


@dataclass(frozen=True)
class NotVMs:
    """Directories in the VM root whose names are not names of VMs."""

    count: int
    names: list[str]
    """The first of them, sorted."""
    hint: str
    """How the first one becomes a VM."""


@dataclass(frozen=True)
class Drive:
    """One drive of a VM."""

    slot: str
    path: str
    target: str | None
    """The target of the path, if it is a symbolic link."""
    size: int
    """Bytes that the guest sees."""
    read: int | None
    """Bytes that the guest has read; None while the VM is off or does not answer."""
    written: int | None
    """Bytes that the guest has written; None as for `read`."""
    format: str | None = None
    """`raw` or `qcow2`."""
    stored: int | None = None
    """Bytes that the image takes on the file system, without its bases; None for a block device."""
    bases: list[str] | None = None
    """The images below it, the nearest one first; None if there are none."""


@dataclass(frozen=True)
class Value:
    """One setting of a VM, as in its file."""

    name: str
    value: str
    """Of shares and impairments, a line for each."""
    problem: str | None = None
    """Why the value is invalid, or what has failed of that which it asks for, in words that follow the name."""


@dataclass(frozen=True)
class Pending:
    """A setting or drive of a running VM that was changed since its start. null: not set, or no such drive."""

    name: str
    """The file of the setting, or the slot of the drive."""
    now: str | None
    """In force: the value with which QEMU was started."""
    later: str | None
    """From the next start on."""


@dataclass(frozen=True)
class VMInfo:
    """Everything about one VM."""

    status: VMStatus
    directory: str
    nics: list[VMNic]
    command: list[str]
    """The command line of the running QEMU, else of the next start. Empty if there is none; see `problem`."""
    problem: str | None
    """The error of a start, now or after the VM is off: why there is no command line for it."""
    display: int | None
    """The VNC display in use; its TCP port on 127.0.0.1 is 5900 + display."""
    accel: Accelerator | None
    cpu: str | None
    """The value of QEMU's option -cpu; None for QEMU's default."""
    serial: str
    """Path of the socket of the serial console."""
    changed: bool
    """Settings were changed since the start; they take effect at the next start."""
    settings: list[Value]
    drives: list[Drive]
    kvm: str | None = None
    """Why it runs without KVM though its accelerator is `auto`, or would at a start, as far as is known."""
    pending: list[Pending] | None = None
    """What was changed since the start; null if it is off, or an older vmessd has started it."""
    cloud_init: str | None = None
    """The id of what cloud-init finds at the next start; null if that is nothing."""
    startup: str | None = None
    """The startup configuration in words: its size, a digest, and what became of it if it is typed; or null."""
    problem_drive: str | None = None
    """The slot of the drive that `problem` is about, if it is about one."""


@dataclass(frozen=True)
class End:
    """What the record of the last run says, in addition to `status.last_exit`."""

    pid: int
    when: float
    """Seconds since 1970, by the wall clock at that time."""
    user: str | None
    """Name of the user who requested the stop, if the user exists."""
    tries: int
    """Consecutive restarts that led to this run."""
    console: list[str]
    """The last lines that the guest printed on its serial port, as plain text without control sequences."""


@dataclass(frozen=True)
class Explanation:
    """Why a VM is in its state."""

    status: VMStatus
    """With `last_exit`: how the last run ended, who requested it, QEMU's exit status and last lines."""
    end: End | None
    """None where no run has ended."""
    policy: Policy
    """The value of RESTART."""
    autostart: bool
    """Its AUTOSTART is on: `Boot` starts it, which a service calls when the host boots; see `daemon`."""
    daemon: DaemonKind | None = None
    """Who runs the daemon; null: an older vmessd does not say so."""
