"""What waits for the next start of a running VM: settings and drives that were changed since its start.

The record of a run has the texts with which QEMU was started. Interfaces are not among them, because they are
changed while the VM runs.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vmessd.core.cloud_init import MEDIUM
from vmessd.core.errors import BadFile, InvalidValue
from vmessd.core.models.vms import Pending
from vmessd.core.names import CDROM
from vmessd.core.quantities import size_text
from vmessd.core.records import RunRecord
from vmessd.core.settings import BOOT_ONCE, BY_FILE, SETTINGS, as_told
from vmessd.core.startup import CONFIGURATION
from vmessd.qemu import command_line
from vmessd.storage import cloud_init, startup
from vmessd.storage.backing import Identity
from vmessd.storage.images import Disk
from vmessd.storage.vmdir import VMDirectory

OF_WIRES = ("NICS", "MACS", "SLOTS", "CABLES", "IMPAIRMENTS")
AT_START = tuple(setting.file for setting in SETTINGS if not setting.live and setting.file not in OF_WIRES)
"""The settings on which QEMU depends from its start to its end."""


def hardware(directory: VMDirectory, disks: Sequence[Disk]) -> dict[str, str]:
    """Return the texts of settings and drives for a start, by file and slot; without unreadable ones.

    Raises:
        NoSuchVM, Failed: the directory cannot be read.
    """
    found = {disk.slot: drive_text(disk) for disk in disks}
    for file in AT_START:
        with contextlib.suppress(BadFile):
            if (text := directory.setting_text(file)) is not None:
                found[file] = text
    with contextlib.suppress(BadFile):
        if (seed := cloud_init.read(directory)) is not None:
            found[MEDIUM] = seed.summary
    with contextlib.suppress(BadFile):
        if (given := startup.read(directory)) is not None:
            found[CONFIGURATION] = given.summary
    return found


def drive_text(disk: Disk) -> str:
    """Return what identifies the content of a drive: the size of a disk, the image in a CD drive."""
    size = size_text(disk.size)
    if disk.format != "raw":
        size = ", ".join([size, disk.format, *(f"on {base.target}" for base in disk.bases)])
    if disk.target is None:
        return size
    return disk.target if disk.slot == CDROM else f"{disk.target}, {size}"


def images(disks: Sequence[Disk]) -> dict[str, str]:
    """Return the files of drives for the record of a run, by slot, with the images that they are based on."""
    return {disk.slot: " ".join(f"{one.device}:{one.inode}" for one in _identities(disk)) for disk in disks}


def _identities(disk: Disk) -> list[Identity]:
    return [disk.identity, *(base.identity for base in disk.bases)]


def replaced(record: RunRecord, disks: Sequence[Disk]) -> set[str]:
    """Return the drives whose files are others than those with which QEMU was started."""
    known = record.images or {}
    return {slot for slot, files in images(disks).items() if known.get(slot, files) != files}


def changes(
    running: Mapping[str, str], following: Mapping[str, str], others: Collection[str] = ()
) -> list[Pending]:
    """Return what differs between two results of :func:`hardware`, in the order of the tables.

    `others` are the drives of which only the file is another, as :func:`replaced` returns them.
    """
    running = {name: text for name, text in running.items() if name != BOOT_ONCE}  # the start has used it
    order = [*AT_START, *sorted((running.keys() | following.keys()) - set(AT_START))]
    found = []
    for name in order:
        now, later = running.get(name), following.get(name)
        if _meaning(name, now) == _meaning(name, later):
            if name not in others:
                continue
            later = f"{later}, another file"
        found.append(Pending(name, *(None if text is None else as_told(name, text) for text in (now, later))))
    return found


def is_changed(
    record: RunRecord, following: Mapping[str, str], disks: Sequence[Disk], argv: Sequence[str]
) -> bool:
    """Tell whether a start would differ from the run; `following` is from :func:`hardware`."""
    if record.hardware is None:
        return not command_line.same_but_for_wires(argv, record.argv)
    if changes(record.hardware, following, replaced(record, disks)):
        return True
    return not command_line.same_cards(argv, record.argv)


def _meaning(name: str, text: str | None) -> Any:
    """Return the value of a text: 1G and 1024M are the same memory."""
    if text is None or name not in BY_FILE:
        return text
    try:
        return BY_FILE[name].value(text)
    except InvalidValue:
        return text
