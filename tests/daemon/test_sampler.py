"""How busy VMs are: what is told is compared with what the kernel and the guests' own habits say."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import UNIT, Daemon, WiredDaemon, own, wait_for
from guests import FILLED

from vmessctl.client import Client
from vmessd.core.errors import Failed, InvalidValue
from vmessd.core.lifecycle import State
from vmessd.core.models.vms import VMStatus
from vmessd.network.links import Network
from vmessd.network.policy import Access
from vmessd.qemu import usage
from vmessd.qemu.usage import Flow, Usage
from vmessd.supervisor import sampler
from vmessd.supervisor.sampler import FIRST, Gauges, Look, Sampler
from vmessd.vm.machine import Machine

A, B, C, D = (own(letter) for letter in "abcd")
TICK = os.sysconf("SC_CLK_TCK")
FRAMES_BYTES = 20 * 60  # what the guest of `netguests` sends in a second

Sample = dict[str, Any]


# From counters to rates


def test_a_load_is_processors_kept_busy() -> None:
    before = Usage(10.0, 5.0, 1, 1)
    assert usage.load(before, Usage(12.0, 8.0, 1, 1)) == 1.5
    assert usage.load(before, Usage(12.0, 5.0, 1, 1)) == 0.0
    assert usage.load(before, Usage(12.0, 4.0, 1, 1)) == 0.0  # never less
    for one, other in ((None, before), (before, None), (before, before)):
        assert usage.load(one, other) is None


def test_a_rate_is_over_all_that_was_there_both_times() -> None:
    before = Flow(10.0, {"hda": (100, 0), "hdb": (0, 50), "gone": (9, 9)})
    after = Flow(12.0, {"hda": (300, 10), "hdb": (20, 50), "new": (10**9, 10**9)})
    assert usage.rates(before, after) == (110.0, 5.0)


def test_a_counter_that_went_back_counts_as_nothing() -> None:
    assert usage.rates(Flow(1.0, {"a": (100, 5)}), Flow(2.0, {"a": (0, 7)})) == (0.0, 2.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, None),
        (None, Flow(1.0, {"a": (1, 1)})),
        (Flow(1.0, {"a": (1, 1)}), None),
        (Flow(1.0, {"a": (1, 1)}), Flow(1.0, {"a": (1, 1)})),  # the same answer, still
        (Flow(1.0, {}), Flow(2.0, {})),
        (Flow(1.0, {"a": (1, 1)}), Flow(2.0, {"b": (1, 1)})),
    ],
)
def test_no_rate_is_told_where_there_is_none(before: Flow | None, after: Flow | None) -> None:
    assert usage.rates(before, after) == (None, None)


def test_a_process_that_has_ended_has_no_usage() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    assert usage.usage(pid) is None
    mine = usage.usage(os.getpid())
    assert mine is not None
    assert mine.rss > 1 << 20
    assert mine.threads >= 1
    assert mine.at == pytest.approx(time.monotonic(), abs=1)


def status(vm: str, pid: int | None) -> VMStatus:
    return VMStatus(vm, State.running if pid else State.stopped, pid, 1.0 if pid else None, None, None, None)


def test_another_qemu_of_the_same_vm_begins_anew() -> None:
    def look(at: float, pid: int | None) -> Look:
        if pid is None:
            return Look(at, 1e9 + at, {"a0": Gauges(status("a0", None))})
        flow = Flow(at, {"x": (int(at), int(at))})
        return Look(at, 1e9 + at, {"a0": Gauges(status("a0", pid), Usage(at, at, 7, 3), flow, flow)})

    (same,) = sampler.sample(look(10, 1), look(20, 1)).vms
    assert (same.cpu, same.rss, same.read, same.written, same.received, same.sent) == (1, 7, 1, 1, 1, 1)
    (other,) = sampler.sample(look(10, 1), look(20, 2)).vms
    assert (other.cpu, other.rss, other.threads, other.read, other.received) == (None, 7, 3, None, None)
    (off,) = sampler.sample(look(10, 1), look(20, None)).vms
    assert (off.state, off.pid, off.cpu, off.rss, off.read) == (State.stopped, None, None, None, None)
    assert sampler.sample(look(10, 1), look(20, 1)).interval == 10


# When nobody looks


class Counted:
    """A sampler of no VMs, and how often it looked."""

    def __init__(self) -> None:
        self.looks = 0
        self.sampler = Sampler(self.machines, Network(Access(os.geteuid())))

    async def machines(self) -> list[Machine]:
        self.looks += 1
        return []


def others() -> "set[asyncio.Task[Any]]":
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current and not task.done()}


async def test_nothing_runs_when_nobody_looks() -> None:
    counted = Counted()
    before = others()
    watching = counted.sampler.watch(0.2)
    for _ in range(3):
        await anext(watching)
    assert counted.looks == 4  # a rate takes two
    assert others() == before  # also between two samples there is no task but the watcher's
    await watching.aclose()  # type: ignore[attr-defined]
    looks = counted.looks
    await asyncio.sleep(0.5)
    assert (counted.looks, others()) == (looks, before)
    assert counted.sampler._watchers == 0


async def test_looks_at_the_same_moment_are_one() -> None:
    counted = Counted()
    watchings = [counted.sampler.watch(0.2) for _ in range(50)]
    await asyncio.gather(*(anext(watching) for watching in watchings))
    assert counted.looks == 2
    for watching in watchings:
        await watching.aclose()  # type: ignore[attr-defined]


async def test_a_watcher_that_does_not_read_costs_nothing() -> None:
    counted = Counted()
    watching = counted.sampler.watch(0.2)
    await anext(watching)
    looks = counted.looks
    await asyncio.sleep(0.7)
    assert counted.looks == looks
    await watching.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("interval", [0.0, 0.19, -1.0, 3600.1, float("inf"), float("nan")])
async def test_a_pace_out_of_bounds_is_refused(interval: float) -> None:
    counted = Counted()
    with pytest.raises(InvalidValue, match=r"is not a number of seconds from 0\.2 to 3600"):
        await anext(counted.sampler.watch(interval))
    assert counted.looks == 0


async def test_watchers_are_told_when_the_daemon_ends() -> None:
    counted = Counted()
    watching = counted.sampler.watch(3600.0)
    await anext(watching)
    waiting = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    await counted.sampler.close()
    with pytest.raises(Failed, match="vmessd is ending"):
        await asyncio.wait_for(waiting, 1 * UNIT)


@pytest.mark.alone
async def test_a_pace_is_kept_without_drift() -> None:
    watching = Counted().sampler.watch(0.2)
    await anext(watching)
    began = time.monotonic()
    for number in range(1, 6):
        await anext(watching)
        assert time.monotonic() - began == pytest.approx(0.2 * number, abs=0.15)
        await asyncio.sleep(0.05)
    await watching.aclose()  # type: ignore[attr-defined]


# The numbers


@contextlib.contextmanager
def watched(daemon: Daemon, interval: float = 0.5) -> Iterator[Callable[[], Sample]]:
    """A function that returns the next sample."""
    client = Client([str(daemon.socket)])
    client.send("Top", {"interval": interval}, more=True)

    def following() -> Sample:
        reply, more = client.receive()
        assert more
        sample: Sample = reply["sample"]
        return {**sample, **{vm["name"]: vm for vm in sample["vms"]}}

    try:
        yield following
    finally:
        client.close()


def up(daemon: Daemon, *vms: str) -> None:
    daemon.done(*vms, "start")
    for vm in vms:
        daemon.wait_guest(vm)


def nothing_unforeseen(daemon: Daemon) -> None:
    log = daemon.log.read_text()
    for sign in ("Traceback", "unexpected", "never", "Exception", "rror", "Sending", "attempt", "Warning"):
        assert sign not in log, log


def cpu_seconds(pid: int) -> float:
    """What the kernel says a process has used, by proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


