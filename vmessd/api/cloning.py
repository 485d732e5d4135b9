"""New VMs that are copies of others."""

import contextlib
from collections.abc import AsyncIterator

from asyncvarlink import LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.models.events import Kind
from vmessd.core.models.snapshots import CloneProgress


class Cloning(Caller):
    """The method that clones VMs."""

    @varlinkmethod(return_parameter="progress", delay_generator=False)
    async def Clone(self, *, vm: str, name: str, linked: bool) -> AsyncIterator[CloneProgress]:
        """Make a VM that is a copy of another one, which may be running. Requires `more`.

        The copy is of one moment of all disks. MACs, VNC display and all else that follows from the name are
        its own; SMBIOS uuid and serial, explicit MACs and the instance-id of cloud-init are not copied. With
        `linked`, the images below the disks of both are the same, so it takes no space; a disk that was based
        on none, and each one of a VM that runs, becomes a snapshot of the VM. Nothing of the new VM is left if
        it fails, or the caller leaves.
        """
        async with contextlib.aclosing(self._supervisor.clones.clone(vm, name, linked=linked)) as steps:
            async for step in steps:
                if step.done:
                    self._tell(Kind.made, step.vm, f"cloned from {vm}")
                    raise LastResult(step)
                yield step
