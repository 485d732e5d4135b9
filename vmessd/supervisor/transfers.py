"""Exports and imports of whole VMs, and of OVAs: the archive goes through a socket, piece by piece.

The client has one end of the socket, and reads or writes the file; the daemon opens no path of the client's.
Each piece is read or written in a thread. When a client leaves, nothing of its transfer stays.
"""

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vmessd.core import names
from vmessd.core.errors import Failed, failing, printable
from vmessd.core.models.transfers import TransferProgress
from vmessd.storage.appliance import ApplianceImport
from vmessd.storage.blocking import WRITING_PATIENCE, Lane
from vmessd.storage.exporting import Export
from vmessd.storage.importing import Import
from vmessd.storage.incoming import Incoming
from vmessd.storage.ova_reader import is_ova
from vmessd.storage.tar_reader import First
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor.appliances import convert
from vmessd.supervisor.mentions import mentions
from vmessd.supervisor.new_vms import NewVMs
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

_T = TypeVar("_T")

PIECE = 1 << 18
"""Bytes that are taken from a client at a time."""
STALL_TIME = 600.0
"""Seconds that a client may neither take nor send anything."""


class Transfer(NamedTuple):
    """A step of a transfer; the first one has the client's end of the socket."""

    progress: TransferProgress
    channel: socket.socket | None = None


class Transfers:
    """The exports and imports of one VM root."""

    def __init__(
        self,
        root: Path,
        host: Host,
        machine: Callable[[str], Coroutine[Any, Any, Machine]],
        new_vms: NewVMs,
    ) -> None:
        self._root = root
        self._host = host
        self._machine = machine
        self._new_vms = new_vms

    async def export(self, name: str) -> AsyncGenerator[Transfer, None]:
        """Export a VM that is off, which cannot be started meanwhile.

        Raises:
            AlreadyRunning: it is not off.
            Locked, BadFile, Failed, TimedOut: as Export; a file cannot be read; the client takes nothing.
        """
        machine = await self._machine(name)
        make = functools.partial(Export, machine.directory, self._host.account)
        export = await machine.change(make, stopped=True, patience=WRITING_PATIENCE)
        lane = Lane(f"the file system of {printable(str(machine.directory))}")
        try:
            notes = [f"not exported: {', '.join(export.left_out)}"] if export.left_out else None
            begun = TransferProgress(done=False, vm=machine.vm, size=export.size, notes=notes)
            ours, theirs = _channel()
            with ours:
                yield Transfer(begun, theirs)
                pieces = export.pieces()
                while (piece := await lane.do(lambda: next(pieces, None), WRITING_PATIENCE)) is not None:
                    await _in_time(asyncio.get_running_loop().sock_sendall(ours, piece), machine.vm)
            yield Transfer(TransferProgress(done=True, vm=machine.vm, size=export.size, notes=notes))
        finally:
            lane.see_to(export.close)

    async def take(self, name: str | None) -> AsyncGenerator[Transfer, None]:
        """Make a VM of an export or an OVA, under `name` or that in the archive.

        Raises:
            InvalidValue: the name is not one of a VM, or is taken by something else.
            Failed, BadFile, TimedOut: as Import; there is such a VM already; the client sends nothing.
        """
        vm = None if name is None else names.parse(name)
        if vm is not None:
            await self._new_vms.check_name(vm)
        incoming: Import | ApplianceImport | None = None
        lane = Lane(f"VM root {printable(str(self._root))}")
        try:
            ours, theirs = _channel()
            with ours:
                yield Transfer(TransferProgress(done=False, vm=vm), theirs)
                begun, first = await _begun(ours, vm or "a VM")
                incoming = self._begin(first, vm)
                size = await self._feed(incoming, begun, ours, lane, is_checked=vm is not None)
            incoming.end()
            if isinstance(incoming, ApplianceImport):
                async with contextlib.aclosing(convert(incoming, self._host.account, lane)) as steps:
                    async for step in steps:
                        yield Transfer(step)
            directory = await lane.finish(incoming.finish, WRITING_PATIENCE)
            machine = await self._machine(directory.vm)
            notes = await self._notes(incoming, directory, lane)
            yield Transfer(TransferProgress(done=True, vm=machine.vm, size=size, notes=notes or None))
        finally:
            if incoming is not None:
                await self._new_vms.clean_up(lane, incoming.close)

    def _begin(self, first: str, vm: str | None) -> Import | ApplianceImport:
        if is_ova(first):
            return ApplianceImport(self._root, vm)
        return Import(self._root, vm, words_for_qemu=self._host.exargs)

    async def _feed(
        self,
        incoming: Incoming,
        begun: bytes,
        ours: socket.socket,
        lane: Lane,
        *,
        is_checked: bool,
    ) -> int:
        """Pass an archive on as it comes, after its first bytes; return its size."""
        size, who, data = 0, incoming.vm or "a VM", begun
        while data:
            await lane.do(functools.partial(incoming.feed, data), WRITING_PATIENCE)
            if not is_checked and incoming.vm is not None:
                await self._new_vms.check_name(incoming.vm)
                is_checked = True
            size += len(data)
            data = await _in_time(asyncio.get_running_loop().sock_recv(ours, PIECE), who)
        return size

    async def _notes(self, incoming: Import | ApplianceImport, vm: VMDirectory, lane: Lane) -> list[str]:
        """Return remarks on a VM that was imported."""
        if isinstance(incoming, ApplianceImport):
            return incoming.notes()
        if vm.vm == incoming.made_of:
            return []
        return await lane.do(functools.partial(mentions, vm, incoming.made_of))


async def _begun(ours: socket.socket, who: str) -> tuple[bytes, str]:
    """Return the first bytes of an archive, and the name of its first member, which tells what it is."""
    begun, first = bytearray(), First()
    while first.name is None:
        data = await _in_time(asyncio.get_running_loop().sock_recv(ours, PIECE), who)
        if not data:
            break
        begun += data
        first.feed(data)
    return bytes(begun), first.name or ""


def _channel() -> tuple[socket.socket, socket.socket]:
    """Return two ends of a socket; the first one is ours, and does not block."""
    with failing("no socket can be created"):
        ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


async def _in_time(work: Coroutine[Any, Any, _T], vm: str) -> _T:
    """Exchange data with a client; raises Failed if it stalls, or has closed its end."""
    try:
        async with asyncio.timeout(STALL_TIME):
            return await work
    except TimeoutError:
        why = f"nothing moved for {STALL_TIME:g} s"
    except OSError:
        why = "the client has closed its end"
    raise Failed(f"the transfer of {vm} was given up: {why}", hint="repeat it")
