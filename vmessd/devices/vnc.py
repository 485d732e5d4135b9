"""Relays to the VNC server of a VM, whose own port rejects every viewer.

A relay listens on a TCP port for one connection and passes the connected socket to QEMU: `getfd` with
SCM_RIGHTS (unix(7)), then `add_client` without authentication (qapi/misc.json). The daemon is not in the data
path, and the connection outlives it. An unused relay ends at its deadline or with its VM. A VM has at most one
relay: a second one replaces the first.
"""

import asyncio
import contextlib
import errno
import itertools
import socket
from collections.abc import Collection
from typing import Any

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import (
    Failed,
    InvalidValue,
    NotPermitted,
    TimedOut,
    VmessError,
    printable,
    quoted,
    reason,
)
from vmessd.core.lifecycle import State
from vmessd.core.models.consoles import VMRelay
from vmessd.core.models.events import Kind
from vmessd.core.names import VNC_PORT
from vmessd.core.refusals import silent
from vmessd.qemu.monitor import CommandRefused
from vmessd.vm.events import Events
from vmessd.vm.journal import tell
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

ADDRESS = "127.0.0.1"
TIMEOUT = 60.0
"""Seconds that a relay waits for its connection by default."""
TIMEOUT_MAX = 24 * 3600.0
PORTS = range(VNC_PORT, VNC_PORT + 100)
"""Ports to choose from; VNC viewers call them displays 0 to 99."""
FDNAME = "vmess-vnc"
"""The name of a descriptor in QEMU, followed by a number, because two viewers may be handed over at once.

QEMU closes the previous descriptor of a name. Reusing few names therefore limits the descriptors that a QEMU
which does not answer keeps open.
"""

_names_in_use: set[str] = set()


@dataclass
class _Relay:
    listener: socket.socket
    task: asyncio.Task[None]

    def close(self) -> None:
        self.task.cancel()
        _shut(self.listener)


def _shut(listener: socket.socket) -> None:
    """Close a listener and remove its reader: asyncio must not confuse it with the next user of its number."""
    if listener.fileno() >= 0:
        asyncio.get_running_loop().remove_reader(listener)
        listener.close()


