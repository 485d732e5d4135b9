"""The move of a guest that runs: what the QEMU at the source and that at the destination are told.

The source mirrors its disks into the destination (NBD), then sends its memory, and is paused for the last
of both. QEMU opens no socket of the network: each connection is a descriptor. Source: QEMU's
qapi/migration.json and qapi/block-core.json; the order, and what undoes each step, were measured with 7.2.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

from vmessd.core.errors import Failed, VmessError, failing, printable
from vmessd.core.names import DISKS
from vmessd.core.words import HALTS, Runstate
from vmessd.devices import live_memory
from vmessd.devices.block_jobs import CONCLUDED
from vmessd.devices.live_images import QMP_TIME
from vmessd.devices.live_memory import PAUSES, SLOWS, TELLS
from vmessd.qemu.monitor import REFUSAL_MAX, CommandRefused, Job, counter
from vmessd.storage import safefile
from vmessd.vm.qemu_run import QemuRun

RAM = "ram"
"""The name of the connection for the memory; those for disks are called as the disks are."""
JOB = "move-"
"""The beginning of the names of its jobs, which end with a drive."""
LISTENER = "nbd"
DOWNTIME = 100
"""Milliseconds that a guest may be paused for the last of its memory (downtime-limit)."""
BANDWIDTH = 2**40
"""Bytes a second, if nobody wants a limit: that of QEMU is for a network of 1 Gbit/s."""
LOOK, LOOK_FAST = 0.05, 0.003
"""Seconds between two looks at a migration: in general, and while the guest is paused."""
REPEAT = "the guest continues where it was; repeat the move"
READY = "ready"
STANDS_STILL = frozenset({*HALTS, Runstate.inmigrate, Runstate.paused, Runstate.shutdown, Runstate.watchdog})
"""The runstates of a guest that has arrived: QEMU waits to let it run, or it was paused before."""
FINISHING = "finish-migrate"
"""The runstate of a guest that is paused for the last of its memory."""
END_TIME = 20.0
"""Seconds in which a job ends that is called off."""
LOAD_TIME = 30.0
"""Seconds in which the destination has to have all of the guest, after the source has sent it."""


class Standing(NamedTuple):
    """How far the memory of a guest is."""

    status: str
    """A MigrationStatus: `active`, `pre-switchover`, `completed`, `failed`, `cancelled` ..."""
    sent: int
    left: int
    """Bytes."""
    dirtied: int
    """Bytes that the guest changes in a second."""
    speed: int
    """Bytes that are sent in a second."""
    error: str


async def standing(run: QemuRun) -> Standing:
    """Ask QEMU how far a migration is; raises CommandRefused, TimedOut."""
    found = await run.execute("query-migrate", {}, QMP_TIME)
    found = found if isinstance(found, Mapping) else {}
    ram = found.get("ram")
    ram = ram if isinstance(ram, Mapping) else {}

    def number(key: str) -> int:
        return counter(ram.get(key)) or 0

    mbps = ram.get("mbps")
    speed = int(mbps * 1e6 / 8) if isinstance(mbps, int | float) and 0 <= mbps < 1e9 else 0
    dirtied = number("dirty-pages-rate") * (number("page-size") or 4096)
    error = found.get("error-desc")
    return Standing(
        str(found.get("status", "none"))[:40],
        *(number("transferred"), number("remaining"), dirtied, speed),
        printable(str(error)[:REFUSAL_MAX]) if error else "",
    )


async def blocked(run: QemuRun) -> str | None:
    """Return in QEMU's words why it cannot send its guest; None if it can; raises CommandRefused, TimedOut."""
    found = await run.execute("query-migrate", {}, QMP_TIME)
    reasons = found.get("blocked-reasons") if isinstance(found, Mapping) else None
    return printable(str(reasons[0])[:REFUSAL_MAX]) if isinstance(reasons, list) and reasons else None


