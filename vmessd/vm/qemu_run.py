"""One run of QEMU, from its spawn or adoption to its end, and the reactions to its QMP events."""

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import json
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from vmessd.core import refusals
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import StartFailed, TimedOut, VmessError, printable
from vmessd.core.lifecycle import Ending, Event, Policy, Reason, Rung, State, classify
from vmessd.core.models.progress import StopProgress
from vmessd.core.records import TEXT_LIMIT, ExitRecord, Moment
from vmessd.core.words import Runstate
from vmessd.qemu import block_devices, command_line
from vmessd.qemu.guest_agent import Agent
from vmessd.qemu.monitor import CommandRefused, Job, Monitor, MonitorLost
from vmessd.qemu.session import Session
from vmessd.storage import vmdir
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import restart
from vmessd.vm.full_disk import EnospcRecovery
from vmessd.vm.launcher import LAST_LINES, Launched, restart_policy, shorten_logs
from vmessd.vm.start import Cancellation
from vmessd.vm.stop import READ_TIME, StepTaken, Stop
from vmessd.vm.whereabouts import Displacement

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_ALONE: contextvars.ContextVar[asyncio.Event | None] = contextvars.ContextVar("alone", default=None)
"""Of the task that is alone with a QEMU, and its children: see :meth:`QemuRun.alone`."""

ASLEEP = Runstate.suspended
"""The runstate of a guest in S3; only `system_wakeup` ends it."""
WAKE_TIME = 1.5
"""Seconds after which the power button is pressed again for a guest that was woken: Linux takes about 1 s."""
STANDING_STILL = (Runstate.paused, Runstate.io_error, Runstate.watchdog)  # `cont` ends them


_GUEST_EVENTS = {
    "RESUME": (Event.runs, Runstate.running),
    "WAKEUP": (Event.runs, Runstate.running),
    "STOP": (Event.halts, Runstate.paused),
    "SUSPEND": (Event.halts, ASLEEP),
}
MEMORY = "memory"
"""The name of a descriptor that QEMU is given, of the memory of a snapshot."""
NOTE_TIME = 2.0
"""Seconds that writing the request for a stop into the run record may take."""
BURY_TIME = 3.0
"""Seconds that clients wait for the exit record to be on disk."""


