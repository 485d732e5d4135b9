"""Captures: QEMU writes the frames of an interface into a memfd, which the client has as well.

QEMU's `filter-dump` (qapi/qom.json) writes both directions of any backend, also where the host has no link, and
the daemon needs no privilege for it. QEMU opens the memfd by its path in /proc/self/fd, after `add-fd` has
brought the descriptor. A write to a memfd never waits, so a client that does not read stops no guest. The
client frees what it has read, by a hole in the memfd; the daemon looks how much is left, and ends a capture
that nobody reads.

The memfd contains frames of this interface and nothing else: its owner can see no more.
"""

import asyncio
import contextlib
import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any

from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, VmessError, counted, failing
from vmessd.core.lifecycle import OFF
from vmessd.core.quantities import size_shown
from vmessd.devices.hotplug import Cards
from vmessd.qemu import command_line
from vmessd.qemu.monitor import CommandRefused, counter
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

log = logging.getLogger(__name__)

PREFIX = "capture"
"""With which the ids of filters begin."""
FRAME_MAX = 1 << 17
"""Bytes of a frame that are written; a virtio card may send 64 KiB as one."""
UNREAD_MAX = 64 << 20
"""Bytes that a client may leave unread."""
SHARED_MAX = 256 << 20
"""Bytes that all captures of one VM may leave unread, each the same part; a client frees 1 MiB at a time."""
EACH_MAX = 64
"""Captures of one VM at a time."""
LOOK = 0.2
"""Seconds between two looks at how much is unread."""
VIRTIO_HEADER = 12
"""Bytes that most drivers agree on (virtio specification, 5.1.6: virtio 1.0, or VIRTIO_NET_F_MRG_RXBUF)."""
BARE_SINCE = 8
"""The major version of QEMU since which filter-dump leaves that header out (net/dump.c)."""


@dataclass(eq=False)
class Capture:
    """One capture of an interface."""

    index: int
    frames: int = -1
    """The memfd; -1 before it has begun."""
    name: str = ""
    """The id of the filter in QEMU."""
    run: QemuRun | None = None
    """The QEMU that writes."""
    fdset: int | None = None
    """Where QEMU got the memfd. What is removed from there stays until the guest runs (QEMU, monitor/fds.c)."""
    is_writing: bool = False
    error: VmessError | None = None
    """Why the start of the VM could not begin it."""
    is_unplugged: bool = False
    mac: str | None = None
    header: int = 0

    @property
    def unread(self) -> int:
        """Return the bytes that are in memory."""
        return os.fstat(self.frames).st_blocks * 512


