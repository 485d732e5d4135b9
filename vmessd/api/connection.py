"""One client: its calls, from admission to the last reply.

`asyncvarlink` speaks the protocol. This module adds: one call at a time, and the next one only after all
replies were read; a place in the budget of the user; enforcement of :mod:`vmessd.core.contract`; cancellation
when the client leaves. A client that exceeds a limit loses its connection, and nobody else is affected.
"""

import asyncio
import collections
import contextlib
import enum
import inspect
import json
import logging
import select
import socket
import time
import typing
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

from asyncvarlink import GenericVarlinkErrorReply, VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.conversion import ConversionError, FileDescriptorVarlinkType
from asyncvarlink.interface import AnnotatedResult, VarlinkMethodSignature
from asyncvarlink.message import VarlinkMethodCall, VarlinkMethodReply
from asyncvarlink.serverprotocol import VarlinkServerProtocol
from asyncvarlink.serviceerrors import InvalidParameter
from asyncvarlink.types import FileDescriptor, FileDescriptorArray, JSONObject

from vmessd.api import wire_errors
from vmessd.api.audit import Audit, Note, Peer, words
from vmessd.api.budgets import Account, Place, metered
from vmessd.api.caller import lock_note
from vmessd.core import contract, refusals
from vmessd.core.contract import Cost, Method
from vmessd.core.errors import INTERFACE, Failed, InvalidValue, VmessError, reason
from vmessd.supervisor.locks import acting

log = logging.getLogger(__name__)

MESSAGE_LIMIT = 64 * 1024
"""Maximum bytes of one request; the longest real ones contain a path."""
UNREAD_TIME = 5.0
"""Seconds that a client may take to read a reply, except those of endless calls."""


def _plain(value: object) -> object:
    """Return what a record or the member of an enumeration is in JSON: its fields, or its name.

    The library would check each type, which takes ten times as long as all else: mypy has, and the tests do.
    """
    return value.name if isinstance(value, enum.Enum) else vars(value)


_encode = json.JSONEncoder(separators=(",", ":"), default=_plain).encode


class Gate(NamedTuple):
    """The checks before a call runs, and the log."""

    check_allowed: Callable[[str, Method, str], Coroutine[Any, Any, str | None]]
    """Raises Locked if a VM is locked, or has an owner for whom the caller does not act; the third argument is
    the one for whom the caller acts. For a call that stops the VM, it returns a note."""
    check_links: Callable[[Sequence[str]], Coroutine[Any, Any, None]]
    """Raises Locked if one of these links belongs to a locked VM."""
    check_needs: Callable[[str, Method], Coroutine[Any, Any, None]]
    """Raises an error unless the VM is in the state that a method needs."""
    audit: Audit


class _Left(Exception):
    """The client is gone, or no longer reads."""


