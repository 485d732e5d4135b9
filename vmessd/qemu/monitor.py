"""A QMP connection to one QEMU: the only importer of qemu.qmp.

Each connection has its own client. A peer that misbehaves costs at most :data:`LINE_LIMIT` bytes and causes
:exc:`MonitorLost`. There are no timeouts here; the caller sets deadlines. Source: QEMU's docs/interop/qmp-spec;
the pitfalls of qemu.qmp 0.0.6 were measured.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, Runstate

from vmessd.core.errors import Failed, printable, quoted
from vmessd.qemu import block_devices

LINE_LIMIT = 1024 * 1024
COUNTER_MAX = 2**63 - 1
TEXT_LIMIT = 4096
"""Maximum characters of a text from QEMU: that of a path (PATH_MAX)."""
REFUSAL_MAX = 300
"""Characters of an error of QEMU in a message."""
RUNSTATE_LIMIT = 40
UNKNOWN = "unknown"
"""The runstate if QEMU reports an invalid one."""
_FAIR_SHARE = 64  # events to handle before yielding to other tasks

# It logs misbehaviour of the peer, which the machine reports in a line of its own.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class MonitorLost(Exception):
    """The connection is gone, or was never a QMP connection."""


class CommandRefused(Exception):
    """QEMU answered a command with an error; the message is QEMU's."""

    @property
    def is_not_found(self) -> bool:
        """The device does not exist (7.2, DeviceNotFound: `Device 'card0' not found`)."""
        return "not found" in str(self)

    @property
    def is_no_hotplug(self) -> bool:
        """The bus or device cannot be hot-plugged (7.2: `Bus 'pci.0' does not support hotplugging`)."""
        return "hotplug" in str(self)

    @property
    def is_loading(self) -> bool:
        """QEMU loads a memory already (7.2: `The incoming migration has already been started`)."""
        return "already been started" in str(self)

    @property
    def is_no_filter(self) -> bool:
        """The netdev takes no filter (7.2: `multiqueue is not supported`, `Vhost is not supported`)."""
        return any(word in str(self) for word in ("multiqueue is not", "Vhost is not"))

    def failed(self, vm: str, what: str) -> Failed:
        """Return the error for the user: what the QEMU of a VM refused, and its words, cut."""
        return Failed(f"QEMU of {vm} refused {what}: {printable(str(self)[:REFUSAL_MAX])}")


EventHandler = Callable[[str, Mapping[str, Any]], None]
Complain = Callable[[str], None]
"""Called with a text about an invalid value from QEMU."""


