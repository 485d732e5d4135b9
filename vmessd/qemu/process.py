"""The only module that spawns, finds, signals and reaps QEMU and the programs beside it.

A process is identified by its pidfd (pidfd_open(2)). It cannot be confused with a later process of the same
pid, it becomes readable when the process ends, no matter who the parent is, and it accepts signals.
posix_spawn(3) gives the child fixed descriptor numbers. All other descriptors of Python are close-on-exec (PEP
446).
"""

import asyncio
import contextlib
import enum
import errno
import fcntl
import itertools
import os
import select
import shutil
import signal
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vmessd.core.errors import LIMITS, Failed, NotPermitted, StartFailed, failing, quoted, reason, shell_line

# QEMU gets nothing of our environment, which contains NOTIFY_SOCKET, WATCHDOG_* and variables of the user.
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

_ABOVE_CHILD_FDS = 32
_CAPABILITY_VERSION, _LOW = 0x20080522, 0xFFFFFFFF  # capset(2): two 32-bit words per set
_AMBIENT, _RAISE = 47, 2  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE; prctl(2)
_OUTPUT_MAX = 4 * 1024 * 1024


def installed(program: str) -> str | None:
    """Return the path of a program by its name, as children find it; None if it is not installed."""
    return shutil.which(program, path=ENVIRONMENT["PATH"])


class Capability(enum.IntEnum):
    """Numbers of capabilities(7), as in Linux's include/uapi/linux/capability.h."""

    KILL = 5
    SETGID = 6
    SETUID = 7
    NET_BIND_SERVICE = 10
    NET_ADMIN = 12


class Process:
    """A process that was spawned, or a QEMU that was found."""

    def __init__(self, pid: int, ticks: int, pidfd: int) -> None:
        self.pid = pid
        self.ticks = ticks
        """Start time in clock ticks since boot; together with the pid it is unique within a boot."""
        self._pidfd = pidfd

    @classmethod
    def spawn(
        cls, argv: Sequence[str], log: int, descriptors: Mapping[int, int], entry: Sequence[str] = ()
    ) -> "Process":
        """Start a program in a session of its own.

        Args:
            argv: the path and arguments of the program.
            log: the descriptor for its standard output and error.
            descriptors: further inherited descriptors: number in the child -> our descriptor.
            entry: a command that executes the program in the same process, such as setpriv.

        Raises:
            StartFailed: the program cannot be executed, for example because there are too many processes.
            Failed: this process is out of descriptors.
        """
        with contextlib.ExitStack() as stack:
            # Move our descriptors above all numbers of the child first, so that no dup2 overwrites a source.
            moved = {child: _duplicate(stack, ours) for child, ours in {**descriptors, 1: log, 2: log}.items()}
            actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, ours, child) for child, ours in moved.items()]
            command = [*entry, *argv]
            try:
                pid = os.posix_spawn(
                    command[0],
                    command,
                    ENVIRONMENT,
                    file_actions=actions,
                    setsid=True,
                    setsigmask=(),
                    setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP),
                )
            except OSError as error:
                hint = f"look at it: {shell_line(['ls', '-lL', command[0]])}"
                if error.errno == errno.EAGAIN:  # RLIMIT_NPROC (setrlimit(2)), or pids.max of a cgroup
                    hint = LIMITS
                raise StartFailed(
                    f"{quoted(command[0])} cannot be executed: {reason(error)}", hint=hint
                ) from None
        try:
            return cls(pid, _ticks(pid), os.pidfd_open(pid))
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Failed(f"{quoted(argv[0])} cannot be watched, so it was killed: {error.strerror}") from None

    @classmethod
    def find(
        cls,
        pid: int,
        ticks: int | None,
        fits: Callable[[Sequence[str]], bool] | None,
        uids: Collection[int],
    ) -> "Process | None":
        """Return the process with this pid if it is the expected QEMU, else None.

        It is if it started at `ticks` (unless that is None), runs as one of `uids`, and its arguments satisfy
        `fits` (unless that is None). This rules out a process that reuses the pid.

        Raises:
            Failed: it cannot be examined; a live QEMU must not be taken for a dead one.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except (ProcessLookupError, ValueError, OverflowError):
            return None
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # not a valid pid; the id of a thread
                return None
            raise Failed(f"process {pid} cannot be watched: {reason(error)}") from None
        try:
            # Read after the pidfd was opened: if both fit, the pidfd is that process.
            found = _ticks(pid)
            right = (ticks is None or found == ticks) and _owner(pid)[0] in uids
            if right and (fits is None or fits(arguments(pid))) and _numbered(pidfd) == pid:
                pidfd, mine = -1, pidfd
                return cls(pid, found, mine)
        except (FileNotFoundError, ProcessLookupError):
            if not _has_ended(pidfd):
                raise Failed(f"process {pid} is hidden from vmessd; is /proc mounted with hidepid?") from None
        except OSError as error:
            raise Failed(f"process {pid} cannot be examined: {reason(error)}") from None
        finally:
            if pidfd >= 0:
                os.close(pidfd)
        return None

    def watch(self, ended: Callable[[], None]) -> None:
        """Call `ended` once from the running event loop when the process has ended."""
        loop = asyncio.get_running_loop()

        def report() -> None:
            loop.remove_reader(self._pidfd)
            ended()

        loop.add_reader(self._pidfd, report)

    def unwatch(self) -> None:
        """Do not call what :meth:`watch` was told to call."""
        asyncio.get_running_loop().remove_reader(self._pidfd)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; does nothing if the process has ended. Raises Failed."""
        with (
            failing(f"process {self.pid} cannot be sent {number.name}"),
            contextlib.suppress(ProcessLookupError),
        ):
            signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, seconds: float) -> bool:
        """Wait until the process has ended, at most so many seconds; tell whether it has. Blocks."""
        return _has_ended(self._pidfd, seconds)

    def reap(self) -> int | None:
        """Reap a process that has ended and return its exit status, or minus the signal that killed it.

        None if it is unknown: init reaps the child of an earlier daemon.
        """
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except OSError:  # ECHILD; for other errors, too, what matters is that it has ended
            return None
        if result is None:
            return None
        return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status

    def has_ended(self) -> bool:
        """Tell whether the process has ended, reaped or not."""
        return _has_ended(self._pidfd)

    def close(self) -> None:
        """Close the pidfd; the process keeps running."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)


def _has_ended(pidfd: int, seconds: float = 0.0) -> bool:
    """Tell whether a process has ended, or ends within so many seconds: its pidfd is then readable."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _duplicate(stack: contextlib.ExitStack, fd: int) -> int:
    """Duplicate a descriptor to a number that no child uses; close-on-exec, closed with the stack."""
    try:
        duplicate = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_CHILD_FDS)
    except OSError as error:
        # EINVAL: RLIMIT_NOFILE is below _ABOVE_CHILD_FDS (fcntl(2)).
        words = os.strerror(errno.EMFILE).lower() if error.errno == errno.EINVAL else reason(error)
        raise Failed(f"QEMU cannot be started: {words}") from None
    stack.callback(os.close, duplicate)
    return duplicate


