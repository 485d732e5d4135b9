"""Adoption of a QEMU that an earlier daemon started, even if the directory of the VM was moved meanwhile.

A QEMU belongs to the VM whose name it was started with, in the VM root it was started in. It holds two locks
while it lives, on the VM directory and on the pid file in it. Both follow the directory, so a running VM is
found even if its root is written in another way, or its directory was renamed, replaced by a copy, or removed.
A directory that is locked by a process which is not known to be its QEMU is reported as held, never as off.

Everything here blocks, for a few milliseconds on a healthy disk; `machine` runs it in a thread.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import logging
import os
from pathlib import Path

from vmessd.core import pid_file
from vmessd.core.errors import BadFile, Failed, Locked, NoSuchVM, VmessError, shell_line
from vmessd.core.lifecycle import IN_WORDS, Reason, is_restarted
from vmessd.core.records import ExitRecord, Moment, RunRecord, boot_id
from vmessd.core.settings import BOOT_ONCE
from vmessd.qemu import command_line
from vmessd.qemu.census import Sighting, under
from vmessd.qemu.command_line import ChildFd
from vmessd.qemu.oom import Counter
from vmessd.qemu.process import Process, arguments
from vmessd.storage import moves, vmdir
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import whereabouts
from vmessd.vm.host import Host
from vmessd.vm.launcher import LAST_LINES, Launched, restart_policy, shorten_logs, sweep_quietly
from vmessd.vm.whereabouts import Whereabouts

log = logging.getLogger(__name__)


def recover(directory: VMDirectory, host: Host) -> Launched | None:
    """Find the QEMU of a VM that an earlier daemon started; None if none is alive.

    Writes the exit record of a run that ended while no daemon watched.

    Raises:
        Locked: another process, not known to be its QEMU, has locked the directory.
        VmessError: the directory cannot be read, or an exit record cannot be written.
    """
    try:
        directory.sweep_temporaries()
    except NoSuchVM:
        pass
    except VmessError as error:
        log.warning("%s: %s", directory.vm, error.message)
    _settle_move(directory)
    record = _run_record(directory)
    launched = _find(directory, record, host)
    if launched is not None:
        host.displays.hold(directory.vm, launched.record.display)
    else:
        if record is not None:
            _record_unseen(directory, record, host.kills.around(os.getpid()))
        _settle_plan(directory)
    return launched


def _settle_move(directory: VMDirectory) -> None:
    """Forget a move that had decided nothing. If the note cannot be read, no start is possible."""
    try:
        moves.settle(directory)
    except NoSuchVM:
        pass
    except VmessError as error:
        log.warning("%s: %s", directory.vm, error.message)


def _settle_plan(directory: VMDirectory) -> None:
    """Complete a change of images in which a QEMU had a part that has ended; the next start does it, too."""
    try:
        directory.settle_plan()
    except NoSuchVM:
        pass
    except VmessError as error:
        log.warning("%s: %s", directory.vm, error.message)


def spot(directory: VMDirectory, host: Host) -> Launched | None:
    """Find the QEMU of a VM among the processes, without its files; None if there is none."""
    for one in host.census.seen().get(directory.vm, ()):
        if one.directory != str(directory.path):
            continue
        process = _sighted(one, host)
        described = _described(process, None) if process is not None else None
        if process is not None and described is not None:
            host.displays.hold(directory.vm, described.display)
            where = Whereabouts(directory, process.pid)
            return Launched(process, described, 0, host.kills.around(process.pid), where)
    return None


def present(root: Path, host: Host) -> list[Sighting]:
    """Return the processes that look like QEMUs of this VM root, with or without a directory; raises Failed."""
    return under(root, itertools.chain.from_iterable(host.census.seen(within=0).values()))


def alive(root: Path, host: Host) -> list[Sighting]:
    """Return those of :func:`present` that are QEMUs of ours; raises Failed."""
    found = []
    for one in present(root, host):
        process = _verified(one, host)
        if process is not None:
            process.close()
            found.append(one)
    return found


def last_exit(directory: VMDirectory) -> ExitRecord | None:
    """Return the last exit record; None if there is none, or it is not readable, which is logged."""
    try:
        return directory.exit_record()
    except NoSuchVM:
        return None
    except VmessError as error:
        log.warning("%s: %s; it is ignored", directory.vm, error.message)
        return None


def _run_record(directory: VMDirectory) -> RunRecord | None:
    try:
        return directory.run_record()
    except NoSuchVM:
        return None
    except BadFile as error:
        log.warning("%s; it is ignored", error.message)
        return None


def _find(directory: VMDirectory, record: RunRecord | None, host: Host) -> Launched | None:
    """Return the live QEMU. Its command line is read from the process: the record may be forged."""
    held, trouble = False, None
    try:
        held = _is_held(directory)
    except VmessError as error:
        trouble = error
    try:
        holder = _holder(directory, record, host) if held else None
        process = holder if isinstance(holder, Process) else _astray(directory, host)
        if process is None and (process := _disguised(record, host)) is not None and record is not None:
            where = Whereabouts(directory, process.pid)
            return Launched(process, record, _log_size(directory), host.kills.around(process.pid), where)
    except Failed as error:
        raise directory.held(f"by an unknown process: {error.message}") if held else error from None
    if process is not None:
        where = Whereabouts(directory, process.pid)
        if process is not holder:
            where.look()
        return _adopted(directory, process, record, host.kills.around(process.pid), where)
    if isinstance(holder, Sighting):
        raise _held_by_another(directory, holder)
    if held:
        raise directory.held("by a process that is not its QEMU")
    if trouble is not None:
        raise trouble
    return None


def _is_held(directory: VMDirectory) -> bool:
    """Tell whether a process has locked the directory; if not, sweep the files that a dead one left."""
    try:
        lock = directory.lock()
    except NoSuchVM:
        return False
    if lock is None:
        return True
    try:
        sweep_quietly(directory)  # files of a start or an end that a daemon did not complete
    finally:
        os.close(lock)
    return False


def _holder(directory: VMDirectory, record: RunRecord | None, host: Host) -> Process | Sighting | None:
    """Return the QEMU that has locked the directory, as a Sighting if it is another VM's; None if unknown.

    Raises:
        Locked: it is in another PID namespace.
    """
    keeper = directory.keeper()
    if keeper == 0:
        raise directory.held(
            "by its QEMU, which is in another PID namespace",
            hint="run vmessd in the PID namespace in which it was started",
        )
    pids = [] if keeper is None else [keeper]
    if record is not None and record.since.boot == boot_id():
        pids.append(record.pid)
    pids += [one.pid for several in host.census.seen().values() for one in several]
    for pid in dict.fromkeys(pids):
        process = Process.find(
            pid, None, lambda argv: command_line.named_in(argv) is not None, host.account.uids
        )
        if process is None:
            continue
        named = command_line.named_in(_arguments(process))
        if named is None or not (pid == keeper or whereabouts.lives_in(pid, directory, named[1])):
            process.close()
            continue
        if named[0] == directory.vm:
            return process
        process.close()
        return Sighting(pid, *named)
    return None


def _held_by_another(directory: VMDirectory, one: Sighting) -> Locked:
    root = directory.path.parent
    back = whereabouts.way_back(directory.path, root / one.vm)
    return Locked(
        f"VM {directory.vm} is held by QEMU of {one.vm}, PID {one.pid}: the directory was renamed while it ran",
        hint=f"{back}, or vmess {one.vm} stop" if under(root, [one]) else back,
    )


def _astray(directory: VMDirectory, host: Host) -> Process | None:
    """Return the QEMU of a VM whose locked directory is not the one of the VM."""
    for one in under(directory.path.parent, host.census.seen().get(directory.vm, ())):
        if (process := _verified(one, host)) is not None:
            return process
    return None


def _sighted(one: Sighting, host: Host) -> Process | None:
    """Return the process of a sighting if it is still there and runs under one of our accounts."""
    return Process.find(one.pid, None, lambda argv: command_line.named_in(argv) == one[1:], host.account.uids)


def _verified(one: Sighting, host: Host) -> Process | None:
    """Return the process of a sighting if it is a QEMU of ours; any process may have such arguments.

    A QEMU has locked a directory. If we may not look at its descriptors, it runs under the account of QEMU,
    which runs nothing else.
    """
    process = _sighted(one, host)
    if process is None:
        return None
    try:
        fd = os.open(f"/proc/{one.pid}/fd/{ChildFd.lock:d}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        if host.account.entry:
            return process
    except OSError:
        pass
    else:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return process
        finally:
            os.close(fd)
    process.close()
    return None


def _disguised(record: RunRecord | None, host: Host) -> Process | None:
    """Return the process of the run record, even if its arguments are not those of a QEMU.

    Only if QEMU has an account of its own, so that only we can have written the record: a guest that broke out
    may overwrite the arguments of its QEMU. A process with -pidfile belongs to another VM, whose record was
    copied here.
    """
    if record is None or record.since.boot != boot_id() or not host.account.entry:
        return None
    process = Process.find(record.pid, record.ticks, None, {host.account.uid})
    if process is not None and pid_file.OPTION in _arguments(process):
        process.close()
        return None
    return process


def _arguments(process: Process) -> list[str]:
    try:
        return arguments(process.pid)
    except OSError:
        return []


def _adopted(
    directory: VMDirectory, process: Process, record: RunRecord | None, victims: Counter, where: Whereabouts
) -> Launched | None:
    """Return a process with its run record, which is written if it is missing; None if it has ended."""
    home = where.directory
    records = [record, _run_record(home) if home is not directory else None]
    noted = next((one for one in records if one and (one.pid, one.ticks) == (process.pid, process.ticks)), None)
    found = _described(process, noted)
    if found is None:
        return None
    if noted is None:
        try:
            home.write_run_record(found)
        except VmessError as error:
            # Not fatal: the next daemon finds the VM without the record.
            log.warning("%s: %s", directory.vm, error.message)
    return Launched(process, found, _log_size(home), victims, where)


def _described(process: Process, noted: RunRecord | None) -> RunRecord | None:
    """Return a run record by the arguments of a process and its written record; None if it has ended."""
    argv = _arguments(process)
    if not argv:
        process.close()
        return None
    display, accel = command_line.display_of(argv), command_line.accel_of(argv)
    if noted is None:
        return RunRecord(process.pid, process.ticks, display, accel, argv, Moment.now())
    return dataclasses.replace(noted, display=display, accel=accel, argv=argv)


def _log_size(directory: VMDirectory) -> int:
    with contextlib.suppress(OSError):
        return os.stat(directory.path / vmdir.QEMU_LOG, follow_symlinks=False).st_size
    return 0


def _last_lines(directory: VMDirectory, record: RunRecord) -> list[str]:
    """Return the last lines of QEMU, without the command lines before them, which QEMU did not print."""
    lines, command = directory.log_tail(vmdir.QEMU_LOG, 0), f"{shell_line(record.argv[:3])} "
    begins = [number for number, line in enumerate(lines) if line.startswith(command)]
    return lines[begins[-1] + 1 if begins else 0 :][-LAST_LINES:]


def _record_unseen(directory: VMDirectory, record: RunRecord, victims: Counter) -> None:
    last = None
    with contextlib.suppress(BadFile):
        last = directory.exit_record()
    if last is None or (last.pid, last.ticks) != (record.pid, record.ticks):
        this_boot = record.since.boot == boot_id()
        killer = victims.unseen(record.oom_counter, record.oom_kills) if this_boot else ""
        last = ExitRecord(
            pid=record.pid,
            ticks=record.ticks,
            reason=Reason.unseen,
            text=IN_WORDS[Reason.unseen] + killer,
            status=None,
            asked_by=None,
            log=_last_lines(directory, record),
            when=Moment.now(),
            tries=record.tries,
            serial=record.serial,
            serials=record.serials,
            # After a boot of the host, AUTOSTART decides which VMs start.
            again=this_boot and not record.stopping and is_restarted(restart_policy(directory), Reason.unseen),
        )
    if record.once:
        directory.use_up(BOOT_ONCE, record.once)
    directory.write_exit_record(last)
    shorten_logs(directory)
