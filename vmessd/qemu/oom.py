"""Whether the kernel killed a process for lack of memory, as far as its counters tell.

Whom it killed stands in the kernel's log alone, which takes CAP_SYSLOG. But it counts its victims: in each
control group that has a memory controller, and on the host. A process that was killed when a count rose is
taken for the victim, and a victim explains one end.

Sources: Linux's Documentation/admin-guide/cgroup-v2.rst (memory.events) and cgroup-v1/memory.rst
(memory.oom_control, which has the count since Linux 4.13), proc(5) (/proc/PID/cgroup, /proc/vmstat).
"""

import contextlib
import os
import threading
import time

CGROUPS = "/sys/fs/cgroup"
HOST = "/proc/vmstat"
"""Counts where no control group does: since Linux 4.13, for the whole host."""
RECENT = 15.0
"""Seconds for which a victim explains an end: a QEMU's last words are waited for before it is buried."""
_FILE_LIMIT = 65536


class Counter:
    """What counts the victims around one QEMU."""

    def __init__(self, kills: "Kills", file: str, count: int) -> None:
        self._kills = kills
        self.file = file
        """Of the QEMU's control group, else :data:`HOST`."""
        self.count = count
        """Victims when the watch began."""

    @property
    def where(self) -> str:
        """Whose victims are counted, in words."""
        return "on this host" if self.file == HOST else "in its control group"

    def killed(self) -> str:
        """Return who may have ended a QEMU by SIGKILL, to stand behind the words for that; mostly nothing."""
        if not self._kills.claim(self.file):
            return ""
        if self.file != HOST:
            return ": the kernel's OOM killer, out of memory"
        return f", perhaps by {self._blamed('just then')}"

    def vanished(self) -> str:
        """Return the same for a QEMU of which nobody can tell how it ended."""
        return f", perhaps killed by {self._blamed('just then')}" if self._kills.claim(self.file) else ""

    def unseen(self, file: str, count: int) -> str:
        """Return the same for a QEMU that nobody watched since `file` said `count`."""
        if file != self.file or count >= self.count:
            return ""
        return f", perhaps killed by {self._blamed('since its start')}"

    def _blamed(self, when: str) -> str:
        return f"the kernel's OOM killer: it killed {self.where} {when}"


class Kills:
    """The victims of all counters that are watched. Called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._fresh: dict[str, list[float]] = {}
        """When victims were counted that explain no end yet, by the monotonic clock."""

    def around(self, pid: int) -> Counter:
        """Return what counts the victims around a process, which is watched from now on."""
        file = next((file for file in _files(pid) if count(file) is not None), HOST)
        with self._lock:
            self._counts.setdefault(file, count(file) or 0)
        self._look_at(file)
        return Counter(self, file, self._counts[file])

    def look(self) -> None:
        """Note what was counted since the last look. To be called every second or so."""
        for file in list(self._counts):
            self._look_at(file)

    def claim(self, file: str) -> bool:
        """Tell whether there is a victim that explains an end just seen; it then explains no other."""
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
    """Return how many victims a file of the kernel's counts, None where it does not; blocks briefly."""
    with contextlib.suppress(OSError, ValueError), open(file, "rb") as opened:
        for line in opened.read(_FILE_LIMIT).splitlines():
            name, _, number = line.partition(b" ")
            if name == b"oom_kill":
                return int(number)
    return None


def _files(pid: int) -> list[str]:
    """Return where the counts of a process's control groups would be."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", "rb") as file:
        return places(os.fsdecode(file.read(_FILE_LIMIT)))
    return []


def places(groups: str) -> list[str]:
    """Return the same by the text of /proc/PID/cgroup, for either version of cgroups."""
    found = []
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            found.append(f"{CGROUPS}{path.rstrip('/')}/memory.events")
        elif "memory" in controllers.split(","):
            found.append(f"{CGROUPS}/memory{path.rstrip('/')}/memory.oom_control")
    return found
