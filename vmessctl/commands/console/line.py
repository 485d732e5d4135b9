"""One connection to a served console, and where its bytes come from: the console itself, or its log.

Nothing here waits, so that one connection never holds up another. What a client does not read is kept up to a
limit, and then dropped, so that the guest continues.
"""

from __future__ import annotations

import _socket  # as in `client`
import os
import select
import time

from vmessctl.cli import verbs
from vmessctl.client import Client, candidates
from vmessctl.commands.console import seat
from vmessctl.commands.console.delivery import Delivery
from vmessctl.commands.console.telnet import Plain, Telnet
from vmessctl.commands.console.watch import Feed
from vmessctl.output.phrases import message
from vmessctl.output.terminal import say
from vmessd.core.errors import VmessError, counted, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmessctl.cli.verbs import Invocation

    Ready = dict[int, int]
    """Events of poll(2) by descriptor."""

PIECE = 1 << 16
UNREAD_MAX = 1 << 18
"""Bytes kept for a client that does not read."""
UNSENT_MAX = 1 << 16
"""Bytes kept for a guest that does not take its input."""
LAST_TIME = 3.0
"""Seconds in which nothing may move until a guest or a client that should take something is given up."""
QUIET = 0.2
"""Seconds of silence that end a connection whose client sends no more."""
TICK = 0.02
"""Seconds between two looks at what QEMU has taken."""
WORD_TIME = 1.0
"""Seconds to wait for the daemon to say why a console has ended."""
KEEP_ALIVE = {_socket.TCP_KEEPIDLE: 60, _socket.TCP_KEEPINTVL: 10, _socket.TCP_KEEPCNT: 6}
"""Seconds without traffic, seconds between probes, and probes, until a vanished client is given up."""
GONE = select.POLLERR | select.POLLHUP


class Seat:
    """The console of a VM, which this connection has alone."""

    attached = "attached"

    def __init__(self, invocation: Invocation, vm: str) -> None:
        """Ask the daemon for it; raises Unreachable."""
        self._vm = vm
        self._client: Client | None = Client(candidates(invocation.options.get(verbs.SOCKET.flag)))
        self._client.send("Console", seat.parameters(invocation, vm))
        self._console = self._leash = -1
        self._early = b""
        """Input before the daemon has answered."""
        self._delivery: Delivery | None = None
        self._ends_at: float | None = None
        """When to give up, once the client sends no more, or the console has ended."""
        self.ended: str | None = None
        """Why this is over; empty if the client has left."""

    @property
    def takes_input(self) -> bool:
        """There is room for input."""
        unsent = self._delivery.unsent if self._delivery else len(self._early)
        return self._ends_at is None and unsent < UNSENT_MAX

    def waits_for(self, *, has_room: bool) -> Ready:  # noqa: ARG002 -- a guest must not wait for room
        """Return the events to wait for."""
        if self._client is not None:
            return {self._client.fileno(): select.POLLIN}
        if self._console < 0:
            return {self._leash: select.POLLIN}
        unsent = self._delivery is not None and self._delivery.unsent
        return {self._console: select.POLLIN | (select.POLLOUT if unsent else 0)}

    def limit(self, now: float) -> float | None:
        """Return the seconds until the next turn without an event; None for never."""
        return None if self._ends_at is None else max(0.0, min(TICK, self._ends_at - now))

    def put(self, typed: bytes) -> None:
        """Take input for the guest."""
        if self._delivery is None:
            self._early += typed
        else:
            self._delivery.put(typed)
            self._send(self._delivery)

    def finish(self) -> None:
        """Let the guest take the last input; a client may have closed only its own direction."""
        self._ends_at = time.monotonic() + LAST_TIME
        if self._delivery is not None:
            self._send(self._delivery)

    def turn(self, ready: Ready) -> bytes:
        """Return what the guest has printed; raises VmessError."""
        if self._client is not None:
            if self._client.fileno() in ready:
                self._take(self._client)
            elif self._ends_at is not None and time.monotonic() >= self._ends_at:
                self.ended = ""
            return b""
        data = b""
        if self._console in ready:
            data = self._listen()
        elif self._leash in ready:
            said = os.read(self._leash, 4096).decode(errors="replace")
            self.ended = f"the console of {self._vm} has ended{f': {said}' if said else ''}"
        if self._delivery is not None:
            self._send(self._delivery)
            if data and self._ends_at is not None:
                self._ends_at = time.monotonic() + QUIET
        if self.ended is None and self._ends_at is not None and time.monotonic() >= self._ends_at:
            self.ended = "" if self._console >= 0 else f"the console of {self._vm} has ended"
        return data

    def _take(self, client: Client) -> None:
        """Take the daemon's answer, once all of it is there."""
        client.fill()
        if not client.pending():
            return
        said = client.receive()[0]["console"]
        self._console, self._leash = seat.handed(client, said)
        self._client = None
        self._delivery = Delivery(self._console)
        self.put(self._early)

    def _listen(self) -> bytes:
        """Read the console; at its end, wait for the word of the daemon."""
        data = seat.heard(self._console)
        if data is None:
            return b""
        if not data:
            os.close(self._console)
            self._console, self._delivery = -1, None
            self._ends_at = time.monotonic() + WORD_TIME
        return data

    def _send(self, delivery: Delivery) -> None:
        """Send input; once there is no more of it, silence is the end."""
        before = delivery.left
        delivery.send()
        if self._ends_at is None:
            return
        delivery.look()
        if delivery.left < before:
            self._ends_at = time.monotonic() + (LAST_TIME if delivery.left else QUIET)
        elif not delivery.left:
            self._ends_at = min(self._ends_at, time.monotonic() + QUIET)

    def close(self) -> None:
        """Leave the console."""
        if self._client is not None:
            self._client.close()
        for fd in (self._console, self._leash):
            if fd >= 0:
                os.close(fd)