@dataclass
class QemuRun:
    """A QEMU process, its QMP session, and what is known from both."""

    vm: str
    launched: Launched
    session: Session
    runstate: str | None = None
    """The last runstate that QEMU reported."""
    shutdown: str | None = None
    """The reason of the first SHUTDOWN event."""
    ran: bool = False
    """The guest has run."""
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """What has failed beside QEMU, in words, by the file of the setting that asks for it."""
    prepared: bool = False
    """:attr:`Machine.prepare` was called."""
    missed: bool = False
    """The log says that QEMU does not answer."""
    doubted: bool = False
    """The log says that QEMU reports impossible values."""
    loads: bool = False
    """It loads the memory of a snapshot, from which its guest continues."""
    halted: float = 0.0
    """When the guest was paused last, on the monotonic clock."""
    keeps: bool = False
    """Its memory is being kept for a snapshot; then, the guest continues by itself."""
    arrives: bool = False
    """It waits for a guest from another host, and is not to run it by itself."""
    stays: bool = False
    """Its guest did not leave in the end, which QEMU calls `postmigrate` if it was paused before."""
    moved_to: str = ""
    """The host that its guest is on, when this QEMU is ended for that."""
    stop: Stop | None = None
    agent: Agent | None = None
    """The guest agent, if QEMU has a port for it."""
    _agent_was_asked: bool = False
    """The agent was asked to power the guest down; then it is the turn of the power button."""
    start_cancelled: Cancellation | None = None
    """The stop that was requested before QEMU was there."""
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Set when the process has ended and its resources are released."""
    error: VmessError | None = None
    """Why the start failed, if that is more precise than the last lines of qemu.log."""
    _heard: bool = False
    """A QMP event has reported whether the guest runs."""
    _tasks: dict[str, asyncio.Task[None]] = dataclasses.field(default_factory=dict)
    _free: asyncio.Event | None = None
    """Set at the end of :meth:`alone`, during which others wait; None at other times."""

    def __post_init__(self) -> None:
        self.enospc = EnospcRecovery(self.vm, self.session)
        self.session.complain = self._doubt

    @property
    def pid(self) -> int:
        """The PID of the process."""
        return self.launched.process.pid

    @property
    def waits(self) -> bool:
        """It waits for the memory of a snapshot, or loads it."""
        if self.arrives or self.runstate != Runstate.inmigrate:
            return False
        return command_line.waits(self.launched.record.argv)

    @property
    def is_out_of_reach(self) -> bool:
        """Its directory is gone and there is no QMP connection, so it cannot be asked to power down."""
        is_gone = self.launched.whereabouts.location.displacement is Displacement.removed
        return is_gone and not self.session.is_connected

    def mind_directory(self, files: Lane) -> None:
        """Check in the background that the directory of QEMU is in its place; follow it while it is not."""
        self.start_task("whereabouts", self._mind_directory(files))

    async def _mind_directory(self, files: Lane) -> None:
        whereabouts, logged = self.launched.whereabouts, None
        with contextlib.suppress(VmessError):  # a file system that hangs is reported elsewhere
            if whereabouts.location.displacement is None and await files.aside(whereabouts.is_at_home):
                return
        while True:
            with contextlib.suppress(VmessError):
                await files.aside(whereabouts.look)
            location = whereabouts.location
            if location.displacement is None:
                return
            if location.key != logged:
                logged = location.key
                log.warning("%s: %s", self.vm, location.problem)
            await asyncio.sleep(self.session.timing.look)

    def hear(self, name: str, data: Mapping[str, Any]) -> tuple[Event, str] | None:
        """Handle a QMP event; return the lifecycle event and the runstate that it implies, if any."""
        self.enospc.event(name, data)
        if name == "SHUTDOWN":
            # The first reason counts: with -no-shutdown, the guest is off long before QEMU quits.
            self.shutdown = self.shutdown or str(data.get("reason"))
            self.start_task("end", self._see_it_end())
        elif name in _GUEST_EVENTS:
            self._heard = True
            self.loads, self.arrives = (one and name != "RESUME" for one in (self.loads, self.arrives))
            if name == "STOP":
                self.halted = asyncio.get_running_loop().time()
                self.session.probe()  # for the runstate: paused, io-error, watchdog ...
            return _GUEST_EVENTS[name]
        return None

    def take_note(self, event: Event, state: State) -> None:
        """Note that the guest has run; log when QEMU stops answering, and when it answers again."""
        self.ran = self.ran or event in (Event.runs, Event.halts)
        if event is Event.silent and state is State.unresponsive and not self.missed:
            self.missed = True
            log.warning("%s: QEMU does not answer", self.vm)
        elif event in (Event.born, Event.runs, Event.halts) and self.missed:
            self.missed = False
            log.warning("%s: QEMU answers again", self.vm)

    def _doubt(self, words: str) -> None:
        """Log once per run that QEMU reports impossible values."""
        if not self.doubted:
            self.doubted = True
            log.warning("%s: QEMU reports impossible values, which are ignored: %s", self.vm, words)

    async def _see_it_end(self) -> None:
        """Kill a QEMU that hangs while it exits. QEMU 7.2 does when a QMP command arrives then (measured).

        No data is lost: QEMU has closed its images by then, and the page cache has what was written to them.
        A QEMU with -no-shutdown still answers and is left alone.
        """
        await asyncio.sleep(self.session.timing.ending)
        try:
            await self.execute("query-status", {})
        except TimedOut:
            log.warning("%s: QEMU hangs after its guest has powered off, and is killed", self.vm)
            self.launched.process.signal(signal.SIGKILL)
        except CommandRefused:
            return

    async def let_it_run(self, runs: Callable[[], None]) -> None:
        """Let the guest run its first instruction, then call `runs`; kill a QEMU that refuses `cont`."""
        try:
            await self.session.execute("cont")
        except CommandRefused as refusal:
            self.error = StartFailed(f"QEMU did not let {self.vm} run: {refusal}")
            self.launched.process.signal(signal.SIGKILL)
        else:
            if not self._heard:  # otherwise the guest may have stopped before the reply arrived
                runs()

    async def go_on(self, opened: Awaitable[int]) -> None:
        """Have the guest continue from a memory that is `opened`; kill a QEMU that refuses.

        `cont` comes first, so that the guest runs once all is loaded, even without a daemon. If it cannot be
        loaded, QEMU ends.
        """
        self.loads = True
        try:
            descriptor = await opened
            try:
                await self.session.execute("getfd", {"fdname": MEMORY}, descriptor)
                await self.session.execute("cont")
                await self.session.execute("migrate-incoming", {"uri": f"fd:{MEMORY}"})
            finally:
                os.close(descriptor)
        except CommandRefused as refusal:
            if not refusal.is_loading:  # an earlier daemon has begun it
                self._give_up(f"QEMU refused the memory of {self.vm}: {refusal}")
        except VmessError as error:
            self._give_up(f"{self.vm} has no memory to continue from: {error}")

    def _give_up(self, why: str) -> None:
        """Kill a QEMU whose guest cannot continue from its memory."""
        again = f"vmess {self.vm} snapshot revert {self.launched.record.memory} --no-memory"
        self.error = StartFailed(why, hint=f"to boot from the disks: {again}")
        self.launched.process.signal(signal.SIGKILL)

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncGenerator[None, None]:
        """Have the commands of others wait during a `with` block, as long as they are patient."""
        self._free = free = asyncio.Event()
        token = _ALONE.set(free)
        try:
            yield
        finally:
            _ALONE.reset(token)
            self._free = None
            free.set()

    async def _settled(self) -> None:
        """Wait for the connection to QEMU, and for who is alone with it."""
        while self._free is not None and _ALONE.get() is not self._free:
            await self._free.wait()
        await self.session.settled()

    def meaning(self, event: Event, runstate: str | None) -> Event:
        """Note the runstate, and return what an event means for a guest that continues from a memory.

        QEMU does nothing else while it loads that, a second for each few GiB: its silence means nothing new.
        """
        if runstate is not None:
            self.learn(runstate)
        if (event is Event.halts and self.waits) or (event is Event.silent and self.loads):
            return Event.born
        return event

    def learn(self, runstate: str) -> None:
        """Note the runstate; check for free space if the guest is paused by a full disk."""
        if runstate == Runstate.internal_error != self.runstate:
            log.warning("%s: QEMU stopped the guest (%s); see qemu.log", self.vm, runstate)
        self.runstate = runstate
        if self.enospc.hear(runstate) and self.stop is None:
            self.start_task("space", self.enospc.look())

    async def execute(
        self,
        command: str,
        arguments: dict[str, object],
        patience: float = 5.0,
        *,
        descriptor: int | None = None,
    ) -> Any:
        """Run a QMP command and return its result; `descriptor` is passed along (SCM_RIGHTS).

        Waits for the connection to a QEMU that was spawned or found just now.

        Raises:
            CommandRefused: QEMU answered with an error.
            TimedOut: QEMU does not answer within `patience` seconds.
        """
        try:
            async with asyncio.timeout(patience):
                await self._settled()
                return await self.session.execute(command, arguments, descriptor)
        except (MonitorLost, TimeoutError):
            raise refusals.silent(self.vm, self.pid) from None

    async def node_of(self, slot: str, patience: float = 5.0) -> str:
        """Return the topmost node of a drive, which is another one after each snapshot; raises as `execute`."""
        found = await self._asked(lambda monitor: monitor.images(), patience)
        nodes = (image.node for image in found if block_devices.slot_of(image.node) == slot)
        return next(nodes, slot)

    async def nodes(self, patience: float = 5.0) -> list[str]:
        """Return the names of the nodes of all images and their files; raises as `execute`."""
        return await self._asked(lambda monitor: monitor.nodes(), patience)

    async def jobs(self, patience: float = 5.0) -> list[Job]:
        """Return the jobs of QEMU; none from one that knows no jobs; raises TimedOut."""
        try:
            return await self._asked(lambda monitor: monitor.jobs(), patience)
        except CommandRefused:
            return []

    async def _asked(self, ask: Callable[[Monitor], Awaitable[_T]], patience: float) -> _T:
        """Ask QEMU, when it is connected; raises as `execute`."""
        try:
            async with asyncio.timeout(patience):
                await self._settled()
                return await ask(self.session.monitor())
        except (MonitorLost, TimeoutError):
            raise refusals.silent(self.vm, self.pid) from None

    async def transferred(self, patience: float | None = 1.0) -> dict[str, tuple[int, int]]:
        """Return the bytes read and written by drive; empty if QEMU does not answer in `patience` seconds.

        None waits as long as there is a connection.
        """
        with contextlib.suppress(MonitorLost, CommandRefused, TimeoutError):
            return await asyncio.wait_for(self.session.monitor().transferred(), patience)
        return {}

    def bury(self, directory: VMDirectory, known: ExitRecord) -> ExitRecord:
        """Write and return the exit record, and remove the files that the process left; blocks."""
        said = directory.log_tail(vmdir.QEMU_LOG, self.launched.log_start)[-LAST_LINES:]
        record = restart.judge(
            self._with_words(known, said),
            Policy.no if self._is_final else restart_policy(directory),
            lasted=known.when.uptime - self.launched.record.since.uptime,
            ran=self.ran,
        )
        with failures_logged(directory.vm):
            directory.write_exit_record(record)
        with failures_logged(directory.vm):
            directory.sweep()
        shorten_logs(directory)
        return record

    @property
    def _is_final(self) -> bool:
        """Its end is not followed by a restart: it was stopped, or a memory could not be loaded."""
        record = self.launched.record
        in_vain = command_line.waits(record.argv) and not self.ran
        return self.stop is not None or record.stopping or in_vain

    async def recorded(
        self,
        known: ExitRecord,
        directory: VMDirectory,
        files: Lane,
        late: Callable[[ExitRecord], None],
    ) -> ExitRecord:
        """Write the exit record, and return it.

        If the files do not answer, return the record `known`, and call `late` when the complete one is written.
        """

        def at_last(record: ExitRecord) -> None:
            log.info("%s: the exit record is on disk now", self.vm)
            late(record)

        try:
            return await files.see_to(functools.partial(self.bury, directory, known), BURY_TIME, late=at_last)
        except VmessError as error:
            log.warning("%s: the exit record is not on disk yet: %s", self.vm, error.message)
            return known

    def exit_record(self) -> ExitRecord:
        """Reap the process, which has ended; return what is known about its end without reading a file."""
        status = self.launched.process.reap()
        ending = Ending(self.ran, self.shutdown, status, self.stop.rung if self.stop else None)
        reason, text = classify(ending)
        if reason is Reason.signalled and status == -signal.SIGKILL:
            text += self.launched.victims.killed()
        elif reason is Reason.unknown and status is None:
            text += self.launched.victims.vanished()
        elif reason is Reason.forced and self.moved_to:
            reason, text = Reason.moved, f"moved to {printable(self.moved_to)}"
        return ExitRecord(
            pid=self.pid,
            ticks=self.launched.process.ticks,
            reason=reason,
            text=text,
            status=status,
            asked_by=self.stop.uid if self.stop else None,
            log=[],
            when=Moment.now(),
            tries=self.launched.record.tries,
            serial=self.launched.record.serial,
            serials=self.launched.record.serials,
        )

    def _with_words(self, record: ExitRecord, said: list[str]) -> ExitRecord:
        """Return the record with the last lines of qemu.log, which may say why QEMU ended."""
        text = record.text
        if record.reason in (Reason.refused, Reason.failed):
            words = "; ".join(_reason_in(line) for line in said)
            text = f"{text}: {words or f'exit status {record.status}, without a message'}"[:TEXT_LIMIT]
        return dataclasses.replace(record, text=text, log=said)

    def begin_stop(self, stop: Stop) -> bool:
        """Replace the stop in progress by this one; tell whether there was none."""
        first = self.stop is None
        if self.stop is not None:
            self.stop.cancel()
        self.stop = stop
        return first

    def note_stop(self, directory: VMDirectory, files: Lane) -> None:
        """Write into the run record that a stop was requested, in the background."""

        def note() -> None:
            self.launched.record = dataclasses.replace(self.launched.record, stopping=True)
            with failures_logged(self.vm):
                directory.write_run_record(self.launched.record)

        files.see_to(note, NOTE_TIME)

    def climb(self, due: Callable[[], None]) -> StepTaken | None:
        """Take the next step of the stop and return it; None if there is none left."""
        if self.stop is None or (step := self.stop.step(due)) is None:
            return None
        first = step.at == 0 or step.rung is not self.stop.rung
        self.stop.rung = step.rung
        if step.rung is Rung.powerdown:
            self.start_task("button", self._press())
        elif step.rung is Rung.quit:
            self.start_task("quit", self._execute("quit"))
        else:
            with failures_logged(self.vm):
                self.launched.process.signal(signal.SIGTERM if step.rung is Rung.term else signal.SIGKILL)
        return StepTaken(step.rung, first)

    async def _press(self) -> None:
        """Press the power button; before that, resume a paused guest and wake one that sleeps.

        The first time, its agent is asked in place of the button, if there is one.
        """
        if self.runstate in STANDING_STILL:
            await self._execute("cont")
        asleep = self.runstate == ASLEEP
        if self.agent is not None and not asleep and not self._agent_was_asked:
            self._agent_was_asked = True
            if await self.agent.shut_down():
                return
        if asleep:
            await self._execute("system_wakeup")
        await self._execute("system_powerdown")
        if asleep:  # it may have missed the button while it woke
            await asyncio.sleep(WAKE_TIME)
            if self.shutdown is None:
                await self._execute("system_powerdown")

    async def _execute(self, command: str) -> None:
        with contextlib.suppress(CommandRefused):
            await self.session.execute(command)

    def start_task(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start background work, unless a task of this name is still running."""
        if name in self._tasks and not self._tasks[name].done():
            work.close()
            return
        task = asyncio.get_running_loop().create_task(_unless_lost(self.vm, work))
        # Cancelled before its first step, the task never awaited the work.
        task.add_done_callback(lambda _task: work.close())
        self._tasks[name] = task

    def cancel_tasks(self) -> None:
        """Cancel the background tasks and the timer of the stop."""
        for task in self._tasks.values():
            task.cancel()
        if self.stop is not None:
            self.stop.cancel()


