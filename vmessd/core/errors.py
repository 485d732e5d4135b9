"""The tree of errors.

Each class is an error of the Varlink interface `org.emptystack.vmess`. The class name is the last part of its
wire name, and `status` the exit status of `vmessctl`:

* :exc:`VmessError` -- the root; never raised itself
    * :exc:`InvalidValue` (2) -- a name, size, path or option is invalid
    * :exc:`NotRunning` (3) -- the VM must be running for this
    * :exc:`NoSuchVM` (4) -- there is no directory for the VM
    * :exc:`Unreachable` (5) -- no daemon answers on the control socket
    * :exc:`TimedOut` (6) -- the deadline passed; the operation continues
    * :exc:`Locked` (7) -- the VM is locked, or another process holds the VM, the VM root or the socket
    * :exc:`Failed` (1) -- the operation failed
        * :exc:`AlreadyRunning` -- the VM is running, and must be stopped for this
            * :exc:`Stopping` -- a stop is under way
        * :exc:`BadFile` -- a file in a VM directory is not what it should be
        * :exc:`StartFailed` -- QEMU did not start; the message says why
        * :exc:`NotPermitted` -- the daemon lacks a capability, or the link is not its own

A message is one line that names the subject, the value, and what would be right. A hint says what to type next.
Neither contains a raw control character; see :func:`quoted`.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DONE = 0
FORCED = 8
UNRESPONSIVE = 9
HALTED = 10
INTERRUPTED = 130  # 128 + SIGINT, as shells report a command ended by Ctrl-C
UNREAD = 141  # 128 + SIGPIPE: the reader of the output has closed its end

LIMITS = (
    "the limit of processes: ulimit -u for a user; "
    "systemctl show vmessd -p TasksMax -p TasksCurrent for the service"
)
"""The hint where no process or thread can be created."""

INTERFACE = "org.emptystack.vmess"


def printable(text: str) -> str:
    """Return `text` with every control character, newline and lone surrogate escaped.

    The result is one line without terminal control sequences.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


PATH_SHOWN = 300
"""Characters of a path in a message: it must be told from others by its end. A socket's has at most 108."""


def quoted(value: object, limit: int = 80) -> str:
    """Return a value for a message: escaped, in quotes, at most `limit` characters long."""
    text = str(value)
    shown = printable(text[:limit])
    return f"'{shown}'" if len(text) <= limit else f"'{shown}...' ({len(text)} characters)"


def counted(number: int, thing: str) -> str:
    """Return a number of things: `1 VM`, `2 VMs`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def reason(error: OSError) -> str:
    """Return the system's text for an error, in lower case and without the path."""
    return (error.strerror or str(error)).lower()


def shell_line(argv: Iterable[str]) -> str:
    """Return a command quoted for a shell: one line without terminal control sequences."""
    import shlex  # noqa: PLC0415 -- it imports re, which takes long and is rarely needed

    return " ".join(shlex.quote(word) if word.isprintable() else _ansi_c(word) for word in argv)


def _ansi_c(word: str) -> str:
    """Return a word as bash's `$'...'`, with bytes that are not printable escaped."""
    try:
        data = word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that no file name or argument can contain
        data = printable(word).encode()
    escaped = data.decode("latin-1").encode("unicode_escape").decode("ascii")
    return "$'" + escaped.replace("'", "\\'") + "'"


BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN})
"""The errors of a disk or file server that has failed; they say nothing about the file itself."""


def is_broken(error: BaseException) -> bool:
    """Tell whether an error was caused by a disk or file server that has failed."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in BROKEN


class VmessError(Exception):
    """The root: a message of one line, an optional hint, and the exit status of `vmessctl`."""

    status = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = printable(message)
        super().__init__(self.message)
        self.hint = printable(hint) if hint else None

    @classmethod
    def wire_name(cls) -> str:
        """Return the name the error has on the control socket."""
        return f"{INTERFACE}.{cls.__name__}"


class InvalidValue(VmessError):
    """A name, size, path or option is invalid."""

    status = 2


class NotRunning(VmessError):
    """The VM must be running for this."""

    status = 3

    def __init__(self, message: str, hint: str | None = None, vm: str | None = None) -> None:
        super().__init__(message, hint)
        self.vm = vm
        """The VM that is off; None if the message says something else."""


class NoSuchVM(VmessError):
    """There is no directory for the VM."""

    status = 4

    def __init__(self, message: str, hint: str | None = None, directory: str | None = None) -> None:
        super().__init__(message, hint)
        self.directory = directory
        """The path where the directory would be; None if that is not what the message says."""


class Unreachable(VmessError):
    """No daemon answers on the control socket."""

    status = 5


class TimedOut(VmessError):
    """The deadline passed; the operation continues."""

    status = 6


class Locked(VmessError):
    """The VM is locked, or another process holds the VM, the VM root or the socket."""

    status = 7


class Failed(VmessError):
    """The operation failed."""


class AlreadyRunning(Failed):
    """The VM is running, and must be stopped for this."""

    def __init__(
        self, message: str, hint: str | None = None, vm: str | None = None, pid: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.vm = vm
        """The VM that was to be started; None if the message says something else."""
        self.pid = pid
        """The PID of its QEMU, if it is known."""


class Stopping(AlreadyRunning):
    """The VM is being stopped, and does not take this any more, or not yet."""


class BadFile(Failed):
    """A file in a VM directory is not what it should be."""

    slot: str | None = None
    """The drive that the file belongs to, as far as that is known."""


class StartFailed(Failed):
    """QEMU did not start; the message says why."""


class NotPermitted(Failed):
    """The daemon lacks a capability, or the link is not its own and not allowed by the configuration."""

    instead: str | None = None
    """A second hint, which the client prints first: what needs no privilege."""

    def __init__(self, message: str, hint: str | None = None, capability: str | None = None) -> None:
        super().__init__(message, hint)
        self.capability = capability
        """The capability that the daemon lacks; None if it is refused for another reason."""


class failing:  # noqa: N801 -- it reads as a statement: with failing("...")
    """Turn an OSError into a Failed with a message that begins with `what`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise Failed(f"{self._what}: {reason(error)}") from None


ERRORS: tuple[type[VmessError], ...] = (
    InvalidValue,
    NotRunning,
    NoSuchVM,
    Unreachable,
    TimedOut,
    Locked,
    Failed,
    AlreadyRunning,
    Stopping,
    BadFile,
    StartFailed,
    NotPermitted,
)

BY_WIRE_NAME = {error.wire_name(): error for error in ERRORS}

# From best to worst: a command for several VMs returns the worst status.
SEVERITY = (DONE, FORCED, 3, HALTED, UNRESPONSIVE, 6, 7, 4, 1, 2, 5, INTERRUPTED, UNREAD)


def worst(statuses: list[int]) -> int:
    """Return the worst of several exit statuses, by :data:`SEVERITY`; 0 for none."""
    return max(statuses, key=SEVERITY.index, default=DONE)
