"""`vmessctl`, also called `vmess`."""

import posix
import sys

from vmessctl import app
from vmessctl.output.terminal import complain
from vmessd.core import stdio
from vmessd.core.errors import INTERRUPTED, Failed, VmessError, reason


def program() -> None:
    """Run the command line and leave with its exit status.

    Python is not asked to tidy up first: that takes a tenth of the time of a `status`, for nothing.
    """
    posix._exit(main())  # noqa: SLF001 -- public by its documentation


def main() -> int:
    """Run the command line and return its exit status; what was written to standard output is out."""
    stdio.fill_gaps()
    stdio.say_all()
    try:
        status = _carry_out(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        stdio.give_up(1)
        if isinstance(error, BrokenPipeError):
            return Failed.status  # whoever read our output has had enough
        return complain(Failed(f"the output cannot be written: {reason(error)}"))
    return status


def _carry_out(words: list[str]) -> int:
    try:
        return app.run(words)
    except VmessError as error:
        return complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    program()
