"""What is noted of a QEMU in its VM's directory: who it is while it runs, how it ended afterwards."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, TypeVar, get_args

_T = TypeVar("_T")

NUMBER_LIMIT = 2**53
TEXT_LIMIT = 2000


@functools.cache
def boot_id() -> str:
    """Return the kernel's random name of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclasses.dataclass(frozen=True)
class Moment:
    """A point in time that a later reader can tell the age of, whatever was done to the clock."""

    epoch: float
    """Seconds since 1970, by the wall clock."""
    uptime: float
    """Seconds since boot, by CLOCK_BOOTTIME."""
    boot: str
    """The boot this `uptime` belongs to."""

    @classmethod
    def now(cls) -> "Moment":
        """Return this moment."""
        return cls(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), boot_id())

    def age(self) -> float:
        """Return the seconds since; by the wall clock only where the host was booted in between."""
        now = Moment.now()
        if self.boot == now.boot:
            return max(0.0, now.uptime - self.uptime)
        return max(0.0, now.epoch - self.epoch)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What identifies a VM's QEMU, and what it was started with."""

    pid: int
    ticks: int
    """The process's start time in clock ticks since boot, field 22 of proc(5) `stat`."""
    display: int
    """VNC display; 0 where there was none to be had."""
    accel: str
    argv: list[str]
    since: Moment
    tries: int = 0
    """Restarts in a row that led to it."""
    stopping: bool = False
    """A stop was asked for: also if another daemon sees its end, nobody starts it again."""
    serial: str = ""
    """Where in the log of its serial port it begins, a seriallog.Mark."""
    oom_counter: str = ""
    """The file that counts what the kernel kills around it for lack of memory, see `oom` ..."""
    oom_kills: int = 0
    """... and how many those were when it was started."""
    cables: bool = False
    """Which of its cables are pulled is in the file CABLES, from its start on."""


@dataclasses.dataclass(frozen=True)
class ExitRecord:
    """How a VM's last run ended."""

    pid: int
    ticks: int
    reason: str
    """The name of a member of lifecycle.Reason."""
    text: str
    """The same in words, such as `guest powered off`."""
    status: int | None
    """Exit status of QEMU, negative for the signal that killed it; None where it was not our child."""
    asked_by: int | None
    """The uid that asked for the stop; None where nobody did."""
    log: list[str]
    """The last lines QEMU wrote."""
    when: Moment
    tries: int = 0
    """Restarts in a row that led to the run that ended."""
    again: bool = False
    """The VM is to be started again by its restart policy."""
    note: str | None = None
    """What became of that, such as that it was given up."""
    serial: str = ""
    """Where in the log of its serial port the run that ended began."""


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a decoded JSON value has the type a record's field is annotated with."""
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if isinstance(value, int | float) and not -NUMBER_LIMIT < value < NUMBER_LIMIT:  # NaN is not, either
        return False
    if isinstance(value, str) and len(value) > TEXT_LIMIT:
        return False
    kinds = get_args(kind) or (kind,)
    return isinstance(value, kinds) and isinstance(value, bool) == (kind is bool)


def load(data: Any, kind: type[_T]) -> _T:
    """Build a record from decoded JSON that nobody vouches for.

    A field that has a default may be missing: an older version wrote the record. What a newer one
    has written besides is passed over.

    Raises:
        ValueError: a field is missing or has the wrong type.
    """
    if not isinstance(data, dict):
        raise ValueError("no record")  # noqa: TRY004 -- the data are wrong, not the caller
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in data and field.default is not dataclasses.MISSING:
            continue
        value = data.get(field.name)
        if field.name not in data or not (field.type is Moment or _fits(value, field.type)):
            raise ValueError(field.name)
        values[field.name] = load(value, Moment) if field.type is Moment else value
    return kind(**values)
