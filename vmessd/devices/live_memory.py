"""The memory of a running guest, written into a file: QEMU migrates it there.

The guest runs meanwhile, and QEMU writes again what has changed since. Then the guest is paused until
`cont`, with images that nobody may write to (runstate `postmigrate`): a snapshot of them is of this instant.
Source: QEMU's qapi/migration.json, migration/migration.c.
"""

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from vmessd.core.errors import TimedOut, VmessError, failing
from vmessd.core.words import Runstate
from vmessd.devices import live_images
from vmessd.devices.live_images import QMP_TIME
from vmessd.qemu.monitor import CommandRefused, counter, words
from vmessd.storage.blocking import Lane
from vmessd.vm.qemu_run import MEMORY, QemuRun

PAUSE = 0.02
"""Seconds between two looks: the guest may be paused already."""
BANDWIDTH = 2**50
"""Bytes per second that QEMU may write: no limit."""
BRIEF, AT_ONCE = 300, 2_000_000
"""Milliseconds that the guest may be paused for the rest, as QEMU estimates: at first, and if it must end."""
ROUNDS_MAX = 5
"""How often QEMU goes through the memory before the guest has to be paused."""
CANCEL_TIME, SWITCH_TIME = 60.0, 5.0
"""Seconds until a migration has ended that is cancelled, and that its last part may take before."""
PAUSES, SLOWS, TELLS = "pause-before-switchover", "auto-converge", "events"
"""Capabilities of a migration: QEMU stops before the last part until it is told to continue; a guest that
changes its memory faster than it is sent gets less of the processor; there are events."""
_UNDER_WAY = ("setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug")


class Still:
    """The time for which a guest is paused; `seconds` is known in the end."""

    seconds: float | None = None


async def room_of(run: QemuRun) -> int:
    """Return the bytes of memory of a guest; raises Failed, TimedOut."""
    try:
        found = await run.execute("query-memory-size-summary", {}, QMP_TIME)
    except CommandRefused as refusal:
        raise refusal.failed(run.vm, "to tell how much memory it has") from None
    parts = [counter(found.get(f"{part}-memory")) or 0 for part in ("base", "plugged")]
    return sum(parts) if isinstance(found, Mapping) else 0


async def prepared(run: QemuRun, bandwidth: int, downtime: int, *capabilities: str) -> None:
    """Say how QEMU is to migrate its guest: those of the capabilities are on, and all others off.

    QEMU keeps what it was told last: a move that failed, or by which the guest came, is no longer meant.
    `bandwidth` is in bytes per second, `downtime` in milliseconds. Raises CommandRefused, TimedOut.
    """
    states = [{"capability": one, "state": one in capabilities} for one in (PAUSES, SLOWS, TELLS)]
    await run.execute("migrate-set-capabilities", {"capabilities": states}, QMP_TIME)
    limits: dict[str, object] = {"max-bandwidth": bandwidth, "downtime-limit": downtime}
    await run.execute("migrate-set-parameters", limits, QMP_TIME)


@contextlib.asynccontextmanager
async def kept(run: QemuRun, lane: Lane, fd: int) -> AsyncGenerator[Still, None]:
    """Write the memory of a guest to a descriptor; it is paused at that instant for a `with` block.

    Others wait with their commands for this time; in the end, the guest continues.

    Raises:
        Failed: QEMU cannot write it, or has ended; the guest continues, if there is one.
        TimedOut: QEMU does not answer.
    """
    still = Still()
    run.keeps = True
    try:
        try:
            await _write(run, lane, fd)
        except (CommandRefused, VmessError) as error:
            await _given_up(run)
            found = live_images.error_of(run, error, "to keep the memory")
            found.hint = found.hint or f"to keep the disks alone: vmess {run.vm} snapshot take"
            raise found from None
        except BaseException:
            await _given_up(run)
            raise
        async with run.alone():
            try:
                await _write_back(lane, fd)
                yield still
            finally:
                await asyncio.shield(asyncio.ensure_future(_go_on(run)))
            still.seconds = asyncio.get_running_loop().time() - run.halted
    finally:
        run.keeps = False


