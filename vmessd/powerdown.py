"""`vmessd --shutdown`: powers all VMs down, with or without a daemon. The service uses it when the host stops.

If a daemon serves the VMs, it is asked to do it. Otherwise it is done here, which needs the VM root, the user
that QEMU runs as, and no other setting. Mistakes in the settings are logged and ignored: they must not keep
a guest from being powered down.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vmessd.config import OPTIONS, Config
from vmessd.core import names, pid_file, places, systemd
from vmessd.core.errors import (
    DONE,
    FORCED,
    INTERFACE,
    Failed,
    InvalidValue,
    Locked,
    VmessError,
    printable,
    worst,
)
from vmessd.core.ownership import PACEMAKER
from vmessd.core.words import FleetStep
from vmessd.network.links import Network
from vmessd.network.policy import Access
from vmessd.qemu import credentials, process
from vmessd.qemu.credentials import Account
from vmessd.storage import blocking, vmdir
from vmessd.supervisor.fleet import Fleet
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host

log = logging.getLogger(__name__)

ANSWER_TIME = 10.0
"""Seconds that a daemon may take for its next reply, beyond the time that its VMs have."""
QUEUE_TIME = 8
"""Seconds that a daemon may take to accept a connection."""
PATIENCE = 45.0
"""Seconds in which a daemon that does not answer either recovers or is killed by its watchdog (30 s)."""
RETRY = 0.5
"""Seconds between attempts."""
REPLY_LIMIT = 1024 * 1024
"""Bytes of one reply."""
BAD_REPLIES = (ValueError, LookupError, TypeError, EOFError, asyncio.LimitOverrunError)
"""What malformed replies raise."""

Step = Mapping[str, Any]


def run(config: Config) -> int:
    """Power all VMs down in a new event loop; return the exit status."""
    for words in config.passed_over:
        log.warning("%s; this is ignored", words)
    return asyncio.run(_power_down(config))


async def _power_down(config: Config) -> int:
    seen = process.with_option(pid_file.OPTION)
    root = await _looked_at(config.vmdir)
    runs_as = _account(config, seen, root)
    host = Host(config.qemu, config.accel, runs_as, shutdown_time=config.shutdown_time)
    host.network = Network(Access(runs_as.uid))
    others = await _other_roots(root, runs_as, seen) if config.elsewhere else []
    sockets = [*_own_sockets(config), *([Path(places.SERVICE_SOCKET)] if config.elsewhere else [])]
    roots = [_Root(path, host, list(dict.fromkeys(sockets))) for path in (config.vmdir, *others)]
    beat = asyncio.create_task(_say_what_is_waited_for(roots))
    try:
        return worst(list(await asyncio.gather(*(root.down() for root in roots))))
    finally:
        beat.cancel()


def _own_sockets(config: Config) -> list[Path]:
    """Return the socket of the settings, unless somebody else may have made it."""
    if config.own_socket:
        try:
            os.close(places.opened(str(config.socket.parent)))
        except (VmessError, OSError):
            return []
    return [config.socket]


async def _say_what_is_waited_for(roots: Sequence["_Root"]) -> None:
    """Keep extending the timeout of the service manager, and tell it what the shutdown waits for."""
    while True:
        waits = ", ".join(words for root in roots if (words := root.waits()))
        left = max(root.left() for root in roots)
        systemd.tell(systemd.status(f"waiting for {waits}" if waits else ""), *systemd.extend(left))
        await asyncio.sleep(1.0)


class _Root:
    """The shutdown of the VMs of one VM root."""

    def __init__(self, path: Path, host: Host, sockets: Sequence[Path]) -> None:
        self._path = path
        self._host = host
        self._sockets = sockets
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time()
        self._going: dict[str, tuple[str, float]] = {}
        """The current rung of each VM that is being stopped, and since when."""
        self._statuses = [DONE]

    def left(self) -> float:
        """Return the seconds that the shutdown may still take."""
        return self._end - self._loop.time()

    def waits(self) -> str:
        """Return the VMs that are being stopped: `r1 (power button, 12 s), r2 (SIGTERM, 1 s)`."""
        now = self._loop.time()
        return ", ".join(f"{vm} ({rung}, {now - since:.0f} s)" for vm, (rung, since) in self._going.items())

    async def down(self) -> int:
        """Power all VMs down, here or through the daemon that serves them; return the exit status."""
        patience = self._loop.time() + PATIENCE
        while True:
            try:
                if not await blocking.call(_is_there, self._path):  # the supervisor would create it
                    log.info("there is no VM root %s, so nothing to power down", printable(str(self._path)))
                    return DONE
                await self._once()
            except Locked as error:  # the daemon is just starting, or hangs
                if self._loop.time() > patience:
                    return self._failed(error)
            except (VmessError, OSError) as error:
                return self._failed(error)
            else:
                return worst(self._statuses)
            await asyncio.sleep(RETRY)

    def _failed(self, error: Exception) -> int:
        log.error("VMs in %s were not powered down: %s", printable(str(self._path)), printable(str(error)))
        return error.status if isinstance(error, VmessError) else Failed.status

    async def _once(self) -> None:
        """Power all VMs down; raises Locked where a daemon serves them and does not answer."""
        try:
            async with Supervisor(self._path, self._host) as supervisor:
                with contextlib.closing(Fleet(supervisor, self._host)) as all_vms:
                    async for step in all_vms.shutdown(os.getuid()):
                        self._take(vars(step))
        except Locked as error:
            await self._ask(error)

    async def _ask(self, locked: Locked) -> None:
        """Let the daemon that serves the root do it; raises `locked` where none answers."""
        for path in self._sockets:
            heard = False
            with contextlib.suppress(VmessError, OSError, *BAD_REPLIES):
                async with (
                    asyncio.timeout(ANSWER_TIME) as patience,
                    contextlib.aclosing(_replies(path, self._host.shutdown_time)) as steps,
                ):
                    async for step in steps:
                        heard = True
                        self._take(step)
                        patience.reschedule(max(self._end, self._loop.time()) + ANSWER_TIME)
                        if step["step"] == FleetStep.off and step["vm"]:
                            log.info(
                                "%s: %s", printable(str(step["vm"])), printable(str(step["text"] or "off"))
                            )
                return
            self._going.clear()
            if heard:
                break
        raise locked

    def _take(self, step: Step) -> None:
        """Process a step of the shutdown."""
        vm, now = str(step["vm"]), self._loop.time()
        self._end = now + float(step.get("left") or 0.0)
        if step["step"] == FleetStep.stopping:
            rung, since = self._going.get(vm, ("", now))
            self._going[vm] = (str(step["rung"]), since if rung == step["rung"] else now)
            return
        self._going.pop(vm, None)
        if step["step"] == FleetStep.failed:
            log.error("%s was not powered down: %s", printable(vm), printable(str(step["text"])))
        self._statuses.append(FORCED if step["forced"] else int(step["status"]))


async def _replies(path: Path, within: float | None) -> AsyncGenerator[Step, None]:
    """Ask the daemon at a socket to power its VMs down, and yield each step.

    `within` is the time for all of them, in seconds; None leaves it to the settings of the daemon.

    Raises:
        VmessError, OSError: the daemon cannot be reached.
        BAD_REPLIES: a reply is malformed.
    """
    connected = await blocking.call(_connected, path)
    reader, writer = await asyncio.open_unix_connection(sock=connected, limit=REPLY_LIMIT)
    try:
        # The host goes down, also if a cluster decides. An older daemon knows neither this call nor owners.
        acting = {"method": f"{INTERFACE}.ActFor", "parameters": {"owner": PACEMAKER}}
        writer.write(json.dumps(acting).encode() + b"\0")
        await reader.readuntil(b"\0")
        parameters = {} if within is None else {"within": within}
        call = {"method": f"{INTERFACE}.Shutdown", "parameters": parameters, "more": True}
        writer.write(json.dumps(call).encode() + b"\0")
        while True:
            reply = json.loads((await reader.readuntil(b"\0"))[:-1])
            yield reply["parameters"]["progress"]
            if not reply.get("continues"):
                return
    finally:
        writer.close()


def _connected(path: Path) -> socket.socket:
    """Connect through a descriptor of the directory, because unix(7) limits a path to 107 bytes.

    Waits for a place in the daemon's queue. A non-blocking connect(2) fails with EAGAIN at once where the queue
    is full, and so does one with a timeout of Python; SO_SNDTIMEO (socket(7)) makes a blocking one time out.
    """
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", QUEUE_TIME, 0))
        connected.connect(f"/proc/self/fd/{directory}/{path.name}")
        connected.setblocking(False)
    except BaseException:
        connected.close()
        raise
    finally:
        os.close(directory)
    return connected


def _is_there(path: Path) -> bool:
    """Tell whether there is a VM root; raises OSError if this cannot be determined."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


