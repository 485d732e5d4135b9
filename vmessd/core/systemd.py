"""Notifications for the service manager, sd_notify(3); the only importer of sdnotify.

They do nothing without a service manager. The module imports little, because the client uses it too.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_notifier = None


def is_heard() -> bool:
    """Tell whether a service manager listens."""
    return "NOTIFY_SOCKET" in os.environ


def tell(*assignments: str) -> None:
    """Send assignments such as `READY=1` in one message; drop it if it cannot be sent."""
    global _notifier  # noqa: PLW0603 -- one socket for the process
    if not is_heard():
        return
    if _notifier is None:
        import sdnotify  # noqa: PLC0415 -- only under a service manager, and it imports socket

        _notifier = sdnotify.SystemdNotifier()
        if _notifier.socket is not None:  # never wait: the queue may be full because nobody reads it
            _notifier.socket.setblocking(False)
    _notifier.notify("\n".join(assignments))


def status(text: str) -> str:
    """Return the assignment for the status line of `systemctl status`."""
    return f"STATUS={text}"


SPARE = 15.0
"""Seconds that the service manager is asked to wait beyond the expected time."""


def extend(left: float) -> list[str]:
    """Return the assignment that extends the timeout for something expected in `left` seconds.

    Empty where it is overdue by more than :data:`SPARE`: a process that survives SIGKILL, for example because
    its disk hangs, must not keep the host from shutting down.
    """
    return [f"EXTEND_TIMEOUT_USEC={int((max(left, 0.0) + SPARE) * 1e6)}"] if left > -SPARE else []


def watchdog_period(environment: Mapping[str, str]) -> float | None:
    """Return the interval of `WATCHDOG=1` in seconds; None where there is no watchdog.

    It is a third of the limit, so a late one does no harm. Source: sd_watchdog_enabled(3).
    """
    limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(os.getpid()))
    if not limit.isdecimal() or int(limit) == 0 or pid != str(os.getpid()):
        return None
    return int(limit) / 3e6
