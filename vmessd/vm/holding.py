"""A VM that is off, and kept so while something reads or changes its files."""

import contextlib
import functools
from collections.abc import AsyncIterator

from vmessd.storage.vmdir import Hold
from vmessd.vm.machine import Machine


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
