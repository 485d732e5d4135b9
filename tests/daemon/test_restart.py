"""Restart policies: what is started again, when it is given up, and what a person is told meanwhile."""

import asyncio
import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
from daemons import FAKE, UNIT, Daemon, end_processes_of, own, wait_for

from vmessd.core import lifecycle
from vmessd.core.lifecycle import IN_WORDS, RESTARTS_MAX, STEADY, Policy, Reason, State
from vmessd.core.records import ExitRecord, Moment
from vmessd.supervisor.registry import Supervisor
from vmessd.vm import restart
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

A = own("a")


def record(reason: Reason, tries: int = 0) -> ExitRecord:
    return ExitRecord(1, 2, reason, IN_WORDS[reason], None, None, [], Moment(0.0, 0.0, "b"), tries)


# What follows from an end


def judged(
    reason: Reason, policy: Policy, tries: int = 0, *, lasted: float = 1.0, ran: bool = True
) -> ExitRecord:
    return restart.judge(record(reason, tries), policy, lasted=lasted, ran=ran)


def test_a_crash_is_followed_by_a_restart_where_the_policy_says_so() -> None:
    assert not judged(Reason.signalled, Policy.no).again
    assert judged(Reason.signalled, Policy.on_crash).again
    assert not judged(Reason.powered_off, Policy.on_crash).again
    assert judged(Reason.powered_off, Policy.always).again


def test_a_first_start_that_comes_to_nothing_is_not_repeated() -> None:
    assert not judged(Reason.refused, Policy.always, ran=False).again
    assert judged(Reason.refused, Policy.always, tries=1, ran=False).again


def test_after_the_last_restart_it_is_given_up() -> None:
    ends = [judged(Reason.signalled, Policy.on_crash, tries) for tries in range(RESTARTS_MAX + 1)]
    assert [end.again for end in ends] == [True] * RESTARTS_MAX + [False]
    assert [end.note for end in ends] == [None] * RESTARTS_MAX + ["given up after 6 restarts"]


def test_whoever_ran_steadily_begins_anew() -> None:
    end = judged(Reason.signalled, Policy.on_crash, RESTARTS_MAX, lasted=STEADY)
    assert (end.again, end.tries, end.note) == (True, 0, None)


def test_a_restart_that_could_not_even_be_tried_counts() -> None:
    end = restart.judge_failure(record(Reason.signalled, 1), Policy.on_crash, "no bridge")
    assert (end.again, end.tries, end.note) == (True, 2, "restart 2 of 6 failed: no bridge")
    last = restart.judge_failure(record(Reason.signalled, RESTARTS_MAX - 1), Policy.on_crash, "no bridge")
    assert (last.again, last.note) == (False, "given up after 6 restarts; restart 6 of 6 failed: no bridge")
    assert not restart.judge_failure(record(Reason.signalled, 1), Policy.no, "no bridge").again


@pytest.mark.parametrize("tries", [-(2**52), -1, 10**9])
def test_a_record_that_lies_about_its_tries_gives_neither_a_hot_loop_nor_endless_restarts(tries: int) -> None:
    end = judged(Reason.signalled, Policy.on_crash, tries)
    assert 0 <= end.tries <= RESTARTS_MAX
    assert end.again is (tries < 0)
    assert restart.is_due(dataclasses.replace(record(Reason.signalled, tries), again=True)) is (tries < 0)
    assert lifecycle.pause(tries) in (1.0, None)


def test_a_reason_nobody_knows_is_an_unknown_one() -> None:
    unknown = dataclasses.replace(record(Reason.signalled), reason="bogus")
    assert restart.judge(unknown, Policy.on_crash, lasted=1.0, ran=True).again
    assert restart.judge_failure(unknown, Policy.on_crash, "no bridge").again


# A real QEMU that is killed


