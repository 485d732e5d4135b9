"""One VM: one task and one inbox. It carries out the actions of the transition table in `lifecycle`.

Everything that happens to the VM (a request, a reply of QEMU, a timer, the end of the process) is a
message in the inbox. Messages are handled in order; nothing else changes the state.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from vmessd.core import moves, refusals
from vmessd.core.errors import StartFailed, VmessError
from vmessd.core.lifecycle import OFF, Action, Event, Policy, State, by_force, ladder
from vmessd.core.models.progress import StartProgress, StopProgress
from vmessd.core.models.vms import Exit, VMStatus
from vmessd.core.moves import Stage
from vmessd.core.records import ExitRecord, RunRecord
from vmessd.core.settings import BOOT_ONCE
from vmessd.core.words import Runstate
from vmessd.network import displays
from vmessd.qemu import monitor
from vmessd.qemu.guest_agent import Address
from vmessd.qemu.session import Timing
from vmessd.storage import blocking, memory
from vmessd.storage.images import Disk
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm import boot_once, launcher, pending, restart
from vmessd.vm.failure_recovery import FailureRecovery
from vmessd.vm.host import Host
from vmessd.vm.mailbox import EventMessage, Job, dismiss, tell
from vmessd.vm.qemu_run import QemuRun, failures_logged, last_progress, policy_of
from vmessd.vm.start import Cancellation, StartAttempt
from vmessd.vm.stop import READ_TIME, Stop, grace_of

log = logging.getLogger(__name__)

_T = TypeVar("_T")

DEAF_RUNSTATES = (
    Runstate.shutdown,
    Runstate.guest_panicked,
    Runstate.internal_error,
)  # the guest is gone and cannot react to the power button
GIVEN_UP = "QEMU has given its guest up (internal-error), so the power button is not pressed"
NOTE_TIME = 2.0
"""Seconds to wait until a change of the exit record is written; it then continues in the background."""
END_TIME = 5.0
"""Seconds that the daemon, when it ends, waits for a start in progress."""


class Machine(FailureRecovery):
    """A VM as the daemon knows it; `run` is its task."""

    def __init__(self, directory: VMDirectory, host: Host, timing: Timing = Timing()) -> None:  # noqa: B008
        super().__init__(directory, host, timing)
        self.prepare: list[Callable[[], Coroutine[Any, Any, None]]] = []
        """Called before a guest runs its first instruction, and when the QEMU of an earlier daemon answers."""
        self.over: Callable[[], None] = lambda: None
        """Called when a QEMU has ended."""
        self._tries = 0
        self._memory = ""
        """The snapshot from whose memory the start in progress lets the guest continue."""
        self._lost_displays = 0
        """Starts in a row that found their VNC port taken."""
        self._actions: dict[Action, Callable[[EventMessage], Coroutine[Any, Any, None]]] = {
            Action.spawn: self._spawn,
            Action.take_on: self._take_on,
            Action.delay: self._delay,
            Action.connect: self._converse,
            Action.reconnect: self._converse,
            Action.cont: self._cont,
            Action.started: self._started,
            Action.hangs: self._hangs,
            Action.hold: self._hold,
            Action.look: self._look,
            Action.ladder: self._begin_ladder,
            Action.kill: self._begin_force,
            Action.cut_off: self._cut_off,
            Action.climb: self._climb,
            Action.join: self._join,
            Action.bury: self._bury,
            Action.rest: self._rest,
            Action.call_off: self._call_off,
            Action.mend: self._mend,
            Action.say_running: self._say_running,
            Action.say_stopping: self._say_stopping,
            Action.say_stopped: self._say_stopped,
        }

    # -- What others call --

    async def run(self) -> None:
        """Look for a QEMU of the VM, then handle messages in order until :meth:`close`."""
        try:
            await self._find_qemu()
            self.found.set()
            with failures_logged(self.vm):
                await blocking.call(launcher.sweep_links, self.directory, self._host.network)
        except Exception as error:  # noqa: BLE001 -- as below
            self._give_up_on(EventMessage(Event.found), error)
            self.found.set()
        while (message := await self._inbox.get()) is not None:
            try:
                if isinstance(message, Job):
                    await self._do(message)
                else:
                    await self._react(message)
            except Exception as error:  # noqa: BLE001
                # The only broad catch: a failure in one VM must not affect the others.
                self._give_up_on(message, error)
        await self._let_go()

    def close(self) -> None:
        """End the task. The VM keeps running."""
        self._inbox.close()

    async def start(self, uid: int | None, from_memory: str = "") -> AsyncIterator[StartProgress]:
        """Start the VM; yield the command line, then the running process.

        With `from_memory`, the guest continues from the memory of this snapshot.

        Raises:
            AlreadyRunning, StartFailed, Locked, BadFile, NoSuchVM, TimedOut: this call did not start it.
        """
        async for progress in self._inbox.ask(Event.start, uid, memory=from_memory):
            assert isinstance(progress, StartProgress)  # noqa: S101 -- starters get nothing else
            yield progress

    async def stop(
        self, uid: int | None, *, force: bool, within: float | None = None, grace: float | None = None
    ) -> AsyncIterator[StopProgress]:
        """Stop the VM; yield each rung of the ladder, then how it ended. It continues if the caller leaves.

        `within` limits the grace period, in seconds, and `grace` replaces it, also that of a stop in progress.

        Raises:
            NotRunning: the VM is not running.
        """
        async for progress in self._inbox.ask(Event.force if force else Event.stop, uid, within, grace):
            assert isinstance(progress, StopProgress)  # noqa: S101 -- stoppers get nothing else
            yield progress

    async def change(
        self, work: Callable[[], _T], *, stopped: bool = False, patience: float = blocking.PATIENCE
    ) -> _T:
        """Do blocking work on the files of the VM in a thread, in order with the messages in the inbox.

        Raises:
            AlreadyRunning: the work requires that the VM is `stopped`, and it is not.
            TimedOut: the work takes longer than `patience` seconds. It continues; the next work waits for it.
            VmessError: raised by the work.
        """
        return await self._inbox.change(work, stopped=stopped, patience=patience)

    def status(self) -> VMStatus:
        """Return the present status of the VM."""
        run, held = self._run, self._in_the_way()
        problem = run.launched.whereabouts.location.problem if run else (held.message if held else None)
        return VMStatus(
            name=self.vm,
            state=self.state,
            pid=run.pid if run else None,
            uptime=run.launched.record.since.age() if run else None,
            runstate=run.runstate if run else None,
            last_exit=Exit.of(self.last_exit) if self.last_exit else None,
            restart=self._pending.report() if self._pending else None,
            problem=problem or moves.told(self.vm, self.directory.move),
            left=self.left(),
        )

    @property
    def home(self) -> VMDirectory:
        """The directory of its files, as it was seen last: it may be moved while the VM runs."""
        run = self._run  # read once: this may run in a thread
        return run.launched.whereabouts.directory if run is not None else self.directory

    def find_home(self) -> VMDirectory:
        """Look where the directory of its files is, and return it; blocks."""
        run = self._run
        found = run.launched.whereabouts.find() if run is not None else None
        return found or self.directory

    async def note_drive(self, slot: str, text: str) -> None:
        """Note that a drive of the running QEMU was changed, with what identifies it now.

        Raises:
            NotRunning: it has ended meanwhile.
            Failed: the record cannot be written.
        """
        await self._note({slot: text}, None)

    async def note_images(self, disks: Sequence[Disk]) -> None:
        """Note that drives of the running QEMU have other images now; raises as :meth:`note_drive`."""
        there = set(self.live().launched.record.hardware or {})
        texts = {disk.slot: pending.drive_text(disk) for disk in disks if disk.slot in there}
        await self._note(texts, pending.images([disk for disk in disks if disk.slot in there]))

    async def _note(self, texts: Mapping[str, str], files: Mapping[str, str] | None) -> None:
        launched = self.live().launched
        record = launched.record
        launched.record = dataclasses.replace(
            record,
            hardware={**(record.hardware or {}), **texts},
            images=record.images if files is None else {**(record.images or {}), **files},
        )
        await self.change(functools.partial(_write_record, self, launched.record))

    def record(self) -> RunRecord | None:
        """Return the run record of the QEMU; None if there is no QEMU."""
        return self._run.launched.record if self._run else None

    def failed(self) -> Mapping[str, str]:
        """Return what has failed beside QEMU, in words, by the file of its setting."""
        return self._run.failed if self._run else {}

    def stopping(self) -> StopProgress | None:
        """Return the progress of the stop in progress; None if there is none."""
        run = self._run
        return run.stop.progress(run.pid) if run is not None and run.stop is not None else None

    def left(self) -> float | None:
        """Return the seconds until a stop in progress kills QEMU; None if there is none, or it did."""
        return self._run.stop.left() if self._run is not None and self._run.stop is not None else None

    async def agent_addresses(self) -> list[Address]:
        """Return the addresses that the guest agent says; none without one. Takes a moment."""
        run = self._run
        if run is None or run.agent is None or self.state is not State.running:
            return []
        try:
            return await run.agent.addresses()
        except VmessError:
            return []

    def live(self) -> QemuRun:
        """Return the present run of QEMU; raises NotRunning, or Locked if the VM is held."""
        if self._run is None:
            raise self._in_the_way() or refusals.off(self.vm)
        return self._run

    # -- Handling of messages --

    async def _do(self, job: Job) -> None:
        """Begin a job on the files. Later work on the files waits for it; later messages do not."""
        if job.done.cancelled():  # the caller has left
            return
        if job.stopped and self.state is State.held:
            await self._react(EventMessage(Event.look))
        try:
            if job.stopped and self.state not in OFF:
                raise self._in_the_way() or self._not_off()
            if job.work is None:
                job.settle()
            else:
                self.files.begin(job.work, job.patience).add_done_callback(job.take)
        except Exception as error:  # noqa: BLE001 -- handed to the caller
            job.settle(error=error)

    def _not_off(self) -> VmessError:
        """Return the error for a change that needs a stopped VM."""
        if self.state is State.stopping:
            return refusals.stopping(self.vm, self.left())
        return refusals.in_the_way(self.vm)

    def _is_stale(self, message: EventMessage) -> bool:
        """Tell whether a message belongs to a run, stop, attempt or pause that is over."""
        stop = self._run.stop if self._run else None
        return message.of is not None and not any(
            message.of is one for one in (self._run, stop, self._attempt, self._pending)
        )

    async def _react(self, message: EventMessage) -> None:
        if self._is_stale(message):
            if message.launched is not None:
                message.launched.close()
            return
        if message.launched is not None and not self._take_in(message, message.launched):
            return
        if self._run is not None:
            message.event = self._run.meaning(message.event, message.runstate)
        action = self._pass(message.event)
        self._journal.state(self.state, message)
        if self._run is not None:
            self._run.take_note(message.event, self.state)
        if action is not Action.nothing:
            await self._actions[action](message)
        if message.event in (Event.runs, Event.halts):
            self._prepare_once()
        if message.event not in (Event.found, Event.start):
            self.settled.set()

    def _prepare_once(self) -> None:
        """Call :attr:`prepare` once per run, also for a QEMU of an earlier daemon."""
        if self._run is not None and not self._run.prepared:
            self._run.prepared = True
            self._run.start_task("prepare", self._prepare(self._run))

    async def _prepare(self, run: QemuRun) -> None:
        for prepare in self.prepare:
            await prepare()
        if once := run.launched.record.once:
            await boot_once.restore_order(run)
            with failures_logged(self.vm):
                await self.files.see_to(lambda: self.find_home().use_up(BOOT_ONCE, once), NOTE_TIME)

    async def _let_go(self) -> None:
        """Leave the VM running, and tell the waiting clients that the daemon ends."""
        self._search.cancel()
        if self._attempt is not None:
            await self._attempt.finished(END_TIME)
        if self._run is not None:
            if self._run.stop is not None:
                log.warning("%s: its stop does not continue", self.vm)
            self._run.cancel_tasks()
            await self._run.session.close()
            self._run.launched.process.close()
        self._wait_no_longer()
        await self.files.idle(END_TIME)
        self._tell_all(refusals.going_away())

    # -- Actions: start --

    async def _spawn(self, message: EventMessage) -> None:
        self._starters.append(message.asker())
        pending = self._wait_no_longer()
        if pending is not None and message.event is Event.again:
            self._tries, self._memory = pending.attempt, ""
        elif message.request is not None:  # otherwise it is the same start with another display
            self._tries, self._memory = 0, message.request.memory
        self._attempt = StartAttempt(self.vm, self._inbox.post)
        self._attempt.begin(self.directory, self._host, self._tries, self.files, self._memory)

    async def _take_on(self, message: EventMessage) -> None:
        if self._run is not None:
            record = self._run.launched.record
            tell(self._starters, _progress(record, done=False))
            await self._converse(message)

    async def _delay(self, _message: EventMessage) -> None:
        log.warning("%s: the start takes long: the files of the VM do not answer", self.vm)
        self._tell_all(refusals.held_up(self.vm))

    async def _converse(self, _message: EventMessage) -> None:
        if self._run is None:
            return
        if self._run.launched.process.has_ended():
            self._ended(self._run)
        self._run.session.begin()

    async def _cont(self, _message: EventMessage) -> None:
        if self._run is not None and not self._run.loads:
            self._run.prepared = True
            self._run.start_task("cont", self._let_it_run(self._run))

    async def _let_it_run(self, run: QemuRun) -> None:
        await self._prepare(run)
        move = self.directory.move
        if move is not None and move.stage in (Stage.arriving, Stage.unknown):  # its source lets it run
            run.arrives = True
            self._inbox.post(Event.halts, Runstate.inmigrate, of=run)
            return
        if run.waits:
            await run.go_on(self.files.aside(functools.partial(self._opened_memory, run)))
            return
        await run.let_it_run(lambda: self._inbox.post(Event.runs, Runstate.running, of=run))

    def _opened_memory(self, run: QemuRun) -> int:
        _, fd = memory.opened(self.find_home(), run.launched.record.memory)
        return fd

    async def _started(self, _message: EventMessage) -> None:
        if self._run is None:
            return
        record = self._run.launched.record
        self._journal.started(record)
        dismiss(self._starters, _progress(record, done=True))

    async def _hangs(self, _message: EventMessage) -> None:
        dismiss(self._starters, refusals.hanging(self.vm, self._run.pid if self._run else 0))

    # -- Actions: stop --

    async def _begin_ladder(self, message: EventMessage) -> None:
        request = message.asker()
        await self._begin_stop(message, await self._gentle(request.uid, request.within, request.grace))

    async def _gentle(self, uid: int | None, within: float | None = None, wanted: float | None = None) -> Stop:
        """Return a stop that begins with the power button, unless the guest cannot react to it.

        `within` and `wanted` are seconds, as `within` and `grace` of :meth:`stop`.
        """
        grace, note = await grace_of(self.vm, self.find_home, self.files) if wanted is None else (wanted, None)
        if self._run is not None and (self._run.runstate in DEAF_RUNSTATES or self._run.is_out_of_reach):
            grace = 0.0
            if self._run.runstate == Runstate.internal_error:
                note = GIVEN_UP
        if within is not None:
            grace = min(grace, within)
        if self.directory.move is not None and self.directory.move.stage == Stage.arriving:
            grace = 0.0  # the guest runs elsewhere, and must not run here
        return Stop(ladder(grace), grace, uid, gentle=True, note=note)

    async def _begin_force(self, message: EventMessage) -> None:
        with contextlib.suppress(VmessError):  # the exit record goes there, and is not waited for
            await self.files.aside(self.find_home, READ_TIME)
        await self._begin_stop(message, Stop(by_force(), 0.0, message.asker().uid, gentle=False))

    async def _begin_stop(self, message: EventMessage, stop: Stop) -> None:
        self._stoppers.append(message.asker())
        dismiss(self._starters, refusals.called_off(self.vm))
        if self._attempt is not None:
            self._attempt.call_off(Cancellation(message.asker().uid, gentle=message.event is Event.stop))
        if self._run is not None:
            await self._stop(self._run, stop)

    async def _stop(self, run: QemuRun, stop: Stop) -> None:
        """Take the first step of a stop. The run record notes the stop, but no signal waits for the file."""
        if run.begin_stop(stop):
            run.note_stop(self.home, self.files)
        await self._climb(EventMessage(Event.rung))

    async def _cut_off(self, message: EventMessage) -> None:
        """Stop the QEMU of a cancelled start: by force, unless an earlier daemon had started it."""
        run = self._run
        if run is None:
            return
        uid, gentle = run.start_cancelled or Cancellation(None, gentle=False)
        if gentle and message.event is Event.found:
            await self._converse(message)
            await self._stop(run, await self._gentle(uid))
        else:
            await self._stop(run, Stop(by_force(), 0.0, uid, gentle=False))

    async def _climb(self, _message: EventMessage) -> None:
        run = self._run
        if run is None or run.stop is None:
            return
        stop = run.stop
        step = run.climb(lambda: self._inbox.post(Event.rung, of=stop))
        if step is None:
            await self._undying(run)
        elif step.is_first:
            self._journal.rung(run)
            tell(self._stoppers, run.stop.progress(run.pid))

    async def _undying(self, run: QemuRun) -> None:
        """Dismiss the clients that wait for a process which SIGKILL does not end: it hangs in the kernel."""
        if run.launched.process.has_ended():
            self._ended(run)
            return
        error = refusals.undying(self.vm, run.pid)
        log.warning("%s", error.message)
        dismiss(self._stoppers, error)

    async def _join(self, message: EventMessage) -> None:
        request = message.asker()
        if self.state is State.starting:
            self._starters.append(request)
            if self._attempt is not None:
                self._attempt.hurry()
            return
        if self._run is not None and self._run.stop is not None and self._run.stop.is_replaced_by(request):
            await self._begin_ladder(message)
            return
        self._stoppers.append(request)
        if self._attempt is not None:
            self._attempt.hurry()
        if self._run is not None and self._run.stop is not None:
            tell([request], self._run.stop.progress(self._run.pid))
            if self._run.stop.is_spent():
                await self._undying(self._run)

    # -- Actions: the end --

    async def _bury(self, message: EventMessage) -> None:
        home = self.home
        run, self._run = self._run, None
        error = message.error or StartFailed(f"VM {self.vm} did not start")
        once_more = False
        try:
            self._no_attempt()
            if run is not None:
                run.cancel_tasks()
                await run.session.close()
                self.last_exit = await self._record_end(run, home)
                self._journal.ended(self.last_exit)
                once_more = self._may_try_another_display(run, self.last_exit)
                user = self._host.account.name if self._host.account.entry else None
                accel = run.launched.record.accel
                error = run.error or refusals.not_started(
                    self.vm, self.last_exit, user, accel, denied=monitor.says_denied(self.last_exit.log)
                )
            elif self.last_exit is not None and (self._tries or (self._stoppers and self.last_exit.again)):
                policy = Policy.no if self._stoppers else await policy_of(self.directory, self.files)
                await self._note_exit(restart.judge_failure(self.last_exit, policy, error.message))
        finally:
            self._pass(Event.buried)
            if run is not None:
                run.over.set()
                run.launched.process.close()
                self.over()
            self._host.displays.release(self.vm)
            if not once_more:
                dismiss(self._starters, error)
            dismiss(self._stoppers, last_progress(run, self.last_exit))
        if once_more:
            await self._react(EventMessage(Event.start))  # at once: a stop must not find the state `stopped`
        else:
            await self._rest_if_wanted()
        self._journal.state(self.state, message)

    def _may_try_another_display(self, run: QemuRun, ended: ExitRecord) -> bool:
        """Tell whether a start failed only because another process took its VNC port in the meantime."""
        if run.ran or run.stop is not None or not self._starters or not monitor.says_display_taken(ended.log):
            self._lost_displays = 0
            return False
        self._lost_displays += 1
        return self._lost_displays <= displays.LOST_MAX

    async def _record_end(self, run: QemuRun, home: VMDirectory) -> ExitRecord:
        """Record how a run ended, and return the record; if the files do not answer, it is written later."""
        self.last_exit = known = run.exit_record()
        record = await run.recorded(known, home, self.files, self._recorded_late)
        with failures_logged(self.vm):
            await blocking.call(launcher.sweep_links, self.directory, self._host.network)
        return record

    def _recorded_late(self, record: ExitRecord) -> None:
        """Take over an exit record that was written late, unless another run has ended since."""
        known = self.last_exit
        if known is not None and (known.pid, known.ticks) == (record.pid, record.ticks):
            self.last_exit = record
            if restart.follows(record):
                self._inbox.post(Event.pause)

    # -- Actions: a restart --

    async def _rest_if_wanted(self) -> None:
        """Begin the pause before a restart if the last exit asks for one and was in this boot of the host."""
        last = self.last_exit
        if restart.follows(last):
            await self._react(EventMessage(Event.pause))  # at once: nobody is to see the state `stopped`
        elif last is not None and last.note and self._tries:
            self._journal.given_up(last.note)

    async def _rest(self, _message: EventMessage) -> None:
        tries = self.last_exit.tries if self.last_exit else 0
        pending = restart.Pending(tries, lambda: self._inbox.post(Event.again, of=pending))
        self._pending = pending
        self._journal.restart(pending)

    async def _call_off(self, message: EventMessage) -> None:
        self._wait_no_longer()
        if self.last_exit is not None:
            await self._note_exit(dataclasses.replace(self.last_exit, again=False, note=restart.CALLED_OFF))
        self._journal.called_off(message.asker().uid)
        tell([message.asker()], StopProgress.of_rest(restart.CALLED_OFF))

    async def _note_exit(self, record: ExitRecord) -> None:
        self.last_exit = record
        with failures_logged(self.vm):
            await self.files.see_to(functools.partial(self.directory.write_exit_record, record), NOTE_TIME)

    # -- Actions: refusals --

    async def _say_running(self, message: EventMessage) -> None:
        tell([message.asker()], refusals.running(self.vm, self._run.pid if self._run else None))

    async def _say_stopping(self, message: EventMessage) -> None:
        tell([message.asker()], refusals.start_while_stopping(self.vm, self.left()))

    async def _say_stopped(self, message: EventMessage) -> None:
        tell([message.asker()], refusals.stopped(self.vm, self.last_exit.text if self.last_exit else None))


def _progress(record: RunRecord, *, done: bool) -> StartProgress:
    """Return a step of the start of a QEMU."""
    return StartProgress(done, record.pid, record.argv, record.accel)


def _write_record(machine: Machine, record: RunRecord) -> None:
    """Write the record of the running QEMU, unless another one runs; blocks."""
    now = machine.record()
    if now is not None and now.pid == record.pid:
        machine.find_home().write_run_record(record)
