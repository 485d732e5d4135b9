"""What can go wrong, as one tree.

Every class is one error of the Varlink interface `org.emptystack.vmess`; its class name is the
last part of the wire name, its `status` the exit status of `vmessctl`:

* :exc:`VmessError` -- the root; never raised itself
    * :exc:`InvalidValue` (2) -- a name, size, path or option that cannot be right
    * :exc:`NotRunning` (3) -- the VM would have to run for this
    * :exc:`NoSuchVM` (4) -- there is no directory for the VM
    * :exc:`Unreachable` (5) -- no daemon answers on the control socket
    * :exc:`TimedOut` (6) -- the deadline passed; what was begun goes on
    * :exc:`Locked` (7) -- somebody else holds the VM, the VM root or the socket
    * :exc:`Failed` (1) -- it was tried and did not work
        * :exc:`AlreadyRunning` -- the VM runs, so this must wait until it is stopped
        * :exc:`BadFile` -- a file in a VM directory is not what it has to be
        * :exc:`StartFailed` -- QEMU did not come up; the message carries its own words
        * :exc:`NotPermitted` -- the daemon lacks a capability for it, or it is not vmess's to touch

A message is one line that names the thing, the value and what would be right; a hint, where there
is one, says what to type next. Neither ever holds a raw control character: see :func:`quoted`.
"""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DONE = 0
FORCED = 8
INTERRUPTED = 130  # 128 + SIGINT, as shells report a command that Ctrl-C ended

LIMITS = (
    "it is a limit of processes: ulimit -u tells a person's; "
    "that of the service: systemctl show vmessd -p TasksMax -p TasksCurrent"
)
"""The hint where neither a process nor a thread is to be had."""

INTERFACE = "org.emptystack.vmess"


def printable(text: str) -> str:
    """Return `text` with every control character, newline and lone surrogate as an escape.

    What comes out is one line that a terminal shows and does not obey.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def quoted(value: object, limit: int = 80) -> str:
    """Return a value as it may be shown in a message: escaped, in quotes, at most `limit` characters long."""
    text = str(value)
    shown = printable(text[:limit])
    return f"'{shown}'" if len(text) <= limit else f"'{shown}...' ({len(text)} characters)"


def reason(error: OSError) -> str:
    """Return what the system says of a failure, in a few words and without the path."""
    return (error.strerror or str(error)).lower()


def shell_line(argv: Iterable[str]) -> str:
    """Return a command quoted so that it can be pasted into a shell: one line that a terminal does not obey."""
    import shlex  # noqa: PLC0415 -- it imports re, and only a line that is to be pasted waits for it

    return " ".join(shlex.quote(word) if word.isprintable() else _ansi_c(word) for word in argv)


def _ansi_c(word: str) -> str:
    """Return a word as bash's `$'...'`, byte by byte where it cannot be shown."""
    try:
        data = word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no name and no argument of the system's holds such a character
        data = printable(word).encode()
    escaped = data.decode("latin-1").encode("unicode_escape").decode("ascii")
    return "$'" + escaped.replace("'", "\\'") + "'"


BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN})
"""What a disk or a file server says that has failed: nothing about the file itself."""


def is_broken(error: BaseException) -> bool:
    """Tell whether an error is that of a disk or a file server that has failed."""
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
    """A name, size, path or option that cannot be right."""

    status = 2


class NotRunning(VmessError):
    """The VM would have to run for this."""

    status = 3


class NoSuchVM(VmessError):
    """There is no directory for the VM."""

    status = 4


class Unreachable(VmessError):
    """No daemon answers on the control socket."""

    status = 5


class TimedOut(VmessError):
    """The deadline passed; what was begun goes on."""

    status = 6


class Locked(VmessError):
    """Somebody else holds the VM, the VM root or the socket."""

    status = 7


class Failed(VmessError):
    """It was tried and did not work."""


class AlreadyRunning(Failed):
    """The VM runs, so this must wait until it is stopped."""


class BadFile(Failed):
    """A file in a VM directory is not what it has to be."""


class StartFailed(Failed):
    """QEMU did not come up; the message carries its own words."""


class NotPermitted(Failed):
    """The daemon lacks a capability for it, or the link is not vmess's and nobody allowed it."""


class failing:  # noqa: N801 -- it reads as a statement: with failing("...")
    """Turn an OSError inside into a Failed of one line that begins with `what`."""

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
    BadFile,
    StartFailed,
    NotPermitted,
)

BY_WIRE_NAME = {error.wire_name(): error for error in ERRORS}

# From harmless to hopeless: where one command reports on several VMs, the worst status wins.
SEVERITY = (DONE, FORCED, 3, 6, 7, 4, 1, 2, 5, INTERRUPTED)


def worst(statuses: list[int]) -> int:
    """Return the worst of several exit statuses, by :data:`SEVERITY`; 0 for none."""
    return max(statuses, key=SEVERITY.index, default=DONE)
