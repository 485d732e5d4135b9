"""The daemon keeps the logs of its VMs short: a look every second, at every start and at every end."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from daemons import UNIT, Daemon, until, wait_for
from labs import Lab, reach, start, stop
from varlink_wire import Wire, nothing_unforeseen

from vmessd.core.errors import Failed
from vmessd.storage import log_rotation, vmdir
from vmessd.storage.new_directory import make
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor import housekeeping
from vmessd.vm.machine import Machine

pytestmark = pytest.mark.qemu

K = 1024
CAP = 256 * K
LOUD = b"x" * 63 + b"\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A low cap, looked after often."""
    monkeypatch.setattr(log_rotation, "CAP", CAP)
    monkeypatch.setattr(housekeeping, "EVERY", 0.02)


def append(log: Path, data: bytes) -> None:
    with log.open("ab") as file:
        file.write(data)


async def some_looks(monkeypatch: pytest.MonkeyPatch, count: int = 5) -> None:
    """Return when the upkeep has looked so many times more."""
    looks, look = 0, housekeeping._with_long_logs

    def counting(machines: list[Machine]) -> list[Machine]:
        nonlocal looks
        looks += 1
        return look(machines)

    with monkeypatch.context() as patch:
        patch.setattr(housekeeping, "_with_long_logs", counting)
        await until(lambda: looks >= count)


def short(log: Path) -> bool:
    return log.stat().st_size <= log_rotation.CAP


def older(log: Path) -> Path:
    return log.with_name(f"{log.name}.1")


@pytest.mark.usefixtures("quick")
async def test_logs_of_a_running_vm_are_kept_short(lab: Lab) -> None:
    directory = lab.make_fake("newvm0", "good")
    async with lab.supervisor() as supervisor:
        await start(supervisor, "newvm")
        launched = (await supervisor.machine("newvm")).live().launched
        for name in vmdir.LOGS:
            append(directory / name, LOUD * 5000)
            await until(lambda: short(directory / name))  # noqa: B023 -- awaited in this turn
            assert older(directory / name).stat().st_size <= CAP
        await until(lambda: launched.log_start == 0)
        append(directory / "qemu.log", b"last words\n")
        await stop(supervisor, "newvm", force=True)
        record = (await supervisor.machine("newvm")).last_exit
        assert record is not None
        assert record.log[-1] == "last words"