async def _write(run: QemuRun, lane: Lane, fd: int) -> None:
    """Have QEMU write the memory, and return when the guest is paused; raises as `kept`, CommandRefused."""
    await prepared(run, BANDWIDTH, BRIEF)
    await run.execute("getfd", {"fdname": MEMORY}, QMP_TIME, descriptor=fd)
    await run.execute("migrate", {"uri": f"fd:{MEMORY}"}, QMP_TIME)
    hurried, syncing = False, asyncio.ensure_future(_write_back(lane, fd))
    while (status := (found := await _progress(run)).get("status")) != "completed":
        if status not in _UNDER_WAY:
            why = words(found.get("error-desc")) or "it has given it up"
            raise CommandRefused(why)
        rounds = found["ram"].get("dirty-sync-count") if isinstance(found.get("ram"), Mapping) else None
        if not hurried and (counter(rounds) or 0) > ROUNDS_MAX:
            await run.execute("migrate-set-parameters", {"downtime-limit": AT_ONCE}, QMP_TIME)
            hurried = True
        await asyncio.sleep(PAUSE)
        if syncing.done():  # so that little is left in the end
            await syncing
            syncing = asyncio.ensure_future(_write_back(lane, fd))
    await syncing


async def _write_back(lane: Lane, fd: int) -> None:
    """Wait until what was written is on disk; raises Failed, TimedOut."""
    with failing("the memory cannot be written to disk"):
        await lane.finish(functools.partial(os.fsync, fd))


async def _progress(run: QemuRun) -> Mapping[str, Any]:
    found = await run.execute("query-migrate", {}, QMP_TIME)
    return found if isinstance(found, Mapping) else {}


async def _given_up(run: QemuRun) -> None:
    """End what was begun; what fails in doing so is for the next daemon."""
    with contextlib.suppress(VmessError, CommandRefused):
        await asyncio.shield(asyncio.ensure_future(end_left(run)))


async def end_left(run: QemuRun) -> None:
    """End the work that an earlier daemon, or a call that failed, has left; a guest that ran continues.

    Raises TimedOut, CommandRefused.
    """
    with contextlib.suppress(CommandRefused):
        await run.execute("closefd", {"fdname": MEMORY}, QMP_TIME)
    ended = await called_off(run)
    status = await run.execute("query-status", {}, QMP_TIME)
    if not isinstance(status, Mapping) or status.get("status") != Runstate.postmigrate:
        return
    # QEMU itself lets a guest continue that ran before a migration which did not end.
    run.stays = run.stays or ended != "completed"
    if not run.stays:
        await run.execute("cont", {}, QMP_TIME)


async def called_off(run: QemuRun) -> object:
    """Cancel a migration that is under way; return its last status; raises TimedOut, CommandRefused.

    It is not cancelled while it sends its last part, if that ends soon: the guest would run with images that
    QEMU has given up (7.2's migration.c). One that is cancelled while it stops the guest waits for ever to be
    continued, with the guest stopped (the same file, `migration_maybe_pause`).
    """
    cancelled = False
    for look in range(int(CANCEL_TIME / PAUSE)):
        found = (await _progress(run)).get("status")
        if found not in _UNDER_WAY:
            break
        if not cancelled and (found != "device" or look * PAUSE > SWITCH_TIME):
            cancelled = True
            with contextlib.suppress(CommandRefused):
                await run.execute("migrate_cancel", {}, QMP_TIME)
        elif found == "cancelling":
            with contextlib.suppress(CommandRefused):  # it has ended just now
                await run.execute("migrate-continue", {"state": found}, QMP_TIME)
        await asyncio.sleep(PAUSE)
    return found


async def _go_on(run: QemuRun) -> None:
    """Let the guest continue; raises Failed if QEMU does not, TimedOut if it does not answer but lives."""
    try:
        await run.execute("cont", {}, QMP_TIME)
    except CommandRefused as refusal:
        raise refusal.failed(run.vm, "to let the guest continue") from None
    except TimedOut:
        if not run.launched.process.has_ended():
            raise
