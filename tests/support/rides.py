"""The move of a guest between two real daemons: a test carries each line over, in place of both clients."""

import contextlib
import socket
from collections.abc import Iterator

from movers import Call, Door, Line, Peer, arriving, leaving

SAID = ("ready", "whole", "closed", "loaded", "done", "forgotten")
"""What the destination says, in turn."""
STEPS = (
    *("offer", "ready", "archive", "whole", "joined", "close", "closed", "load", "loaded", "commit", "done"),
    *("forget", "forgotten"),
)
"""The lines of a move in turn, and what goes between them."""


class Ride:
    """One move of a guest."""

    def __init__(self, here: tuple[Peer, Call], there: tuple[Peer, Call]) -> None:
        self.here, self.moving = here
        self.there, self.receiving = there
        self.offered: Line = {}
        self.said: Line = {}
        self.line: Line = {}
        self.connections: list[socket.socket] = []

    def hear(self, step: str) -> None:
        """Wait for what comes next."""
        if step in ("archive", "joined"):
            return
        self.line = (self.there if step in SAID else self.here).hear()
        got = self.line.get("said") or self.line.get("word") or ("offer" if "ask" in self.line else "")
        assert got == step, f"{self.line} in place of {step}"
        if step == "offer":
            self.offered = self.line
        if step == "whole":
            self.said = self.line

    def deliver(self, step: str, daemon: Door) -> None:
        """Carry it over."""
        if step == "archive":
            self.there.socket.sendall(self.here.take(self.offered["size"]))
        elif step == "joined":
            while not self.moving.client.receive()[0]["progress"].get("wants"):
                pass
            for name in self.said["channels"]:
                self.join(name, daemon)
        else:
            (self.here if step in SAID else self.there).say(**self.line)

    def join(self, name: str, daemon: Door) -> None:
        """Bring a connection from a QEMU that waits."""
        call = Call(self.receiving.daemon)
        call.client.send("Receive", {"connection": name}, more=True)
        call.client.receive()
        connected = socket.socket(fileno=call.client.descriptors(1)[0])
        call.client.close()
        self.connections.append(connected)
        call = Call(daemon)
        order = {"vm": self.offered["vm"], "name": name.rpartition(":")[2], "channel": 0}
        call.client.send("JoinMove", order, descriptor=connected.fileno())
        call.client.receive()
        call.client.close()

    def cut(self) -> None:
        """End all connections."""
        for one in (self.here.socket, self.there.socket, *self.connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self.connections.clear()

    def leave(self) -> None:
        """End the clients, and with them the connections."""
        self.moving.client.close()
        self.receiving.client.close()
        self.cut()


@contextlib.contextmanager
def riding(here: Door, there: Door, vm: str = "newvm0") -> Iterator[Ride]:
    """Begin to move a guest."""
    with arriving(there) as arrives, leaving(here, vm, live=True) as leaves:
        ride = Ride(leaves, arrives)
        try:
            yield ride
        finally:
            ride.leave()


def ride_until(ride: Ride, here: Door, last: str, *, delivered: bool = True) -> None:
    """Carry each line over up to one, which is `delivered` or lost."""
    for step in STEPS:
        ride.hear(step)
        if step != last or delivered:
            ride.deliver(step, here)
        if step == last:
            return
