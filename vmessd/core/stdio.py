"""Standard streams: those that whoever started this program left closed, and one that takes nothing."""

import io
import os
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
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number, open(2)
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
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), number)
