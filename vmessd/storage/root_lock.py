"""The lock of a VM root, which one daemon has (flock(2))."""

import contextlib
import fcntl
import time

TRIES, WAIT = 25, 0.02
"""How often a daemon tries to take it, and the seconds in between; flock(2) has no deadline."""


def taken(root: int) -> bool:
    """Lock the directory of a descriptor; tell whether that was possible; blocks for half a second at most.

    A child of a daemon that was killed has its descriptors for a moment, until it becomes another program.
    """
    for attempt in range(TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if attempt < TRIES - 1:
            time.sleep(WAIT)
    return False
