"""Finding the QEMU that an earlier daemon started, whatever became of its VM's directory meanwhile.

A QEMU belongs to the VM whose name it was started with, in the root it was started in. It keeps two locks for
life, on the VM's directory and on the pid file in it, and both follow the directory wherever it goes: so a
VM that runs is found where its root has another spelling, and where its directory was renamed, replaced by a
copy, or removed. What is locked by somebody who cannot be told to be its QEMU is said to be so, and is never
taken for off.

Everything here blocks, for a few milliseconds on a healthy disk; `machine` runs it in a thread.
"""

import contextlib
import fcntl
import itertools
import logging
import os
from pathlib import Path

from vmessd.core.errors import BadFile, Failed, Locked, NoSuchVM, VmessError
from vmessd.core.lifecycle import IN_WORDS, Reason, is_restarted
from vmessd.core.records import ExitRecord, Moment, RunRecord, boot_id
from vmessd.qemu import command_line
from vmessd.qemu.census import Sighting, under
from vmessd.qemu.command_line import ChildFd
from vmessd.qemu.oom import Counter
from vmessd.qemu.process import Process, arguments
from vmessd.storage import vmdir
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import whereabouts
from vmessd.vm.host import Host
from vmessd.vm.launcher import LAST_LINES, Launched, restart_policy, shorten_logs, sweep_quietly

log = logging.getLogger(__name__)


def recover(directory: VMDirectory, host: Host) -> Launched | None:
    """Find the VM's QEMU that an earlier daemon started; None where there is none alive.

    A run that ended while nobody watched gets its exit record here.

    Raises:
        Locked: its directory has a live owner that cannot be told to be its QEMU.
        VmessError: the directory cannot be read, or an exit record cannot be written.
    """
    try:
        directory.sweep_temporaries()
    except NoSuchVM:
        pass
    except VmessError as error:
        log.warning("%s: %s", directory.vm, error.message)
    record = _run_record(directory)
    launched = _find(directory, record, host)
    if launched is not None:
        host.displays.hold(directory.vm, launched.record.display)
    elif record is not None:
        _record_unseen(directory, record, host.kills.around(os.getpid()))
    return launched


def spot(directory: VMDirectory, host: Host) -> Launched | None:
    """Find the VM's QEMU without a look at its files, which do not answer; None where none is seen."""
    for one in host.census.seen().get(directory.vm, ()):
        if one.directory != str(directory.path):
            continue
        process = _sighted(one, host)
        described = _described(process, None) if process is not None else None
        if process is not None and described is not None:
            host.displays.hold(directory.vm, described.display)
            return Launched(process, described, 0, host.kills.around(process.pid))
    return None


def present(root: Path, host: Host) -> list[Sighting]:
    """Return what seem to be QEMUs of a root's VMs, of those too that have no directory; raises Failed."""
    return under(root, itertools.chain.from_iterable(host.census.seen(within=0).values()))


def alive(root: Path, host: Host) -> list[Sighting]:
    """Return those of them that are QEMUs of ours; raises Failed."""
    found = []
    for one in present(root, host):
        process = _verified(one, host)
        if process is not None:
            process.close()
            found.append(one)
    return found


def last_exit(directory: VMDirectory) -> ExitRecord | None:
    """Return how the VM's last run ended; None where there was none, or nobody can read it."""
    try:
        return directory.exit_record()
    except NoSuchVM:
        return None
    except VmessError as error:
        log.warning("%s: %s; it is passed over", directory.vm, error.message)
        return None


def _run_record(directory: VMDirectory) -> RunRecord | None:
    try:
        return directory.run_record()
    except NoSuchVM:
        return None
    except BadFile as error:
        log.warning("%s; it is passed over", error.message)
        return None


def _find(directory: VMDirectory, record: RunRecord | None, host: Host) -> Launched | None:
    """Return the live QEMU. What it was started with is read from the process: the record may be anybody's."""
    held, trouble = False, None
    try:
        held = _is_held(directory)
    except VmessError as error:
        trouble = error
    try:
        holder = _holder(directory, record, host) if held else None
        process = holder if isinstance(holder, Process) else _astray(directory, host)
        if process is None and (process := _disguised(record, host)) is not None and record is not None:
            return Launched(process, record, _log_size(directory), host.kills.around(process.pid))
    except Failed as error:
        raise directory.held(f"by a process that cannot be told: {error.message}") if held else error from None
    if process is not None:
        return _taken(
            directory,
            process,
            record,
            host.kills.around(process.pid),
            *((None, None) if process is holder else whereabouts.look(directory, process.pid)),
        )
    if isinstance(holder, Sighting):
        raise _held_by_another(directory, holder)
    if held:
        raise directory.held("by a process that is not its QEMU")
    if trouble is not None:
        raise trouble
    return None


