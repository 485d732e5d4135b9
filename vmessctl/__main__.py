"""`vmessctl`, also called `vmess`."""

import os
import sys

from vmessctl import verbs
from vmessctl.console import complain
from vmessd.errors import INTERRUPTED, Failed, VmessError, reason


def main() -> int:
    """Run the command line and return its exit status."""
    _fill_gaps()
    try:
        status = verbs.run(sys.argv[1:])
        sys.stdout.flush()
    except VmessError as error:
        return complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        # Python's own flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return Failed.status  # whoever read our output has had enough
        return complain(Failed(f"the output cannot be written: {reason(error)}"))
    return status


def _fill_gaps() -> None:
    """Put /dev/null where a standard stream was closed by the caller, and Python has None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 -- open to the end


if __name__ == "__main__":
    sys.exit(main())
