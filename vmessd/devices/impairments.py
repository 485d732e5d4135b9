"""The impaired cables of one VM: recorded in its file IMPAIRMENTS, applied to its TAPs, flapped in its QEMU.

The file is written first, and restored if the kernel refuses. A start applies it, since TAPs may be new then.

A cable that *flaps* is plugged in and pulled in turn. That ends with the VM: a start forgets it, and a daemon
that adopts the VM continues with it.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from vmessd.core import impairments
from vmessd.core.errors import Failed, NotRunning, VmessError
from vmessd.core.impairments import PERFECT, Direction, Impaired
from vmessd.core.lifecycle import OFF
from vmessd.core.models.wires import Flap, Impairment
from vmessd.devices.cables import Cables
from vmessd.devices.nic_files import IMPAIRMENTS
from vmessd.network.impairments import way_out_name
from vmessd.network.links import Network
from vmessd.network.nics import Nic
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)


class _Flapping(NamedTuple):
    """A cable that flaps, and the task that sees to it."""

    flap: Flap
    task: asyncio.Task[None]


class ImpairedCables:
    """The impairments of one machine, by interface; `lock` is the lock of its network interfaces."""

    def __init__(self, machine: Machine, network: Network, cables: Cables, lock: asyncio.Lock) -> None:
        self.vm = machine.vm
        self._machine = machine
        self._network = network
        self._cables = cables
        self._lock = lock
        self._flaps: dict[int, _Flapping] = {}

    # -- Queries --

    async def noted(self, files: VMDirectory | None = None) -> dict[int, Impaired]:
        """Return what is noted, by interface; raises BadFile. `files` as for NetworkInterfaces.nics."""
        return await self._machine.files.aside(lambda: self._read(files or self._machine.home))

    def _read(self, directory: VMDirectory) -> dict[int, Impaired]:
        return directory.read_setting(IMPAIRMENTS) or {}

    def flap(self, index: int) -> Flap | None:
        """Return how the cable of an interface flaps now; None if it does not."""
        running = self._machine.state not in OFF
        return self._flaps[index].flap if running and index in self._flaps else None

    def unmet(self, nic: Nic, one: Impaired) -> str | None:
        """Return why the cable of an interface is not impaired as it is noted, in words; None if it is."""
        if one.incoming is None and one.outgoing is None:
            return None
        if nic.by_qemu:
            return "QEMU carries its frames, and impairs none"
        unmet = self._network.impairments.unmet
        for link in (nic.link if one.incoming else None, nic.far if one.outgoing else None):
            if link is not None and (unmet(link.name) or not link.impaired):
                return unmet(link.name) or "another program has ended it, a start renews it"
        return unmet(way_out_name(nic.tap.name)) if nic.link is not None else None

    # -- Changes --

    async def set(self, nic: Nic, direction: Direction | None, words: Sequence[str]) -> None:
        """Impair the cable of an interface in one direction, or in both for None, now and at every start.

        `words` are as for impairments.parse: `good` ends it. The caller holds the lock.

        Raises:
            InvalidValue: the words are invalid.
            Failed, NotPermitted: it is not possible, and nothing was changed.
            BadFile: IMPAIRMENTS is invalid.
        """
        impairment = impairments.parse(words)
        if impairment is not None and nic.by_qemu:
            kind = "is in the user network" if nic.wire.user else "has no TAP"
            raise Failed(
                f"interface {nic.index} of {self.vm} {kind}: QEMU itself carries its frames, and can neither "
                "delay nor lose them; flap, on and off work",
                hint=f"vmess {self.vm} cable {nic.index} flap 5s/1s",
            )
        if impairment is None and direction is None:
            await self.end_flap(nic.index)
        await self._machine.change(functools.partial(self._set, nic.index, direction, impairment))

    def _set(self, index: int, direction: Direction | None, impairment: Impairment | None) -> None:
        """Change what is noted for an interface, and apply it; blocks."""
        before = self._read(self._machine.home)
        after = before.get(index, PERFECT).with_direction(direction, impairment)
        if impairment is None and direction is None:  # a flap may be noted that has ended with its VM
            after = PERFECT
        self._write({**before, index: after})
        try:
            self._network.impair(self.vm, index)
        except BaseException:
            self._write(before)
            with contextlib.suppress(VmessError):
                self._network.impair_all(self.vm)
            raise

    def _write(self, noted: dict[int, Impaired]) -> None:
        self._machine.home.write_setting(IMPAIRMENTS, impairments.file_text(noted) or None)

    # -- Flapping --

    async def begin_flap(self, index: int, text: str) -> None:
        """Plug in and pull a cable in turn, until something else is done with it; the caller holds the lock.

        Raises:
            InvalidValue: the text is not two times.
            NotRunning: the VM is off.
            Failed: the cable is pulled.
            BadFile: IMPAIRMENTS or CABLES is invalid.
        """
        flap = impairments.parse_flap(text)
        if self._machine.state in OFF:
            raise NotRunning(
                f"VM {self.vm} is not running: a cable flaps while it runs", hint=f"vmess {self.vm} start"
            )
        if index in (await self._cables.loose()).pulled:
            raise Failed(
                f"the cable of interface {index} of {self.vm} is pulled, so it cannot flap",
                hint=f"vmess {self.vm} cable {index} on",
            )
        await self.end_flap(index)
        await self._note_flap(index, flap)
        self._start(index, flap)

    async def end_flap(self, index: int) -> None:
        """End the flapping of a cable, if it does; it is plugged in. The caller holds the lock."""
        if index in self._flaps:
            self._flaps.pop(index).task.cancel()
            await self._sag(index, down=False)  # first: the file may be something else, or the disk full
            await self._note_flap(index, None)

    async def go_on(self, present: Collection[int], *, fresh: bool) -> None:
        """Let cables flap as under an earlier daemon, or after a start, forget that. Raises VmessError."""
        self.finish()
        for index, one in (await self.noted()).items():
            if one.flap is not None:
                if fresh or index not in present:
                    await self._note_flap(index, None)
                else:
                    await self._sag(index, down=False)
                    self._start(index, one.flap)

    async def _note_flap(self, index: int, flap: Flap | None) -> None:
        def work() -> None:
            before = self._read(self._machine.home)
            self._write({**before, index: replace(before.get(index, PERFECT), flap=flap)})

        await self._machine.change(work)

    def _start(self, index: int, flap: Flap) -> None:
        task = asyncio.get_running_loop().create_task(self._flap(index, flap, self._machine.status().pid))
        self._flaps[index] = _Flapping(flap, task)

    async def _flap(self, index: int, flap: Flap, pid: int | None) -> None:
        """Pull the cable of a run of QEMU and plug it in again, until one of them is gone."""
        down = False
        while True:
            await asyncio.sleep(flap.down if down else flap.up)
            async with self._lock:
                over = self._machine.status().pid != pid or self._machine.state in OFF
                if over or not await self._sag(index, down=not down):
                    self._flaps.pop(index, None)
                    with contextlib.suppress(VmessError):
                        await self._note_flap(index, None)
                    return
            down = not down

    async def _sag(self, index: int, *, down: bool) -> bool:
        """Pull a cable for a while, or plug it in again; return whether that was possible."""
        try:
            await self._cables.sag(index, down=down)
        except VmessError as error:
            log.info("%s: cable %d flaps no more: %s", self.vm, index, error.message)
            return False
        self._machine.moved()  # the guest at the other end sees it as well
        return True

    def finish(self) -> None:
        """Leave cables as they are; the next daemon lets them flap again."""
        for flapping in self._flaps.values():
            flapping.task.cancel()
        self._flaps.clear()
