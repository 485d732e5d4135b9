"""The serial console of a VM. It has one user at a time, because the chardev of QEMU serves one client.

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

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, Locked, NoSuchVM, TimedOut, VmessError
from vmessd.core.lifecycle import State
from vmessd.core.models.consoles import Ending
from vmessd.core.models.events import Kind
from vmessd.core.refusals import silent
from vmessd.qemu.monitor import CommandRefused, is_connected
from vmessd.storage import logs
from vmessd.storage.logs import LogName
from vmessd.storage.vmdir import SERIAL_LOG, SERIAL_SOCKET, VMDirectory
from vmessd.vm.events import Events
from vmessd.vm.journal import tell
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

CHARDEV = "serial0"
FDNAME = "vmess-console"
HISTORY = 8 * 1024
"""Bytes of earlier output that a new client receives."""
LOOK = 1.0
"""Seconds between checks whether a client reads."""
PATIENCE = 3
"""A client is disconnected after this many checks in a row that found the same unread bytes."""
SETTLE = (0.0, 0.02, 0.1, 0.3)
"""Pauses before queries, in seconds, while QEMU is about to notice a change."""


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
        self._clients: dict[str, _Client] = {}
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def attach(self, machine: Machine, who: str, *, steal: bool) -> Attached:
        """Attach a client to a VM's console; `who` names it in messages to others.

        Raises:
            NotRunning: the VM is off.
            Locked: another client has the console, and `steal` is false.
            TimedOut: its QEMU does not answer.
            Failed: it has no console, or QEMU refuses.
        """
        lock = self._locks.setdefault(machine.vm, asyncio.Lock())
        async with lock:
            run = machine.live()
            if machine.state is State.unresponsive:
                raise silent(machine.vm, run.pid)
            taken = await self._is_taken(machine.vm, run)
            if taken and not steal:
                raise self._in_use(machine.vm)
            connected = await _replace(machine, run) if taken else await _connect(machine, run)
            try:
                return await self._admit(machine, run, connected, who)
            except BaseException:
                connected.close()
                raise

    def close(self) -> None:
        """Release all consoles; clients stay attached."""
        for vm in list(self._clients):
            self._release(vm)

    async def _is_taken(self, vm: str, run: QemuRun) -> bool:
        """Tell whether the console is in use; a client that has just left does not count."""
        for pause in SETTLE:
            await asyncio.sleep(pause)
            if not await _is_connected(vm, run):
                return False
            if vm in self._clients:
                return True
        return True

    def _in_use(self, vm: str) -> Locked:
        client = self._clients.get(vm)
        who = client.who if client else "a client that this vmessd did not attach"
        return Locked(
            f"the console of {vm} is in use by {who}", hint=f"to take it over: vmess {vm} console --steal"
        )

    async def _admit(self, machine: Machine, run: QemuRun, connected: socket.socket, who: str) -> Attached:
        """Record a client, and return what it receives."""
        history, printed = await machine.change(functools.partial(_history, machine))
        with contextlib.ExitStack() as undo:
            copy = undo.enter_context(connected.dup())
            ours, theirs = map(undo.enter_context, socket.socketpair(type=socket.SOCK_SEQPACKET))
            undo.pop_all()
        self._release(machine.vm, Ending.taken_over, f"it was taken over by {who}")
        ours.setblocking(False)
        client = _Client(who, run, copy, ours)
        self._clients[machine.vm] = client
        asyncio.get_running_loop().add_reader(ours, self._on_leash, machine.vm, client)
        client.watching = asyncio.create_task(self._watch(machine, client))
        return Attached(connected, theirs, history, printed)

    def _on_leash(self, vm: str, client: _Client) -> None:
        try:
            if client.leash.recv(4096):
                return  # discard: a client has nothing to say
        except BlockingIOError:
            return
        except OSError:
            pass
        with contextlib.suppress(OSError):  # without its leash, a client could block the port unnoticed
            client.console.shutdown(socket.SHUT_RDWR)
        self._leave(vm, client)

    def _leave(self, vm: str, client: _Client, ending: Ending | None = None, why: str = "") -> None:
        if self._clients.get(vm) is client:
            self._release(vm, ending, why)
            tell(self._events, Kind.console, vm, f"left by {client.who}{f': {why}' if why else ''}")

    def _release(self, vm: str, ending: Ending | None = None, why: str = "") -> None:
        client = self._clients.pop(vm, None)
        if client is not None:
            client.release(ending, why)

    async def _watch(self, machine: Machine, client: _Client) -> None:
        """Disconnect a client that does not read, until it leaves or the run is over."""
        before, strikes = (0, 0), 0
        while not client.run.over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.run.over.wait(), LOOK)
            # A larger log with as many unread bytes means that the client has read.
            try:
                size = await machine.files.aside(functools.partial(_log_size, machine.home))
            except VmessError:  # unreadable files are no reason to disconnect a client
                continue
            now = (client.unread(), size)
            strikes = strikes + 1 if now == before and now[0] else 0
            before = now
            if strikes >= PATIENCE:
                with contextlib.suppress(OSError):
                    client.console.shutdown(socket.SHUT_RDWR)
                why = "it was not read, so the serial port of the guest was blocked"
                self._leave(machine.vm, client, Ending.unread, why)
                return
        self._leave(machine.vm, client)


def _log_size(directory: VMDirectory) -> int:
    try:
        return os.lstat(directory.path / SERIAL_LOG).st_size
    except OSError:
        return 0


def _history(machine: Machine) -> tuple[bytes, int]:
    """Return the end of the output of this run, and the size of its output in bytes."""
    try:
        with logs.open_log(machine.find_home(), LogName.serial, machine.record()) as found:
            return found.tail(HISTORY), found.size - found.begin
    except VmessError:  # a console without history is better than none
        return b"", 0


async def _is_connected(vm: str, run: QemuRun) -> bool:
    """Tell whether QEMU has a client on the console; raises Failed if the VM has no console."""
    try:
        found = await run.execute("query-chardev", {})
    except CommandRefused as refusal:
        raise Failed(f"QEMU of {vm} does not describe its serial port: {refusal}") from None
    for chardev in found if isinstance(found, list) else []:
        if isinstance(chardev, Mapping) and chardev.get("label") == CHARDEV:
            return is_connected(chardev)
    raise Failed(f"VM {vm} has no serial console", hint="VMs that vmessd starts have one")


async def _connect(machine: Machine, run: QemuRun) -> socket.socket:
    """Return a socket that QEMU has accepted, for a console that is not in use."""
    try:
        connected = await machine.files.aside(lambda: machine.find_home().connect(SERIAL_SOCKET))
    except (NoSuchVM, TimedOut):
        raise
    except VmessError:  # the socket was removed
        return await _replace(machine, run)
    try:
        for pause in (*SETTLE, 1.0):
            await asyncio.sleep(pause)
            if await _is_connected(machine.vm, run):
                return connected
    except BaseException:
        connected.close()
        raise
    connected.close()  # another process listens there
    return await _replace(machine, run)


async def _replace(machine: Machine, run: QemuRun) -> socket.socket:
    """Give the serial port another listening socket with our connection, and return our end."""
    home = await machine.files.aside(machine.find_home)
    replacing = home.succeeding(SERIAL_SOCKET)
    async with machine.files.within(replacing) as (listener, connected):
        address = {"type": "fd", "data": {"str": FDNAME}}
        options = {"server": True, "wait": True, "logfile": "/dev/fdset/1", "logappend": True}
        backend = {"type": "socket", "data": {"addr": address, **options}}
        try:
            await run.execute("getfd", {"fdname": FDNAME}, descriptor=listener.fileno())
            await run.execute("chardev-change", {"id": CHARDEV, "backend": backend})
        except CommandRefused as refusal:
            with contextlib.suppress(CommandRefused, VmessError):
                await run.execute("closefd", {"fdname": FDNAME})
            raise Failed(f"QEMU of {machine.vm} does not release its console: {refusal}") from None
    return connected
