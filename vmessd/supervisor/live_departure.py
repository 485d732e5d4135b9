"""A VM that leaves while its guest runs: offered as one that is off, then its disks and its memory go along.

The guest runs here until everything is there. It is paused from the last part of its memory on until
the QEMU here has ended and the other side was told to continue.
"""

import asyncio
import contextlib
import dataclasses
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from vmessd.core import ownership, refusals
from vmessd.core.errors import AlreadyRunning, Failed, TimedOut, VmessError, quoted
from vmessd.core.lifecycle import OFF, State
from vmessd.core.models.moves import MoveProgress, MoveStep
from vmessd.core.moves import Answer, Decision, Said, Word
from vmessd.core.quantities import size_shown
from vmessd.core.settings import BY_FILE
from vmessd.core.words import Runstate
from vmessd.devices import cpu_features, live_move
from vmessd.devices.live_images import error_of
from vmessd.devices.live_move import RAM, Outgoing, Standing
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import owner
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor.leaving import TELL_EVERY, Leaving, Order
from vmessd.supervisor.move_channel import STALL_TIME, ConnectionBroke, MoveChannel
from vmessd.supervisor.offers import SAME
from vmessd.vm import same_machine
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import ASLEEP

_T = TypeVar("_T")

CONNECT_TIME = 60.0
"""Seconds in which the client has to bring the connections."""
SWITCH_TIME = 30.0
"""Seconds in which the other side has to answer while the guest is paused."""


