"""The lives of QEMUs in several machines, watched from outside once a millisecond; `lives.c` does it.

Two QEMUs of one VM are two whose lives have a moment in common. Where that is meant to be so, as in a live
move, and where QEMU itself is to refuse a second one, two guests of one VM are two that ran at one moment.
"""

import shutil
import subprocess
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pytest
from daemons import UNIT

SOURCE = Path(__file__).with_suffix(".c")
SECOND = 10**9


class Life(NamedTuple):
    """A QEMU of a VM: when it was first and last seen, and its guest first and last ran (0: never).

    Times are in seconds of `time.monotonic`.
    """

    node: str
    pid: int
    vm: str
    ended: bool
    first: float
    last: float
    first_ran: float
    last_ran: float


class Watched(NamedTuple):
    """What was seen: the samples, the longest time in seconds between two, and all QEMUs so far."""

    samples: int
    worst: float
    lives: list[Life]

    def is_close(self) -> bool:
        """Tell whether no QEMU can have come so far unseen that its guest ran: each took longer for that."""
        return self.worst < min(
            (life.first_ran - life.first for life in self.lives if life.first_ran), default=0
        )


def together(lives: Iterable[Life]) -> list[tuple[Life, Life]]:
    """Return the pairs of QEMUs of one VM that lived at one moment."""
    pairs = combinations(lives, 2)
    return [(a, b) for a, b in pairs if a.vm == b.vm and a.first <= b.last and b.first <= a.last]


def ran_together(lives: Iterable[Life]) -> list[tuple[Life, Life]]:
    """Return the pairs of QEMUs of one VM whose guests ran at one moment."""
    pairs = combinations([life for life in lives if life.first_ran], 2)
    return [
        (a, b) for a, b in pairs if a.vm == b.vm and a.first_ran <= b.last_ran and b.first_ran <= a.last_ran
    ]


class Watcher:
    """The process that watches; each machine is a name, the control group of QEMUs, the directory of VMs."""

    def __init__(self, directory: Path, machines: Iterable[tuple[str, Path, Path]]) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("QEMUs are watched by a program that takes a C compiler (gcc, libc6-dev)")
        built = directory / "lives"
        command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(built), str(SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * UNIT)
        assert (done.returncode, done.stderr) == (0, "")
        words = [str(word) for name, cgroup, vms in machines for word in (name, cgroup / "cgroup.procs", vms)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([str(built), *words], stdin=pipe, stdout=pipe, text=True)

    def look(self, *, again: bool = False) -> Watched:
        """Return what was seen until now; `again` begins a new count of samples and worst time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("again\n" if again else "\n")
        self.process.stdin.flush()
        samples, worst, count = (int(word) for word in self.process.stdout.readline().split())
        lines = [self.process.stdout.readline().split() for _ in range(count)]
        return Watched(samples, worst / SECOND, [_life(line) for line in lines])

    def close(self) -> None:
        self.process.communicate(timeout=10 * UNIT)


def _life(words: list[str]) -> Life:
    node, pid, vm, ended, *times = words
    first, last, first_ran, last_ran = (int(time) / SECOND for time in times)
    return Life(node, int(pid), vm, ended == "1", first, last, first_ran, last_ran)
