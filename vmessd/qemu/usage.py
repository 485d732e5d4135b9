"""Resource usage of a process, and rates from counters: the only importer of psutil.

Counters are totals since the start of a process or the creation of a link; two samples give a rate. Traffic of
drives comes from QMP, because /proc/PID/io of another user's process needs CAP_SYS_PTRACE. So does the
proportional set size, which also makes the kernel walk all pages.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import NamedTuple


class Usage(NamedTuple):
    """The resource usage of a process."""

    at: float
    """The time of the sample: monotonic clock, in seconds."""
    cpu: float
    """CPU time of all threads in seconds, with a resolution of 0.01."""
    rss: int
    """Resident memory in bytes."""
    threads: int


class Flow(NamedTuple):
    """Byte counters, in and out, of several drives or links."""

    at: float
    counters: Mapping[str, tuple[int, int]]


def usage(pid: int) -> Usage | None:
    """Return the usage of a process; None if it has ended or may not be inspected. Blocks briefly."""
    import psutil  # noqa: PLC0415 -- a twentieth of the start of the daemon, and only `top` needs it

    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        with process.oneshot():
            user, kernel = process.cpu_times()[:2]
            at = time.monotonic()
            return Usage(at, user + kernel, process.memory_info().rss, process.num_threads())
    return None


def load(before: Usage | None, after: Usage | None) -> float | None:
    """Return the CPU load of a process between two samples; 1.0 is one busy processor."""
    if before is None or after is None or after.at <= before.at:
        return None
    return max(0.0, after.cpu - before.cpu) / (after.at - before.at)


def rates(before: Flow | None, after: Flow | None) -> tuple[float, float] | tuple[None, None]:
    """Return bytes per second, in and out, of all drives or links that are in both samples.

    A counter that decreased belongs to a new device of the same name, and counts as 0.
    """
    if before is None or after is None or after.at <= before.at:
        return None, None
    both = before.counters.keys() & after.counters.keys()
    if not both:
        return None, None
    period = after.at - before.at
    steps = [
        [max(0, now - then) for then, now in zip(before.counters[key], after.counters[key], strict=True)]
        for key in both
    ]
    return sum(into for into, _ in steps) / period, sum(out for _, out in steps) / period
