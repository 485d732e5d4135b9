"""The guest agent, which is a program of the guest: good answers, bad ones, endless ones, and none."""

import asyncio
import itertools
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from vmessd.core.errors import Failed, InvalidValue
from vmessd.qemu import guest_agent
from vmessd.qemu.guest_agent import Address, Agent, addresses_in

Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

INTERFACES = [
    {"name": "lo", "hardware-address": "00:00:00:00:00:00", "ip-addresses": [{"ip-address": "127.0.0.1"}]},
    {
        "name": "eth0",
        "hardware-address": "02:11:9B:AF:00:00",
        "ip-addresses": [{"ip-address": "10.0.0.7", "prefix": 24}, {"ip-address": "fe80::1%eth0"}],
    },
]


def with_agent(behave: Behave, use: Callable[[Agent], Awaitable[Any]]) -> Any:
    """Use an agent that behaves like this, on a real socket."""

    async def run() -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await behave(reader, writer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        async def connect() -> socket.socket:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            reader, writer = await asyncio.open_unix_connection(sock=theirs)
            tasks.append(asyncio.create_task(serve(reader, writer)))
            return ours

        tasks: list[asyncio.Task[None]] = []
        try:
            return await use(Agent("newvm0", connect))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(run())


def answering(result: Any, before: bytes = b"") -> Behave:
    """An agent that answers each command with a result, after some bytes that belong to nobody."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
            else:
                writer.write(result if isinstance(result, bytes) else json.dumps({"return": result}).encode())
                writer.write(b"\n")

    return behave


async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def endless_delimiters(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"\xff{}\n" * 1000)
        await writer.drain()


async def gone(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def test_an_agent_answers() -> None:
    assert with_agent(answering({}), Agent.answers) is True
    assert with_agent(answering(INTERFACES), Agent.addresses) == [
        Address("02:11:9b:af:00:00", "10.0.0.7"),
        Address("02:11:9b:af:00:00", "fe80::1"),
    ]
    assert with_agent(answering(3), Agent.freeze) == 3
    assert with_agent(answering(3), Agent.thaw) == 3
    assert with_agent(answering({}), Agent.shut_down) is True


def test_what_an_earlier_call_left_is_not_an_answer() -> None:
    assert with_agent(answering(5, b'{"return": 1}\n\xff{"return": 99}\n'), Agent.freeze) == 5


def noting(said: list[str], refused: str = "") -> Behave:
    """An agent that answers, except one command, and notes the commands."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
                continue
            said.append(request["execute"].removeprefix("guest-").removeprefix("fsfreeze-"))
            writer.write(b'{"error": {}}\n' if said[-1] == refused else b'{"return": 2}\n')

    return behave


@pytest.mark.parametrize(
    ("refused", "count", "said"),
    [
        ("", 2, ["ping", "freeze", "within", "thaw"]),
        ("ping", None, ["ping", "within"]),
        ("freeze", None, ["ping", "freeze", "within", "thaw"]),
        ("thaw", 2, ["ping", "freeze", "within", "thaw", "thaw", "thaw"]),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_what_is_frozen_is_thawed_whatever_happens(
    refused: str, count: int | None, said: list[str], *, fails: bool
) -> None:
    heard: list[str] = []

    async def use(agent: Agent) -> int | None:
        async with agent.frozen() as frozen:
            heard.append("within")
            if fails:
                raise InvalidValue("a copy that fails")
        return frozen

    if fails:
        with pytest.raises(InvalidValue):
            with_agent(noting(heard, refused), use)
    else:
        assert with_agent(noting(heard, refused), use) == count
    assert heard == said


def test_what_an_earlier_daemon_has_frozen_is_thawed() -> None:
    heard: list[str] = []
    with_agent(noting(heard), Agent.thawed_again)
    assert heard == ["ping", "thaw"]


def test_what_an_agent_is_still_freezing_for_an_earlier_daemon_is_thawed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guest_agent, "PING_TIME", 0.1)
    monkeypatch.setattr(guest_agent, "LATE_PAUSE", 0.01)
    heard: list[str] = []
    calls = itertools.count()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (silent if next(calls) < 2 else noting(heard))(reader, writer)

    with_agent(late, Agent.thawed_again)
    assert heard == ["ping", "thaw"]


def test_what_is_frozen_now_is_not_thawed_for_an_earlier_daemon() -> None:
    heard: list[str] = []

    async def use(agent: Agent) -> None:
        async with agent.frozen():
            task = asyncio.create_task(agent.thawed_again())
            await agent.answers()  # it could have thawed them meanwhile
            heard.append("within")
        await task

    with_agent(noting(heard), use)
    assert heard == ["ping", "freeze", "ping", "within", "thaw", "ping", "thaw"]


@pytest.mark.parametrize(
    "behave", [silent, endless, endless_delimiters, gone, answering(b"{"), answering(b"7")]
)
def test_an_agent_that_misbehaves_counts_as_absent(behave: Behave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_agent, "PING_TIME", 0.2)
    began = time.monotonic()
    assert with_agent(behave, Agent.answers) is False
    assert with_agent(behave, Agent.shut_down) is False
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"{", b"null", b"[]", b'{"error": {"class": "GenericError", "desc": "\x1b[31m"}}', b"\xff\xff"),
        *(b"[" * 100_000, b'{"return": ' + b"9" * 300_000, b'{"return": true}', b'{"return": -1}'),
    ],
)
def test_an_answer_of_another_form_is_an_error(answer: bytes) -> None:
    with pytest.raises(Failed):
        with_agent(answering(answer), Agent.freeze)


@pytest.mark.parametrize(
    "result",
    [
        *(None, 7, "x", [], {}, [None], [{"ip-addresses": 5}], [{"hardware-address": 5, "ip-addresses": [{}]}]),
        [{"hardware-address": "02:11:9b:af:00:00", "ip-addresses": [{"ip-address": "\x1b[31m"}, 5, None]}],
        [{"hardware-address": "x", "ip-addresses": [{"ip-address": "10.0.0.7"}]}],
    ],
)
def test_what_is_not_an_address_is_ignored(result: Any) -> None:
    assert addresses_in(result) == []


def test_a_guest_with_many_addresses_has_some_of_them() -> None:
    many = [{"ip-address": f"10.0.{number // 256}.{number % 256}"} for number in range(1000)]
    found = addresses_in([{"hardware-address": "02:11:9b:af:00:00", "ip-addresses": many}])
    assert len(found) == guest_agent.ADDRESSES_MAX