class Relays:
    """The relays of a daemon, by VM."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._open: dict[str, _Relay] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(
        self, machine: Machine, uid: int, port: int | None, address: str | None, patience: float | None
    ) -> VMRelay:
        """Open a relay to a VM; it replaces an existing one.

        Args:
            machine: the VM.
            uid: the user who asks for it.
            port: None for the first free one of PORTS.
            address: None for ADDRESS.
            patience: seconds to wait for the connection; None for TIMEOUT.

        Raises:
            InvalidValue: port, address or patience is invalid.
            NotRunning: the VM is off.
            TimedOut: its QEMU does not answer.
            Failed: the port is taken, or there is no VNC server.
            NotPermitted: the port is privileged and the daemon is not.
        """
        where = _Endpoint.parse(ADDRESS if address is None else address, port)
        patience = TIMEOUT if patience is None else patience
        if not 0 < patience <= TIMEOUT_MAX:
            raise InvalidValue(
                f"timeout {quoted(patience)} must be above 0 and at most {TIMEOUT_MAX:g} seconds"
            )
        run = machine.live()
        await _check_server(machine, run)
        listener = self._listen(machine.vm, where)
        found = int(listener.getsockname()[1])
        text = f"waiting for a VNC viewer on {where.address}, port {found}, for {patience:g} s"
        tell(self._events, Kind.vnc, machine.vm, text, uid=uid)
        task = asyncio.create_task(self._serve(machine.vm, run, listener, patience))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._open[machine.vm] = _Relay(listener, task)
        return VMRelay(where.address, found, patience)

    def _listen(self, vm: str, where: "_Endpoint") -> socket.socket:
        """Return the socket of a new relay and end the old one, which may use the same port."""
        if self._has(vm, PORTS if where.port is None else (where.port,)):
            where.try_address()
            self._drop(vm)
            return where.listen()
        listener = where.listen()
        self._drop(vm)
        return listener

    def _has(self, vm: str, ports: Collection[int]) -> bool:
        relay = self._open.get(vm)
        return relay is not None and relay.listener.getsockname()[1] in ports

    def close(self) -> None:
        """End all relays; existing connections remain."""
        for vm in list(self._open):
            self._drop(vm)

    def _drop(self, vm: str) -> None:
        relay = self._open.pop(vm, None)
        if relay is not None:
            relay.close()
            tell(self._events, Kind.vnc, vm, "the VNC relay is closed")

    async def _serve(self, vm: str, run: QemuRun, listener: socket.socket, patience: float) -> None:
        """Wait for one connection and hand it over."""
        connected, text = None, "the VNC relay ends unused"
        try:
            connected = await _accepted(listener, run, patience)
        except OSError as error:
            text = f"the VNC relay ends: {reason(error)}"
        _shut(listener)  # refuse further connections at once
        self._open.pop(vm, None)
        if connected is not None:
            with connected:
                text = await _hand_over(run, connected)
        tell(self._events, Kind.vnc, vm, text)


async def _check_server(machine: Machine, run: QemuRun) -> None:
    """Raise TimedOut if QEMU does not answer, Failed if it has no VNC server."""
    if machine.state is State.unresponsive:
        raise silent(machine.vm, run.pid)
    try:
        found = await run.execute("query-vnc-servers", {})  # includes one that listens on no port
    except CommandRefused as refusal:
        raise Failed(f"VM {machine.vm} has no VNC server: {refusal}") from None
    if not found:
        raise Failed(
            f"VM {machine.vm} has no VNC server",
            hint=f"its EXARGS file may disable it: vmess {machine.vm} info",
        )


async def _accepted(listener: socket.socket, run: QemuRun, patience: float) -> socket.socket | None:
    """Return the first connection; None if none comes in time or while the VM runs."""
    loop = asyncio.get_running_loop()
    accept = loop.create_task(loop.sock_accept(listener))
    over = loop.create_task(run.over.wait())
    connected = None
    try:
        await asyncio.wait({accept, over}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        if accept.done() and not accept.cancelled() and accept.exception() is None:
            accept.result()[0].close()
        raise
    else:
        connected = accept.result()[0] if accept.done() else None
    finally:
        over.cancel()
        accept.cancel()
    return connected


async def _hand_over(run: QemuRun, connected: socket.socket) -> str:
    """Pass a connection to QEMU, or shut it down if that fails; return the outcome as a text."""
    with contextlib.suppress(OSError):  # so that a vanished viewer is noticed eventually
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    name = next(name for number in itertools.count() if (name := f"{FDNAME}-{number}") not in _names_in_use)
    _names_in_use.add(name)
    try:
        peer = printable(str(connected.getpeername()[0]))
        await run.execute("getfd", {"fdname": name}, descriptor=connected.fileno())
        try:
            await run.execute("add_client", {"protocol": "vnc", "fdname": name, "skipauth": True})
        except CommandRefused:
            with contextlib.suppress(CommandRefused, VmessError):
                await run.execute("closefd", {"fdname": name})
            raise
    except (CommandRefused, TimedOut, OSError) as failure:
        if isinstance(failure, OSError) and failure.errno == errno.ENOTCONN:  # of getpeername(2)
            return "a VNC viewer left before it was handed to QEMU"
        with contextlib.suppress(OSError):  # a hanging QEMU may receive it later and keep it
            connected.shutdown(socket.SHUT_RDWR)
        why = reason(failure) if isinstance(failure, OSError) else str(failure)
        return f"a VNC viewer could not be handed to QEMU: {printable(why)}"
    finally:
        _names_in_use.discard(name)
    return f"a VNC viewer from {peer} was handed to QEMU"


@dataclass(frozen=True)
class _Endpoint:
    """The address and port that a relay listens on."""

    address: str
    port: int | None
    family: int
    place: tuple[Any, ...]
    """The socket address in the form of its family, with port 0."""

    @classmethod
    def parse(cls, address: str, port: int | None) -> "_Endpoint":
        """Parse address and port; raises InvalidValue."""
        if port is not None and not 1 <= port <= 65535:
            raise InvalidValue(f"port {quoted(port)} is not a number from 1 to 65535")
        flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
        try:
            if not address or "\0" in address:
                raise ValueError
            family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM, flags=flags)[0]
        except (OSError, ValueError):  # UnicodeError is a ValueError
            raise InvalidValue(
                f"address {quoted(address)} is not an IP address",
                hint="for example 127.0.0.1 (this host only), an address of this host, 0.0.0.0 or :: (all)",
            ) from None
        if family == socket.AF_INET:
            address = str(place[0])  # show `0` as 0.0.0.0, which it means
        return cls(address, port, family, place)

    def try_address(self) -> None:
        """Raise Failed if it is impossible to listen on the address at any port."""
        try:
            self._listener(0).close()
        except OSError as error:
            raise self._refusal(0, error) from None

    def listen(self) -> socket.socket:
        """Return a listening socket; raises Failed, NotPermitted."""
        for port in PORTS if self.port is None else (self.port,):
            try:
                return self._listener(port)
            except OSError as error:
                if self.port is None and error.errno == errno.EADDRINUSE:
                    continue
                raise self._refusal(port, error) from None
        raise Failed(
            f"no port of {PORTS[0]} to {PORTS[-1]} is free on {self.address}",
            hint="name one: vmess VM vnc PORT",
        )

    def _listener(self, port: int) -> socket.socket:
        listener = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.place[0], port, *self.place[2:]))
            listener.listen(1)
        except BaseException:
            listener.close()
            raise
        return listener

    def _refusal(self, port: int, error: OSError) -> VmessError:
        if error.errno == errno.EADDRINUSE:
            return Failed(
                f"port {port} on {self.address} is taken", hint="without a port, vmessd chooses a free one"
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return NotPermitted(
                f"port {port} is privileged, and vmessd is not", hint="name one above 1023, or none"
            )
        if error.errno == errno.EADDRNOTAVAIL:
            return Failed(f"{self.address} is not an address of this host", hint="to see them: ip address")
        return Failed(f"cannot listen on {self.address}, port {port}: {reason(error)}")
