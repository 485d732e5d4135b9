"""The guest agent (qemu-ga) of a VM, over a virtio-serial port whose host side is a socket of QEMU.

The agent is a program of the guest, so nothing that it says is trusted: each answer has a deadline and a
limit, and is only taken in the form that is expected. A call connects, synchronises, and disconnects, so an
answer of an earlier call is never taken for a later one.
Source: QEMU's qga/qapi-schema.json, guest-sync-delimited.
"""

import asyncio
import contextlib
import ipaddress
import itertools
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from vmessd.core.errors import Failed, VmessError

log = logging.getLogger(__name__)

PING_TIME = 1.0
"""Seconds after which an agent that does not answer counts as absent."""
ANSWER_TIME = 3.0
"""Seconds for a question that takes the guest a moment."""
FREEZE_TIME = 30.0
"""Seconds that the guest may take to write back its file systems."""
THAW_TRIES = 3
LATE_TRIES, LATE_PAUSE = 30, 1.0
"""How often an agent is asked that may still be freezing for an earlier daemon, and seconds between."""
ANSWER_MAX = 256 * 1024
STALE_MAX = 16
"""Answers to earlier calls that are passed over; more would keep the daemon busy."""
ADDRESSES_MAX = 64
IN_GUEST = "in the guest: systemctl status qemu-guest-agent"
DELIMITER = b"\xff"
"""Precedes the answer to guest-sync-delimited; it is not part of any UTF-8 text."""


class Address(NamedTuple):
    """An address of the guest, as its agent says."""

    mac: str
    address: str


class Agent:
    """The agent of one guest. Calls are made one after the other: a port of QEMU serves one client."""

    def __init__(self, vm: str, connect: Callable[[], Awaitable[socket.socket]]) -> None:
        self._vm = vm
        self._connect = connect
        self._lock = asyncio.Lock()
        self._freezing = asyncio.Lock()
        """Held from a freeze to its thaw."""
        self._numbers = itertools.count(1)

    async def answers(self) -> bool:
        """Tell whether there is an agent."""
        try:
            await self._ask("guest-ping", {}, PING_TIME)
        except VmessError:
            return False
        return True

    async def shut_down(self) -> bool:
        """Ask the agent to power the guest down; tell whether it was there to be asked."""
        if not await self.answers():
            return False
        with contextlib.suppress(VmessError):  # it does not answer if it succeeds
            await self._ask("guest-shutdown", {"mode": "powerdown"}, PING_TIME, silent=True)
        return True

    async def addresses(self) -> list[Address]:
        """Return the addresses of the guest, without those of the loopback interface; raises Failed."""
        return addresses_in(await self._ask("guest-network-get-interfaces", {}, ANSWER_TIME))

    async def freeze(self) -> int:
        """Write back and freeze the file systems of the guest; return how many. Raises Failed."""
        return _count(await self._ask("guest-fsfreeze-freeze", {}, FREEZE_TIME))

    async def thaw(self) -> int:
        """Let the file systems of the guest be written to again; return how many. Raises Failed."""
        return _count(await self._ask("guest-fsfreeze-thaw", {}, FREEZE_TIME))

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[int | None]:
        """Have the file systems of the guest written back and frozen for a `with` block; yield how many.

        None if the agent does not answer, or cannot freeze them. In the end they are thawed in any case: an
        agent that answers late may have frozen them.
        """
        async with self._freezing:
            if not await self.answers():
                yield None
                return
            try:
                count: int | None = None
                with contextlib.suppress(Failed):
                    count = await self.freeze()
                yield count
            finally:
                await asyncio.shield(asyncio.ensure_future(self.thawed()))

    async def thawed(self) -> None:
        """Have the file systems of the guest thawed, if the agent answers; a failure is logged."""
        for attempt in range(1, THAW_TRIES + 1):
            try:
                await self.thaw()
            except Failed as error:
                if attempt == THAW_TRIES:
                    log.warning("%s: its file systems may be frozen: %s", self._vm, error.message)
            else:
                return

    async def thawed_again(self) -> None:
        """Have file systems thawed that an earlier daemon had frozen, if there is an agent.

        One that is still freezing them does not answer yet.
        """
        for _ in range(LATE_TRIES):
            async with self._freezing:
                if await self.answers():
                    await self.thawed()
                    return
            await asyncio.sleep(LATE_PAUSE)

    async def _ask(
        self, command: str, arguments: dict[str, object], patience: float, *, silent: bool = False
    ) -> Any:
        """Run a command and return its result; with `silent`, do not wait for one. Raises Failed."""
        try:
            async with asyncio.timeout(PING_TIME + patience), self._lock:
                return await self._converse(command, arguments, silent=silent)
        except (TimeoutError, OSError):
            raise Failed(f"the guest agent of {self._vm} does not answer", hint=IN_GUEST) from None
        except (ValueError, RecursionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            words = f"the guest agent of {self._vm} gives no proper answer to {command}"
            raise Failed(words, hint=IN_GUEST) from None

    async def _converse(self, command: str, arguments: dict[str, object], *, silent: bool) -> Any:
        reader, writer = await asyncio.open_unix_connection(sock=await self._connect(), limit=ANSWER_MAX)
        try:
            number = next(self._numbers)
            writer.write(DELIMITER + _line("guest-sync-delimited", {"id": number}))
            await writer.drain()
            for _ in range(STALE_MAX):  # until our own answer: what comes before belongs to nobody
                await reader.readuntil(DELIMITER)
                if _is_sync(await reader.readuntil(b"\n"), number):
                    break
            else:
                raise ValueError(command)
            writer.write(_line(command, arguments))
            await writer.drain()
            return None if silent else _result(await reader.readuntil(b"\n"))
        finally:
            writer.close()


def _line(command: str, arguments: dict[str, object]) -> bytes:
    return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"


def _is_sync(answer: bytes, number: int) -> bool:
    with contextlib.suppress(ValueError, RecursionError):
        decoded = json.loads(answer)
        return isinstance(decoded, dict) and decoded.get("return") == number
    return False


def _result(answer: bytes) -> Any:
    """Return the result in an answer; raises ValueError if it is an error, or not an answer."""
    decoded = json.loads(answer)
    if not isinstance(decoded, dict) or "return" not in decoded:
        raise ValueError("not a result")
    return decoded["return"]


def _count(result: Any) -> int:
    if isinstance(result, bool) or not isinstance(result, int) or not 0 <= result < 2**31:
        raise Failed("the guest agent does not say how many file systems there are", hint=IN_GUEST)
    return result


def addresses_in(result: Any) -> list[Address]:
    """Return the addresses in a result of guest-network-get-interfaces; anything else in it is ignored."""
    found: list[Address] = []
    for interface in _records(result):
        mac = interface.get("hardware-address")
        for entry in _records(interface.get("ip-addresses")):
            text = entry.get("ip-address")
            if not isinstance(mac, str) or len(mac) != len("00:00:00:00:00:00") or not isinstance(text, str):
                continue
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(text.partition("%")[0])
                if not address.is_loopback and len(found) < ADDRESSES_MAX:
                    found.append(Address(mac.lower(), str(address)))
    return found


def _records(value: Any) -> Sequence[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
