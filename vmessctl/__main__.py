"""`vmessctl`, also called `vmess`.

All other modules are imported where Ctrl-C is caught: a start is short, but people are quick.
"""

import gc
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INTERRUPTED = 130
"""The exit status after Ctrl-C, as :mod:`vmessd.core.errors` has it."""
SOON = 0.001
"""Seconds until an interrupt that Python dropped is raised again."""


def program() -> None:
    """Run the command line and exit with its status.

    This skips the cleanup of the interpreter, which would take a tenth of the time of a `status`.
    """
    posix._exit(main())  # noqa: SLF001 -- documented as public


def main() -> int:
    """Run the command line and return its exit status; standard output is flushed."""
    sys.unraisablehook = _raise_again
    gc.disable()  # for the imports, of which nothing is garbage; `app` enables it again
    try:
        from vmessctl import app  # noqa: PLC0415 -- see above

        return app.main()
    except KeyboardInterrupt:
        return INTERRUPTED


def _raise_again(dropped: "Any") -> None:
    """Raise an interrupt again that came where no exception leads anywhere, as in a callback of an import."""
    if dropped.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(dropped)
        return
    signal = __import__("_signal")  # without the enumerations of `signal`, which may be what is being imported
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, SOON)


if __name__ == "__main__":
    program()
