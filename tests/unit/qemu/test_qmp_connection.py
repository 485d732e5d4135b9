"""Tests of the QMP connection, with a peer on a socket pair."""

import asyncio
import json
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from vmessd.qemu.monitor import Job, Monitor, MonitorLost

VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
EVENTS = 500


def lines(*messages: object) -> bytes:
    """Return messages of QMP as they are sent."""
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


async def negotiated(peer: socket.socket) -> None:
    """Greet a client and accept its capabilities, as QEMU does."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(peer, lines({"QMP": {"version": VERSION, "capabilities": []}}))
    assert json.loads(await loop.sock_recv(peer, 4096))["execute"] == "qmp_capabilities"
    await loop.sock_sendall(peer, lines({"return": {}}))


@pytest.mark.parametrize("unread", [False, True], ids=["broken-pipe", "connection-reset"])
def test_a_command_to_a_qemu_that_has_ended_loses_no_event(unread: bool) -> None:
    seen: list[str] = []

    async def run() -> None:
        ours, peer = socket.socketpair()
        peer.setblocking(False)
        first = asyncio.Event()

        def handle(name: str, _data: object) -> None:
            seen.append(name)
            first.set()

        monitor = Monitor(handle)
        await asyncio.gather(monitor.open(ours), negotiated(peer))
        commands = []
        if unread:  # a connection is reset if its end has not read everything
            commands.append(asyncio.create_task(monitor.execute("query-status")))
            await asyncio.sleep(0)
        stop = {"event": "STOP", "timestamp": {"seconds": 0, "microseconds": 0}}
        await asyncio.get_running_loop().sock_sendall(peer, lines(*[stop] * EVENTS))
        peer.close()
        await first.wait()
        commands.append(asyncio.create_task(monitor.execute("query-status")))
        for command in commands:
            with pytest.raises(MonitorLost):
                await command
        await monitor.closed()
        await monitor.close()

    asyncio.run(run())
    assert seen == ["STOP"] * EVENTS


@pytest.mark.parametrize(
    ("reply", "jobs", "nodes"),
    [
        (None, [], []),
        ({"id": "x"}, [], []),
        ([None, 5, {}, {"id": 7, "status": "running"}, {"node-name": ["hda"]}], [], []),
        ([{"node-name": "hda"}, {"node-name": "#block1"}], [], ["hda", "#block1"]),
        (
            [{"id": "copy-hda", "status": "running", "current-progress": 5, "total-progress": 9}],
            [Job("copy-hda", "running", 5, 9, None)],
            [],
        ),
        (
            [{"id": "j", "status": "concluded", "current-progress": -1, "total-progress": "9", "error": "no"}],
            [Job("j", "concluded", 0, 0, "no")],
            [],
        ),
    ],
)
def test_jobs_and_nodes_of_a_qemu_that_says_anything(reply: object, jobs: list[Job], nodes: list[str]) -> None:
    async def run() -> tuple[list[Job], list[str]]:
        ours, peer = socket.socketpair()
        peer.setblocking(False)
        monitor = Monitor(lambda _name, _data: None)
        await asyncio.gather(monitor.open(ours), negotiated(peer))

        async def answered(asked: Coroutine[Any, Any, Any]) -> Any:
            task = asyncio.create_task(asked)
            identifier = json.loads(await asyncio.get_running_loop().sock_recv(peer, 4096))["id"]
            await asyncio.get_running_loop().sock_sendall(peer, lines({"return": reply, "id": identifier}))
            return await task

        try:
            return await answered(monitor.jobs()), await answered(monitor.nodes())
        finally:
            peer.close()
            await monitor.close()

    assert asyncio.run(run()) == (jobs, nodes)
