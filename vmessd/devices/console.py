"""The serial consoles of a VM, one for each serial port.

A console has one user at a time, because the chardev of QEMU serves one client.

The client receives the connected socket itself: the daemon is not in the data path, and a console outlives it.
QEMU knows whether the console is in use (`query-chardev`), even by a client of an earlier daemon. The client
also receives a *leash*, a second socket. When the console is taken away, the daemon sends the reason over it in
two packets: a sentence for a person, and a word for a program. When the client closes it, the daemon knows that
the client has left.

A takeover gives the serial port another, already connected socket (`chardev-change`, qapi/char.json), and QEMU
closes the old one. Without a connection, a port that waits for the old socket to become writable would wait
forever (measured, QEMU 7.2; hw/char/serial.c, serial_be_change).

If a client does not read, the serial port blocks after 280 bytes, because QEMU sends each byte separately.
Linux then waits 10 ms for each byte that it prints. A client that does not read is therefore disconnected. QEMU
retries a blocked byte, and logs it twice (QEMU 7.2; chardev/char.c, qemu_chr_write_buffer); the client receives
it once.
"""

import array
import asyncio
import contextlib
import fcntl
import functools
import os
import socket
import termios
import weakref
from collections.abc import Mapping
from typing import NamedTuple

from vmessd.core import serial_ports
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, Locked, NoSuchVM, TimedOut, VmessError
from vmessd.core.lifecycle import State
from vmessd.core.models.consoles import Ending
from vmessd.core.models.events import Kind
from vmessd.core.refusals import silent
from vmessd.qemu.monitor import CommandRefused, is_connected
from vmessd.storage import logs
from vmessd.storage.logs import LogName
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.events import Events
from vmessd.vm.journal import tell
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

FDNAME = "vmess-console"
HISTORY = 8 * 1024
"""Bytes of earlier output that a new client receives."""
LOOK = 1.0
"""Seconds between checks whether a client reads."""
PATIENCE = 3
"""A client is disconnected after this many checks in a row that found the same unread bytes."""
SETTLE = (0.0, 0.02, 0.1, 0.3)
"""Pauses before queries, in seconds, while QEMU is about to notice a change."""


class _Place(NamedTuple):
    """The console of a serial port."""

    vm: str
    port: int

    @property
    def named(self) -> str:
        """What it is called in messages."""
        which = "" if self.port == serial_ports.FIRST else f" {self.port}"
        return f"console{which} of {self.vm}"

    @property
    def command(self) -> str:
        """The command that attaches to it."""
        return f"{self.vm} console{'' if self.port == serial_ports.FIRST else f' {self.port}'}"


@dataclass
class Attached:
    """A console to hand over. The receiver must close the sockets."""

    console: socket.socket
    leash: socket.socket
    history: bytes
    """The end of the output of this run, in whole lines."""
    printed: int
    """Bytes that this run has printed."""


@dataclass
class _Client:
    """A client that is attached to a console."""

    who: str
    run: QemuRun
    console: socket.socket
    """A duplicate, to check whether the client reads and to disconnect it."""
    leash: socket.socket
    watching: asyncio.Task[None] | None = None

    def unread(self) -> int:
        """Return the number of bytes that the client has not read."""
        count = array.array("i", [0])
        fcntl.ioctl(self.console, termios.FIONREAD, count)
        return count[0]

    def release(self, ending: Ending | None = None, why: str = "") -> None:
        """Close our ends; tell the client why, unless it left by itself."""
        if self.leash.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self.leash)
        if ending is not None:
            with contextlib.suppress(OSError):
                self.leash.send(why.encode())
                self.leash.send(ending.encode())
        self.leash.close()
        self.console.close()
        if self.watching is not None:
            self.watching.cancel()


