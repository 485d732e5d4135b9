"""Which QEMUs there are on this host, by what their arguments say of themselves."""

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vmessd.qemu import command_line, process

FRESH = 1.0
"""Seconds for which one look does for all who ask: a daemon that starts asks for each of its VMs."""


class Sighting(NamedTuple):
    """A process whose arguments are those of a VM's QEMU; whether it is one, its user and locks tell."""

    pid: int
    vm: str
    """The name it was started with."""
    directory: str
    """The VM's directory, as it was called then."""


def under(root: Path, seen: Iterable[Sighting]) -> list[Sighting]:
    """Return those whose VM was one of this root, however that was spelled; look at each other root once."""
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
    """The QEMUs of all roots, by their VMs' names; one object for all VMs of a daemon, used from threads."""

    def __init__(self) -> None:
        self._seen: Mapping[str, Sequence[Sighting]] = {}
        self._at = -FRESH
        self._lock = threading.Lock()

    def seen(self, within: float = FRESH) -> Mapping[str, Sequence[Sighting]]:
        """Return what was seen at most `within` seconds ago; raises Failed where nobody can look."""
        with self._lock:
            if time.monotonic() - self._at >= within:
                self._seen, self._at = _look(), time.monotonic()
            return self._seen


def _look() -> dict[str, list[Sighting]]:
    found: dict[str, list[Sighting]] = {}
    for pid, argv in process.with_argument("-pidfile"):
        named = command_line.named_in(argv)
        if named is not None:
            found.setdefault(named[0], []).append(Sighting(pid, *named))
    return found
