"""Whole VMs that leave this host or come to it, as the bytes of an archive through a passed socket."""

import contextlib
from collections.abc import AsyncIterator

from asyncvarlink import FileDescriptor, LastResult, varlinkmethod

from vmessd.api.caller import Caller
from vmessd.core.dataclass import dataclass
from vmessd.core.models.events import Kind
from vmessd.core.models.transfers import TransferProgress
from vmessd.supervisor.transfers import Transfer


@dataclass(frozen=True)
class VMTransfer:
    """A step of an export or import."""

    progress: TransferProgress
    channel: FileDescriptor | None
    """In the first step, a stream socket: an export comes out of it until its end; an import goes into it, and
    ends with shutdown(2). Closing it early ends the transfer, and nothing of it stays."""


class Transferring(Caller):
    """Methods that export and import VMs."""

    @varlinkmethod(return_parameter="transfer", delay_generator=False)
    async def Export(self, *, vm: str) -> AsyncIterator[VMTransfer]:
        """Export a stopped VM: settings and disks as one archive. Requires `more`.

        A reply with the socket and the size, and the last one when everything was taken. The archive contains
        what the disks contain. The VM cannot be started meanwhile.
        """
        async with contextlib.aclosing(self._supervisor.transfers.export(vm)) as steps:
            async for step in steps:
                if step.progress.done:
                    raise LastResult(_told(step))
                yield _told(step)

    @varlinkmethod(return_parameter="transfer", delay_generator=False)
    async def Import(self, *, name: str | None) -> AsyncIterator[VMTransfer]:
        """Make a VM of an archive, under this name; null means the name in the archive. Requires `more`.

        The archive comes from Export, or is an OVA. A reply with the socket, for an OVA one for each step of
        its disks, and the last one when the VM is there. An archive that is not whole, or contains anything
        else, is refused, and nothing of it stays.
        """
        async with contextlib.aclosing(self._supervisor.transfers.take(name)) as steps:
            async for step in steps:
                if step.progress.done:
                    if step.progress.vm is not None:
                        self._tell(Kind.made, step.progress.vm, "imported")
                    raise LastResult(_told(step))
                yield _told(step)


def _told(step: Transfer) -> VMTransfer:
    """Return a step as it is sent; the reply closes the descriptor when it was sent."""
    channel = None if step.channel is None else FileDescriptor(step.channel, should_close=True)
    return VMTransfer(step.progress, channel)
