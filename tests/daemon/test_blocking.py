"""Work that blocks: in turn or aside, with deadlines, when it hangs, and when there are no threads for it."""

import asyncio
import contextlib
import functools
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import TESTS, UNIT, Daemon, own, processes_of, until, wait_for

from vmessctl.client import Client
from vmessd.core.errors import Failed, TimedOut
from vmessd.storage import blocking
from vmessd.storage.blocking import Lane, Pool

A, B = own("a"), own("b")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """A pool of the test's own."""
    pool = Pool()
    monkeypatch.setattr(blocking, "POOL", pool)
    return pool


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What work that hangs waits for."""
    event = threading.Event()
    yield event
    event.set()


# A lane


async def test_what_is_in_turn_is_done_in_turn_and_what_is_aside_is_not_held_up(gate: threading.Event) -> None:
    done: list[int] = []
    lane = Lane("it")

    def work() -> None:
        gate.wait(10 * UNIT)
        done.append(1)

    first = lane.begin(work)
    rest = [lane.begin(functools.partial(done.append, number)) for number in range(2, 9)]
    assert await lane.aside(lambda: "aside") == "aside"
    assert done == []
    gate.set()
    await asyncio.gather(first, *rest)
    assert done == list(range(1, 9))


async def test_work_that_hangs_is_told_in_time_and_what_comes_next_at_once(gate: threading.Event) -> None:
    lane = Lane("the files of a0", "a hint")
    late: list[str] = []
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"^the files of a0 did not answer for 0 s; the operation continues$"):
        await lane.do(lambda: gate.wait(10 * UNIT), 0.1)
    with pytest.raises(TimedOut):
        await lane.do(lambda: None)
    with pytest.raises(TimedOut) as refused:
        await lane.aside(lambda: None)
    assert refused.value.hint == "a hint"
    due = lane.see_to(lambda: "due", late=late.append)
    with pytest.raises(TimedOut):
        await due
    assert time.monotonic() - began < 5
    assert late == []
    gate.set()
    assert await Lane("another").do(lambda: "fine") == "fine"
    await until(lambda: late == ["due"])
    assert await lane.do(lambda: "again") == "again"


async def test_what_has_not_begun_in_time_is_not_done_any_more(gate: threading.Event) -> None:
    lane = Lane("it")
    first = lane.begin(lambda: gate.wait(10 * UNIT))
    done: list[int] = []
    with pytest.raises(TimedOut):
        await lane.do(lambda: done.append(1), 0.05)
    gate.set()
    await first
    await lane.do(lambda: None)
    assert done == []


async def test_whoever_finishes_waits_for_work_that_hangs(gate: threading.Event) -> None:
    lane = Lane("it")
    finishing = asyncio.create_task(lane.finish(lambda: gate.wait(10 * UNIT) and "done", 0.05))

    def given_up() -> bool:
        try:
            lane.check()
        except TimedOut:
            return True
        return False

    await until(given_up, 1)
    gate.set()
    assert await finishing == "done"
    lane.check()


async def test_what_is_over_just_when_its_time_is_up_is_handed_over(gate: threading.Event) -> None:
    lane, loop = Lane("it"), asyncio.get_running_loop()
    finishing = asyncio.create_task(lane.finish(lambda: gate.wait(10 * UNIT) and "done", 0.1))
    await asyncio.sleep(0)
    job = lane._current
    assert job is not None
    assert job.timer is not None

    def occupy() -> None:
        """Keep the loop from noting that the work is over, until its time is up as well."""
        gate.set()
        while not job.over:
            time.sleep(0.001)

    loop.call_at(job.timer.when() - 1e-6, occupy)
    assert await finishing == "done"
    lane.check()


async def test_what_hangs_takes_nobodys_place(pool: Pool, gate: threading.Event) -> None:
    lanes = [Lane(str(number)) for number in range(blocking.THREADS)]
    hanging = [lane.begin(lambda: gate.wait(20 * UNIT), 0.2) for lane in lanes]
    began = time.monotonic()
    assert await Lane("another").do(lambda: "fine") == "fine"
    assert time.monotonic() - began < 5
    gate.set()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_what_nobody_put_into_words_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Failed, match=r"^the files of a0: input/output error$"):
        await Lane("the files of a0").do(functools.partial(fail, OSError(5, "Input/output error")))
    with pytest.raises(ValueError, match="nobody foresaw this"):
        await Lane("it").do(functools.partial(fail, ValueError("nobody foresaw this")))


def fail(error: Exception) -> None:
    raise error


async def test_what_was_opened_too_late_is_closed(gate: threading.Event, tmp_path: Path) -> None:
    lane = Lane("it")
    opened = []

    def work() -> object:
        gate.wait(10 * UNIT)
        opened.append((tmp_path / "file").open("w"))
        return opened[0]

    with pytest.raises(TimedOut):
        await lane.do(work, 0.05)
    gate.set()
    with contextlib.suppress(TimedOut):
        await lane.idle(5)
    await until(lambda: bool(opened) and opened[0].closed)


def test_a_process_that_ends_waits_for_no_thread() -> None:
    code = """
import asyncio, time
from vmessd.core.errors import TimedOut
from vmessd.storage.blocking import Lane
async def main():
    try:
        await Lane("it").do(lambda: time.sleep(60), 0.1)
    except TimedOut as error:
        print(error.message)
