"""VMs that move to another host or come from one; two clients and ssh(1) connect the daemons."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator

from asyncvarlink import FileDescriptor, LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import InvalidValue, failing, quoted
from vmessd.core.models.events import Kind
from vmessd.core.models.moves import Arrival, MoveProgress
from vmessd.core.moves import HOST_MAX, is_host
from vmessd.core.wires import bridge_name
from vmessd.supervisor.arrivals import Receipt
from vmessd.supervisor.leaving import Order
from vmessd.supervisor.locks import acting


@dataclass(frozen=True)
class VMReceipt:
    """A step of an arrival."""

    arrival: Arrival
    channel: FileDescriptor | None
    """In the first step, a stream socket: what the source sends goes into it, and answers come out of it."""


class Moving(Caller):
    """Methods that move VMs between hosts."""

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Move(  # noqa: PLR0913 -- all that can be said about a move
        self,
        *,
        vm: str,
        host: str,
        channel: FileDescriptor,
        shared: bool,
        start: bool,
        bridges: dict[str, str],
        bandwidth: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- another process's
        live: bool = False,
        offline: bool = False,
    ) -> AsyncIterator[MoveProgress]:
        """Move a VM to another host. It is off, or its guest continues there (`live`). Requires `more`.

        `channel` is passed with the call: a stream socket to the one that Receive has returned there.
        `host` is what messages call the other host. `shared`: disks that are links are on the other host, too.
        `start` starts the VM there. `offline` powers a VM down that runs, and starts it there, or here if it
        does not leave. `bridges` are other names of bridges there, by those here.
        `bandwidth` limits the bytes sent in a second, and `timeout` the seconds before the VM is handed over.

        For a guest that runs, a step has the names of connections that it `wants`, each for JoinMove.

        If the owner of a VM moves its guest with `shared`, and has given it a directory there as well, the
        guest continues in that one, and the one here stays, off.

        Until the last step the VM is here, as it was, if it fails or the caller leaves. The error Locked says
        that nobody knows whether it has arrived: it runs nowhere then. The same call asks again.
        """
        if (bandwidth is not None and bandwidth <= 0) or (timeout is not None and not timeout > 0):
            raise InvalidValue("bandwidth and timeout must be above 0")
        uid = self._peer.uid
        order = Order(_host(host), shared, start, _bridges(bridges), bandwidth, timeout, live, offline, uid)
        order = order._replace(acts_for=acting.get())
        passed = _stream(channel.fileno())
        async with contextlib.aclosing(self._supervisor.departures.move(vm, order, passed)) as steps:
            async for step in steps:
                if step.done:
                    if not (step.stayed or step.kept):
                        self._tell(Kind.removed, step.vm, f"moved to {order.host}")
                    raise LastResult(step)
                yield step

    @varlinkmethod(return_parameter="receipt", delay_generator=False)
    async def Receive(self, *, connection: str | None = None) -> AsyncIterator[VMReceipt]:
        """Take what another host sends: a VM that moves here, or the question whether one has. Requires `more`.

        A reply with the socket, and the last one when the VM is here. If the connection ends before, nothing of
        it stays. With the name of a `connection`, the socket leads to a QEMU here that waits for a guest.
        """
        if connection is not None:
            raise LastResult(
                _told(Receipt(Arrival(True, None), self._supervisor.arrivals.connection(connection)))
            )
        async with contextlib.aclosing(self._supervisor.arrivals.receive(self._peer.uid)) as steps:
            async for step in steps:
                if step.arrival.done:
                    if step.arrival.vm is not None:
                        self._tell(Kind.made, step.arrival.vm, "moved here from another host")
                    raise LastResult(_told(step))
                yield _told(step)

    @varlinkmethod
    async def JoinMove(self, *, vm: str, name: str, channel: FileDescriptor) -> None:
        """Bring a connection that a move wants: a stream socket to what Receive has returned for it."""
        self._supervisor.departures.join(vm, name, _stream(channel.fileno()))

    @varlinkmethod(return_parameter="note")
    async def DecideMove(self, *, vm: str, here: bool) -> str | None:
        """Say where a VM is that was handed over to another host without an answer. Returns a remark, or null.

        If it is `here`, it can start again. Otherwise it is deleted here, which is refused if both hosts have a
        directory of it.
        """
        note = await self._supervisor.departures.decide(vm, here=here)
        if here:
            self._tell(Kind.setting, vm, "it is here, and not on the host that it was to move to")
        else:
            self._tell(Kind.removed, vm, "it is on the host that it was moved to")
        return note


def _told(step: Receipt) -> VMReceipt:
    """Return a step as it is sent; the reply closes the descriptor when it was sent."""
    channel = None if step.channel is None else FileDescriptor(step.channel, should_close=True)
    return VMReceipt(step.arrival, channel)


def _stream(descriptor: int) -> socket.socket:
    """Return a copy of a descriptor as a stream socket; raises InvalidValue, Failed."""
    with failing("the descriptor cannot be used"):
        copy = os.dup(descriptor)
    try:
        passed = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise InvalidValue("the descriptor is not a socket; it must be a stream socket") from None
    if passed.type != socket.SOCK_STREAM:
        passed.close()
        raise InvalidValue("the descriptor is another kind of socket; it must be a stream socket")
    return passed


def _host(text: str) -> str:
    """Return the name of a host for messages; raises InvalidValue."""
    if not is_host(text):
        raise InvalidValue(f"host {quoted(text)} is not a name of 1 to {HOST_MAX} printable characters")
    return text


def _bridges(bridges: dict[str, str]) -> dict[str, str]:
    """Return names of bridges; raises InvalidValue."""
    return {bridge_name(here): bridge_name(there) for here, there in bridges.items()}
