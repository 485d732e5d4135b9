"""One client's calls, from admission to the last reply: who leaves, who does not read, what cannot be sent."""

import array
import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from daemons import UNIT, until

from vmessctl.client import Client
from vmessd.api import connection
from vmessd.api.audit import Audit, Peer
from vmessd.api.budgets import MEMBER, Account
from vmessd.api.caller import Line
from vmessd.api.connection import Connection, Gate, Hangups
from vmessd.api.interface import VmessInterface
from vmessd.core.contract import METHODS, Method
from vmessd.core.errors import INTERFACE, Locked, NotRunning, Unreachable
from vmessd.vm.events import Events

PEER = Peer(7, 1000, 1000)

LONG = 1 << 20
"""Characters of a reply that is more than the kernel keeps for a connection."""


class Supervisor:
    """One that does nothing and notes how far it came."""

    def __init__(self) -> None:
        self.events = Events()
        self.seen: list[str] = []
        self.go_on = asyncio.Event()
        self.reply = ""
        self.new_vms = self

    def not_vms(self) -> None:
        return None

    async def statuses(self) -> list[Any]:
        await self._work("look")
        return []

    async def make(self, _name: str) -> str:
        await self._work("change")
        return self.reply

    async def _work(self, what: str) -> None:
        self.seen.append(f"{what} begun")
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.seen.append(f"{what} given up")
            raise
        self.seen.append(f"{what} done")

    async def check_unlocked(self, vm: str, _stops: bool) -> str | None:
        if vm.startswith("locked"):
            raise Locked(f"{vm} is locked")
        return None

    async def check_allowed(self, vm: str, _method: Method, _actor: str) -> str | None:
        return await self.check_unlocked(vm, False)

    async def check_links(self, links: Sequence[str]) -> None:
        for link in links:
            await self.check_unlocked(link, False)

    async def check_needs(self, vm: str, _method: Method) -> None:
        if vm.startswith("off"):
            raise NotRunning(f"VM not running: {vm}")

    async def machine(self, _name: str) -> Any:
        return self

    directory = home = last_exit = None

    def record(self) -> None:
        return None

    async def change(self, _work: Callable[[], Any]) -> Any:
        """Return a log as it is handed out."""
        self.seen.append("log opened")
        opened = type("Opened", (), {"begin": 0, "size": 0, "older": None})()
        opened.log = os.open("/dev/null", os.O_RDONLY)
        return opened


class Bench:
    """A connection whose other end is in the hand of the test."""

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        self.supervisor = Supervisor()
        self.theirs = theirs
        self.account = Account(PEER.uid, MEMBER, set())
        self.hangups = Hangups()
        self.ended = asyncio.Event()
        gate = Gate(
            self.supervisor.check_allowed, self.supervisor.check_links, self.supervisor.check_needs, Audit()
        )
        self.connection = Connection(ours, PEER, self.account, gate=gate, ended=self._ended)
        self.connection.interfaces = self._interfaces
        self.hangups.watch(ours.fileno(), self.connection.left)
        loop = asyncio.get_running_loop()
        VarlinkTransport(loop, ours, ours, self.connection, boundary_predictor=None)

    def _ended(self, client: Connection) -> None:
        self.hangups.forget(client.fileno())
        self.ended.set()

    def _interfaces(self) -> VarlinkInterfaceRegistry:
        registry = VarlinkInterfaceRegistry()
        line = Line(self.connection.abort, self.connection.act_for, self.connection.actor)
        interface = VmessInterface(self.supervisor, None, PEER, line)  # type: ignore[arg-type]
        registry.register_interface(interface)
        return registry

    def send(self, method: str, **parameters: object) -> None:
        call = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
        self.theirs.setblocking(True)
        self.theirs.sendall(json.dumps(call).encode() + b"\0")

    async def receive(self) -> dict[str, Any]:
        """Return the next reply."""
        self.theirs.setblocking(False)
        data = b""
        while not data.endswith(b"\0"):
            more = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.theirs, 1 << 20), 5 * UNIT)
            assert more, "hung up"
            data += more
        reply: dict[str, Any] = json.loads(data[:-1])
        return reply

    async def until(self, *seen: str) -> None:
        """Wait until the supervisor has seen that."""
        await until(lambda: self.supervisor.seen == list(seen), 5)


