"""`vmessd`: read the settings, then serve."""

import functools
import os
import sys

from vmessd import config, daemon, log, powerdown
from vmessd.errors import VmessError


def _working_directory() -> str:
    """Return where relative paths count from, also when the settings are read again."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def main() -> int:
    """Run vmessd and return its exit status: that of the error that ended it, 0 after a signal."""
    try:
        read = functools.partial(config.read, sys.argv[1:], os.environ, _working_directory())
        settings = read()
        if settings.shutdown and not settings.check:
            log.begin()
            return powerdown.run(settings)
        in_force = config.check(settings)
        if settings.check:
            print(*in_force, sep="\n")  # noqa: T201 -- this is what --check is for
            for words in settings.passed_over:
                print(f"vmessd: passed over: {words}", file=sys.stderr)  # noqa: T201 -- as above
        else:
            log.begin()
            daemon.run(settings, read)
    except VmessError as error:
        print(f"vmessd: {error.message}", file=sys.stderr)  # noqa: T201 -- the user's message
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)  # noqa: T201 -- the user's message
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