class Log:
    """The output of a VM, which any number of connections may have."""

    attached = "watches"
    takes_input = True

    def __init__(self, invocation: Invocation, vm: str) -> None:
        """Ask the daemon for it; raises Unreachable."""
        self._feed = Feed(invocation, vm)
        self._has_room = True
        self.ended: str | None = None

    def waits_for(self, *, has_room: bool) -> Ready:
        """Return the events to wait for; the daemon keeps what there is no room for."""
        self._has_room = has_room
        number = self._feed.fileno()
        return {number: select.POLLIN} if has_room and number is not None else {}

    def limit(self, now: float) -> float | None:  # noqa: ARG002 -- as of Seat
        """Return the seconds until the next turn without an event; None for never."""
        return self._feed.limit() if self._has_room else None

    def put(self, typed: bytes) -> None:
        """Discard input."""

    def finish(self) -> None:
        """End: the client has left."""
        self.ended = ""

    def turn(self, ready: Ready) -> bytes:
        """Return what the guest has printed; raises VmessError."""
        if not self._has_room:
            return b""
        number = self._feed.fileno()
        data = b"".join(self._feed.pieces(ready=number is not None and number in ready))
        self.ended = self._feed.ended or self.ended
        return data

    def close(self) -> None:
        """End the watch."""
        self._feed.close()


class Line:
    """One connection."""

    def __init__(self, invocation: Invocation, vm: str, connected: _socket.socket, peer: Any) -> None:
        self._vm = vm
        self._socket = connected
        self._who = f"{printable(str(peer[0]))}, port {peer[1]}"
        self._protocol = Plain() if verbs.PLAIN.flag in invocation.options else Telnet()
        self._unread = bytearray(self._protocol.greeting)
        """What the client has not read yet."""
        self._dropped = 0
        self._reads = True
        """The client may still send something."""
        self._source: Seat | Log | None = None
        self._leaves_at: float | None = None
        """When to close at the latest, once the reason is on its way."""
        self.is_closed = False
        connected.setblocking(False)
        connected.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        connected.setsockopt(_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1)
        connected.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, PIECE)  # the kernel's buffer counts as well
        for option, value in KEEP_ALIVE.items():
            connected.setsockopt(_socket.IPPROTO_TCP, option, value)
        try:
            kind = Log if verbs.READ_ONLY.flag in invocation.options else Seat
            self._source = kind(invocation, vm)
        except VmessError as error:
            self.leave(message(error))
        else:
            say(f"{vm}: {self._who}: {kind.attached}")

    def waits_for(self) -> Ready:
        """Return the events to wait for."""
        source = self._source
        reads = self._reads and source is not None and source.takes_input
        ours = (select.POLLIN if reads else 0) | (select.POLLOUT if self._unread else 0)
        theirs = source.waits_for(has_room=len(self._unread) < PIECE) if source is not None else {}
        return {self._socket.fileno(): ours, **theirs}

    def limit(self, now: float) -> float | None:
        """Return the seconds until the next turn without an event; None for never."""
        if self._leaves_at is not None:
            return max(0.0, self._leaves_at - now)
        return None if self._source is None else self._source.limit(now)

    def turn(self, ready: Ready) -> None:
        """Copy what there is, and notice the end of either side."""
        try:
            if ready.get(self._socket.fileno(), 0) & GONE:
                raise ConnectionResetError
            if self._source is not None:
                self._copy(self._source, ready)
            self._write()
        except VmessError as error:
            self.leave(message(error))
        except OSError:  # the client has gone
            self._close("left")
        if self._leaves_at is not None and (not self._unread or time.monotonic() >= self._leaves_at):
            self._close("")

    def leave(self, why: str) -> None:
        """Say why the connection ends, and close it when the client has read that."""
        self._let_go()
        self._leaves_at = time.monotonic() + LAST_TIME
        self._unread += f"\r\n{printable(why)}\r\n".encode() if why else b""
        say(f"{self._vm}: {self._who}: {printable(why) if why else 'left'}{self._loss()}")

    def _copy(self, source: Seat | Log, ready: Ready) -> None:
        if ready.get(self._socket.fileno(), 0) & select.POLLIN:
            typed = self._receive()
            if typed is None:
                self._reads = False
                source.finish()
            else:
                source.put(typed)
        self._put(source.turn(ready))
        if source.ended is not None:
            self.leave(source.ended)

    def _receive(self) -> bytes | None:
        """Return what was typed; None if the client sends no more."""
        try:
            data = self._socket.recv(PIECE)
        except BlockingIOError:
            return b""
        if not data:
            return None
        typed, answer = self._protocol.received(data)
        if len(self._unread) + len(answer) > 2 * UNREAD_MAX:
            raise ConnectionAbortedError  # it asks, and does not read the answers
        self._unread += answer
        return typed

    def _put(self, data: bytes) -> None:
        """Keep output for the client, as far as there is room."""
        room = max(0, UNREAD_MAX - len(self._unread))
        self._dropped += max(0, len(data) - room)
        self._unread += self._protocol.sent(data[:room])

    def _write(self) -> None:
        if not self._unread or self.is_closed:
            return
        try:
            del self._unread[: self._socket.send(self._unread[:PIECE])]
        except BlockingIOError:
            return

    def _loss(self) -> str:
        return f"; {counted(self._dropped, 'byte')} dropped that it did not read" if self._dropped else ""

    def _let_go(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _close(self, why: str) -> None:
        self._let_go()
        self._socket.close()
        self.is_closed = True
        if why and self._leaves_at is None:
            say(f"{self._vm}: {self._who}: {why}{self._loss()}")
