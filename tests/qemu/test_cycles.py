"""Many starts and stops through one daemon: nothing is left behind, nothing grows."""

import asyncio
import functools
import os
import time
from pathlib import Path

import pytest
from daemons import UNIT, Daemon, end_processes_of, own, processes_of, wait_for

from vmessctl.client import Client
from vmessd.config import QEMU, find_qemu
from vmessd.core.lifecycle import State
from vmessd.supervisor.registry import Supervisor
from vmessd.vm.host import Host

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

WARM_UP = 20
TASK_CYCLES = 30


VM = own("c")


def follow(client: Client, method: str, **parameters: object) -> dict[str, object]:
    """Make a call that streams its progress, and return the last of it."""
    client.send(method, {"vm": VM, **parameters}, more=True)
    reply, more = client.receive()
    while more:
        reply, more = client.receive()
    progress: dict[str, object] = reply["progress"]
    return progress


def rss(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def children(pid: int) -> list[str]:
    """The children of a process, zombies among them."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            stat = Path("/proc", str(int(entry)), "stat").read_text()
        except (OSError, ValueError):
            continue
        if stat.rpartition(")")[2].split()[1] == str(pid):
            found.append(stat)
    return found


def is_long(log: Path, size: int) -> bool:
    return log.exists() and log.stat().st_size >= size


def cycle(daemon: Daemon, client: Client) -> None:
    """Start the VM, wait until its guest is up, and power it down."""
    log = daemon.root / VM / "serial.log"
    before = log.stat().st_size if log.exists() else 0
    assert follow(client, "Start")["done"]
    wait_for(lambda: is_long(log, before + 1), what="the guest")
    assert follow(client, "Stop", force=False)["text"] == "powered down as asked"


def test_c31_two_hundred_cycles_leave_nothing(daemon: Daemon, *, is_long: bool) -> None:
    cycles = 200 if is_long else 50
    daemon.make(VM)
    client = Client([str(daemon.socket)])
    for _ in range(WARM_UP):
        cycle(daemon, client)
    descriptors, memory = daemon.descriptors(), rss(daemon.pid)
    begun = time.monotonic()
    for _ in range(cycles - WARM_UP):
        cycle(daemon, client)
    seconds = time.monotonic() - begun
    growth = rss(daemon.pid) - memory
    print(f"{(cycles - WARM_UP) / seconds:.1f} cycles/s, {growth // 1024} KiB more in use")
    assert abs(daemon.descriptors() - descriptors) <= 5
    assert growth < 4 * 2**20
    assert children(daemon.pid) == []
    assert not processes_of(daemon.root)
    assert (daemon.root / VM / "serial.log").read_bytes() == b"R" * cycles
    client.close()
    starts = [line for line in daemon.log.read_text().splitlines() if "started, pid" in line]
    assert len(starts) == cycles
    assert sorted(os.listdir(daemon.root / VM)) == ["EXARGS", "RAM", "exit.json", "qemu.log", "serial.log"]


def test_c31_a_connection_for_each_call_leaves_nothing(daemon: Daemon) -> None:
    for _ in range(50):
        Client([str(daemon.socket)]).close()
    before = daemon.descriptors()
    for _ in range(500):
        client = Client([str(daemon.socket)])
        assert client.call("List")["vms"] == []
        client.close()
    wait_for(lambda: abs(daemon.descriptors() - before) <= 5, what="the descriptors' return")


async def few_tasks(most: int) -> None:
    """Wait until there are at most so many tasks: what was cancelled or is short needs some turns to end."""
    async with asyncio.timeout(5 * UNIT):
        while len(asyncio.all_tasks()) > most:  # noqa: ASYNC110 -- nothing tells of the end of a task
            await asyncio.sleep(0.01)


async def test_c31_no_task_is_left(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)  # for its directories only; the supervisor is in this process
    daemon.make(VM)
    log = daemon.root / VM / "serial.log"
    before, older = asyncio.all_tasks(), len(children(os.getpid()))
    try:
        async with Supervisor(daemon.root, Host(find_qemu(QEMU), "tcg")) as supervisor:
            idle = set[asyncio.Task[object]]()
            descriptors = 0
            for turn in range(TASK_CYCLES):
                machine = await supervisor.machine(VM)
                assert [step.done async for step in machine.start(None)][-1]
                await asyncio.to_thread(wait_for, functools.partial(is_long, log, turn + 1), what="the guest")
                assert [step async for step in machine.stop(None, force=turn % 2 == 1)][-1].done
                assert machine.state is State.stopped
                await few_tasks(len(before) + 2)  # the machine's own, and the upkeep
                if turn == 2:
                    idle, descriptors = asyncio.all_tasks(), len(os.listdir("/proc/self/fd"))
            assert asyncio.all_tasks() == idle
            assert len(idle - before) == 2
            assert abs(len(os.listdir("/proc/self/fd")) - descriptors) <= 2
        assert asyncio.all_tasks() == before
        assert len(children(os.getpid())) == older
    finally:
        await asyncio.to_thread(end_processes_of, daemon.root)
