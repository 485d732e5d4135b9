"""A VM directory: the settings of a VM, and the records of its process.

Nothing read here is trusted, because anybody who can write to the directory may have changed it. Sizes are in
bytes.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vmessd.core import names, pid_file, records, serial_ports, settings
from vmessd.core.errors import (
    BadFile,
    Failed,
    InvalidValue,
    Locked,
    NoSuchVM,
    VmessError,
    failing,
    printable,
    reason,
)
from vmessd.core.moves import MoveRecord
from vmessd.core.names import INTERFACES_MAX
from vmessd.core.places import SHARED_ISOS
from vmessd.core.records import ExitRecord, RunRecord
from vmessd.storage import cable_sockets, log_rotation, plans, safefile

QMP_SOCKET = "qmp.sock"
SERIAL_SOCKETS = tuple(serial_ports.socket(port) for port in serial_ports.PORTS)
SERIAL_SOCKET = SERIAL_SOCKETS[0]
AGENT_SOCKET = "agent.sock"
SOCKETS = (QMP_SOCKET, *SERIAL_SOCKETS, AGENT_SOCKET)
"""The sockets on which QEMU listens."""
TPM_STATE = "tpm"
TPM_TRIES, TPM_WAIT = 100, 0.02
"""How often a start looks whether an earlier swtpm has ended, and the seconds in between."""
SERIAL_LOGS = tuple(serial_ports.log(port) for port in serial_ports.PORTS)
SERIAL_LOG = SERIAL_LOGS[0]
QEMU_LOG = "qemu.log"
LOGS = (QEMU_LOG, *SERIAL_LOGS)
PID_FILE = pid_file.NAME
RUN_RECORD = "run.json"
EXIT_RECORD = "exit.json"
MOVE_RECORD = "move.json"
MAKING = ".vmess-new-"  # prefix of a VM directory that is being made; we remove it after a crash
RENAMING = ".vmess-rename-"  # prefix of a VM directory that is being renamed; see `renaming`
REMOVED = ".vmess-removed-"  # prefix of a VM directory that is being removed; we remove it after a crash

VALUE_LIMIT = 16 * 1024
RECORD_LIMIT = 1024 * 1024
LINE_LIMIT = 2000  # characters; QEMU's messages begin with the option in question, which may contain a path


_T = TypeVar("_T")


class VMDirectory:
    """The directory `<root>/<vm>`, or `path` where it was moved to. Creating the object touches nothing."""

    def __init__(self, root: Path, vm: str, path: Path | None = None) -> None:
        self.vm = vm
        self.path = path or root / vm
        self.purpose = ""
        """What this daemon has locked the directory for, in words: `being exported`."""
        self.move: MoveRecord | None = None
        """Its move to another host or from one, as this daemon knows it; see :mod:`vmessd.storage.moves`."""
        self.admits = ""
        """The key of the move by which a guest arrives, for which a QEMU may start and wait."""
        self.stood_still = False
        """Its guest did so when an earlier daemon began to move it, and is to do so again."""

    def __str__(self) -> str:
        return printable(str(self.path))

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Open the directory for a `with` block, and yield its descriptor.

        Raises:
            NoSuchVM: it does not exist.
            BadFile: the name belongs to something else, for example a symbolic link.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoSuchVM(
                f"You need to create directory {self} if are serious about that VM - use vmess make",
                hint="vmess list",
                directory=str(self.path),
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise BadFile(
                    f"{self} is not a directory of its own, so it is not a VM", hint="move it away"
                ) from None
            raise BadFile(f"{self} cannot be opened: {reason(error)}") from error
        try:
            yield fd
        finally:
            os.close(fd)

    def exists(self) -> bool:
        """Tell whether the VM exists; raises BadFile if this cannot be determined."""
        try:
            return stat.S_ISDIR(os.lstat(self.path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise BadFile(f"{self} cannot be accessed: {reason(error)}") from error

    def check(self) -> None:
        """Raise as :meth:`opened` unless the VM exists."""
        with self.opened():
            pass

    def held(self, how: str, hint: str | None = None) -> Locked:
        """Return the error for a VM whose directory is locked, in general by another process."""
        if self.purpose:
            return Locked(f"VM {self.vm} is {self.purpose}", hint="wait until that is done")
        return Locked(f"VM {self.vm} is held {how}", hint=hint or f"to see which: fuser -v {self}")

    def must_be_new(self, instead: str = "choose another name") -> None:
        """Raise Failed where the name exists, and BadFile where it is not that of a VM.

        `instead` is what the hint proposes.
        """
        if os.path.lexists(self.path):
            with self.opened():
                pass  # raises BadFile for anything other than a directory
            raise Failed(
                f"VM {self.vm} exists already: {self}",
                hint=f"{instead}; to see its settings: vmess {self.vm} info",
            )

    def part(self) -> str:
        """Remove the VM from the root atomically by renaming its directory; return the new name.

        The new name contains the name of the VM; see :func:`removed`.

        Raises:
            Locked: a running process has locked it.
            Failed: it cannot be renamed.
        """
        lock = self.lock()
        if lock is None:
            raise self.held("by another process, so it was not deleted")
        parting = self.path.with_name(f"{REMOVED}{self.vm}-{os.urandom(4).hex()}")
        try:
            with failing(f"{self} cannot be removed"):
                self.path.rename(parting)
        finally:
            os.close(lock)
        return parting.name

    # -- Settings --

    def setting_text(self, file: str) -> str | None:
        """Return the text of a setting; None where it is not set.

        Raises:
            BadFile: the file is not a plain file, is too long, or is not text.
        """
        row = settings.BY_FILE[file]
        hint = self._again(row)
        with self.opened() as directory:
            data = safefile.read(directory, file, VALUE_LIMIT, hint)
            try:
                return None if data is None else data.decode().strip()
            except UnicodeDecodeError:
                where = safefile.place(directory, file)
                raise BadFile(f"{where} is not text; it must be {row.expects}", hint=hint) from None

    def _again(self, setting: settings.Setting) -> str | None:
        """Return a hint that sets a setting again; None for one that no verb sets to a value."""
        if not setting.verb or not setting.example:
            return None
        return f"set it again: vmess {self.vm} {setting.verb} {setting.example}"

    def read_setting(self, setting: settings.Setting) -> Any:
        """Return the value of a setting; None where it is not set.

        Raises:
            BadFile: as :meth:`setting_text`, or the value is invalid.
        """
        text = self.setting_text(setting.file)
        try:
            return None if text is None else setting.value(text)
        except InvalidValue as error:
            hint = self._again(setting) or f"correct or remove {self}/{setting.file}"
            raise BadFile(f"{self}/{error.message}", hint=hint) from None

    def read_settings(self) -> dict[str, Any]:
        """Return all settings that are set, by file name; raises as :meth:`read_setting`.

        LOCK is not among them: an invalid remark must not keep a VM from starting.
        """
        wanted = [setting for setting in settings.SETTINGS if setting.file != settings.LOCK]
        values = {setting.file: self.read_setting(setting) for setting in wanted}
        return {file: value for file, value in values.items() if value is not None}

    def write_setting(self, setting: settings.Setting, text: str | None) -> None:
        """Set a setting to `text`, or remove it with None.

        Raises:
            InvalidValue: `text` is invalid; nothing is changed.
            BadFile, Failed: as :func:`safefile.write`.
        """
        with self.opened() as directory:
            if text is None:
                safefile.must_be_plain(directory, setting.file)
                safefile.remove(directory, setting.file, durable=True)
                return
            setting.value(text)
            data = f"{text.strip()}\n".encode()
            if len(data) > VALUE_LIMIT:  # setting_text would refuse it
                raise InvalidValue(
                    f"{setting.file} would have {len(data)} bytes; at most {VALUE_LIMIT} are allowed"
                )
            safefile.write(directory, setting.file, data)

    def clear_setting(self, setting: settings.Setting) -> None:
        """Remove a setting, whatever its file is, except a directory; raises BadFile, Failed."""
        with self.opened() as directory:
            found = safefile.status(directory, setting.file)
            if found is not None and stat.S_ISDIR(found.st_mode):
                where = safefile.place(directory, setting.file)
                raise BadFile(f"{where} is a directory; it must be a plain file", hint="move it away")
            safefile.remove(directory, setting.file, durable=True)

    def version(self, file: str) -> str:
        """Return a text that differs for each file of this name; empty if there is none, or it is not known."""
        with contextlib.suppress(VmessError), self.opened() as directory:
            found = safefile.status(directory, file)
            return f"{found.st_ino} {found.st_ctime_ns}" if found is not None else ""
        return ""

    def use_up(self, file: str, version: str) -> None:
        """Remove a setting, unless it was set again since it had this :meth:`version`; raises Failed."""
        with self.opened() as directory:
            if version == self.version(file):
                safefile.remove(directory, file, durable=True)

    def note_wires(self, text: str) -> None:
        """Write the NICS file, or remove it if the text is empty; raises as :func:`safefile.write`."""
        self.write_setting(settings.BY_FILE["NICS"], text or None)

    # -- The process's files --

    def lock(self) -> int | None:
        """Lock the directory for a new QEMU and return the descriptor; None where it is locked already.

        QEMU inherits the descriptor. The kernel releases the lock when the last process that has the descriptor
        is gone (flock(2)), so a running VM never looks free.
        """
        with self.opened() as directory, failing(f"{self} cannot be locked"):
            fd = os.dup(directory)
        # Only QEMU shares the open file description of the duplicate, and with it the lock.
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            os.close(fd)
            raise Failed(f"{self} cannot be locked: {reason(error)}") from None
        return fd

    def keeper(self) -> int | None:
        """Return the PID of the VM's QEMU, which has locked the pid file; None where nobody has.

        QEMU keeps this lock until it ends, so it identifies the QEMU of this directory even after a rename. 0
        means a process in another PID namespace (fcntl(2), F_GETLK).
        """
        try:
            with self.opened() as directory:
                fd = safefile.open_plain(directory, PID_FILE, os.O_RDONLY)
            try:
                return pid_file.holder(fd)
            finally:
                os.close(fd)
        except (OSError, VmessError):
            return None

    def listen(self, name: str) -> socket.socket:
        """Return a listening 0600 socket in the directory, replacing a stale one."""
        with self.opened() as directory:
            return safefile.listener(directory, name, 0o600)

    @contextlib.contextmanager
    def succeeding(self, name: str) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Yield sockets as :func:`safefile.succeeding`, with mode 0600."""
        with self.opened() as directory, safefile.succeeding(directory, name, 0o600) as pair:
            yield pair

    def connect(self, name: str) -> socket.socket:
        """Return a socket connected to a socket in the directory; raises Failed where nobody listens."""
        with self.opened() as directory:
            return safefile.connect(directory, name)

    def open_log(self, name: str) -> int:
        """Open a log for appending and return the descriptor; the log may be shortened at any time."""
        with self.opened() as directory, failing(f"{self}/{name} cannot be opened"):
            return safefile.open_plain(directory, name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def log_tail(self, name: str, start: int, limit: int = 16 * 1024) -> list[str]:
        """Return the lines of a log from byte `start`, at most the last `limit` bytes, escaped.

        When the log is shortened, the caller reduces `start` accordingly. If the log is shorter than `start`,
        all of it counts.
        """
        try:
            with self.opened() as directory:
                fd = safefile.open_plain(directory, name, os.O_RDONLY)
        except (OSError, VmessError):
            return []
        with contextlib.suppress(OSError), open(fd, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, start if start <= end else 0, end - limit))
            text = file.read(limit).decode(errors="backslashreplace")
            return [printable(line[:LINE_LIMIT]) for line in text.split("\n") if line.strip()]
        return []

    def make_pid_file(self) -> None:
        """Create an empty pid file for a QEMU that may not create files in the directory."""
        with self.opened() as directory, failing(f"{self}/{PID_FILE} cannot be created"):
            safefile.create_empty(directory, PID_FILE)

    def has_long_log(self) -> bool:
        """Tell whether :meth:`shorten_log` has work to do."""
        return any(log_rotation.is_long(f"{self.path}/{name}") for name in LOGS)

    def shorten_log(self, name: str, complain: Callable[[str], None]) -> int:
        """Shorten a log above its cap, as :func:`log_rotation.shorten`; return how many bytes were cut off."""
        with self.opened() as directory:
            return log_rotation.shorten(directory, name, complain)

    def open_tpm_state(self) -> int:
        """Return the descriptor of the directory for the state of a TPM, locked, and made if it is missing.

        The lock lasts until the last process that has the descriptor is gone: swtpm, which inherits it.

        Raises:
            Failed: it cannot be made or opened; the name may belong to something else.
            Locked: an earlier swtpm has it, and does not end.
        """
        with self.opened() as directory, failing(f"{self}/{TPM_STATE} cannot be used for a TPM"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(TPM_STATE, 0o770, dir_fd=directory)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            state = os.open(TPM_STATE, flags, dir_fd=directory)
        for _ in range(TPM_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return state
            time.sleep(TPM_WAIT)  # the swtpm of a QEMU that has just ended; flock(2) has no deadline
        os.close(state)
        raise Locked(
            f"{self}/{TPM_STATE} is in use by another swtpm", hint=f"to see which: fuser -v {self}/{TPM_STATE}"
        )

    def sweep(self) -> None:
        """Remove what a dead QEMU leaves: its sockets, its pid file and its ends of cables.

        Raises:
            BadFile: one of the names belongs to something else.
            Failed: one of them could not be removed; the others were.
        """
        failure: VmessError | None = None
        with self.opened() as directory:
            for name in (*SOCKETS, PID_FILE):
                try:
                    if name == PID_FILE:
                        safefile.must_be_plain(directory, name)
                        safefile.remove(directory, name)
                    else:
                        safefile.remove_socket(directory, name)
                except VmessError as error:
                    failure = failure or error
            cable_sockets.sweep(directory)
        if failure is not None:
            raise failure

    def sweep_temporaries(self) -> None:
        """Complete a change of files that a crash cut short, and remove temporary files that it left."""
        with self.opened() as directory:
            plans.resume(directory, self.vm)
            safefile.sweep(directory)

    def settle_plan(self) -> None:
        """Complete a change of files for good, because no QEMU runs; raises NoSuchVM, BadFile, Failed."""
        with self.opened() as directory:
            plans.resume(directory, self.vm, alone=True)

    def pending_plan(self) -> plans.Plan | None:
        """Return the change of files that is not settled; None if there is none; raises NoSuchVM."""
        with self.opened() as directory:
            return plans.pending(directory, self.vm)

    def carry_out(self, plan: plans.Plan) -> None:
        """Change files; raises NoSuchVM, and as :func:`plans.carry_out`."""
        with self.opened() as directory:
            plans.carry_out(directory, plan)

    def take_back(self, plan: plans.Plan) -> None:
        """Undo a change of files; raises as :meth:`carry_out`."""
        with self.opened() as directory:
            plans.take_back(directory, plan)

    def forget_plan(self) -> None:
        """Forget a change of files, in which a QEMU has done its part; raises NoSuchVM, Failed."""
        with self.opened() as directory:
            plans.settle(directory)

    # -- Records --

    def _read_record(self, name: str, kind: type[_T]) -> _T | None:
        with self.opened() as directory:
            data = safefile.read(directory, name, RECORD_LIMIT)
            if data is None:
                return None
            try:
                return records.load(json.loads(data), kind)
            except (ValueError, RecursionError):
                raise BadFile(
                    f"{safefile.place(directory, name)} is not a record of vmessd", hint="remove it"
                ) from None

    def _write_record(self, name: str, record: RunRecord | ExitRecord) -> None:
        with self.opened() as directory:
            data = json.dumps(dataclasses.asdict(record), indent=1).encode()
            safefile.write(directory, name, data + b"\n", durable=False)

    def run_record(self) -> RunRecord | None:
        """Return the record of the running QEMU; None where there is none; raises BadFile."""
        return self._read_record(RUN_RECORD, RunRecord)

    def exit_record(self) -> ExitRecord | None:
        """Return the record of the last exit; None where there is none; raises BadFile."""
        return self._read_record(EXIT_RECORD, ExitRecord)

    def write_run_record(self, record: RunRecord) -> None:
        """Write the record of the running QEMU; raises as :func:`safefile.write`."""
        self._write_record(RUN_RECORD, record)

    def write_exit_record(self, record: ExitRecord) -> None:
        """Write the record of the exit, and remove the run record; raises as :func:`safefile.write`."""
        self._write_record(EXIT_RECORD, record)
        self.forget_run()

    def forget_run(self) -> None:
        """Remove the run record."""
        with self.opened() as directory:
            safefile.remove(directory, RUN_RECORD)


class Glance(VMDirectory):
    """A VM directory for one query: each setting is read only once."""

    def __init__(self, directory: VMDirectory) -> None:
        super().__init__(directory.path.parent, directory.vm, directory.path)
        self._said: dict[str, str | VmessError | None] = {}

    def setting_text(self, file: str) -> str | None:
        """Return the text of a setting as of the first read; raises as in :class:`VMDirectory`."""
        if file not in self._said:
            try:
                self._said[file] = super().setting_text(file)
            except VmessError as error:
                self._said[file] = error
        said = self._said[file]
        if isinstance(said, VmessError):
            raise said
        return said


class Listing(NamedTuple):
    """The directories in a VM root."""

    vms: list[str]
    """The names of all VMs, in natural order."""
    others: list[str]
    """Names of directories that are not VMs, sorted; without hidden ones, and those that have a use."""


IMAGE_STORE = "images"
"""The directory for images that disks are based on, in the VM root. It has no digit, so it is not a VM."""
_NOT_MEANT = (SHARED_ISOS, IMAGE_STORE, "lost+found")


class Hold:
    """The lock of a VM directory, with what it is for."""

    def __init__(self, vm: VMDirectory, purpose: str) -> None:
        """Lock it for a `purpose`, in words: `being cloned`; blocks.

        A change of its images that its QEMU has not lived to see is completed first.

        Raises:
            Locked: another process has locked it.
            BadFile, Failed: that change cannot be completed.
        """
        lock = vm.lock()
        if lock is None:
            raise vm.held("by another process")
        try:
            vm.settle_plan()
        except BaseException:
            os.close(lock)
            raise
        self._lock, self._vm = lock, vm
        vm.purpose = purpose

    def close(self) -> None:
        """Release it."""
        self._vm.purpose = ""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def listing(root: Path) -> Listing:
    """Return the VMs in a root, and the directories that are not VMs.

    Raises:
        Failed: the root cannot be read.
    """
    vms: list[str] = []
    others: list[str] = []
    with failing(f"VM root {printable(str(root))} cannot be read"), os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _NOT_MEANT:
                continue
            if entry.is_dir(follow_symlinks=False):
                (vms if names.is_full(entry.name) else others).append(entry.name)
    return Listing(sorted(vms, key=names.natural), sorted(others))


def namesakes(root: Path, vm: str) -> tuple[str, str] | None:
    """Return a VM and the long name of a TAP of it that is also the name of a VM, if `vm` is one of the two.

    For example `lab-bridg` has the TAP `lab-bridge1`. Blocks.
    """
    taps = [(vm, names.long_tap(vm, interface)) for interface in range(INTERFACES_MAX)]
    found = [(vm, tap) for vm, tap in taps if names.is_full(tap) and VMDirectory(root, tap).exists()]
    parts = names.tap_parts(vm, loosely=True)
    if parts is not None and VMDirectory(root, parts[0]).exists():
        found.append((parts[0], vm))
    return next(iter(found), None)


def leftovers(root: Path) -> list[str]:
    """Return the names of directories that were being made, removed or renamed when a daemon died.

    Temporary files that it left in the root are removed.

    Raises:
        Failed: the root cannot be read.
    """
    with failing(f"VM root {printable(str(root))} cannot be read"), os.scandir(root) as entries:
        found = [entry.name for entry in entries if entry.name.startswith((REMOVED, MAKING, RENAMING))]
    for place in (root, root / IMAGE_STORE):
        with contextlib.suppress(VmessError), safefile.opened(place) as directory:
            safefile.sweep(directory)
    return sorted(found)


def removed(name: str) -> str | None:
    """Return the VM of a directory that :meth:`VMDirectory.part` renamed; None for any other name."""
    vm = name.removeprefix(REMOVED).rpartition("-")[0]
    return vm if name.startswith(REMOVED) and names.is_full(vm) else None
