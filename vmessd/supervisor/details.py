"""The details of a VM beyond its status: files, interfaces, addresses, and the command line of QEMU.

For several VMs, one look at the links of the kernel is enough (:meth:`Details.wirings`).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vmessd.core import names, ownership
from vmessd.core.accelerators import Accelerator
from vmessd.core.errors import BadFile, InvalidValue, VmessError, printable
from vmessd.core.impairments import PERFECT, Impaired
from vmessd.core.lifecycle import OFF, Policy
from vmessd.core.models.vms import Drive, Pending, Value, VMInfo
from vmessd.core.models.wires import Reach, VMAddress, VMNic
from vmessd.core.records import RunRecord
from vmessd.core.settings import AUTOSTART, BY_FILE, LOCK, RESTART, Setting, as_told
from vmessd.core.startup import STARTUP
from vmessd.core.wires import Wire
from vmessd.devices.network_interfaces import NetworkInterfaces
from vmessd.network.bridges import host_remark
from vmessd.network.neighbours import USER_ADDRESS, Tables, of_interface
from vmessd.network.nics import Nic
from vmessd.qemu import command_line
from vmessd.qemu.guest_agent import Address
from vmessd.storage import backing, blocking, cloud_init, images, owner, startup, vmdir
from vmessd.storage.images import Disk
from vmessd.storage.startup import Given
from vmessd.storage.vmdir import Glance, VMDirectory
from vmessd.supervisor.overview import subject
from vmessd.supervisor.registry import Supervisor
from vmessd.vm import launcher, pending
from vmessd.vm.machine import Machine


class Wiring(NamedTuple):
    """The interfaces of a VM, as one look has found them."""

    files: Glance
    """The files that were read."""
    nics: list[Nic] | VmessError | None = None
    """The interfaces, or why they are not known; None if they were not looked at yet."""


class _Seen(NamedTuple):
    """What was read from the files of a VM."""

    planned: list[str]
    """The command line that a start would use."""
    problem: str | None
    """Why there is none: the error of a start."""
    problem_drive: str | None
    """The drive that the error is about."""
    settings: list[Value]
    disks: list[Disk]
    kvm: str | None
    """Why KVM is not used."""
    pending: list[Pending] | None
    """What was changed since the start."""
    cloud_init: str | None
    """What identifies that which cloud-init finds."""
    startup: Given | None
    """The startup configuration."""


class Details:
    """Collects the details of the VMs of a supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def wirings(self, vms: Sequence[str]) -> dict[str, Wiring]:
        """Return the interfaces of several VMs, or an error for each, by one look at the links of the kernel.

        Names of VMs that do not exist are left out.
        """
        directories = {}
        for vm in vms:
            with contextlib.suppress(VmessError):
                directories[vm] = Glance((await self._supervisor.machine(vm)).home)
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
            found = self._supervisor.host.network.nics_of(noted)
        except VmessError as error:
            found = dict.fromkeys(noted, error)
        return {vm: Wiring(files, wrong.get(files.vm) or found[files.vm]) for vm, files in directories.items()}

    async def info(self, name: str, wiring: Wiring | None = None) -> VMInfo:
        """Return all details of a VM; `problem` says what cannot be read.

        `wiring` is the result of :meth:`wirings` for the VM, if it was called.
        """
        wires = await self._supervisor.wires(name)
        machine = await self._supervisor.machine(name)
        wiring = wiring or Wiring(Glance(machine.home))
        directory, record = machine.directory, machine.record()
        at_start = wiring.files if wiring.files.path == directory.path else Glance(directory)
        transferred = await machine.live().transferred() if record else {}
        nics: list[Nic] | None = None
        shown: list[VMNic] = []
        with contextlib.suppress(VmessError):  # `problem` has it
            nics = await _interfaces(wires, wiring)
            shown = await self._nics(wires, nics, wiring.files)

        def look() -> _Seen:
            self._supervisor.readings.read(subject(machine), wiring.files)
            return self._seen(at_start, record, nics)

        seen = await machine.files.aside(look)
        status = self._supervisor.condition.seen(machine)
        command = record.argv if record else seen.planned
        return VMInfo(
            status=status,
            directory=str(directory.path),
            nics=shown,
            command=command,
            problem=seen.problem,
            display=command_line.display_of(command) or None,
            accel=command_line.accel_of(command) if command else None,
            cpu=command_line.cpu_of(command),
            serial=str(directory.path / vmdir.SERIAL_SOCKET),
            changed=status.pending or False,
            settings=[_with_failure(value, machine.failed()) for value in seen.settings],
            drives=[_drive(disk, transferred) for disk in seen.disks],
            kvm=seen.kvm,
            pending=seen.pending,
            cloud_init=seen.cloud_init,
            startup=await self._startup_in_words(machine, seen.startup),
            problem_drive=seen.problem_drive,
        )

    async def _startup_in_words(self, machine: Machine, given: Given | None) -> str | None:
        """Return the startup configuration in words, and what became of it if it is typed."""
        if given is None:
            return None
        said = None
        with contextlib.suppress(VmessError):  # the note cannot be read
            said = await self._supervisor.startup_typing.said(machine, given)
        is_said = said is None or said == machine.failed().get(STARTUP)  # with the setting
        return given.summary if is_said else f"{given.summary}, {said}"

    async def nics(self, name: str, wiring: Wiring | None = None) -> list[VMNic]:
        """Return the interfaces of a VM; raises BadFile if NICS is malformed, Failed. `wiring` as for info."""
        wires = await self._supervisor.wires(name)
        wiring = wiring or Wiring(Glance((await self._supervisor.machine(name)).home))
        return await self._nics(wires, await _interfaces(wires, wiring), wiring.files)

    async def _nics(self, wires: NetworkInterfaces, nics: Sequence[Nic], files: VMDirectory) -> list[VMNic]:
        macs = await wires.macs.now_and_later(files)
        cables = await wires.cables.states([nic.index for nic in nics], files)
        impaired: Mapping[int, Impaired] = {}
        with contextlib.suppress(VmessError):  # `problem` has it
            impaired = await wires.impairments.noted(files)
        remark = functools.partial(self._supervisor.host.duplicates.remark, wires.vm)
        is_bridged = any(nic.is_segment for nic in nics)
        of_host = await blocking.call(host_remark) if is_bridged else None
        is_cabled = any(nic.noted is not None and nic.noted.cable is not None for nic in nics)
        ends = await self._supervisor.cabling.other_ends(wires.vm) if is_cabled else {}
        return [
            _nic(
                nic,
                wires,
                macs(nic.index),
                cables[nic.index],
                remark(nic.index),
                ends.get(nic.index),
                impaired.get(nic.index, PERFECT),
                of_host if nic.is_segment else None,
            )
            for nic in nics
        ]

    async def tables(self) -> Tables:
        """Return the neighbour and forwarding tables of the host; raises Failed."""

        def read() -> Tables:
            leases = self._supervisor.host.leases()
            with self._supervisor.host.network.kernel() as kernel:
                links = kernel.links()
                shown = {link.index: link.name for link in links}
                return Tables(kernel.forwarding(), kernel.neighbours(), shown, kernel.spoken(links), leases)

        return await blocking.call(read)

    async def addresses(
        self, name: str, wiring: Wiring | None = None, tables: Tables | None = None
    ) -> list[VMAddress]:
        """Return the addresses of a VM that the host knows; otherwise as :meth:`reach`."""
        return (await self.reach(name, wiring, tables))["addresses"]

    async def reach(self, name: str, wiring: Wiring | None = None, tables: Tables | None = None) -> Reach:
        """Return how the host reaches the guest of a VM; raises BadFile, Failed. `wiring` as for info."""
        wires = await self._supervisor.wires(name)
        wiring = wiring or Wiring(Glance((await self._supervisor.machine(name)).home))
        nics, macs = await _interfaces(wires, wiring), await wires.macs.now_and_later(wiring.files)
        with_macs = [(nic, macs(nic.index)[0]) for nic in nics]
        found = await blocking.call(_addresses, with_macs, tables or await self.tables())
        machine = await self._supervisor.machine(name)
        runs = machine.state not in OFF
        found = _with_those_of_agent(found, with_macs, await machine.agent_addresses())
        taps = {nic.index: nic.tap.long for nic in nics if not nic.by_qemu}
        addresses = [
            dataclasses.replace(one, known=one.known and runs, tap=taps.get(one.interface)) for one in found
        ]
        return Reach(addresses=addresses, only_user=all(nic.wire.user for nic in nics) if nics else None)

    def _seen(self, directory: VMDirectory, record: RunRecord | None, nics: Sequence[Nic] | None) -> _Seen:
        """Read the files of a VM, and build the command line of a start or the error of one; blocks."""
        host = self._supervisor.host
        planned: list[str] = []
        problem = problem_drive = kvm = None
        try:
            if record is None:
                display, running = host.displays.would_be(directory.vm, names.display(directory.vm)), None
            else:
                display, running = record.display, record.accel
            spec = launcher.specify(directory, host, display, nics, running)
            kvm = None if running == Accelerator.kvm else host.kvm_trouble(spec.values.get("ACCEL"))
            planned = command_line.build(spec, host.qemu)
        except VmessError as error:
            problem = error.message
            problem_drive = error.slot if isinstance(error, BadFile) else None
        disks = _disks(directory)
        changes = None
        if record is not None and record.hardware is not None:
            others = pending.replaced(record, disks)
            changes = pending.changes(record.hardware, pending.hardware(directory, disks), others)
        return _Seen(
            planned,
            problem,
            problem_drive,
            _settings(directory),
            disks,
            kvm,
            changes,
            _cloud_init(directory),
            _given_startup(directory),
        )


