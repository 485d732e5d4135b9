"""The cables of one VM: recorded in its file CABLES, applied to its QEMU.

QEMU has a link state for each card but does not report it (see `hotplug`), so this module remembers it. The
file is written before a cable is pulled. If a daemon dies in between, the next one pulls the cable.

The card of a VM sees its link up if its cable is in and the other end of the cable is not *dead*: another VM
may be off, or have pulled it. The supervisor knows that (`vmessd.supervisor.cabling`), and says so here.

A *bounce* pulls a cable for a moment, so that the guest looks for its neighbours again.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Collection, Mapping

from vmessd.core import nic_hardware
from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import OFF, State
from vmessd.core.nic_hardware import Loose
from vmessd.core.settings import ALWAYS, BY_FILE, CARRIER
from vmessd.devices.hotplug import Cards
from vmessd.qemu import command_line
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

CABLES, NIC_MODEL = BY_FILE["CABLES"], BY_FILE["NIC_MODEL"]

BOUNCE_TIME = 1.2
"""Seconds for which a bounced cable is out.

Linux checks links once a second (net/core/link_watch.c). Measured with Linux 6.1, virtio and e1000 under TCG:
the guest noticed each bounce, and answered pings over IPv6 again one second later.
"""


class Cables:
    """The cables of one machine, by interface; `lock` is the lock of its network interfaces."""

    def __init__(self, machine: Machine, plugged: Cards, lock: asyncio.Lock) -> None:
        self.vm = machine.vm
        self._machine = machine
        self._cards = plugged
        self._lock = lock
        self._pid: int | None = None
        self._known: dict[int, bool] = {}
        self._links: dict[int, bool] = {}
        """The link states that this daemon has set in the present QEMU."""
        self._dead: frozenset[int] = frozenset()
        """The interfaces whose cable has a dead other end."""
        self.sagging: set[int] = set()
        """The interfaces whose cable is out because it flaps."""
        self._bounces: dict[int, asyncio.Task[None]] = {}
        self._hurry = asyncio.Event()

    # -- Queries --

    async def states(
        self, indices: Collection[int], files: VMDirectory | None = None
    ) -> dict[int, bool | None]:
        """Return whether each cable is in; None if unknown. `files` as for NetworkInterfaces.nics."""
        loose: Loose | None = None
        with contextlib.suppress(VmessError):
            loose = await self.loose(files)
        record = self._machine.record()
        if loose is None or (record is not None and not record.cables):
            noted: dict[int, bool | None] = dict.fromkeys(indices)
        else:
            noted = {index: index not in loose.pulled for index in indices}
        known = self._done() if record is not None else {}
        return noted | {index: known[index] for index in indices if index in known}

    async def loose(self, files: VMDirectory | None = None) -> Loose:
        """Return the contents of CABLES; raises BadFile, NoSuchVM. `files` as for NetworkInterfaces.nics."""
        directory = files or self._machine.home
        return await self._machine.files.aside(functools.partial(directory.read_setting, CABLES)) or Loose()

    def _done(self) -> dict[int, bool]:
        """Return the cables of the present QEMU that this daemon has changed, and whether they are in."""
        pid = self._machine.status().pid
        if pid != self._pid:
            self._pid = pid
            self._known = {}
            self._links = {}
            self._dead = frozenset()
            self.sagging.clear()
        return self._known

    async def unseen(self, index: int) -> str | None:
        """Return a warning if the guest cannot see the cable of this card, else None."""
        model = None
        with contextlib.suppress(VmessError):  # fall back to NIC_MODEL
            model = None if self._machine.state in OFF else await self._cards.model(index)
        if model is None:
            set_to = None
            with contextlib.suppress(VmessError):  # the next start reports the error
                read = functools.partial(self._machine.home.read_setting, NIC_MODEL)
                set_to = await self._machine.files.aside(read)
            model = command_line.model({NIC_MODEL.file: set_to} if set_to else {}, index)
        if nic_hardware.sees_cable(model):
            return None
        return f"{model} has no link state: the guest of {self.vm} does not notice it, but no frame passes"

    # -- Changes --

    async def note(self, index: int, *, on: bool) -> None:
        """Record whether a cable of a VM that is off is in; raises AlreadyRunning, BadFile, Failed."""
        directory = self._machine.home

        def work() -> None:
            loose = (directory.read_setting(CABLES) or Loose()).put(index, on=on)
            directory.write_setting(CABLES, str(loose) or None)

        await self._machine.change(work, stopped=True)

    async def put(self, index: int, *, on: bool) -> None:
        """Plug or pull a cable of a running VM, now and at every later start.

        The order of the steps ensures that a pulled cable is always recorded.

        Raises:
            BadFile: CABLES cannot be read.
            Failed, NotRunning, TimedOut: QEMU did not do it.
        """
        before = await self.loose()
        if not on:
            await self._note(before.put(index, on=False))
        try:
            await self._set_link(index, up=on)
        except VmessError:
            if not on:
                await self._note(before)
            raise
        self._cancel_bounce(index)  # not earlier: it would have plugged the cable in again
        if on:
            await self._note(before.put(index, on=True))

    async def enforce(self, present: Collection[int], ends: Mapping[int, str | None]) -> None:
        """Apply CABLES and the other ends to QEMU, and end bounces of an earlier daemon.

        `ends` as for :meth:`follow`.

        Raises:
            BadFile: CABLES cannot be read.
            Failed, NotRunning, TimedOut: QEMU did not do it.
        """
        await self.follow(ends, present)
        loose = await self.loose()
        now = loose.among(present)
        for index in now.pulled:
            await self._set_link(index, up=False)
        if loose.bounced and self._machine.state is not State.starting:
            for index in now.bounced:
                await self._set_link(index, up=True)
        if loose.bounced:
            await self._note(Loose(loose.pulled))

    async def follow(self, ends: Mapping[int, str | None], present: Collection[int]) -> None:
        """Have the guest see for each cable between VMs whether its other end is live.

        `ends` says for each interface with such a cable why the other end is dead, None if it is live.

        Raises:
            BadFile: CABLES cannot be read.
            Failed, NotRunning, TimedOut: QEMU did not do it.
        """
        self._done()
        concerned = (ends.keys() | self._dead) & set(present)
        if not concerned:
            return
        directory = self._machine.home
        follows = await self._machine.files.aside(lambda: directory.read_setting(BY_FILE[CARRIER])) != ALWAYS
        self._dead = frozenset(index for index, why in ends.items() if why is not None and follows)
        pulled = (await self.loose()).pulled
        for index in sorted(concerned - pulled - self._bounces.keys()):
            up = index not in self._dead | self.sagging
            if self._links.get(index) is not up:
                await self._show(index, up=up)

    async def show(self, present: Collection[int], ends: Mapping[int, str | None]) -> None:
        """Have QEMU show all cables as they are: the state of a card that was loaded has a link of its own.

        `ends` as for :meth:`follow`; raises as that.
        """
        await self.follow(ends, present)
        pulled = (await self.loose()).pulled
        for index in sorted(set(present) - self._bounces.keys()):
            await self._set_link(index, up=index not in pulled)

    async def replug(self, indices: Collection[int]) -> None:
        """Pull the cables of newly plugged cards if CABLES says so; raises as :meth:`enforce`."""
        self._done().update(dict.fromkeys(indices, True))
        for index in indices:
            self._links.pop(index, None)
        for index in (await self.loose()).pulled & set(indices):
            await self._set_link(index, up=False)

    async def bounce(self, indices: Collection[int]) -> None:
        """Pull cables that are in, and plug them in again soon; failures are logged.

        The caller must hold the lock. Cards without a link state are left out.
        """
        if not indices or self._machine.state not in (State.running, State.paused):
            return
        try:
            states, present = await self.states(indices), await self._cards.present()
            plugged = [index for index in indices if index in present and not self._cards.is_leaving(index)]
            shown = [index for index in plugged if states[index] and index not in self._dead | self.sagging]
            wanted = [index for index in shown if not await self.unseen(index)]
            if not wanted:
                return
            loose = await self.loose()
            await self._note(dataclasses.replace(loose, bounced=loose.bounced | set(wanted)))
            for index in wanted:
                self._cancel_bounce(index)
                self._bounces[index] = asyncio.get_running_loop().create_task(self._end_bounce(index))
            for index in wanted:
                await self._show(index, up=False)
        except VmessError as error:
            log.warning("%s: the link of the guest is not bounced: %s", self.vm, error.message)

    def _cancel_bounce(self, index: int) -> None:
        """Leave a bounced cable as it is now."""
        if index in self._bounces:
            self._bounces.pop(index).cancel()

    async def _end_bounce(self, index: int) -> None:
        """Plug a bounced cable in again after BOUNCE_TIME."""
        pid = self._machine.status().pid
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), BOUNCE_TIME)
        async with self._lock:
            self._bounces.pop(index, None)
            try:
                if pid == self._machine.status().pid and self._machine.state not in OFF:
                    await self._set_link(index, up=True)
                loose = await self.loose()
                await self._note(dataclasses.replace(loose, bounced=loose.bounced - {index}))
            except VmessError as error:
                log.info("%s: cable %d after its bounce: %s", self.vm, index, error.message)

    async def finished(self) -> None:
        """End all bounces now."""
        self._hurry.set()
        if self._bounces:
            await asyncio.wait(self._bounces.values())

    async def _set_link(self, index: int, *, up: bool) -> None:
        known = self._done()
        known.pop(index, None)
        await self._show(index, up=up and index not in self._dead | self.sagging)
        known[index] = up

    async def sag(self, index: int, *, down: bool) -> None:
        """Pull a cable for a while, or plug it in again; raises Failed, NotRunning, TimedOut."""
        self._done()
        (self.sagging.add if down else self.sagging.discard)(index)
        if index not in self._bounces:  # else its end shows it
            await self._show(index, up=not down and index not in self._dead)

    async def _show(self, index: int, *, up: bool) -> None:
        self._links.pop(index, None)
        await self._cards.set_link(index, up=up)
        self._links[index] = up

    async def _note(self, loose: Loose) -> None:
        work = functools.partial(self._machine.home.write_setting, CABLES, str(loose) or None)
        await self._machine.change(work)
