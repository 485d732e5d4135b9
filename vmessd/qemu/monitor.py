"""A QMP connection to one QEMU: the only importer of qemu.qmp.

A fresh client for each connection. A peer that misbehaves costs at most :data:`LINE_LIMIT` bytes and
ends in :exc:`MonitorLost`; one that says nothing keeps the caller waiting, who holds the clock.
Source: QEMU's docs/interop/qmp-spec; the traps of qemu.qmp 0.0.6 were measured.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, Runstate

from vmessd.core.errors import quoted

LINE_LIMIT = 1024 * 1024
COUNTER_MAX = 2**63 - 1
TEXT_LIMIT = 4096
"""Characters of a text of QEMU's that are taken in: a path has no more (PATH_MAX)."""
RUNSTATE_LIMIT = 40
UNKNOWN = "unknown"
"""The runstate of a QEMU that says none."""
_FAIR_SHARE = 64  # events handled before others get a turn

# What it logs is the peer's misbehaviour, which the machine reports in one line of its own.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class MonitorLost(Exception):
    """The connection is gone, or was never a QMP connection."""


class CommandRefused(Exception):
    """QEMU answered a command with an error; the message is QEMU's."""

    @property
    def is_of_nothing(self) -> bool:
        """There is no such device any more (7.2, DeviceNotFound: `Device 'card0' not found`)."""
        return "not found" in str(self)

    @property
    def is_of_no_hotplug(self) -> bool:
        """No device comes or goes there while the VM runs (7.2: `Bus 'pci.0' does not support hotplugging`)."""
        return "hotplug" in str(self)


EventHandler = Callable[[str, Mapping[str, Any]], None]
Complain = Callable[[str], None]


def counter(value: object) -> int | None:
    """Return a count that QEMU gave, None for what is none: qapi's `int` has 64 bits, Python's no end."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= COUNTER_MAX else None


def words(value: object) -> str | None:
    """Return a text that QEMU gave, no longer than :data:`TEXT_LIMIT`; None for what is none."""
    return value[:TEXT_LIMIT] if isinstance(value, str) else None


def plain(data: object) -> dict[str, Any]:
    """Return of an event's data what is a text, true or false, or a count. Nothing of vmessd's needs more."""
    found: dict[str, Any] = {}
    for key, value in data.items() if isinstance(data, Mapping) else ():
        kept = value if isinstance(value, bool) else words(value) if isinstance(value, str) else counter(value)
        if kept is not None:
            found[key] = kept
    return found


# -- What QEMU tells in English only --
#
# There is nothing but a sentence to go by. Each was seen in the version named; another one's sentence is not
# recognized, and what is then told is QEMU's own words.


def says_display_taken(said: Sequence[str]) -> bool:
    """Tell whether a QEMU's last words are that its VNC port was taken (7.2: ui/vnc.c, vnc_display_listen)."""
    return any(": -vnc " in line and line.endswith(": Address already in use") for line in said)


def says_denied(said: Sequence[str]) -> bool:
    """Tell whether it is among a QEMU's last words that it may not open a file (7.2, by strerror(3))."""
    return any("Permission denied" in line for line in said)


def says_forwarded(said: str) -> bool:
    """Tell whether `hostfwd_add` has forwarded a port: it says nothing then (7.2: net/slirp.c)."""
    return not said


def says_forwarded_no_more(said: str) -> bool:
    """Tell whether a port is not forwarded after `hostfwd_remove` (7.2: `... removed`, or `... not found`)."""
    return not said or "removed" in said or "not found" in said


def is_connected(chardev: Mapping[str, Any]) -> bool:
    """Tell whether a socket of `query-chardev` has somebody on it (7.2: chardev/char-socket.c)."""
    return not (words(chardev.get("filename")) or "").startswith("disconnected:")


def _shown(value: object) -> str:
    """Return a value that makes no sense as it may be logged."""
    if isinstance(value, str | int | float | None):
        return quoted(value, 40)
    return f"a {type(value).__name__}"


class Image(NamedTuple):
    """A drive with something in it, as QEMU knows it."""

    name: str
    """Its id, or else its node's."""
    node: str
    file: str | None
    """The path that QEMU opened; None for what has none, such as a network block device."""
    starved: bool
    """The first error that paused the guest was a lack of space. QEMU 7.2 forgets it at no `cont`."""


def _text_of(error: Exception) -> str:
    """Return an error of the library's in words; what it quotes may be nested too deep for that."""
    try:
        return str(error)[:TEXT_LIMIT]
    except (RecursionError, ValueError):
        return type(error).__name__


class _Handover(EventListener):
    """Hands each event over at once and keeps none: the library's own queue and history only grow."""

    def __init__(self, handler: EventHandler) -> None:
        super().__init__()
        self._handler = handler
        self._count = 0

    async def put(self, event: Message) -> None:
        self._handler(words(event["event"]) or "", plain(event.get("data")))
        self._count += 1
        if self._count % _FAIR_SHARE == 0:
            await asyncio.sleep(0)


class Monitor:
    """One connection. Events go to the handler from within the event loop, in order.

    What QEMU says is checked here: nothing else of vmessd's meets a number that is none. `complain` is told
    in words what cannot be true.
    """

    def __init__(self, handler: EventHandler, complain: Complain = lambda _words: None) -> None:
        self._complain = complain
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
            raise MonitorLost(_text_of(error)) from None

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
            raise CommandRefused(_text_of(error)) from None
        except Exception as error:  # noqa: BLE001 -- as in open
            raise MonitorLost(_text_of(error)) from None

    async def runstate(self) -> str:
        """Return the runstate by `query-status`, such as `running`; raises as :meth:`execute`."""
        reply = await self.execute("query-status")
        status = reply.get("status") if isinstance(reply, Mapping) else None
        if not isinstance(status, str):
            raise MonitorLost("query-status was answered without a status")
        if len(status) > RUNSTATE_LIMIT or not status.isascii() or not status.replace("-", "").isalpha():
            self._complain(f"status {_shown(status)} in query-status")
            return UNKNOWN
        return status

    async def transferred(self) -> dict[str, tuple[int, int]]:
        """Return bytes read and written by the guest for each drive's node, by `query-blockstats`."""
        reply = await self.execute("query-blockstats")
        result = {}
        for entry in reply if isinstance(reply, list) else []:
            with contextlib.suppress(KeyError, TypeError):
                node, stats = words(entry["node-name"]), entry["stats"]
                read, written = (self._counted(stats, key) for key in ("rd_bytes", "wr_bytes"))
                if node is not None and read is not None and written is not None:
                    result[node] = (read, written)
        return result

    def _counted(self, stats: Mapping[str, object], key: str) -> int | None:
        value = counter(stats[key])
        if value is None:
            self._complain(f"{key} {_shown(stats[key])} in query-blockstats")
        return value

    async def images(self) -> list[Image]:
        """Return the drives that have something in them, by `query-block`; raises as :meth:`execute`."""
        reply = await self.execute("query-block")
        result = []
        for entry in reply if isinstance(reply, list) else []:
            with contextlib.suppress(KeyError, TypeError):
                node, file = words(entry["inserted"]["node-name"]), words(entry["inserted"]["file"])
                if node is not None and file is not None:
                    path = file if file.startswith("/") else None
                    starved = entry.get("io-status") == "nospace"
                    result.append(Image(words(entry["device"]) or node, node, path, starved))
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
