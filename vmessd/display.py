"""Free VNC displays: the VM's own by convention, else the next that nobody has."""

import contextlib
import itertools
import socket
import threading

from vmessd.errors import Failed, failing
from vmessd.names import DISPLAY_MAX, VNC_PORT


class Displays:
    """Which displays are in force; one object for all VMs of a daemon, used from several threads."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}
        self._reservations: dict[str, socket.socket] = {}
        self._lock = threading.Lock()

    def claim(self, vm: str, wanted: int) -> int:
        """Take a display for a VM and return it: `wanted`, or the next above it that is free.

        Raises:
            Failed: there is none.
        """
        with self._lock:
            display, reservation = self._first_free(vm, wanted)
            self._reservations[vm] = reservation
            self._owners[display] = vm
            return display

    def hold(self, vm: str, display: int) -> None:
        """Note the display that a running VM has."""
        with self._lock:
            self._owners[display] = vm

    def would_be(self, vm: str, wanted: int) -> int:
        """Return the display a claim would give now, and claim nothing; raises Failed."""
        with self._lock:
            display, reservation = self._first_free(vm, wanted)
            reservation.close()
            return display

    def settle(self, vm: str) -> None:
        """Note that the VM's QEMU listens now, which keeps others away by itself."""
        with self._lock:
            self._drop_reservation(vm)

    def release(self, vm: str) -> None:
        """Give back what a VM has."""
        with self._lock:
            self._drop_reservation(vm)
            self._owners = {display: owner for display, owner in self._owners.items() if owner != vm}

    def _drop_reservation(self, vm: str) -> None:
        reservation = self._reservations.pop(vm, None)
        if reservation is not None:
            reservation.close()

    def _first_free(self, vm: str, wanted: int) -> tuple[int, socket.socket]:
        for display in itertools.chain(range(wanted, DISPLAY_MAX + 1), range(wanted)):
            if self._owners.get(display, vm) != vm:
                continue
            reservation = _reserve(display)
            if reservation is not None:
                return display, reservation
        raise Failed("no VNC display is free on 127.0.0.1", hint="ss -tlnp tells who has the ports")


def _reserve(display: int) -> socket.socket | None:
    """Reserve a display among all daemons of the host if QEMU could listen on it; None where not.

    Between the look at the port and QEMU's own bind(2) another daemon may look, too. An abstract name
    is taken by one process at a time and vanishes with it (unix(7)); it belongs to the same network
    namespace as the port.
    """
    with failing("no socket for a VNC display"):
        reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with contextlib.ExitStack() as undo:
        undo.callback(reservation.close)
        try:
            reservation.bind(f"\0vmess-display-{display}")
        except OSError:
            return None
        if not _is_free(display):
            return None
        undo.pop_all()
    return reservation


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
