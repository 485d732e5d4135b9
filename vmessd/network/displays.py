"""Free VNC displays: the VM's own by convention, else any free one.

Two VMs of one daemon never get the same display. A port cannot be reserved until QEMU itself listens on it:
any local user could take such reservations first, for all displays. So this module only checks. A QEMU that
finds its port taken says so and exits, and is started again on another display
(:func:`vmessd.qemu.monitor.says_display_taken`). If no port is free, a VM runs without one: its screen is
reached through `add_client` (see :mod:`vmessd.devices.vnc`), which needs no port.
"""

import itertools
import random
import socket
import threading
from collections.abc import Iterator

from vmessd.core.errors import failing
from vmessd.core.names import DISPLAY_MAX, VNC_PORT

NONE = 0
"""Means no display; the lowest display of a VM is 1."""
LOOKS = 100
"""Ports to try upwards from the VM's own, and then at random; 5 ms in total."""
LOST_MAX = 5
"""Starts in a row that may fail because another process took the port first."""


class Displays:
    """Displays in use; one object for all VMs of a daemon. Thread-safe."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}
        self._lock = threading.Lock()

    def claim(self, vm: str, wanted: int) -> int:
        """Take a display for a VM and return it: `wanted`, else another free one, else NONE."""
        with self._lock:
            display = self._find(vm, wanted)
            if display != NONE:
                self._owners[display] = vm
            return display

    def hold(self, vm: str, display: int) -> None:
        """Record the display of a running VM."""
        with self._lock:
            if display != NONE:
                self._owners[display] = vm

    def would_be(self, vm: str, wanted: int) -> int:
        """Return the display that :meth:`claim` would return now, without taking it."""
        with self._lock:
            return self._find(vm, wanted)

    def release(self, vm: str) -> None:
        """Release the display of a VM."""
        with self._lock:
            self._owners = {display: owner for display, owner in self._owners.items() if owner != vm}

    def _find(self, vm: str, wanted: int) -> int:
        return next((display for display in self._candidates(vm, wanted) if _is_free(display)), NONE)

    def _candidates(self, vm: str, wanted: int) -> Iterator[int]:
        """Yield displays that no other VM has, in the order to try them."""
        above = itertools.chain(range(wanted, DISPLAY_MAX + 1), range(1, wanted))
        yield from itertools.islice((n for n in above if self._owners.get(n, vm) == vm), LOOKS)
        anywhere = (random.randint(1, DISPLAY_MAX) for _ in range(LOOKS))  # noqa: S311 -- not a secret
        yield from (n for n in anywhere if self._owners.get(n, vm) == vm)


def _is_free(display: int) -> bool:
    """Tell whether QEMU could listen there: it binds with SO_REUSEADDR, as this does."""
    with failing("no socket for a VNC display"):
        probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", VNC_PORT + display))
        except OSError:
            return False
        return True
