"""The QEMU of a VM without a daemon: it is the process that holds the lock of the pid file in the VM directory.

A cluster has to know whether a VM runs, and to stop it, also where no vmessd answers. This does
without `socket`, `signal` and `contextlib`, which are slow to load.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time

from vmessctl.commands import power_button
from vmessctl.environment import variable
from vmessd.core import pid_file, places, settings
from vmessd.core.errors import Failed, NoSuchVM, TimedOut, Unreachable, failing, printable, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

HINT = "start the daemon: systemctl start vmessd; for another VM root than the usual one, set VMESS_VMDIR"
SIGKILL, SIGTERM = 9, 15  # signal(7): the same on every Linux
TERM_TIME = 5.0
"""Seconds that a QEMU has after SIGTERM, on which it writes what it has cached and ends."""
PRESS_EVERY = 5.0
"""Seconds between presses of the power button: a guest that is booting misses the first ones."""
SETTLING = 2.0
"""Seconds that a QEMU has from the lock of its directory to that of its pid file."""
LOOKS_MAX = 20
POLL = 0.1
"""Seconds between looks at the lock, which the kernel releases a moment after the process has ended."""


def root(vm: str) -> str:
    """Return the VM root: VMESS_VMDIR, or that of a person if the VM is there, or else that of the service."""
    if named := variable("VMESS_VMDIR"):
        return os.path.expanduser(named)
    own = os.path.expanduser("~/vms")
    is_elsewhere = os.path.isdir(places.SERVICE_ROOT) and not os.path.lexists(f"{own}/{vm}")
    return places.SERVICE_ROOT if os.geteuid() == 0 or is_elsewhere else own


class LockedVM:
    """A VM, by its directory and the lock in it. It keeps the directory open: use it as a context manager."""

    def __init__(self, vm: str) -> None:
        """Open the directory.

        Raises:
            NoSuchVM: there is none.
            Unreachable: only somebody else may look, as with the VMs of the service.
            Failed: it is not known whether there is one.
        """
        self._vm = vm
        self._path = path = f"{root(vm)}/{vm}"
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchVM(
                f"no VM {vm}: {printable(path)} does not exist, and no vmessd answers", HINT, path
            ) from None
        except OSError as error:
            why = f"{printable(path)} cannot be read, and no vmessd answers: {reason(error)}"
            if isinstance(error, PermissionError):
                raise Unreachable(
                    why, hint="do it as root, or start the daemon: systemctl start vmessd"
                ) from None
            raise Failed(why, hint=HINT) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._directory)

    def pid(self) -> int | None:
        """Return the PID of the QEMU; None if none runs, 0 if it is in another PID namespace; raises Failed.

        Who holds the lock has to be a QEMU that was started with this pid file: anybody who may write to the
        directory may give the name to another file, which a process of somebody else has locked. Its user
        says nothing: in the service, QEMU runs as another one than vmessd.
        """
        with failing(f"whether {self._vm} runs is not known: its {pid_file.NAME}"):
            try:
                file = self._open(pid_file.NAME)
            except FileNotFoundError:
                return None
            try:
                pid = pid_file.holder(file)
            finally:
                os.close(file)
            if pid and not self._is_qemu(pid):
                who = f"process {pid}" if pid > 0 else "something"
                raise Failed(
                    f"whether {self._vm} runs is not known: {who} holds the lock of its {pid_file.NAME}, "
                    "and is not its QEMU",
                    hint=f"to see what has it open: fuser -v -- {printable(self._path)}/{pid_file.NAME}",
                )
            return pid

    def _is_qemu(self, pid: int) -> bool:
        """Tell whether a process has the arguments of a QEMU of vmessd in this directory; raises OSError.

        One that has just ended is one: the next look at the lock says so.
        """
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return pid > 0
        if (option := pid_file.OPTION.encode()) not in words:
            return words == [b""]
        place, _, name = words[words.index(option) + 1].rpartition(b"/")
        try:
            return name == pid_file.NAME.encode() and os.path.samestat(
                os.stat(place), os.fstat(self._directory)
            )
        except (OSError, ValueError):
            return False

    def settled(self) -> int | None:
        """Return what :meth:`pid` returns, when it is certain: a QEMU that was just started has no lock yet.

        It has inherited one of the directory, which is released with its last descriptor. Raises Failed where
        that one stays alone: nobody knows whose it is.
        """
        due = time.monotonic() + SETTLING
        while (pid := self.pid()) is None and not self._is_free():
            if time.monotonic() > due:
                who = f"fuser -v {printable(self._path)}"
                raise Failed(
                    f"whether {self._vm} runs is not known: another process holds its directory",
                    hint=f"to see which one: {who}",
                )
            time.sleep(POLL)
        return pid

    def _is_free(self) -> bool:
        """Tell whether nobody holds the lock of the directory, by taking it for a moment; raises Failed."""
        try:
            fcntl.flock(self._directory, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise Failed(f"whether {self._vm} runs is not known: {reason(error)}", hint=HINT) from None
        fcntl.flock(self._directory, fcntl.LOCK_UN)
        return True

    def _open(self, name: str) -> int:
        """Open a plain file of the directory, whose files others may have made; raises OSError, Failed."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(name, flags, dir_fd=self._directory)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise Failed(f"{name} of {self._vm} must be a plain file")
        return file

    def _grace(self) -> float:
        """Return the grace period of the VM in seconds; the default if its file says nothing useful."""
        row = settings.BY_FILE["STOP"]
        try:
            file = self._open(row.file)
            with open(file, "rb") as text:
                return float(row.parse(text.read(64).decode().strip()))
        except (OSError, Failed, ValueError):
            return float(settings.GRACE_DEFAULT)

    def end(self, deadline: float, *, force: bool) -> bool:
        """End the QEMU, gently unless by `force`; tell whether it took SIGKILL although that was not asked for.

        The deadline is by the monotonic clock. The gentle steps leave time for the next ones.

        Raises:
            TimedOut: it has not ended by the deadline.
            Failed: it cannot be signalled.
        """
        process = self._process()
        if process is None:
            return False
        try:
            if not force and self._ended_gently(process, deadline):
                return False
            self._signal(process, SIGKILL)
            if not self._is_gone(process, deadline):
                raise TimedOut(
                    f"QEMU of {self._vm} does not end after SIGKILL: it is blocked in the kernel",
                    hint="it ends when its disk or file server answers",
                )
            return not force
        finally:
            os.close(process)

    def _process(self) -> int | None:
        """Return a pidfd of the QEMU; None if none runs. It holds the lock after the pidfd was opened."""
        looks = 0
        while (pid := self.settled()) is not None:
            looks += 1
            if looks > LOOKS_MAX:
                raise Failed(f"QEMU of {self._vm} is process {pid} of another host, where it has to be stopped")
            if pid == 0:
                raise Failed(f"QEMU of {self._vm} is in another PID namespace, from which it has to be stopped")
            try:
                process = os.pidfd_open(pid)
            except ProcessLookupError:  # just ended, or on another host that has locked the file, too
                time.sleep(POLL)
                continue
            if self.pid() == pid:
                return process
            os.close(process)
        return None

    def _ended_gently(self, process: int, deadline: float) -> bool:
        """Press the power button for the grace period, then send SIGTERM; tell whether QEMU has ended."""
        grace = min(time.monotonic() + self._grace(), deadline - 2 * TERM_TIME)
        while time.monotonic() < grace and power_button.press(self._directory, grace):
            if self._is_gone(process, min(grace, time.monotonic() + PRESS_EVERY)):
                return True
        self._signal(process, SIGTERM)
        return self._is_gone(process, min(time.monotonic() + TERM_TIME, deadline - TERM_TIME))

    def _signal(self, process: int, number: int) -> None:
        import signal  # noqa: PLC0415 -- slow to load, and a status needs none

        with failing(f"QEMU of {self._vm} cannot be signalled"):
            try:
                signal.pidfd_send_signal(process, number)
            except ProcessLookupError:
                return

    def _is_gone(self, process: int, deadline: float) -> bool:
        """Wait until a process has ended and the lock is free; tell whether both are so at the deadline."""
        ended = bool(select.select([process], [], [], max(0.0, deadline - time.monotonic()))[0])
        while ended and self.pid() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL)
        return ended
