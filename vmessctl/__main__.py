"""`vmessctl`, also called `vmess`."""

import sys

from vmessctl import app
from vmessctl.output.terminal import complain
from vmessd.core import stdio
from vmessd.core.errors import INTERRUPTED, Failed, VmessError, reason


def main() -> int:
    """Run the command line and return its exit status."""
    stdio.fill_gaps()
    stdio.say_all()
    try:
        status = app.run(sys.argv[1:])
        sys.stdout.flush()
    except VmessError as error:
        return complain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        stdio.give_up(1)
        if isinstance(error, BrokenPipeError):
            return Failed.status  # whoever read our output has had enough
        return complain(Failed(f"the output cannot be written: {reason(error)}"))
    return status


if __name__ == "__main__":
    sys.exit(main())
