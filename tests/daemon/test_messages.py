"""What is told of one run of a VM, and comes when there is another: nobody listens to it."""

import asyncio
import contextlib
import gc
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from amiss import reach, told
from daemons import UNIT, until
from labs import QUICK, Lab, connections

from vmessd.core import lifecycle, settings
from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import Event, State
from vmessd.core.models.progress import StopProgress
from vmessd.qemu import monitor
from vmessd.qemu.monitor import Monitor
from vmessd.storage import blocking
from vmessd.vm import adoption, launcher
from vmessd.vm.mailbox import EventMessage, Request

pytestmark = pytest.mark.qemu


async def test_c55_what_is_told_of_the_run_before_does_not_reach_the_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lab.make_fake("newvm0", "good")
    gone: list[str] = []
    async with lab.supervisor(QUICK) as supervisor:
        one = await supervisor.machine("newvm")
        one.device_gone = gone.append
        await reach(one, on=True)
        before = one.live()
        await told(one.stop(1, force=True))
        assert before.stop is not None
        with connections(monkeypatch) as count:
            starting = asyncio.create_task(told(one.start(1)))
            await until(lambda: one.state is State.starting and one.status().pid is not None)
            for event in (Event.lost, Event.silent, Event.exited, Event.refused, Event.runs, Event.lost):
                one._inbox.put(EventMessage(event, None, "paused", of=before))
            one._inbox.put(EventMessage(Event.rung, of=before.stop))
            before.session._report(Event.lost, None)
            one._qmp_event(before, "STOP", {})
            one._qmp_event(before, "DEVICE_DELETED", {"device": "nic0"})
            one._ended(before)
            await starting
            assert one.state is State.running
            assert one.live().runstate == "running"
            await asyncio.sleep(2 * QUICK.probe_every)
            assert count["newvm0"] == 1
        assert (one.state, gone) == (State.running, [])
        await told(one.stop(1, force=False))
        assert one.last_exit is not None
        assert one.last_exit.reason == "powered_down"
        assert one.last_exit.pid != before.pid
    gc.collect()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_pause_that_was_ended_starts_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.make_fake("newvm0", "die,signal=11,after=0.01", RESTART="on-crash")
    async with lab.supervisor(QUICK) as supervisor:
        one = await supervisor.machine("newvm")
        await told(one.start(1))
        await until(lambda: one.state is State.waiting)
        pause = one._pending
        await told(one.stop(1, force=False))
        one._inbox.put(EventMessage(Event.again, of=pause))
        await one.in_turn()
        assert one.state is State.stopped


async def test_whoever_joins_a_stop_when_its_next_step_is_due_is_not_told_that_it_was_the_last(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "PRESS_EVERY", 0.2)
    lab.make_fake("newvm0", "ignore", STOP="30")
    async with lab.supervisor(QUICK) as supervisor:
        one = await supervisor.machine("newvm")
        await reach(one, on=True)
        first = asyncio.create_task(told(one.stop(1, force=False)))
        await until(lambda: one.live().stop is not None)  # `stopping` it is before its grace is read
        stop = one.live().stop
        assert stop is not None
        assert stop._timer is not None
        joining = EventMessage(Event.stop, Request(2))
        asyncio.get_running_loop().call_at(stop._timer.when() - 1e-6, one._inbox.put, joining)
        await until(lambda: len(one._stoppers) != 1)
        assert len(one._stoppers) == 2
        assert "does not end after SIGKILL" not in caplog.text
        await told(one.stop(1, force=True))
        await first


@contextlib.contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> Iterator[threading.Event]:
    """Have what is called hang until the event is set."""
    answers, whole = threading.Event(), getattr(owner, name)

    def hang(*words: Any) -> Any:
        answers.wait(20 * UNIT)
        return whole(*words)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, hang)
        try:
            yield answers
        finally:
            answers.set()