class Outgoing:
    """The QEMU of the source; nothing of it stays after :meth:`undo`."""

    def __init__(self, run: QemuRun, slots: Sequence[str], bandwidth: int | None) -> None:
        """`slots` are the disks to be mirrored."""
        self.run = run
        self.slots = slots
        self._bandwidth = bandwidth

    async def _execute(self, command: str, arguments: dict[str, object] | None = None) -> Any:
        return await self.run.execute(command, arguments or {}, QMP_TIME)

    async def _jobs(self) -> list[Job]:
        return [job for job in await self.run.jobs(QMP_TIME) if job.identifier.startswith(JOB)]

    async def begin_mirror(self, connections: Mapping[str, socket.socket]) -> None:
        """Begin to mirror the disks through connections by their names; raises CommandRefused, TimedOut."""
        await live_memory.prepared(self.run, self._bandwidth or BANDWIDTH, DOWNTIME, PAUSES, SLOWS, TELLS)
        for slot in self.slots:
            name = f"{JOB}{slot}"
            await self.run.execute("getfd", {"fdname": name}, QMP_TIME, descriptor=connections[slot].fileno())
            server = {"type": "fd", "str": name}
            node = {"driver": "nbd", "node-name": _out(slot), "server": server, "export": slot}
            await self._execute("blockdev-add", {**node, "discard": "unmap", "detect-zeroes": "unmap"})
            job: dict[str, object] = {
                "job-id": name,
                "device": await self.run.node_of(slot, QMP_TIME),
                "target": _out(slot),
                "sync": "full",
                "copy-mode": "write-blocking",
                "auto-dismiss": False,
                "filter-node-name": f"{slot}-moving",
            }
            if self._bandwidth:
                job["speed"] = self._bandwidth
            await self._execute("blockdev-mirror", job)

    async def mirrored(self) -> AsyncIterator[tuple[int, int]]:
        """Yield bytes that are done, and all, until the mirrors are complete; raises Failed, TimedOut."""
        while self.slots:
            jobs = await self._jobs()
            if failed := next((job for job in jobs if job.error or job.status == CONCLUDED), None):
                slot = failed.identifier.removeprefix(JOB)
                raise Failed(
                    f"{slot} of {self.run.vm} was not mirrored: {printable(failed.error or 'it ended')}",
                    hint=REPEAT,
                )
            if len(jobs) < len(self.slots):
                raise Failed(f"QEMU of {self.run.vm} has ended the mirrors of its disks", hint=REPEAT)
            yield sum(job.done for job in jobs), sum(max(job.total, job.done) for job in jobs)
            if all(job.status == READY for job in jobs):
                return
            await asyncio.sleep(LOOK)

    async def begin_memory(self, connection: socket.socket) -> None:
        """Begin to send the memory; raises CommandRefused, TimedOut."""
        await self.run.execute("getfd", {"fdname": RAM}, QMP_TIME, descriptor=connection.fileno())
        await self._execute("migrate", {"uri": f"fd:{RAM}"})

    async def sent(self) -> AsyncIterator[Standing]:
        """Yield how far the memory is, until the guest is paused for the rest; raises Failed, TimedOut."""
        while True:
            now = await self._standing()
            yield now
            if now.status == "pre-switchover":
                return
            await asyncio.sleep(LOOK_FAST if now.status == "device" else LOOK)

    async def _standing(self) -> Standing:
        now = await standing(self.run)
        if now.status in ("failed", "cancelled", "cancelling", "none"):
            why = now.error or "the other side has ended it"
            raise Failed(f"the memory of {self.run.vm} was not sent: {why}", hint=REPEAT)
        return now

    async def end_mirror(self) -> None:
        """End the mirrors, which are complete, because the guest is paused; raises Failed, TimedOut."""
        for slot in self.slots:
            await self._execute("block-job-cancel", {"device": f"{JOB}{slot}"})
        async with asyncio.timeout(END_TIME):
            while True:
                jobs = await self._jobs()
                if failed := next((job for job in jobs if job.error), None):
                    raise Failed(
                        f"{failed.identifier} of {self.run.vm} failed at last: {printable(failed.error or '')}",
                        hint=REPEAT,
                    )
                if all(job.status == CONCLUDED for job in jobs):
                    break
                await asyncio.sleep(LOOK_FAST)
        for job in jobs:
            await self._execute("job-dismiss", {"id": job.identifier})
        for slot in self.slots:
            await self._execute("blockdev-del", {"node-name": _out(slot)})

    async def switch(self) -> None:
        """Send the last part; the guest is paused until one side continues. Raises Failed, TimedOut."""
        await self._execute("migrate-continue", {"state": "pre-switchover"})
        async with asyncio.timeout(LOAD_TIME):
            while (await self._standing()).status != "completed":  # noqa: ASYNC110 -- QEMU is asked
                await asyncio.sleep(LOOK_FAST)

    async def undo(self, *, runs: bool) -> None:
        """Let the guest continue as if nothing had been, if it `runs`; raises TimedOut, CommandRefused.

        Allowed as long as the other side was not told to continue.
        """
        await live_memory.called_off(self.run)
        instances: list[dict[str, object]] = [
            {"type": "block-node", "node-name": _out(slot)} for slot in self.slots
        ]
        for job in await self._jobs():
            if job.status not in (READY, CONCLUDED):
                await self._quietly("yank", {"instances": instances})
            await self._quietly("block-job-cancel", {"device": job.identifier, "force": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_TIME):
                await self._end_jobs(instances)
        for slot in self.slots:
            await self._quietly("blockdev-del", {"node-name": _out(slot)})
            await self._quietly("closefd", {"fdname": f"{JOB}{slot}"})
        await self._quietly("closefd", {"fdname": RAM})
        self.run.stays = True
        if runs:
            await self._go_on()

    async def _end_jobs(self, instances: list[dict[str, object]]) -> None:
        """Dismiss the jobs; a write of the guest may hold one up until its connection is cut."""
        for look in range(10_000):
            jobs = await self._jobs()
            if not jobs:
                return
            for job in jobs:
                if job.status == CONCLUDED:
                    await self._quietly("job-dismiss", {"id": job.identifier})
                elif look == 20:
                    await self._quietly("yank", {"instances": instances})
            await asyncio.sleep(LOOK)

    async def _go_on(self) -> None:
        """Let the guest run that is paused for the move, if QEMU has not done so by itself."""
        for _ in range(200):
            found = await self._execute("query-status")
            status = found.get("status") if isinstance(found, Mapping) else None
            if status == Runstate.postmigrate:
                await self._quietly("cont")
            elif status != FINISHING:  # it runs, or is paused for another reason
                return
            await asyncio.sleep(LOOK)

    async def _quietly(self, command: str, arguments: dict[str, object] | None = None) -> None:
        with contextlib.suppress(CommandRefused):
            await self._execute(command, arguments)


class Incoming:
    """The QEMU of the destination, which was started to wait for a guest."""

    def __init__(self, run: QemuRun, slots: Sequence[str]) -> None:
        self.run = run
        self._slots = slots

    async def begin(self, place: int) -> dict[str, socket.socket]:
        """Make QEMU wait; return connections to it by their names. `place` is the descriptor of its directory.

        Raises:
            CommandRefused, TimedOut: QEMU refuses, or does not answer.
            Failed: a socket cannot be made.
        """
        await live_memory.prepared(self.run, BANDWIDTH, DOWNTIME, PAUSES, TELLS)
        found: dict[str, socket.socket] = {}
        try:
            if self._slots:
                await self._serve_disks(place, found)
            with failing("no socket can be created"):
                found[RAM], theirs = socket.socketpair()
            with theirs:
                await self.run.execute("getfd", {"fdname": RAM}, QMP_TIME, descriptor=theirs.fileno())
            await self.run.execute("migrate-incoming", {"uri": f"fd:{RAM}"}, QMP_TIME)
        except BaseException:
            for one in found.values():
                one.close()
            raise
        return found

    async def _serve_disks(self, place: int, found: dict[str, socket.socket]) -> None:
        """Have QEMU serve its disks to connections from this process, which has the only path to them."""
        name = safefile.temporary_name("nbd.sock")
        with safefile.listener(place, name, 0o600, len(self._slots)) as listener:
            await self.run.execute("getfd", {"fdname": LISTENER}, QMP_TIME, descriptor=listener.fileno())
            address = {"type": "fd", "data": {"str": LISTENER}}
            server: dict[str, object] = {"addr": address, "max-connections": len(self._slots)}
            await self.run.execute("nbd-server-start", server, QMP_TIME)
            try:
                for slot in self._slots:
                    export: dict[str, object] = {
                        "type": "nbd",
                        "id": f"{slot}-in",
                        "node-name": slot,
                        "name": slot,
                    }
                    await self.run.execute("block-export-add", {**export, "writable": True}, QMP_TIME)
                    found[slot] = safefile.connect(place, name)
            finally:
                safefile.remove(place, name)

    async def stop_serving(self) -> None:
        """Close the disks to the source; raises CommandRefused, TimedOut."""
        if self._slots:
            await self.run.execute("nbd-server-stop", {}, QMP_TIME)

    async def loaded(self) -> None:
        """Wait until all of the guest is here, and is paused; raises Failed, CommandRefused, TimedOut."""
        try:
            async with asyncio.timeout(LOAD_TIME):
                while (now := await standing(self.run)).status != "completed":
                    if now.status in ("failed", "cancelled"):
                        raise Failed(
                            f"the memory of {self.run.vm} did not arrive: {now.error or 'it was ended'}",
                            hint=REPEAT,
                        )
                    await asyncio.sleep(LOOK_FAST)
        except TimeoutError:
            raise Failed(f"the memory of {self.run.vm} did not arrive in time", hint=REPEAT) from None
        found = await self.run.execute("query-status", {}, QMP_TIME)
        if not isinstance(found, Mapping) or found.get("status") not in STANDS_STILL:
            raise Failed(f"QEMU of {self.run.vm} is not ready to continue", hint=REPEAT)
        self.run.session.probe()  # for the runstate

    async def go_on(self) -> None:
        """Let the guest run here, and have the switches learn it; raises CommandRefused, TimedOut."""
        await self.run.execute("cont", {}, QMP_TIME)
        announcement: dict[str, object] = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
        with contextlib.suppress(CommandRefused, VmessError):
            await self.run.execute("announce-self", announcement, QMP_TIME)


def _out(slot: str) -> str:
    return f"{slot}-out"


async def end_left(run: QemuRun) -> None:
    """End what an earlier daemon has left of a move of its guest; raises CommandRefused, TimedOut.

    Nodes are asked for only while there are no jobs: one QEMU 7.2 in 40 died, asked while a job ended.
    """
    runs = not run.stays
    jobs = {job.identifier for job in await run.jobs(QMP_TIME)}
    await _undo(run, [slot for slot in DISKS if f"{JOB}{slot}" in jobs], runs)
    if not await run.jobs(QMP_TIME):  # other work on the images has begun only where no move was under way
        nodes = set(await run.nodes(QMP_TIME))
        await _undo(run, [slot for slot in DISKS if _out(slot) in nodes], runs)


async def _undo(run: QemuRun, slots: Sequence[str], runs: bool) -> None:
    if slots:
        await Outgoing(run, slots, None).undo(runs=runs)