@pytest.mark.alone
def test_a_guest_that_polls_takes_a_processor_and_one_that_sleeps_none(daemon: Daemon) -> None:
    daemon.make(A, "polite")
    daemon.make(B, "idle")
    daemon.make(C, "idle")
    up(daemon, A, B)
    pid = daemon.status(A)["pid"]
    with watched(daemon, 1.0) as following:
        following()
        began, before = time.monotonic(), cpu_seconds(pid)
        sample = following()
        truth = (cpu_seconds(pid) - before) / (time.monotonic() - began)
    assert sample["interval"] == pytest.approx(1.0, abs=0.5)
    assert sample["time"] == pytest.approx(time.time(), abs=2)
    busy, idle, off = sample[A], sample[B], sample[C]
    assert busy["cpu"] == pytest.approx(truth, abs=0.15)
    assert busy["cpu"] > 0.2  # it takes all there is; the tests may not be alone here
    assert idle["cpu"] < 0.1
    assert (busy["state"], busy["pid"]) == ("running", pid)
    assert 0 < busy["uptime"] < 60
    resident = int(re.findall(r"VmRSS:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[0]) * 1024
    assert busy["rss"] == pytest.approx(resident, rel=0.1)
    assert busy["threads"] == len(os.listdir(f"/proc/{pid}/task"))
    # None of them has a drive or a TAP.
    assert {busy[name] for name in ("read", "written", "received", "sent")} == {None}
    assert off["state"] == "stopped"
    assert {off[name] for name in off if name not in ("name", "state")} == {None}


def test_a_guest_that_reads_its_disk_has_a_rate(daemon: Daemon) -> None:
    daemon.make(A, "reader")
    daemon.make(B, "idle")
    for vm in (A, B):
        daemon.done(vm, "hda", "1M")
    up(daemon, A, B)

    def read() -> int:
        info = json.loads(daemon.done(A, "info", "--json"))["info"]
        return int(info["drives"][0]["read"])

    first = read()
    with watched(daemon, 1.0) as following:
        following()
        second, one = read(), following()
        third, sample = read(), following()
        last = read()
    told = sum(part[A]["read"] * part["interval"] for part in (one, sample))
    assert third > second
    assert 0.8 * (third - second) <= told <= 1.2 * (last - first)
    assert sample[A]["written"] == 0
    assert (sample[B]["read"], sample[B]["written"]) == (0, 0)


def test_a_guest_that_writes_has_a_rate_while_it_does(daemon: Daemon) -> None:
    daemon.make(A, "filler")
    daemon.done(A, "hda", "2M")
    told = 0.0
    with watched(daemon, 0.2) as following:
        for _ in range(10):  # a fast host may be done before there was a first look
            daemon.done(A, "start")
            before = None
            while before != 0:  # it writes, and rests for ever
                sample = following()
                before = sample[A]["written"]
                told += (before or 0) * sample["interval"]
            daemon.done(A, "stop", "force")
            assert told <= 1.2 * FILLED
            if told:
                break
    assert told > 0


@pytest.mark.alone
def test_guests_that_exchange_frames_have_rates_as_they_see_them(wired: WiredDaemon) -> None:
    for vm in (A, B, C):
        wired.make(vm, "talker")
    wired.make(D, "idle")
    wired.done(A, B, "ifadd", "1", "br0")
    wired.done(C, "ifadd", "1", "br1")
    wired.done(D, "ifadd", "1", "user")
    up(wired, A, B, C, D)
    with watched(wired, 0.5) as following:
        following()
        sample = following()
    for vm in (A, B):
        assert sample[vm]["sent"] == pytest.approx(FRAMES_BYTES, rel=0.3)
        assert sample[vm]["received"] == pytest.approx(FRAMES_BYTES, rel=0.3)
    alone = sample[C]
    assert alone["sent"] == pytest.approx(FRAMES_BYTES, rel=0.3)
    assert alone["received"] < FRAMES_BYTES / 4
    assert (sample[D]["received"], sample[D]["sent"]) == (None, None)
    with watched(wired, 0.3) as following:  # what it carried before it came back is no jump
        wired.done(B, "connect", "0", "-")
        wait_for(lambda: (following()[A]["received"] or 0) < FRAMES_BYTES / 4, what="silence")
        wired.done(B, "connect", "0", "br0")
        rates = [following()[A]["received"] for _ in range(6)]
    assert 0.5 * FRAMES_BYTES < max(rates) < 2 * FRAMES_BYTES


@contextlib.contextmanager
def hanging(daemon: Daemon) -> Iterator[None]:
    """Two VMs that sleep, the first of which has a QEMU that stands still for a while."""
    for vm in (A, B):
        daemon.make(vm, "idle")
        daemon.done(vm, "hda", "1M")
    up(daemon, A, B)
    pid = daemon.status(A)["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.alone
def test_a_qemu_that_hangs_does_not_delay_the_others(daemon: Daemon) -> None:
    with hanging(daemon), watched(daemon, 0.2) as following:
        following()
        times = [time.monotonic()]
        answered = 0
        for _ in range(10):
            sample = following()
            times.append(time.monotonic())
            answered += sample[B]["read"] == 0
            assert sample[B]["cpu"] is not None
            assert sample[A]["read"] is None
            assert sample[A]["rss"] > 0
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert times[-1] - times[0] < 10 * 0.2 + 0.5
        assert max(gaps) < 0.7
        assert answered > 6  # where the host is busy, one may be late now and then


def test_a_qemu_that_hangs_is_seen_to_and_its_drives_are_read_again_when_it_answers(daemon: Daemon) -> None:
    with hanging(daemon), watched(daemon, 0.2) as following:
        wait_for(lambda: following()[A]["state"] == "unresponsive", 15, "its silence to be seen")
    with watched(daemon, 0.2) as following:
        wait_for(lambda: following()[A]["read"] == 0, 15, "an answer")


def test_a_vm_that_comes_goes_or_is_made_meanwhile_is_told_of(daemon: Daemon) -> None:
    daemon.make(A)
    with watched(daemon, 0.2) as following:
        assert following()[A]["state"] == "stopped"
        daemon.make(B)
        wait_for(lambda: B in following(), what="the new one")
        up(daemon, A)
        wait_for(lambda: following()[A]["cpu"] is not None, what="it running")
        os.kill(daemon.status(A)["pid"], signal.SIGKILL)
        wait_for(lambda: following()[A]["state"] == "stopped", what="its end")
        daemon.done(A, "rm", "--yes")
        wait_for(lambda: A not in following(), what="its removal")


def test_the_first_sample_does_not_wait_for_the_pace(daemon: Daemon) -> None:
    daemon.make(A)
    up(daemon, A)
    began = time.monotonic()
    with watched(daemon, 3600) as following:
        assert following()[A]["cpu"] is not None
    assert FIRST <= time.monotonic() - began < FIRST + 1


def test_the_daemon_reads_nothing_when_nobody_looks(daemon: Daemon) -> None:
    vms = [f"{A[:-1]}{number}" for number in range(5)]
    for vm in vms:
        daemon.make(vm)
    up(daemon, *vms)

    def read() -> int:
        return int(Path(f"/proc/{daemon.pid}/io").read_text().split()[1])

    def quiet() -> bool:
        before = read()
        time.sleep(1.0)
        return read() - before < 100

    wait_for(quiet, 10, "rest")
    with watched(daemon, 0.2) as following:
        following()
        before = read()
        following()
        assert read() - before > 1000
    wait_for(quiet, 10, "rest again")  # at the latest at the next sample it is seen that nobody reads
    nothing_unforeseen(daemon)


def test_the_end_of_the_daemon_ends_the_watching(daemon: Daemon) -> None:
    daemon.make(A)
    up(daemon, A)
    with watched(daemon, 3600) as following, watched(daemon, 0.2) as other:
        following()
        other()
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 3
    nothing_unforeseen(daemon)
