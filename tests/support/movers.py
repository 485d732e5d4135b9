"""One end of a move, played by a test: it says what it likes to a real daemon, and hears what that answers.

Also guests that move, and what is left of a move in their QEMU.
"""

import contextlib
import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import guests
from daemons import UNIT, Daemon, has_ended, processes_of, wait_for

from vmessctl.client import Client

Line = dict[str, Any]
MIB = 1 << 20


class Door(Protocol):
    """A daemon, as its clients know it."""

    @property
    def socket(self) -> Path:
        """Its control socket."""


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

    def __init__(self, daemon: Door) -> None:
        self.daemon = daemon
        self.client = Client([str(daemon.socket)], patience=30 * UNIT)

    def last(self) -> Line:
        """Return the last reply; raises VmessError."""
        while True:
            reply, more = self.client.receive()
            if not more:
                return reply


@contextlib.contextmanager
def leaving(daemon: Door, vm: str = "newvm0", host: str = "lab2", **order: Any) -> Iterator[tuple[Peer, Call]]:
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
def arriving(daemon: Door) -> Iterator[tuple[Peer, Call]]:
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


# -- Guests that run --


def disk(path: Path, seed: int = 1, size: int = 16 * MIB, data: int = MIB) -> None:
    with path.open("wb") as image:
        image.truncate(size)
        image.seek(size // 3)
        image.write(random.Random(seed).randbytes(data))


def counting(daemon: Daemon, **files: str) -> Path:
    """Start a guest that writes numbers to its disk all the time; `files` are settings."""
    directory = daemon.make("newvm0", "ledger", RAM="64M", **files)
    disk(directory / "newvm0-hda.img", size=64 * MIB)
    daemon.done("newvm", "start")
    daemon.wait_guest("newvm0", b"R.")
    return directory


def numbers(directory: Path) -> int:
    with (directory / "newvm0-hda.img").open("rb") as image:
        return guests.ledger(image.read(guests.LEDGER * 512))


def qmp(daemon: Daemon, *commands: str) -> list[object]:
    """Ask the QEMU of a VM, while its daemon is away."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(10 * UNIT)
        connected.connect(str(daemon.root / "newvm0/qmp.sock"))
        lines = connected.makefile("rb")
        lines.readline()
        found = []
        for command in ("qmp_capabilities", *commands):
            connected.sendall(json.dumps({"execute": command}).encode())
            while "return" not in (reply := json.loads(lines.readline())):
                assert "error" not in reply, reply
            found.append(reply["return"])
    return found[1:]


def is_as_before(daemon: Daemon, where: str, *, adopted: bool) -> None:
    """The QEMU of a guest that did not leave has neither jobs nor nodes of a move.

    One that was `adopted` may have them for a moment.
    """
    left: object = None

    def nothing_is_left() -> bool:
        nonlocal left
        daemon.stop()
        jobs, nodes, status = qmp(daemon, "query-jobs", "query-named-block-nodes", "query-status")
        daemon.start()
        assert isinstance(nodes, list)
        assert isinstance(status, dict)
        left = jobs, {node["node-name"] for node in nodes} - {"hda", "hda-file"}, status["status"]
        return left == ([], set(), "running")

    assert nothing_is_left() or adopted, f"{where}: {left}"
    wait_for(lambda: left == ([], set(), "running") or nothing_is_left(), 20, f"no trace, {where}")


def goes_on(daemon: Daemon, where: str) -> None:
    """Wait until the guest has written more."""
    log = daemon.root / "newvm0/serial.log"
    dots = log.read_bytes().count(b".")
    wait_for(lambda: log.read_bytes().count(b".") > dots, 20, f"a guest that goes on, {where}")


def settled(daemon: Daemon, where: str, *alive: str) -> str:
    """Return the state, when it is one of these or stopped: a QEMU that lives may just have been killed."""
    found = ""

    def agrees() -> bool:
        nonlocal found
        lives = any(not has_ended(pid) for pid in processes_of(daemon.root))
        found = str(daemon.status("newvm")["state"])
        return found in (alive if lives else ("stopped",))

    try:
        wait_for(agrees, 20, f"its state, {where}")
    except AssertionError as error:
        raise AssertionError(f"{error}: it is {found} in {daemon.root}") from None
    return found
