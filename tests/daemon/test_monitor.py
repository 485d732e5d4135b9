"""QEMUs that misbehave: the monitor, the session and the machine against the fake QEMU.

Most tests run a supervisor in their own event loop, with less patience than the daemon has; the fake QEMU
is a real process all the same (fakeqemu.py).
"""

import ast
import asyncio
import json
import os
import re
import shlex
import signal
import time
from typing import Any

import pytest
from daemons import TESTS, UNIT, Daemon, processes_of, wait_for
from labs import QUICK, Lab, connections, reach, slowest_answer, start, stop
from varlink_wire import Wire, nothing_unforeseen

from vmessd.core.errors import AlreadyRunning, NotRunning, StartFailed, TimedOut, VmessError
from vmessd.core.lifecycle import Rung
from vmessd.storage.log_rotation import CAP
from vmessd.vm.qemu_run import QemuRun


async def longest_wait(seconds: float) -> float:
    """Return the longest time for which the event loop served nobody."""
    loop = asyncio.get_running_loop()
    end, longest, before = loop.time() + seconds, 0.0, loop.time()
    while before < end:
        await asyncio.sleep(0.01)
        now = loop.time()
        longest, before = max(longest, now - before), now
    return longest


# How a start from them ends, and whether they say anything for as long as they live.
NEVER_WELL = ("nogreeting", "noaccept", "halfjson", "garbage", "huge", "hugereply", "wrongids", "eofreply")
HANGING_UP = ("garbage", "huge", "hugereply", "eofreply")


