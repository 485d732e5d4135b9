"""What one user may have under way: places, bytes, descriptors, changes, and time of the event loop."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator

import pytest
from daemons import UNIT, until

from vmessd.api import audit, budgets
from vmessd.api.audit import Audit, Note, Peer
from vmessd.api.budgets import MEMBER, Account, Share, metered
from vmessd.core.contract import METHODS, Cost
from vmessd.core.errors import Failed, Locked

SLICE = 0.01


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with contextlib.ExitStack() as stack:
        ours, theirs = map(stack.enter_context, socket.socketpair())
        yield ours, theirs


def account(**limits: object) -> Account:
    return Account(1000, MEMBER._replace(**limits), set())  # type: ignore[arg-type]


async def busy(steps: int) -> int:
    """Keep the loop busy, a slice of processor time at a time: others may have the processor meanwhile."""
    for _ in range(steps):
        end = time.thread_time() + SLICE
        while time.thread_time() < end:
            pass
        await asyncio.sleep(0)
    return steps


async def test_who_takes_more_than_their_share_waits_and_others_do_not() -> None:
    greedy = Share(0.5, set())
    began = time.monotonic()
    crowd = [asyncio.ensure_future(metered_task(busy(10), greedy)) for _ in range(20)]
    longest = 0.0
    for _ in range(40):
        before = time.thread_time()
        await asyncio.sleep(SLICE)
        longest = max(longest, time.thread_time() - before)
    assert longest < 0.1, "a slice or two at a time, whatever was saved up"
    spent = sum(task.result() for task in crowd if task.done()) * SLICE
    assert spent < 0.5 * (time.monotonic() - began) + 2 * budgets.SAVINGS
    for task in crowd:
        task.cancel()
    await asyncio.wait(crowd)


async def metered_task(work: object, share: Share, *, waits: bool = True) -> int:
    result: int = await metered(work, share, waits=waits)  # type: ignore[arg-type]
    return result


async def test_a_step_that_waits_for_its_turn_can_be_cancelled_at_once() -> None:
    share = Share(0.001, set())
    share.charge(10)
    told = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    share._balance = 1.0
    task = asyncio.ensure_future(metered_task(work(), share))
    await asyncio.sleep(0)
    share.charge(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 1 * UNIT)
    assert told == ["cancelled"]


async def test_what_a_metered_call_returns_and_raises_is_its_own() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise Failed("so it is")

    share = Share(0.5, set())
    assert await metered_task(busy(1), share) == 1
    assert await metered_task(busy(1), share, waits=False) == 1
    with pytest.raises(Failed, match="so it is"):
        await metered_task(fails(), share)


async def test_what_a_call_has_done_beside_itself_is_on_its_users_account() -> None:
    share = Share(0.5, set())
    assert await budgets.beside(share, busy(10)) == 10
    assert share._balance < budgets.SAVINGS - 8 * SLICE * 0.5
    given_up = budgets.beside(share, busy(1))
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up


async def test_c47_more_calls_than_there_are_places_wait_and_are_refused_in_time(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr(budgets, "PATIENCE", 0.1)
    theirs = account(places={**MEMBER.places, Cost.look: 2})
    async with theirs.place(METHODS["List"], pair[0]), theirs.place(METHODS["List"], pair[0]):
        began = time.monotonic()
        with pytest.raises(Failed, match="uid 1000 has exceeded its budget: it has 2 such calls"):
            async with theirs.place(METHODS["Status"], pair[0]):
                pytest.fail("there was a place")
        assert time.monotonic() - began >= 0.1
        async with theirs.place(METHODS["Make"], pair[0]):
            pass  # changes have places of their own
    async with theirs.place(METHODS["Status"], pair[0]):
        pass


async def test_c47_a_place_that_was_left_is_free_again_a_little_later(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    theirs = account(places={**MEMBER.places, Cost.look: 1})

    async def look() -> None:
        async with theirs.place(METHODS["NetShow"], pair[0]):
            await asyncio.sleep(60)

    task = asyncio.ensure_future(look())
    await asyncio.sleep(0.01)
    task.cancel()
    began = time.monotonic()
    async with theirs.place(METHODS["NetShow"], pair[0]):
        assert time.monotonic() - began > 0.8 * budgets.LEFT_TIME
    assert task.cancelled()


async def test_c47_no_call_begins_while_too_many_bytes_are_not_taken(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr(budgets, "PATIENCE", 0.1)
    theirs = account(unsent=1000)
    theirs.queued(1001)
    with pytest.raises(Failed, match="it has 1001 bytes of unread replies"):
        async with theirs.place(METHODS["List"], pair[0]):
            pytest.fail("it began")
    asyncio.get_running_loop().call_later(0.02, theirs.taken, 1)
    async with theirs.place(METHODS["List"], pair[0]):
        pass


async def test_c48_descriptors_that_are_on_their_way_are_counted_until_they_are_read(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[socket.socket, socket.socket]
) -> None:
    monkeypatch.setattr(budgets, "PATIENCE", 0.2)
    ours, other = pair
    theirs = account(descriptors=3)
    refusal = "it has 2 unread descriptors"

    async def log() -> None:
        async with theirs.place(METHODS["Log"], ours):
            ours.send(b"as if it had two")

    await log()
    assert theirs.descriptors() == 2
    with pytest.raises(Failed, match=refusal):
        await log()
    ours.shutdown(socket.SHUT_RDWR)
    ours.close()
    with contextlib.ExitStack() as stack:
        ours, another = map(stack.enter_context, socket.socketpair())
        with pytest.raises(Failed, match=refusal):
            await log()
        asyncio.get_running_loop().call_later(0.02, other.recv, 100)
        await log()
        another.close()
        assert theirs.descriptors() == 0, "of who is gone nothing is on its way"


async def test_changes_come_at_a_bounded_pace(pair: tuple[socket.socket, socket.socket]) -> None:
    theirs = account(changes=3, pace=20.0)
    began = time.monotonic()
    for _ in range(7):
        async with theirs.place(METHODS["Lock"], pair[0]):
            pass
    assert time.monotonic() - began > 3.5 / 20


async def test_an_account_is_kept_for_as_long_as_it_is_not_as_a_new_one(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    accounts = budgets.Budget(frozenset({0}))
    theirs = [accounts.account(uid) for uid in range(1000, 3000)]
    theirs[0].clients += 1
    theirs[1].queued(1)
    theirs[2].share.charge(10)
    async with theirs[3].place(METHODS["List"], pair[0]):
        async with theirs[4].place(METHODS["Lock"], pair[0]):
            pass
        accounts.tidy()
    assert accounts._accounts == {account.uid: account for account in theirs[:5]}
    assert accounts.account(1001) is theirs[1]
    theirs[0].clients -= 1
    theirs[1].taken(1)
    await asyncio.sleep(1.1 * (budgets.SAVINGS + budgets.DEBT_MAX) / MEMBER.share)
    accounts.tidy()
    assert accounts._accounts == {}


# -- Who changed what --

PEER = Peer(pid=7, uid=1000, gid=1000)


def begun(log: Audit, peer: Peer, name: str, text: str) -> Note:
    note = Note(log, peer, name, text)
    note.begun()
    return note


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vmessd.api.audit"]


async def test_c50_refusals_are_counted_together_and_each_change_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "INTERVAL", 0.1)
    caplog.set_level(logging.INFO)
    log = Audit()
    for number in range(1000):
        begun(log, PEER, "Unlock", f"Unlock 'a{number}'").ended_by(Locked("it is"))
    begun(log, PEER, "Set", "Set 'b0'").ended_by(Locked("it is"))
    begun(log, PEER._replace(uid=2), "Unlock", "Unlock 'c0'").ended_by(Locked("it is"))
    begun(log, PEER, "Set", "Set 'd0'").carried_out()
    begun(log, PEER, "Set", "Set 'e0'").ended_by(Failed("a disk is full"))
    Note(log, PEER, "Set", "Set 'f0'").ended_by(Failed("it has too much under way"))
    assert lines(caplog) == [
        "uid 1000, pid 7: Unlock 'a0': refused: it is",
        "uid 1000, pid 7: Set 'b0': refused: it is",
        "uid 2, pid 7: Unlock 'c0': refused: it is",
        "uid 1000, pid 7: Set 'd0'",
        "uid 1000, pid 7: Set 'e0': failed: a disk is full",
    ]
    caplog.clear()
    await until(lambda: lines(caplog), 1)
    assert lines(caplog) == ["uid 1000: more calls refused in 0.1 s: 1 Set, 999 Unlock"]


async def test_a_change_that_takes_its_time_is_told_before_it_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "SOON", 0.01)
    caplog.set_level(logging.INFO)
    note = begun(Audit(), PEER, "Remove", "Remove 'a0'")
    await until(lambda: lines(caplog), 1)
    assert lines(caplog) == ["uid 1000, pid 7: Remove 'a0'"]
    note.carried_out()
    assert len(lines(caplog)) == 1