def _ticks(pid: int) -> int:
    """Return the start time of a process: field 22 of /proc/PID/stat (proc(5))."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def _owner(pid: int) -> tuple[int, int]:
    """Return the real uid and gid of a process, by /proc/PID/status (proc(5))."""
    with open(f"/proc/{pid}/status", "rb") as file:
        text = file.read()
    uid, gid = (int(text.partition(field)[2].split()[0]) for field in (b"\nUid:", b"\nGid:"))
    return uid, gid


def _numbered(pidfd: int) -> int:
    """Return the pid of a process in the namespace of /proc, from the fdinfo of its pidfd.

    Source: pidfd_open(2), proc_pid_fdinfo(5).
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        return int(file.read().partition(b"\nPid:")[2].split()[0])


def arguments(pid: int) -> list[str]:
    """Return the arguments of a process, empty if it is a zombie; raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]


def with_argument(word: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the pid and the arguments of every process that has `word` among its arguments.

    Processes that end in the meantime or hide their arguments are skipped.

    Raises:
        Failed: /proc cannot be read.
    """
    wanted = b"\0" + os.fsencode(word) + b"\0"
    with failing("the processes of this host cannot be listed"):
        for entry in os.listdir("/proc"):
            if not entry.isdecimal():
                continue
            try:
                with open(f"/proc/{entry}/cmdline", "rb", buffering=0) as file:
                    words = file.readall()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if words and wanted in words:
                yield int(entry), [os.fsdecode(word) for word in words.split(b"\0")[:-1]]


class OptionUse(NamedTuple):
    """A process that was started with a certain option, and the value of that option."""

    value: str
    uid: int
    gid: int