async def test_a_start_that_is_called_off_in_the_pause_before_a_restart_is_the_last(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make_fake("newvm0", "die,signal=11,after=0.01", RESTART="on-crash")
    async with lab.supervisor(QUICK) as supervisor:
        one = await supervisor.machine("newvm")
        await told(one.start(1))
        await until(lambda: one.state is State.waiting)
        with hanging(monkeypatch, launcher, "launch") as answers:
            start = asyncio.create_task(told(one.start(1)))
            await until(lambda: one.state is State.starting)
            stop = asyncio.create_task(told(one.stop(1, force=False)))
            await until(lambda: one.state is State.stopping)
            answers.set()
            await asyncio.gather(start, stop)
        await one.in_turn()
        assert one.state is State.stopped
        assert one.last_exit is not None
        assert not one.last_exit.again


async def test_a_guest_that_is_found_by_a_start_that_was_called_off_gets_its_power_button(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "PRESS_EVERY", 0.2)
    lab.make_fake("newvm0", "good", STOP="10")
    async with lab.supervisor(QUICK) as supervisor:
        await reach(await supervisor.machine("newvm"), on=True)
    with monkeypatch.context() as patch:
        patch.setattr(adoption, "recover", lambda *_: None)
        supervisor = await lab.supervisor(QUICK).__aenter__()
    try:
        one = await supervisor.machine("newvm")
        with hanging(monkeypatch, adoption, "recover") as answers:
            start = asyncio.create_task(told(one.start(1)))
            await until(lambda: one.state is State.starting)
            stop = asyncio.create_task(told(one.stop(1, force=False)))
            await until(lambda: one.state is State.stopping)
            answers.set()
            await asyncio.gather(start, stop)
        assert one.last_exit is not None
        assert one.last_exit.reason == "powered_down"
    finally:
        await supervisor.__aexit__()


async def test_a_stop_that_meets_a_start_which_is_tried_once_more_is_one_of_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.make_fake("newvm0", "die,status=1")
    monkeypatch.setattr(monitor, "says_display_taken", lambda _log: True)
    async with lab.supervisor(QUICK) as supervisor:
        one = await supervisor.machine("newvm")
        request = Request(1)
        one.over = lambda: one._inbox.put(EventMessage(Event.stop, request))
        with pytest.raises(VmessError, match="was cancelled by a stop"):
            async for _ in one.start(1):
                pass
        news = await request.news.get()
        assert isinstance(news, StopProgress)
        one.over = lambda: None


async def test_a_qemu_that_is_found_in_the_pause_before_a_restart_ends_the_pause(lab: Lab) -> None:
    lab.make_fake("newvm0", "die,signal=11,after=0.01", RESTART="on-crash")
    async with lab.supervisor(QUICK) as supervisor:
        one = await supervisor.machine("newvm")
        await told(one.start(1))
        await until(lambda: one.state is State.waiting)
        one.directory.write_setting(settings.BY_FILE["EXARGS"], "-fake good")
        launched = await blocking.call(launcher.launch, one.directory, one._host)
        one._inbox.post(Event.found, launched=launched)
        await until(lambda: one.state is State.running)
        assert one.status().restart is None
        await told(one.stop(1, force=True))


async def test_a_conversation_that_is_begun_twice_is_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.make_fake("newvm0", "good")
    async with lab.supervisor(QUICK) as supervisor:
        one = await supervisor.machine("newvm")
        await reach(one, on=True)
        with connections(monkeypatch) as count:
            for _ in range(3):
                one.live().session.begin()
            await asyncio.sleep(2 * QUICK.probe_every)
            assert not count
        assert one.state is State.running
        await told(one.stop(1, force=True))


async def test_a_conversation_that_fails_unforeseen_is_taken_up_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lab.make_fake("newvm0", "good")
    async with lab.supervisor(QUICK) as supervisor:
        one = await supervisor.machine("newvm")
        await reach(one, on=True)
        whole = Monitor.runstate

        async def failing(_monitor: Monitor) -> str:
            monkeypatch.setattr(Monitor, "runstate", whole)
            raise MemoryError

        monkeypatch.setattr(Monitor, "runstate", failing)
        await until(lambda: "unexpected failure of a QMP session" in caplog.text)
        await until(lambda: one.state is State.running)
        await told(one.stop(1, force=False))
        assert one.last_exit is not None
        assert one.last_exit.reason == "powered_down"