def _is_held(directory: VMDirectory) -> bool:
    """Tell whether a directory has a live owner; where not, what a dead one left in it is swept."""
    try:
        lock = directory.lock()
    except NoSuchVM:
        return False
    if lock is None:
        return True
    try:
        sweep_quietly(directory)  # what a start or an end left that its daemon did not see through
    finally:
        os.close(lock)
    return False


def _holder(directory: VMDirectory, record: RunRecord | None, host: Host) -> Process | Sighting | None:
    """Return the QEMU that has locked the directory, as a sighting if it is another VM's; None if neither is.

    Raises:
        Locked: it is in another PID namespace.
    """
    keeper = directory.keeper()
    if keeper == 0:
        raise directory.held(
            "by its QEMU, which is in another PID namespace and out of reach",
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
    """Return the VM's QEMU where it does not live in the VM's directory."""
    for one in under(directory.path.parent, host.census.seen().get(directory.vm, ())):
        if (process := _verified(one, host)) is not None:
            return process
    return None


def _sighted(one: Sighting, host: Host) -> Process | None:
    """Return the process that was seen if it is still there, and runs as one of ours."""
    return Process.find(one.pid, None, lambda argv: command_line.named_in(argv) == one[1:], host.account.uids)


def _verified(one: Sighting, host: Host) -> Process | None:
    """Return the process that was seen if it is a QEMU of ours; whose arguments say so may be a stranger.

    A QEMU has a directory locked. Where nobody lets us look it runs as a user of its own, who runs
    nothing else.
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
    """Return the process of a record that only we can have written, whatever it made of its arguments.

    For a QEMU as a user of its own: a guest that broke out of it may overwrite them, and is to be held all
    the more. One that names a pid file is another VM's, whose record was copied here.
    """
    if record is None or record.since.boot != boot_id() or not host.account.entry:
        return None
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


def _taken(  # noqa: PLR0913, PLR0917 -- all that is known of it
    directory: VMDirectory,
    process: Process,
    record: RunRecord | None,
    victims: Counter,
    home: VMDirectory | None,
    problem: str | None,
) -> Launched | None:
    """Return a process with all that is known of it; None where it has ended."""
    place = home or directory
    records = [record, _run_record(home) if home is not None else None]
    noted = next((one for one in records if one and (one.pid, one.ticks) == (process.pid, process.ticks)), None)
    found = _described(process, noted)
    if found is None:
        return None
    if noted is None:
        try:
            place.write_run_record(found)
        except VmessError as error:
            # The VM is known all the same; the next daemon will have to look for it again.
            log.warning("%s: %s", directory.vm, error.message)
    return Launched(process, found, _log_size(place), victims, home, problem)


def _described(process: Process, noted: RunRecord | None) -> RunRecord | None:
    """Return what a process's arguments say, and what was noted of it; None where it has ended."""
    argv = _arguments(process)
    if not argv:
        process.close()
        return None
    return RunRecord(
        *(process.pid, process.ticks, command_line.display_of(argv), command_line.accel_of(argv), argv),
        since=noted.since if noted else Moment.now(),
        tries=noted.tries if noted else 0,
        serial=noted.serial if noted else "",
        stopping=noted is not None and noted.stopping,
        cables=noted is not None and noted.cables,
        oom_counter=noted.oom_counter if noted else "",
        oom_kills=noted.oom_kills if noted else 0,
    )


def _log_size(directory: VMDirectory) -> int:
    with contextlib.suppress(OSError):
        return os.stat(directory.path / vmdir.QEMU_LOG, follow_symlinks=False).st_size
    return 0


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
            log=directory.log_tail(vmdir.QEMU_LOG, 0)[-LAST_LINES:],
            when=Moment.now(),
            tries=record.tries,
            serial=record.serial,
            # After a boot of the host it is for AUTOSTART to say what comes up.
            again=this_boot and not record.stopping and is_restarted(restart_policy(directory), Reason.unseen),
        )
    directory.write_exit_record(last)
    shorten_logs(directory)
