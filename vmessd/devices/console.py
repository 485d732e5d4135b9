"""Who has the serial console of a VM: one at a time, since QEMU's socket serves one.

Whoever attaches gets the connected socket itself, so that no byte passes through here and a console outlives
the daemon. Whether somebody has it is asked of QEMU (`query-chardev`), which knows of those before this
daemon, too. With the console comes a *leash*: a socket that says no word but why the console was taken
away, in a sentence for a person and then in a word for a program, each a packet of its own; and by whose end
the daemon learns that it was let go of.

A console is taken over by giving the serial port another socket that is connected already
(`chardev-change`, qapi/char.json): QEMU hangs up on the old one. It has to be connected: a port that waits
for room on the old one would wait for ever (measured, QEMU 7.2; hw/char/serial.c, serial_be_change).

As long as somebody attached does not read, the serial port stands still after some 280 bytes: QEMU sends
each byte by itself. Linux then waits 10 ms for each byte that it prints. So who does not read is cut off.
A byte that has to wait is sent again, and the log has it twice (QEMU 7.2; chardev/char.c,
qemu_chr_write_buffer); who is attached gets it once.
"""

import array
import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import os
import socket
import termios
import weakref
from collections.abc import Mapping

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
from vmessd.vm.instance import Run
from vmessd.vm.journal import tell
from vmessd.vm.machine import Machine

CHARDEV = "serial0"
FDNAME = "vmess-console"
HISTORY = 8 * 1024
"""Bytes of what was printed before that come along."""
LOOK = 1.0
"""Seconds between looks at whether who is attached reads."""
PATIENCE = 3
"""Looks in a row without a byte read, although there are some, after which they are cut off."""
SETTLE = (0.0, 0.02, 0.1, 0.3)
"""Pauses between questions after something that QEMU is about to notice, in seconds."""


@dataclasses.dataclass
class Attached:
    """A console as it is handed over. The sockets are the receiver's to close."""

    console: socket.socket
    leash: socket.socket
    history: bytes
    """The end of what the run had printed: whole lines."""
    printed: int
    """Bytes that the run had printed."""


@dataclasses.dataclass
class _Seat:
    """Somebody who is attached."""

    who: str
    run: Run
    console: socket.socket
    """A duplicate: to see whether it is read, and to cut it off."""
    leash: socket.socket
    minding: asyncio.Task[None] | None = None

    def unread(self) -> int:
        """Return the bytes that wait to be read."""
        count = array.array("i", [0])
        fcntl.ioctl(self.console, termios.FIONREAD, count)
        return count[0]

    def release(self, ending: Ending | None = None, why: str = "") -> None:
        """Let go of our ends; tell whoever has the others why, where it was not they who left."""
        if self.leash.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self.leash)
        if ending is not None:
            with contextlib.suppress(OSError):
                self.leash.send(why.encode())
                self.leash.send(ending.encode())
        self.leash.close()
        self.console.close()
        if self.minding is not None:
            self.minding.cancel()


