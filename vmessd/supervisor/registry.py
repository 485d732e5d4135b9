"""All VMs of one root: finding them, making and removing them, coming and going of the daemon."""

import asyncio
import contextlib
import dataclasses
import fcntl
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from vmessd.core import names
from vmessd.core.errors import (
    BadFile,
    InvalidValue,
    Locked,
    NoSuchVM,
    TimedOut,
    VmessError,
    failing,
    is_broken,
    printable,
    quoted,
)
from vmessd.core.lifecycle import OFF
from vmessd.core.models import Drive, Value, VMInfo, VMNic, VMStatus
from vmessd.core.settings import BY_FILE, DRIVES, SETTINGS
from vmessd.core.wires import Wire, owner
from vmessd.devices.console import Consoles
from vmessd.devices.controls import Hands
from vmessd.devices.network_cards import Wires
from vmessd.devices.vnc import Relays
from vmessd.network.bridges import TOGETHER_MAX, Segments
from vmessd.network.links import Nic, Step, root_name
from vmessd.network.neighbours import USER_ADDRESS, Tables, VMAddress, of_interface
from vmessd.qemu import command_line
from vmessd.qemu.census import Sighting
from vmessd.qemu.session import Timing
from vmessd.storage import blocking, images, vmdir
from vmessd.storage.blocking import Lane
from vmessd.storage.images import Disk
from vmessd.storage.vmdir import Glance, VMDirectory
from vmessd.supervisor import remains
from vmessd.supervisor.housekeeping import Upkeep
from vmessd.supervisor.remains import Remains
from vmessd.supervisor.sampler import Sampler
from vmessd.vm import adoption, launcher
from vmessd.vm.environment import Host
from vmessd.vm.events import Kind
from vmessd.vm.machine import Machine

log = logging.getLogger(__name__)

_T = TypeVar("_T")

FINISH_TIME = 10.0  # how long changes of wires that are under way may take to end
LOCK = BY_FILE["LOCK"]
NEW = {"CPU": "best"}
"""What is set in a VM that is made; in a directory that comes from elsewhere what is not said stays so."""
AT_A_STRETCH = 32  # VMs that are looked at before others get their turn: some 1 ms
LOCK_TIME = 1.0  # how long a stop waits for the LOCK file
END_TIME = 15.0  # how long the VMs' tasks may take to end
FIND_TIME = 10.0  # how long a slow disk may keep the daemon from being ready


class _Change(NamedTuple):
    """How a setting is set."""

    work: Callable[[], str | None]
    """Blocks; returns what was done."""
    stopped: bool = False
    """The VM has to be stopped for it."""
    live: bool = False
    """It takes effect at once."""


class _Seen(NamedTuple):
    """What was read of a VM's files."""

    planned: list[str]
    """The command line a start would use."""
    problem: str | None
    """Why there is none: what a start would say."""
    settings: list[Value]
    disks: list[Disk]


class Wiring(NamedTuple):
    """What one look at a VM's wires has found."""

    files: Glance
    """Where what is noted of them is read."""
    nics: list[Nic] | VmessError | None = None
    """Its interfaces, or why they cannot be told; None where they were not looked at yet."""


