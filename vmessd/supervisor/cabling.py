"""Cables between VMs: a change of one end is noted at the other, and each guest sees what happens there.

Both files say where a cable leads, and only if they agree it is one (:mod:`vmessd.storage.cable_notes`). So a
new cable is noted at its other end first, and an old one last: whenever this process dies in between, one end
names the other in vain, `info` says so, and the same command completes the change.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
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
from typing import Any, TypeVar

from vmessd.core.errors import InvalidValue, NoSuchVM, VmessError, quoted
from vmessd.core.models.wires import Step
from vmessd.core.wires import End, cables, parse_wire, parse_wires
from vmessd.devices.network_interfaces import NetworkInterfaces

log = logging.getLogger(__name__)

_T = TypeVar("_T")

Find = Callable[[str], Awaitable[NetworkInterfaces]]


class Cabling:
    """The cables between the VMs of one root."""

    def __init__(self, find: Find, begun: Find, check_unlocked: Callable[[str], Awaitable[object]]) -> None:
        """`find` returns the interfaces of a VM; `begun` does so when no start is in progress."""
        self._find = find
        self._begun = begun
        self._check_unlocked = check_unlocked
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One change of the cables of a VM at a time."""
        self._changes: set[asyncio.Task[Any]] = set()
        self._followers: set[asyncio.Task[None]] = set()

    async def finished(self) -> None:
        """Return when no change is in progress; links do not follow any longer."""
        for follower in self._followers:
            follower.cancel()
        if self._changes:
            await asyncio.wait(self._changes)

    def forget(self, vm: str) -> None:
        """Forget a VM that is gone."""
        if vm in self._turns and not self._turns[vm].locked():
            del self._turns[vm]

    # -- Changes --

    async def connect(self, name: str, index: int, word: str) -> list[Step]:
        """Plug an interface into something else; raises as NetworkInterfaces.connect and :meth:`_replug`."""
        wire, wires = parse_wire(word), await self._begun(name)
        before = await wires.cabled()
        if wire.cable is None and index not in before:
            return await wires.connect(index, word, before)
        after = {number: end for number, end in before.items() if number != index}
        after |= {index: wire.cable} if wire.cable else {}
        return await self._shielded(
            self._replug(wires, before, after, lambda: wires.connect(index, word, before))
        )

    async def arrange(self, name: str, count: int, words: Sequence[str]) -> list[Step]:
        """Give a VM exactly these interfaces; raises as NetworkInterfaces.arrange and :meth:`_replug`."""
        after, wires = cables(parse_wires(count, words)), await self._begun(name)
        before = await wires.cabled()
        if not before and not after:
            return await wires.arrange(count, words, before)
        return await self._shielded(
            self._replug(wires, before, after, lambda: wires.arrange(count, words, before))
        )

    async def cable(self, name: str, index: int, *, on: bool) -> str | None:
        """Plug in or pull the cable of an interface, as NetworkInterfaces.cable; the other end sees it."""
        wires = await self._begun(name)
        note = await wires.cable(index, on=on)
        await self._follow(end.vm for end in (await wires.cabled()).values())
        return note

    async def remove(self, name: str, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do the work that removes a VM, and pull its cables out of other VMs; raises what the work raises.

        Raises:
            Locked: one of the other VMs is locked.
        """
        wires = await self._find(name)
        before = await wires.cabled()
        return await self._shielded(self._replug(wires, before, {}, work)) if before else await work()

    async def rename(self, name: str, new: str, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do the work that renames a VM, and note the new name at other ends; raises as :meth:`remove`."""
        wires = await self._find(name)
        before = await wires.cabled()
        return await self._shielded(self._rename(wires, new, before, work)) if before else await work()

    async def _rename(
        self, wires: NetworkInterfaces, new: str, before: Mapping[int, End], work: Callable[[], Awaitable[_T]]
    ) -> _T:
        others = await self._others(wires.vm, before)
        async with self._in_turn({wires.vm, new, *(other.vm for other in others.values())}):
            done = await work()
            for index, other in others.items():
                await self._quietly(
                    other.release(before[index].interface, End(wires.vm, index), End(new, index))
                )
        await self._follow([new, *(other.vm for other in others.values())])
        return done

    async def _replug(
        self,
        wires: NetworkInterfaces,
        before: Mapping[int, End],
        after: Mapping[int, End],
        work: Callable[[], Awaitable[_T]],
    ) -> _T:
        """Do the work that changes the connections of a VM, and note its cables at their other ends.

        Raises:
            InvalidValue: a cable would lead to its own VM, or to an interface that is not free.
            NoSuchVM: there is no VM at its other end.
            Locked: the VM at the other end of a cable, new or old, is locked.
            VmessError: raised by the work, or the other end cannot be changed. Nothing was changed.
        """
        vm = wires.vm
        lost = {index: end for index, end in before.items() if after.get(index) != end}
        old, new = await self._others(vm, lost), await self._wanted(vm, after)
        vms = {vm, *(other.vm for other in (*old.values(), *new.values()))}
        noted: list[tuple[NetworkInterfaces, int, End]] = []
        async with self._in_turn(vms):
            try:
                for index, other in new.items():
                    here, there = End(vm, index), after[index].interface
                    if await other.accept(there, here):
                        noted.append((other, there, here))
                done = await work()
            except BaseException:
                for other, there, here in noted:
                    await self._quietly(other.release(there, here))
                raise
            for index, other in old.items():
                await self._quietly(other.release(lost[index].interface, End(vm, index)))
        await self._follow(vms)
        for other, there, _ in noted:
            await other.bounce(there)
        return done

    async def _wanted(self, vm: str, after: Mapping[int, End]) -> dict[int, NetworkInterfaces]:
        """Return the interfaces of the VMs at the other ends of cables, by interface; raises as _replug."""
        found: dict[int, NetworkInterfaces] = {}
        for index, end in after.items():
            if end.vm == vm:
                raise InvalidValue(f"cable {quoted(end)} of {vm} leads to {vm} itself; it needs another VM")
            found[index] = await self._begun(end.vm)
            await self._check_unlocked(end.vm)
        return found

    async def _others(self, vm: str, ends: Mapping[int, End]) -> dict[int, NetworkInterfaces]:
        """Return the interfaces of the VMs at the other ends that agree; raises Locked."""
        found: dict[int, NetworkInterfaces] = {}
        for index, end in ends.items():
            with contextlib.suppress(NoSuchVM):
                other = await self._begun(end.vm)
                if (await other.cabled()).get(end.interface) == End(vm, index):
                    await self._check_unlocked(end.vm)
                    found[index] = other
        return found

    @contextlib.asynccontextmanager
    async def _in_turn(self, vms: Collection[str]) -> AsyncIterator[None]:
        """Let nobody else change the cables of these VMs for the duration of a `with`."""
        async with contextlib.AsyncExitStack() as turns:
            for vm in sorted(vms):
                await turns.enter_async_context(self._turns[vm])
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
