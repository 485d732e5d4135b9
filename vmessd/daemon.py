"""The composition root: puts everything together, runs until a signal, and takes it apart."""

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Callable

from vmessd import __version__, memory
from vmessd.api.server import Control
from vmessd.config import OPTIONS, Config, find_qemu
from vmessd.core import places, systemd
from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import State
from vmessd.core.models.daemon import Residence
from vmessd.network.links import Network
from vmessd.network.policy import Access
from vmessd.qemu import credentials, process
from vmessd.qemu.credentials import Account
from vmessd.qemu.process import Capability
from vmessd.storage import blocking
from vmessd.supervisor import fleet
from vmessd.supervisor.fleet import Fleet
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host

log = logging.getLogger(__name__)

TURN = 0.001
"""Switch interval of threads, in seconds; Python's default of 5 ms adds up to stalls of the event loop."""
STATUS_EVERY = 2.0
"""Seconds between updates of the service manager's STATUS."""
UNUSED_EVERY = 30.0
"""Seconds between looks whether a daemon that ends by itself is unused."""


def _host(config: Config, runs_as: Account, log_path: str | None) -> Host:
    access = Access(runs_as.uid, config.allow_links, config.allow_bridges)
    network = Network(access, may_make_taps=Capability.NET_ADMIN in process.capabilities()[0])
    qemu = find_qemu(config.qemu)
    residence = Residence(str(config.socket), log_path, config.idle_time, config.kind(systemd.is_heard()))
    return Host(
        *(qemu, config.accel, runs_as, config.exargs, config.shutdown_time, config.allow_shares),
        allow_nat=config.allow_nat,
        allow_peers=config.allow_peers,
        network=network,
        residence=residence,
        vhost=config.vhost,
    )


def prepare_socket_directory(config: Config) -> None:
    """Create the directory of this user's own socket, or verify it; raises BadFile."""
    if config.own_socket:
        os.close(places.opened(str(config.socket.parent), create=True))


async def serve(
    config: Config,
    runs_as: Account,
    reread: Callable[[], Config],
    log_path: str | None,
    ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, or until the daemon is unused; the VMs keep running.

    `ready` is called once it serves.

    Raises:
        VmessError: the daemon cannot serve with these settings.
    """
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    blocking.POOL.begin()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_end.set)
    host = _host(config, runs_as, log_path)
    reload = Reload(config, host, reread)
    # On a terminal, SIGHUP means that the terminal is gone.
    loop.add_signal_handler(signal.SIGHUP, asked_to_end.set if sys.stderr.isatty() else reload.now)
    async with Supervisor(config.vmdir, host) as supervisor:
        with contextlib.closing(Fleet(supervisor, host)) as all_vms:
            async with Control(config.socket, supervisor, all_vms, own=config.own_socket) as control:
                log.info("vmessd %s serves %s on %s", __version__, config.vmdir, config.socket)
                systemd.tell("READY=1", systemd.status(fleet.summary(supervisor.known())))
                ready()
                chores = [asyncio.create_task(_beat(supervisor))]
                if config.idle_time is not None:
                    unused = _end_unused(config.idle_time, supervisor, control, asked_to_end)
                    chores.append(asyncio.create_task(unused))
                await asked_to_end.wait()
                for chore in chores:
                    chore.cancel()
                systemd.tell("STOPPING=1", systemd.status("ending; the VMs keep running"))
                log.info("ending; the VMs keep running")


async def _beat(supervisor: Supervisor) -> None:
    """Feed the watchdog of the service manager, and update its STATUS."""
    period = systemd.watchdog_period(os.environ)
    said = ""
    while systemd.is_heard():
        text = fleet.summary(supervisor.known())
        news = [systemd.status(text)] if text != said else []
        said = text
        if period is not None:
            news.append("WATCHDOG=1")
        if news:
            systemd.tell(*news)
        await asyncio.sleep(min(period or STATUS_EVERY, STATUS_EVERY))


async def _end_unused(limit: float, supervisor: Supervisor, control: Control, end: asyncio.Event) -> None:
    """Set `end` after `limit` seconds without a client and without a VM that runs or will be restarted."""
    loop = asyncio.get_running_loop()
    used = loop.time()
    while True:
        await asyncio.sleep(min(limit / 10, UNUSED_EVERY))
        if control.is_used or any(machine.state is not State.stopped for machine in supervisor.known()):
            used = loop.time()
        elif loop.time() - max(used, control.left_at) >= limit and control.retire():
            log.info("neither a VM nor a client for %g s", limit)
            end.set()
            return


class Reload:
    """Applies changed settings to the running daemon."""

    def __init__(self, config: Config, host: Host, reread: Callable[[], Config]) -> None:
        self._config = config
        self._host = host
        self._reread = reread

    def now(self) -> None:
        """Read the settings again and apply those that need no restart; a mistake in them changes nothing."""
        systemd.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config = self._reread()
        except VmessError as error:
            log.error("the settings are unchanged: %s", error.message)  # noqa: TRY400 -- the line says it all
        else:
            self._take(config)
        systemd.tell("READY=1")

    def _take(self, config: Config) -> None:
        before, after = self._config.in_force(), config.in_force()
        changed = [option for option in OPTIONS if before[option.key] != after[option.key]]
        for option in changed:
            when = "" if option.live else ", from the next start of vmessd"
            log.info("%s is %s%s, was %s", option.key, after[option.key], when, before[option.key])
        if not changed:
            log.info("the settings are unchanged")
        host = self._host
        host.accel, host.exargs, host.shutdown_time = config.accel, config.exargs, config.shutdown_time
        host.allow_shares, host.allow_nat = config.allow_shares, config.allow_nat
        host.allow_peers, host.vhost = config.allow_peers, config.vhost
        host.network.access = dataclasses.replace(
            host.network.access, links=config.allow_links, bridges=config.allow_bridges
        )
        self._config = config


def run(
    config: Config,
    reread: Callable[[], Config],
    log_path: str | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve in a new event loop; raises as :func:`serve`.

    `reread` reads the settings again, `log_path` is the file that standard error goes to, and `ready` is called
    once the daemon serves.
    """
    sys.setswitchinterval(TURN)
    memory.give_back_early()
    os.chdir("/")
    runs_as = credentials.own() if config.qemu_user is None else credentials.find(config.qemu_user)
    process.restrict_inheritance(runs_as.handed_on)
    prepare_socket_directory(config)
    asyncio.run(serve(config, runs_as, reread, log_path, ready))
