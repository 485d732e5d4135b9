"""The control socket: it accepts clients, and limits their number and idle time."""

import asyncio
import collections
import contextlib
import errno
import functools
import logging
import os
import resource
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from vmessd import __version__
from vmessd.api.audit import Audit, Peer
from vmessd.api.budgets import OWN, Account, Budget, beside
from vmessd.api.caller import Line
from vmessd.api.connection import Connection, Gate, Hangups
from vmessd.api.interface import VmessInterface
from vmessd.core import places
from vmessd.core.errors import INTERFACE, Locked, VmessError, failing, printable, reason
from vmessd.storage import safefile
from vmessd.supervisor.fleet import Fleet
from vmessd.supervisor.host_links import HostLinks
from vmessd.supervisor.registry import Supervisor

log = logging.getLogger(__name__)

CLIENTS_MAX = 512
SOCKET_MODE = 0o660
"""For the owner and the group: the administrator decides who is in the group."""
IDLE_LIMIT = 60.0
"""Seconds that a connection may be open without a call in progress."""
ENDING_TIME = 0.5
"""Seconds that calls have to finish when the daemon ends."""
ACCEPT_PAUSE = 1.0
"""Seconds to wait after running out of descriptors."""
SPARE_DESCRIPTORS = 64
"""Descriptors reserved for VMs; at most a quarter of all."""
ACCEPTED_AT_ONCE = 64
"""Maximum number of clients accepted in one iteration of the event loop."""
CONNECTION_TIME = 0.0002
"""Loop time that a connection costs without its calls, in seconds (measured)."""
TIDY_EVERY = 2.0
"""Seconds between cleanups of budgets."""
LOOK_EVERY = 2.0
"""Seconds between looks whether the socket of a private daemon is still there."""
BACKLOG = 1024


