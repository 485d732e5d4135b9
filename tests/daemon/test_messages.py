"""What is told of one run of a VM, and comes when there is another: nobody listens to it."""

import asyncio
import gc
import logging

import pytest
from conftest import until
from test_amiss import reach, told
from test_monitor import QUICK, Lab, connections, lab

from vmessd.core.lifecycle import Event, State
from vmessd.qemu.monitor import Monitor
from vmessd.vm.mailbox import Happening

__all__ = ["lab"]

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
                one._inbox.put(Happening(event, None, "paused", of=before))
            one._inbox.put(Happening(Event.rung, of=before.stop))
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
        one._inbox.put(Happening(Event.again, of=pause))
        await one.in_turn()
        assert one.state is State.stopped


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
        await until(lambda: "unexpected failure of a conversation" in caplog.text)
        await until(lambda: one.state is State.running)
        await told(one.stop(1, force=False))
        assert one.last_exit is not None
        assert one.last_exit.reason == "powered_down"