class Supervisor:
    """The machines of a VM root. Use as an async context manager: leaving it leaves the VMs running."""

    def __init__(self, root: Path, host: Host, timing: Timing = Timing()) -> None:  # noqa: B008
        self.root = root
        self.segments = Segments(host.network, root)
        self.sampler = Sampler(self.everyone, host.network)
        self.events = host.events
        self.consoles = Consoles(host.events)
        self.relays = Relays(host.events)
        self._host = host
        self._timing = timing
        self._machines: dict[str, Machine] = {}
        self._wires: dict[str, Wires] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._upkeep: asyncio.Task[None] | None = None
        self._lock = -1
        self._files = Lane(f"VM root {printable(str(root))}", "is its file system there? journalctl -k tells")
        """What is done to the root itself."""
        self._remains = Remains(root, host.network)
        self._removing: set[str] = set()
        """VMs that are on their way out; their files may take some time to go."""
        self._processes = Lane("the processes of this host")
        self._remarks: dict[str, str | None] = {}
        """What the LOCK files said when they were read last."""
        self._lock_notes: dict[str, str] = {}
        """Why those of VMs that are to be stopped could not be read."""

    async def __aenter__(self) -> Self:
        """Take the root and find every VM in it, and those that run although their directory is not there.

        Raises:
            Locked: another daemon has the root.
            Failed: it cannot be made or read.
            TimedOut: it does not answer.
        """
        self._lock = await self._files.do(self._take_root)
        try:
            await self._files.do(self._remains.find)
            await self._remains.take_up(FIND_TIME)
            for vm in sorted({*await self._listing(), *await self._running()}):
                self._add(vm)
        except VmessError:
            await self.__aexit__()
            raise
        upkeep = Upkeep(self._machines, self._host.kills.look, self._remains.take_up)
        self._upkeep = asyncio.create_task(upkeep.run(), name="upkeep")
        # Found is adopted: one that hangs must not hold up the others. Whoever asks about it waits for it.
        waits = [asyncio.create_task(machine.found.wait()) for machine in self._machines.values()]
        if waits:
            _, slow = await asyncio.wait(waits, timeout=FIND_TIME)
            for wait in slow:
                wait.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.sampler.close()
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait({self._upkeep})
        changes = [asyncio.create_task(wires.finished()) for wires in self._wires.values()]
        if changes:  # half a change would be nobody's to take back
            await asyncio.wait(changes, timeout=FINISH_TIME)
            for change in changes:
                change.cancel()
        self._host.duplicates.close()
        self.relays.close()
        self.consoles.close()
        for machine in self._machines.values():
            machine.close()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=END_TIME)
        os.close(self._lock)

    def _take_root(self) -> int:
        where = printable(str(self.root))
        network = self._host.network
        with failing(f"VM root {where} cannot be used"):
            if not self.root.is_dir():  # mkdir(2) waits for a frozen file system also where there is one
                self.root.mkdir(mode=0o770, parents=True, exist_ok=True)
            network.access = dataclasses.replace(network.access, root=root_name(self.root))
            self._host.account.prepare(self.root)
            lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise Locked(
                    f"another vmessd serves the VM root {where}",
                    hint="there is one daemon to a root; name another root with --vmdir",
                ) from None
        return lock

    async def _running(self) -> set[str]:
        """Return the VMs of this root that seem to run, whether they have a directory or not."""
        try:
            seen = await self._processes.aside(functools.partial(adoption.present, self.root, self._host))
        except VmessError as error:
            log.warning("%s: a VM that runs without its directory is not found", error.message)
            return set()
        return {one.vm for one in seen if names.is_full(one.vm)}

    def _add(self, vm: str) -> Machine:
        machine = Machine(VMDirectory(self.root, vm), self._host, self._timing)
        self._machines[vm] = machine
        self._wires[vm] = Wires(machine, self._host, self._is_vm)
        self._tasks[vm] = asyncio.create_task(machine.run(), name=f"vm {vm}")
        return machine

    async def _drop(self, machine: Machine) -> None:
        """Let go of a VM that is gone, if that has not been done meanwhile."""
        vm = machine.vm
        if self._machines.get(vm) is not machine:
            return
        self._machines.pop(vm).close()
        del self._wires[vm]
        self._remarks.pop(vm, None)
        self._lock_notes.pop(vm, None)
        await asyncio.wait({self._tasks.pop(vm)})

    async def machine(self, name: str) -> Machine:
        """Return the VM of this name, which may have been made by hand just now.

        Raises:
            InvalidValue: it is no VM name.
            NoSuchVM: there is no directory, and no QEMU that had one.
        """
        vm = names.parse(name)
        directory = VMDirectory(self.root, vm)
        while True:  # as long as it is waited, for a file or for one to go, another may be made
            machine = self._machines.get(vm)
            if machine is None:
                await self._files.aside(directory.check)
                machine = self._machines.get(vm) or self._add(vm)
            elif await self._forgets(machine):
                continue
            machine.mind_directory()
            await machine.settled.wait()
            if self._machines.get(vm) is machine:
                return machine

    async def _forgets(self, machine: Machine) -> bool:
        """Let go of a VM whose directory somebody removed; tell whether it has none."""
        if _counts(machine) or await self._is_there(machine.directory):
            return False
        if self._machines.get(machine.vm) is machine and not _counts(machine):
            await self._drop(machine)
            if machine.vm not in self._removing:  # else whoever removes it tells
                self.events.publish(Kind.removed, machine.vm, "its directory is gone")
        return True

    async def _is_there(self, directory: VMDirectory) -> bool:
        """Tell whether a VM that was met before still has its directory, as far as can be told."""
        try:
            return await self._files.aside(directory.exists)
        except VmessError:
            return True

    async def _listing(self) -> list[str]:
        return await self._files.aside(functools.partial(vmdir.listing, self.root), blocking.LOOK)

    def known(self) -> list[Machine]:
        """Return the VMs that were met so far, by name."""
        return [machine for _, machine in sorted(self._machines.items())]

    async def hands(self, name: str) -> Hands:
        """Return the hands at the VM of this name; raises as :meth:`machine`."""
        return Hands(await self.machine(name))

    async def wires(self, name: str) -> Wires:
        """Return the interfaces of the VM of this name; raises as :meth:`machine`."""
        return self._wires[(await self.machine(name)).vm]

    async def begun_wires(self, name: str) -> Wires:
        """Return the same, when no start is under way; raises TimedOut where that takes long, too."""
        machine = await self.machine(name)
        await machine.begun()
        return await self.wires(machine.vm)

    async def _is_vm(self, name: str) -> bool:
        return names.is_full(name) and await self._files.aside(VMDirectory(self.root, name).exists)

    # -- What can be asked --

    async def everyone(self) -> list[Machine]:
        """Return all VMs in the root, and those whose directory is gone while their QEMU runs, by name."""
        try:
            there = set(await self._listing())
        except TimedOut as error:
            if not self._machines:
                raise
            log.warning("%s; the VMs that are known are told of", error.message)
            return self.known()
        stays = {*there, *self._removing}
        for machine in [one for vm, one in self._machines.items() if vm not in stays]:
            await self._forgets(machine)
        running = [vm for vm, machine in self._machines.items() if _counts(machine)]
        found = []
        async for vm in _unhurried(sorted({*there, *running})):
            machine = self._machines.get(vm) or self._add(vm)
            if vm not in there:
                machine.mind_directory()
            await machine.settled.wait()
            found.append(machine)
        return [machine for machine in found if machine.vm in there or machine.state not in OFF]

    async def strays(self) -> list[Sighting]:
        """Return the QEMUs of this root that no VM has, such as a second one of a name; raises Failed."""
        seen = await self._processes.aside(functools.partial(adoption.alive, self.root, self._host))
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
        """Return how all VMs are."""
        return [machine.status() async for machine in _unhurried(await self.everyone())]

    async def wirings(self, vms: Sequence[str]) -> dict[str, Wiring]:
        """Return the interfaces of several VMs by one look at the kernel's links, or what is wrong with each.

        A name that is no VM's is left out.
        """
        directories = {}
        for vm in vms:
            with contextlib.suppress(VmessError):
                directories[vm] = Glance((await self.machine(vm)).home)
        return await blocking.call(self._wirings, directories)

    def _wirings(self, directories: Mapping[str, Glance]) -> dict[str, Wiring]:
        noted: dict[str, Sequence[Wire] | None] = {}
        wrong: dict[str, VmessError] = {}
        for files in directories.values():
            try:
                noted[files.vm] = files.read_setting(BY_FILE["NICS"])
            except VmessError as error:
                wrong[files.vm] = error
        found: Mapping[str, list[Nic] | VmessError]
        try:
            found = self._host.network.nics_of(noted)
        except VmessError as error:
            found = dict.fromkeys(noted, error)
        return {vm: Wiring(files, wrong.get(files.vm) or found[files.vm]) for vm, files in directories.items()}

    async def info(self, name: str, wiring: Wiring | None = None) -> VMInfo:
        """Return all there is to say of a VM; what cannot be read is said in `problem`.

        `wiring` is what :meth:`wirings` has of it, where that was asked.
        """
        wires = await self.wires(name)
        machine = await self.machine(name)
        wiring = wiring or Wiring(Glance(machine.home))
        directory, record = machine.directory, machine.record()
        at_start = wiring.files if wiring.files.path == directory.path else Glance(directory)
        transferred = await machine.live().transferred() if record else {}
        nics: list[Nic] | None = None
        shown: list[VMNic] = []
        with contextlib.suppress(VmessError):  # which is said in `problem`
            nics = await _interfaces(wires, wiring)
            shown = await self._nics(wires, nics, wiring.files)
        look = functools.partial(self._seen, at_start, record.display if record else None, nics)
        seen = await machine.files.aside(look)
        command = record.argv if record else seen.planned
        return VMInfo(
            status=machine.status(),
            directory=str(directory.path),
            nics=shown,
            command=command,
            problem=seen.problem,
            display=command_line.display_of(command) or None,
            accel=command_line.accel_of(command) if command else None,
            cpu=command_line.cpu_of(command),
            serial=str(directory.path / vmdir.SERIAL_SOCKET),
            changed=record is not None and not command_line.same_but_for_wires(seen.planned, record.argv),
            settings=seen.settings,
            drives=[_drive(disk, transferred) for disk in seen.disks],
        )

    async def nics(self, name: str, wiring: Wiring | None = None) -> list[VMNic]:
        """Return a VM's interfaces; raises BadFile where NICS makes no sense, Failed. `wiring` as for info."""
        wires = await self.wires(name)
        wiring = wiring or Wiring(Glance((await self.machine(name)).home))
        return await self._nics(wires, await _interfaces(wires, wiring), wiring.files)

    async def _nics(self, wires: Wires, nics: Sequence[Nic], files: VMDirectory) -> list[VMNic]:
        macs = await wires.macs(files)
        cables = await wires.cables.states([nic.index for nic in nics], files)
        remark = functools.partial(self._host.duplicates.remark, wires.vm)
        return [_nic(nic, wires, macs(nic.index), cables[nic.index], remark(nic.index)) for nic in nics]

    async def tables(self) -> Tables:
        """Return what the host has heard; raises Failed."""

        def read() -> Tables:
            with self._host.network.kernel() as kernel:
                links = {link.index: link.name for link in kernel.links()}
                return Tables(kernel.forwarding(), kernel.neighbours(), links)

        return await blocking.call(read)

    async def addresses(
        self, name: str, wiring: Wiring | None = None, tables: Tables | None = None
    ) -> list[VMAddress]:
        """Return a VM's addresses as far as the host knows; raises BadFile, Failed. `wiring` as for info."""
        wires = await self.wires(name)
        wiring = wiring or Wiring(Glance((await self.machine(name)).home))
        nics, macs = await _interfaces(wires, wiring), await wires.macs(wiring.files)
        with_macs = [(nic, macs(nic.index)[0]) for nic in nics]
        found = await blocking.call(_addresses, with_macs, tables or await self.tables())
        runs = (await self.machine(name)).state not in OFF
        return [dataclasses.replace(address, known=address.known and runs) for address in found]

    def _seen(self, directory: VMDirectory, display: int | None, nics: Sequence[Nic] | None) -> _Seen:
        """Return what a VM's files say, and the command line of a start or why there is none; blocks."""
        planned: list[str] = []
        problem = None
        try:
            if display is None:
                display = self._host.displays.would_be(directory.vm, names.display(directory.vm))
            planned = command_line.build(
                launcher.specify(directory, self._host, display, nics), self._host.qemu
            )
        except VmessError as error:
            problem = error.message
        return _Seen(planned, problem, _settings(directory), _disks(directory))

    # -- What can be changed --

    async def make(self, name: str) -> str:
        """Create a VM and return its path; raises InvalidValue, Failed."""
        directory = VMDirectory(self.root, names.parse(name))
        await self._files.do(functools.partial(directory.make, NEW, self._remains.remember))
        return str(directory.path)

    async def vlan(self, bridge: str, interfaces: Sequence[str]) -> list[Step]:
        """Put interfaces into a bridge; raises as Segments.vlan, and InvalidValue for a VM's name."""
        if await self._is_vm(bridge):
            raise InvalidValue(f"bridge name {quoted(bridge)} is the name of a VM")
        concerned = [await self.wires(vm) for vm in await self._owners(interfaces)]
        macs: dict[str, str] = {}
        for wires in concerned:
            macs |= await wires.tap_macs()
        put_in = functools.partial(self.segments.vlan, bridge, interfaces, macs)
        work: Callable[[], Coroutine[Any, Any, list[Step]]] = functools.partial(blocking.call, put_in)
        for wires in concerned:
            work = functools.partial(wires.rewired, work)
        return await work()

    async def delete_link(self, name: str) -> list[Step]:
        """Delete a link; that of a VM in turn with all else that happens to it. Raises as Segments.delete.

        Raises:
            AlreadyRunning: the VM it belongs to is not stopped.
        """
        work = functools.partial(self.segments.delete, name)
        parts = names.tap_parts(name)
        if parts and await self._is_vm(parts[0]):
            return await (await self.machine(parts[0])).change(work, stopped=True)
        return await blocking.call(work)

    async def remove(self, name: str) -> str | None:
        """Delete a VM with all its files and its TAPs; return what there is to say about it.

        Raises:
            AlreadyRunning: it runs.
            NoSuchVM: there is none.
            Failed: something in it cannot be deleted. It is no VM any more, and that is tried again.
        """
        machine = await self.machine(name)
        remove = functools.partial(self._remove, machine.directory)
        self._removing.add(machine.vm)
        try:
            note = await machine.change(remove, stopped=True, patience=remains.PATIENCE)
            if not await self._is_there(machine.directory):
                await self._drop(machine)
        finally:
            self._removing.discard(machine.vm)
        return note

    def _remove(self, directory: VMDirectory) -> str | None:
        return self._remains.clear(directory.part())

    async def lock(self, name: str, remark: str | None) -> None:
        """Lock a VM with a remark, or unlock it with None; raises InvalidValue, BadFile, Failed."""
        machine = await self.machine(name)
        text = remark if remark is None else remark.strip() or "locked"
        work = functools.partial(_write_remark, machine, text)
        await machine.change(work)
        self._remarks[machine.vm] = text

    async def check_unlocked(self, name: str, stops: bool = False) -> None:
        """Raise Locked where a VM is locked, BadFile where nobody can tell.

        `stops`: it is to be stopped, which no file prevents that cannot be read. Then what was read last holds;
        where nothing was, nothing is known that would forbid it.
        """
        machine = await self.machine(name)
        read = functools.partial(_remark, machine)
        try:
            remark = await machine.files.aside(read, LOCK_TIME if stops else blocking.LOOK)
            self._remarks[machine.vm] = remark
        except (TimedOut, BadFile) as error:
            if not stops:
                raise _with_way_out(error, machine.vm) from None
            note = f"{error.message}; it is stopped unless it was locked before"
            log.warning("%s: %s", machine.vm, note)
            self._lock_notes[machine.vm] = note
            remark = self._remarks.get(machine.vm)
        if remark is not None:
            shown = f": {remark}" if remark != "locked" else ""
            raise Locked(f"VM {machine.vm} is locked{shown}", hint=f"vmess {machine.vm} unlock")

    def lock_note(self, vm: str) -> str | None:
        """Return once what :meth:`check_unlocked` passed over in a VM that is to be stopped."""
        return self._lock_notes.pop(vm, None)

    async def check_links(self, links: Sequence[str]) -> None:
        """Raise as :meth:`check_unlocked` where one of these links belongs to a VM that is locked."""
        for vm in await self._owners(links):
            await self.check_unlocked(vm)

    async def _owners(self, links: Sequence[str]) -> list[str]:
        """Return the VMs that links belong to by their names, of as many links as one call may name."""
        vms = sorted({vm for link in links[:TOGETHER_MAX] if (vm := owner(link)) is not None})
        return [
            vm for vm in vms if await self._is_vm(vm) or (vm in self._machines and _counts(self._machines[vm]))
        ]

    async def set(self, name: str, setting: str, value: str | None) -> str | None:
        """Set a setting or a drive, by its verb; None as value takes it away. Return what was done.

        Raises:
            InvalidValue: there is no such setting, or the value cannot be right.
            AlreadyRunning: an image cannot change its size under a running VM.
            BadFile, Failed: the file cannot be written.
        """
        machine = await self.machine(name)
        change = self._change(machine.directory, setting, value)
        done = await machine.change(change.work, stopped=change.stopped)
        if not change.live and machine.state not in OFF:
            return f"{machine.vm} is running; {setting} takes effect at its next start"
        return done

    def _change(self, directory: VMDirectory, setting: str, value: str | None) -> _Change:
        """Return how a setting is set; raises InvalidValue where there is none, or not with this value."""
        row = next((row for row in SETTINGS if row.verb == setting), None)
        if row is not None:
            return _Change(lambda: directory.write_setting(row, value), live=row.live)
        if setting == "cdrom":
            return _Change(lambda: images.set_cdrom(directory, value, self._host.account))
        if setting in names.DISKS:
            if value is None:
                raise InvalidValue(
                    f"{setting} cannot be set to none: vmess deletes no image",
                    hint=f"remove {directory}/{names.disk_file(directory.vm, setting)} by hand",
                )
            return _Change(lambda: images.set_disk(directory, setting, value), stopped=True)
        known = [row.verb for row in SETTINGS if row.verb] + [row.verb for row in DRIVES]
        raise InvalidValue(f"setting {quoted(setting)} is none of {', '.join(known)}")