class Consoles:
    """The consoles of a daemon's VMs, and their clients."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._clients: dict[_Place, _Client] = {}
        self._locks: weakref.WeakValueDictionary[_Place, asyncio.Lock] = weakref.WeakValueDictionary()

    async def attach(self, machine: Machine, port: int, who: str, *, steal: bool) -> Attached:
        """Attach a client to the console of a serial port; `who` names it in messages to others.

        Raises:
            NotRunning: the VM is off.
            Locked: another client has the console, and `steal` is false.
            TimedOut: its QEMU does not answer.
            Failed: it has no console, or QEMU refuses.
        """
        place = _Place(machine.vm, port)
        lock = self._locks.setdefault(place, asyncio.Lock())
        async with lock:
            run = machine.live()
            if machine.state is State.unresponsive:
                raise silent(machine.vm, run.pid)
            taken = await self._is_taken(place, run)
            if taken and not steal:
                raise self._in_use(place)
            connected = await (_replace if taken else _connect)(machine, run, place)
            try:
                return await self._admit(machine, run, place, connected, who)
            except BaseException:
                connected.close()
                raise

    def close(self) -> None:
        """Release all consoles; clients stay attached."""
        for place in list(self._clients):
            self._release(place)

    async def _is_taken(self, place: _Place, run: QemuRun) -> bool:
        """Tell whether the console is in use; a client that has just left does not count."""
        for pause in SETTLE:
            await asyncio.sleep(pause)
            if not await _is_connected(place, run):
                return False
            if place in self._clients:
                return True
        return True

    def _in_use(self, place: _Place) -> Locked:
        client = self._clients.get(place)
        who = client.who if client else "a client that this vmessd did not attach"
        return Locked(
            f"the {place.named} is in use by {who}", hint=f"to take it over: vmess {place.command} --steal"
        )

    async def _admit(
        self, machine: Machine, run: QemuRun, place: _Place, connected: socket.socket, who: str
    ) -> Attached:
        """Record a client, and return what it receives."""
        history, printed = await machine.change(functools.partial(_history, machine, place.port))
        with contextlib.ExitStack() as undo:
            copy = undo.enter_context(connected.dup())
            ours, theirs = map(undo.enter_context, socket.socketpair(type=socket.SOCK_SEQPACKET))
            undo.pop_all()
        self._release(place, Ending.taken_over, f"it was taken over by {who}")
        ours.setblocking(False)
        client = _Client(who, run, copy, ours)
        self._clients[place] = client
        asyncio.get_running_loop().add_reader(ours, self._on_leash, place, client)
        client.watching = asyncio.create_task(self._watch(machine, place, client))
        return Attached(connected, theirs, history, printed)

    def _on_leash(self, place: _Place, client: _Client) -> None:
        try:
            if client.leash.recv(4096):
                return  # discard: a client has nothing to say
        except BlockingIOError:
            return
        except OSError:
            pass
        with contextlib.suppress(OSError):  # without its leash, a client could block the port unnoticed
            client.console.shutdown(socket.SHUT_RDWR)
        self._leave(place, client)

    def _leave(self, place: _Place, client: _Client, ending: Ending | None = None, why: str = "") -> None:
        if self._clients.get(place) is client:
            self._release(place, ending, why)
            tell(self._events, Kind.console, place.vm, f"left by {client.who}{f': {why}' if why else ''}")

    def _release(self, place: _Place, ending: Ending | None = None, why: str = "") -> None:
        client = self._clients.pop(place, None)
        if client is not None:
            client.release(ending, why)

    async def _watch(self, machine: Machine, place: _Place, client: _Client) -> None:
        """Disconnect a client that does not read, until it leaves or the run is over."""
        before, strikes = (0, 0), 0
        while not client.run.over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.run.over.wait(), LOOK)
            # A larger log with as many unread bytes means that the client has read.
            try:
                size = await machine.files.aside(functools.partial(_log_size, machine.home, place.port))
            except VmessError:  # unreadable files are not a reason to disconnect a client
                continue
            now = (client.unread(), size)
            strikes = strikes + 1 if now == before and now[0] else 0
            before = now
            if strikes >= PATIENCE:
                with contextlib.suppress(OSError):
                    client.console.shutdown(socket.SHUT_RDWR)
                why = "it was not read, so the serial port of the guest was blocked"
                self._leave(place, client, Ending.unread, why)
                return
        self._leave(place, client)


def _log_size(directory: VMDirectory, port: int) -> int:
    try:
        return os.lstat(directory.path / serial_ports.log(port)).st_size
    except OSError:
        return 0


def _history(machine: Machine, port: int) -> tuple[bytes, int]:
    """Return the end of the output of this run, and the size of its output in bytes."""
    try:
        with logs.open_log(machine.find_home(), LogName(serial_ports.log(port)), machine.record()) as found:
            return found.tail(HISTORY), found.size - found.begin
    except VmessError:  # a console without history is better than none
        return b"", 0


async def _is_connected(place: _Place, run: QemuRun) -> bool:
    """Tell whether QEMU has a client on the console; raises Failed if the VM has no such console."""
    try:
        found = await run.execute("query-chardev", {})
    except CommandRefused as refusal:
        raise Failed(f"QEMU of {place.vm} does not describe its serial port: {refusal}") from None
    for chardev in found if isinstance(found, list) else []:
        if isinstance(chardev, Mapping) and chardev.get("label") == serial_ports.chardev(place.port):
            return is_connected(chardev)
    if place.port == serial_ports.FIRST:
        raise Failed(f"VM {place.vm} has no serial console", hint="VMs that vmessd starts have one")
    raise Failed(
        f"VM {place.vm} has no serial port {place.port}",
        hint=f"vmess {place.vm} serial {place.port}; a VM that runs has it after its next start",
    )


async def _connect(machine: Machine, run: QemuRun, place: _Place) -> socket.socket:
    """Return a socket that QEMU has accepted, for a console that is not in use."""
    name = serial_ports.socket(place.port)
    try:
        connected = await machine.files.aside(lambda: machine.find_home().connect(name))
    except (NoSuchVM, TimedOut):
        raise
    except VmessError:  # the socket was removed
        return await _replace(machine, run, place)
    try:
        for pause in (*SETTLE, 1.0):
            await asyncio.sleep(pause)
            if await _is_connected(place, run):
                return connected
    except BaseException:
        connected.close()
        raise
    connected.close()  # another process listens there
    return await _replace(machine, run, place)


async def _replace(machine: Machine, run: QemuRun, place: _Place) -> socket.socket:
    """Give the serial port another listening socket with our connection, and return our end."""
    home = await machine.files.aside(machine.find_home)
    fdname = f"{FDNAME}-{place.port}"
    replacing = home.succeeding(serial_ports.socket(place.port))
    async with machine.files.within(replacing) as (listener, connected):
        address = {"type": "fd", "data": {"str": fdname}}
        options = {"server": True, "wait": True, "logfile": f"/dev/fdset/{place.port}", "logappend": True}
        backend = {"type": "socket", "data": {"addr": address, **options}}
        try:
            await run.execute("getfd", {"fdname": fdname}, descriptor=listener.fileno())
            await run.execute("chardev-change", {"id": serial_ports.chardev(place.port), "backend": backend})
        except CommandRefused as refusal:
            with contextlib.suppress(CommandRefused, VmessError):
                await run.execute("closefd", {"fdname": fdname})
            raise Failed(f"QEMU of {machine.vm} does not release its console: {refusal}") from None
    return connected
