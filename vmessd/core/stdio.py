"""Standard streams: closed ones, and those that cannot be written to."""

import io
import posix  # the client imports this at every start, and `os` takes far longer
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def fill_gaps() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed, and the Python streams on them.

    Call this first. Otherwise a socket or a file may get such a number, and what is meant for the stream.
    Python sets a stream such as `sys.stderr` to None if it was closed at start.

    Raises:
        OSError: /dev/null cannot be opened.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            posix.fstat(number)
        except OSError:
            # open(2) returns the lowest free number.
            posix.set_inheritable(posix.open("/dev/null", posix.O_RDWR), True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 -- open to the end
            setattr(sys, name, stream)


def say_all() -> None:
    """Escape characters that standard output cannot encode in the locale's encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def give_up(number: int) -> None:
    """Redirect standard output (1) or error (2) to /dev/null, so that a failed write is not repeated at exit.

    If it failed again, Python's exit status would be 120 (Py_FinalizeEx).
    """
    posix.dup2(posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC), number)
