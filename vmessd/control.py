"""The control socket: who may connect, how many, how much they may send, for how long they may idle.

`asyncvarlink` speaks the protocol; what is added here are the bounds it does not have. The way a
peer steps over one costs it the connection and nobody else anything.
"""

import asyncio
import collections
import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from asyncvarlink import (
    GenericVarlinkErrorReply,
    VarlinkInterfaceRegistry,
    VarlinkInterfaceServerProtocol,
    VarlinkTransport,
)
from asyncvarlink.message import VarlinkMethodReply
from asyncvarlink.serviceinterface import VarlinkServiceInterface
from asyncvarlink.types import FileDescriptorArray, JSONObject

from vmessd import __version__, faults, refusals, safefile
from vmessd.errors import INTERFACE, Failed, Locked, VmessError, failing, printable, reason
from vmessd.fleet import Fleet
from vmessd.interface import Peer, VmessInterface
from vmessd.supervisor import Supervisor

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 64 * 1024
"""Bytes of one request; the longest real one holds a path."""
CLIENTS_MAX = 256
SOCKET_MODE = 0o660
"""The owner and the group, by which the administrator says who may use the daemon."""
IDLE_LIMIT = 60.0
"""Seconds a connection may be open with no call under way."""
REPLIES_MAX = 256
"""Replies a client may leave unread."""
ENDING_TIME = 0.5
"""Seconds in which calls may come to their end when the daemon does."""
ACCEPT_PAUSE = 1.0
"""Seconds to wait for descriptors where there are none."""


