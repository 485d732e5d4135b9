"""Machines of this process with the fake QEMU: started, stopped, and asked meanwhile."""

import asyncio
import collections
import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import FAKE, UNIT, Daemon, end_processes_of, processes_of, wait_for
from varlink_wire import Wire

from vmessd.core.errors import VmessError
from vmessd.core.models.progress import StartProgress, StopProgress
from vmessd.qemu.session import Timing
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

QUICK = Timing(
    answer=2.0, probe_every=0.2, probe_answer=1.0, retry=0.05, retry_most=0.5, ending=0.5, last_words=10.0
)


Started = list[StartProgress] | VmessError


class Lab(Daemon):
    """A VM root for a supervisor in the test's own event loop."""

    def supervisor(self, timing: Timing = QUICK) -> Supervisor:
        return Supervisor(self.root, Host(qemu=str(FAKE), accel="tcg"), timing)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    instance = Lab(tmp_path)
    instance.root.mkdir()
    try:
        yield instance
    finally:
        pids = processes_of(instance.root)
        end_processes_of(instance.root)
        for pid in pids:  # they are children of this process
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


async def start(supervisor: Supervisor, vm: str) -> Started:
    """Start a VM; return what is told about it, or the error it ends with."""
    try:
        return [progress async for progress in (await supervisor.machine(vm)).start(1000)]
    except VmessError as error:
        return error


async def stop(supervisor: Supervisor, vm: str, *, force: bool = False) -> tuple[list[StopProgress], float]:
    """Stop a VM; return what is told about it, and how long it took."""
    began = time.monotonic()
    machine = await supervisor.machine(vm)
    return [progress async for progress in machine.stop(1001, force=force)], time.monotonic() - began


async def reach(machine: Machine, state: str, seconds: float = 10.0) -> Any:
    """Wait until a machine is in a state, and return its status then; `seconds` are of UNIT."""
    deadline = time.monotonic() + seconds * UNIT
    while (status := machine.status()).state.value != state:
        assert time.monotonic() < deadline, f"{machine.vm} is {status.state.value}, not {state}"
        await asyncio.sleep(0.01)
    return status


@contextlib.contextmanager
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[collections.Counter[str]]:
    """Count attempts to connect to a monitor, by VM."""
    count: collections.Counter[str] = collections.Counter()
    connect = VMDirectory.connect

    def counting(self: VMDirectory, name: str) -> socket.socket:
        count[self.vm] += 1
        return connect(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(VMDirectory, "connect", counting)
        yield count


def slowest_answer(
    daemon: Daemon, vms: list[str], over: Callable[[dict[str, Any]], bool], seconds: float
) -> float:
    """Ask for statuses until one of the first VM's says it is over; return the longest wait for an answer.

    The time for which other processes had the processors is not counted.
    """
    assert daemon.process is not None
    threads = (
        f"/proc/{daemon.process.pid}/schedstat",
        f"/proc/self/task/{threading.get_native_id()}/schedstat",
    )
    slowest, deadline = 0.0, time.monotonic() + seconds
    with Wire(daemon.socket) as wire:
        for vm in itertools.cycle(vms):
            queued, began = _queued(threads), time.monotonic()
            assert began < deadline, f"not over in {seconds} s"
            wire.begin("Status", {"vm": vm})
            reply = wire.receive(deadline - began)
            assert reply is not None, "the daemon hung up"
            status = reply["parameters"]["status"]
            slowest = max(slowest, time.monotonic() - began - (_queued(threads) - queued))
            if vm == vms[0] and over(status):
                break
            with contextlib.suppress(AssertionError):
                wait_for(lambda: False, 0.02)  # ask fifty times a second
    return slowest


def _queued(threads: Iterable[str]) -> float:
    """Return the seconds for which threads could run, and had no processor (proc(5), schedstat)."""
    return sum(int(Path(thread).read_text().split()[1]) for thread in threads) / 1e9
