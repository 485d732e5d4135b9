"""Cables between VMs: a change of one end is noted at the other, and each guest sees what happens there.

Both files say where a cable leads, and only if they agree it is one (:mod:`vmessd.storage.cable_notes`). So a
new cable is noted at its other end first, and an old one last: whenever this process dies in between, one end
names the other in vain, `info` says so, and the same command completes the change.
"""

import asyncio
import contextlib
import functools
import logging
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, NamedTuple, TypeVar

from vmessd.core.errors import InvalidValue, NoSuchVM, VmessError, quoted
from vmessd.core.impairments import Direction
from vmessd.core.models.wires import Step
from vmessd.core.wires import End, cables, parse_wire, parse_wires
from vmessd.devices.network_interfaces import NetworkInterfaces

log = logging.getLogger(__name__)

_T = TypeVar("_T")

Find = Callable[[str], Awaitable[NetworkInterfaces]]
Ends = Mapping[int, End]
"""The other ends of the cables of a VM, by interface."""


class _Note(NamedTuple):
    """What the VM at the other end of a cable says of it."""

    wires: NetworkInterfaces
    interface: int
    end: End
    """This end, which the note names."""

    async def is_there(self) -> bool:
        """Tell whether it is noted."""
        return (await self.wires.cabled()).get(self.interface) == self.end


