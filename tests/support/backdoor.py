"""A second monitor of a QEMU: a test reads and writes its disks by it as the guest does, and sees its jobs."""

import contextlib
import json
import shlex
import socket
from pathlib import Path
from typing import Any, Self

from daemons import UNIT, Daemon

PATIENCE = 20.0


def words(daemon: Daemon, vm: str) -> str:
    """Return the EXARGS for a VM that has one."""
    return shlex.join(["-qmp", f"unix:{place(daemon, vm)},server=on,wait=off"])


def place(daemon: Daemon, vm: str) -> Path:
    return daemon.directory / f"{vm}.qmp"


def failures(daemon: Daemon, vm: str) -> list[str]:
    """Return what has failed of the reading and writing of a QEMU that has ended."""
    log = (daemon.root / vm / "qemu.log").read_text(errors="replace")
    return [line for line in log.splitlines() if "failed" in line or "error" in line]


class Backdoor:
    """A connection to the second monitor of a VM that runs."""

    def __init__(self, daemon: Daemon, vm: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE * UNIT)
        self._socket.connect(str(place(daemon, vm)))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def execute(self, command: str, **arguments: object) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while "event" in (reply := json.loads(self._lines.readline())):
            pass
        assert "return" in reply, reply
        return reply["return"]

    def io(self, line: str, slot: str = "hda") -> None:
        """Have the device of a disk read or write, in the words of qemu-io(1).

        What QEMU says of that is in qemu.log when it has ended, see :func:`failures`.
        """
        self.execute("human-monitor-command", **{"command-line": f'qemu-io -d {slot}-drive "{line}"'})

    def write(self, pattern: int, at: int, size: int, slot: str = "hda") -> None:
        self.io(f"write -q -P {pattern} {at} {size}", slot)
        self.io("flush", slot)

    def paused(self, beginning: str, number: int = 1) -> list[str]:
        """Pause the jobs whose names begin like this, as soon as there are that many; none if all are done."""
        paused = 0
        while len(found := [job["id"] for job in self.jobs() if job["id"].startswith(beginning)]) < number:
            pass
        for job in found:
            with contextlib.suppress(AssertionError):  # it is done, and waits for the others
                self.execute("job-pause", id=job)
                paused += 1
        return found if paused else []

    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.execute("query-jobs")
        return found

    def resume(self, jobs: list[str]) -> None:
        for job in jobs:
            with contextlib.suppress(AssertionError):  # it is done
                self.execute("job-resume", id=job)
