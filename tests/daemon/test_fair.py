"""A member of the socket's group who is hostile in every way there is, and how another one is served meanwhile.

Both are processes of users of their own (`hostility.py`), so these tests need root.
"""

import contextlib
import json
import os
import resource
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import guests
import pytest
from daemons import SUPPORT, UNIT, Daemon, wait_for
from varlink_wire import Wire, encode, nothing_unforeseen, rss

from vmessd.api.budgets import OWN, Account
from vmessd.api.server import CLIENTS_MAX, Control
from vmessd.core.contract import METHODS

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes of other users"),
    pytest.mark.qemu,
]

HOSTILE, OTHER = 12345, 12346
WAYS = (
    *(
        "calls",
        "names",
        "list",
        "marks",
        "unread",
        "descriptors",
        "storm",
        "halves",
        "idle",
        "abandoned",
        "log",
    ),
)
SERIAL = 1 << 20
"""Bytes in each part of a log in which marks are searched for."""


class Crowd(Daemon):
    """A daemon with many VMs whose socket other users may use."""

    def __init__(self, directory: Path, number: int) -> None:
        super().__init__(directory)
        self.wrapper = ("unshare", "--net")
        digits = range(number)
        self.vms = [f"v{''.join('abcdefghij'[int(digit)] for digit in f'{n:04}')}0" for n in digits]
        self.root.mkdir()
        shutil.copy(SUPPORT / "hostility.py", directory)
        rom = directory / "ignoring.rom"
        rom.write_bytes(guests.rom("ignoring"))
        for vm in self.vms:
            (self.root / vm).mkdir()
        for vm in self.vms[:20]:
            (self.root / vm / "serial.log").write_bytes(b"a" * SERIAL)
            (self.root / vm / "serial.log.1").write_bytes(b"a" * SERIAL)
        for vm in (self.vms[0], self.vms[-1]):
            (self.root / vm / "RAM").write_text("16M")
            (self.root / vm / "EXARGS").write_text(f"-bios {rom}")

    def begin(self) -> "Crowd":
        """Start it, and two of its VMs."""
        self.start()
        self.socket.chmod(0o666)
        self.done(self.vms[0], self.vms[-1], "start")
        return self

    def as_user(self, uid: int, way: str, seconds: float, vms: Sequence[str]) -> "subprocess.Popen[str]":
        """Have somebody go one way of `hostility.py`, and return when they have begun."""
        directory = os.open(self.directory, os.O_PATH)
        try:
            process = subprocess.Popen(
                [
                    "/usr/bin/python3",
                    "-IS",
                    f"{self.directory}/hostility.py",
                    way,
                    str(directory),
                    str(seconds),
                    *vms,
                ],
                user=uid,
                group=uid,
                extra_groups=[],
                pass_fds=[directory],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
            )
        finally:
            os.close(directory)
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        return process

    def latencies(self, seconds: float) -> list[float]:
        """Return how long another user waited for each `status`, shortest first."""
        process = self.as_user(OTHER, "status", seconds, self.vms[-1:])
        said, _ = process.communicate(timeout=seconds + 60 * UNIT)
        assert process.returncode == 0
        return sorted(json.loads(said))


@contextlib.contextmanager
def crowd(number: int) -> Iterator[Crowd]:
    with tempfile.TemporaryDirectory(prefix="vmess-test-") as place:
        Path(place).chmod(0o711)
        with contextlib.closing(Crowd(Path(place), number)) as daemon:
            yield daemon.begin()


@contextlib.contextmanager
def hostile(daemon: Crowd, ways: Sequence[str], seconds: float) -> Iterator[None]:
    """Have a member go all ways at once."""
    enemies = [daemon.as_user(HOSTILE, way, seconds, daemon.vms) for way in ways]
    try:
        yield
    finally:
        for enemy in enemies:
            enemy.kill()
            enemy.communicate(timeout=20 * UNIT)


def served(daemon: Crowd, ways: Sequence[str], seconds: float) -> tuple[float, float]:
    """Return p99 and the longest of another user's waits while one is hostile."""
    with hostile(daemon, ways, seconds + 60):
        taken = daemon.latencies(seconds)
    return taken[int(len(taken) * 0.99)], taken[-1]


def calm_again(daemon: Crowd, memory: int, descriptors: int) -> None:
    """Within 10 s all is as it was."""
    wait_for(lambda: rss(daemon) < memory + 16, 10, "memory given back")
    wait_for(lambda: daemon.descriptors() <= descriptors, 10, "descriptors given back")
    nothing_unforeseen(daemon)


