"""Detection of the OOM killer by the counters of the kernel.

Only the kernel log names the victims, and reading it needs CAP_SYSLOG. But the kernel counts them, in each
control group with a memory controller and for the host. A process that was killed when a count rose is assumed
to be the victim. Each victim explains the end of one process.

Sources: Linux's Documentation/admin-guide/cgroup-v2.rst (memory.events) and cgroup-v1/memory.rst
(memory.oom_control, which has the count since Linux 4.13), proc(5) (/proc/PID/cgroup, /proc/vmstat).
"""

import contextlib
import os
import threading
import time

CGROUPS = "/sys/fs/cgroup"
HOST = "/proc/vmstat"
"""The counter of the whole host, used if no control group has one; since Linux 4.13."""
RECENT = 15.0
"""Seconds for which a victim explains an end: the daemon first waits for the last messages of a dead QEMU."""
_FILE_LIMIT = 65536


class Counter:
    """The counter of victims that applies to one QEMU."""

    def __init__(self, kills: "Kills", file: str, count: int) -> None:
        self._kills = kills
        self.file = file
        """The file of the QEMU's control group, else :data:`HOST`."""
        self.count = count
        """The count when the watch began."""

    @property
    def where(self) -> str:
        """The scope of the counter, as a text."""
        return "on this host" if self.file == HOST else "in its control group"

    def killed(self) -> str:
        """Return a suffix for the message about a QEMU that ended by SIGKILL; empty without a victim."""
        if not self._kills.claim(self.file):
            return ""
        if self.file != HOST:
            return ": the kernel's OOM killer, out of memory"
        return f", perhaps by {self._blamed('just then')}"

    def vanished(self) -> str:
        """Return the suffix for a QEMU whose exit status is unknown."""
        return f", perhaps killed by {self._blamed('just then')}" if self._kills.claim(self.file) else ""

    def unseen(self, file: str, count: int) -> str:
        """Return the suffix for a QEMU that was unwatched since `file` contained `count`."""
        if file != self.file or count >= self.count:
            return ""
        return f", perhaps killed by {self._blamed('since its start')}"

    def _blamed(self, when: str) -> str:
        return f"the kernel's OOM killer: it killed {self.where} {when}"


class Kills:
    """The victims of all watched counters. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._fresh: dict[str, list[float]] = {}
        """The times of victims that explain no end yet, by file; monotonic clock, in seconds."""

    def around(self, pid: int) -> Counter:
        """Return the counter that applies to a process, and watch it from now on."""
        file = next((file for file in _files(pid) if count(file) is not None), HOST)
        with self._lock:
            self._counts.setdefault(file, count(file) or 0)
        self._look_at(file)
        return Counter(self, file, self._counts[file])

    def look(self) -> None:
        """Read all counters. Call this about once a second."""
        for file in list(self._counts):
            self._look_at(file)

    def claim(self, file: str) -> bool:
        """Tell whether a recent victim explains an end, and use it up."""
        self._look_at(file)
        with self._lock:
            fresh = self._fresh.get(file, [])
            self._fresh[file] = fresh[1:]
            return fresh != []

    def _look_at(self, file: str) -> None:
        now, found = time.monotonic(), count(file)
        with self._lock:
            risen = max(0, (found or 0) - self._counts.get(file, 0))
            if found is not None:
                self._counts[file] = found
            recent = [when for when in self._fresh.get(file, []) if now - when < RECENT]
            self._fresh[file] = recent + [now] * min(risen, 1000)


def count(file: str) -> int | None:
    """Return the number of victims in a file of the kernel, None if it has no count; blocks briefly."""
    with contextlib.suppress(OSError, ValueError), open(file, "rb") as opened:
        for line in opened.read(_FILE_LIMIT).splitlines():
            name, _, number = line.partition(b" ")
            if name == b"oom_kill":
                return int(number)
    return None


def _files(pid: int) -> list[str]:
    """Return the possible counter files of a process's control groups."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", "rb") as file:
        return places(os.fsdecode(file.read(_FILE_LIMIT)))
    return []


def places(groups: str) -> list[str]:
    """Return the possible counter files for the text of /proc/PID/cgroup, with cgroups v1 or v2."""
    found = []
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            found.append(f"{CGROUPS}{path.rstrip('/')}/memory.events")
        elif "memory" in controllers.split(","):
            found.append(f"{CGROUPS}/memory{path.rstrip('/')}/memory.oom_control")
    return found
