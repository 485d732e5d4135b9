"""`vmessctl`, also called `vmess`."""

import posix
import sys

from vmessctl import app
from vmessctl.cli.verbs import PROGRAM
from vmessctl.output.terminal import complain
from vmessd.core import stdio
from vmessd.core.errors import INTERRUPTED, UNREAD, Failed, VmessError, reason


def program() -> None:
    """Run the command line and exit with its status.

    This skips the cleanup of the interpreter, which would take a tenth of the time of a `status`.
    """
    posix._exit(main())  # noqa: SLF001 -- documented as public


def main() -> int:
    """Run the command line and return its exit status; standard output is flushed."""
    PROGRAM.be_called(sys.argv[0])
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
            return UNREAD
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
