"""The power button of a guest without a daemon, by QMP: QEMU lets in one client, and the daemon is away."""

from __future__ import annotations

import _socket
import time

from vmessctl import light_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SOCKET = "qmp.sock"
ANSWER_TIME = 2.0
"""Seconds that a QEMU has to answer."""
REPLIES_MAX = 100
"""The greeting and events come before the reply to a command."""
REPLY_MAX = 65536


def press(directory: int, deadline: float) -> bool:
    """Press the power button of the guest whose VM directory is open, if it runs; tell whether that was done.

    The deadline is by the monotonic clock; QEMU has :data:`ANSWER_TIME` in any case.

    A guest that is paused does not see it, and one that has moved away must not run again.
    """
    try:
        qmp = _Qmp(directory, max(deadline, time.monotonic() + ANSWER_TIME))
    except OSError:
        return False
    try:
        qmp.execute("qmp_capabilities")
        is_running = qmp.execute("query-status").get("status") == "running"
        if is_running:
            qmp.execute("system_powerdown")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False
    else:
        return is_running
    finally:
        qmp.close()


class _Qmp:
    """A connection to QEMU (QEMU Machine Protocol specification)."""

    def __init__(self, directory: int, deadline: float) -> None:
        """Connect; raises OSError."""
        self._heard = b""
        self._deadline = deadline
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_TIME)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def execute(self, command: str) -> dict[str, Any]:
        """Return the result of a command; raises OSError, and ValueError or AttributeError for what is none."""
        self._socket.sendall(light_json.dumps({"execute": command}).encode() + b"\n")
        for _ in range(REPLIES_MAX):
            reply = light_json.loads(self._line().decode())
            if "return" in reply:
                return dict(reply["return"])
            if "error" in reply:
                break
        raise ValueError(command)

    def _line(self) -> bytes:
        while b"\n" not in self._heard:
            data = self._socket.recv(REPLY_MAX)
            if not data or len(self._heard) > REPLY_MAX or time.monotonic() > self._deadline:
                raise ValueError(self._heard)
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line
