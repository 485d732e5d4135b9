"""From a VM's directory to its QEMU.

Everything here blocks, for a few milliseconds on a healthy disk; `machine` runs it in a thread.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vmessd.core import names
from vmessd.core.errors import Failed, VmessError, failing, shell_line
from vmessd.core.lifecycle import Policy
from vmessd.core.records import Moment, RunRecord
from vmessd.core.settings import BY_FILE
from vmessd.network import taps
from vmessd.network.links import Network, Nic
from vmessd.qemu import command_line
from vmessd.qemu.command_line import Card, ChildFd, Spec
from vmessd.qemu.oom import Counter
from vmessd.qemu.process import Process
from vmessd.storage import images, serial_stream, vmdir
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import whereabouts
from vmessd.vm.host import Host

log = logging.getLogger(__name__)

LAST_LINES = 5  # of what QEMU wrote, kept with the record of its exit

Check = Callable[[], None]


@dataclasses.dataclass
class Launched:
    """A QEMU process and what is known about it."""

    process: Process
    record: RunRecord
    log_start: int
    """Where in its log this run's own words begin; follows when the log loses its front."""
    victims: Counter
    """What the kernel kills around it for lack of memory."""
    home: VMDirectory | None = None
    """Where its directory is, if not where it should be."""
    problem: str | None = None
    """What is wrong with where its directory is, and how that is mended."""

    def close(self) -> None:
        """Let go of the process, which goes on."""
        self.process.close()

    def connect(self, directory: VMDirectory, name: str) -> socket.socket:
        """Return a socket connected to one of the QEMU's, which is a VM's of this directory; raises Failed.

        It is looked where the directory is now: another VM's may have its name.
        """
        home = whereabouts.place(directory, self.process.pid)
        if home is None:
            raise Failed(
                f"the directory of {directory.vm} is gone, and its sockets with it",
                hint=f"vmess {directory.vm} stop",
            )
        return home.connect(name)


def mac(vm: str, index: int, values: Mapping[str, Any]) -> str:
    """Return the MAC that an interface gets at a start; `values` are settings by file name."""
    return str(values.get("MACS", {}).get(index) or names.mac(vm, index))


def card(vm: str, nic: Nic, values: Mapping[str, Any], slot: int | None) -> Card:
    """Return the network card of an interface."""
    wire = nic.wire
    return Card(nic.index, mac(vm, nic.index, values), None if wire.user else nic.tap, wire.forwards, slot)


def specify(directory: VMDirectory, host: Host, display: int, looked: Sequence[Nic] | None = None) -> Spec:
    """Read what the VM should be; `looked` are its interfaces where they were looked at already.

    Raises:
        NoSuchVM: there is no directory.
        BadFile: a setting or a drive is not what it has to be; names the file and the value.
        NotPermitted: as Host.settings.
    """
    values = host.settings(directory)
    disks = images.disks(directory)
    images.check(directory, disks, values.get("RAW", ()))
    nics = host.network.nics(directory.vm, values.get("NICS")) if looked is None else looked
    nics = [nic for nic in nics if not nic.leaving]
    slots = command_line.slots([nic.index for nic in nics], values)
    return Spec(
        vm=directory.vm,
        directory=str(directory.path),
        accel=host.accelerator(values.get("ACCEL")),
        display=display,
        values=values,
        disks=disks,
        cards=[card(directory.vm, nic, values, slots.get(nic.index)) for nic in nics],
    )


def _own(directory: VMDirectory) -> int:
    """Return the lock of a VM that nobody has; raises Locked."""
    lock = directory.lock()
    if lock is None:
        raise directory.held("by another process, so it is not started a second time")
    return lock


def _wire(directory: VMDirectory, host: Host, undo: contextlib.ExitStack) -> None:
    """See to it that the VM's TAPs are there: those the kernel has stay where they are.

    Raises:
        NotPermitted, Failed: one is missing, and cannot be made.
    """
    host.network.sweep(directory.vm)
    nics = host.network.nics(directory.vm, directory.read_setting(BY_FILE["NICS"]))
    macs = directory.read_setting(BY_FILE["MACS"]) or {}
    wires = {nic.index: nic.wire for nic in nics if not nic.wire.user}
    if wires:
        taps.check_device()
    missing = {nic.index: nic.wire for nic in nics if not _will_do(nic, macs.get(nic.index))}
    undo.callback(host.network.wire(directory.vm, missing, macs, starts=True).undo)
    undo.callback(host.network.settle(directory.vm, macs).undo)