def test_c77_a_hostile_member_in_all_ways_at_once_holds_nobody_up() -> None:
    with crowd(100) as daemon:
        memory, descriptors = rss(daemon), daemon.descriptors()
        quiet = daemon.latencies(0.3)[-1]
        _, worst = served(daemon, WAYS, 1.5)
        assert worst < 1 + 10 * quiet
        calm_again(daemon, memory, descriptors)


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(300)
def test_c77_a_hostile_member_for_a_minute_holds_nobody_up() -> None:
    with crowd(1000) as daemon:
        memory, descriptors = rss(daemon), daemon.descriptors()
        p99, worst = served(daemon, WAYS, 60)
        assert p99 <= 0.3
        assert worst <= 1
        calm_again(daemon, memory, descriptors)


@pytest.mark.parametrize("way", ["names", "list"])
def test_c47_whatever_one_member_asks_for_another_is_served(way: str) -> None:
    with crowd(300) as daemon:
        memory, descriptors = rss(daemon), daemon.descriptors()
        quiet = daemon.latencies(0.3)[-1]
        _, worst = served(daemon, [way], 0.7)
        assert worst < 0.5 + 10 * quiet
        calm_again(daemon, memory, descriptors)


def test_c46_marks_that_are_searched_for_long_hold_nobody_up() -> None:
    with crowd(20) as daemon:
        memory, descriptors = rss(daemon), daemon.descriptors()
        quiet = daemon.latencies(0.3)[-1]
        _, worst = served(daemon, ["marks", "marks", "marks"], 1)
        assert worst < 0.5 + 10 * quiet
        calm_again(daemon, memory, descriptors)


def test_c48_replies_with_descriptors_that_nobody_reads_use_up_none(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.make("talks0")
    daemon.make("other0")
    try:
        daemon.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)))
        daemon.done("talks0", "start")
        before = daemon.descriptors()
        with contextlib.ExitStack() as stack:
            wires = [stack.enter_context(Wire(daemon.socket)) for _ in range(7)]
            for wire in wires:
                wire.send(encode("Log", {"vm": "talks0", "log": "serial"}) * 240)
            most = before
            end = time.monotonic() + 1
            while time.monotonic() < end:
                most = max(most, daemon.descriptors())
            assert most <= before + len(wires) * 4, "a connection, its duplicate, and one reply's descriptors"
            daemon.done("other0", "start")
            with Wire(daemon.socket) as wire:
                assert "begin" in wire.call("Log", {"vm": "other0", "log": "serial"})["parameters"]["log"]
        wait_for(lambda: daemon.descriptors() <= before + 8, 10, "descriptors given back")
        nothing_unforeseen(daemon)
    finally:
        daemon.close()


def test_c48_descriptors_on_their_way_to_who_is_hung_up_on_are_counted(tmp_path: Path) -> None:
    """The kernel counts them as ours until they are read, whether the connection lives or not."""
    daemon = Daemon(tmp_path)
    daemon.make("talks0")
    try:
        daemon.start()
        daemon.done("talks0", "start")
        before = daemon.descriptors()
        with contextlib.ExitStack() as stack:
            wires = []
            for _ in range(OWN.descriptors // METHODS["Log"].descriptors + 1):
                wire = stack.enter_context(Wire(daemon.socket))
                wire.begin("Log", {"vm": "talks0", "log": "serial"})
                wire.sock.shutdown(socket.SHUT_WR)
                wires.append(wire)
            socks = [wire.sock for wire in wires]
            wait_for(lambda: len(select.select(socks, [], [], 0)[0]) == len(wires) - 1, 5, "the answers")
            [last] = set(socks) - set(select.select(socks, [], [], 0)[0])
            assert not select.select([last], [], [], 0.3)[0], "the kernel has as many as it may"
            assert next(wire for wire in wires if wire.sock is not last).receive() is not None
            assert next(wire for wire in wires if wire.sock is last).receive() is not None
        wait_for(lambda: daemon.descriptors() <= before, 10, "descriptors given back")
    finally:
        daemon.close()


class Busy:
    """A client with a call under way."""

    idle_since = None
    gone = False

    def __init__(self, account: Account, since: float, aborted: list[float]) -> None:
        self.account = account
        self.since = since
        self.abort = partial(aborted.append, since)


async def test_root_gets_in_where_each_of_many_uids_has_one_busy_client(tmp_path: Path) -> None:
    nobody: Any = SimpleNamespace(locks=SimpleNamespace(check_allowed=None), check_needs=None)
    control = Control(tmp_path / "socket", nobody, nobody)
    gone: list[float] = []
    for number in range(CLIENTS_MAX):
        theirs = control._budget.account(100_000 + number)
        theirs.clients += 1
        client: Any = Busy(theirs, number, gone)
        control._clients.add(client)
    assert not control._has_room_for(control._budget.account(200_000)), "no more than each of the others"
    assert control._has_room_for(control._budget.account(0))
    assert len(gone) == 1