@pytest.mark.usefixtures("quick")
async def test_the_beginning_of_this_run_follows_a_cut_in_an_earlier_run_s_words(lab: Lab) -> None:
    directory = lab.make_fake("newvm0", "good")
    log = directory / "qemu.log"
    log.write_bytes(b"earlier run\n" * ((CAP - 10 * K) // 12))
    async with lab.supervisor() as supervisor:
        await start(supervisor, "newvm")
        launched = (await supervisor.machine("newvm")).live().launched
        before = launched.log_start
        append(log, b"mine\n" * (11 * K // 5))
        await until(lambda: launched.log_start < before)
        data = log.read_bytes()
        if data:  # all of it is gone where the file system cannot take off the front alone
            assert data[: launched.log_start].endswith(b"\n")
            assert b"earlier" not in data[launched.log_start :]
            assert b"earlier" in data[: launched.log_start]
        else:
            assert launched.log_start == 0
        await stop(supervisor, "newvm", force=True)


@pytest.mark.usefixtures("quick")
async def test_a_stopped_vm_s_logs_are_left_until_it_starts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = lab.make_fake("newvm0", "good")
    lab.make_fake("other0", "good")
    logs = [directory / name for name in vmdir.LOGS]
    for log in logs:
        log.write_bytes(LOUD * 5000)
    async with lab.supervisor() as supervisor:
        await start(supervisor, "other")
        await some_looks(monkeypatch)
        assert not any(short(log) for log in logs)
        monkeypatch.setattr(housekeeping, "EVERY", 3600)
        await start(supervisor, "newvm")
        assert all(short(log) and older(log).exists() for log in logs)
        for vm in ("newvm", "other"):
            await stop(supervisor, vm, force=True)


@pytest.mark.parametrize("watched", [True, False])
async def test_what_was_written_last_of_all_is_cut_as_well(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, *, watched: bool
) -> None:
    monkeypatch.setattr(log_rotation, "CAP", CAP)
    monkeypatch.setattr(housekeeping, "EVERY", 3600)
    directory = lab.make_fake("newvm0", "good")
    logs = [directory / name for name in vmdir.LOGS]

    def shout() -> None:
        for log in logs:
            append(log, LOUD * 5000)
        append(logs[0], b"last words\n")

    async with lab.supervisor() as supervisor:
        await start(supervisor, "newvm")
        machine = await supervisor.machine("newvm")
        pid = machine.live().pid
        if watched:
            shout()
            os.kill(pid, signal.SIGKILL)
            await reach(machine, "stopped")
    if not watched:
        shout()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # noqa: ASYNC222 -- nothing else goes on
        async with lab.supervisor() as supervisor:
            machine = await supervisor.machine("newvm")
            await reach(machine, "stopped")
    assert machine.last_exit is not None
    assert machine.last_exit.log[-1] == "last words"
    assert all(short(log) and older(log).exists() for log in logs)


@pytest.mark.usefixtures("quick")
async def test_what_does_not_work_is_said_once_for_each_log(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = lab.make_fake("newvm0", "good")
    async with lab.supervisor() as supervisor:
        for _ in range(2):  # and once again in the next run
            caplog.clear()
            await start(supervisor, "newvm")
            for name in vmdir.LOGS:
                append(directory / name, LOUD * 5000)
                (directory / f"other-{name}").hardlink_to(directory / name)
            await until(lambda: len(caplog.records) >= 2)
            await some_looks(monkeypatch)
            said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            refusal = "is a hard link to another file; it must be a plain file of its own"
            assert said == [f"newvm0: {directory}/{name} {refusal}" for name in vmdir.LOGS]
            for name in vmdir.LOGS:
                (directory / f"other-{name}").unlink()
            await until(lambda: all(short(directory / name) for name in vmdir.LOGS))
            await stop(supervisor, "newvm", force=True)
            await asyncio.sleep(5 * housekeeping.EVERY)  # looks at nothing


@pytest.mark.usefixtures("quick")
async def test_one_slow_disk_does_not_delay_another_vm(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = {vm: lab.make_fake(vm, "good") for vm in ("slow0", "swift0")}
    entered, release, calls = threading.Event(), threading.Event(), 0
    real = VMDirectory.shorten_log

    def slow(self: VMDirectory, name: str, complain: Callable[[str], None]) -> int:
        nonlocal calls
        if self.vm == "slow0":
            calls += 1
            entered.set()
            release.wait(20 * UNIT)
        return real(self, name, complain)

    async with lab.supervisor() as supervisor:
        for vm in directories:
            await start(supervisor, vm)
        try:
            with monkeypatch.context() as patch:
                patch.setattr(VMDirectory, "shorten_log", slow)
                append(directories["slow0"] / "qemu.log", LOUD * 5000)
                await until(entered.is_set)
                append(directories["swift0"] / "qemu.log", LOUD * 5000)
                await until(lambda: short(directories["swift0"] / "qemu.log"))
                await some_looks(monkeypatch)
                assert calls == 1, "not asked for again while it is being done"
                assert (await supervisor.machine("slow")).status().state.value == "running"
        finally:
            release.set()
        await until(lambda: short(directories["slow0"] / "qemu.log"))
        for vm in directories:
            await stop(supervisor, vm, force=True)


@pytest.mark.usefixtures("quick")
async def test_a_failure_nobody_foresaw_is_said_once_and_ends_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> int:
        raise ValueError("nobody foresaw this")

    def no_thread(*_: object) -> list[Machine]:
        raise Failed("no thread can be started for this: a limit of processes is reached")

    log = lab.make_fake("newvm0", "good") / "qemu.log"
    async with lab.supervisor() as supervisor:
        await start(supervisor, "newvm")
        with monkeypatch.context() as patch:
            patch.setattr(VMDirectory, "shorten_log", broken)
            append(log, LOUD * 5000)
            await until(lambda: "nobody foresaw this" in caplog.text)
            await some_looks(monkeypatch)
            patch.setattr(housekeeping, "_with_long_logs", no_thread)
            await asyncio.sleep(5 * housekeeping.EVERY)
            assert not short(log)
        await until(lambda: short(log))
        await stop(supervisor, "newvm", force=True)
    assert caplog.text.count("unexpected failure") == 1


@pytest.mark.usefixtures("quick")
async def test_a_directory_that_went_away_under_its_qemu_is_no_news(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = lab.make_fake("newvm0", "good")
    async with lab.supervisor() as supervisor:
        await start(supervisor, "newvm")
        away = directory.rename(lab.root / "away")
        with monkeypatch.context() as patch:
            patch.setattr(VMDirectory, "has_long_log", lambda _: True)
            await some_looks(monkeypatch)
        assert caplog.records == []
        away.rename(directory)
        await stop(supervisor, "newvm", force=True)


@pytest.mark.usefixtures("quick")
async def test_the_upkeep_ends_with_the_supervisor_also_in_mid_cut(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = lab.make_fake("newvm0", "good")
    entered = threading.Event()
    real = VMDirectory.shorten_log

    def slow(self: VMDirectory, name: str, complain: Callable[[str], None]) -> int:
        entered.set()
        time.sleep(0.3)
        return real(self, name, complain)

    before = asyncio.all_tasks()
    async with lab.supervisor() as supervisor:
        await start(supervisor, "newvm")
        monkeypatch.setattr(VMDirectory, "shorten_log", slow)
        append(directory / "qemu.log", LOUD * 5000)
        await until(entered.is_set)
    assert asyncio.all_tasks() == before
    assert short(directory / "qemu.log"), "what was begun was ended"


async def test_a_hundred_vms_cost_next_to_nothing(tmp_path: Path) -> None:
    class Running:
        def __init__(self, vm: str) -> None:
            self.home = VMDirectory(tmp_path, vm)
            make(self.home)
            for name in vmdir.LOGS:
                (self.home.path / name).write_bytes(LOUD)

    machines = [Running(f"vm{letter}{digit}") for letter in "abcdefghij" for digit in range(10)]
    began = time.thread_time()
    for _ in range(20):
        assert housekeeping._with_long_logs(machines) == []  # type: ignore[arg-type]
    cost = (time.thread_time() - began) / 20
    print(f"{cost * 1000:.2f} ms")
    assert cost < 0.01


# Real floods

FLOOD_CAP = 512 * K
LOW_CAP = (
    "import sys; from vmessd import __main__; from vmessd.storage import log_rotation; "
    f"log_rotation.CAP = {FLOOD_CAP}; sys.exit(__main__.main())"
)
CHATTER = bytes(range(0x20, 0x7F)) + b"\n"  # what the guest says again and again


@pytest.fixture
def low_daemon(tmp_path: Path) -> Iterator[Daemon]:
    instance = Daemon(tmp_path)
    instance.program = ("-c", LOW_CAP)
    try:
        yield instance.start()
    finally:
        instance.close()


class Watch:
    """Watches a log, as often as can be, in a thread: the largest sizes, and how often it was shortened."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.largest = self.largest_older = self.cuts = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        inode = None
        while not self._over.wait(0.01):
            with contextlib.suppress(FileNotFoundError):
                self.largest = max(self.largest, self.log.stat().st_size)
                found = older(self.log).stat()
                self.largest_older = max(self.largest_older, found.st_size)
                self.cuts += found.st_ino != inode
                inode = found.st_ino

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def slowest_status(socket: Path, over: Callable[[], bool], seconds: float = 30) -> float:
    """Ask for statuses, some fifty in a second, until it is over; return the longest wait for one."""
    slowest, deadline = 0.0, time.monotonic() + seconds
    with Wire(socket) as wire:
        while not over():
            began = time.monotonic()
            assert began < deadline, f"not over in {seconds} s"
            wire.call("Status", {"vm": "newvm0"})
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.02)
    return slowest


@pytest.mark.alone
def test_c32_a_serial_flood_stays_under_its_cap_also_over_a_death_of_the_daemon(low_daemon: Daemon) -> None:
    daemon = low_daemon
    directory = daemon.make("newvm0", "chatter", STOP="1")
    log = directory / "serial.log"
    daemon.done("newvm", "start")
    wait_for(lambda: log.stat().st_size > 1000, what="the flood")
    begun, size = time.monotonic(), log.stat().st_size
    wait_for(lambda: time.monotonic() > begun + 0.5, what="half a second")
    rate = (log.stat().st_size - size) / (time.monotonic() - begun)
    with Watch(log) as watch:
        slowest = slowest_status(daemon.socket, lambda: watch.cuts >= 2)
    print(f"{rate / 1e6:.2f} MB/s, at most {watch.largest} bytes, status {slowest * 1e3:.0f} ms")
    # It is looked at once a second, and what is written until then is not stopped.
    assert watch.largest < FLOOD_CAP + 3 * rate
    assert watch.largest_older <= FLOOD_CAP
    assert slowest < 0.1

    pid = daemon.status("newvm")["pid"]
    daemon.stop(signal.SIGKILL)
    wait_for(lambda: log.stat().st_size > 2 * FLOOD_CAP, 30, what="a log without a daemon")
    daemon.start()
    wait_for(lambda: short_of(log), 5, what="the cap")
    with Watch(log) as watch:
        slowest = slowest_status(daemon.socket, lambda: watch.cuts >= 3)
    assert watch.largest < FLOOD_CAP + 3 * rate
    assert watch.largest_older <= FLOOD_CAP
    assert slowest < 0.1
    assert daemon.status("newvm")["pid"] == pid

    daemon.done("newvm", "stop", "force")
    live, before = log.read_bytes(), older(log).read_bytes()
    assert max(len(live), len(before)) <= FLOOD_CAP
    if len(live) >= log_rotation.GRAIN:  # the file system can take off the front alone: no gap at the seam
        kept = before + live
        assert kept in CHATTER * (len(kept) // len(CHATTER) + 2)
    left = set(os.listdir(directory)) - {"EXARGS", "RAM", "STOP", "exit.json"}
    assert left == {"qemu.log", "serial.log", "serial.log.1"}
    nothing_unforeseen(daemon)


def short_of(log: Path) -> bool:
    return log.stat().st_size <= FLOOD_CAP


def test_a_cap_that_fails_is_no_reason_not_to_start(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise Failed("serial.log cannot be shortened: too many open files")

    monkeypatch.setattr(log_rotation, "shorten", broken)
    lab.make_fake("newvm0", "good")

    async def scenario() -> None:
        async with lab.supervisor() as supervisor:
            assert isinstance(await start(supervisor, "newvm"), list)
            await stop(supervisor, "newvm", force=True)

    asyncio.run(scenario())