def killed(daemon: Daemon) -> int:
    """Start a VM, kill its QEMU from outside, and return its pid."""
    daemon.make(A, RESTART="on-crash")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    pid: int = daemon.status(A)["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_killed_qemu_is_started_again_after_a_pause_that_doubles(daemon: Daemon) -> None:
    first = killed(daemon)
    waiting = daemon.wait_state(A, "waiting")
    assert waiting["restart"].keys() == {"attempt", "limit", "due"}
    said = daemon.vmess(A)
    assert said.returncode == 3
    assert said.stdout.startswith("VM not running (killed by signal 9 0 s ago; restart 1 of 6 in ")
    second = daemon.wait_state(A, "running")["pid"]
    assert second != first
    os.kill(second, signal.SIGKILL)
    again = daemon.wait_state(A, "waiting")["restart"]
    assert again["attempt"] == 2
    assert 1.0 < again["due"] <= 2.0


def test_a_stop_ends_the_wait_for_good(daemon: Daemon) -> None:
    killed(daemon)
    daemon.wait_state(A, "waiting")
    done = daemon.vmess(A, "stop")
    assert (done.returncode, done.stderr) == (0, f"{A}: its restart was called off\n")
    assert daemon.vmess(A).stdout.endswith("; its restart was called off)\n")
    daemon.stop(signal.SIGKILL)
    daemon.start()
    status = daemon.status(A)
    assert (status["state"], status["restart"]) == ("stopped", None)


def test_the_next_daemon_waits_on(daemon: Daemon) -> None:
    first = killed(daemon)
    daemon.wait_state(A, "waiting")
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert daemon.wait_state(A, "running")["pid"] != first


def test_what_ended_with_an_earlier_boot_stays_off(daemon: Daemon) -> None:
    killed(daemon)
    daemon.wait_state(A, "waiting")
    daemon.stop(signal.SIGKILL)
    file = daemon.root / A / "exit.json"
    data = json.loads(file.read_text())
    assert data["again"]
    data["when"]["boot"] = "another"
    file.write_text(json.dumps(data))
    daemon.start()
    assert daemon.status(A)["state"] == "stopped"


def test_a_start_by_hand_takes_the_place_of_the_restart(daemon: Daemon) -> None:
    killed(daemon)
    daemon.wait_state(A, "waiting")
    daemon.done(A, "start")
    status = daemon.status(A)
    assert (status["state"], status["restart"]) == ("running", None)


def test_a_vm_that_waits_can_be_changed_and_removed(daemon: Daemon) -> None:
    killed(daemon)
    daemon.wait_state(A, "waiting")
    daemon.done(A, "hda", "1M")
    daemon.done(A, "rm", "--yes")
    assert not (daemon.root / A).exists()
    assert daemon.vmess(A).returncode == 4


def test_a_vm_stopped_as_asked_stays_off_whatever_the_policy(daemon: Daemon) -> None:
    daemon.make(A, RESTART="always")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    daemon.done(A, "stop")
    assert daemon.status(A)["state"] == "stopped"


def test_a_stop_that_another_daemon_sees_the_end_of_is_a_stop(daemon: Daemon) -> None:
    daemon.make(A, guest="twice", RESTART="always", STOP="60")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    with daemon.client(A, "stop") as asking:
        daemon.wait_guest(A, b"1")  # it felt the button, and waits for another press
        run = daemon.root / A / "run.json"
        wait_for(
            lambda: json.loads(run.read_text())["stopping"], what="the note of the stop, which no signal awaits"
        )
        daemon.stop(signal.SIGKILL)
        asking.communicate(timeout=10 * UNIT)
    daemon.start()
    os.kill(daemon.status(A)["pid"], signal.SIGKILL)
    status = daemon.wait_state(A, "stopped")
    assert (status["restart"], status["last_exit"]["note"]) == (None, None)


def test_a_policy_that_is_taken_back_counts_at_once(daemon: Daemon) -> None:
    killed(daemon)
    daemon.wait_state(A, "waiting")
    daemon.done(A, "restart-policy", "no")
    status = daemon.wait_state(A, "stopped")
    assert status["last_exit"]["note"] == "its restart was called off"


def test_always_restarts_what_ended_unseen(daemon: Daemon) -> None:
    daemon.make(A, RESTART="always")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    pid = daemon.status(A)["pid"]
    daemon.stop(signal.SIGKILL)
    end_processes_of(daemon.root)
    daemon.start()
    assert daemon.wait_state(A, "running")["pid"] != pid


def test_a_policy_that_makes_no_sense_is_no_policy(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "start")
    (daemon.root / A / "RESTART").write_text("sometimes")
    os.kill(daemon.status(A)["pid"], signal.SIGKILL)
    assert daemon.wait_state(A, "stopped")["restart"] is None
    assert "RESTART 'sometimes' is not no, on-crash or always" in daemon.log.read_text()


# To the end


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of hundredths of a second."""
    real = lifecycle.pause

    def pause(tries: int) -> float | None:
        seconds = real(tries)
        return None if seconds is None else seconds / 100

    monkeypatch.setattr(restart, "pause", pause)


async def given_up(machine: Machine) -> str:
    """Return what is noted when the VM is off for good."""

    def note() -> str | None:
        last = machine.last_exit
        return (
            last.note if machine.state is State.stopped and last and "given up" in (last.note or "") else None
        )

    text: str = await asyncio.to_thread(wait_for, note, 60, "the end of the restarts")
    return text


@pytest.mark.qemu
async def test_a_crash_loop_comes_to_an_end_with_a_reason(tmp_path: Path, hasty: None) -> None:
    lab = Daemon(tmp_path)
    lab.make_fake(A, "die,signal=11,after=0.01", RESTART="on-crash")
    try:
        async with Supervisor(lab.root, Host(str(FAKE), "tcg")) as supervisor:
            machine = await supervisor.machine(A)
            assert [step.done async for step in machine.start(None)][-1]
            assert await given_up(machine) == "given up after 6 restarts"
            status = machine.status()
            assert status.last_exit is not None
            assert status.last_exit.text == "killed by signal 11"
            runs = (lab.root / A / "qemu.log").read_text().count("-pidfile")
            assert runs == 1 + RESTARTS_MAX
    finally:
        await asyncio.to_thread(end_processes_of, lab.root)


@pytest.mark.qemu
async def test_restarts_that_cannot_be_tried_come_to_an_end_too(tmp_path: Path, hasty: None) -> None:
    lab = Daemon(tmp_path)
    directory = lab.make_fake(A, "die,signal=11,after=0.1", RESTART="on-crash")
    try:
        async with Supervisor(lab.root, Host(str(FAKE), "tcg")) as supervisor:
            machine = await supervisor.machine(A)
            assert [step.done async for step in machine.start(None)][-1]
            await asyncio.to_thread((directory / "RAM").write_text, "nonsense")
            note = await given_up(machine)
            assert note.startswith("given up after 6 restarts; restart 6 of 6 failed: ")
            assert "RAM 'nonsense' is not a size" in note
    finally:
        await asyncio.to_thread(end_processes_of, lab.root)