@contextlib.asynccontextmanager
async def bench(kind: type[socket.socket] = socket.socket) -> AsyncIterator[Bench]:
    ours, theirs = socket.socketpair()
    with theirs, contextlib.closing(kind(fileno=ours.detach())) as ours:
        made = Bench(ours, theirs)
        try:
            yield made
        finally:
            made.connection.abort()
            await asyncio.wait_for(made.ended.wait(), 5 * UNIT)
            await asyncio.sleep(0)
            made.hangups.close()
            made.account.close()


async def test_c47_a_look_ends_when_its_client_leaves() -> None:
    async with bench() as made:
        made.send("List")
        await made.until("look begun")
        made.theirs.close()
        await made.until("look begun", "look given up")
        await asyncio.wait_for(made.ended.wait(), 5 * UNIT)


async def test_a_client_may_be_told_of_its_end_after_the_servers() -> None:
    hangups, (ours, theirs) = Hangups(), socket.socketpair()
    with ours, theirs:
        hangups.watch(ours.fileno(), lambda: None)
        hangups.close()
        hangups.forget(ours.fileno())


async def test_c47_a_change_is_carried_through_when_its_client_leaves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vmessd.api.audit")
    async with bench() as made:
        made.send("Make", vm="a")
        made.theirs.close()
        await made.until("change begun")
        await asyncio.sleep(0.05)
        made.supervisor.go_on.set()
        await made.until("change begun", "change done")
        await asyncio.wait_for(made.ended.wait(), 5 * UNIT)
    assert [record.getMessage() for record in caplog.records] == ["uid 1000, pid 7: Make 'a'"]


async def test_c47_looks_that_a_client_left_behind_are_not_begun() -> None:
    async with bench() as made:
        made.send("List")
        await made.until("look begun")
        for _ in range(20):
            made.send("List")
        made.send("Make", vm="a")
        made.theirs.close()
        await made.until("look begun", "look given up", "change begun")


async def test_c48_no_call_is_taken_while_a_reply_is_unsent() -> None:
    async with bench() as made:
        made.supervisor.go_on.set()
        made.supervisor.reply = "x" * (
            1 << 20
        )  # more than the sockets between them take  # more than the kernel keeps for a connection
        made.send("Make", vm="a")
        await made.until("change begun", "change done")
        made.send("Log", vm="a", log="serial")
        await asyncio.sleep(0.1)
        assert "log opened" not in made.supervisor.seen
        assert len((await made.receive())["parameters"]["path"]) == LONG
        await made.until("change begun", "change done", "log opened")


async def test_c48_a_client_is_sent_descriptors_only_when_it_has_read_those_before() -> None:
    async with bench() as made:
        for _ in range(3):
            made.send("Log", vm="a", log="serial")
        await made.until("log opened")
        await asyncio.sleep(0.1)
        assert made.supervisor.seen == ["log opened"]
        await made.receive()
        await made.until("log opened", "log opened")
        made.theirs.close()
        await asyncio.wait_for(made.ended.wait(), 5 * UNIT)
        # What it left unread has gone with its socket, so the call after that may be taken before it is missed.
        assert made.supervisor.seen in (["log opened"] * 2, ["log opened"] * 3)


async def test_a_reply_that_nobody_takes_costs_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UNREAD_TIME", 0.1)
    async with bench() as made:
        made.supervisor.go_on.set()
        made.supervisor.reply = "x" * LONG
        made.send("Make", vm="a")
        began = time.monotonic()
        await asyncio.wait_for(made.ended.wait(), 5 * UNIT)
        assert time.monotonic() - began > 0.05
        assert made.account._unsent == 0


