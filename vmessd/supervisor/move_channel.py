"""The connection between the daemons of two hosts during a move: lines, and bytes without a frame.

It is a socket that a client has passed. Its other end is not trusted: a line has a limit, and everything has a
deadline.
"""

import asyncio
import contextlib
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from vmessd.core import moves
from vmessd.core.errors import Failed, counted
from vmessd.core.moves import Answer, Decision, Offer

_T = TypeVar("_T")

PIECE = 1 << 18
"""Bytes that are taken at a time."""
STALL_TIME = 600.0
"""Seconds that the other side may take for a step: fsync(2) writes all that is in memory."""


class ConnectionBroke(Exception):
    """The other side is gone, or does not answer; what it has done last is not known."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class MoveChannel:
    """One end of the connection."""

    def __init__(self, connected: socket.socket, other: str) -> None:
        """`other` is what messages call the other side."""
        connected.setblocking(False)
        self._socket: socket.socket = connected
        self._is_kept = False
        self._other = other
        self._buffer = bytearray()

    def kept(self) -> "MoveChannel":
        """Return the same connection, which stays when this object is closed."""
        other = MoveChannel(self._socket, self._other)
        other._buffer = self._buffer
        self._is_kept = True
        return other

    def close(self) -> None:
        """Close it; the other side sees its end."""
        if self._is_kept:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # also for others that have the descriptor
        self._socket.close()

    async def say(self, record: Offer | Answer | Decision) -> None:
        """Send a line; raises ConnectionBroke."""
        await self.send(moves.line(record))

    async def send(self, data: bytes, patience: float = STALL_TIME) -> None:
        """Send bytes; raises ConnectionBroke."""
        await self._in_time(asyncio.get_running_loop().sock_sendall(self._socket, data), patience)

    async def hear(self, kind: type[_T], patience: float | None = STALL_TIME) -> _T:
        """Return the next line; raises Failed, ConnectionBroke. None as `patience` has no deadline."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > moves.LINE_MAX:
                raise Failed(
                    f"{self._other} sent a line of more than {counted(moves.LINE_MAX, 'byte')}",
                    hint="only `move` of another host speaks with this",
                )
            self._buffer += await self._more(patience)
        text = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return moves.read(text, kind)

    async def answer(self, patience: float | None = STALL_TIME) -> Answer:
        """Return the next answer; raises the error that it is, Failed, ConnectionBroke."""
        heard = await self.hear(Answer, patience)
        if heard.said == moves.Said.refused:
            raise moves.error_of(heard, self._other)
        return heard

    async def take(self, most: int) -> bytes:
        """Return some of the bytes that are next, at most so many; raises ConnectionBroke."""
        if not self._buffer:
            self._buffer += await self._more(STALL_TIME)
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        return data

    async def _more(self, patience: float | None) -> bytes:
        data = await self._in_time(asyncio.get_running_loop().sock_recv(self._socket, PIECE), patience)
        if not data:
            raise self._broke("the connection ended")
        return data

    async def _in_time(self, work: Coroutine[Any, Any, _T], patience: float | None) -> _T:
        try:
            async with asyncio.timeout(patience):
                return await work
        except TimeoutError:
            raise self._broke(f"nothing moved for {patience:g} s") from None
        except OSError:
            raise self._broke("the connection ended") from None

    def _broke(self, why: str) -> ConnectionBroke:
        return ConnectionBroke(f"{self._other}: {why}")