def with_option(option: str) -> list[OptionUse]:
    """Return all processes that have an option; do not trust the values, which anybody can choose."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(entry)
            uid, gid = _owner(pid)
            pairs = itertools.pairwise(arguments(pid))
            found += [OptionUse(value, uid, gid) for name, value in pairs if name == option]
    return found


def succeeds(argv: Sequence[str]) -> bool:
    """Run a program without input and output, and tell whether its exit status is 0; blocks."""
    silence = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    try:
        pid = os.posix_spawn(argv[0], list(argv), ENVIRONMENT, file_actions=silence, setsigmask=())
    except (OSError, ValueError):
        return False
    return os.waitpid(pid, 0)[1] == 0


def capabilities() -> tuple[set[int], set[int]]:
    """Return the effective and the ambient capabilities of this process; the latter survive an exec."""
    sets = _capability_sets()
    effective, ambient = ({bit for bit in range(64) if sets[name] >> bit & 1} for name in ("CapEff", "CapAmb"))
    return effective, ambient


def _capability_sets() -> dict[str, int]:
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file if line.startswith("Cap"))
    return {name: int(text, 16) for name, text in fields.items()}


def restrict_inheritance(hand_on: Collection[int] = ()) -> None:
    """Prevent children from inheriting descriptors, and capabilities except `hand_on`.

    This process keeps its own capabilities. Removing one from the inheritable set also removes it from the
    ambient set; these two are the sets that survive an exec (capabilities(7)). Call this before starting
    threads.
    """
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(entry), False)
    sets = _capability_sets()
    inheritable = sets["CapInh"] & _mask(hand_on)
    if sets["CapInh"] != inheritable and not _make_inheritable(inheritable):
        raise Failed("inheritable capabilities cannot be kept from QEMU")


def _mask(capabilities: Collection[int]) -> int:
    return sum(1 << number for number in capabilities)


def _make_inheritable(mask: int) -> bool:
    """Set the inheritable capabilities of this thread, for its children; tell whether that worked."""
    import ctypes  # noqa: PLC0415 -- rarely needed, and slow to import

    sets = _capability_sets()
    words = [sets["CapEff"], sets["CapPrm"], mask]
    data = struct.pack("=6I", *(word & _LOW for word in words), *(word >> 32 for word in words))
    return bool(ctypes.CDLL(None).capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), data) == 0)


@contextlib.contextmanager
def handing_on(capabilities: Collection[Capability]) -> Iterator[None]:
    """Have what this thread starts in the `with` inherit these capabilities; nothing else ever does.

    Capabilities belong to a thread (capabilities(7)), and a child has those of the thread that starts it.

    Raises:
        NotPermitted: this process does not have one of them.
    """
    import ctypes  # noqa: PLC0415 -- as above

    sets = _capability_sets()
    if missing := [one for one in capabilities if not sets["CapPrm"] >> one & 1]:
        name = f"CAP_{missing[0].name}"
        hint = f"for the service: systemctl edit vmessd, [Service], AmbientCapabilities={name}"
        raise NotPermitted(f"vmessd lacks {name}, which a program needs", hint=hint, capability=name)
    before = sets["CapInh"]
    if not _make_inheritable(before | _mask(capabilities)):
        raise Failed("capabilities cannot be handed on to a program", hint=LIMITS)
    try:
        for one in capabilities:
            ctypes.CDLL(None).prctl(_AMBIENT, _RAISE, int(one), 0, 0)
        yield
    finally:
        _make_inheritable(before)


def output_of(
    argv: Sequence[str], said: bytes = b"", hand_on: Collection[Capability] = (), seconds: float = 10.0
) -> tuple[int | None, str]:
    """Run a program to its end, with `said` as its standard input; return exit status and output; blocks.

    The input must fit into a pipe (64 KiB, pipe(7)). After so many seconds, the program is killed.

    Raises:
        StartFailed, Failed: it cannot be executed.
        NotPermitted: this process lacks a capability to hand on.
    """
    with contextlib.ExitStack() as stack:
        with failing(f"{argv[0]} cannot be run"):
            theirs, ours = os.pipe()
            stack.callback(os.close, theirs)
            with open(ours, "wb", 0) as file:
                file.write(said)
            reading, writing = os.pipe()
            reader = stack.enter_context(open(reading, "rb", 0))
        with open(writing, "wb", 0), handing_on(hand_on):
            process = Process.spawn(argv, writing, {0: theirs})
        stack.callback(process.close)
        text = until_closed(reader.fileno(), seconds)
        if not process.wait(1.0 if text is not None else 0.0):
            process.signal(signal.SIGKILL)
            process.wait(1.0)
        return process.reap(), (text or b"").decode(errors="replace")


def until_closed(fd: int, seconds: float) -> bytes | None:
    """Return what comes out of a pipe until nobody can write to it; None if that takes longer; blocks."""
    end, found = time.monotonic() + seconds, b""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(found) < _OUTPUT_MAX and poll.poll(max(0.0, end - time.monotonic()) * 1000):
        data = os.read(fd, 64 * 1024)
        if not data:
            return found
        found += data
    return None
