"""`vmessctl`, also called `vmess`."""

import os
import sys

from vmessctl import console
from vmessd.errors import INTERRUPTED, VmessError


def main() -> int:
    """Run the command line and return its exit status."""
    try:
        status = console.run(sys.argv[1:])
        sys.stdout.flush()
    except VmessError as error:
        return console.complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has had enough; Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
