"""The end of a move that failed: work by which a VM is as it was before, and who waits for that."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class TakingBack:
    """The moves of a VM root, to it and from it, that are being taken back."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    async def see_to(self, vm: str, work: Coroutine[Any, Any, None]) -> None:
        """Do such work for a VM, which continues if the caller leaves."""
        task = asyncio.get_running_loop().create_task(work, name=vm)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        await asyncio.shield(task)

    async def ended(self, vm: str) -> None:
        """Return when no move of a VM is being taken back."""
        if work := [task for task in self.tasks if task.get_name() == vm]:
            await asyncio.wait(work)
