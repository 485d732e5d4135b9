"""What the verb wait waits for: the base class of conditions, and the answer of an SSH server."""

from __future__ import annotations

import time

from vmessctl.cli.verbs import PROGRAM
from vmessctl.client import connect
from vmessd.core.errors import NotRunning
from vmessd.core.words import OFF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from socket import socket
    from typing import Any

    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Client, Reply
    from vmessctl.commands.ssh_route import Route

ASK_EVERY = 0.5
"""Seconds between queries for addresses: the host does not report changes."""
BANNER = b"SSH-2.0"
"""What an SSH server sends first, possibly after other lines (RFC 4253, 4.2)."""
BANNER_LIMIT = 8192
BANNER_TIME = 10.0
"""Seconds that a connection may be silent: QEMU's user network accepts it before the guest does."""


class Condition:
    """What to wait for, of one VM."""

    method = "Watch"
    more = True
    pause: float | None = None
    """Seconds between an answer and the next query; None for a stream."""
    look = "status"
    """The verb that shows the present state, or changes it, for the hint of a time-out."""

    def __init__(self, vm: str) -> None:
        self.vm = vm

    def parameters(self) -> Mapping[str, object]:
        """Return the parameters of the call."""
        return {"vms": [self.vm]}

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Handle a reply; return a result, with the line for people as `text`, if the condition is met.

        Raises:
            VmessError: the condition can no longer be met.
        """
        raise NotImplementedError

    def missing(self) -> str:
        """Return what is still missing, for a message that begins with the VM."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the condition holds."""


class Greeting:
    """A connection on which an SSH server should introduce itself. It never blocks."""

    def __init__(self, route: Route) -> None:
        import socket  # noqa: PLC0415 -- slow to import, needed only here

        self._began = time.monotonic()
        self._said = b""
        self._socket: socket.socket | None = None
        try:
            found = socket.getaddrinfo(
                route.host, route.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
            self._socket = socket.socket(found[0][0], socket.SOCK_STREAM)
            self._socket.setblocking(False)
            self._socket.connect_ex(found[0][4])
        except OSError:
            self.close()

    def is_heard(self) -> bool | None:
        """Tell whether an SSH server has introduced itself; None if the connection is of no use."""
        if self._socket is None or time.monotonic() > self._began + BANNER_TIME:
            return None
        try:
            data = self._socket.recv(BANNER_LIMIT)
        except BlockingIOError:
            return False
        except OSError:  # refused, reset, or not connected yet
            return None if self._failed() else False
        self._said += data
        if any(line.startswith(BANNER) for line in self._said.splitlines()):
            return True
        return False if data and len(self._said) < BANNER_LIMIT else None

    def _failed(self) -> bool:
        import socket  # noqa: PLC0415 -- loaded already

        return self._socket is None or self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class AnswersSSH(Condition):
    """An SSH server answers where this host reaches the guest."""

    method = "Status"
    more = False
    look = "addr"
    pause = ASK_EVERY

    def __init__(self, vm: str, invocation: Invocation) -> None:
        super().__init__(vm)
        self._invocation = invocation
        self._client: Client | None = None
        self._route: Route | None = None
        self._greeting: Greeting | None = None
        self._ran = self._is_off = False

    def parameters(self) -> Mapping[str, object]:
        """Return the parameters of the call."""
        return {"vm": self.vm}

    def take(self, reply: Reply) -> dict[str, Any] | None:
        """Handle the status: look for the guest's address, then for its greeting."""
        if reply["status"]["state"] in OFF:
            if self._ran:
                raise NotRunning(f"VM {self.vm} ended during the wait", hint=f"{PROGRAM} {self.vm} why")
            self._is_off, self.look = True, "start"
            return None
        self._ran, self._is_off, self.look = True, False, AnswersSSH.look
        route = self._where(reply["status"])
        if route is None:
            return None
        self._greeting = self._greeting or Greeting(route)
        heard = self._greeting.is_heard()
        if heard is None:
            self._greeting.close()
            self._greeting = self._route = None  # the address may be another one now
        return {"text": f"SSH at {route}", "address": route.host, "port": route.port} if heard else None

    def _where(self, status: Reply) -> Route | None:
        from vmessctl.commands import ssh_route  # noqa: PLC0415 -- other waits do without

        ssh_route.must_not_be_stuck(status)
        if self._route is None:
            if self._client is None or self._client.is_lost:
                self._client = connect(self._invocation)
            self._route = ssh_route.find(self._client, self.vm)
        return self._route

    def missing(self) -> str:
        """Return what is still missing, for a message that begins with the VM."""
        if self._route is not None:
            return f"does not answer as an SSH server at {self._route}"
        return "is not running" if self._is_off else "has no address known to the host"

    def close(self) -> None:
        """Close the connections."""
        for each in (self._greeting, self._client):
            if each is not None:
                each.close()