class Cabling:
    """The cables between the VMs of one root."""

    def __init__(self, find: Find, begun: Find, check_unlocked: Callable[[str], Awaitable[object]]) -> None:
        """`find` returns the interfaces of a VM; `begun` does so when no start is in progress."""
        self._find = find
        self._begun = begun
        self._check_unlocked = check_unlocked
        self._turns = weakref.WeakValueDictionary[str, asyncio.Lock]()
        """One change of the cables of a VM at a time; a name may be that of no VM."""
        self._changes: set[asyncio.Task[Any]] = set()
        self._followers: set[asyncio.Task[None]] = set()

    async def finished(self) -> None:
        """Return when no change is in progress; links do not follow any longer."""
        for follower in self._followers:
            follower.cancel()
        if self._changes:
            await asyncio.wait(self._changes)

    # -- Changes --

    async def connect(self, name: str, index: int, word: str) -> list[Step]:
        """Plug an interface into something else; raises as NetworkInterfaces.connect and :meth:`_replug`."""
        wire, wires = parse_wire(word), await self._begun(name)
        cabled = await wires.cabled()
        if wire.cable is None and index not in cabled:
            return await wires.connect(index, word, cabled)

        def wanted(before: Ends) -> Ends:
            kept = {number: end for number, end in before.items() if number != index}
            return {**kept, index: wire.cable} if wire.cable else kept

        def work(before: Ends) -> Awaitable[list[Step]]:
            return wires.connect(index, word, before)

        return await self._shielded(self._replug(wires, {index}, wanted, work))

    async def arrange(self, name: str, count: int, words: Sequence[str]) -> list[Step]:
        """Give a VM exactly these interfaces; raises as NetworkInterfaces.arrange and :meth:`_replug`."""
        after, wires = cables(parse_wires(count, words)), await self._begun(name)
        cabled = await wires.cabled()
        if not cabled and not after:
            return await wires.arrange(count, words, cabled)

        def work(before: Ends) -> Awaitable[list[Step]]:
            return wires.arrange(count, words, before)

        return await self._shielded(self._replug(wires, after.keys(), lambda _before: after, work))

    async def cable(self, name: str, index: int, *, on: bool) -> str | None:
        """Plug in or pull the cable of an interface, as NetworkInterfaces.cable; the other end sees it."""
        wires = await self._begun(name)
        note = await wires.cable(index, on=on)
        await self._follow(end.vm for end in (await wires.cabled()).values())
        return note

    async def impair(
        self, name: str, index: int, direction: Direction | None, words: Sequence[str]
    ) -> str | None:
        """Impair the cable of an interface, as NetworkInterfaces.impair; a cable has two ends, so in turn."""
        wires = await self._begun(name)
        note = await wires.impair(index, direction, words)
        await self._follow(end.vm for end in (await wires.cabled()).values())
        return note

    async def remove(self, name: str, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do the work that removes a VM, and pull its cables out of other VMs; raises what the work raises.

        Raises:
            Locked: one of the other VMs is locked.
        """
        wires = await self._find(name)
        if not await wires.cabled():
            return await work()
        return await self._shielded(self._replug(wires, (), lambda _before: {}, lambda _before: work()))

    async def rename(self, name: str, new: str, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do the work that renames a VM, and note the new name at other ends; raises as :meth:`remove`."""
        wires = await self._find(name)
        before = await wires.cabled()
        return await self._shielded(self._rename(wires, new, before, work)) if before else await work()

    async def _rename(
        self, wires: NetworkInterfaces, new: str, before: Mapping[int, End], work: Callable[[], Awaitable[_T]]
    ) -> _T:
        async with self._in_turn({wires.vm, new, *(end.vm for end in before.values())}):
            notes = await self._notes(wires.vm, before)
            done = await work()
            for note in notes:
                renamed = End(new, note.end.interface)
                await self._quietly(note.wires.release(note.interface, note.end, renamed))
        await self._follow([new, *(note.wires.vm for note in notes)])
        return done

    async def _replug(
        self,
        wires: NetworkInterfaces,
        asked: Collection[int],
        wanted: Callable[[Ends], Ends],
        work: Callable[[Ends], Awaitable[_T]],
    ) -> _T:
        """Do the work that changes the connections of a VM, and note its cables at their other ends.

        `wanted` returns the cables afterwards for those before, and `work` gets these. Only at the interfaces
        that were `asked` for is a cable plugged in that the other end does not know.

        Raises:
            InvalidValue: a cable would lead to its own VM, or to an interface that is not free.
            NoSuchVM: there is no VM at its other end.
            Locked: a VM is locked in which a cable would have to be noted, or not any longer.
            VmessError: raised by the work, or the other end cannot be changed. Nothing was changed.
        """
        vm = wires.vm
        while True:
            before = await wires.cabled()
            after = wanted(before)
            vms = {vm, *(end.vm for end in (*before.values(), *after.values()))}
            async with self._in_turn(vms):
                if await wires.cabled() != before:  # somebody else had the turn
                    continue
                new = await self._missing(vm, {index: after[index] for index in asked if index in after})
                lost = {index: end for index, end in before.items() if after.get(index) != end}
                done = await self._plug(new, await self._notes(vm, lost), functools.partial(work, before))
            await self._follow(vms)
            for note in new:
                await note.wires.bounce(note.interface)
            return done

    async def _plug(self, new: Sequence[_Note], old: Sequence[_Note], work: Callable[[], Awaitable[_T]]) -> _T:
        """Do the work after new notes were made and before old ones are removed; raises as :meth:`_replug`."""
        made: list[_Note] = []
        try:
            for note in new:
                if await note.wires.accept(note.interface, note.end):
                    made.append(note)  # noqa: PERF401 -- those before one that fails count
            done = await work()
        except BaseException:
            for note in made:
                await self._quietly(note.wires.release(note.interface, note.end))
            raise
        for note in old:
            await self._quietly(note.wires.release(note.interface, note.end))
        return done

    async def _missing(self, vm: str, ends: Mapping[int, End]) -> list[_Note]:
        """Return the notes that cables of a VM lack at their other ends; raises as :meth:`_replug`."""
        found: list[_Note] = []
        for index, end in ends.items():
            if end.vm == vm:
                raise InvalidValue(f"cable {quoted(end)} of {vm} leads to {vm} itself; it needs another VM")
            note = _Note(await self._begun(end.vm), end.interface, End(vm, index))
            if not await note.is_there():
                await self._check_unlocked(end.vm)
                found.append(note)
        return found

    async def _notes(self, vm: str, ends: Mapping[int, End]) -> list[_Note]:
        """Return the notes that cables of a VM have at their other ends; raises Locked."""
        found: list[_Note] = []
        for index, end in ends.items():
            with contextlib.suppress(NoSuchVM):
                note = _Note(await self._begun(end.vm), end.interface, End(vm, index))
                if await note.is_there():
                    await self._check_unlocked(end.vm)
                    found.append(note)
        return found

    @contextlib.asynccontextmanager
    async def _in_turn(self, vms: Collection[str]) -> AsyncIterator[None]:
        """Let nobody else change the cables of these VMs for the duration of a `with`."""
        async with contextlib.AsyncExitStack() as turns:
            for vm in sorted(vms):
                await turns.enter_async_context(self._turns.setdefault(vm, asyncio.Lock()))
            yield

    async def _quietly(self, work: Awaitable[None]) -> None:
        """Do the part of a change that is shown by `info` if it fails."""
        try:
            await work
        except VmessError as error:
            log.warning("a cable is still noted at its other end: %s", error.message)

    async def _shielded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return the result of the work, which continues if the caller is cancelled."""
        task = asyncio.get_running_loop().create_task(work)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    # -- Links that follow --

    async def other_ends(self, name: str) -> dict[int, str | None]:
        """Return for each cable of a VM why its other end is dead, in words; None if it is live."""
        wires = await self._find(name)
        return {
            index: await self._why_dead(End(wires.vm, index), end)
            for index, end in (await wires.cabled()).items()
        }

    async def _why_dead(self, here: End, there: End) -> str | None:
        try:
            return await (await self._find(there.vm)).why_dead(there.interface, here)
        except NoSuchVM:
            return f"there is no VM {there.vm}"
        except VmessError as error:
            return f"the state of {there.vm} is not known: {error.message}"

    def changed(self, vm: str) -> None:
        """Have guests see that the state of a VM, or a setting of its cables, has changed."""
        task = asyncio.get_running_loop().create_task(self._follow_all(vm))
        self._followers.add(task)
        task.add_done_callback(self._followers.discard)

    async def _follow_all(self, vm: str) -> None:
        with contextlib.suppress(VmessError):
            ends = await (await self._find(vm)).cabled()
            if ends:
                await self._follow({vm, *(end.vm for end in ends.values())})

    async def _follow(self, vms: Iterable[str]) -> None:
        for vm in sorted(set(vms)):
            with contextlib.suppress(VmessError):
                await (await self._find(vm)).follow()
