"""A snapshot of a running VM: QEMU writes to new images from one moment on, which is the same for all disks.

The files get their names before QEMU is asked, because nobody may write to an image that is not in its place.
So the plan (:mod:`vmessd.storage.plans`) stays until QEMU has agreed, and is taken back if it has not.
"""

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence

from vmessd.core import names
from vmessd.core.errors import TimedOut
from vmessd.devices import live_copy, live_images, live_memory
from vmessd.devices.live_images import QMP_TIME
from vmessd.devices.live_memory import Still
from vmessd.qemu import block_devices
from vmessd.qemu.monitor import CommandRefused
from vmessd.storage import memory, snapshots
from vmessd.storage.blocking import Lane
from vmessd.storage.memory import Draft
from vmessd.storage.plans import Plan
from vmessd.storage.snapshots import Overlay
from vmessd.vm.machine import Machine
from vmessd.vm.qemu_run import QemuRun

ENDED = "the VM ended meanwhile; they are as it left them"
WITH_MEMORY = "the disks and the memory are those of the same instant"


async def take(  # noqa: PLR0913, PLR0917
    machine: Machine, run: QemuRun, lane: Lane, name: str, overlays: Sequence[Overlay], draft: Draft | None
) -> tuple[float | None, str]:
    """Put overlays on the disks; return the seconds that took, None if QEMU has ended, and a remark.

    With a draft, the memory of the guest is kept in it first, and is part of the snapshot.

    Raises:
        Failed: QEMU refuses, and everything is as before.
        TimedOut: it does not answer; this is settled later.
    """
    vm = machine.home
    nodes = {one.disk.slot: await run.node_of(one.disk.slot) for one in overlays}
    there = await run.nodes(QMP_TIME)
    for node in nodes.values():
        live_images.must_be_open_for_good(run, node, there)
    new = {slot: block_devices.live_node(slot, node) for slot, node in nodes.items()}
    when = time.time()
    steps, undo = await lane.aside(functools.partial(snapshots.taking, vm, name, overlays, when))
    if draft is not None:
        steps, undo = memory.with_memory((steps, undo), name, draft, when)
    plan = Plan(vm.vm, tuple(steps), tuple(undo), (run.pid, run.launched.process.ticks), new)
    async with _still(run, lane, draft) as how:
        await lane.finish(functools.partial(vm.carry_out, plan))
        try:
            still = await _agree(machine, run, nodes, new)
        except CommandRefused as refusal:
            await _take_back(machine, run, lane, plan)
            raise live_images.error_of(run, refusal, "the snapshot") from None
        except TimedOut:
            if not run.launched.process.has_ended():
                raise
            still = None
        await lane.finish(vm.forget_plan)
    await live_images.note(machine, lane)
    if still is None:
        return None, ENDED
    if isinstance(how, Still):
        return how.seconds, WITH_MEMORY
    return still, live_copy.consistency(how)


def _still(
    run: QemuRun, lane: Lane, draft: Draft | None
) -> contextlib.AbstractAsyncContextManager[Still | int | None]:
    """Return what prepares the guest: its memory is kept, or its agent has everything written back."""
    return live_copy.frozen(run) if draft is None else live_memory.kept(run, lane, draft.fd)


async def _agree(machine: Machine, run: QemuRun, nodes: Mapping[str, str], new: Mapping[str, str]) -> float:
    """Have QEMU write to the new images from now on; return the seconds that took.

    Raises CommandRefused, TimedOut.
    """
    for slot, node in new.items():
        path = f"{machine.home.path}/{names.disk_file(machine.vm, slot, 'qcow2')}"
        await live_images.open_image(run, node, path, "qcow2")
    actions = [
        {"type": "blockdev-snapshot", "data": {"node": nodes[slot], "overlay": node}}
        for slot, node in new.items()
    ]
    begin = time.monotonic()
    await run.execute("transaction", {"actions": actions}, QMP_TIME)
    return time.monotonic() - begin


async def _take_back(machine: Machine, run: QemuRun, lane: Lane, plan: Plan) -> None:
    with contextlib.suppress(TimedOut):
        await live_images.close_images(run, (plan.nodes or {}).values())
    await lane.finish(functools.partial(machine.home.take_back, plan))


async def settle(machine: Machine, run: QemuRun, lane: Lane, plan: Plan) -> None:
    """Keep what an earlier daemon, or a silent QEMU, has left, if QEMU writes to it; else take it back.

    Raises:
        Failed: the files cannot be changed.
        TimedOut: QEMU does not answer.
    """
    now = {slot: await run.node_of(slot) for slot in plan.nodes or {}}
    if now != plan.nodes:
        await _take_back(machine, run, lane, plan)
        return
    await lane.finish(machine.home.forget_plan)
    await live_images.note(machine, lane)
