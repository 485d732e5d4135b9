"""The launch of a QEMU from the directory of a VM.

Everything here blocks, for a few milliseconds on a healthy disk; `machine` runs it in a thread.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vmessd.core import machine_types, names, ownership, serial_ports
from vmessd.core.accelerators import Accelerator
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import BadFile, Failed, VmessError, failing, quoted, shell_line
from vmessd.core.hardware import APPEND, BIOS, FIRMWARE, INITRD, KERNEL
from vmessd.core.lifecycle import Policy
from vmessd.core.names import INTERFACES_MAX
from vmessd.core.records import Moment, RunRecord
from vmessd.core.settings import BOOT_ONCE, BY_FILE, CPU, QUEUES, RESTART, SHARES, VHOST
from vmessd.network import taps, vhost
from vmessd.network.links import Network
from vmessd.network.nics import Nic
from vmessd.qemu import command_line, tpm, virtiofsd
from vmessd.qemu.command_line import Card, ChildFd, Spec
from vmessd.qemu.oom import Counter
from vmessd.qemu.process import Process
from vmessd.qemu.shared_directories import FIRST_FD
from vmessd.storage import (
    backing,
    cable_notes,
    cable_sockets,
    cloud_init,
    firmware,
    images,
    moves,
    owner,
    safefile,
    serial_stream,
    shared_directories,
    startup,
    vmdir,
)
from vmessd.storage.firmware import Firmware
from vmessd.storage.vmdir import Glance, VMDirectory
from vmessd.vm import pending
from vmessd.vm.host import Host
from vmessd.vm.whereabouts import Whereabouts

log = logging.getLogger(__name__)

LAST_LINES = 5  # of qemu.log, kept in the exit record

Check = Callable[[], None]


class Beside(NamedTuple):
    """A process beside QEMU, which ends with it."""

    file: str
    """The setting that asks for it."""
    what: str
    """What it does, in words."""
    process: Process


@dataclass
class Launched:
    """A QEMU process and its data."""

    process: Process
    record: RunRecord
    log_start: int
    """Offset in qemu.log at which this run begins; adapted when the log is shortened at its front."""
    victims: Counter
    """OOM kills in its cgroup."""
    whereabouts: Whereabouts
    beside: list[Beside] = dataclasses.field(default_factory=list)
    """The processes beside it that this daemon has started."""

    def close(self) -> None:
        """Release the process; it keeps running."""
        self.process.close()

    def connect(self, vm: str, name: str) -> socket.socket:
        """Return a connection to a socket in the directory of this QEMU; raises Failed.

        The present location of the directory is looked up: another VM may have its old path.
        """
        home = self.whereabouts.find()
        if home is None:
            raise Failed(f"the directory of {vm} is gone, and its sockets with it", hint=f"vmess {vm} stop")
        return home.connect(name)


def mac(vm: str, index: int, values: Mapping[str, Any]) -> str:
    """Return the MAC that an interface gets at a start; `values` are the settings by file name."""
    return str(values.get("MACS", {}).get(index) or names.mac(vm, index))


def card(vm: str, nic: Nic, values: Mapping[str, Any], slot: int | None) -> Card:
    """Return the network card of an interface."""
    wire = nic.wire
    tap = None if nic.by_qemu else nic.tap.name
    cable = nic.by_qemu and not wire.user
    of_tap = (command_line.queues(values, nic.index), command_line.vhost(values, nic.index)) if tap else ()
    return Card(nic.index, mac(vm, nic.index, values), tap, wire.forwards, slot, nic.mtu, cable, *of_tap)


def queued(values: Mapping[str, Any]) -> list[int]:
    """Return the interfaces whose card has several queues if it has a TAP; `values` are as for :func:`mac`."""
    return [index for index in range(INTERFACES_MAX) if command_line.queues(values, index) > 1]


def specify(
    directory: VMDirectory,
    host: Host,
    display: int,
    looked: Sequence[Nic] | None = None,
    running: Accelerator | None = None,
) -> Spec:
    """Read the specification of a VM from its files; `looked` are its interfaces, if they are known already.

    `running` is the accelerator of its QEMU, if it has one.

    Raises:
        NoSuchVM: there is no directory.
        BadFile: a setting or a drive is invalid; names the file and the value.
        NotPermitted: as Host.settings.
        Failed: the CPU needs KVM, and there is none.
    """
    values = host.settings(directory)
    disks = images.disks(directory)
    images.check(directory, disks, values.get("RAW", ()))
    nics = host.network.nics(directory.vm, values.get("NICS")) if looked is None else looked
    nics = [nic for nic in nics if not nic.leaving]
    seed = cloud_init.read(directory)
    slots = command_line.slots([nic.index for nic in nics], values, disks, cloud_init=seed is not None)
    accel = host.accelerator(values.get("ACCEL"), running)
    host.check_cpu(directory.vm, values.get(CPU), accel)
    _check_kernel(directory, values)
    startup.read(directory)
    cards = [card(directory.vm, nic, values, slots.get(nic.index)) for nic in nics]
    _check_virtio(directory, values, cards)
    return Spec(
        vm=directory.vm,
        directory=str(directory.path),
        accel=accel,
        display=display,
        values=values,
        disks=disks,
        cards=cards,
        firmware=_firmware(directory, values),
        cloud_init=str(cloud_init.medium(directory)) if seed else None,
    )


def _firmware(directory: VMDirectory, values: Mapping[str, Any]) -> Firmware | None:
    """Return the UEFI firmware of a VM, None for a BIOS; raises BadFile, Failed."""
    kind = values.get(FIRMWARE, BIOS)
    return None if kind == BIOS else firmware.of_vm(directory, kind, machine_types.machine(values))


def _check_kernel(directory: VMDirectory, values: Mapping[str, Any]) -> None:
    """Raise BadFile, with a hint, if a file that is booted directly is missing, or its kernel is."""
    for file in (KERNEL, INITRD, APPEND):
        if file not in values:
            continue
        if KERNEL not in values:
            raise BadFile(
                f"{directory}/{file} needs a kernel, and there is none",
                hint=f"vmess {directory.vm} {file.lower()} none; to give it a kernel, see: vmess help kernel",
            )
        if file != APPEND and not os.path.isfile(path := os.path.join(directory.path, values[file])):
            raise BadFile(
                f"{directory}/{file} names {quoted(path, 300)}, which is not a file",
                hint=f"vmess {directory.vm} {file.lower()} none",
            )


def _check_virtio(directory: VMDirectory, values: Mapping[str, Any], cards: Sequence[Card]) -> None:
    """Raise BadFile if a setting is for virtio cards with a TAP, and no card with a TAP is one."""
    tapped = [each for each in cards if each.tap is not None]
    models = dict.fromkeys(command_line.model(values, each.index) for each in tapped)
    for file, useless in (
        (QUEUES, values.get(QUEUES, 1) > 1 and all(each.queues == 1 for each in tapped)),
        (VHOST, values.get(VHOST) and not any(each.vhost for each in tapped)),
    ):
        if tapped and useless:
            raise BadFile(
                f"{directory}/{file} needs a virtio NIC, and the NICs are {quoted(', '.join(models))}",
                hint=f"vmess {directory.vm} nic-model virtio, or vmess {directory.vm} {file.lower()} none",
            )


def _make_sure(directory: VMDirectory, host: Host) -> Mapping[str, Any]:
    """Report a bad value before anything is changed, and find out whether KVM works; raises as `specify`.

    A VM that starts with UEFI for the first time gets its variables. Returns the settings by file name.
    """
    spec = specify(directory, host, display=0)
    backing.check_not_written(directory, {disk.slot: disk.bases for disk in spec.disks})
    host.probe_kvm(spec.values.get("ACCEL"))
    if any(each.vhost for each in spec.cards):
        vhost.check_device(directory.vm)
    if spec.firmware is not None:
        firmware.provide_variables(directory, spec.firmware)
    return spec.values


def _own(directory: VMDirectory, ours: contextlib.ExitStack) -> tuple[int, bool]:
    """Take the lock of a VM, which `ours` closes; raises Locked. Also tell whether a guest is to arrive."""
    lock = directory.lock()
    if lock is None:
        raise directory.held("by another process, so it is not started a second time")
    ours.callback(os.close, lock)
    return lock, moves.check_here(directory)


def _display(directory: VMDirectory, host: Host, undo: contextlib.ExitStack) -> int:
    """Claim and return a VNC display."""
    undo.callback(host.displays.release, directory.vm)
    return host.displays.claim(directory.vm, names.display(directory.vm))


def _tidy(directory: VMDirectory) -> None:
    """Remove what a dead QEMU has left, and make the media again that are out of date."""
    directory.sweep()
    cloud_init.prepare(directory)
    startup.prepare(directory)


def _wire(directory: VMDirectory, host: Host, values: Mapping[str, Any], undo: contextlib.ExitStack) -> None:
    """Create the missing TAPs of a VM; existing ones stay connected as they are.

    A TAP is replaced if it has several queues and its card has one, or the other way round.

    Raises:
        NotPermitted, Failed: a missing TAP cannot be created.
    """
    host.network.sweep(directory.vm)
    nics = host.network.nics(directory.vm, directory.read_setting(BY_FILE["NICS"]))
    macs = directory.read_setting(BY_FILE["MACS"]) or {}
    if any(not nic.by_qemu for nic in nics):
        taps.check_device()
    many = queued(values)
    missing = {nic.index: nic.wire for nic in nics if not _will_do(nic, macs.get(nic.index), nic.index in many)}
    missing = cable_notes.honoured(directory, missing)
    undo.callback(host.network.wire(directory.vm, missing, macs, starts=True, queued=many).undo)
    undo.callback(host.network.settle(directory.vm, macs).undo)
    by_qemu = {nic.index: nic.wire for nic in nics if nic.by_qemu and not nic.wire.user}
    with directory.opened() as place:
        for index, wire in cable_notes.honoured(directory, by_qemu).items():
            cable_sockets.plug(place, index, wire.cable)


def _will_do(nic: Nic, mac: str | None, queued: bool) -> bool:
    """Tell whether the TAP of an interface can stay as it is; `mac` is the setting of its card."""
    if nic.link is None or nic.link.multi_queue is not queued:
        return False
    return nic.is_whole and (mac is None or nic.link.mac == names.tap_mac(mac))


def launch(
    directory: VMDirectory, host: Host, tries: int = 0, check: Check = lambda: None, memory: str = ""
) -> Launched:
    """Start the QEMU of a VM; its guest does not run yet. A failure leaves nothing behind.

    `tries` is the number of consecutive restarts; `check` raises an error if the start was cancelled. With
    the name of a snapshot as `memory`, QEMU waits for the memory of that.

    Raises:
        Locked: another process has locked the directory.
        VmessError: as :func:`specify`, or a resource of the host is missing.
    """
    _check_policy(directory, tries)
    directory.settle_plan()
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as ours:
        values = _make_sure(directory, host)
        lock, arrives = _own(directory, ours)
        _tidy(directory)
        _wire(directory, host, values, undo)
        files, once = Glance(directory), directory.version(BOOT_ONCE)
        spec = specify(files, host, display=0)  # without the interfaces that `_wire` has removed
        display = _display(directory, host, undo)
        spec = dataclasses.replace(spec, display=display, waits=bool(memory) or arrives)
        argv = command_line.build(spec, host.qemu)
        undo.callback(sweep_quietly, directory)
        directory.make_pid_file()
        output = _log(directory, vmdir.QEMU_LOG, ours)
        ports = _serial_ports(directory, spec, ours)
        shorten_logs(directory)
        marks = {port: _serial_begin(directory, port) for port in _ports(spec)}
        beside: list[Beside] = []
        undo.callback(_end_all, beside)
        inherited = {ChildFd.lock: lock, **ports, **_inherited(directory, spec, host, output, beside, ours)}
        log_start = _begin_log(directory, output, argv)
        check()
        _start_tpm(directory, spec, host, inherited, beside, ours)
        process = Process.spawn(argv, output, inherited, host.account.entry)
        undo.callback(_end, process)
        victims = host.kills.around(process.pid)
        record = RunRecord(
            *(process.pid, process.ticks, display, spec.accel, argv, Moment.now(), tries),
            serial=marks[serial_ports.FIRST],
            serials={str(port): mark for port, mark in marks.items()},
            oom_counter=victims.file,
            oom_kills=victims.count,
            cables=True,
            hardware=pending.hardware(files, spec.disks),
            once=once * (BOOT_ONCE in spec.values),
            images=pending.images(spec.disks),
            memory=memory,
        )
        backing.remember(directory, {disk.slot: (disk.identity, disk.bases) for disk in spec.disks})
        directory.write_run_record(record)
        undo.pop_all()
    return Launched(process, record, log_start, victims, Whereabouts(directory, process.pid), beside)


def _ports(spec: Spec) -> Sequence[int]:
    return serial_ports.PORTS[: spec.values.get(serial_ports.SERIAL, 1)]


def _serial_ports(directory: VMDirectory, spec: Spec, ours: contextlib.ExitStack) -> dict[int, int]:
    """Open the sockets and logs of serial ports for QEMU; raises BadFile, Failed."""
    found: dict[int, int] = {}
    for port in _ports(spec):
        listener, log = command_line.serial_fds(port)
        found[listener] = ours.enter_context(directory.listen(serial_ports.socket(port))).fileno()
        found[log] = _log(directory, serial_ports.log(port), ours)
    return found


def _inherited(  # noqa: PLR0913, PLR0917 -- a part of `launch`
    directory: VMDirectory,
    spec: Spec,
    host: Host,
    output: int,
    beside: list[Beside],
    ours: contextlib.ExitStack,
) -> dict[int, int]:
    """Open sockets and shared directories for QEMU; return their descriptors there and here.

    Servers of directories are added to `beside`.

    Raises:
        BadFile, Failed: a socket cannot be bound.
        BadFile, NotPermitted: a directory cannot be opened, or is not allowed any more.
    """
    found: dict[int, int] = {}
    sockets = {ChildFd.qmp: vmdir.QMP_SOCKET}
    if spec.values.get("AGENT"):
        sockets[ChildFd.agent] = vmdir.AGENT_SOCKET
    for child, name in sockets.items():
        found[child] = ours.enter_context(directory.listen(name)).fileno()
    for number, share in enumerate(spec.values.get(SHARES, ())):
        descriptor = shared_directories.opened(share, host.allow_shares, spec.vm)
        ours.callback(os.close, descriptor)
        if share.virtiofs:
            virtiofsd.check(host.account, host.allow_shares)
            with directory.opened() as place:
                name = safefile.temporary_name("virtiofs.sock")
                server, connected = virtiofsd.serve(share.path, place, name, output)
            beside.append(Beside(SHARES, f"share {share.tag} (virtiofsd)", server))
            descriptor = ours.enter_context(connected).fileno()
        found[FIRST_FD + number] = descriptor
    return found


def _start_tpm(  # noqa: PLR0913, PLR0917 -- a part of `launch`
    directory: VMDirectory,
    spec: Spec,
    host: Host,
    inherited: dict[int, int],
    beside: list[Beside],
    ours: contextlib.ExitStack,
) -> None:
    """Start swtpm if the VM has a TPM, and add its control socket to what QEMU inherits.

    Raises:
        Failed, StartFailed: there is no swtpm, or no place for its state; or it cannot have the state.
    """
    if not spec.values.get("TPM"):
        return
    state = directory.open_tpm_state()
    ours.callback(os.close, state)
    tpm.hand_over(directory.path / vmdir.TPM_STATE, state, host.account)
    log = directory.open_log(vmdir.QEMU_LOG)
    ours.callback(os.close, log)
    process, control = tpm.spawn(state, log, host.account.entry)
    beside.append(Beside("TPM", "its TPM (swtpm)", process))
    inherited[ChildFd.tpm] = ours.enter_context(control).fileno()


def _begin_log(directory: VMDirectory, output: int, argv: Sequence[str]) -> int:
    """Write the command line to qemu.log, and return the offset at which QEMU's own lines begin."""
    with failing(f"{directory}/{vmdir.QEMU_LOG} cannot be written"):
        os.write(output, f"{shell_line(argv)}\n".encode())
        return os.fstat(output).st_size


