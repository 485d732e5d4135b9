"""The live output of the serial port of a VM, for clients that wait for a text in it."""

import asyncio
import base64
import dataclasses
import functools
from collections.abc import AsyncIterator

from vmessd.core import serial_ports
from vmessd.core.errors import NotRunning
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.consoles import SerialPiece
from vmessd.core.records import ExitRecord, serial_mark
from vmessd.storage import serial_stream
from vmessd.storage.serial_stream import Chunk, Mark
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.machine import Machine

START, RECENT = "start", "recent"
HISTORY = 8 * 1024
"""Maximum bytes of recent output."""
CHUNK = 32 * 1024
"""Bytes in one piece; no more is buffered for a slow reader."""
PACE = 0.1
"""Seconds between looks at the log of a guest that prints nothing."""


def _begin(machine: Machine, port: int) -> Mark:
    """Return where the present or else the last run begins; raises NotRunning if there was none."""
    record = machine.record() or machine.last_exit
    if record is None:
        raise NotRunning(f"VM {machine.vm} has never run", hint=f"vmess {machine.vm} start")
    return serial_stream.place(serial_mark(record, port))


def _is_over(machine: Machine, before: ExitRecord | None, *, ran: bool) -> bool:
    """Tell whether a run has ended since the watch began, and no restart follows."""
    return machine.state is State.stopped and (ran or machine.last_exit is not before)


async def follow(supervisor: Supervisor, vm: str, since: str | None, port: int) -> AsyncIterator[SerialPiece]:
    """Yield the serial output of a VM until its run has ended; if it is off, of its next run.

    Args:
        supervisor: the supervisor of the VM.
        vm: the name of the VM.
        since: `start` for the beginning of the present or last run, `recent` for the last lines of the present
            one, the mark of a piece, or None for now.
        port: the number of the serial port.

    Raises:
        NoSuchVM: the VM does not exist, or was removed.
        NotRunning: `since` is `start`, and the VM has never run.
        InvalidValue: `since` is malformed.
        BadFile, Failed: the log cannot be read.
    """
    machine = await supervisor.machine(vm)
    ran, before = machine.state not in OFF or since == START, machine.last_exit
    name = serial_ports.log(port)
    mark, gap = await _place(machine, since, port)
    yield _piece(Chunk(b"", mark, gap=False))
    while True:
        machine = await supervisor.machine(vm)
        ran = ran or machine.state not in OFF
        over = _is_over(machine, before, ran=ran)  # before the read, which then returns the rest
        chunk = await machine.change(functools.partial(serial_stream.read, machine.home, mark, CHUNK, name))
        chunk, gap = chunk._replace(gap=chunk.gap or gap), gap and not chunk.data
        mark = chunk.mark
        if chunk.data:
            yield _piece(chunk)
        elif over:
            ended = machine.last_exit
            yield dataclasses.replace(_piece(chunk), ended=ended.text if ended else "it has ended")
            return
        else:
            await asyncio.sleep(PACE)


async def _place(machine: Machine, since: str | None, port: int) -> tuple[Mark, bool]:
    """Return the mark to begin at, and whether the log has lost output that was asked for."""
    name = serial_ports.log(port)
    if since is None or (since == RECENT and machine.state in OFF):
        return await machine.change(functools.partial(serial_stream.end, machine.home, name)), False
    if since == RECENT:
        look_back = functools.partial(serial_stream.recent, machine.home, _begin(machine, port), HISTORY, name)
        return await machine.change(look_back), False
    mark = _begin(machine, port) if since == START else Mark.parse(since)
    look = functools.partial(serial_stream.read, machine.home, mark, 0, name, earliest=since == START)
    found = await machine.change(look)
    return found.mark, found.gap


def _piece(chunk: Chunk) -> SerialPiece:
    return SerialPiece(base64.b64encode(chunk.data).decode("ascii"), str(chunk.mark), chunk.gap, None)
