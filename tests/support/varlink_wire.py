"""Raw connections to the control socket, and what a daemon's log and memory look like afterwards."""

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any, Self

from daemons import UNIT, Daemon

from vmessd.core.errors import INTERFACE

PATIENCE = 1.0  # seconds until there is an answer or a closed connection


Message = dict[str, Any]


class Wire:
    """A client that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10 * UNIT)
        self.sock.connect(str(path))
        self.buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send all of it, unless the daemon hangs up before."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def receive(self, seconds: float = PATIENCE) -> Message | None:
        """Return the next reply, None where the connection is closed instead; neither in time fails."""
        deadline = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            left = deadline - time.monotonic()
            assert left > 0, f"neither an answer nor a closed connection in {seconds} s"
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            except TimeoutError:
                continue
            if not data:
                return None
            self.buffer += data
        reply, _, self.buffer = self.buffer.partition(b"\0")
        decoded: Message = json.loads(reply)
        return decoded

    def last(self, seconds: float = PATIENCE) -> Message | None:
        """Return the last reply to a call, None for a closed connection."""
        while (reply := self.receive(seconds)) is not None and reply.get("continues"):
            pass
        return reply

    def call(self, method: str, parameters: object = None, **extra: object) -> Message:
        """Make a call and return the first reply to it."""
        self.begin(method, parameters, **extra)
        reply = self.receive()
        assert reply is not None, "the daemon hung up"
        return reply

    def begin(self, method: str, parameters: object = None, **extra: object) -> None:
        """Send a call."""
        self.send(encode(method, parameters, **extra))


def encode(method: str, parameters: object = None, **extra: object) -> bytes:
    full = method if "." in method else f"{INTERFACE}.{method}"
    return json.dumps({"method": full, "parameters": parameters or {}, **extra}).encode() + b"\0"


def answers(daemon: Daemon, within: float = PATIENCE) -> None:
    """A new client gets an answer in time."""
    began = time.monotonic()
    with Wire(daemon.socket) as wire:
        wire.begin("List")
        reply = wire.receive(within)
    assert reply is not None
    assert "vms" in reply["parameters"]
    assert time.monotonic() - began < within


def rss(daemon: Daemon) -> int:
    """Return the daemon's resident memory in MiB."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


def log_of(daemon: Daemon) -> str:
    return daemon.log.read_text()


def nothing_unforeseen(daemon: Daemon) -> None:
    """The log has no traceback and no word of an unforeseen failure."""
    log = log_of(daemon)
    for sign in ("Traceback", "unexpected", "unhandled", "never retrieved", "Exception in", "Sending reply"):
        assert sign not in log, f"{sign}:\n{log[-4000:]}"
    for line in log.splitlines():
        assert line.isprintable()


def full(path: Path) -> bool:
    """Tell whether the listener's queue takes no more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True
    return False