async def _interfaces(wires: NetworkInterfaces, wiring: Wiring) -> list[Nic]:
    """Return the interfaces of a VM, from `wiring` if it has them; raises VmessError."""
    if isinstance(wiring.nics, VmessError):
        raise wiring.nics
    return await wires.nics(wiring.files) if wiring.nics is None else wiring.nics


def _nic(  # noqa: PLR0913, PLR0917 -- what is known about one interface
    nic: Nic,
    wires: NetworkInterfaces,
    macs: tuple[str, str],
    cable: bool | None,
    duplicate: str | None,
    other_end: str | None,
    impaired: Impaired,
    of_host: str | None,
) -> VMNic:
    mac, later = macs
    # That the TAPs are not joined is not news if there is nobody at the other end.
    has_no_end = nic.link is not None and nic.waits and other_end is not None
    return VMNic(
        index=nic.index,
        tap=None if nic.by_qemu else nic.tap.long,
        mac=mac,
        wire=str(nic.wire),
        present=nic.link is not None,
        leaving=nic.leaving,
        cable=cable,
        difference=wires.rewiring.lost(nic) or (None if has_no_end else nic.difference()),
        duplicate=duplicate,
        mac_later=later if later != mac else None,
        other_end=other_end,
        incoming=impaired.incoming,
        outgoing=impaired.outgoing,
        flap=wires.impairments.flap(nic.index),
        unimpaired=wires.impairments.unmet(nic, impaired),
        remark=of_host,
    )


