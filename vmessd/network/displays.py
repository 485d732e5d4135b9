"""Free VNC displays: the VM's own by convention, else one that nobody has.

Two VMs of one daemon never get the same. Nothing keeps others on the host away from a port until QEMU itself
listens on it: whatever name or port this could hold in the meantime, any local user could hold first, for all
displays. So this only looks. A QEMU that finds its port taken all the same says so and ends, and is started
once more, on another display (:func:`vmessd.qemu.monitor.says_display_taken`); and where no port is to be had,
a VM goes without one: the way to its screen is `add_client` (see :mod:`vmessd.devices.vnc`), which needs none.
"""

import itertools
import random
import socket
import threading
from collections.abc import Iterator

from vmessd.core.errors import failing
from vmessd.core.names import DISPLAY_MAX, VNC_PORT

NONE = 0
"""What stands for no display; the lowest one of a VM is 1."""
LOOKS = 100
"""Ports that are tried, upwards from the VM's own, and then again as many anywhere: some 5 ms for all."""
LOST_MAX = 5
"""Starts in a row that may end because somebody else was quicker to take the port."""


class Displays:
    """Which displays are in force; one object for all VMs of a daemon, used from several threads."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}
        self._lock = threading.Lock()

    def claim(self, vm: str, wanted: int) -> int:
        """Take a display for a VM and return it: `wanted`, or another free one; NONE where none is found."""
        with self._lock:
            display = self._find(vm, wanted)
            if display != NONE:
                self._owners[display] = vm
            return display

    def hold(self, vm: str, display: int) -> None:
        """Note the display that a running VM has."""
        with self._lock:
            if display != NONE:
                self._owners[display] = vm

    def would_be(self, vm: str, wanted: int) -> int:
        """Return the display a claim would give now, and claim nothing."""
        with self._lock:
            return self._find(vm, wanted)

    def release(self, vm: str) -> None:
        """Give back what a VM has."""
        with self._lock:
            self._owners = {display: owner for display, owner in self._owners.items() if owner != vm}

    def _find(self, vm: str, wanted: int) -> int:
        return next((display for display in self._candidates(vm, wanted) if _is_free(display)), NONE)

    def _candidates(self, vm: str, wanted: int) -> Iterator[int]:
        """Yield displays that no other VM has, in the order in which they are tried."""
        above = itertools.chain(range(wanted, DISPLAY_MAX + 1), range(1, wanted))
        yield from itertools.islice((n for n in above if self._owners.get(n, vm) == vm), LOOKS)
        anywhere = (random.randint(1, DISPLAY_MAX) for _ in range(LOOKS))  # noqa: S311 -- nobody has to guess it
        yield from (n for n in anywhere if self._owners.get(n, vm) == vm)


def _is_free(display: int) -> bool:
    """Tell whether QEMU could listen: it binds with SO_REUSEADDR, as this does."""
    with failing("no socket for a VNC display"):
        probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", VNC_PORT + display))
        except OSError:
            return False
        return True
