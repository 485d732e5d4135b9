"""What a process uses, and rates from counters: the only importer of psutil.

What is counted are totals since a process or a link began; between two looks at them lies a rate.
Bytes of drives are not read from here: /proc/PID/io of another user's process takes CAP_SYS_PTRACE.
Nor is the proportional set size, which takes the same and the kernel's walk over all pages.
"""

import contextlib
import time
from collections.abc import Mapping
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """What a process has used up to a moment."""

    at: float
    """The moment, by the monotonic clock, in seconds."""
    cpu: float
    """Seconds of processors, all threads together; the kernel counts in hundredths."""
    rss: int
    """Bytes of memory that are resident."""
    threads: int


class Flow(NamedTuple):
    """Bytes that went in and out of several things, drives or links, up to a moment."""

    at: float
    counters: Mapping[str, tuple[int, int]]


def usage(pid: int) -> Usage | None:
    """Return what a process has used; None where it has ended or may not be looked at. Blocks briefly."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        with process.oneshot():
            user, kernel = process.cpu_times()[:2]
            at = time.monotonic()
            return Usage(at, user + kernel, process.memory_info().rss, process.num_threads())
    return None


def load(before: Usage | None, after: Usage | None) -> float | None:
    """Return how many processors a process kept busy between two looks, 1.0 being one all the time."""
    if before is None or after is None or after.at <= before.at:
        return None
    return max(0.0, after.cpu - before.cpu) / (after.at - before.at)


def rates(before: Flow | None, after: Flow | None) -> tuple[float, float] | tuple[None, None]:
    """Return bytes per second in and out between two looks, of all that was there both times.

    A counter that went back belongs to something new of the same name, and counts as nothing.
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
