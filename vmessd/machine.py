"""One VM: one task, one inbox. Carries out what the tables of `lifecycle` say.

Whatever happens to the VM (a request, an answer of QEMU, a timer, the end of the process) is a
message in the inbox and is handled after the one before it; nothing else changes the state.
"""

import asyncio
import contextlib
import dataclasses
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from vmessd import launch, settings, vmdir
from vmessd.errors import (
    AlreadyRunning,
    Failed,
    Locked,
    NotRunning,
    StartFailed,
    TimedOut,
    VmessError,
)
from vmessd.inbox import Happening, Inbox, Job, Request, tell
from vmessd.launch import Host, Launched
from vmessd.lifecycle import Action, Event, Reason, State, by_force, ladder, transition
from vmessd.monitor import CommandRefused, MonitorLost
from vmessd.records import ExitRecord, RunRecord
from vmessd.report import Exit, StartProgress, StopProgress, VMStatus
from vmessd.run import Run, Stop
from vmessd.session import Session, Timing
from vmessd.vmdir import VMDirectory

log = logging.getLogger(__name__)

_T = TypeVar("_T")

LAST_LINES = 5  # of what QEMU wrote, kept with the record of its exit


class Machine:
    """A VM as the daemon knows it; `run` is its task."""

    def __init__(self, directory: VMDirectory, host: Host, timing: Timing = Timing()) -> None:  # noqa: B008
        self.vm = directory.vm
        self.directory = directory
        self.state = State.stopped
        self.last_exit: ExitRecord | None = None
        self.settled = asyncio.Event()
        """Set once it is known whether an earlier daemon's QEMU lives, and it had a chance to answer."""
        self._host = host
        self._timing = timing
        self._inbox = Inbox(directory.vm)
        self._run: Run | None = None
        self._starters: list[Request] = []
        self._stoppers: list[Request] = []
        self._actions: dict[Action, Callable[[Happening], Coroutine[Any, Any, None]]] = {
            Action.spawn: self._spawn,
            Action.connect: self._converse,
            Action.reconnect: self._converse,
            Action.cont: self._cont,
            Action.started: self._started,
            Action.hangs: self._hangs,
            Action.ladder: self._begin_ladder,
            Action.kill: self._begin_force,
            Action.climb: self._climb,
            Action.join: self._join,
            Action.bury: self._bury,
            Action.say_running: self._say_running,
            Action.say_stopping: self._say_stopping,
            Action.say_stopped: self._say_stopped,
        }

    # -- What others call --

    async def run(self) -> None:
        """Find out how the VM is, then handle one message after the other until told to close."""
        try:
            await self._recover()
        except Exception:
            log.exception("%s: unexpected failure", self.vm)
            self.settled.set()
        while (message := await self._inbox.get()) is not None:
            try:
                if isinstance(message, Job):
                    await self._do(message)
                else:
                    await self._react(message)
            except Exception:
                # The one place that catches broadly: a VM whose handling fails must not take others along.
                log.exception("%s: unexpected failure", self.vm)
                self._give_up_on(message)
        await self._let_go()

    def close(self) -> None:
        """Have the task end. The VM goes on."""
        self._inbox.close()

    async def start(self, uid: int | None) -> AsyncIterator[StartProgress]:
        """Start the VM; yield the command line, then the running process.

        Raises:
            AlreadyRunning, StartFailed, Locked, BadFile, NoSuchVM, TimedOut: it does not run by this.
        """
        async for progress in self._inbox.ask(Event.start, uid):
            assert isinstance(progress, StartProgress)  # noqa: S101 -- starters get nothing else
            yield progress

    async def stop(self, uid: int | None, *, force: bool) -> AsyncIterator[StopProgress]:
        """Stop the VM; yield each rung of the ladder, then how it ended. Goes on if nobody listens.

        Raises:
            NotRunning: there is nothing to stop.
        """
        async for progress in self._inbox.ask(Event.force if force else Event.stop, uid):
            assert isinstance(progress, StopProgress)  # noqa: S101 -- stoppers get nothing else
            yield progress

    async def change(self, work: Callable[[], _T], *, stopped: bool = False) -> _T:
        """Do blocking work on the VM's files in a thread, in turn with all else that happens to it.

        Raises:
            AlreadyRunning: `stopped` was asked for and the VM is not.
            VmessError: whatever the work raises.
        """
        return await self._inbox.change(work, stopped=stopped)

    def status(self) -> VMStatus:
        """Return how the VM is now."""
        run = self._run
        return VMStatus(
            name=self.vm,
            state=self.state,
            pid=run.pid if run else None,
            uptime=run.launched.record.since.age() if run else None,
            runstate=run.runstate if run else None,
            last_exit=_exit_report(self.last_exit) if self.last_exit else None,
        )

    def record(self) -> RunRecord | None:
        """Return the record of the QEMU there is."""
        return self._run.launched.record if self._run else None

    async def transferred(self, patience: float = 1.0) -> dict[str, tuple[int, int]]:
        """Return bytes read and written for each drive; nothing where QEMU does not answer in time."""
        if self._run is not None:
            with contextlib.suppress(MonitorLost, CommandRefused, TimeoutError):
                return await asyncio.wait_for(self._run.session.monitor().transferred(), patience)
        return {}

    # -- One message after the other --

    async def _do(self, job: Job) -> None:
        try:
            if job.stopped and self.state is not State.stopped:
                raise self._running_error()
            job.settle(await asyncio.to_thread(job.work))
        except Exception as error:  # noqa: BLE001 -- handed to whoever asked
            job.settle(error=error)

    async def _react(self, message: Happening) -> None:
        if self._run is not None and message.runstate is not None:
            self._run.runstate = message.runstate
        before = self.state
        after, action = transition(before, message.event)
        if action is not Action.bury:  # which is done only when the exit is on record
            self.state = after
        if message.event in (Event.runs, Event.halts) and self._run is not None:
            self._run.ran = True
        if before is not self.state:
            log.debug("%s: %s -> %s (%s)", self.vm, before.value, self.state.value, message.event.value)
            if State.unresponsive in (before, self.state) and before is not State.stopped:
                word = "does not answer" if self.state is State.unresponsive else "answers again"
                log.warning("%s: QEMU %s", self.vm, word)
        if action is not Action.nothing:
            await self._actions[action](message)
        if message.event not in (Event.found, Event.start):
            self.settled.set()

    def _give_up_on(self, message: Happening | Job) -> None:
        """Leave nobody waiting, and the VM in no state it would never leave."""
        failure = Failed(f"VM {self.vm}: unexpected failure; vmessd's log has the details")
        if isinstance(message, Happening) and message.request is not None:
            tell([message.request], failure)
        if self._run is None and self.state is not State.stopped:
            self._inbox.happen(Event.refused, error=failure)

    # -- Coming and going --

    async def _recover(self) -> None:
        try:
            launched = await asyncio.to_thread(launch.recover, self.directory, self._host)
            self.last_exit = await asyncio.to_thread(self._last_exit)
        except VmessError as error:
            log.warning("%s: %s", self.vm, error.message)
            launched = None
        if launched is None:
            self.settled.set()
            return
        log.info("%s: found running, pid %d", self.vm, launched.process.pid)
        # One that hangs must not make everybody wait who asks how it is.
        asyncio.get_running_loop().call_later(self._timing.settle, self.settled.set)
        self._adopt(launched)
        await self._react(Happening(Event.found))

    def _last_exit(self) -> ExitRecord | None:
        try:
            return self.directory.exit_record()
        except VmessError as error:
            log.warning("%s: %s; it is passed over", self.vm, error.message)
            return None

    def _adopt(self, launched: Launched) -> None:
        """Take a process under watch."""
        session = Session(
            connect=lambda: self.directory.connect(vmdir.QMP_SOCKET),
            report=self._inbox.happen,
            events=self._qmp_event,
            timing=self._timing,
        )
        self._run = Run(launched, session)
        launched.process.watch(self._ended)

    async def _let_go(self) -> None:
        """Leave the VM running, and whoever waits with a word."""
        if self._run is not None:
            self._run.cancel_errands()
            await self._run.session.close()
            self._run.launched.process.close()
            self._host.displays.settle(self.vm)
        farewell = Failed("vmessd is going away; what was begun with QEMU goes on, its deadline does not")
        tell([*self._inbox.leftovers(), *self._starters, *self._stoppers], farewell)

    # -- What QEMU and the kernel tell --

    def _qmp_event(self, name: str, data: Mapping[str, Any]) -> None:
        run = self._run
        if run is None:
            return
        if name == "SHUTDOWN":
            run.shutdown = str(data.get("reason"))
        elif name == "RESUME":
            self._inbox.happen(Event.runs, "running")
        elif name == "STOP":
            self._inbox.happen(Event.halts, "paused")
            run.session.probe()  # which kind of standing still it is

    def _ended(self) -> None:
        """The pidfd says the process has ended; its last messages may still be on the way."""
        if self._run is not None:
            self._run.errand("last words", self._last_words(self._run.session))

    async def _last_words(self, session: Session) -> None:
        await session.drained()
        self._inbox.happen(Event.exited)

    # -- Actions: start --

    async def _spawn(self, message: Happening) -> None:
        self._starters.append(message.asker())
        try:
            launched = await asyncio.to_thread(launch.launch, self.directory, self._host)
        except Locked as error:
            await self._take_over(error)
        except VmessError as error:
            self._inbox.happen(Event.refused, error=error)
        else:
            self._adopt(launched)
            tell(
                self._starters,
                StartProgress(done=False, pid=launched.process.pid, command=launched.record.argv),
            )
            await self._converse(message)

    async def _take_over(self, error: VmessError) -> None:
        """The VM runs although it was not known to: somebody's QEMU that is to be adopted after all."""
        try:
            launched = await asyncio.to_thread(launch.recover, self.directory, self._host)
        except VmessError as failure:
            error, launched = failure, None
        if launched is None:
            self._inbox.happen(Event.refused, error=error)
            return
        self._adopt(launched)
        tell(self._starters, self._running_error())
        self._starters.clear()
        await self._react(Happening(Event.found))

    async def _converse(self, _message: Happening) -> None:
        if self._run is not None:
            self._run.session.begin()

    async def _cont(self, _message: Happening) -> None:
        if self._run is not None:
            self._run.errand("cont", self._let_it_run(self._run))

    async def _let_it_run(self, run: Run) -> None:
        try:
            await run.session.execute("cont")
        except CommandRefused as refusal:
            run.error = StartFailed(f"QEMU did not let {self.vm} run: {refusal}")
            run.launched.process.signal(signal.SIGKILL)
        else:
            self._inbox.happen(Event.runs, "running")

    async def _started(self, _message: Happening) -> None:
        if self._run is None:
            return
        record = self._run.launched.record
        self._host.displays.settle(self.vm)
        log.info("%s: started, pid %d, display %d, %s", self.vm, record.pid, record.display, record.accel)
        tell(self._starters, StartProgress(done=True, pid=record.pid, command=record.argv))
        self._starters.clear()

    async def _hangs(self, _message: Happening) -> None:
        pid = self._run.pid if self._run else 0
        error = TimedOut(
            f"QEMU of {self.vm}, PID {pid}, does not answer; it is left alone",
            hint=f"vmess {self.vm} status, or vmess {self.vm} stop force",
        )
        tell(self._starters, error)
        self._starters.clear()

    # -- Actions: stop --

    async def _begin_ladder(self, message: Happening) -> None:
        grace = await asyncio.to_thread(self._grace)
        await self._begin_stop(message, Stop(ladder(grace), grace, message.asker().uid, gentle=True))

    async def _begin_force(self, message: Happening) -> None:
        await self._begin_stop(message, Stop(by_force(), 0.0, message.asker().uid, gentle=False))

    async def _begin_stop(self, message: Happening, stop: Stop) -> None:
        self._stoppers.append(message.asker())
        tell(self._starters, Failed(f"the start of {self.vm} was called off: a stop was asked for"))
        self._starters.clear()
        if self._run is not None:
            self._run.replace_stop(stop)
            await self._climb(message)

    def _grace(self) -> float:
        try:
            value = self.directory.read_setting(settings.BY_FILE["STOP"])
        except VmessError as error:
            log.warning("%s: %s; it gets %d s", self.vm, error.message, settings.GRACE_DEFAULT)
            value = None
        return float(settings.GRACE_DEFAULT if value is None else value)

    async def _climb(self, _message: Happening) -> None:
        run = self._run
        if run is not None and run.climb(lambda: self._inbox.happen(Event.rung)) and run.stop is not None:
            log.info("%s: stopping: %s", self.vm, run.stop.rung.value)
            tell(self._stoppers, run.stop.progress(run.pid))

    async def _join(self, message: Happening) -> None:
        request = message.asker()
        if self.state is State.starting:
            self._starters.append(request)
            return
        self._stoppers.append(request)
        if self._run is not None and self._run.stop is not None:
            tell([request], self._run.stop.progress(self._run.pid))

    # -- Actions: the end --

    async def _bury(self, message: Happening) -> None:
        run, self._run = self._run, None
        error = message.error
        if run is not None:
            run.cancel_errands()
            await run.session.close()
            record = self.last_exit = await asyncio.to_thread(self._record_exit, run)
            run.launched.process.close()
            self._host.displays.release(self.vm)
            log.info("%s: %s", self.vm, record.text)
            error = run.error or StartFailed(f"VM {self.vm}: {record.text}")
        self.state = State.stopped
        tell(self._starters, error or StartFailed(f"VM {self.vm} did not start"))
        tell(self._stoppers, self._stopped_progress(run))
        self._starters.clear()
        self._stoppers.clear()

    def _record_exit(self, run: Run) -> ExitRecord:
        said = self.directory.log_tail(vmdir.QEMU_LOG, run.launched.log_start)[-LAST_LINES:]
        record = run.exit_record(said)
        try:
            self.directory.write_exit_record(record)
            self.directory.sweep()
        except VmessError as error:
            log.error("%s: %s", self.vm, error.message)  # noqa: TRY400 -- a full disk needs no traceback
        return record

    def _stopped_progress(self, run: Run | None) -> StopProgress:
        if run is None or run.stop is None or self.last_exit is None:
            text = self.last_exit.text if run is not None and self.last_exit else None
            return StopProgress(True, run.pid if run else None, None, 0.0, 0.0, False, text)
        forced = run.stop.gentle and self.last_exit.reason == Reason.forced.name
        return dataclasses.replace(
            run.stop.progress(run.pid), done=True, forced=forced, text=self.last_exit.text
        )

    # -- Actions: refusals --

    def _running_error(self) -> AlreadyRunning:
        pid = self._run.pid if self._run else 0
        return AlreadyRunning(
            f"VM {self.vm} is running already, PID: {pid}",
            hint=f"vmess {self.vm} stop",
        )

    async def _say_running(self, message: Happening) -> None:
        tell([message.asker()], self._running_error())

    async def _say_stopping(self, message: Happening) -> None:
        tell(
            [message.asker()],
            AlreadyRunning(f"VM {self.vm} is being stopped", hint="start it when that is done"),
        )

    async def _say_stopped(self, message: Happening) -> None:
        ended = f" ({self.last_exit.text})" if self.last_exit else ""
        tell([message.asker()], NotRunning(f"VM not running: {self.vm}{ended}"))


def _exit_report(record: ExitRecord) -> Exit:
    return Exit(
        reason=record.reason,
        text=record.text,
        age=record.when.age(),
        status=record.status,
        asked_by=record.asked_by,
        log=record.log,
    )
