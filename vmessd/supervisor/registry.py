"""The supervisor of the VMs in one VM root: finds, makes, locks, sets, renames and removes them."""

import asyncio
import contextlib
import dataclasses
import difflib
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from vmessd.core import names
from vmessd.core.contract import METHODS, Method, Needs
from vmessd.core.errors import (
    AlreadyRunning,
    InvalidValue,
    Locked,
    NoSuchVM,
    NotRunning,
    TimedOut,
    VmessError,
    failing,
    printable,
    shell_line,
)
from vmessd.core.lifecycle import OFF
from vmessd.core.models.events import Kind
from vmessd.core.models.views import VMOverview
from vmessd.core.models.vms import NotVMs, VMStatus
from vmessd.core.moves import untold
from vmessd.core.settings import BY_FILE
from vmessd.devices.console import Consoles
from vmessd.devices.controls import Controls
from vmessd.devices.disks import Disks
from vmessd.devices.network_interfaces import NetworkInterfaces
from vmessd.devices.snapshots import Snapshots
from vmessd.devices.startup_typing import StartupTyping
from vmessd.devices.vnc import Relays
from vmessd.network.bridges import Segments
from vmessd.network.links import root_name
from vmessd.qemu.census import Sighting
from vmessd.qemu.session import Timing
from vmessd.storage import (
    backing,
    blocking,
    impairment_notes,
    root_lock,
    vmdir,
)
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.supervisor import leftovers, noted_wires
from vmessd.supervisor.arrivals import Arrivals
from vmessd.supervisor.cabling import Cabling
from vmessd.supervisor.changes import Changes
from vmessd.supervisor.clones import Clones
from vmessd.supervisor.departures import Departures
from vmessd.supervisor.housekeeping import Housekeeping
from vmessd.supervisor.images import Images
from vmessd.supervisor.leftovers import Leftovers
from vmessd.supervisor.locks import Locks
from vmessd.supervisor.mentions import mentions
from vmessd.supervisor.nats import Nats
from vmessd.supervisor.new_vms import NewVMs
from vmessd.supervisor.overview import Overviews
from vmessd.supervisor.peerings import Peerings
from vmessd.supervisor.readings import Readings
from vmessd.supervisor.sampler import Sampler
from vmessd.supervisor.statuses import Statuses
from vmessd.supervisor.taking_back import TakingBack
from vmessd.supervisor.transfers import Transfers
from vmessd.vm import adoption
from vmessd.vm.host import Host
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

_T = TypeVar("_T")

FINISH_TIME = 10.0  # seconds that changes of interfaces may take to finish when the daemon ends
LIKENESS = 0.7
"""How similar the name of a VM must be to one that does not exist, to be suggested (difflib, 0 to 1)."""
AT_A_STRETCH = 32  # VMs that are handled before the event loop gets its turn: about 1 ms
OTHERS_MAX = 10  # directories that are not VMs that are named; more are counted
END_TIME = 15.0  # seconds that the tasks of the VMs may take to end
FIND_TIME = 10.0  # seconds that a slow disk may delay the start of the daemon


