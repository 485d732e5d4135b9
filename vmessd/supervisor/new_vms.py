"""What holds for each new VM, however it comes: made empty, cloned, imported, or moved from another host."""

import asyncio
import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

from vmessd.core import names
from vmessd.core.errors import InvalidValue, VmessError, quoted
from vmessd.core.settings import OF_NEW_VM
from vmessd.storage import blocking, new_directory, vmdir
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.host import Host


class NewVMs:
    """The VMs that are about to be in a VM root."""

    def __init__(self, root: Path, host: Host, files: Lane, left: Callable[[str], None]) -> None:
        """`files` is the lane for work on the root; `left` hears of directories to remove later."""
        self._root = root
        self._host = host
        self._files = files
        self._left = left

    async def make(self, name: str) -> str:
        """Create an empty VM and return its path; raises InvalidValue, Failed."""
        directory = VMDirectory(self._root, names.parse(name))
        await self.check_name(directory.vm)
        await self._files.do(functools.partial(new_directory.make, directory, OF_NEW_VM, self._left))
        return str(directory.path)

    async def check_name(self, vm: str) -> None:
        """Raise InvalidValue if a new VM would have the name of a bridge of ours, or of another VM's TAP."""
        pair = await self._files.aside(functools.partial(vmdir.namesakes, self._root, vm))
        if pair is not None:
            other, tap = pair
            raise InvalidValue(f"VM name {quoted(vm)} is not free: {tap} would be a VM and a TAP of VM {other}")
        is_bridge = False
        with contextlib.suppress(VmessError):  # a daemon that cannot look at links has made none
            is_bridge = await blocking.call(functools.partial(self._host.network.has_own_bridge, vm))
        if is_bridge:
            raise InvalidValue(f"VM name {quoted(vm)} is the name of a bridge that vmess made")

    async def clean_up(self, lane: Lane, close: Callable[[], str | None]) -> None:
        """Remove what did not become a VM. `close` returns its name if that is impossible.

        A later attempt, or the next daemon, removes it then.
        """

        def remove() -> None:
            if name := close():
                self._left(name)

        with contextlib.suppress(VmessError):
            await asyncio.shield(lane.see_to(remove))