def _will_do(nic: Nic, mac: str | None) -> bool:
    """Tell whether an interface's TAP can stay as it is; `mac` is what was set for its card."""
    return nic.is_whole and (mac is None or nic.link is None or nic.link.mac == names.tap_mac(mac))


def launch(directory: VMDirectory, host: Host, tries: int = 0, check: Check = lambda: None) -> Launched:
    """Start the VM's QEMU, its guest not running yet. Where this fails, nothing is left.

    `tries` is how many restarts in a row this is; `check` raises what puts an end to it.

    Raises:
        Locked: the VM has a live owner that is not ours.
        VmessError: as :func:`specify`, or the host lacks what it takes.
    """
    _check_policy(directory, tries)
    with contextlib.ExitStack() as undo, contextlib.ExitStack() as ours:
        spec = specify(directory, host, display=0)  # a bad value is told before anything is touched
        lock = _own(directory)
        ours.callback(os.close, lock)
        directory.sweep()
        _wire(directory, host, undo)
        spec = specify(directory, host, display=0)  # what was to go is gone now
        undo.callback(host.displays.release, directory.vm)
        display = host.displays.claim(directory.vm, names.display(directory.vm))
        argv = command_line.build(dataclasses.replace(spec, display=display), host.qemu)
        undo.callback(sweep_quietly, directory)
        directory.make_pid_file()
        output, serial_log = (_log(directory, name, ours) for name in (vmdir.QEMU_LOG, vmdir.SERIAL_LOG))
        shorten_logs(directory)
        serial_begin = _serial_begin(directory)
        qmp = ours.enter_context(directory.listen(vmdir.QMP_SOCKET))
        serial = ours.enter_context(directory.listen(vmdir.SERIAL_SOCKET))
        with failing(f"{directory}/{vmdir.QEMU_LOG} cannot be written"):
            os.write(output, f"{shell_line(argv)}\n".encode())
            log_start = os.fstat(output).st_size
        check()
        process = Process.spawn(
            argv,
            output,
            {
                ChildFd.lock: lock,
                ChildFd.qmp: qmp.fileno(),
                ChildFd.serial: serial.fileno(),
                ChildFd.serial_log: serial_log,
            },
            host.account.entry,
        )
        undo.callback(_end, process)
        victims = host.kills.around(process.pid)
        record = RunRecord(
            *(process.pid, process.ticks, display, spec.accel, argv, Moment.now(), tries),
            serial=serial_begin,
            oom_counter=victims.file,
            oom_kills=victims.count,
            cables=True,
        )
        directory.write_run_record(record)
        undo.pop_all()
    return Launched(process, record, log_start, victims)


def _log(directory: VMDirectory, name: str, ours: contextlib.ExitStack) -> int:
    """Return a log, open for QEMU to write to until `ours` ends."""
    descriptor = directory.open_log(name)
    ours.callback(os.close, descriptor)
    return descriptor


def _check_policy(directory: VMDirectory, tries: int) -> None:
    """Raise Failed where a restart is not wanted any more."""
    if tries and restart_policy(directory) is Policy.no:
        raise Failed("its RESTART file does not want it any more")


def _end(process: Process) -> None:
    process.signal(signal.SIGKILL)
    process.reap()
    process.close()


def shorten_logs(directory: VMDirectory) -> None:
    """Keep the logs of a VM without a process below their cap; what does not work is logged."""

    def complain(problem: str) -> None:
        log.warning("%s: %s", directory.vm, problem)

    for name in vmdir.LOGS:
        try:
            directory.shorten_log(name, complain)
        except VmessError as error:
            complain(error.message)


def _serial_begin(directory: VMDirectory) -> str:
    """Return where in the log of its serial port a new run begins; nothing where that cannot be told."""
    with contextlib.suppress(VmessError):
        return str(serial_stream.end(directory))
    return ""


def sweep_links(directory: VMDirectory, network: Network) -> None:
    """Delete TAPs that were to go as soon as the VM's QEMU had; what does not work is logged."""
    try:
        network.sweep(directory.vm)
    except VmessError as error:
        log.warning("%s: %s", directory.vm, error.message)


def sweep_quietly(directory: VMDirectory) -> None:
    """Remove what a dead QEMU leaves; where that does not work, a start says so."""
    with contextlib.suppress(VmessError):
        directory.sweep()


def restart_policy(directory: VMDirectory) -> Policy:
    """Return what the RESTART file says; `no` where it makes no sense, which is logged."""
    try:
        return Policy(directory.read_setting(BY_FILE["RESTART"]) or Policy.no)
    except VmessError as error:
        log.warning("%s: %s; it is not restarted", directory.vm, error.message)
        return Policy.no
