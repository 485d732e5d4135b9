"""The disks of an OVA, on their way to become those of a VM: examined, converted, checked."""

import functools
from collections.abc import AsyncGenerator

from vmessd.core.models.transfers import TransferProgress
from vmessd.devices.image_work import Work, kept
from vmessd.qemu.credentials import Account
from vmessd.storage.appliance import ApplianceImport
from vmessd.storage.blocking import Lane


async def convert(
    incoming: ApplianceImport, account: Account, lane: Lane
) -> AsyncGenerator[TransferProgress, None]:
    """Make the images of an OVA, all of which are there, disks of the VM; yield the progress.

    Raises:
        InvalidValue: an image refers to other files.
        Failed: there is no space, or an image is damaged.
    """
    for part in incoming.parts:
        begun = functools.partial(Work.of_file, incoming.home, part.file, lane, part.name)
        work = await lane.aside(begun)
        source = await lane.aside(work.examine)
        form = kept(source)
        async for step in work.completed(account, source, form):
            yield TransferProgress(
                done=False, vm=incoming.vm, disk=part.slot, step=step.step, percent=step.percent
            )
        await lane.finish(functools.partial(incoming.keep, part, work.file, form))