class Consoles:
    """Who is attached to the VMs of a daemon."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._seats: dict[str, _Seat] = {}
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def attach(self, machine: Machine, who: str, *, steal: bool) -> Attached:
        """Attach somebody to a VM's console; `who` says to others who that is.

        Raises:
            NotRunning: the VM is off.
            Locked: somebody else has its console, and it is not to be stolen.
            TimedOut: its QEMU does not answer.
            Failed: it has no console, or QEMU refuses.
        """
        turn = self._turns.setdefault(machine.vm, asyncio.Lock())
        async with turn:
            run = machine.live()
            if machine.state is State.unresponsive:
                raise silent(machine.vm, run.pid)
            taken = await self._is_taken(machine.vm, run)
            if taken and not steal:
                raise self._in_use(machine.vm)
            connected = await _replace(machine, run) if taken else await _connect(machine, run)
            try:
                return await self._seat(machine, run, connected, who)
            except BaseException:
                connected.close()
                raise

    def close(self) -> None:
        """Let go of all consoles; who is attached stays so."""
        for vm in list(self._seats):
            self._release(vm)

    async def _is_taken(self, vm: str, run: Run) -> bool:
        """Tell whether somebody has the console; who left just now has not."""
        for pause in SETTLE:
            await asyncio.sleep(pause)
            if not await _is_connected(vm, run):
                return False
            if vm in self._seats:
                return True
        return True

    def _in_use(self, vm: str) -> Locked:
        seat = self._seats.get(vm)
        who = seat.who if seat else "somebody who was there before this vmessd, or went past it"
        return Locked(
            f"the console of {vm} is in use by {who}", hint=f"to take it over: vmess {vm} console --steal"
        )

    async def _seat(self, machine: Machine, run: Run, connected: socket.socket, who: str) -> Attached:
        """Note who is attached, and return what they get."""
        history, printed = await machine.change(functools.partial(_history, machine))
        with contextlib.ExitStack() as undo:
            copy = undo.enter_context(connected.dup())
            ours, theirs = map(undo.enter_context, socket.socketpair(type=socket.SOCK_SEQPACKET))
            undo.pop_all()
        self._release(machine.vm, Ending.taken_over, f"it was taken over by {who}")
        ours.setblocking(False)
        seat = _Seat(who, run, copy, ours)
        self._seats[machine.vm] = seat
        asyncio.get_running_loop().add_reader(ours, self._leash_moved, machine.vm, seat)
        seat.minding = asyncio.create_task(self._mind(machine, seat))
        return Attached(connected, theirs, history, printed)

    def _leash_moved(self, vm: str, seat: _Seat) -> None:
        try:
            if seat.leash.recv(4096):
                return  # there is nothing to say; it must not be kept either
        except BlockingIOError:
            return
        except OSError:
            pass
        with contextlib.suppress(OSError):  # who kept it would not be minded, and may never read
            seat.console.shutdown(socket.SHUT_RDWR)
        self._leave(vm, seat)

    def _leave(self, vm: str, seat: _Seat, ending: Ending | None = None, why: str = "") -> None:
        if self._seats.get(vm) is seat:
            self._release(vm, ending, why)
            tell(self._events, Kind.console, vm, f"left by {seat.who}{f': {why}' if why else ''}")

    def _release(self, vm: str, ending: Ending | None = None, why: str = "") -> None:
        seat = self._seats.pop(vm, None)
        if seat is not None:
            seat.release(ending, why)

    async def _mind(self, machine: Machine, seat: _Seat) -> None:
        """Cut off somebody who does not read, until they leave or the run is over."""
        before, strikes = (0, 0), 0
        while not seat.run.over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(seat.run.over.wait(), LOOK)
            # What was printed meanwhile has been read, if it is not among what is unread.
            try:
                size = await machine.files.aside(functools.partial(_log_size, machine.home))
            except VmessError:  # its files do not answer; that is no reason to cut anybody off
                continue
            now = (seat.unread(), size)
            strikes = strikes + 1 if now == before and now[0] else 0
            before = now
            if strikes >= PATIENCE:
                with contextlib.suppress(OSError):
                    seat.console.shutdown(socket.SHUT_RDWR)
                why = "it was not read, so the guest's serial port stood still"
                self._leave(machine.vm, seat, Ending.unread, why)
                return
        self._leave(machine.vm, seat)


def _log_size(directory: VMDirectory) -> int:
    try:
        return os.lstat(directory.path / SERIAL_LOG).st_size
    except OSError:
        return 0


def _history(machine: Machine) -> tuple[bytes, int]:
    """Return the end of what the run has printed, and how many bytes that was in all."""
    try:
        with logs.open_log(machine.place(), LogName.serial, machine.record()) as found:
            return found.tail(HISTORY), found.size - found.begin
    except VmessError:  # a console without history is better than none
        return b"", 0


async def _is_connected(vm: str, run: Run) -> bool:
    """Tell whether QEMU has somebody on the console; raises Failed where it has none."""
    try:
        found = await run.execute("query-chardev", {})
    except CommandRefused as refusal:
        raise Failed(f"QEMU of {vm} does not tell about its serial port: {refusal}") from None
    for chardev in found if isinstance(found, list) else []:
        if isinstance(chardev, Mapping) and chardev.get("label") == CHARDEV:
            return is_connected(chardev)
    raise Failed(f"VM {vm} has no serial console", hint="one that vmess starts has")


async def _connect(machine: Machine, run: Run) -> socket.socket:
    """Return a socket that QEMU has accepted, on a console that nobody has."""
    try:
        connected = await machine.files.aside(lambda: machine.place().connect(SERIAL_SOCKET))
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
    connected.close()  # somebody else listens there
    return await _replace(machine, run)


async def _replace(machine: Machine, run: Run) -> socket.socket:
    """Give the serial port another listening socket, with us connected to it, and return our end."""
    home = await machine.files.aside(machine.place)
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
            raise Failed(f"QEMU of {machine.vm} does not give its console away: {refusal}") from None
    return connected
