"""What a VM prints on its serial port, as it does: for whoever waits for words of it."""

import asyncio
import base64
import dataclasses
import functools
from collections.abc import AsyncIterator

from vmessd.core.errors import NotRunning
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.consoles import SerialPiece
from vmessd.core.records import ExitRecord
from vmessd.storage import serial_stream
from vmessd.storage.serial_stream import Chunk, Mark
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.machine import Machine

START = "start"
CHUNK = 32 * 1024
"""Bytes told at once; more is not held for a reader, however slow it is."""
PACE = 0.1
"""Seconds between looks at the log of a guest that says nothing."""


def _begin(machine: Machine) -> Mark:
    """Return where the present run begins, or else the last one; raises NotRunning where there was none."""
    record = machine.record() or machine.last_exit
    if record is None:
        raise NotRunning(f"VM not running: {machine.vm}; it has never run", hint=f"vmess {machine.vm} start")
    return serial_stream.place(record.serial)


def _is_over(machine: Machine, before: ExitRecord | None, *, ran: bool) -> bool:
    """Tell whether a run has ended since the watch began, and no other one is to come."""
    return machine.state is State.stopped and (ran or machine.last_exit is not before)


async def follow(supervisor: Supervisor, vm: str, since: str | None) -> AsyncIterator[SerialPiece]:
    """Yield what a VM prints until its run has ended; of one that is off, the next run.

    Args:
        supervisor: whose VM it is.
        vm: its name.
        since: `start` for the present or last run's beginning, a piece's mark, None for now.

    Raises:
        NoSuchVM: there is none, or none any more.
        NotRunning: it never ran, so that there is no beginning.
        InvalidValue: `since` makes no sense.
        BadFile, Failed: the log cannot be read.
    """
    machine = await supervisor.machine(vm)
    ran, before = machine.state not in OFF or since == START, machine.last_exit
    mark, gap = await _place(machine, since)
    yield _piece(Chunk(b"", mark, gap=False))
    while True:
        machine = await supervisor.machine(vm)
        ran = ran or machine.state not in OFF
        over = _is_over(machine, before, ran=ran)  # asked first: what is read then is all there is
        chunk = await machine.change(functools.partial(serial_stream.read, machine.home, mark, CHUNK))
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


async def _place(machine: Machine, since: str | None) -> tuple[Mark, bool]:
    """Return the place to begin at, and whether the one that is wanted is not there any more."""
    if since is None:
        return await machine.change(functools.partial(serial_stream.end, machine.home)), False
    mark = _begin(machine) if since == START else Mark.parse(since)
    look = functools.partial(serial_stream.read, machine.home, mark, 0, earliest=since == START)
    found = await machine.change(look)
    return found.mark, found.gap


def _piece(chunk: Chunk) -> SerialPiece:
    return SerialPiece(base64.b64encode(chunk.data).decode("ascii"), str(chunk.mark), chunk.gap, None)