def _most_descriptors() -> int:
    """Return the lowest descriptor that is reserved for VMs, which need some even to end."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    return soft - min(SPARE_DESCRIPTORS, soft // 4)


def _has_left(connected: socket.socket) -> bool:
    """Tell whether a client has left without sending anything."""
    try:
        return not connected.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _peer(connected: socket.socket) -> Peer:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", credentials))


class Control:
    """The listening socket and its clients. Use as an async context manager."""

    def __init__(self, path: Path, supervisor: Supervisor, fleet: Fleet, *, own: bool = False) -> None:
        """Serve on a socket. `own`: its directory is this user's, and the end of a session may remove it."""
        self.path = path
        self._own = own
        self.left_at = 0.0
        """When the last client left, by the clock of the event loop."""
        self._supervisor = supervisor
        self._fleet = fleet
        self._clients: set[Connection] = set()
        self._budget = Budget(frozenset({0, os.geteuid()}))
        self._gate = Gate(
            supervisor.locks.check_allowed,
            HostLinks(supervisor).check_unlocked,
            supervisor.check_needs,
            Audit(),
        )
        self._hangups: Hangups | None = None
        self._arriving: dict[Account, collections.deque[tuple[socket.socket, Peer]]] = {}
        """Clients that wait for their user's turn, in order of arrival."""
        self._listener: socket.socket | None = None
        self._identity: tuple[int, int] | None = None
        self._chores: dict[str, asyncio.TimerHandle] = {}
        self._complained: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        """Bind the socket with mode 0660, and serve.

        Raises:
            Locked: another daemon answers there.
            BadFile, Failed: the path belongs to something else, or cannot be bound.
        """
        with failing(f"control socket {printable(str(self.path))} cannot be created"):
            for place in reversed(self.path.parents):
                if not place.exists():
                    place.mkdir(mode=0o755)  # parents=True would ignore the mode for parents
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._refuse_second(directory)
            self._listener = safefile.listener(directory, self.path.name, SOCKET_MODE, backlog=BACKLOG)
            self._identity = self._widen(directory)
        finally:
            os.close(directory)
        self._listener.setblocking(False)
        self._hangups = Hangups()
        asyncio.get_running_loop().add_reader(self._listener, self._accept)
        self.left_at = asyncio.get_running_loop().time()
        if self._own:
            self._later(LOOK_EVERY, self._renew)
        self._later(IDLE_LIMIT / 4, self._hang_up_idle)
        self._later(TIDY_EVERY, self._tidy)
        return self

    async def __aexit__(self, *_: object) -> None:
        for chore in self._chores.values():
            chore.cancel()
        self._close_door()
        for waiting in self._arriving.values():
            while waiting:
                waiting.popleft()[0].close()
        clients = list(self._clients)
        for client in clients:
            client.abort()
        await asyncio.sleep(0)  # data already read may become a call
        calls = [call for client in clients for call in client.under_way]
        if calls:  # let them finish, to avoid errors in the log
            await asyncio.wait(calls, timeout=ENDING_TIME)
        self._budget.close()
        if self._hangups is not None:
            self._hangups.close()

    def _refuse_second(self, directory: int) -> None:
        """Raise Locked if somebody listens on the socket; otherwise it is stale."""
        found = safefile.status(directory, self.path.name)
        if found is None or not stat.S_ISSOCK(found.st_mode):
            return
        with failing("no socket can be created"):
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with probe:
            probe.setblocking(False)
            try:
                probe.connect(f"/proc/self/fd/{directory}/{self.path.name}")
            except ConnectionRefusedError:
                return
            except OSError:
                pass  # its queue is full, or it belongs to another user
        raise Locked(
            f"another vmessd serves the control socket {printable(str(self.path))}",
            hint="choose another socket with --socket; or end your own: vmess daemon stop",
        )

    def _widen(self, directory: int) -> tuple[int, int]:
        """Set the mode of the socket in spite of the umask; return its device and inode."""
        with failing(f"control socket {printable(str(self.path))} cannot be created"):
            socket_file = os.open(self.path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.chmod(f"/proc/self/fd/{socket_file}", SOCKET_MODE)
                found = os.fstat(socket_file)
            finally:
                os.close(socket_file)
        return found.st_dev, found.st_ino

    def _unlink(self) -> None:
        """Remove the socket unless another one has replaced it."""
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()

    def _close_door(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self._unlink()

    def _renew(self) -> None:
        """Bind a new socket if the old one was removed, as systemd-logind does at the last logout."""
        self._later(LOOK_EVERY, self._renew)
        if self._listener is None or os.path.lexists(self.path):
            return
        with contextlib.suppress(VmessError, OSError):  # the next look may have more luck
            directory = places.opened(str(self.path.parent), create=True)
            try:
                fresh = safefile.listener(directory, self.path.name, SOCKET_MODE, backlog=BACKLOG)
                fresh.setblocking(False)
                self._identity = self._widen(directory)
            finally:
                os.close(directory)
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = fresh
            asyncio.get_running_loop().add_reader(fresh, self._accept)
            log.info("the control socket %s was removed; a new one is in its place", printable(str(self.path)))

    # -- Clients --

    @property
    def is_used(self) -> bool:
        """There are clients."""
        return bool(self._clients) or any(self._arriving.values())

    def retire(self) -> bool:
        """Stop listening if there is no client, also none in the queue; tell whether this was done."""
        self._accept()
        if self.is_used:
            return False
        self._close_door()
        return True

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if self._listener is None:
                return
            began = time.monotonic()
            try:
                connected, _ = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except BlockingIOError:
                return
            except OSError as error:
                self._cannot_accept(error)
                return
            if connected.fileno() >= _most_descriptors():
                connected.close()
                self._cannot_accept(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                return
            try:
                peer = _peer(connected)
            except OSError as error:
                self._cannot_serve(connected, error)
                continue
            account = self._budget.account(peer.uid)
            if account.share.is_due():
                self._let_in(connected, peer, account)
            else:
                self._have_wait(connected, peer, account)
            account.share.charge(time.monotonic() - began)

    def _cannot_serve(self, connected: socket.socket, error: OSError) -> None:
        """Close the connection to a client after an error of its socket."""
        connected.close()
        self._complain("socket", f"a client cannot be served: {reason(error)}")

    def _have_wait(self, connected: socket.socket, peer: Peer, account: Account) -> None:
        """Let a client wait for its user's turn; if too many wait, turn the first one away."""
        waiting = self._arriving.setdefault(account, collections.deque())
        waiting.append((connected, peer))
        if len(waiting) > account.limits.clients:
            self._complain("busy", f"a client of uid {account.uid} is turned away: they keep vmessd too busy")
            waiting.popleft()[0].close()  # the new client gets its turn
        else:
            account.share.turn().add_done_callback(functools.partial(self._arrive, account))

    def _arrive(self, account: Account, _turn: asyncio.Future[None]) -> None:
        if waiting := self._arriving.get(account):
            self._let_in(*waiting.popleft(), account)

    def _let_in(self, connected: socket.socket, peer: Peer, account: Account) -> None:
        try:
            connected.setblocking(False)
        except OSError as error:
            self._cannot_serve(connected, error)
            return
        if not _has_left(connected) and self._has_room_for(account):
            account.share.charge(CONNECTION_TIME)
            self._serve(connected, peer, account)
        else:
            connected.close()

    def _cannot_accept(self, error: OSError) -> None:
        """Pause, because without free descriptors the kernel would report the same client over and over."""
        self._complain("descriptors", f"no client can be accepted: {reason(error)}")
        if error.errno in (errno.EMFILE, errno.ENFILE):
            self._make_room(self._clients)
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
        self._later(ACCEPT_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _has_room_for(self, account: Account) -> bool:
        """Tell whether a user may have one more client; another one may have to leave for it."""
        if account.clients >= account.limits.clients:
            if self._make_room(client for client in self._clients if client.account is account):
                return True
            counts = f"all of its {account.clients} clients are busy"
            self._complain("clients", f"a client of uid {account.uid} is turned away: {counts}")
            return False
        if len(self._clients) < CLIENTS_MAX or self._make_room(self._clients) or self._share(account):
            return True
        self._complain("all clients", f"a client is turned away: {CLIENTS_MAX} clients are busy")
        return False

    def _serve(self, connected: socket.socket, peer: Peer, account: Account) -> None:
        client = Connection(connected, peer, account, gate=self._gate, ended=self._ended)
        client.interfaces = functools.partial(self._interfaces, client, peer)
        self._clients.add(client)
        account.clients += 1
        if self._hangups is not None:
            self._hangups.watch(connected.fileno(), client.left)
        try:
            VarlinkTransport(asyncio.get_running_loop(), connected, connected, client, boundary_predictor=None)
        except OSError as error:
            self._ended(client)
            self._cannot_serve(connected, error)

    def _interfaces(self, client: Connection, peer: Peer) -> VarlinkInterfaceRegistry:
        """Return the interfaces that a client may call."""
        registry = VarlinkInterfaceRegistry()
        begin = functools.partial(beside, client.account.share)
        line = Line(client.abort, client.act_for, client.actor, begin)
        registry.register_interface(VmessInterface(self._supervisor, self._fleet, peer, line))
        registry.register_interface(
            VarlinkServiceInterface("emptystack", "vmessd", __version__, f"interface:{INTERFACE}", registry)
        )
        return registry

    def _ended(self, client: Connection) -> None:
        """Note that a client has left; its socket is not closed yet."""
        if self._hangups is not None:
            self._hangups.forget(client.fileno())
        self._clients.discard(client)
        client.account.clients -= 1
        self.left_at = asyncio.get_running_loop().time()

    def _make_room(self, clients: Iterable[Connection]) -> bool:
        """Disconnect a client that has left or was idle for longest; tell whether there was one."""
        idle = [client for client in clients if client.idle_since is not None or client.gone]
        if not idle:
            return False
        self._turn_out(min(idle, key=lambda client: client.idle_since or 0.0))
        return True

    def _share(self, account: Account) -> bool:
        """Disconnect a client of the user with most clients, unless `account` has as many; tell whether it did.

        The oldest client goes. Root gets in even if all users have few: a user may have many uids, subuid(5).
        """
        greedy = max((client.account for client in self._clients), key=lambda theirs: theirs.clients)
        goes_first = account.limits is OWN and greedy.limits is not OWN
        if greedy.clients <= account.clients + 1 and not goes_first:
            return False
        theirs = [client for client in self._clients if client.account is greedy]
        counts = f"uid {greedy.uid} has {greedy.clients} of {CLIENTS_MAX} clients"
        self._complain("share", f"{counts}; one makes room for uid {account.uid}")
        self._turn_out(min(theirs, key=lambda client: client.since))
        return True

    def _turn_out(self, client: Connection) -> None:
        self._clients.discard(client)  # its place is needed at once
        client.abort()

    def _hang_up_idle(self) -> None:
        now = asyncio.get_running_loop().time()
        for client in list(self._clients):
            if client.idle_since is not None and now - client.idle_since > IDLE_LIMIT:
                client.abort()
        self._later(IDLE_LIMIT / 4, self._hang_up_idle)

    def _tidy(self) -> None:
        self._arriving = {account: waiting for account, waiting in self._arriving.items() if waiting}
        self._budget.tidy()
        self._later(TIDY_EVERY, self._tidy)

    def _later(self, seconds: float, chore: Callable[[], None]) -> None:
        self._chores[chore.__name__] = asyncio.get_running_loop().call_later(seconds, chore)

    def _complain(self, what: str, text: str) -> None:
        """Log a warning that may recur thousands of times, each kind at most once in ten seconds."""
        if time.monotonic() - self._complained.get(what, -10.0) > 10:
            self._complained[what] = time.monotonic()
            log.warning("%s", text)
