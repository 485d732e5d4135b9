"""From a VM's directory to its QEMU: started anew, or found alive.

Everything here blocks, for a few milliseconds on a healthy disk; `machine` runs it in a thread.
"""

import contextlib
import dataclasses
import logging
import os
import signal
from collections.abc import Callable

from vmessd import cmdline, drives, names, seriallog, shell, tap, vmdir
from vmessd.cmdline import Card, ChildFd, Spec
from vmessd.errors import BadFile, Failed, VmessError, failing
from vmessd.host import Host
from vmessd.lifecycle import Reason, is_restarted
from vmessd.network import Network, Nic
from vmessd.process import Process, arguments
from vmessd.records import ExitRecord, Moment, RunRecord, boot_id
from vmessd.settings import BY_FILE
from vmessd.vmdir import VMDirectory

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

    def close(self) -> None:
        """Let go of the process, which goes on."""
        self.process.close()


def identity(directory: VMDirectory) -> tuple[str, str]:
    """Return the arguments that only this VM's QEMU has."""
    return ("-pidfile", f"{directory.path}/{vmdir.PID_FILE}")


def card(vm: str, nic: Nic) -> Card:
    """Return the network card of an interface."""
    wire = nic.wire
    return Card(nic.index, names.mac(vm, nic.index), None if wire.user else nic.tap, wire.forwards)