def _counts(machine: Machine) -> bool:
    """Tell whether a VM is one also if it has no directory: its QEMU is there, or may be."""
    return machine.state not in OFF or not machine.found.is_set()


def _remark(machine: Machine) -> str | None:
    """Return the remark a VM is locked with; one that runs without a directory can have none."""
    try:
        return machine.place().setting_text(LOCK.file)
    except NoSuchVM:
        if machine.state in OFF:
            raise
        return None


def _write_remark(machine: Machine, text: str | None) -> None:
    """Lock a VM with a remark, or unlock it with None, also where the file is malformed; blocks."""
    if text is None:
        machine.place().clear_setting(LOCK)
    else:
        machine.place().write_setting(LOCK, text)


def _with_way_out(error: VmessError, vm: str) -> VmessError:
    """Return an error of a LOCK file that cannot be read, with what is done about one that is malformed."""
    if isinstance(error, BadFile) and error.hint is None and not is_broken(error):
        return BadFile(error.message, hint=f"vmess {vm} unlock removes it")
    return error


async def _interfaces(wires: Wires, wiring: Wiring) -> list[Nic]:
    """Return a VM's interfaces, which may have been looked at already; raises what is wrong with them."""
    if isinstance(wiring.nics, VmessError):
        raise wiring.nics
    return await wires.nics(wiring.files) if wiring.nics is None else wiring.nics