class Failing(socket.socket):
    """One whose connection takes nothing, by an error of some kind."""

    number = 0

    def sendmsg(self, *_: object, **__: object) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    "number", [errno.ENOBUFS, errno.EMSGSIZE, errno.ETOOMANYREFS, errno.ENOMEM, errno.EPERM]
)
@pytest.mark.parametrize("method", ["List", "Log", "Status"])
async def test_c68_who_cannot_be_sent_a_reply_is_hung_up_on_at_once(
    caplog: pytest.LogCaptureFixture, number: int, method: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with bench(type("Kind", (Failing,), {"number": number})) as made:
        made.supervisor.go_on.set()
        made.send(method, **({} if method == "List" else {"vm": "a", "log": "serial"}))
        made.theirs.setblocking(False)
        said = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(made.theirs, 100), 1 * UNIT)
        assert said == b"", "a closed connection, and no silence"
    assert len(os.listdir("/proc/self/fd")) == before, "descriptors are closed"
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        f"uid 1000, pid 7: connection closed, a reply could not be sent: {os.strerror(number).lower()}"
    )


async def test_a_locked_vm_refuses_before_anything_is_begun() -> None:
    async with bench() as made:
        made.send("Set", vm="locked0", setting="ram", value="1G")
        assert (await made.receive())["error"] == f"{INTERFACE}.Locked"
        for method, parameters in (
            ("NetVlan", {"bridge": "lab", "interfaces": ["free0e0", "locked0e0"]}),
            ("NetAdd", {"interface": "locked0e0"}),
            ("NetDelete", {"interface": "locked0e0"}),
        ):
            made.send(method, **parameters)
            assert (await made.receive())["error"] == f"{INTERFACE}.Locked", method
        assert made.supervisor.seen == []


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, {}) for name in ("Suspend", "Resume", "Reset", "Screenshot", "Remove")),
        ("Console", {"steal": False}),
        ("PutOnImage", {"slot": "hda", "name": "debian"}),
        ("DeleteDisk", {"slot": "hda"}),
        ("RevertSnapshot", {"name": "before"}),
    ],
)
async def test_a_vm_in_another_state_refuses_before_anything_is_begun(name: str, more: dict[str, Any]) -> None:
    assert METHODS[name].needs is not None
    async with bench() as made:
        made.send(name, vm="off0", **more)
        assert (await made.receive())["error"] == f"{INTERFACE}.NotRunning"
        assert made.supervisor.seen == []


async def test_descriptors_are_handed_over_and_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with bench() as made:
        made.send("Log", vm="a", log="serial")
        await made.until("log opened")
        made.theirs.setblocking(True)
        made.theirs.settimeout(5 * UNIT)
        _, rights, _, _ = await asyncio.to_thread(made.theirs.recvmsg, 1000, 100)
        handed = array.array("i", rights[0][2])
        assert len(handed) == 1
        os.close(handed[0])
        await until(lambda: made.account.descriptors() == 0)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_who_is_hung_up_on_is_told_so_also_with_descriptors_on_their_way() -> None:
    async with bench() as made:
        made.send("Log", vm="a", log="serial")
        await made.until("log opened")
        await until(lambda: not made.connection.under_way, 5)
        assert made.account.descriptors() == 2
        made.connection.abort()
        assert "parameters" in await made.receive()
        made.theirs.setblocking(False)
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(made.theirs, 100), 5 * UNIT) == b""
        assert made.account.descriptors() == 0


def test_a_client_waits_for_its_place_in_the_daemons_queue_and_no_longer_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(path))
        began = time.monotonic()
        with pytest.raises(Unreachable, match="no vmessd answers"):
            Client([str(path)], patience=0.2)
        assert time.monotonic() - began >= 0.15
        accept = threading.Timer(0.1, lambda: stack.enter_context(listener.accept()[0]))
        accept.start()
        Client([str(path)], patience=10).close()
        accept.join()
