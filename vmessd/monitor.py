"""A QMP connection to one QEMU: the only importer of qemu.qmp.

A fresh client for each connection. A peer that misbehaves costs at most :data:`LINE_LIMIT` bytes and
ends in :exc:`MonitorLost`; one that says nothing keeps the caller waiting, who holds the clock.
Source: QEMU's docs/interop/qmp-spec; the traps of qemu.qmp 0.0.6 were measured.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, Runstate

LINE_LIMIT = 1024 * 1024
RUNSTATE_LIMIT = 40
_FAIR_SHARE = 64  # events handled before others get a turn

# What it logs is the peer's misbehaviour, which the machine reports in one line of its own.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class MonitorLost(Exception):
    """The connection is gone, or was never a QMP connection."""


class CommandRefused(Exception):
    """QEMU answered a command with an error; the message is QEMU's."""


EventHandler = Callable[[str, Mapping[str, Any]], None]


class _Handover(EventListener):
    """Hands each event over at once and keeps none: the library's own queue and history only grow."""

    def __init__(self, handler: EventHandler) -> None:
        super().__init__()
        self._handler = handler
        self._count = 0

    async def put(self, event: Message) -> None:
        data = event.get("data")
        self._handler(str(event["event"]), data if isinstance(data, Mapping) else {})
        self._count += 1
        if self._count % _FAIR_SHARE == 0:
            await asyncio.sleep(0)


class Monitor:
    """One connection. Events go to the handler from within the event loop, in order."""

    def __init__(self, handler: EventHandler) -> None:
        self._client = QMPClient(readbuflen=LINE_LIMIT)
        self._client.events.event_filter = lambda _event: False
        self._client.register_listener(_Handover(handler))
        self._socket: socket.socket | None = None
        self._closing: asyncio.Task[None] | None = None
        self._handing = asyncio.Lock()

    async def open(self, connected: socket.socket) -> None:
        """Take over a connected socket, await the greeting and negotiate. No deadline of its own.

        Raises:
            MonitorLost: the peer hung up or does not speak QMP.
        """
        self._socket = connected
        try:
            await self._client.connect(connected)
        except Exception as error:  # noqa: BLE001 -- the peer's bytes decide what the library raises
            raise MonitorLost(str(error)) from None

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, descriptor: int | None = None
    ) -> Any:
        """Run a command and return what it returns. A caller that stops waiting does not undo it.

        `descriptor` goes with it, for add-fd and getfd; ours stays open.

        Raises:
            CommandRefused: QEMU's own words.
            MonitorLost: the connection went away, or there is none.
        """
        try:
            if descriptor is None:
                return await self._client.execute(command, arguments)
            async with self._handing:  # QEMU keeps the last descriptor that came, and no other
                self._client.send_fd_scm(descriptor)
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise CommandRefused(str(error)) from None
        except Exception as error:  # noqa: BLE001 -- as in open
            raise MonitorLost(str(error)) from None

    async def runstate(self) -> str:
        """Return the runstate by `query-status`, such as `running`; raises as :meth:`execute`."""
        reply = await self.execute("query-status")
        status = reply.get("status") if isinstance(reply, Mapping) else None
        if not isinstance(status, str):
            raise MonitorLost("query-status was answered without a status")
        return status[:RUNSTATE_LIMIT]

    async def transferred(self) -> dict[str, tuple[int, int]]:
        """Return bytes read and written by the guest for each drive's node, by `query-blockstats`."""
        reply = await self.execute("query-blockstats")
        result = {}
        for entry in reply if isinstance(reply, list) else []:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                stats = entry["stats"]
                result[str(entry["node-name"])] = (int(stats["rd_bytes"]), int(stats["wr_bytes"]))
        return result

    async def closed(self) -> None:
        """Return when the connection has ended and all that came over it was handed over."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """End the connection; the VM goes on. Never raises, and is carried through if cancelled."""
        if self._socket is None:
            return
        # Without this, a peer that does not read would hold up the flush inside disconnect().
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._disconnect(self._socket))
        # Half a disconnect() would leave its reader's exception behind, to be complained about later.
        await asyncio.shield(self._closing)

    async def _disconnect(self, connected: socket.socket) -> None:
        # It raises whatever ended its reader: any error the peer's bytes can provoke.
        with contextlib.suppress(Exception):
            await self._client.disconnect()
        connected.close()