async def _unhurried(items: Iterable[_T]) -> AsyncIterator[_T]:
    """Yield what may be thousands of things, and let others have the event loop now and then."""
    for number, item in enumerate(items, 1):
        yield item
        if number % AT_A_STRETCH == 0:
            await asyncio.sleep(0)


def _nic(nic: Nic, wires: Wires, macs: tuple[str, str], cable: bool | None, duplicate: str | None) -> VMNic:
    mac, later = macs
    return VMNic(
        index=nic.index,
        tap=None if nic.wire.user else nic.tap,
        mac=mac,
        wire=str(nic.wire),
        present=nic.link is not None,
        leaving=nic.leaving,
        cable=cable,
        difference=wires.lost(nic) or nic.difference(),
        duplicate=duplicate,
        mac_later=later if later != mac else None,
    )


def _addresses(nics: Sequence[tuple[Nic, str]], tables: Tables) -> list[VMAddress]:
    """Return the addresses of interfaces, each with its MAC."""
    found = []
    for nic, mac in nics:
        if nic.link is not None:
            found += of_interface(nic.index, mac, nic.link.index, tables)
        elif nic.wire.user:
            source = "what QEMU's user network gives it; the host does not reach it"
            found.append(VMAddress(nic.index, mac, USER_ADDRESS, seen=False, source=source, known=False))
    return found


def _settings(directory: VMDirectory) -> list[Value]:
    """Return the settings whose files can be read, as they would be written.

    Of a LOCK that cannot be read, why: it locks all the same.
    """
    values = []
    for file in BY_FILE:
        try:
            text = directory.setting_text(file)
        except VmessError as error:
            if file != LOCK.file or not isinstance(error, BadFile) or not directory.exists():
                continue
            text = error.message
        if text is not None:
            values.append(Value(file, printable(text)))
    return values


def _disks(directory: VMDirectory) -> list[Disk]:
    try:
        return images.disks(directory)
    except VmessError:
        return []


def _drive(disk: Disk, transferred: dict[str, tuple[int, int]]) -> Drive:
    read, written = transferred.get(disk.slot, (None, None))
    return Drive(disk.slot, disk.path, disk.target, disk.size, read, written)