asyncio.run(main())
"""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=30 * UNIT,
        check=True,
    )
    assert done.stdout == "it did not answer for 0 s; the operation continues\n"
    assert done.stderr == ""
    assert time.monotonic() - began < 20


# No threads


class Scarce:
    """`threading.Thread` where none can be started."""

    def __init__(self, **_: object) -> None:
        pass

    def start(self) -> None:
        raise RuntimeError("can't start new thread")


async def test_without_a_thread_a_call_is_refused_in_a_line_and_what_is_due_waits_for_one(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blocking, "CALM", 0.3)
    lane, done = Lane("it"), []
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", Scarce)
        pool.begin()
        for _ in range(20):
            with pytest.raises(
                Failed, match="no thread can be started for this: a limit of processes is reached"
            ):
                await lane.aside(lambda: None)
        due = lane.see_to(lambda: done.append(1))
        with pytest.raises(Failed, match="no thread"):
            await due
        await asyncio.sleep(0.3)
        with pytest.raises(Failed, match="no thread"):
            await blocking.call(lambda: None)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "no thread can be started: a limit of processes is reached",
        "no thread can be started: a limit of processes is reached (21 times since the last such message)",
    ]
    await lane.idle(5)
    assert done == [1]


async def test_a_thread_there_is_does_what_others_are_not_there_for(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    pool.begin()
    monkeypatch.setattr(threading, "Thread", Scarce)
    hanging = [Lane("it").begin(lambda: gate.wait(10 * UNIT)) for _ in range(blocking.SPARE)]
    served = [asyncio.create_task(Lane("it").do(lambda: "served")) for _ in range(50)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in served)
    gate.set()
    assert await asyncio.gather(*served) == ["served"] * 50
    await asyncio.gather(*hanging)


NOBODY = pwd.getpwnam("nobody")

# vmessd that has itself limited to fewer processes than its user has, and no more.
LIMITED = """
import resource, signal, sys
from vmessd.__main__ import main
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
def limit(number, _frame):
    resource.setrlimit(resource.RLIMIT_NPROC, (1 if number == signal.SIGUSR1 else soft, hard))
    print("limited" if number == signal.SIGUSR1 else "unlimited", file=sys.stderr, flush=True)
signal.signal(signal.SIGUSR1, limit)
signal.signal(signal.SIGUSR2, limit)
raise SystemExit(main())
"""


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of somebody who is not root, whose processes the kernel counts."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody")

    def become() -> None:
        os.setgroups([])
        os.setgid(NOBODY.pw_gid)
        os.setuid(NOBODY.pw_uid)

    ours = [place for place in tmp_path.parents if place.name.startswith(("pytest-", "popen-"))]
    for place in (tmp_path, *ours):
        place.chmod(place.stat().st_mode | 0o055)
    os.chown(tmp_path, NOBODY.pw_uid, NOBODY.pw_gid)
    with contextlib.closing(Daemon(tmp_path)) as daemon:
        daemon.program = ("-c", LIMITED)
        daemon.start(preexec_fn=become)
        yield daemon


def limit(daemon: Daemon, *, on: bool) -> None:
    """Have the daemon be out of processes and threads, or no more."""
    word = "\nlimited\n" if on else "\nunlimited\n"
    before = daemon.log.read_text().count(word)
    os.kill(daemon.pid, signal.SIGUSR1 if on else signal.SIGUSR2)
    wait_for(lambda: daemon.log.read_text().count(word) > before, what="the limit")


def make(daemon: Daemon, vm: str) -> None:
    """Make a VM that belongs to the daemon's user."""
    directory = daemon.make(vm)
    for path in (directory, *directory.iterdir()):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)


@pytest.mark.qemu
def test_c70_without_threads_vms_are_watched_and_stopped_and_what_fails_is_a_line(limited: Daemon) -> None:
    for vm in (A, B):
        make(limited, vm)
        limited.done(vm, "start")
        limited.wait_guest(vm)
    limit(limited, on=True)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(Client([str(limited.socket)]))) for _ in range(60)]
        for number, client in enumerate(clients):
            client.send("Set", {"vm": (A, B)[number % 2], "setting": "smp", "value": "1"})
        for client in clients:
            client.receive()
    os.kill(limited.status(B)["pid"], signal.SIGKILL)
    assert limited.wait_state(B, "stopped", 2)["last_exit"]["text"] == "killed by signal 9"
    refused = limited.vmess(B, "start")
    assert refused.returncode == 1
    assert "cannot be executed: resource temporarily unavailable" in refused.stderr.splitlines()[0]
    assert "ulimit -u" in refused.stderr.splitlines()[1]
    assert limited.done("list").count("running") >= 1
    limited.done(A, "stop")
    assert not processes_of(limited.root)
    limit(limited, on=False)
    limited.done(B, "start")
    limit(limited, on=True)
    limited.done(B, "stop", "force")
    limit(limited, on=False)
    text = limited.log.read_text()
    assert "Traceback" not in text
    assert "unexpected" not in text
    assert text.count("no thread can be started") <= 2
    wait_for(lambda: limited.status(A)["state"] == "stopped", what="the end")