class Connection(VarlinkInterfaceServerProtocol):
    """One client."""

    def __init__(
        self,
        registry: VarlinkInterfaceRegistry,
        connected: socket.socket,
        uid: int,
        ended: Callable[["Connection"], None],
    ) -> None:
        super().__init__(registry)
        self.uid = uid
        self.since = asyncio.get_running_loop().time()
        """When it came, by the loop's clock."""
        self._socket = connected
        self._ended = ended
        self.under_way: set[asyncio.Future[None]] = set()
        """Calls that are not answered to the end yet."""
        self._unread = 0
        self._partial = 0
        self._link: VarlinkTransport | None = None
        self.idle_since: float | None = asyncio.get_running_loop().time()
        """When the last call ended, by the loop's clock; None while one is under way."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of the way back."""
        super().connection_made(transport)
        assert isinstance(transport, VarlinkTransport)  # noqa: S101 -- Control makes no other
        self._link = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up the place."""
        super().connection_lost(exc)
        self._ended(self)

    def left(self) -> bool:
        """Tell whether the peer is gone: while a call is under way nothing is read that would tell."""
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def abort(self) -> None:
        """Hang up now, whatever is still to be sent."""
        if self._link is not None:
            self._link.abort()

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:  # noqa: ARG002
        """Pass on what arrived, if it is within bounds."""
        end = data.rfind(b"\0")
        self._partial = len(data) - end - 1 if end >= 0 else self._partial + len(data)
        if self._partial > MESSAGE_LIMIT or self._link is None or self._link.is_closing():
            self.abort()
            return
        try:
            # No method takes a descriptor; without a holder they are closed when this returns.
            super().message_received(data, None)
        except (ValueError, RecursionError):
            # Bad UTF-8, numbers or nesting beyond what the JSON decoder takes.
            self.abort()
            return
        if end >= 0:
            # Read on when all that came is answered; the library takes up reading again by itself.
            self._link.pause_reading()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:  # noqa: ARG002
        """Hang up on what is not a JSON object."""
        self.abort()

    def request_received(self, obj: JSONObject, fds: FileDescriptorArray | None) -> asyncio.Future[None] | None:
        """Serve a call, and count it as under way."""
        future: asyncio.Future[None] | None = super().request_received(obj, fds)
        if future is not None:
            self.idle_since = None
            self.under_way.add(future)
            future.add_done_callback(self._call_ended)
        elif self.idle_since is not None:
            self.idle_since = asyncio.get_running_loop().time()
        return future

    def _call_ended(self, future: asyncio.Future[None]) -> None:
        self.under_way.discard(future)
        if not self.under_way:
            self.idle_since = asyncio.get_running_loop().time()

    def send_reply(
        self, reply: VarlinkMethodReply, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        """Send a reply, unless too many are waiting to be read: then hang up."""
        if self._unread >= REPLIES_MAX:
            self.abort()
        self._unread += 1
        future: asyncio.Future[None] = super().send_reply(reply, fds, autoclose)
        future.add_done_callback(self._reply_sent)
        return future

    def _reply_sent(self, _future: asyncio.Future[None]) -> None:
        self._unread -= 1

    def handle_call_exception(self, exc: BaseException, oneway: bool) -> None:  # noqa: ARG002
        """Make a reply of what a method raised; what was not foreseen goes to the log only."""
        if isinstance(exc, VmessError):
            raise faults.reply(exc)
        log.error("a call failed unexpectedly", exc_info=exc)
        raise GenericVarlinkErrorReply(
            Failed.wire_name(),
            {"message": "unexpected failure; vmessd's log has the details", "hint": refusals.LOG},
        )


def _peer(connected: socket.socket) -> Peer:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", credentials))


class Control:
    """The listening socket and its clients. Use as an async context manager."""

    def __init__(self, path: Path, supervisor: Supervisor, fleet: Fleet) -> None:
        self.path = path
        self._supervisor = supervisor
        self._fleet = fleet
        self._clients: set[Connection] = set()
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._chores: dict[str, asyncio.TimerHandle] = {}
        self._complained = -60.0

    async def __aenter__(self) -> Self:
        """Bind the socket, mode 0660 from its first moment, and serve.

        Raises:
            Locked: another daemon answers there.
            BadFile, Failed: the path is taken by something else, or cannot be bound.
        """
        with failing(f"control socket {printable(str(self.path))} cannot be made"):
            for place in reversed(self.path.parents):
                if not place.exists():
                    place.mkdir(mode=0o755)  # with parents=True the others would follow the umask alone
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._refuse_second(directory)
            self._listener = safefile.listener(directory, self.path.name, SOCKET_MODE, backlog=1024)
            self._identity = self._widen(directory)
        finally:
            os.close(directory)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        self._later(IDLE_LIMIT / 4, self._hang_up_idle)
        return self

    async def __aexit__(self, *_: object) -> None:
        for chore in self._chores.values():
            chore.cancel()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._unlink()
        clients = list(self._clients)
        for client in clients:
            client.abort()
        await asyncio.sleep(0)  # what was read already may become a call yet
        calls = [call for client in clients for call in client.under_way]
        if calls:  # nobody hears their end, but half of one would be complained about
            await asyncio.wait(calls, timeout=ENDING_TIME)

    def _refuse_second(self, directory: int) -> None:
        """Raise Locked where somebody answers at the path; what nobody answers at is stale."""
        found = safefile.status(directory, self.path.name)
        if found is None or not stat.S_ISSOCK(found.st_mode):
            return
        with failing("no socket"):
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with probe:
            probe.setblocking(False)
            try:
                probe.connect(f"/proc/self/fd/{directory}/{self.path.name}")
            except ConnectionRefusedError:
                return  # nobody listens: stale
            except OSError:
                pass  # its queue is full, or it is somebody else's
        raise Locked(
            f"another vmessd serves the control socket {printable(str(self.path))}",
            hint="name another socket with --socket",
        )

    def _widen(self, directory: int) -> tuple[int, int]:
        """Give the socket the mode the umask may have narrowed; return which file it is."""
        with failing(f"control socket {printable(str(self.path))} cannot be made"):
            socket_file = os.open(self.path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.chmod(f"/proc/self/fd/{socket_file}", SOCKET_MODE)
                found = os.fstat(socket_file)
            finally:
                os.close(socket_file)
        return found.st_dev, found.st_ino

    def _unlink(self) -> None:
        """Remove the socket unless somebody has put another in its place."""
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()

    # -- Clients --

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors: the kernel would report the same client over and over.
            self._complain(f"no client can be accepted: {reason(error)}")
            if error.errno in (errno.EMFILE, errno.ENFILE):
                self._make_room()
            asyncio.get_running_loop().remove_reader(self._listener)
            self._later(ACCEPT_PAUSE, self._accept_again)
            return
        if len(self._clients) >= CLIENTS_MAX and not (self._make_room() or self._share(_peer(connected).uid)):
            self._complain(f"a client is turned away: {CLIENTS_MAX} are busy")
            connected.close()
            return
        self._serve(connected)

    def _accept_again(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _serve(self, connected: socket.socket) -> None:
        peer = _peer(connected)
        registry = VarlinkInterfaceRegistry()
        interface = VmessInterface(self._supervisor, self._fleet, peer)
        registry.register_interface(interface)
        registry.register_interface(
            VarlinkServiceInterface("emptystack", "vmessd", __version__, f"interface:{INTERFACE}", registry)
        )
        connected.setblocking(False)

        def ended(connection: Connection) -> None:
            self._clients.discard(connection)
            interface.ended()

        client = Connection(registry, connected, peer.uid, ended)
        interface.hang_up = client.abort
        self._clients.add(client)
        VarlinkTransport(asyncio.get_running_loop(), connected, connected, client, boundary_predictor=None)

    def _make_room(self) -> bool:
        """Hang up on a client that has left, or has been idle longest; tell whether there was one."""
        idle = [client for client in self._clients if client.idle_since is not None or client.left()]
        if not idle:
            return False
        longest = min(idle, key=lambda client: client.idle_since or 0.0)
        self._clients.discard(longest)
        longest.abort()
        return True

    def _share(self, uid: int) -> bool:
        """Hang up on the oldest client of whoever has most, if a user has fewer; tell whether it was done."""
        held = collections.Counter(client.uid for client in self._clients)
        greedy, most = held.most_common(1)[0]
        if most <= held[uid] + 1:
            return False
        theirs = [client for client in self._clients if client.uid == greedy]
        oldest = min(theirs, key=lambda client: client.since)
        self._complain(f"uid {greedy} has {most} of {CLIENTS_MAX} clients; one makes room for uid {uid}")
        self._clients.discard(oldest)
        oldest.abort()
        return True

    def _hang_up_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        for client in list(self._clients):
            if client.left() or (client.idle_since is not None and now - client.idle_since > IDLE_LIMIT):
                client.abort()
        self._later(IDLE_LIMIT / 4, self._hang_up_idle)

    def _later(self, seconds: float, chore: Callable[[], None]) -> None:
        self._chores[chore.__name__] = asyncio.get_running_loop().call_later(seconds, chore)

    def _complain(self, text: str) -> None:
        """Log what may recur thousands of times, once in ten seconds."""
        if time.monotonic() - self._complained > 10:
            self._complained = time.monotonic()
            log.warning("%s", text)
