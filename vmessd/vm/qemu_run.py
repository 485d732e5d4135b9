"""One life of a QEMU, from spawn or adoption to its end, and the stop that may be under way."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from vmessd.core import refusals
from vmessd.core.errors import StartFailed, TimedOut, VmessError
from vmessd.core.lifecycle import Ending, Event, Policy, Reason, Rung, State, classify
from vmessd.core.models.progress import StopProgress
from vmessd.core.records import TEXT_LIMIT, ExitRecord, Moment
from vmessd.core.words import Runstate
from vmessd.qemu.monitor import CommandRefused, MonitorLost
from vmessd.qemu.session import Session
from vmessd.storage import vmdir
from vmessd.storage.blocking import Lane
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import restart, whereabouts
from vmessd.vm.full_disk import EnospcRecovery
from vmessd.vm.launcher import LAST_LINES, Launched, restart_policy, shorten_logs
from vmessd.vm.start import Cancellation
from vmessd.vm.stop import READ_TIME, StepTaken, Stop

log = logging.getLogger(__name__)

ASLEEP = Runstate.suspended
"""The runstate of a guest in S3; only `system_wakeup` ends it."""
WAKE_TIME = 1.5
"""Seconds after which the button is pressed again for a guest that was woken: Linux takes about one."""
STANDING_STILL = (Runstate.paused, Runstate.io_error, Runstate.watchdog)  # `cont` ends them


_GUEST_EVENTS = {
    "RESUME": (Event.runs, Runstate.running),
    "WAKEUP": (Event.runs, Runstate.running),
    "STOP": (Event.halts, Runstate.paused),
    "SUSPEND": (Event.halts, ASLEEP),
}
NOTE_TIME = 2.0
"""Seconds after which a note that a stop was asked for counts as hanging."""
BURY_TIME = 3.0
"""Seconds that whoever waits for an end waits for its record to be on disk."""


@dataclasses.dataclass
class QemuRun:
    """A QEMU process, the conversation with it, and what was learned from both."""

    vm: str
    launched: Launched
    session: Session
    runstate: str | None = None
    """What QEMU last said of the guest."""
    shutdown: str | None = None
    """Reason of the SHUTDOWN event."""
    ran: bool = False
    """The guest has run."""
    prepared: bool = False
    """What a guest is to find was seen to."""
    missed: bool = False
    """It was said that QEMU does not answer."""
    doubted: bool = False
    """It was said that QEMU says what cannot be true."""
    stop: Stop | None = None
    start_cancelled: Cancellation | None = None
    """What was to put an end to its start."""
    over: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    """Set when the process has ended and everything of it was cleared away."""
    error: VmessError | None = None
    """Why a start came to nothing, where that is known better than by QEMU's last words."""
    _heard: bool = False
    """An event of QEMU's has told how the guest is."""
    _tasks: dict[str, asyncio.Task[None]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.enospc = EnospcRecovery(self.vm, self.session)
        self.session.complain = self._doubt

    @property
    def pid(self) -> int:
        """The process's pid."""
        return self.launched.process.pid

    @property
    def is_out_of_reach(self) -> bool:
        """Its sockets are nowhere to be found, so that nobody can ask it to power down."""
        launched = self.launched
        return launched.problem is not None and launched.home is None and not self.session.is_connected

    def mind_directory(self, directory: VMDirectory, files: Lane) -> None:
        """Keep in mind where its directory is, which should be this one; nobody waits for that."""
        self.start_task("whereabouts", self._mind_directory(directory, files))

    async def _mind_directory(self, directory: VMDirectory, files: Lane) -> None:
        launched, said = self.launched, None
        find = functools.partial(whereabouts.look, directory, self.pid)
        is_at_home = functools.partial(whereabouts.is_at_home, directory, self.pid)
        with contextlib.suppress(VmessError):  # it does not answer: that is told elsewhere
            if launched.problem is None and await files.aside(is_at_home):
                return
        while True:
            with contextlib.suppress(VmessError):
                launched.home, launched.problem = await files.aside(find)
            if launched.problem is None:
                return
            if launched.problem != said:
                said = launched.problem
                log.warning("%s: %s", self.vm, said)
            await asyncio.sleep(self.session.timing.look)

    def hear(self, name: str, data: Mapping[str, Any]) -> tuple[Event, str] | None:
        """Take in an event of QEMU's; return what it means for the VM's life, if anything, and the runstate."""
        self.enospc.event(name, data)
        if name == "SHUTDOWN":
            # The first counts: with -no-shutdown the guest is off long before QEMU is told to quit.
            self.shutdown = self.shutdown or str(data.get("reason"))
            self.start_task("end", self._see_it_end())
        elif name in _GUEST_EVENTS:
            self._heard = True
            if name == "STOP":
                self.session.probe()  # which kind of standing still it is
            return _GUEST_EVENTS[name]
        return None

    def take_note(self, event: Event, state: State) -> None:
        """Note that the guest has run; log once that QEMU does not answer, and that it does again."""
        self.ran = self.ran or event in (Event.runs, Event.halts)
        if event is Event.silent and state is State.unresponsive and not self.missed:
            self.missed = True
            log.warning("%s: QEMU does not answer", self.vm)
        elif event in (Event.born, Event.runs, Event.halts) and self.missed:
            self.missed = False
            log.warning("%s: QEMU answers again", self.vm)

    def _doubt(self, words: str) -> None:
        """Log once in a life that QEMU says what cannot be true."""
        if not self.doubted:
            self.doubted = True
            log.warning("%s: QEMU says what cannot be true and counts as not known: %s", self.vm, words)

    async def _see_it_end(self) -> None:
        """Kill a QEMU that hangs in its own end, as 7.2 does when a QMP command comes just then (measured).

        Nothing is lost by it: QEMU has closed its images by then, and the host keeps what was written to them.
        One with -no-shutdown answers.
        """
        await asyncio.sleep(self.session.timing.ending)
        try:
            await self.execute("query-status", {})
        except TimedOut:
            log.warning("%s: QEMU hangs although its guest is off, and is killed", self.vm)
            self.launched.process.signal(signal.SIGKILL)
        except CommandRefused:
            return

    async def let_it_run(self, runs: Callable[[], None]) -> None:
        """Let the guest run its first instruction, and call `runs` when it does; end a QEMU that will not."""
        try:
            await self.session.execute("cont")
        except CommandRefused as refusal:
            self.error = StartFailed(f"QEMU did not let {self.vm} run: {refusal}")
            self.launched.process.signal(signal.SIGKILL)
        else:
            if not self._heard:  # else the guest may have come to a stop before this reply did
                runs()

    def learn(self, runstate: str) -> None:
        """Note how QEMU says the guest is; one that waits for space goes on when there is some."""
        if runstate == Runstate.internal_error != self.runstate:
            log.warning("%s: QEMU gave the guest up (%s); qemu.log says more", self.vm, runstate)
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
        """Run a QMP command and return what it returns; `descriptor` goes with it.

        A QEMU that was spawned, or found, just now is waited for.

        Raises:
            CommandRefused: QEMU's own words.
            TimedOut: it does not answer within `patience` seconds.
        """
        try:
            async with asyncio.timeout(patience):
                await self.session.settled()
                return await self.session.execute(command, arguments, descriptor)
        except (MonitorLost, TimeoutError):
            raise refusals.silent(self.vm, self.pid) from None

    async def transferred(self, patience: float | None = 1.0) -> dict[str, tuple[int, int]]:
        """Return bytes read and written for each drive; nothing where QEMU does not answer in time.

        With None for a patience the answer is waited for as long as there is a connection.
        """
        with contextlib.suppress(MonitorLost, CommandRefused, TimeoutError):
            return await asyncio.wait_for(self.session.monitor().transferred(), patience)
        return {}

    def bury(self, directory: VMDirectory, known: ExitRecord) -> ExitRecord:
        """Note how the process ended, remove what it left, and return the record; blocks."""
        said = directory.log_tail(vmdir.QEMU_LOG, self.launched.log_start)[-LAST_LINES:]
        record = restart.judge(
            self._with_words(known, said),
            Policy.no if self.stop is not None or self.launched.record.stopping else restart_policy(directory),
            lasted=known.when.uptime - self.launched.record.since.uptime,
            ran=self.ran,
        )
        with failures_logged(directory.vm):
            directory.write_exit_record(record)
        with failures_logged(directory.vm):
            directory.sweep()
        shorten_logs(directory)
        return record

    async def recorded(
        self,
        known: ExitRecord,
        directory: VMDirectory,
        files: Lane,
        late: Callable[[ExitRecord], None],
    ) -> ExitRecord:
        """Have the end recorded, and return the record.

        Where the files do not answer, that is what was `known` without them, and `late` is called when they do.
        """

        def at_last(record: ExitRecord) -> None:
            log.info("%s: how it ended is on disk now", self.vm)
            late(record)

        try:
            return await files.see_to(functools.partial(self.bury, directory, known), BURY_TIME, late=at_last)
        except VmessError as error:
            log.warning("%s: how it ended is not on disk yet: %s", self.vm, error.message)
            return known

    def exit_record(self) -> ExitRecord:
        """Reap the process, which has ended, and return what is known of its end without a look at a file."""
        status = self.launched.process.reap()
        ending = Ending(self.ran, self.shutdown, status, self.stop.rung if self.stop else None)
        reason, text = classify(ending)
        if reason is Reason.signalled and status == -signal.SIGKILL:
            text += self.launched.victims.killed()
        elif reason is Reason.unknown and status is None:
            text += self.launched.victims.vanished()
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
        )

    def _with_words(self, record: ExitRecord, said: list[str]) -> ExitRecord:
        """Return the record with what QEMU said at last, which may be the reason."""
        text = record.text
        if record.reason in (Reason.refused, Reason.failed):
            words = "; ".join(_reason_in(line) for line in said)
            text = f"{text}: {words or f'exit status {record.status}, and not a word'}"[:TEXT_LIMIT]
        return dataclasses.replace(record, text=text, log=said)

    def begin_stop(self, stop: Stop) -> bool:
        """Let this stop take the place of the one under way; tell whether it is the first."""
        first = self.stop is None
        if self.stop is not None:
            self.stop.cancel()
        self.stop = stop
        return first

    def note_stop(self, directory: VMDirectory, files: Lane) -> None:
        """Have it noted that a stop was asked for; nobody waits for that."""

        def note() -> None:
            self.launched.record = dataclasses.replace(self.launched.record, stopping=True)
            with failures_logged(self.vm):
                directory.write_run_record(self.launched.record)

        files.see_to(note, NOTE_TIME)

    def climb(self, due: Callable[[], None]) -> StepTaken | None:
        """Take the step of the stop that is due and return it; None where there is none left."""
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
        """Press the power button of a guest that can notice: one paused is let run first, one asleep woken."""
        if self.runstate in STANDING_STILL:
            await self._execute("cont")
        asleep = self.runstate == ASLEEP
        if asleep:
            await self._execute("system_wakeup")
        await self._execute("system_powerdown")
        if asleep:  # it may have come to itself only now, and missed that
            await asyncio.sleep(WAKE_TIME)
            if self.shutdown is None:
                await self._execute("system_powerdown")

    async def _execute(self, command: str) -> None:
        with contextlib.suppress(CommandRefused):
            await self.session.execute(command)

    def start_task(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something beside the inbox; not while the same is still being done."""
        if name in self._tasks and not self._tasks[name].done():
            work.close()
            return
        task = asyncio.get_running_loop().create_task(_unless_lost(self.vm, work))
        # Cancelled before its first step, the task never awaited the work.
        task.add_done_callback(lambda _task: work.close())
        self._tasks[name] = task

    def cancel_tasks(self) -> None:
        """Leave everything undone that waits for QEMU."""
        for task in self._tasks.values():
            task.cancel()
        if self.stop is not None:
            self.stop.cancel()


@contextlib.contextmanager
def failures_logged(vm: str) -> Iterator[None]:
    """Log what does not work, such as writing to a full disk, and go on."""
    try:
        yield
    except VmessError as error:
        log.warning("%s: %s", vm, error.message)


async def policy_of(directory: VMDirectory, files: Lane) -> Policy:
    """Return the restart policy; of a VM whose files do not answer, the one that had it tried."""
    try:
        return await files.aside(functools.partial(restart_policy, directory), READ_TIME)
    except VmessError:
        return Policy.always


def last_progress(run: QemuRun | None, exit_record: ExitRecord | None) -> StopProgress:
    """Return the last news of a stop."""
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
    """Return what a message of QEMU says, without its name and without the JSON it is about."""
    name, colon, rest = line.partition(": ")
    if not colon or not name.startswith("qemu-system-"):
        return line
    option, brace, json_and_rest = rest.partition(" {")
    if brace and option.startswith("-"):
        with contextlib.suppress(ValueError):
            _, end = json.JSONDecoder().raw_decode("{" + json_and_rest)
            return json_and_rest[end - 1 :].removeprefix(": ")
    return rest
