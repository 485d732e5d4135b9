"""Bridges with NAT whose nft or dnsmasq takes long."""

import asyncio
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from daemons import UNIT, until

from vmessd.core.nat import Nat
from vmessd.supervisor import nats
from vmessd.supervisor.nats import Nats, Up


class Slow(Nats):
    """Bridges that need a word until they are made."""

    def __init__(self, root: Path) -> None:
        host: Any = SimpleNamespace(allow_nat=None)
        super().__init__(root, host, lambda _bridge: [])
        self.word = threading.Event()
        self.made: list[str] = []
        self.processes: list[Mock] = []
        self.lifted: list[str] = []

    def _lift(self, nat: Nat) -> None:
        self.lifted.append(str(nat.network))

    def _mend(self, nat: Nat) -> Up:
        self.made.append(nat.bridge)
        assert self.word.wait(60 * UNIT)
        self.processes.append(Mock(pid=len(self.made)))
        return Up(self.processes[-1], None)


async def test_the_daemon_does_not_wait_for_nft_and_nothing_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats, "RESTORE_TIME", 0.01)
    monkeypatch.setattr(nats, "LOOK_AFTER", 0.01)
    monkeypatch.setattr(nats, "LOOK_EVERY", 0.01)
    (tmp_path / "NET_NAT").write_text("lab0 10.99.0.0/24\nlab1 10.98.0.0/24\n")
    slow = Slow(tmp_path)
    await slow.restore()
    assert [one.problem for one in slow.reports().values()] == ["it is being restored"] * 2
    slow.look()  # a VM starts
    await asyncio.sleep(0.1)
    slow.word.set()
    await until(lambda: slow.made == ["lab0", "lab1"] * 2)
    await until(lambda: [one.problem for one in slow.reports().values()] == [None] * 2)
    # A dnsmasq that ends while it is looked at is reaped, and nothing of it stays open.
    slow.word.clear()
    slow.look()
    await until(lambda: len(slow.made) == 5)
    ended = slow.processes[2]
    assert not ended.close.called
    ended.has_ended.return_value = True
    slow.word.set()
    await until(lambda: ended.close.called)
    assert ended.reap.called
    await until(lambda: not slow._tasks)
    await slow.close()
    assert all(process.close.call_count == 1 for process in slow.processes)


async def test_however_often_routes_change_there_are_pauses_between_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats, "LOOK_AFTER", 0.001)
    monkeypatch.setattr(nats, "LOOK_EVERY", 0.2)
    (tmp_path / "NET_NAT").write_text("lab0 10.99.0.0/24\n")
    quick = Slow(tmp_path)
    quick.word.set()
    await quick.restore()
    began, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
    while loop.time() < began + 0.5:
        quick.look()
        await asyncio.sleep(0.005)
    await quick.close()
    assert 2 <= len(quick.made) <= 4  # with the first one, when it was restored


async def test_a_bridge_that_is_not_in_the_file_any_more_loses_its_nat_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats, "LOOK_AFTER", 0.01)
    monkeypatch.setattr(nats, "LOOK_EVERY", 0.01)
    (tmp_path / "NET_NAT").write_text("lab0 10.99.0.0/24\nlab1 10.98.0.0/24\n")
    quick = Slow(tmp_path)
    quick.word.set()
    await quick.restore()
    for name in ("lab0", "lab1"):
        (tmp_path / f"NET_LEASES.{name}").touch()
    (tmp_path / "NET_NAT").write_bytes(b"\xff")  # nobody knows what there should be
    quick.look()
    await until(lambda: quick.made == ["lab0", "lab1"] * 2)
    (tmp_path / "NET_NAT").write_text("lab1 10.97.0.0/24\n")
    quick.look()
    await until(lambda: [one.range for one in quick.reports().values()] == ["10.97.0.0/24"])
    assert quick.lifted == ["10.99.0.0/24", "10.98.0.0/24"]
    assert sorted(os.listdir(tmp_path)) == ["NET_NAT"]
    (tmp_path / "NET_NAT").unlink()
    quick.look()
    await until(lambda: not quick.reports())
    await quick.close()


async def test_a_range_that_is_not_allowed_any_more_is_not_served_again_by_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats, "LOOK_AFTER", 0.01)
    (tmp_path / "NET_NAT").write_text("lab0 10.99.0.0/24\n")
    quick = Slow(tmp_path)
    quick.word.set()
    quick._host.allow_nat = ()
    await quick.restore()
    quick.look()
    await asyncio.sleep(0.1)
    assert (quick.made, quick.lifted) == ([], ["10.99.0.0/24"])
    assert "is not allowed" in str(quick.reports()["lab0"].problem)
    await quick.close()
