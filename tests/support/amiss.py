"""How a machine is brought to where what it does fails, and what is told of that."""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from daemons import UNIT, until

from vmessd.core.errors import VmessError
from vmessd.core.lifecycle import OFF, State
from vmessd.storage import safefile
from vmessd.vm.machine import Machine


async def told(news: AsyncIterator[object]) -> None:
    """Expect an answer, be it a refusal."""
    async with asyncio.timeout(15 * UNIT):
        with contextlib.suppress(VmessError):
            async for _ in news:
                pass


async def reach(one: Machine, *, on: bool) -> None:
    """Have a VM run, or be off: what fails once does not fail twice."""
    for _ in range(3):
        if (one.state is State.running) if on else (one.state in OFF):
            return
        await told(one.start(1) if on else one.stop(1, force=True))
        with contextlib.suppress(TimeoutError):
            await until(lambda: one.state in (State.running, State.paused, *OFF))
    assert not on
    assert one.state in OFF


def failing(count: int) -> Callable[[Path], None]:
    """Return a way to empty a directory that fails so many times."""
    left = [OSError(errno.EIO, os.strerror(errno.EIO))] * count
    works = safefile.empty

    def empty(path: Path) -> None:
        if left:
            raise left.pop()
        works(path)

    return empty