async def test_c34_a_qemu_that_hangs_in_its_end_is_ended(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.make_fake("alone0", "stuck,seconds=0.2")
    lab.make_fake("asked0", "stuck", STOP="60")
    async with lab.supervisor() as supervisor:
        for vm in ("alone0", "asked0"):
            assert not isinstance(await start(supervisor, vm), VmessError)
        last = (await reach(await supervisor.machine("alone0"), "stopped")).last_exit
        assert (last.text, last.status, last.asked_by) == ("guest powered off", -signal.SIGKILL, None)
        told, seconds = await stop(supervisor, "asked0")
        assert (told[-1].text, told[-1].forced) == ("powered down as asked", False)
        assert seconds < 20
    assert caplog.text.count("QEMU hangs after its guest has powered off, and is killed") == 2


async def test_c34_monitors_that_misbehave(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    sick = [*NEVER_WELL, "deaf"]
    well = ["good", "eofonce", "stubborn"]
    vms = {mode: f"{mode}0" for mode in (*sick, *well)}
    for mode, vm in vms.items():
        lab.make_fake(vm, mode, STOP="1")
    async with lab.supervisor() as supervisor:
        machines = {mode: await supervisor.machine(vm) for mode, vm in vms.items()}
        began = time.monotonic()
        results = await asyncio.gather(*(start(supervisor, vm) for vm in vms.values()))
        assert time.monotonic() - began < QUICK.answer + 3
        for mode, result in zip(vms, results, strict=True):
            if mode in NEVER_WELL:
                assert isinstance(result, TimedOut), (mode, result)
                assert "does not answer; it is left alone" in result.message
            else:
                assert isinstance(result, list), (mode, result)
                assert result[-1].done

        pids = {mode: (await reach(machines[mode], "unresponsive")).pid for mode in sick}
        pids |= {mode: (await reach(machines[mode], "running")).pid for mode in well}
        assert sorted(processes_of(lab.root)) == sorted(pid or 0 for pid in pids.values())

        # Two seconds of it: no busy loop, nobody else waits, no second process, no change of mind.
        spent, seconds = time.process_time(), 2.0
        with connections(monkeypatch) as count:
            bystander = asyncio.create_task(machines["good"].live().transferred(patience=0.5))
            assert await longest_wait(seconds) < 0.5
            assert bystander.done()
        assert time.process_time() - spent < 0.6 * seconds
        for mode in sick:
            most = seconds / QUICK.retry_most + 2 if mode in HANGING_UP else 0
            assert count[vms[mode]] <= most, mode
            assert mode not in HANGING_UP or count[vms[mode]] >= 1, f"{mode} is not tried again"
            assert machines[mode].status().state.value in ("unresponsive", "starting")
            again = await start(supervisor, vms[mode])
            assert isinstance(again, AlreadyRunning), mode
            assert str(pids[mode]) in again.message
        assert {mode: machine.status().pid for mode, machine in machines.items()} == pids
        assert len(processes_of(lab.root)) == len(pids)

        stops = await asyncio.gather(*(stop(supervisor, vm) for vm in vms.values()))
        for mode, (news, took) in zip(vms, stops, strict=True):
            assert took < 1 + 5, mode
            assert news[-1].done
            assert news[-1].forced is (mode not in ("good", "eofonce")), (mode, news[-1])
            exited = machines[mode].status().last_exit
            assert exited is not None
            assert exited.asked_by == 1001
        rungs = [progress.rung for progress in stops[list(vms).index("stubborn")][0]]
        assert rungs == ["power button", "QMP quit", "SIGTERM", "SIGKILL", "SIGKILL"]
        assert not processes_of(lab.root)


async def test_c34_a_qemu_that_is_slow_to_greet_runs_at_last(lab: Lab) -> None:
    lab.make_fake("slow0", "slowstart,seconds=1.5")
    async with lab.supervisor(QUICK._replace(answer=0.5)) as supervisor:
        machine = await supervisor.machine("slow")
        result = await start(supervisor, "slow")
        assert isinstance(result, TimedOut)
        pid = machine.status().pid
        status = await reach(machine, "running")
        assert status.pid == pid
        assert len(processes_of(lab.root)) == 1


@pytest.mark.parametrize("what", ["Suspend", "Resume", "Reset", "SendKeys", "SetNics", "Cable"])
def test_what_arrives_while_a_vm_starts_waits_for_that(fake_daemon: Daemon, what: str) -> None:
    daemon = fake_daemon
    daemon.make_fake("slow0", "slowstart,seconds=1", NICS="user")
    calls: dict[str, dict[str, object]] = {
        "SendKeys": {"keys": ["a"]},
        "SetNics": {"count": 2, "wires": ["user", "user"]},
        "Cable": {"interface": 0, "on": False},
    }
    with Wire(daemon.socket) as starter, Wire(daemon.socket) as wire:
        starter.begin("Start", {"vm": "slow0"}, more=True)
        wait_for(lambda: daemon.status("slow0")["state"] == "starting", what="the start")
        wire.begin(what, {"vm": "slow0", **calls.get(what, {})})
        reply = wire.receive(8)
        assert reply is not None
        assert "error" not in reply or "refused" in reply["parameters"]["message"], reply  # it cannot do all
    assert daemon.status("slow0")["state"] == ("paused" if what == "Suspend" else "running")


def test_a_start_that_takes_long_is_told_to_whoever_wants_its_guest(fake_daemon: Daemon) -> None:
    daemon = fake_daemon
    daemon.make_fake("slow0", "slowstart,seconds=8")
    with Wire(daemon.socket) as starter, Wire(daemon.socket) as wire:
        starter.begin("Start", {"vm": "slow0"}, more=True)
        wait_for(lambda: daemon.status("slow0")["state"] == "starting", what="the start")
        wire.begin("Suspend", {"vm": "slow0"})
        reply = wire.receive(8)
        assert reply is not None
        assert reply["parameters"]["message"] == "VM slow0 is still starting"
        daemon.done("slow0", "stop", "force")


async def test_c34_a_qemu_that_stood_still_is_running_again(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    for vm in ("stands0", "other0"):
        lab.make_fake(vm, "good")
    async with lab.supervisor(QUICK._replace(probe_answer=0.3)) as supervisor:
        await asyncio.gather(start(supervisor, "stands"), start(supervisor, "other"))
        machine, other = await supervisor.machine("stands"), await supervisor.machine("other")
        pid = machine.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await reach(machine, "unresponsive")
        assert other.status().state.value == "running"
        os.kill(pid, signal.SIGCONT)
        assert (await reach(machine, "running")).pid == pid
        news, _ = await stop(supervisor, "stands")
        assert news[-1].text == "powered down as asked"
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["stands0: QEMU does not answer", "stands0: QEMU answers again"]


@pytest.mark.parametrize("mode", ["nogreeting", "garbage", "stubborn", "deaf"])
async def test_c34_force_ends_any_of_them_at_once(lab: Lab, mode: str) -> None:
    lab.make_fake("newvm0", mode)
    async with lab.supervisor(QUICK._replace(answer=0.3)) as supervisor:
        await start(supervisor, "newvm")
        news, took = await stop(supervisor, "newvm", force=True)
        assert took < 1
        assert (news[-1].rung, news[-1].text, news[-1].forced) == ("SIGKILL", "forced off", False)


async def test_c34_a_stop_during_a_start_that_hangs_ends_both(lab: Lab) -> None:
    lab.make_fake("newvm0", "nogreeting")
    async with lab.supervisor(QUICK._replace(answer=30.0)) as supervisor:
        starting = asyncio.create_task(start(supervisor, "newvm"))
        await reach(await supervisor.machine("newvm"), "starting")
        await asyncio.to_thread(wait_for, lambda: processes_of(lab.root), 10)
        _, took = await stop(supervisor, "newvm")
        assert took < 2
        result = await asyncio.wait_for(starting, 2 * UNIT)
        assert isinstance(result, VmessError)
        assert "was cancelled by a stop" in result.message


# -- How they end --


@pytest.mark.parametrize(
    ("mode", "reason", "text", "status"),
    [
        ("panic", "panicked", "guest panicked", 0),
        ("die", "signalled", "killed by signal 9", -9),
        ("die,signal=6", "signalled", "killed by signal 6", -6),
        ("flood,seconds=0", "powered_off", "guest powered off", 0),
    ],
)
async def test_a_run_that_ends_by_itself_has_its_reason(
    lab: Lab, mode: str, reason: str, text: str, status: int
) -> None:
    directory = lab.make_fake("newvm0", mode)
    async with lab.supervisor() as supervisor:
        assert isinstance(await start(supervisor, "newvm"), list)
        exited = (await reach(await supervisor.machine("newvm"), "stopped")).last_exit
        assert exited is not None
        assert (exited.reason, exited.text, exited.status, exited.asked_by) == (reason, text, status, None)
    record = json.loads((directory / "exit.json").read_text())
    assert (record["reason"], record["text"], record["status"]) == (reason, text, status)
    assert not {"run.json", "qmp.sock", "serial.sock", "qemu.pid"} & set(os.listdir(directory))


def test_c35_an_io_error_is_told_as_such(fake_daemon: Daemon) -> None:
    fake_daemon.make_fake("newvm0", "ioerror")
    fake_daemon.done("newvm", "start")
    wait_for(lambda: fake_daemon.status("newvm")["runstate"] == "io-error", what="the reason of the pause")
    status = fake_daemon.status("newvm")
    assert status["state"] == "paused"
    assert fake_daemon.done("newvm") == f"VM is running, PID: {status['pid']} (paused: io-error)\n"
    fake_daemon.done("newvm", "stop", "force")


MULTI_LINE = r"qemu-system-x86_64: -foo: \x1b[31mred\n<0>vmessd: disk is full\n\x07bell \xe2\x80\xa8 end"


def test_c36_last_words_of_several_lines_become_one_escaped_line(fake_daemon: Daemon) -> None:
    daemon = fake_daemon
    directory = daemon.make_fake("newvm0", f"exit,status=3,message={MULTI_LINE}")
    result = daemon.vmess("newvm", "start")
    assert result.returncode == StartFailed.status
    line, hint = result.stderr.splitlines()
    expected = r"QEMU did not start: -foo: \x1b[31mred; <0>vmessd: disk is full; \x07bell \u2028 end"
    assert line == f"vmess: VM newvm0: {expected}"
    assert line.isprintable()
    assert hint.startswith("  hint: vmess newvm0 log shows its command line")
    log = daemon.log.read_bytes().decode().split("\n")
    told = [text[20:] for text in log if "did not start" in text]
    assert told[0] == f"newvm0: {expected}"
    assert re.fullmatch(rf"uid \d+, pid \d+: Start 'newvm0': failed: VM newvm0: {re.escape(expected)}", told[1])
    assert len(told) == 2
    assert not [text for text in log if text.startswith("<0>") or not text.isprintable()]
    record = json.loads((directory / "exit.json").read_text())
    assert (record["text"], record["status"], record["reason"]) == (expected, 3, "refused")
    assert len(record["log"]) == 3
    for text in (record["text"], *record["log"]):
        assert text.isprintable()
    status = daemon.vmess("newvm")
    assert (status.returncode, len(status.stdout.splitlines())) == (3, 1)
    assert status.stdout.rstrip("\n").isprintable()


# -- Floods --


@pytest.mark.alone
def test_c33_a_flood_of_events_delays_nobody_and_hides_nothing(fake_daemon: Daemon) -> None:
    daemon = fake_daemon
    daemon.make_fake("flood0", "flood,rate=80000,seconds=1")
    daemon.make_fake("calm0", "good")
    daemon.done("flood", "calm", "start")
    slowest = slowest_answer(
        daemon, ["flood0", "calm0"], lambda status: bool(status["state"] == "stopped"), seconds=60
    )
    assert slowest < 0.5
    exited = daemon.status("flood")["last_exit"]
    assert (exited["reason"], exited["asked_by"]) == ("powered_off", None), "SHUTDOWN was not lost"
    assert daemon.status("calm")["state"] == "running"
    nothing_unforeseen(daemon)


@pytest.mark.alone
def test_c32_a_hundred_megabytes_on_stderr_delay_nobody_and_are_cut(fake_daemon: Daemon) -> None:
    daemon = fake_daemon
    directory = daemon.make_fake("loud0", "stderr,megabytes=100", STOP="1")
    daemon.make_fake("calm0", "good")
    log, older = directory / "qemu.log", directory / "qemu.log.1"
    sizes = [0]

    def over(_status: dict[str, Any]) -> bool:
        """Until the log is below its cap and grows no more."""
        sizes.append(log.stat().st_size)
        return older.exists() and len(sizes) > 50 and min(sizes[-50:]) == max(sizes[-50:]) <= CAP

    try:
        daemon.done("calm", "loud", "start")
        slowest = slowest_answer(daemon, ["loud0", "calm0"], over, seconds=30)
        print(f"status {slowest * 1000:.0f} ms, log at most {max(sizes) / 1e6:.1f} MB")
        assert slowest < 0.1
        assert older.stat().st_size <= CAP
        daemon.done("loud", "stop", "force")
        exited = daemon.status("loud")["last_exit"]
        assert exited["reason"] == "forced"
        assert exited["log"] or not sizes[-1], "the newest words are still in the log"
        assert sum(len(line) for line in exited["log"]) < 20_000
        assert (directory / "exit.json").stat().st_size < 50_000
        nothing_unforeseen(daemon)
    finally:
        daemon.close()
        log.unlink(missing_ok=True)


# -- Clocks --


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_c29_a_jump_of_the_wall_clock_changes_no_deadline(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    lab.make_fake("newvm0", "ignore", STOP="1")
    wall = time.time
    async with lab.supervisor() as supervisor:
        await start(supervisor, "newvm")
        machine = await supervisor.machine("newvm")
        began = time.monotonic()
        at = {}
        with monkeypatch.context() as patch:
            async for progress in machine.stop(0, force=False):
                patch.setattr(time, "time", lambda: wall() + jump)
                at[progress.rung] = time.monotonic() - began
                uptime = machine.status().uptime
                assert progress.done or (uptime is not None and 0 <= uptime < 60)
            exited = machine.status().last_exit
            assert exited is not None
            assert 0 <= exited.age < 60
        expected: dict[Rung | None, float] = {Rung.powerdown: 0.0, Rung.quit: 1.0}
        assert at.keys() == expected.keys()
        for rung, moment in expected.items():
            assert moment - 0.05 <= at[rung] < moment + 1.5, rung


def test_c29_what_decides_never_reads_the_wall_clock() -> None:
    for room in (
        *("core/lifecycle", "qemu/session", "qemu/monitor"),
        *("vm/qemu_run", "vm/start", "vm/stop", "vm/machine", "vm/mailbox", "supervisor/registry"),
    ):
        tree = ast.parse((TESTS.parent / "vmessd" / f"{room}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {"time", "datetime"} & {alias.name for alias in node.names}, room
            elif isinstance(node, ast.ImportFrom):
                assert node.module not in ("time", "datetime"), room


# -- Nothing is left --


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_c31_starts_and_stops_leave_no_task_and_no_descriptor(lab: Lab) -> None:
    modes = {"good": "good", "again": "good", "ignore": "ignore", "garbage": "garbage", "deaf": "deaf"}
    modes |= {"panic": "panic", "die": "die", "exit": "exit", "eofonce": "eofonce", "mute": "nogreeting"}
    for vm, mode in modes.items():
        lab.make_fake(f"{vm}0", mode, STOP="0")
    timing = QUICK._replace(answer=1.0)
    for round_number in range(3):
        tasks, descriptors = asyncio.all_tasks(), open_descriptors()
        async with lab.supervisor(timing) as supervisor:
            await asyncio.gather(*(start(supervisor, vm) for vm in modes))
            if round_number != 1:  # in the second round the supervisor leaves them running
                stops = (stop(supervisor, vm, force=round_number == 0) for vm in modes)
                for outcome in await asyncio.gather(*stops, return_exceptions=True):
                    assert isinstance(outcome, tuple | NotRunning), outcome
        await settle(tasks)
        left = asyncio.all_tasks() - tasks
        assert not left, left
        # What once made stays: the loop's threads have no descriptors, so there is nothing to forgive.
        assert open_descriptors() == descriptors, round_number
    assert not processes_of(lab.root)


async def settle(tasks: set[asyncio.Task[Any]]) -> None:
    """Give tasks that were cancelled the turns of the loop they need to end."""
    for _ in range(20):
        if not asyncio.all_tasks() - tasks:
            return
        await asyncio.sleep(0)


def test_the_fake_s_own_arguments_reach_it_unchanged(lab: Lab) -> None:
    directory = lab.make_fake("newvm0", f"exit,message={MULTI_LINE}")
    assert shlex.split((directory / "EXARGS").read_text())[1] == f"exit,message={MULTI_LINE}"


async def test_c51_an_end_before_the_next_look_is_noted_where_the_directory_was_moved(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = lab.make_fake("newvm0", "ignore")
    moved = lab.directory / "elsewhere"
    async with lab.supervisor() as supervisor:
        await start(supervisor, "newvm")
        monkeypatch.setattr(QemuRun, "mind_directory", lambda *_: None)  # it looks too late
        place.rename(moved)
        place.symlink_to(moved)
        await supervisor.locks.check_unlocked("newvm0", stops=True)
        await stop(supervisor, "newvm", force=True)
    assert json.loads((moved / "exit.json").read_text())["reason"] == "forced"
