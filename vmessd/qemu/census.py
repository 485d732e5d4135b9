"""The QEMUs on this host, found by their command lines."""

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vmessd.core import pid_file
from vmessd.qemu import command_line, process

FRESH = 1.0
"""Seconds for which a scan is reused: a starting daemon asks for each of its VMs."""


class Sighting(NamedTuple):
    """A process with the command line of a VM's QEMU; its user and locks must confirm that it is one."""

    pid: int
    vm: str
    """The name of the VM at its start."""
    directory: str
    """The path of the VM's directory at its start."""


def under(root: Path, seen: Iterable[Sighting]) -> list[Sighting]:
    """Return the processes whose VM belongs to this root, however its path is spelled."""
    is_root = {str(root): True}
    found = []
    for one in seen:
        parent = os.path.dirname(one.directory)
        if parent not in is_root:
            is_root[parent] = _are_same(parent, root)
        if is_root[parent]:
            found.append(one)
    return found


def _are_same(place: str, root: Path) -> bool:
    try:
        return os.path.samefile(place, root)
    except OSError:
        return False


class Census:
    """The QEMUs of all roots, by VM name; one object for all VMs of a daemon. Thread-safe."""

    def __init__(self) -> None:
        self._seen: Mapping[str, Sequence[Sighting]] = {}
        self._at = -FRESH
        self._lock = threading.Lock()

    def seen(self, within: float = FRESH) -> Mapping[str, Sequence[Sighting]]:
        """Return a scan at most `within` seconds old; raises Failed if /proc cannot be read."""
        with self._lock:
            if time.monotonic() - self._at >= within:
                self._seen, self._at = _look(), time.monotonic()
            return self._seen


def _look() -> dict[str, list[Sighting]]:
    found: dict[str, list[Sighting]] = {}
    for pid, argv in process.with_argument(pid_file.OPTION):
        named = command_line.named_in(argv)
        if named is not None:
            found.setdefault(named[0], []).append(Sighting(pid, *named))
    return found
