"""The composition root: everything is put together here, runs until a signal, and is taken apart."""

import asyncio
import concurrent.futures
import logging
import os
import signal
import sys

import sdnotify

from vmessd import __version__, process
from vmessd.access import Access
from vmessd.config import Config, find_qemu
from vmessd.control import Control
from vmessd.launch import Host
from vmessd.network import Network
from vmessd.supervisor import Supervisor

log = logging.getLogger(__name__)

THREADS = 64
TURN = 0.001
"""Seconds a thread computes before the event loop gets its turn; Python's own 5 ms add up to a stall."""


async def serve(config: Config) -> None:
    """Serve until SIGTERM or SIGINT; the VMs go on.

    Raises:
        VmessError: the daemon cannot serve with these settings.
    """
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Work on files waits for disks. The default of a few threads would let slow VMs hold up the others.
    loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(THREADS, "files"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_end.set)
    notifier = sdnotify.SystemdNotifier()
    access = Access(os.geteuid(), config.allow_links, config.allow_bridges)
    host = Host(find_qemu(config.qemu), config.accel, network=Network(access))
    async with Supervisor(config.vmdir, host) as supervisor, Control(config.socket, supervisor):
        log.info("vmessd %s serves %s on %s", __version__, config.vmdir, config.socket)
        notifier.notify("READY=1")
        await asked_to_end.wait()
        notifier.notify("STOPPING=1")
        log.info("ending; the VMs go on")


def run(config: Config) -> None:
    """Serve in an event loop of its own; raises as :func:`serve`."""
    sys.setswitchinterval(TURN)
    process.keep_to_ourselves()
    os.chdir("/")
    asyncio.run(serve(config))
