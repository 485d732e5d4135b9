"""One end of a move, played by a test: it says what it likes to a real daemon, and hears what that answers."""

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

from daemons import UNIT, Daemon

from vmessctl.client import Client

Line = dict[str, Any]


class Peer:
    """The other side of a daemon in a move."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(20 * UNIT)
        self.socket = connected
        self._data = b""

    def say(self, **line: Any) -> None:
        self.socket.sendall(json.dumps(line).encode() + b"\n")

    def hear(self) -> Line:
        """Return the next line; an empty one at the end."""
        while b"\n" not in self._data:
            data = self.socket.recv(1 << 16)
            if not data:
                return {}
            self._data += data
        text, _, self._data = self._data.partition(b"\n")
        line: Line = json.loads(text)
        return line

    def take(self, size: int) -> bytes:
        """Return so many bytes."""
        while len(self._data) < size and (data := self.socket.recv(1 << 16)):
            self._data += data
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def close(self) -> None:
        self.socket.close()


class Call:
    """A call of Move or Receive whose replies a test reads when it likes."""

    def __init__(self, daemon: Daemon) -> None:
        self.client = Client([str(daemon.socket)], patience=30 * UNIT)

    def last(self) -> Line:
        """Return the last reply; raises VmessError."""
        while True:
            reply, more = self.client.receive()
            if not more:
                return reply


@contextlib.contextmanager
def leaving(
    daemon: Daemon, vm: str = "newvm0", host: str = "lab2", **order: Any
) -> Iterator[tuple[Peer, Call]]:
    """Have a daemon move a VM to the test."""
    ours, theirs = socket.socketpair()
    call = Call(daemon)
    try:
        parameters = {"vm": vm, "host": host, "shared": False, "start": False, "bridges": {}, "channel": 0}
        call.client.send("Move", parameters | order, more=True, descriptor=theirs.fileno())
        theirs.close()
        yield Peer(ours), call
    finally:
        ours.close()
        call.client.close()


@contextlib.contextmanager
def arriving(daemon: Daemon) -> Iterator[tuple[Peer, Call]]:
    """Have a daemon receive what the test sends."""
    call = Call(daemon)
    call.client.send("Receive", {}, more=True)
    call.client.receive()
    (descriptor,) = call.client.descriptors(1)
    peer = Peer(socket.socket(fileno=descriptor))
    try:
        yield peer, call
    finally:
        peer.close()
        call.client.close()


def offer(key: str, archive: bytes = b"", /, vm: str = "newvm0", ask: str = "take", **more: Any) -> Line:
    """Return the first line of a source."""
    return {"vmess_move": 1, "ask": ask, "key": key, "vm": vm, "host": "lab1", "size": len(archive), **more}
