"""A VM that is off, and kept so while something reads or changes its files."""

import contextlib
import functools
import os
from collections.abc import AsyncIterator

from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.machine import Machine


class Hold:
    """The lock of a VM directory, with what it is for."""

    def __init__(self, vm: VMDirectory, purpose: str) -> None:
        """Lock it for a `purpose`, in words: `being cloned`; raises Locked; blocks."""
        lock = vm.lock()
        if lock is None:
            raise vm.held("by another process")
        self._lock, self._vm = lock, vm
        vm.purpose = purpose

    def close(self) -> None:
        """Release it."""
        self._vm.purpose = ""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


@contextlib.asynccontextmanager
async def held(machine: Machine, purpose: str) -> AsyncIterator[None]:
    """Keep a VM that is off from being started for a `with` block.

    Raises:
        AlreadyRunning: it is not off.
        Locked: something else holds it.
    """
    hold = await machine.change(functools.partial(Hold, machine.directory, purpose), stopped=True)
    try:
        yield
    finally:
        hold.close()
