"""One VM: one task, one inbox. Carries out what the tables of `lifecycle` say.

Whatever happens to the VM (a request, an answer of QEMU, a timer, the end of the process) is a
message in the inbox and is handled after the one before it; nothing else changes the state.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from vmessd import adoption, display, launch, refusals, restart, settings, vmdir
from vmessd.errors import Locked, StartFailed, VmessError
from vmessd.host import Host
from vmessd.inbox import Happening, Inbox, Job, Request, tell
from vmessd.journal import Journal
from vmessd.launch import Launched
from vmessd.lifecycle import OFF, Action, Event, State, by_force, ladder, transition
from vmessd.records import ExitRecord, RunRecord, boot_id
from vmessd.report import Exit, StartProgress, StopProgress, VMStatus
from vmessd.run import Run, Stop, grace_of, logged, stopped
from vmessd.session import Session, Timing
from vmessd.vmdir import VMDirectory

log = logging.getLogger(__name__)

_T = TypeVar("_T")

DEAF_RUNSTATES = ("shutdown", "guest-panicked")  # no guest is there any more to hear the power button


class Machine:
    """A VM as the daemon knows it; `run` is its task."""

    def __init__(self, directory: VMDirectory, host: Host, timing: Timing = Timing()) -> None:  # noqa: B008
        self.vm = directory.vm
        self.directory = directory
        self.state = State.stopped
        self.last_exit: ExitRecord | None = None
        self.found = asyncio.Event()
        """Set once it is known whether an earlier daemon's QEMU lives, and it is held if so."""
        self.settled = asyncio.Event()
        """Set once it is known whether an earlier daemon's QEMU lives, and it had a chance to answer."""
        self.device_gone: Callable[[str], None] = lambda _identifier: None
        """Called with the id of a device that the guest has let go of."""
        self.prepare: Callable[[], Coroutine[Any, Any, None]] = _nothing
        """Called before a guest runs its first instruction, and when an earlier daemon's QEMU answers."""
        self.over: Callable[[], None] = lambda: None
        """Called when a QEMU has ended."""
        self._host = host
        self._timing = timing
        self._inbox = Inbox(directory.vm)
        self._journal = Journal(directory.vm, host.events)
        self._run: Run | None = None
        self._search: asyncio.Task[None] | None = None
        self._doubt: VmessError | None = None
        """Why it is not known whether an earlier daemon's QEMU lives."""
        self._pending: restart.Pending | None = None
        self._tries = 0
        self._lost_displays = 0
        """Starts in a row that found their VNC port taken."""
        self._starters: list[Request] = []
        self._stoppers: list[Request] = []
        self._actions: dict[Action, Callable[[Happening], Coroutine[Any, Any, None]]] = {
            Action.spawn: self._spawn,
            Action.connect: self._converse,
            Action.reconnect: self._converse,
            Action.cont: self._cont,
            Action.started: self._started,
            Action.hangs: self._hangs,
            Action.hold: self._hold,
            Action.look: self._look,
            Action.ladder: self._begin_ladder,
            Action.kill: self._begin_force,
            Action.climb: self._climb,
            Action.join: self._join,
            Action.bury: self._bury,
            Action.rest: self._rest,
            Action.call_off: self._call_off,
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
        self.found.set()
        self._inbox.do(functools.partial(launch.sweep_links, self.directory, self._host.network))
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

    async def stop(
        self, uid: int | None, *, force: bool, within: float | None = None
    ) -> AsyncIterator[StopProgress]:
        """Stop the VM; yield each rung of the ladder, then how it ended. Goes on if nobody listens.

        `within` is the most grace it has, in seconds, also where a stop is under way.

        Raises:
            NotRunning: there is nothing to stop.
        """
        async for progress in self._inbox.ask(Event.force if force else Event.stop, uid, within):
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
            last_exit=Exit.of(self.last_exit) if self.last_exit else None,
            restart=self._pending.report() if self._pending else None,
            problem=self._problem(),
        )

    def _problem(self) -> str | None:
        if self.state is State.held and self._doubt is not None:
            return self._doubt.message
        return self._run.launched.problem if self._run else None

    @property
    def home(self) -> VMDirectory:
        """Where the files of its QEMU are: not in its directory if that was renamed while it ran."""
        return (self._run and self._run.launched.home) or self.directory

    def record(self) -> RunRecord | None:
        """Return the record of the QEMU there is."""
        return self._run.launched.record if self._run else None

    def stopping(self) -> StopProgress | None:
        """Return where the stop is that is under way."""
        run = self._run
        return run.stop.progress(run.pid) if run is not None and run.stop is not None else None

    def live(self) -> Run:
        """Return the QEMU there is; raises NotRunning, or Locked where it is out of reach."""
        if self._run is None:
            raise self._in_the_way() or refusals.off(self.vm)
        return self._run

    def _in_the_way(self) -> VmessError | None:
        """Return why nothing can be done about a VM that is held."""
        return self._doubt if self.state is State.held else None

    # -- One message after the other --

    async def _do(self, job: Job) -> None:
        if job.done.cancelled():  # whoever wanted to look has left
            return
        try:
            if job.stopped and self.state is State.held:
                await self._react(Happening(Event.look))
            if job.stopped and self.state not in OFF:
                raise self._in_the_way() or refusals.in_the_way(self.vm)
            job.settle(await asyncio.to_thread(job.work))
        except Exception as error:  # noqa: BLE001 -- handed to whoever asked
            job.settle(error=error)

    async def _react(self, message: Happening) -> None:
        if message.launched is not None and not self._take_in(message.launched):
            return
        if self._run is not None and message.runstate is not None:
            self._run.learn(message.runstate)
        after, action = transition(self.state, message.event)
        if action is not Action.bury:  # which is done only when the exit is on record
            self.state = after
        if message.event in (Event.runs, Event.halts) and self._run is not None:
            self._run.ran = True
        self._journal.state(self.state, message)
        if self._run is not None:
            self._run.mind_silence(message.event, self.state)
        if action is not Action.nothing:
            await self._actions[action](message)
        if message.event in (Event.runs, Event.halts) and self._run is not None and not self._run.prepared:
            self._run.prepared = True
            self._run.errand("prepare", self.prepare())
        if message.event not in (Event.found, Event.start):
            self.settled.set()

    def _give_up_on(self, message: Happening | Job) -> None:
        """Leave nobody waiting, and the VM in no state it would never leave."""
        failure = refusals.unexpected(self.vm)
        if isinstance(message, Happening) and message.request is not None:
            tell([message.request], failure)
        if self._run is None and self.state not in OFF:
            self._inbox.happen(Event.refused, error=failure)

    # -- Coming and going --

    async def _recover(self) -> None:
        launched = await self._seek()
        if launched is None:
            await self._rest_if_wanted()
            self.settled.set()
            return
        # One that hangs must not make everybody wait who asks how it is.
        asyncio.get_running_loop().call_later(self._timing.settle, self.settled.set)
        await self._react(Happening(Event.found, launched=launched))

    async def _seek(self) -> Launched | None:
        """Look for a QEMU of an earlier daemon; again and again where nobody can tell whether there is one."""
        try:
            launched = await asyncio.to_thread(adoption.recover, self.directory, self._host)
            self.last_exit = await asyncio.to_thread(adoption.last_exit, self.directory)
        except VmessError as error:
            if self._doubt is None or self._doubt.message != error.message:
                log.warning("%s: %s; it is looked at again until that is over", self.vm, error.message)
            self._doubt = error
            if self._search is None:
                self._search = asyncio.get_running_loop().create_task(self._search_on())
            if isinstance(error, Locked):
                await self._react(Happening(Event.held, error=error))
            return None
        self._search_no_more()
        if launched is None and self.state is State.held:
            await self._react(Happening(Event.free))
        return launched

    async def _search_on(self) -> None:
        while True:
            await asyncio.sleep(self._timing.look)
            self._inbox.happen(Event.look)

    def _search_no_more(self) -> None:
        self._doubt = None
        if self._search is not None:
            self._search.cancel()
            self._search = None

    async def _look(self, message: Happening) -> None:
        """Look for its QEMU again; what was asked for is then carried out, or refused."""
        launched = await self._seek()
        if launched is not None:
            await self._react(Happening(Event.found, launched=launched))
        else:
            await self._rest_if_wanted()
        error = self._in_the_way()
        if message.request is not None and error is not None:
            tell([message.request], error)
        elif message.request is not None:
            await self._react(message)

    async def _hold(self, message: Happening) -> None:
        self._wait_no_longer()
        if message.error is not None:
            tell(self._starters, message.error)
        self._starters.clear()

    def _take_in(self, launched: Launched) -> bool:
        """Adopt a QEMU that was found; tell whether there was none yet."""
        if self._run is not None:
            launched.process.close()
            return False
        self._journal.found(launched.process.pid)
        self._adopt(launched).ran = True  # whether it did, nobody knows; it was not refused
        return True

    def _adopt(self, launched: Launched) -> Run:
        """Take a process under watch."""
        self._search_no_more()
        session = Session(
            connect=lambda: launched.connect(self.directory, vmdir.QMP_SOCKET),
            report=self._inbox.happen,
            events=self._qmp_event,
            timing=self._timing,
        )
        self._run = Run(self.vm, launched, session)
        launched.process.watch(self._ended)
        if launched.problem is not None:
            self.miss_directory()
        return self._run

    def miss_directory(self) -> None:
        """Keep in mind where the directory of a VM that runs is: not where it should be."""
        if self._run is not None:
            self._run.errand("whereabouts", self._follow(self._run.launched))

    async def _follow(self, launched: Launched) -> None:
        said = None
        while True:
            with contextlib.suppress(RuntimeError):  # no thread is to be had; there may be one next time
                launched.home, launched.problem = await asyncio.to_thread(
                    adoption.whereabouts, self.directory, launched.process.pid
                )
            if launched.problem is None:
                return
            if launched.problem != said:
                said = launched.problem
                log.warning("%s: %s", self.vm, said)
            await asyncio.sleep(self._timing.look)

    async def _let_go(self) -> None:
        """Leave the VM running, and whoever waits with a word."""
        self._search_no_more()
        if self._run is not None:
            if self._run.stop is not None:
                log.warning("%s: its stop is not carried on", self.vm)
            self._run.cancel_errands()
            await self._run.session.close()
            self._run.launched.process.close()
        self._wait_no_longer()
        tell([*self._inbox.leftovers(), *self._starters, *self._stoppers], refusals.going_away())

    # -- What QEMU and the kernel tell --

    def _qmp_event(self, name: str, data: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        self._journal.qmp(self._run.pid, name, data)
        event = self._run.hear(name, data)
        if event is not None:
            self._inbox.happen(event, "running" if event is Event.runs else "paused")
        elif name == "DEVICE_DELETED" and isinstance(data.get("device"), str):
            self.device_gone(data["device"])

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
        pending = self._wait_no_longer()
        self._tries = pending.attempt if pending and message.event is Event.again else 0
        try:
            launched = await asyncio.to_thread(launch.launch, self.directory, self._host, self._tries)
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
        launched = await self._seek()
        if launched is None:
            if self.state is State.starting:
                self._inbox.happen(Event.refused, error=self._doubt or error)
            return
        starters, self._starters = self._starters, []
        await self._react(Happening(Event.found, launched=launched))
        tell(starters, refusals.running(self.vm, launched.process.pid))

    async def _converse(self, _message: Happening) -> None:
        if self._run is not None:
            self._run.session.begin()

    async def _cont(self, _message: Happening) -> None:
        if self._run is not None:
            self._run.prepared = True
            self._run.errand("cont", self._let_it_run(self._run))

    async def _let_it_run(self, run: Run) -> None:
        await self.prepare()
        await run.let_it_run(lambda: self._inbox.happen(Event.runs, "running"))

    async def _started(self, _message: Happening) -> None:
        if self._run is None:
            return
        record = self._run.launched.record
        self._journal.started(record)
        tell(self._starters, StartProgress(done=True, pid=record.pid, command=record.argv))
        self._starters.clear()

    async def _hangs(self, _message: Happening) -> None:
        tell(self._starters, refusals.hanging(self.vm, self._run.pid if self._run else 0))
        self._starters.clear()

    # -- Actions: stop --

    async def _begin_ladder(self, message: Happening) -> None:
        try:
            grace, note = await asyncio.to_thread(grace_of, self.home)
        except RuntimeError as error:  # no thread is to be had; that must not keep a VM from stopping
            grace, note = float(settings.GRACE_DEFAULT), str(error)
        if self._run is not None and (self._run.runstate in DEAF_RUNSTATES or self._run.is_out_of_reach):
            grace = 0.0
        if (within := message.asker().within) is not None:
            grace = min(grace, within)
        stop = Stop(ladder(grace), grace, message.asker().uid, gentle=True, note=note)
        await self._begin_stop(message, stop)

    async def _begin_force(self, message: Happening) -> None:
        await self._begin_stop(message, Stop(by_force(), 0.0, message.asker().uid, gentle=False))

    async def _begin_stop(self, message: Happening, stop: Stop) -> None:
        self._stoppers.append(message.asker())
        tell(self._starters, refusals.called_off(self.vm))
        self._starters.clear()
        if self._run is not None:
            await self._run.begin_stop(stop, self.home)
            await self._climb(message)

    async def _climb(self, _message: Happening) -> None:
        run = self._run
        if run is not None and run.climb(lambda: self._inbox.happen(Event.rung)) and run.stop is not None:
            self._journal.rung(run)
            tell(self._stoppers, run.stop.progress(run.pid))

    async def _join(self, message: Happening) -> None:
        request = message.asker()
        if self.state is State.starting:
            self._starters.append(request)
            return
        if self._run is not None and self._run.stop is not None and self._run.stop.outlasts(request.within):
            await self._begin_ladder(message)
            return
        self._stoppers.append(request)
        if self._run is not None and self._run.stop is not None:
            tell([request], self._run.stop.progress(self._run.pid))

    # -- Actions: the end --

    async def _bury(self, message: Happening) -> None:
        home = self.home
        run, self._run = self._run, None
        error = message.error or StartFailed(f"VM {self.vm} did not start")
        once_more = False
        try:
            if run is not None:
                run.cancel_errands()
                await run.session.close()
                self.last_exit = await asyncio.to_thread(run.bury, home)
                await asyncio.to_thread(launch.sweep_links, self.directory, self._host.network)
                self._journal.ended(self.last_exit)
                once_more = self._may_try_another_display(run, self.last_exit)
                user = self._host.account.name if self._host.account.entry else None
                accel = run.launched.record.accel
                error = run.error or refusals.not_started(self.vm, self.last_exit.text, user, accel)
            elif self._tries and self.last_exit is not None:
                policy = await asyncio.to_thread(launch.restart_policy, self.directory)
                await self._note_exit(restart.judge_failure(self.last_exit, policy, error.message))
        finally:
            if run is not None:
                run.launched.process.close()
                run.over.set()
                self.over()
            self._host.displays.release(self.vm)
            self.state = State.stopped
            if not once_more:
                tell(self._starters, error)
                self._starters.clear()
            tell(self._stoppers, stopped(run, self.last_exit))
            self._stoppers.clear()
        if once_more:
            self._inbox.happen(Event.start)
        else:
            await self._rest_if_wanted()
        self._journal.state(self.state, message)

    def _may_try_another_display(self, run: Run, ended: ExitRecord) -> bool:
        """Tell whether a start failed only because somebody took its VNC port just then."""
        if run.ran or run.stop is not None or not self._starters or not display.was_lost(ended.log):
            self._lost_displays = 0
            return False
        self._lost_displays += 1
        return self._lost_displays <= display.LOST_MAX

    # -- Actions: a restart --

    async def _rest_if_wanted(self) -> None:
        """Have the VM started again where its last exit says so; not what ended with an earlier boot."""
        last = self.last_exit
        if last is not None and restart.is_due(last) and last.when.boot == boot_id():
            await self._react(Happening(Event.pause))  # at once, so that nobody sees it stopped
        elif last is not None and last.note and self._tries:
            self._journal.given_up(last.note)

    async def _rest(self, _message: Happening) -> None:
        pending = restart.Pending(
            self.last_exit.tries if self.last_exit else 0, lambda: self._inbox.happen(Event.again)
        )
        self._pending = pending
        self._journal.restart(pending)

    def _wait_no_longer(self) -> restart.Pending | None:
        """End the pause before a restart and return what was pending."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
        return pending

    async def _call_off(self, message: Happening) -> None:
        self._wait_no_longer()
        if self.last_exit is not None:
            await self._note_exit(dataclasses.replace(self.last_exit, again=False, note=restart.CALLED_OFF))
        self._journal.called_off(message.asker().uid)
        tell([message.asker()], StopProgress.of_rest(f"{self.vm}: {restart.CALLED_OFF}"))

    async def _note_exit(self, record: ExitRecord) -> None:
        self.last_exit = record
        with logged(self.vm):
            await asyncio.to_thread(self.directory.write_exit_record, record)

    # -- Actions: refusals --

    async def _say_running(self, message: Happening) -> None:
        tell([message.asker()], refusals.running(self.vm, self._run.pid if self._run else None))

    async def _say_stopping(self, message: Happening) -> None:
        tell([message.asker()], refusals.stopping(self.vm))

    async def _say_stopped(self, message: Happening) -> None:
        tell([message.asker()], refusals.stopped(self.vm, self.last_exit.text if self.last_exit else None))


async def _nothing() -> None:
    """Prepare nothing."""
