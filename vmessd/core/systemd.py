"""Word to the service manager, by sd_notify(3): the only importer of sdnotify.

Nothing happens where there is no service manager. Light, because the client says things too.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_notifier = None


def is_heard() -> bool:
    """Tell whether there is a service manager that listens."""
    return "NOTIFY_SOCKET" in os.environ


def tell(*assignments: str) -> None:
    """Send assignments such as `READY=1` in one message; what cannot be sent is dropped."""
    global _notifier  # noqa: PLW0603 -- one socket to one place
    if not is_heard():
        return
    if _notifier is None:
        import sdnotify  # noqa: PLC0415 -- only under a service manager, and it imports socket

        _notifier = sdnotify.SystemdNotifier()
        if (
            _notifier.socket is not None
        ):  # where nobody reads, the queue fills, and nobody here is to wait for that
            _notifier.socket.setblocking(False)
    _notifier.notify("\n".join(assignments))


def status(text: str) -> str:
    """Return the assignment that shows a line in `systemctl status`."""
    return f"STATUS={text}"


SPARE = 15.0
"""Seconds that the service manager is asked to wait beyond what is expected."""


def extend(left: float) -> list[str]:
    """Return the assignment that has the service manager wait for what is expected in so many seconds.

    Nothing where that is overdue by more than :data:`SPARE`: what not even SIGKILL ends, such as a process
    whose disk hangs, is not to keep the host from going down.
    """
    return [f"EXTEND_TIMEOUT_USEC={int((max(left, 0.0) + SPARE) * 1e6)}"] if left > -SPARE else []


def watchdog_period(environment: Mapping[str, str]) -> float | None:
    """Return how often `WATCHDOG=1` is due, in seconds; None where nobody waits for it.

    A third of the limit: one that comes late does no harm. Source: sd_watchdog_enabled(3).
    """
    limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    if not limit.isdecimal() or int(limit) == 0 or pid != str(os.getpid()):
        return None
    return int(limit) / 3e6