def specify(directory: VMDirectory, host: Host, display: int) -> Spec:
    """Read what the VM should be.

    Raises:
        NoSuchVM: there is no directory.
        BadFile: a setting or a drive is not what it has to be; names the file and the value.
        NotPermitted: as Host.settings.
    """
    values = host.settings(directory)
    nics = host.network.nics(directory.vm, values.get("NICS"))
    return Spec(
        vm=directory.vm,
        directory=str(directory.path),
        accel=host.accelerator(values.get("ACCEL")),
        display=display,
        values=values,
        disks=drives.disks(directory),
        cards=[card(directory.vm, nic) for nic in nics if not nic.leaving],
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
    wires = {nic.index: nic.wire for nic in nics if not nic.wire.user}
    if wires:
        tap.check_device()
    missing = {
        nic.index: nic.wire for nic in nics if nic.link is None or not nic.link.up or nic.link.owner is None
    }
    undo.callback(host.network.wire(directory.vm, missing).undo)


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
        argv = cmdline.build(dataclasses.replace(spec, display=display), host.qemu)
        undo.callback(_sweep_quietly, directory)
        directory.make_pid_file()
        output = directory.open_log(vmdir.QEMU_LOG)
        ours.callback(os.close, output)
        serial_log = directory.open_log(vmdir.SERIAL_LOG)
        ours.callback(os.close, serial_log)
        shorten_logs(directory)
        serial_begin = _serial_begin(directory)
        qmp = ours.enter_context(directory.listen(vmdir.QMP_SOCKET))
        serial = ours.enter_context(directory.listen(vmdir.SERIAL_SOCKET))
        with failing(f"{directory}/{vmdir.QEMU_LOG} cannot be written"):
            os.write(output, f"{shell.join(argv)}\n".encode())
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
        record = RunRecord(
            *(process.pid, process.ticks, display, spec.accel, argv),
            since=Moment.now(),
            tries=tries,
            serial=serial_begin,
        )
        directory.write_run_record(record)
        undo.pop_all()
    return Launched(process, record, log_start)


def _check_policy(directory: VMDirectory, tries: int) -> None:
    """Raise Failed where a restart is not wanted any more."""
    if tries and restart_policy(directory) == "no":
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
        return str(seriallog.end(directory))
    return ""


def sweep_links(directory: VMDirectory, network: Network) -> None:
    """Delete TAPs that were to go as soon as the VM's QEMU had; what does not work is logged."""
    try:
        network.sweep(directory.vm)
    except VmessError as error:
        log.warning("%s: %s", directory.vm, error.message)


def _sweep_quietly(directory: VMDirectory) -> None:
    with contextlib.suppress(VmessError):
        directory.sweep()


def recover(directory: VMDirectory, host: Host) -> Launched | None:
    """Find the VM's QEMU that an earlier daemon started; None where there is none alive.

    A run that ended while nobody watched gets its exit record here.

    Raises:
        Locked: it has a live owner that cannot be told to be its QEMU.
        VmessError: the directory cannot be read, or an exit record cannot be written.
    """
    try:
        directory.sweep_temporaries()
    except VmessError as error:
        log.warning("%s: %s", directory.vm, error.message)
    record = _run_record(directory)
    found = _find(directory, record, host)
    if found is None:
        if record is not None:
            _record_unseen(directory, record)
        return None
    process, record = found
    host.displays.hold(directory.vm, record.display)
    log_start = 0
    with contextlib.suppress(OSError):
        log_start = os.stat(directory.path / vmdir.QEMU_LOG, follow_symlinks=False).st_size
    return Launched(process, record, log_start)


def spot(directory: VMDirectory, host: Host) -> Launched | None:
    """Find the VM's QEMU without a look at its files, which do not answer; None where none is seen."""
    process = Process.search(identity(directory), host.account.uids)
    found = _described(process, None) if process is not None else None
    if found is None:
        return None
    host.displays.hold(directory.vm, found[1].display)
    return Launched(*found, log_start=0)


def last_exit(directory: VMDirectory) -> ExitRecord | None:
    """Return how the VM's last run ended; None where there was none, or nobody can read it."""
    try:
        return directory.exit_record()
    except VmessError as error:
        log.warning("%s: %s; it is passed over", directory.vm, error.message)
        return None


def _run_record(directory: VMDirectory) -> RunRecord | None:
    try:
        return directory.run_record()
    except BadFile as error:
        log.warning("%s; it is passed over", error.message)
        return None


def _find(directory: VMDirectory, record: RunRecord | None, host: Host) -> tuple[Process, RunRecord] | None:
    """Return the live process by its record, or, if the directory is locked all the same, by looking.

    What it was started with is read from the process: the record may be anybody's.
    """
    if record is not None and record.since.boot == boot_id():
        process = Process.find(record.pid, record.ticks, identity(directory), host.account.uids)
        if process is not None:
            return _described(process, record)
        if host.account.entry and (process := _disguised(record, host)) is not None:
            return process, record
    lock = directory.lock()
    if lock is not None:
        try:
            _sweep_quietly(directory)  # what a start or an end left that its daemon did not see through
        finally:
            os.close(lock)
        return None
    process = Process.search(identity(directory), host.account.uids)
    if process is None:
        raise directory.held("by a process that is not its QEMU, or was not at this path")
    found = _described(process, None)
    if found is not None:
        try:
            directory.write_run_record(found[1])
        except VmessError as error:
            # The VM is known all the same; the next daemon will have to look for it again.
            log.warning("%s: %s", directory.vm, error.message)
    return found


def _disguised(record: RunRecord, host: Host) -> Process | None:
    """Return the process of a record that only we can have written, whatever it made of its arguments.

    For a QEMU as a user of its own: a guest that broke out of it may overwrite them, and is to be held all
    the more. One that names a pid file is another VM's, whose record was copied here.
    """
    process = Process.find(record.pid, record.ticks, None, {host.account.uid})
    if process is not None and "-pidfile" in _arguments(process):
        process.close()
        return None
    return process


def _arguments(process: Process) -> list[str]:
    try:
        return arguments(process.pid)
    except OSError:
        return []


def _described(process: Process, record: RunRecord | None) -> tuple[Process, RunRecord] | None:
    """Return a process with what its arguments say, the rest by its record; None where it has ended."""
    argv = _arguments(process)
    if not argv:
        process.close()
        return None
    found = RunRecord(
        *(process.pid, process.ticks, cmdline.display_of(argv), cmdline.accel_of(argv), argv),
        since=record.since if record else Moment.now(),
        tries=record.tries if record else 0,
        serial=record.serial if record else "",
        stopping=record is not None and record.stopping,
    )
    return process, found


def _record_unseen(directory: VMDirectory, record: RunRecord) -> None:
    last = None
    with contextlib.suppress(BadFile):
        last = directory.exit_record()
    if last is None or (last.pid, last.ticks) != (record.pid, record.ticks):
        last = ExitRecord(
            pid=record.pid,
            ticks=record.ticks,
            reason=Reason.unseen.name,
            text=Reason.unseen.value,
            status=None,
            asked_by=None,
            log=directory.log_tail(vmdir.QEMU_LOG, 0)[-LAST_LINES:],
            when=Moment.now(),
            tries=record.tries,
            serial=record.serial,
            # After a boot of the host it is for AUTOSTART to say what comes up.
            again=record.since.boot == boot_id()
            and not record.stopping
            and is_restarted(restart_policy(directory), Reason.unseen),
        )
    directory.write_exit_record(last)
    shorten_logs(directory)


def restart_policy(directory: VMDirectory) -> str:
    """Return what the RESTART file says; `no` where it makes no sense, which is logged."""
    try:
        return directory.read_setting(BY_FILE["RESTART"]) or "no"
    except VmessError as error:
        log.warning("%s: %s; it is not restarted", directory.vm, error.message)
        return "no"
