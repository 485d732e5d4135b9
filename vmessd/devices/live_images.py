"""The images that a running QEMU has open: opened, reopened, closed, and noted.

Source: QEMU's qapi/block-core.json.
"""

import contextlib
import functools
from collections.abc import Collection, Iterable

from vmessd.core.errors import Failed, TimedOut, VmessError
from vmessd.qemu import block_devices
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import snapshots
from vmessd.storage.blocking import Lane
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

QMP_TIME = 20.0
"""Seconds that QEMU may take for a command that waits for writes of the guest."""
FLUSH_TIME = 600.0
"""Seconds that QEMU may take to write back what is in its caches."""


async def open_image(run: QemuRun, node: str, path: str, form: str) -> None:
    """Open an image for writing; raises CommandRefused, TimedOut."""
    for one in block_devices.written(node, path, form):
        await run.execute("blockdev-add", one, QMP_TIME)


async def reopen(run: QemuRun, node: str, form: str, below: str | None, *, is_written: bool) -> None:
    """Make an image writable or read-only; its caches are written back. Raises CommandRefused, TimedOut."""
    options = block_devices.on_file(node, form, below, is_written=is_written)
    await run.execute("blockdev-reopen", {"options": [options]}, FLUSH_TIME)


async def close_images(run: QemuRun, nodes: Iterable[str]) -> None:
    """Close images, as far as they are open and unused, and their files; raises TimedOut."""
    for node in nodes:
        for one in (node, block_devices.file_node(node)):
            with contextlib.suppress(CommandRefused):
                await run.execute("blockdev-del", {"node-name": one}, QMP_TIME)


def error_of(run: QemuRun, error: CommandRefused | VmessError, what: str) -> VmessError:
    """Return the error for `what`, which QEMU refused, did not answer to, or did not live to complete."""
    if isinstance(error, CommandRefused):
        return error.failed(run.vm, what)
    if isinstance(error, TimedOut) and run.launched.process.has_ended():
        return Failed(f"VM {run.vm} ended meanwhile, which ended {what}", hint="repeat it")
    return error


def must_be_open_for_good(run: QemuRun, node: str, there: Collection[str]) -> None:
    """Raise Failed if the file of a disk may be opened again by its name, as by a QEMU of an older vmessd."""
    if block_devices.file_node(node) not in there:
        raise Failed(
            f"QEMU of {run.vm} was started by an older vmessd, and would take one image for another",
            hint=f"vmess {run.vm} stop start",
        )


async def note(machine: Machine, lane: Lane) -> None:
    """Note which images QEMU has open now, which is the truth only for what is shown."""
    with contextlib.suppress(VmessError):
        disks = await lane.aside(functools.partial(snapshots.remember, machine.home))
        await machine.note_images(disks)
