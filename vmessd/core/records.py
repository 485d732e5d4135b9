"""The records in a VM directory: the identity of the running QEMU, and how the last run ended."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, TypeVar, get_args

from vmessd.core.accelerators import Accelerator
from vmessd.core.dataclass import dataclass

_T = TypeVar("_T")

NUMBER_LIMIT = 2**53
TEXT_LIMIT = 2000


@functools.cache
def boot_id() -> str:
    """Return the kernel's random id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True)
class Moment:
    """A point in time whose age can be told later, even if the clock was set."""

    epoch: float
    """Seconds since 1970, by the wall clock."""
    uptime: float
    """Seconds since boot, by CLOCK_BOOTTIME."""
    boot: str
    """The boot id for `uptime`."""

    @classmethod
    def now(cls) -> "Moment":
        """Return this moment."""
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_id())

    def age(self) -> float:
        """Return the seconds since then; by the wall clock only if the host was rebooted since."""
        now = Moment.now()
        if self.boot == now.boot:
            return max(0.0, now.uptime - self.uptime)
        return max(0.0, now.epoch - self.epoch)


@dataclass(frozen=True)
class RunRecord:
    """What identifies the QEMU of a VM, and how it was started."""

    pid: int
    ticks: int
    """The start time of the process in clock ticks since boot, field 22 of proc(5) `stat`."""
    display: int
    """VNC display; 0 where none was free."""
    accel: Accelerator
    argv: list[str]
    since: Moment
    tries: int = 0
    """Consecutive restarts that led to this run."""
    stopping: bool = False
    """A stop was requested, so no daemon starts it again when it has ended."""
    serial: str = ""
    """The place in the serial log where this run begins: a serial_stream.Mark."""
    oom_counter: str = ""
    """The file that counts processes killed for lack of memory in its cgroup; see :mod:`vmessd.qemu.oom`."""
    oom_kills: int = 0
    """The count in that file at the start."""
    cables: bool = False
    """The file CABLES has been valid since the start of this run."""
    hardware: dict[str, str] | None = None
    """The settings and drives it was started with, see :mod:`vmessd.vm.pending`; None from an older version."""
    once: str = ""
    """The version of the file BOOT_ONCE that the start has used, which is to be removed; empty for none."""
    images: dict[str, str] | None = None
    """The files of the drives it was started with, by slot: device and inode; None from an older version."""
    serials: dict[str, str] | None = None
    """The same as `serial` for each serial port, by its number; None from an older version."""
    memory: str = ""
    """The snapshot from whose memory the guest continues; empty if it boots."""


@dataclass(frozen=True)
class ExitRecord:
    """How the last run of a VM ended."""

    pid: int
    ticks: int
    reason: str
    """The name of a member of lifecycle.Reason."""
    text: str
    """The same in words, such as `guest powered off`."""
    status: int | None
    """Exit status of QEMU, negative for a signal; None where it was not our child."""
    asked_by: int | None
    """The uid that requested the stop; None where nobody did."""
    log: list[str]
    """The last lines that QEMU wrote."""
    when: Moment
    tries: int = 0
    """Consecutive restarts that led to this run."""
    again: bool = False
    """The restart policy will start the VM again."""
    note: str | None = None
    """The outcome of the restart policy, for example that it gave up."""
    serial: str = ""
    """The place in the serial log where this run began."""
    serials: dict[str, str] | None = None
    """The same for each serial port, by its number; None from an older version."""


def serial_mark(record: RunRecord | ExitRecord | None, port: int) -> str:
    """Return the place in the log of a serial port where a run began; empty if it is not known."""
    if record is None:
        return ""
    return (record.serials or {"1": record.serial}).get(str(port), "")


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a decoded JSON value has the annotated type of a field."""
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind is Accelerator:
        return isinstance(value, str) and value in Accelerator.__members__
    if kind == list[str] | None:
        return value is None or _fits(value, list[str])
    if kind == dict[str, str] | None:
        return value is None or (
            isinstance(value, dict) and all(isinstance(item, str) for pair in value.items() for item in pair)
        )
    if isinstance(value, int | float) and not -NUMBER_LIMIT < value < NUMBER_LIMIT:  # also refuses NaN
        return False
    if isinstance(value, str) and len(value) > TEXT_LIMIT:
        return False
    kinds = get_args(kind) or (kind,)
    return isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)


def _made(value: Any, kind: Any) -> Any:
    """Return a decoded JSON value that fits as a field has it."""
    if kind is Moment:
        return load(value, Moment)
    return Accelerator(value) if kind is Accelerator else value


def load(data: Any, kind: type[_T]) -> _T:
    """Return a record from untrusted decoded JSON.

    A field with a default may be missing, because an older version wrote the record. Unknown fields, which a
    newer version may have written, are ignored.

    Raises:
        ValueError: a field is missing or has the wrong type.
    """
    if not isinstance(data, dict):
        raise ValueError("not a record")  # noqa: TRY004 -- the data are wrong, not the caller
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in data and field.default is not dataclasses.MISSING:
            continue
        value = data.get(field.name)
        if field.name not in data or not (field.type is Moment or _fits(value, field.type)):
            raise ValueError(field.name)
        values[field.name] = _made(value, field.type)
    return kind(**values)
