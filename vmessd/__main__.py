"""`vmessd`: reads and checks the settings, then serves; or powers the VMs down for `--shutdown`."""

import functools
import gc
import os
import sys
from collections.abc import Callable

gc.disable()  # modules are not garbage; looking for some among them takes a sixth of the time of the imports

from vmessd import background, config, daemon, log, powerdown  # noqa: E402
from vmessd.config import Config  # noqa: E402
from vmessd.core import stdio  # noqa: E402
from vmessd.core.errors import Failed, VmessError, reason  # noqa: E402

gc.freeze()
gc.enable()


def _working_directory() -> str:
    """Return the directory that relative paths start from, also when the settings are read again."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _settings(read: Callable[[], Config]) -> Config:
    """Return the settings after checking them, and print them for `--check`; raises VmessError."""
    try:
        settings = read()
        if settings.shutdown and not settings.check:
            return settings  # also with mistakes in them
        in_force = config.check(settings)
        if settings.check:
            print(*in_force, sep="\n", flush=True)  # noqa: T201 -- this is what --check is for
            for words in settings.passed_over:
                print(f"vmessd: ignored: {words}", file=sys.stderr)  # noqa: T201 -- as above
    except OSError as error:  # of standard output; --help and --version write to it, too
        stdio.give_up(1)
        raise Failed(f"the output cannot be written: {reason(error)}") from None
    return settings


def main() -> int:
    """Run vmessd and return its exit status: the status of the error that ended it, or 0 after a signal."""
    stdio.fill_gaps()
    try:
        read = functools.partial(config.read, sys.argv[1:], os.environ, _working_directory())
        settings = _settings(read)
        if settings.shutdown and not settings.check:
            log.begin()
            return powerdown.run(settings)
        if settings.background and not settings.check:
            return background.run(settings, read)
        if not settings.check:
            log.begin()
            daemon.run(settings, read)
    except VmessError as error:
        try:
            print(f"vmessd: {error.message}", file=sys.stderr)  # noqa: T201 -- the user's message
            if error.hint:
                print(f"  hint: {error.hint}", file=sys.stderr)  # noqa: T201 -- the user's message
        except OSError:  # nothing can be printed; the exit status remains
            stdio.give_up(2)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