class Hangups:
    """Detects that clients have left, even while nothing is read from them. Close it when done."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll, self._look)

    def watch(self, fd: int, gone: Callable[[], None]) -> None:
        """Call `gone` once when the other end of a socket is closed (EPOLLHUP, epoll_ctl(2))."""
        self._told[fd] = gone
        self._epoll.register(fd, select.EPOLLET)

    def forget(self, fd: int) -> None:
        """Stop watching a descriptor, if it is watched. This must be done before it is closed."""
        if self._told.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if (gone := self._told.get(fd)) is not None:
                gone()

    def close(self) -> None:
        """Stop watching all descriptors. Clients may be told of their end afterwards, and be forgotten then."""
        self._told.clear()
        asyncio.get_running_loop().remove_reader(self._epoll)
        self._epoll.close()


class Connection(VarlinkServerProtocol):
    """One client."""

    def __init__(
        self,
        connected: socket.socket,
        peer: Peer,
        account: Account,
        *,
        gate: Gate,
        ended: Callable[["Connection"], None],
    ) -> None:
        super().__init__()
        self.uid = peer.uid
        self.account = account
        self.since = asyncio.get_running_loop().time()
        """When it connected, by the clock of the loop."""
        self.under_way: set[asyncio.Future[None]] = set()
        """Calls whose last reply has not been read yet."""
        self.acts_for = ""
        """The owner of VMs for whom the client acts; empty for people."""
        self.idle_since: float | None = self.since
        """When the last call ended, by the clock of the loop; None while one is in progress."""
        self.gone = False
        """The client has left."""
        self.interfaces: Callable[[], VarlinkInterfaceRegistry] = VarlinkInterfaceRegistry
        """Creates the interfaces at the first call: clients that only connect should cost little."""
        self._registry: VarlinkInterfaceRegistry | None = None
        self._socket = connected
        self._peer = peer
        self._gate = gate
        self._ended = ended
        self._link: VarlinkTransport | None = None
        self._partial = 0
        self._queued = 0
        self._all_taken: collections.deque[asyncio.Future[None]] = collections.deque()
        self._impatience: asyncio.TimerHandle | None = None
        self._endless = False
        self._may_end: asyncio.Task[None] | None = None
        """The call in progress, if it may be cancelled."""
        self._passed: FileDescriptor | None = None
        """A descriptor that came with the latest data, for the next call that takes one."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        super().connection_made(transport)
        assert isinstance(transport, VarlinkTransport)  # noqa: S101 -- Control makes no other
        self._link = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the connection."""
        super().connection_lost(exc)
        if self._impatience is not None:
            self._impatience.cancel()
        self.left()
        self._drop_passed()
        with contextlib.suppress(OSError):  # closing is not enough while descriptors are in transit
            self._socket.shutdown(socket.SHUT_RDWR)
        self._ended(self)

    def act_for(self, owner: str) -> None:
        """Note for which owner of VMs the client acts from now on."""
        self.acts_for = owner

    def actor(self) -> str:
        """Return that owner; empty for people."""
        return self.acts_for

    def left(self) -> None:
        """Note that the client has left, and cancel what is done only for it."""
        self.gone = True
        if self._may_end is not None:
            self._may_end.cancel()

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 when it is closed."""
        return self._socket.fileno()

    def abort(self) -> None:
        """Close the connection at once, with unsent data."""
        if self._link is not None:
            self._link.abort()

    # -- What arrives --

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Process received data within the limits."""
        end = data.rfind(b"\0")
        self._partial = len(data) - end - 1 if end >= 0 else self._partial + len(data)
        if fds is not None:
            self._keep(fds)
        if self._partial > MESSAGE_LIMIT or self._link is None or self._link.is_closing():
            self.abort()
            return
        began = time.monotonic()
        try:
            super().message_received(data, None)
        except (ValueError, RecursionError):
            # Invalid UTF-8, or numbers or nesting beyond the limits of the JSON decoder.
            self.abort()
            return
        finally:
            self.account.share.charge(time.monotonic() - began)
        if end >= 0:
            # The library resumes reading when all received calls are answered.
            self._link.pause_reading()
        elif not self.account.share.is_due():
            self._link.pause_reading()
            self.account.share.turn().add_done_callback(self._read_on)

    def _keep(self, fds: FileDescriptorArray) -> None:
        """Keep one descriptor until the next call; of several, none is kept, and all are closed."""
        self._drop_passed()
        if len(fds) == 1 and self.account.may_pass():
            self._passed = FileDescriptor(fds[0].take(), should_close=True)
            self.account.passed += 1

    def _drop_passed(self) -> None:
        passed, self._passed = self._passed, None
        if passed is not None:
            passed.close()
            self.account.passed -= 1

    def _read_on(self, _turn: asyncio.Future[None]) -> None:
        if self._link is not None:
            self._link.resume_reading()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:  # noqa: ARG002
        """Close the connection after data that are not a JSON object."""
        self.abort()

    def request_received(self, obj: JSONObject, fds: FileDescriptorArray | None) -> asyncio.Future[None] | None:
        """Serve a call, which is in progress until its replies are read; then the next one follows."""
        answered: asyncio.Future[None] | None = super().request_received(obj, fds)
        if answered is None and not self.account.share.is_due():
            answered = self.account.share.turn()
        if answered is None and not self._queued:
            if self.idle_since is not None:
                self.idle_since = asyncio.get_running_loop().time()
            return None
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.idle_since = None
        self.under_way.add(over)
        over.add_done_callback(self._call_ended)
        if answered is None:
            self._when_taken(over)
        else:
            answered.add_done_callback(lambda _: self._when_taken(over))
        return over

    def _when_taken(self, over: asyncio.Future[None]) -> None:
        if self._queued:
            self._all_taken.append(over)
        else:
            over.set_result(None)

    def _call_ended(self, future: asyncio.Future[None]) -> None:
        self.under_way.discard(future)
        if not self.under_way:
            self.idle_since = asyncio.get_running_loop().time()

    # -- What is sent --

    def send_message(
        self, obj: JSONObject, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        """Queue a reply, and charge its size; if it cannot be sent, the connection is closed.

        The library never closes our descriptors (`autoclose`), because :meth:`_send` keeps track of them.
        """
        assert not (fds and autoclose)  # noqa: S101 -- only _send() passes any
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._link is None or self._link.is_closing():
            taken.set_exception(BrokenPipeError())
            return taken
        data = _encode(obj).encode() + b"\0"
        self._queued += 1
        self.account.queued(len(data))
        if self._impatience is None:
            self._impatience = asyncio.get_running_loop().call_later(UNREAD_TIME, self._not_read)

        def done(sent: asyncio.Future[None]) -> None:
            self._queued -= 1
            self.account.taken(len(data))
            error = None if sent.cancelled() else sent.exception()
            if error is not None:
                self._cannot_send(error)
            if not taken.done():
                taken.set_exception(BrokenPipeError()) if error else taken.set_result(None)
            if not self._queued:
                self._all_were_taken()

        self._link.send_message(data, fds).add_done_callback(done)
        return taken

    def _cannot_send(self, error: BaseException) -> None:
        """Close the connection: otherwise the library would let the client wait for ever."""
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError | ConnectionResetError):
            log.warning(
                "uid %d, pid %d: connection closed, a reply could not be sent: %s",
                *(self._peer.uid, self._peer.pid, reason(error)),
            )
        self.abort()

    def _all_were_taken(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None
        while self._all_taken:
            self._all_taken.popleft().set_result(None)

    def _not_read(self) -> None:
        self._impatience = None
        if self._endless:
            self._impatience = asyncio.get_running_loop().call_later(UNREAD_TIME, self._not_read)
        else:
            self.abort()

    # -- Calls --

    def call_received(
        self,
        call: VarlinkMethodCall,
        fds: FileDescriptorArray | None,  # noqa: ARG002
    ) -> asyncio.Future[None]:
        """Begin a call."""
        if self._registry is None:
            self._registry = self.interfaces()
        method, signature = self._registry.lookup_method(call)
        row = contract.METHODS[call.method_name] if call.method_interface == INTERFACE else contract.SERVICE
        passed = None
        if row.takes is None:
            self._drop_passed()
        else:
            passed, self._passed = self._passed, None
        answer = self._answer(call, row, method, signature, passed)
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        task = loop.create_task(_run(metered(answer, self.account.share, waits=row.ends_with_client)))
        self._may_end = task
        self._endless = row.cost is Cost.endless

        def ended(task: asyncio.Task[None]) -> None:
            answer.close()  # for a task that was cancelled before its first step
            if passed is not None:
                passed.close()
                self.account.passed -= 1
            self._may_end, self._endless = None, False
            error = None if task.cancelled() else task.exception()
            if error is None or isinstance(error, _Left):
                answered.set_result(None)
            else:
                answered.set_exception(error)

        task.add_done_callback(ended)
        return answered

    async def _answer(
        self,
        call: VarlinkMethodCall,
        row: Method,
        method: Callable[..., Any],
        signature: VarlinkMethodSignature,
        passed: FileDescriptor | None,
    ) -> None:
        """Answer a call completely; a query only as long as the client listens."""
        if self.gone and not row.is_noted:
            return
        parameters = _converted(signature, call.parameters, passed)
        note, name = None, call.method_name
        if row.is_noted:
            text = words(name, row, parameters) + (f", for {self.acts_for}" if self.acts_for else "")
            note = Note(self._gate.audit, self._peer, name, text)
        try:
            async with self.account.place(row, self._socket, lambda: self.gone) as place:
                if not row.ends_with_client:
                    self._may_end = None
                if note is not None:
                    note.begun()
                await self._check(row, parameters)
                await self._reply(call, signature, method(**parameters), place, note)
        except _Left:
            raise
        except BaseException as error:
            if note is not None:
                note.ended_by(error)
            raise

    async def _check(self, row: Method, parameters: Mapping[str, Any]) -> None:
        """Raise Locked if the VM, or that of a link, is locked or not the caller's to change.

        Raises an error of its own for a VM in the wrong state, and InvalidValue if a descriptor is missing.
        """
        if row.takes is not None and not parameters[row.takes]:
            raise InvalidValue(
                f"{row.takes} must be a descriptor that is passed along with the call, and only one"
            )
        acting.set(self.acts_for)
        if (row.locks or row.owned) and row.about is not None:
            lock_note.set(await self._gate.check_allowed(parameters[row.about], row, self.acts_for))
        if row.links is not None:
            links = parameters[row.links]
            await self._gate.check_links([links] if isinstance(links, str) else links)
        if row.needs is not None and row.about is not None and not row.checks_values:
            await self._gate.check_needs(parameters[row.about], row)

    async def _reply(
        self,
        call: VarlinkMethodCall,
        signature: VarlinkMethodSignature,
        results: Any,
        place: Place,
        note: Note | None,
    ) -> None:
        """Send the results of a method, one after the other."""
        async with contextlib.aclosing(_each(results)) as answers:
            async for result in answers:
                if note is not None:
                    note.carried_out()
                place.begun()
                if place.method.cost is Cost.follow:
                    self._may_end = asyncio.current_task()
                try:
                    if not call.oneway and await self._send(signature, result):
                        place.handed_over()
                except _Left:
                    if place.method.cost is not Cost.fleet:
                        raise

    async def _send(self, signature: VarlinkMethodSignature, result: AnnotatedResult) -> bool:
        """Send a reply; tell, when the kernel has all of it, whether it had descriptors.

        Raises _Left where the client has left.
        """
        with FileDescriptorArray.new_managed() as handed:
            body = dict(result.parameters)
            if signature.return_type.contains_fds:
                body = signature.return_type.tojson(body, {FileDescriptorVarlinkType: handed})
            reply = VarlinkMethodReply(body, continues=result.continues, extensions=result.extensions)
            sent = self.send_reply(reply, [item.fileno() for item in handed], autoclose=False)
            handed.reference_until_done(sent)
            has_descriptors = len(handed) > 0
        try:
            await asyncio.shield(sent)  # it closes the descriptors when it is done
        except BrokenPipeError:
            raise _Left from None
        return has_descriptors

    def handle_call_exception(self, exc: BaseException, oneway: bool) -> None:  # noqa: ARG002
        """Raise the reply for an exception of a method; details of an unexpected one only go to the log."""
        if isinstance(exc, VmessError):
            raise wire_errors.reply(exc)
        log.error("a call failed unexpectedly", exc_info=exc)
        raise GenericVarlinkErrorReply(
            Failed.wire_name(),
            {"message": "unexpected failure; vmessd's log has the details", "hint": refusals.LOG},
        )


async def _run(work: Any) -> None:
    await work


def _converted(
    signature: VarlinkMethodSignature, given: Mapping[str, Any], passed: FileDescriptor | None
) -> Mapping[str, Any]:
    """Return the parameters of a call; raises InvalidParameter. The caller closes what was passed along.

    If nothing was passed along, the descriptor 0 of a call is an invalid one.
    """
    handed = FileDescriptorArray(signature, [None] if passed is None else ())
    if passed is not None:
        handed.add(FileDescriptor(passed, should_close=False))
    try:
        found: Mapping[str, Any] = signature.parameter_type.fromjson(given, {FileDescriptorVarlinkType: handed})
    except ConversionError as error:
        raise InvalidParameter(parameter=error.location[0]) from error
    if (mistaken := _mistaken(signature, given)) is not None:
        raise InvalidParameter(parameter=mistaken)
    return found


def _mistaken(signature: VarlinkMethodSignature, given: Mapping[str, Any]) -> str | None:
    """Return a parameter that is a boolean instead of a number; the library would accept it as 1 or 0."""
    wanted = signature.parameter_type.as_type.__annotations__
    return next(
        (name for name, value in given.items() if isinstance(value, bool) and not _may_be(bool, wanted[name])),
        None,
    )


def _may_be(kind: type, annotation: Any) -> bool:
    return kind in {annotation, *typing.get_args(annotation)}


async def _each(results: Any) -> AsyncGenerator[AnnotatedResult, None]:
    """Yield the results of a method: a value, the result of an awaitable, or all items of an iterator."""
    if isinstance(results, AsyncIterator):
        async with contextlib.aclosing(results) as items:  # type: ignore[type-var]
            async for result in items:
                yield result
    else:
        yield await results if inspect.isawaitable(results) else results