class LiveDeparture(Leaving):
    """One VM whose guest is on its way to another host."""

    is_live = True

    def __init__(self, machine: Machine, order: Order, channel: MoveChannel, host: Host) -> None:
        super().__init__(machine, order, channel, host)
        self._outgoing: Outgoing | None = None
        self._connections: dict[str, socket.socket] = {}
        self._wanted: frozenset[str] = frozenset()
        """The names of the connections that it waits for."""
        self._joined = asyncio.Event()
        self._standing: Standing | None = None
        self._guest: dict[str, Any] = {}
        self._cpu: dict[str, str] = {}
        self._runs = self._was_asleep = False
        self._owner = ""
        """What OWNER says, if it is the owner who moves the VM."""
        self._over: asyncio.Task[Any] = self._loop.create_task(asyncio.sleep(0))
        """Done when the QEMU has ended."""

    def _more(self) -> dict[str, Any]:
        """Return what an offer says of a guest that runs."""
        return self._guest

    def _has_twin(self) -> bool:
        return bool(self._owner)

    def _opened(self, directory: VMDirectory) -> None:
        record = self.machine.record()
        if record is None:
            raise Failed(f"VM {self.vm} has ended just now", hint="repeat the move")
        try:
            origin = same_machine.origin(directory, self._host, record)
        except Failed as error:
            raise Failed(error.message, hint=self._powered_down()) from None
        if directory.read_setting(BY_FILE["TPM"]):
            raise Failed(
                f"{self.vm} has a TPM, whose state does not go along while it runs",
                hint=self._powered_down(),
            )
        self.record = dataclasses.replace(self.record, paused=not self._runs)
        super()._opened(directory)
        if self.order.acts_for and self.order.shared and not self.order.bridges:
            found = owner.read(directory)
            self._owner = ownership.shown(found) if found is not None else ""
        self._guest = {
            "live": True,
            "runs": self._runs,
            "disks": self.export.blank,
            "qemu": origin.qemu,
            "argv": origin.argv,
            "directory": origin.directory,
            "cpu": self._cpu,
            "owner": self._owner,
        }

    def _powered_down(self) -> str:
        return f"to power it down for that: vmess {self.vm} move HOST --offline"

    async def begin(self) -> None:
        """Offer the VM; raises as Departures.move."""
        if self.machine.state not in (State.running, State.paused):
            raise AlreadyRunning(
                f"VM {self.vm} is {self.machine.state.value}, so it does not move now",
                hint=f"vmess {self.vm} status",
            )
        self._run = self.machine.live()
        self._was_asleep = self._run.runstate == ASLEEP
        self._runs = self._was_asleep or self.machine.state is State.running
        if self._run.runstate == Runstate.postmigrate:  # QEMU refuses it after all disks were mirrored
            raise Failed(
                f"{self.vm} was suspended when a move failed, and moves again after it has run",
                hint=f"vmess {self.vm} resume; or: vmess {self.vm} move HOST --offline",
            )
        if why := await live_move.blocked(self._run):
            raise Failed(
                f"{self.vm} does not move while its guest runs; QEMU says: {why}", hint=self._powered_down()
            )
        self._over = self._loop.create_task(self._run.over.wait())
        self._cpu = await cpu_features.of(self._run)
        await super().begin()

    def join(self, name: str, connected: socket.socket) -> None:
        """Take a connection to the QEMU of the other host; raises Failed if it is not wanted."""
        if name not in self._wanted or name in self._connections:
            connected.close()
            raise Failed(f"the move of VM {self.vm} wants no connection {quoted(name)}", hint="repeat the move")
        self._connections[name] = connected
        self._joined.set()

    async def send(self) -> AsyncGenerator[MoveProgress, None]:
        """Send everything until the guest is paused and on the other host; raises as Departures.move."""
        async with contextlib.aclosing(self._send_archive()) as steps:
            async for step in steps:
                yield step
        channels = [one.rpartition(":")[2] for one in self._last_answer.channels or []]
        if sorted(channels) != sorted([*self.export.blank, RAM]):
            raise Failed(f"{self.order.host}: it wants other connections than this move has", hint=SAME)
        self._wanted = frozenset(channels)
        answer = self._listen()
        try:
            yield dataclasses.replace(self.step(MoveStep.connecting), wants=self._last_answer.channels)
            await self._unless(answer, self._have(), CONNECT_TIME)
            outgoing = self._outgoing = Outgoing(self._run, self.export.blank, self.order.bandwidth)
            with self._freed():
                await self._unless(answer, outgoing.begin_mirror(self._connections))
            async for done, size in self._while(answer, outgoing.mirrored()):
                yield self._at(MoveStep.mirroring, done, size)
            await self._unless(answer, outgoing.begin_memory(self._connections[RAM]))
            told = 0.0
            async for now in self._while(answer, outgoing.sent()):
                self._standing = now
                if now.status == "active" and time.monotonic() - told >= TELL_EVERY:
                    told = time.monotonic()
                    yield dataclasses.replace(
                        self._at(MoveStep.memory, now.sent, now.sent + now.left),
                        dirtied=now.dirtied,
                        speed=now.speed,
                    )
            await self._unless(answer, outgoing.end_mirror(), SWITCH_TIME)
            answer = await self._asked(answer, Word.close, Said.closed)
            await self._unless(answer, outgoing.switch(), SWITCH_TIME)
            answer = await self._asked(answer, Word.load, Said.loaded)
        except TimeoutError:
            raise refusals.silent(self.vm, self._run.pid) from None
        except (CommandRefused, TimedOut) as error:
            raise error_of(self._run, error, "the move") from None
        finally:
            answer.cancel()
            await asyncio.wait({answer})
            for one in self._connections.values():
                one.close()  # QEMU has its own descriptors

    def _too_slow(self) -> str:
        now = self._standing
        if now is None:
            return super()._too_slow()
        rates = f"{size_shown(now.dirtied)} of its memory in a second, and {size_shown(now.speed)} are sent"
        return f"its guest changes {rates}: give it more time, or more bandwidth, or move it --offline"

    def _listen(self) -> "asyncio.Task[Answer]":
        return self._loop.create_task(self.channel.answer(None))

    @contextlib.contextmanager
    def _freed(self) -> Iterator[None]:
        """Cut the connections on an error: QEMU waits until the disks there have greeted it."""
        try:
            yield
        except BaseException:
            for one in self._connections.values():
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            raise

    async def _have(self) -> None:
        while not self._wanted <= self._connections.keys():
            self._joined.clear()
            await self._joined.wait()

    async def _asked(self, answer: "asyncio.Task[Answer]", word: Word, wanted: Said) -> "asyncio.Task[Answer]":
        """Tell the other side what has been done, and wait for its answer; return the next one."""
        await self.channel.say(Decision(word, self.record.key))
        heard = await self._answered(answer, SWITCH_TIME)
        if heard.said != wanted:
            raise ConnectionBroke(f"{self.order.host}: it said {heard.said!r} in place of {wanted.value!r}")
        return self._listen()

    async def _unless(
        self, answer: "asyncio.Task[Answer]", work: Coroutine[Any, Any, _T], patience: float = STALL_TIME
    ) -> _T:
        """Do work unless the other side says something, which is that it has failed, or the time is over."""
        task = self._loop.create_task(work)
        try:
            left = max(0.0, min(patience, self._deadline - self._loop.time()))
            await asyncio.wait({task, answer, self._over}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            await self._wait_unless(answer, 0.0)
            self._check_alive()
            if not task.done():
                raise ConnectionBroke(f"{self.order.host}: nothing moved for {patience:g} s")
            return await task
        finally:
            task.cancel()
            await asyncio.wait({task})

    def _check_alive(self) -> None:
        """Raise Failed if the QEMU that has the guest has ended; another one may have been started since."""
        if self._run.over.is_set():
            raise Failed(f"VM {self.vm} has ended meanwhile, which ended the move", hint=f"vmess {self.vm} why")

    async def _while(self, answer: "asyncio.Task[Answer]", steps: AsyncIterator[_T]) -> AsyncIterator[_T]:
        """Yield steps of long work, as :meth:`_unless`."""
        iterator = aiter(steps)

        async def following() -> tuple[bool, _T | None]:
            try:
                return True, await anext(iterator)
            except StopAsyncIteration:
                return False, None

        while (found := await self._unless(answer, following()))[0]:
            yield found[1]  # type: ignore[misc]

    def _at(self, step: MoveStep, sent: int, size: int) -> MoveProgress:
        return dataclasses.replace(self.step(step), sent=sent, size=size)

    async def end_here(self, uid: int | None) -> None:
        """End the QEMU here, whose guest is paused and on the other host.

        Nothing starts here any more, because the move is noted as handed over. Raises Failed if QEMU does not
        end, or had ended before: then the guest may have begun again, on disks that both hosts share.
        """
        self._check_alive()
        self._run.moved_to = self.order.host
        async for _ in self.machine.stop(uid, force=True):
            pass
        if self.machine.state not in OFF:
            raise refusals.undying(self.vm, self._run.pid)

    def last(self) -> MoveProgress:
        """Return the last step: the guest runs on the other host by now."""
        self._over.cancel()
        notes = (
            ["it was asleep, and is awake now: QEMU wakes a guest that it sends"] if self._was_asleep else None
        )
        return dataclasses.replace(super().last(), stood_still=time.monotonic() - self._run.halted, notes=notes)

    async def undo(self) -> None:
        """Let the VM be as it was: the guest continues here."""
        if self._outgoing is not None:
            undoing = self._loop.create_task(self._outgoing.undo(runs=self._runs))
            await asyncio.shield(asyncio.wait({undoing, self._over}, return_when=asyncio.FIRST_COMPLETED))
            undoing.cancel()
            with contextlib.suppress(VmessError, CommandRefused, asyncio.CancelledError):
                await undoing
        self._over.cancel()
        await super().undo()
