"""The host's links, as far as a VM's name tells which are its own."""

import os

from vmessd import names


def interfaces(vm: str) -> int:
    """Return how many TAPs carry the VM's name: e0, e1 and so on without a gap, as the original counted."""
    try:
        links = set(os.listdir("/sys/class/net"))
    except OSError:
        return 0
    count = 0
    while names.tap(vm, count) in links:
        count += 1
    return count