class Captures:
    """The captures of one machine."""

    def __init__(self, machine: Machine, cards: Cards) -> None:
        self.vm = machine.vm
        self._machine = machine
        self._cards = cards
        self._all: set[Capture] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()

    # -- For a client --

    async def open(self, index: int) -> Capture:
        """Begin a capture, or, if the VM is off, let the next start begin it; :meth:`close` ends it.

        Raises:
            Failed: QEMU refuses, or there are too many captures.
            NotRunning, TimedOut: the VM has just ended; its QEMU does not answer.
        """
        if len(self._all) >= EACH_MAX:
            raise Failed(
                f"{self.vm} has {counted(len(self._all), 'capture')} already, and cannot have more",
                hint="end some of them; vmessd's log has their processes",
            )
        capture = Capture(index)
        self._all.add(capture)
        try:
            await self._machine.begun()
            if self._machine.state not in OFF:
                await self._attach(capture)
        except BaseException:
            await self.close(capture)
            raise
        return capture

    async def begun(self, capture: Capture, patience: float) -> bool:
        """Wait until a capture has begun, at most some seconds; tell whether it has.

        Raises:
            Failed, NotRunning, TimedOut: the VM has started without it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while not capture.is_writing and capture.error is None:
                    self._changed.clear()
                    await self._changed.wait()
        if capture.error is not None:
            raise capture.error
        return capture.is_writing

    async def ended(self, capture: Capture) -> str | None:
        """Wait a moment; return why a capture has ended, None if it continues."""
        run = capture.run
        if run is None:
            return None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(run.over.wait(), LOOK)
        if run.over.is_set():
            last = self._machine.last_exit
            return last.text if last is not None else "the VM has ended"
        if capture.is_unplugged:
            return f"interface {capture.index} was unplugged"
        unread_max = min(UNREAD_MAX, SHARED_MAX // max(1, len(self._all)))
        if capture.unread > unread_max:
            return f"more than {size_shown(unread_max)} were not read in time"
        return None

    async def close(self, capture: Capture) -> None:
        """End a capture, whatever state it is in; it ends also if the caller is cancelled meanwhile."""
        self._all.discard(capture)
        task = asyncio.get_running_loop().create_task(self._end(capture))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    async def _end(self, capture: Capture) -> None:
        async with self._lock:  # it may be about to begin
            if capture.run is not None and not capture.run.over.is_set():
                with contextlib.suppress(CommandRefused, VmessError):  # unplugged, or QEMU has ended
                    await capture.run.execute("object-del", {"id": capture.name})
                if capture.fdset is not None:
                    with contextlib.suppress(CommandRefused, VmessError):  # mostly it is gone
                        await capture.run.execute("remove-fd", {"fdset-id": capture.fdset})
            if capture.frames >= 0:
                os.close(capture.frames)
                capture.frames = -1

    # -- For the machine --

    async def prepare(self, *, fresh: bool) -> None:
        """Begin the captures that wait for a start; end those of an earlier daemon."""
        try:
            if not fresh:
                await self._sweep()
        except VmessError as error:
            log.warning("%s: captures of an earlier vmessd: %s", self.vm, error.message)
        for capture in list(self._all):
            try:
                await self._attach(capture)
            except VmessError as error:
                capture.error = error
                self._changed.set()

    def unplugged(self, index: int) -> None:
        """Note that a card and its backend are gone, and with it the filters of QEMU."""
        for capture in self._all:
            capture.is_unplugged = capture.is_unplugged or capture.index == index

    async def _sweep(self) -> None:
        """Remove the filters of an earlier daemon: nobody looks any more how much they write."""
        run = self._machine.live()
        kept = {capture.name for capture in self._all}
        found = await _execute(run, "qom-list", {"path": "/objects"})
        for entry in found if isinstance(found, list) else []:
            name = entry.get("name") if isinstance(entry, Mapping) else None
            if isinstance(name, str) and name.startswith(PREFIX) and name not in kept:
                await _execute(run, "object-del", {"id": name})

    async def _attach(self, capture: Capture) -> None:
        """Have QEMU write the frames that are still wanted; raises Failed, NotRunning, TimedOut."""
        async with self._lock:
            if capture.run is not None or capture not in self._all:
                return
            with failing("no memory for a capture"):
                capture.frames = os.memfd_create(f"{self.vm}-capture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            capture.name = f"{PREFIX}{capture.index}-{secrets.token_hex(8)}"
            capture.run = run = self._machine.live()
            await self._write(run, capture)
            capture.mac = self._cards.macs().get(capture.index)
            capture.header = await self._header(run, capture.index)
            capture.is_writing = True
            self._changed.set()

    async def _write(self, run: QemuRun, capture: Capture) -> None:
        """Add the filter to QEMU; raises as :meth:`_attach`."""
        handed = await _execute(run, "add-fd", {}, capture.frames)
        known = handed if isinstance(handed, Mapping) else {}
        fdset, number = counter(known.get("fdset-id")), counter(known.get("fd"))
        if fdset is None or number is None:
            raise Failed(
                f"QEMU of {self.vm} did not accept a descriptor for the capture", hint=f"vmess {self.vm} log"
            )
        capture.fdset = fdset
        try:
            await _execute(
                run,
                "object-add",
                {
                    "qom-type": "filter-dump",
                    "id": capture.name,
                    "netdev": command_line.netdev_id(capture.index),
                    "file": f"/proc/self/fd/{number}",
                    "maxlen": FRAME_MAX,
                },
            )
        finally:
            with contextlib.suppress(VmessError):
                await _execute(run, "remove-fd", {"fdset-id": fdset})

    async def _header(self, run: QemuRun, index: int) -> int:
        """Return how many bytes this QEMU probably writes in front of each frame."""
        model = await self._cards.model(index) or ""
        version = await _execute(run, "query-version", {})
        parts = version.get("qemu") if isinstance(version, Mapping) else None
        major = counter(parts.get("major")) if isinstance(parts, Mapping) else None
        return VIRTIO_HEADER if model.startswith("virtio") and (major or 0) < BARE_SINCE else 0


async def _execute(run: QemuRun, command: str, arguments: dict[str, object], fd: int | None = None) -> Any:
    """Run a QMP command; raises Failed with the error of QEMU, NotRunning, TimedOut."""
    try:
        return await run.execute(command, arguments, descriptor=fd)
    except CommandRefused as refusal:
        if refusal.is_no_filter:
            raise Failed(
                f"QEMU of {run.vm} cannot capture a NIC with several queues or vhost",
                hint=f"vmess {run.vm} queues none vhost none stop start",
            ) from None
        raise refusal.failed(run.vm, command) from None