def _addresses(nics: Sequence[tuple[Nic, str]], tables: Tables) -> list[VMAddress]:
    """Return the addresses of interfaces, each with its MAC."""
    found = []
    for nic, mac in nics:
        if nic.link is not None:
            found += of_interface(nic.index, mac, nic.link.index, tables)
        elif nic.wire.user:
            source = "given by QEMU's user network; the host cannot reach it"
            found.append(VMAddress(nic.index, mac, USER_ADDRESS, seen=False, source=source, known=False))
    return found


def _with_those_of_agent(
    found: Sequence[VMAddress], nics: Sequence[tuple[Nic, str]], of_agent: Sequence[Address]
) -> list[VMAddress]:
    """Return addresses and those that the guest agent says, except in a user network, which is out of reach."""
    indices = {mac: nic.index for nic, mac in nics if not nic.wire.user}
    more = [
        VMAddress(indices[one.mac], one.mac, one.address, seen=False, source="guest agent", known=True)
        for one in of_agent
        if one.mac in indices
    ]
    seen = {(one.interface, one.address) for one in found if one.seen}
    more = [one for one in more if (one.interface, one.address) not in seen]
    told = {(one.interface, one.address) for one in more}
    rest = [one for one in found if (one.interface, one.address) not in told]
    return sorted([*rest, *more], key=lambda one: one.interface)


def _settings(directory: VMDirectory) -> list[Value]:
    """Return the settings in the form in which they are written, each with what is wrong with it.

    A LOCK file that cannot be read has the error as its value: it locks the VM all the same.
    """
    values = []
    for file in BY_FILE:
        try:
            text = directory.setting_text(file)
        except VmessError as error:
            if isinstance(error, BadFile) and directory.exists():
                why = printable(error.message.removeprefix(f"{directory}/{file} "))
                values.append(Value(file, f"{LOCK} {why}" if file == LOCK else "", why))
            continue
        if text is not None:
            values.append(Value(file, as_told(file, text), _objection(directory, BY_FILE[file], text)))
    return values


def _with_failure(value: Value, failed: Mapping[str, str]) -> Value:
    """Return a setting with what has failed since the start, by the file of the setting."""
    if value.problem or value.name not in failed:
        return value
    shown = "; ".join(value.value.splitlines())
    return Value(value.name, value.value, f"{shown}: {failed[value.name]}")


def _objection(directory: VMDirectory, setting: Setting, text: str) -> str | None:
    """Return why a text is not a value of a setting, or has no effect, in words that follow its name."""
    try:
        value = setting.read(text)
    except InvalidValue as error:
        return error.message
    starts = setting.file in (AUTOSTART, RESTART) and value not in (None, Policy.no)
    if starts and (decides := owner.decides(directory)):
        return ownership.idle(decides, text)
    return None


def _disks(directory: VMDirectory) -> list[Disk]:
    try:
        return images.disks(directory)
    except VmessError:
        return []


def _cloud_init(directory: VMDirectory) -> str | None:
    try:
        seed = cloud_init.read(directory)
    except VmessError:  # `problem` has it
        return None
    return None if seed is None else seed.summary


def _given_startup(directory: VMDirectory) -> Given | None:
    try:
        return startup.read(directory)
    except VmessError:  # as above
        return None


def _drive(disk: Disk, transferred: dict[str, tuple[int, int]]) -> Drive:
    read, written = transferred.get(disk.slot, (None, None))
    bases = backing.shown(disk.bases) or None
    return Drive(
        *(disk.slot, disk.path, disk.target, disk.size, read, written),
        format=disk.format,
        stored=disk.stored,
        bases=bases,
    )