async def _looked_at(path: Path) -> os.stat_result | None:
    """Return the status of a path; None where there is nothing, or the file system does not answer."""

    def look() -> os.stat_result | None:
        with contextlib.suppress(OSError, ValueError):
            return path.stat()
        return None

    try:
        return await blocking.Lane(f"VM root {printable(str(path))}").aside(look, blocking.LOOK)
    except VmessError as error:
        log.warning("%s", error.message)
        return None


def _account(config: Config, seen: Sequence[process.OptionUse], root: os.stat_result | None) -> Account:
    """Return the user QEMU runs as: that of the settings, else the service's, else that of running QEMUs."""
    if config.qemu_user is None:
        return credentials.own()
    usual = next(option.service for option in OPTIONS if option.key == "qemu-user")
    for name in dict.fromkeys((config.qemu_user, usual)):
        try:
            return credentials.lookup(name)
        except InvalidValue as error:
            log.warning("%s; this is ignored", error.message)
    # There is no such user name; but the group of the root is QEMU's, since images are shared through it.
    for one in seen:
        in_group = root is not None and one.gid == root.st_gid
        if one.uid and in_group and Path(one.value).is_relative_to(config.vmdir):
            return Account(str(one.uid), one.uid, one.gid)
    return credentials.own()


async def _other_roots(
    known: os.stat_result | None, runs_as: Account, seen: Sequence[process.OptionUse]
) -> list[Path]:
    """Return other VM roots with VMs of the user QEMU runs as: the setting may have changed since their start.

    The command line of a QEMU is trusted where it names a root that belongs to us or to the superuser.
    """
    places = [Path(one.value) for one in seen if one.uid == runs_as.uid]
    homes = [
        place.parent for place in places if place.name == vmdir.PID_FILE and names.is_full(place.parent.name)
    ]
    roots = list(dict.fromkeys(home.parent for home in homes if home.is_absolute()))
    met = {(known.st_dev, known.st_ino)} if known is not None else set()
    found: list[Path] = []
    for root, status in zip(roots, await asyncio.gather(*map(_looked_at, roots)), strict=True):
        if status is None or status.st_uid not in (os.geteuid(), 0) or (status.st_dev, status.st_ino) in met:
            continue
        log.warning("VMs also run in %s and are powered down as well", printable(str(root)))
        met.add((status.st_dev, status.st_ino))
        found.append(root)
    return found
