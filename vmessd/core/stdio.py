"""Standard streams: those that whoever started this program left closed, and one that takes nothing."""

import io
import posix  # the client waits for it at every start, and `os` takes far longer
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def fill_gaps() -> None:
    """Open /dev/null under each of the numbers 0 to 2 that is closed, and for Python's streams on them.

    To be called first of all: a socket or a file that got such a number would be written to by whoever means
    the stream. Python has None for a stream that was closed at its start (`sys.stderr`).

    Raises:
        OSError: /dev/null cannot be opened.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        try:
            posix.fstat(number)
        except OSError:
            # The lowest number is taken, open(2).
            posix.set_inheritable(posix.open("/dev/null", posix.O_RDWR), True)
        if getattr(sys, name) is None:
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115 -- open to the end
            setattr(sys, name, stream)


def say_all() -> None:
    """Have characters that standard output has no code for, by the locale, written as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def give_up(number: int) -> None:
    """Lead standard output, 1, or error, 2, to /dev/null, so that what failed is not tried again at the exit.

    Python's exit status is 120 where that fails, too (Python, Py_FinalizeEx).
    """
    posix.dup2(posix.open("/dev/null", posix.O_WRONLY | posix.O_CLOEXEC), number)