@contextlib.contextmanager
def failures_logged(vm: str) -> Iterator[None]:
    """Log a VmessError, such as a full disk, and continue after the block."""
    try:
        yield
    except VmessError as error:
        log.warning("%s: %s", vm, error.message)


async def policy_of(directory: VMDirectory, files: Lane) -> Policy:
    """Return the restart policy; `always` if the files do not answer, because a restart was tried."""
    try:
        return await files.aside(functools.partial(restart_policy, directory), READ_TIME)
    except VmessError:
        return Policy.always


def last_progress(run: QemuRun | None, exit_record: ExitRecord | None) -> StopProgress:
    """Return the final progress of a stop."""
    text = exit_record.text if run is not None and exit_record is not None else None
    if run is None or run.stop is None or exit_record is None:
        return StopProgress(True, run.pid if run else None, None, 0.0, 0.0, False, text, None)
    forced = run.stop.gentle and exit_record.reason == Reason.forced
    return dataclasses.replace(run.stop.progress(run.pid), done=True, forced=forced, text=text)


async def _unless_lost(vm: str, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except MonitorLost:
        pass
    except VmessError as error:
        log.warning("%s: %s", vm, error.message)
    except Exception:
        log.exception("%s: unexpected failure", vm)


def _reason_in(line: str) -> str:
    """Return a message of QEMU without the program name and without the JSON of an option."""
    name, colon, rest = line.partition(": ")
    if not colon or not name.startswith("qemu-system-"):
        return line
    option, brace, json_and_rest = rest.partition(" {")
    if brace and option.startswith("-"):
        with contextlib.suppress(ValueError):
            _, end = json.JSONDecoder().raw_decode("{" + json_and_rest)
            return json_and_rest[end - 1 :].removeprefix(": ")
    return rest