def _log(directory: VMDirectory, name: str, ours: contextlib.ExitStack) -> int:
    """Open a log for QEMU and return its descriptor, which `ours` closes."""
    descriptor = directory.open_log(name)
    ours.callback(os.close, descriptor)
    return descriptor


def _check_policy(directory: VMDirectory, tries: int) -> None:
    """Raise Failed if this is a restart and the policy does not ask for one any more."""
    if tries and restart_policy(directory) is Policy.no:
        raise Failed("its RESTART file does not ask for it any more")


def _end_all(beside: Sequence[Beside]) -> None:
    for one in beside:
        _end(one.process)


def _end(process: Process) -> None:
    process.signal(signal.SIGKILL)
    process.reap()
    process.close()


def shorten_logs(directory: VMDirectory) -> None:
    """Shorten the logs of a VM that has no process to their size limit; problems are logged."""

    def complain(problem: str) -> None:
        log.warning("%s: %s", directory.vm, problem)

    for name in vmdir.LOGS:
        try:
            directory.shorten_log(name, complain)
        except VmessError as error:
            complain(error.message)


def _serial_begin(directory: VMDirectory, port: int) -> str:
    """Return the mark in the log of a serial port at which a new run begins; "" if it is not known."""
    with contextlib.suppress(VmessError):
        return str(serial_stream.end(directory, serial_ports.log(port)))
    return ""


def sweep_links(directory: VMDirectory, network: Network) -> None:
    """Delete the TAPs of removed interfaces, which QEMU had kept open; problems are logged."""
    try:
        network.sweep(directory.vm)
    except VmessError as error:
        log.warning("%s: %s", directory.vm, error.message)


def sweep_quietly(directory: VMDirectory) -> None:
    """Remove the files that a dead QEMU left; if that fails, the next start reports it."""
    with contextlib.suppress(VmessError):
        directory.sweep()


def restart_policy(directory: VMDirectory) -> Policy:
    """Return the policy in the RESTART file; `no` if it is malformed or the VM has an owner; that is logged."""
    try:
        policy = Policy(directory.read_setting(BY_FILE[RESTART]) or Policy.no)
    except VmessError as error:
        log.warning("%s: %s; it is not restarted", directory.vm, error.message)
        return Policy.no
    if policy is not Policy.no and (decides := owner.decides(directory)):
        log.warning("%s: %s", directory.vm, ownership.idle(decides, RESTART))
        return Policy.no
    return policy
