"""The disks of an OVA, on their way to become those of a VM: examined, converted, checked."""

import contextlib
import functools
from collections.abc import AsyncGenerator, Iterator

from vmessd.core.errors import Failed, InvalidValue, quoted
from vmessd.core.models.transfers import TransferProgress
from vmessd.devices.image_work import Work, kept
from vmessd.qemu.credentials import Account
from vmessd.storage.appliance import ApplianceImport, Part
from vmessd.storage.blocking import Lane
from vmessd.storage.tar_reader import refused


async def convert(
    incoming: ApplianceImport, account: Account, lane: Lane
) -> AsyncGenerator[TransferProgress, None]:
    """Make the images of an OVA, all of which are there, disks of the VM; yield the progress.

    Raises:
        Failed: an image refers to other files, is damaged, or is not as the descriptor says; there is no room.
    """
    for part in incoming.parts:
        begun = functools.partial(Work.of_file, incoming.home, part.file, lane, part.name, part.disk.formats)
        work = await lane.aside(begun)
        with _examining():
            source = await lane.aside(work.examine)
        form = kept(source)
        with _naming(part):
            async for step in work.completed(account, source, form):
                yield TransferProgress(
                    done=False, vm=incoming.vm, disk=part.slot, step=step.step, percent=step.percent
                )
        await lane.finish(functools.partial(incoming.keep, part, work.file, form))


@contextlib.contextmanager
def _examining() -> Iterator[None]:
    """Refuse the archive for an image in it that is not taken: no argument of the caller is wrong."""
    try:
        yield
    except InvalidValue as error:
        raise refused(error.message, error.hint) from None


@contextlib.contextmanager
def _naming(part: Part) -> Iterator[None]:
    """Say which image could not be converted."""
    try:
        yield
    except Failed as error:
        why = f"image {quoted(part.name)} cannot be converted: {error.message}; nothing was imported"
        raise Failed(why, error.hint) from None