class Supervisor:
    """The machines of a VM root. Use as an async context manager: leaving it leaves the VMs running."""

    def __init__(self, root: Path, host: Host, timing: Timing = Timing()) -> None:  # noqa: B008
        self.root = root
        host.network.impairments.read = functools.partial(impairment_notes.noted, root)
        host.network.impairments.neighbours = functools.partial(impairment_notes.neighbours, root)
        self.segments = Segments(host.network, root)
        self.sampler = Sampler(self.everyone, host.network)
        self.readings = Readings(host)
        self.condition = Statuses(self.machine, host, self.readings)
        self.overviews = Overviews(self.everyone, host, self.readings)
        self.events = host.events
        self.consoles = Consoles(host.events)
        self.startup_typing = StartupTyping(self.consoles, host.events)
        self.relays = Relays(host.events)
        self.host = host
        self._timing = timing
        self._machines: dict[str, Machine] = {}
        self._wires: dict[str, NetworkInterfaces] = {}
        self._disks: dict[str, Disks] = {}
        self._snapshots: dict[str, Snapshots] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._housekeeping: asyncio.Task[None] | None = None
        self._settling: asyncio.Task[None] | None = None
        self._lock = -1
        self._files = Lane(f"VM root {printable(str(root))}", "is its file system there? journalctl -k tells")
        """Work on the VM root itself."""
        self._leftovers = Leftovers(root, host.network)
        self.new_vms = NewVMs(root, host, self._files, self._leftovers.remember)
        self.images = Images(root, host)
        taking_back = TakingBack()
        self.locks = Locks(self.machine, taking_back.ended)
        self.cabling = Cabling(self.wires, self.begun_wires, self.locks.check_unlocked)
        self.changes = Changes(self.machine, self.disks, host, self.cabling.changed)
        self.transfers = Transfers(root, host, self.machine, self.new_vms)
        self.departures = Departures(host, self.machine, self.snapshots, taking_back, self._depart)
        self.arrivals = Arrivals(root, host, self.machine, self.new_vms, taking_back, self._depart)
        self.clones = Clones(root, host, self.snapshots, self.new_vms)
        self.nats = Nats(root, host, self._hosts_on)
        host.leases = self.nats.leases
        self.peerings = Peerings(root, host, self.segments)
        self._removing: set[str] = set()
        """VMs that are being removed, which may take some time."""
        self._others: list[str] = []
        """The directories of the VM root that are not VMs, as seen last."""
        self._processes = Lane("the processes of this host")

    async def __aenter__(self) -> Self:
        """Lock the VM root; find the VMs in it, and those that run without a directory.

        Raises:
            Locked: another daemon has locked the VM root.
            Failed: the VM root cannot be created or read.
            TimedOut: its file system does not answer.
        """
        self._lock = await self._files.do(self._take_root)
        try:
            await self._files.do(self._leftovers.find)
            await self._leftovers.retry(FIND_TIME)
            for vm in sorted({*await self._listing(), *await self._running()}, key=names.natural):
                self._add(vm)
            await self.nats.restore()
            await self.peerings.restore()
        except VmessError:
            await self.__aexit__()
            raise
        housekeeping = Housekeeping(self._machines, self.host.kills.look, self._leftovers.retry)
        self._housekeeping = asyncio.create_task(housekeeping.run(), name="housekeeping")
        settling = self._settle_arrivals([*self._machines.values()])
        self._settling = asyncio.create_task(settling, name="arrivals of an earlier daemon")
        # Wait for the adoption of QEMUs, but not for a VM that hangs: only requests for that VM wait.
        waits = [asyncio.create_task(machine.found.wait()) for machine in self._machines.values()]
        if waits:
            _, slow = await asyncio.wait(waits, timeout=FIND_TIME)
            for wait in slow:
                wait.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sampler.close()
        if self._settling is not None:
            self._settling.cancel()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.wait({self._housekeeping})
        changes = [asyncio.create_task(wires.finished()) for wires in self._wires.values()]
        changes.append(asyncio.create_task(self.cabling.finished()))
        changes.append(asyncio.create_task(self.departures.finished()))
        changes.append(asyncio.create_task(self.arrivals.finished()))
        await asyncio.wait(changes, timeout=FINISH_TIME)  # nobody could undo half a change
        for change in changes:
            change.cancel()
        await self.nats.close()
        self.host.duplicates.close()
        self.relays.close()
        self.consoles.close()
        for machine in self._machines.values():
            machine.close()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=END_TIME)
        os.close(self._lock)

    def _take_root(self) -> int:
        where = printable(str(self.root))
        network = self.host.network
        with failing(f"VM root {where} cannot be used"):
            if not self.root.is_dir():  # mkdir(2) hangs on a frozen file system, even if the directory exists
                self.root.mkdir(mode=0o770, parents=True, exist_ok=True)
            network.access = dataclasses.replace(network.access, root=root_name(self.root))
            self.host.account.prepare(self.root)
            lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not root_lock.taken(lock):
                os.close(lock)
                raise Locked(
                    f"another vmessd serves the VM root {where}",
                    hint="there is one daemon per VM root; choose another one with --vmdir, "
                    "or end your own: vmess daemon stop",
                )
        return lock

    async def _running(self) -> set[str]:
        """Return the VMs of this root that have a process, with or without a directory."""
        try:
            seen = await self._processes.aside(functools.partial(adoption.present, self.root, self.host))
        except VmessError as error:
            log.warning("%s: VMs that run without their directory are not found", error.message)
            return set()
        return {one.vm for one in seen if names.is_full(one.vm)}

    def _add(self, vm: str) -> Machine:
        machine = Machine(VMDirectory(self.root, vm), self.host, self._timing)
        self._machines[vm] = machine
        self._wires[vm] = NetworkInterfaces(machine, self.host, self._vms_among, self.cabling.other_ends)
        machine.prepare.append(functools.partial(self.departures.settle, machine))
        machine.moved = functools.partial(self._moved, vm)
        self._disks[vm] = Disks(machine, self.host)
        self._snapshots[vm] = Snapshots(machine, self.host)
        machine.prepare.append(functools.partial(self.startup_typing.begin, machine))
        self._tasks[vm] = asyncio.create_task(machine.run(), name=f"vm {vm}")
        return machine

    async def _settle_arrivals(self, machines: Sequence[Machine]) -> None:
        """Delete what an earlier daemon has left of VMs that were on their way here."""

        async def settle(machine: Machine) -> None:
            await machine.settled.wait()  # for ever, if its files hang: others do not wait for it
            await self.arrivals.settle(machine)

        await asyncio.gather(*map(settle, machines), return_exceptions=True)

    def _moved(self, vm: str) -> None:
        """Let other guests see the new state of a VM, if it has or had network cards."""
        if vm in self._wires and self._wires[vm].has_cards():
            self.cabling.changed(vm)
            self.nats.look()

    async def _drop(self, machine: Machine) -> None:
        """Forget a VM that is gone, unless that has happened meanwhile."""
        vm = machine.vm
        if self._machines.get(vm) is not machine:
            return
        self._machines.pop(vm).close()
        del self._wires[vm], self._disks[vm], self._snapshots[vm]
        self.locks.forget(vm)
        self.host.network.impairments.forget(vm)
        await asyncio.wait({self._tasks.pop(vm)})

    async def machine(self, name: str) -> Machine:
        """Return the VM of this name, also if its directory was made by hand just now.

        Raises:
            InvalidValue: the name is not a VM name.
            NoSuchVM: there is neither a directory nor a QEMU of this name.
        """
        vm = names.parse(name)
        directory = VMDirectory(self.root, vm)
        while True:  # another VM of this name may be made while this waits
            machine = self._machines.get(vm)
            if machine is None:
                await self._check(directory)
                machine = self._machines.get(vm) or self._add(vm)
            elif await self._forgets(machine):
                continue
            machine.mind_directory()
            await machine.settled.wait()
            if self._machines.get(vm) is machine:
                return machine

    async def _check(self, directory: VMDirectory) -> None:
        """Raise as VMDirectory.check; the hint names the VM whose name is closest."""
        try:
            await self._files.aside(directory.check)
        except NoSuchVM as error:
            near: list[str] = []
            with contextlib.suppress(VmessError):
                there = await self._listing()
                near = await blocking.call(difflib.get_close_matches, directory.vm, there, 1, LIKENESS)
            hint = f"did you mean {near[0]}?" if near else error.hint
            raise NoSuchVM(error.message, hint, error.directory) from None

    async def _forgets(self, machine: Machine) -> bool:
        """Forget a VM whose directory was removed by hand; tell whether it is gone."""
        if _counts(machine) or await self._is_there(machine.directory):
            return False
        if self._machines.get(machine.vm) is machine and not _counts(machine):
            await self._drop(machine)
            if machine.vm not in self._removing:  # otherwise the removal publishes it
                self.events.publish(Kind.removed, machine.vm, "its directory is gone")
        return True

    async def _is_there(self, directory: VMDirectory) -> bool:
        """Tell whether a known VM still has its directory; true if that cannot be read."""
        try:
            return await self._files.aside(directory.exists)
        except VmessError:
            return True

    async def _listing(self) -> list[str]:
        listing = await self._files.aside(functools.partial(vmdir.listing, self.root), blocking.LOOK)
        self._others = listing.others
        return listing.vms

    def known(self) -> list[Machine]:
        """Return the VMs that were found so far, by name."""
        return [self._machines[vm] for vm in sorted(self._machines, key=names.natural)]

    async def controls(self, name: str) -> Controls:
        """Return the controls of the VM of this name; raises as :meth:`machine`."""
        return Controls(await self.machine(name))

    async def wires(self, name: str) -> NetworkInterfaces:
        """Return the interfaces of the VM of this name; raises as :meth:`machine`."""
        return self._wires[(await self.machine(name)).vm]

    async def disks(self, name: str) -> Disks:
        """Return the disks of the VM of this name; raises as :meth:`machine`."""
        return self._disks[(await self.machine(name)).vm]

    async def snapshots(self, name: str) -> Snapshots:
        """Return the snapshots of the VM of this name; raises as :meth:`machine`."""
        return self._snapshots[(await self.machine(name)).vm]

    async def begun_wires(self, name: str) -> NetworkInterfaces:
        """As :meth:`wires`, when no start is in progress; raises TimedOut, too."""
        machine = await self.machine(name)
        await machine.begun()
        if self._machines.get(machine.vm) is machine:
            return self._wires[machine.vm]
        return await self.wires(machine.vm)

    async def _vms_among(self, asked: Collection[str]) -> list[str]:
        """Return which of these names are those of VMs."""
        vms = [VMDirectory(self.root, name) for name in asked if names.is_full(name)]
        if not vms:
            return []
        return await self._files.aside(lambda: [directory.vm for directory in vms if directory.exists()])

    async def is_vm(self, name: str) -> bool:
        """Tell whether there is a VM directory of this name; raises TimedOut."""
        return bool(await self._vms_among([name]))

    async def exists(self, name: str) -> bool:
        """Tell whether there is a VM of this name: a directory, or a QEMU, or maybe one; raises TimedOut."""
        known = self._machines.get(name)
        return (known is not None and _counts(known)) or await self.is_vm(name)

    async def names_found(self) -> set[str]:
        """Return the names of the VMs that have a directory, and of those that were found before."""
        return {*await self._listing(), *self._machines}

    async def gone(self) -> Callable[[str], bool]:
        """Return what tells, at any time, whether a VM is gone. Raises TimedOut: nobody can know."""
        await self._listing()
        await self.everyone()
        known = self._machines
        return lambda vm: vm not in known and vm not in self._removing

    # -- Queries --

    async def everyone(self) -> list[Machine]:
        """Return all VMs in the VM root, and those that run without a directory, by name."""
        try:
            there = set(await self._listing())
        except TimedOut as error:
            if not self._machines:
                raise
            log.warning("%s; only the known VMs are listed", error.message)
            return self.known()
        stays = {*there, *self._removing}
        for machine in [one for vm, one in self._machines.items() if vm not in stays]:
            await self._forgets(machine)
        running = [vm for vm, machine in self._machines.items() if _counts(machine)]
        found = []
        async for vm in _unhurried(sorted({*there, *running}, key=names.natural)):
            machine = self._machines.get(vm) or self._add(vm)
            if vm not in there:
                machine.mind_directory()
            await machine.settled.wait()
            found.append(machine)
        return [machine for machine in found if machine.vm in there or machine.state not in OFF]

    async def strays(self) -> list[Sighting]:
        """Return the QEMUs of this root that belong to no known run, such as a second one; raises Failed."""
        seen = await self._processes.aside(functools.partial(adoption.alive, self.root, self.host))
        known = {record.pid for machine in self._machines.values() if (record := machine.record())}
        return [one for one in seen if one.pid not in known]

    async def machines(self, wanted: Iterable[str]) -> list[Machine]:
        """Return the VMs of these names, each once; raises as :meth:`machine`."""
        found = {}
        async for name in _unhurried(dict.fromkeys(wanted)):
            machine = await self.machine(name)
            found[machine.vm] = machine
        return list(found.values())

    async def statuses(self) -> list[VMStatus]:
        """Return the status of all VMs, without a look at their files."""
        return [machine.status() async for machine in _unhurried(await self.everyone())]

    def not_vms(self) -> NotVMs | None:
        """Return the directories of the VM root that are not VMs, as seen last; None if there are none."""
        if not self._others:
            return None
        first = self._others[0]
        better = next((name for name in names.like(first) if name not in self._machines), None)
        moved = shell_line(["mv", str(self.root / first), str(self.root / better)]) if better else "rename it"
        hint = f"a VM is called by a-z, digits and hyphens: {moved}"
        return NotVMs(len(self._others), [printable(name) for name in self._others[:OTHERS_MAX]], hint)

    async def overview(self) -> tuple[list[VMOverview], int]:
        """Return a line for each VM, by name, and the number of those whose files are slow; raises Failed."""
        return await self.overviews.all(self._macs)

    def _macs(self, vm: str) -> Mapping[int, str]:
        wires = self._wires.get(vm)
        return wires.macs.present() if wires else {}

    # -- Changes --

    def _hosts_on(self, bridge: str) -> list[tuple[str, str]]:
        """Return the MACs of VMs on a bridge, each with its VM, of which the first interface there counts."""
        noted, machines = {}, {**self._machines}  # VMs may be forgotten meanwhile
        for vm, machine in machines.items():
            with contextlib.suppress(VmessError):
                machine.files.check()
                noted[vm] = machine.directory.read_setting(BY_FILE["NICS"])
        found = []
        for vm, nics in self.host.network.nics_of(noted).items():
            there = [nic.index for nic in nics if nic.bridge == bridge and not nic.leaving]
            with contextlib.suppress(VmessError):
                own = machines[vm].directory.read_setting(BY_FILE["MACS"]) or {} if there else {}
                found += [(own.get(index) or names.mac(vm, index), vm) for index in there[:1]]
        return sorted(found)

    async def remove(self, name: str) -> str | None:
        """Delete a VM with all its files and TAPs; return a note for the user, if there is one.

        Raises:
            AlreadyRunning: the VM is not stopped.
            NoSuchVM: there is no such VM.
            BadFile: the disk of another VM is based on one of its files.
            Failed: a file cannot be deleted. The VM is gone, and the deletion is tried again later.
            Locked: a VM at the other end of one of its cables is locked.
        """
        machine = await self.machine(name)
        if (move := machine.directory.move) is not None:
            raise untold(machine.vm, move.host, "deleted")
        return await self._depart(machine)

    async def _depart(self, machine: Machine) -> str | None:
        """Delete a VM, which may be on another host by now; return a note; raises as :meth:`remove`."""
        remove = functools.partial(self._remove, machine.directory)

        async def work() -> str | None:
            return await machine.change(
                remove, stopped=METHODS["Remove"].needs is Needs.off, patience=leftovers.PATIENCE
            )

        self._removing.add(machine.vm)
        try:
            note = await self.cabling.remove(machine.vm, work)
            if not await self._is_there(machine.directory):
                await self._drop(machine)
        finally:
            self._removing.discard(machine.vm)
        return note

    def _remove(self, directory: VMDirectory) -> str | None:
        backing.check_stands_alone(directory, "deleted")
        return self._leftovers.clear(directory.part())

    async def rename(self, name: str, new: str) -> str | None:
        """Rename a VM; return a note for the user, if there is one.

        Raises:
            InvalidValue: the new name is not a VM name, or is its present name.
            AlreadyRunning: the VM is not stopped, or a VM of the new name runs without a directory.
            Locked, BadFile, Failed: as Leftovers.rename.
        """
        await self._leftovers.complete_renamings()
        machine = await self.machine(name)
        target = names.parse(new)
        there = self._machines.get(target)
        if target == machine.vm:
            raise InvalidValue(f"VM {target} has this name already")
        if (move := machine.directory.move) is not None:
            raise untold(machine.vm, move.host, "renamed")
        await self.new_vms.check_name(target)
        if there is not None and _counts(there):
            raise AlreadyRunning(f"there is a VM {target}, which is running", hint=f"vmess {target} status")
        rename = functools.partial(self._rename, machine.directory, target)

        async def work() -> str | None:
            return await machine.change(
                rename, stopped=METHODS["Rename"].needs is Needs.off, patience=leftovers.PATIENCE
            )

        self._removing |= {machine.vm, target}
        try:
            note = await self.cabling.rename(machine.vm, target, work)
            await self._drop(machine)
        finally:
            self._removing -= {machine.vm, target}
        await self.machine(target)
        return note

    def _rename(self, directory: VMDirectory, target: str) -> str | None:
        """Rename a VM that is off: note its interfaces, rename its files, replace its TAPs; blocks."""
        backing.check_stands_alone(directory, "renamed")
        network, renamed = self.host.network, VMDirectory(directory.path.parent, target)
        nics = noted_wires.update(network, directory)
        notes = [self._leftovers.rename(directory, target)]
        try:
            wires = {nic.index: nic.wire for nic in nics if nic.link is not None}
            if wires:
                network.wire(target, wires, renamed.read_setting(BY_FILE["MACS"]))
        except VmessError as error:
            notes.append(f"its TAPs are created at its next start: {error.message}")
        notes += mentions(renamed, directory.vm)
        return "; ".join(filter(None, notes)) or None

    async def check_needs(self, name: str, method: Method) -> None:
        """Check that a VM is in the state that a method needs.

        Raises:
            NotRunning: the method needs a running VM.
            AlreadyRunning: the method needs a stopped VM.
            Locked: the VM is held: a process that is not known to be its QEMU has locked its directory.
        """
        machine = await self.machine(name)
        if method.needs is Needs.off:
            await machine.in_turn(stopped=True)
        elif method.needs is Needs.on:
            await machine.begun()
            try:
                machine.live()
            except NotRunning as error:
                hints = (error.hint, method.instead.format(vm=machine.vm))
                hint = "; ".join(hint for hint in hints if hint)
                raise NotRunning(error.message, hint, error.vm) from None


def _counts(machine: Machine) -> bool:
    """Tell whether a VM exists even without a directory: it has a QEMU, or may have one."""
    return machine.state not in OFF or not machine.found.is_set()


async def _unhurried(items: Iterable[_T]) -> AsyncIterator[_T]:
    """Yield items, which may be thousands, and let the event loop run other tasks now and then."""
    for number, item in enumerate(items, 1):
        yield item
        if number % AT_A_STRETCH == 0:
            await asyncio.sleep(0)