def counter(value: object) -> int | None:
    """Return a count from QEMU, None if it is invalid: an `int` of qapi has 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= COUNTER_MAX else None


def words(value: object) -> str | None:
    """Return a text from QEMU, cut at :data:`TEXT_LIMIT`; None if it is not a text."""
    return value[:TEXT_LIMIT] if isinstance(value, str) else None


def plain(data: object) -> dict[str, Any]:
    """Return the texts, booleans and counts in the data of an event; vmessd needs nothing else."""
    found: dict[str, Any] = {}
    for key, value in data.items() if isinstance(data, Mapping) else ():
        kept = value if isinstance(value, bool) else words(value) if isinstance(value, str) else counter(value)
        if kept is not None:
            found[key] = kept
    return found


# -- What QEMU says only in English --
#
# These sentences were seen in the version named. A version with other words is not recognized, and the user
# sees the words of QEMU.


def says_display_taken(said: Sequence[str]) -> bool:
    """Tell whether the last output of a QEMU says that its VNC port was taken (7.2: vnc_display_listen)."""
    return any(": -vnc " in line and line.endswith(": Address already in use") for line in said)


def says_denied(said: Sequence[str]) -> bool:
    """Tell whether the last output of a QEMU says that it may not open a file (7.2: strerror(3))."""
    return any("Permission denied" in line for line in said)


def says_forwarded(said: str) -> bool:
    """Tell whether `hostfwd_add` has succeeded: it then prints nothing (7.2: net/slirp.c)."""
    return not said


def says_not_forwarded(said: str) -> bool:
    """Tell whether a port is not forwarded after `hostfwd_remove` (7.2: `... removed`, or `... not found`)."""
    return not said or "removed" in said or "not found" in said


def is_connected(chardev: Mapping[str, Any]) -> bool:
    """Tell whether a socket of `query-chardev` has a client (7.2: chardev/char-socket.c)."""
    return not (words(chardev.get("filename")) or "").startswith("disconnected:")


def _shown(value: object) -> str:
    """Return an invalid value in a form that may be logged."""
    if isinstance(value, str | int | float | None):
        return quoted(value, 40)
    return f"a {type(value).__name__}"


def _records(reply: object) -> list[Mapping[str, object]]:
    """Return the records in a list from QEMU; anything else in it is ignored."""
    return [one for one in reply if isinstance(one, Mapping)] if isinstance(reply, list) else []


class Image(NamedTuple):
    """A drive with a medium, as QEMU reports it."""

    name: str
    """The id of the drive, else the name of its node."""
    node: str
    file: str | None
    """The path that QEMU opened; None if there is none, as for a network block device."""
    starved: bool
    """The first error that paused the guest was a lack of space. QEMU 7.2 does not reset this at `cont`."""


class Job(NamedTuple):
    """A job of QEMU on its images."""

    identifier: str
    status: str
    """One of JobStatus: `running`, `pending` when its result can be used, `concluded` in the end."""
    done: int
    total: int
    """What there is to do, in the unit of `done`; it may change."""
    error: str | None
    """Why it has failed."""


def _text_of(error: Exception) -> str:
    """Return the text of an error of the library; it may quote JSON that is nested too deeply for str()."""
    try:
        return str(error)[:TEXT_LIMIT]
    except (RecursionError, ValueError):
        return type(error).__name__


class _Forwarder(EventListener):
    """Passes each event on at once and keeps none: the queue and history of the library grow without limit."""

    def __init__(self, handler: EventHandler) -> None:
        super().__init__()
        self._handler = handler
        self._count = 0

    async def put(self, event: Message) -> None:
        self._handler(words(event["event"]) or "", plain(event.get("data")))
        self._count += 1
        if self._count % _FAIR_SHARE == 0:
            await asyncio.sleep(0)


class _Patient(socket.socket):
    """A socket that loses what is sent to a QEMU that has ended, instead of failing.

    asyncio would otherwise close the connection at once, with the last events of that QEMU unread.
    """

    def send(self, *data: Any) -> int:
        try:
            return super().send(*data)
        except (BrokenPipeError, ConnectionResetError):
            return memoryview(data[0]).nbytes

    def sendmsg(self, *message: Any) -> int:
        try:
            return super().sendmsg(*message)
        except (BrokenPipeError, ConnectionResetError):
            return sum(memoryview(piece).nbytes for piece in message[0])


class Monitor:
    """One connection. Events go to the handler in order, in the event loop.

    All values from QEMU are checked here, so no other module meets an invalid one. `complain` is called for
    each invalid value.
    """

    def __init__(self, handler: EventHandler, complain: Complain = lambda _words: None) -> None:
        self._complain = complain
        self._client = QMPClient(readbuflen=LINE_LIMIT)
        self._client.events.event_filter = lambda _event: False
        self._client.register_listener(_Forwarder(handler))
        self._socket: socket.socket | None = None
        self._closing: asyncio.Task[None] | None = None
        self._sending_fd = asyncio.Lock()

    async def open(self, connected: socket.socket) -> None:
        """Take over a connected socket, wait for the greeting and negotiate. There is no deadline.

        Raises:
            MonitorLost: the peer hung up or does not speak QMP.
        """
        # Without these, Python asks the kernel for them; if that fails, the descriptor is lost and stays open.
        kind = (connected.family, connected.type, connected.proto)
        self._socket = _Patient(*kind, connected.detach())
        try:
            await self._client.connect(self._socket)
        except Exception as error:  # noqa: BLE001 -- a peer can provoke any error in the library
            raise MonitorLost(_text_of(error)) from None

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, descriptor: int | None = None
    ) -> Any:
        """Run a command and return its result. Cancelling the caller does not undo the command.

        `descriptor` is sent along, for add-fd and getfd; ours stays open.

        Raises:
            CommandRefused: with the error of QEMU.
            MonitorLost: the connection is closed.
        """
        try:
            if descriptor is None:
                return await self._client.execute(command, arguments)
            async with self._sending_fd:  # QEMU keeps only the last descriptor that it received
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
        """Return the bytes read and written by the guest, by drive (`query-blockstats`)."""
        reply = await self.execute("query-blockstats")
        result = {}
        for entry in reply if isinstance(reply, list) else []:
            with contextlib.suppress(KeyError, TypeError):
                node, stats = words(entry["node-name"]), entry["stats"]
                read, written = (self._counted(stats, key) for key in ("rd_bytes", "wr_bytes"))
                if node is not None and read is not None and written is not None:
                    result[block_devices.slot_of(node)] = (read, written)
        return result

    def _counted(self, stats: Mapping[str, object], key: str) -> int | None:
        value = counter(stats[key])
        if value is None:
            self._complain(f"{key} {_shown(stats[key])} in query-blockstats")
        return value

    async def images(self) -> list[Image]:
        """Return the drives that have a medium, by `query-block`; raises as :meth:`execute`."""
        reply = await self.execute("query-block")
        result = []
        for entry in reply if isinstance(reply, list) else []:
            with contextlib.suppress(KeyError, TypeError):
                node, file = words(entry["inserted"]["node-name"]), words(entry["inserted"]["file"])
                if node is not None and file is not None:
                    starved = entry.get("io-status") == "nospace"
                    result.append(
                        Image(
                            words(entry["device"]) or block_devices.slot_of(node),
                            node,
                            block_devices.path_of(file),
                            starved,
                        )
                    )
        return result

    async def nodes(self) -> list[str]:
        """Return the names of all nodes (`query-named-block-nodes`); raises as :meth:`execute`."""
        reply = await self.execute("query-named-block-nodes", {"flat": True})
        found = [words(entry.get("node-name")) for entry in _records(reply)]
        return [name for name in found if name is not None]

    async def jobs(self) -> list[Job]:
        """Return the jobs (`query-jobs`); raises as :meth:`execute`."""
        found = []
        for entry in _records(await self.execute("query-jobs")):
            identifier, status = words(entry.get("id")), words(entry.get("status"))
            done, total = (counter(entry.get(f"{key}-progress")) or 0 for key in ("current", "total"))
            if identifier is not None and status is not None:
                found.append(Job(identifier, status, done, total, words(entry.get("error"))))
        return found

    async def closed(self) -> None:
        """Return when the connection has ended and all its events have been passed on."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """End the connection; the VM keeps running. Never raises, and completes even if cancelled."""
        if self._socket is None:
            return
        # Otherwise a peer that does not read would block the flush in disconnect().
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._disconnect(self._socket))
        # A cancelled disconnect() leaves the exception of its reader unretrieved, which asyncio logs.
        await asyncio.shield(self._closing)

    async def _disconnect(self, connected: socket.socket) -> None:
        # It raises the error that ended its reader, which can be any.
        with contextlib.suppress(Exception):
            await self._client.disconnect()
        connected.close()
