"""The life cycle of a VM as tables: states, events and transitions; the ladder of a stop; reasons of an exit.

Pure. :mod:`vmessd.vm.machine` feeds events in and carries out the actions. Its events are not those of
QMP, which :mod:`vmessd.vm.qemu_run` translates.
"""

import enum
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vmessd.core import words


class State(enum.Enum):
    """Where a VM is in its life."""

    stopped = words.State.stopped
    """There is no QEMU."""
    waiting = words.State.waiting
    """There is no QEMU; the restart policy starts one after a delay."""
    starting = words.State.starting
    """QEMU was spawned; the guest has not run yet."""
    running = words.State.running
    """The guest runs."""
    paused = words.State.paused
    """QEMU answers, but the guest does not run (paused by hand, by an I/O error, after a panic)."""
    unresponsive = words.State.unresponsive
    """The process is alive but does not answer. It is left alone, and no second one is started."""
    held = words.State.held
    """A process that cannot be identified as its QEMU has locked its directory; it counts as running."""
    stopping = words.State.stopping
    """A stop is under way; see :func:`ladder`."""


OFF = frozenset({State.stopped, State.waiting})
"""The states without a QEMU."""


class Event(enum.Enum):
    """What can happen to a VM."""

    start = "a start is requested"
    stop = "a graceful stop is requested"
    force = "a stop by force is requested"
    spawned = "QEMU was spawned"
    late = "the start takes long: the files of the VM do not answer"
    found = "its process was found alive"
    held = "a process that cannot be identified as its QEMU has locked its directory"
    free = "its directory is no longer locked"
    look = "it is time to look for its process again"
    born = "QEMU answers; the guest has never run"
    runs = "QEMU reports that the guest runs"
    halts = "QEMU reports that the guest does not run"
    silent = "QEMU does not answer in time"
    lost = "the monitor connection is lost"
    rung = "the next rung of the ladder is due"
    pause = "it will be restarted after a delay"
    again = "the delay before the restart is over"
    refused = "there is no process: it could not be spawned, or its end could not be handled"
    exited = "the process has ended"
    buried = "its exit is recorded and cleaned up"
    amiss = "an unexpected failure"


class Action(enum.Enum):
    """What is done about an event, besides changing the state."""

    nothing = "nothing"
    spawn = "read the settings and spawn QEMU"
    take_on = "report the spawned process to those who wait for the start, and connect"
    delay = "report to those who wait that the start takes long"
    connect = "connect to the monitor of the process that was found"
    reconnect = "connect again after a pause"
    cont = "let the guest run"
    started = "report the start to those who wait for it"
    hangs = "report to those who wait for the start that QEMU does not answer"
    hold = "cancel a restart, tell those who wait who holds the directory, and look again later"
    look = "look for its process again, then carry out the request or refuse it"
    climb = "take the step of the ladder that is due"
    ladder = "begin the ladder at the first rung"
    kill = "begin the ladder at the last rung"
    cut_off = "end the process that was spawned or found after its start was cancelled"
    join = "wait for the operation in progress"
    bury = "reap, record the exit, clean up, notify everyone"
    rest = "begin the delay before a restart"
    call_off = "cancel the restart"
    mend = "make sure that the state has a way out and that nobody waits in vain"
    say_running = "refuse: it is running"
    say_stopping = "refuse: it is being stopped"
    say_stopped = "refuse: it is not running"


_S, _E, _A = State, Event, Action

# Spelled out pair by pair, so that it can be checked by eye. A missing pair means that the event comes too late
# to matter: it changes nothing.
_TABLE: Mapping[State, Mapping[Event, tuple[State, Action]]] = {
    _S.stopped: {
        _E.start: (_S.starting, _A.spawn),
        _E.stop: (_S.stopped, _A.say_stopped),
        _E.force: (_S.stopped, _A.say_stopped),
        _E.found: (_S.unresponsive, _A.connect),
        _E.held: (_S.held, _A.hold),
        _E.look: (_S.stopped, _A.look),
        _E.pause: (_S.waiting, _A.rest),
    },
    _S.waiting: {
        _E.start: (_S.starting, _A.spawn),
        _E.again: (_S.starting, _A.spawn),
        _E.stop: (_S.stopped, _A.call_off),
        _E.force: (_S.stopped, _A.call_off),
        _E.found: (_S.unresponsive, _A.connect),
        _E.held: (_S.held, _A.hold),
        _E.look: (_S.waiting, _A.look),
    },
    _S.starting: {
        _E.start: (_S.starting, _A.join),
        _E.spawned: (_S.starting, _A.take_on),
        _E.late: (_S.starting, _A.delay),
        _E.stop: (_S.stopping, _A.kill),  # the guest has not run an instruction: nothing to be gentle to
        _E.force: (_S.stopping, _A.kill),
        _E.born: (_S.starting, _A.cont),
        _E.runs: (_S.running, _A.started),
        _E.halts: (_S.paused, _A.started),
        _E.silent: (_S.unresponsive, _A.hangs),
        _E.lost: (_S.starting, _A.reconnect),
        _E.found: (_S.unresponsive, _A.connect),  # another process started it first
        _E.held: (_S.held, _A.hold),
        _E.refused: (_S.starting, _A.bury),
        _E.exited: (_S.starting, _A.bury),
        _E.buried: (_S.stopped, _A.nothing),
    },
    _S.running: {
        _E.start: (_S.running, _A.say_running),
        _E.stop: (_S.stopping, _A.ladder),
        _E.force: (_S.stopping, _A.kill),
        _E.halts: (_S.paused, _A.nothing),
        _E.silent: (_S.unresponsive, _A.nothing),
        _E.lost: (_S.unresponsive, _A.reconnect),
        _E.refused: (_S.running, _A.bury),
        _E.exited: (_S.running, _A.bury),
        _E.buried: (_S.stopped, _A.nothing),
    },
    _S.paused: {
        _E.start: (_S.paused, _A.say_running),
        _E.stop: (_S.stopping, _A.ladder),
        _E.force: (_S.stopping, _A.kill),
        _E.runs: (_S.running, _A.nothing),
        _E.silent: (_S.unresponsive, _A.nothing),
        _E.lost: (_S.unresponsive, _A.reconnect),
        _E.refused: (_S.paused, _A.bury),
        _E.exited: (_S.paused, _A.bury),
        _E.buried: (_S.stopped, _A.nothing),
    },
    _S.unresponsive: {
        _E.start: (_S.unresponsive, _A.say_running),
        _E.stop: (_S.stopping, _A.ladder),
        _E.force: (_S.stopping, _A.kill),
        # Its daemon died between spawning it and letting it run: the start is completed.
        _E.born: (_S.starting, _A.cont),
        _E.runs: (_S.running, _A.nothing),
        _E.halts: (_S.paused, _A.nothing),
        _E.lost: (_S.unresponsive, _A.reconnect),
        _E.refused: (_S.unresponsive, _A.bury),
        _E.exited: (_S.unresponsive, _A.bury),
        _E.buried: (_S.stopped, _A.nothing),
    },
    _S.held: {
        _E.start: (_S.held, _A.look),
        _E.stop: (_S.held, _A.look),
        _E.force: (_S.held, _A.look),
        _E.look: (_S.held, _A.look),
        _E.found: (_S.unresponsive, _A.connect),
        _E.free: (_S.stopped, _A.nothing),
    },
    _S.stopping: {
        _E.start: (_S.stopping, _A.say_stopping),
        _E.stop: (_S.stopping, _A.join),
        _E.force: (_S.stopping, _A.kill),
        _E.spawned: (_S.stopping, _A.cut_off),
        _E.found: (_S.stopping, _A.cut_off),
        _E.late: (_S.stopping, _A.delay),
        _E.held: (_S.held, _A.hold),  # the cancelled start would have failed
        _E.lost: (_S.stopping, _A.reconnect),
        _E.rung: (_S.stopping, _A.climb),
        _E.refused: (_S.stopping, _A.bury),
        _E.exited: (_S.stopping, _A.bury),
        _E.buried: (_S.stopped, _A.nothing),
    },
}


def transition(state: State, event: Event) -> tuple[State, Action]:
    """Return the next state and the action. Every pair has an answer."""
    if event is Event.amiss:
        return state, Action.mend
    return _TABLE[state].get(event, (state, Action.nothing))


# QEMU's RunState (qapi/run-state.json); all others mean that the guest does not run.
_RUNSTATE_EVENT = {
    words.Runstate.prelaunch: Event.born,
    words.Runstate.running: Event.runs,
}


def runstate_event(runstate: str) -> Event:
    """Return the event for a runstate that `query-status` reported."""
    return _RUNSTATE_EVENT.get(runstate, Event.halts)


class Rung(enum.StrEnum):
    """The rungs of the ladder of a stop, from gentle to hard."""

    powerdown = words.Rung.powerdown
    quit = words.Rung.quit
    term = words.Rung.term
    kill = words.Rung.kill


class Step(NamedTuple):
    """One step of the ladder; `at` is in seconds since the stop began."""

    at: float
    rung: Rung


PRESS_EVERY = 5.0  # a guest that does not listen yet loses a press, so it is repeated
RUNG_TIME = 1.5  # each for quit and SIGTERM: the whole takes at most the grace period and 5 seconds


def ladder(grace: float) -> Iterator[Step]:
    """Yield the steps of a graceful stop: the power button for `grace` seconds, then force in three rungs.

    The last rung is SIGKILL, sent twice; then the only thing left is to wait for the process.
    """
    presses = 0
    while presses * PRESS_EVERY < grace:
        yield Step(presses * PRESS_EVERY, Rung.powerdown)
        presses += 1
    yield Step(grace, Rung.quit)
    yield Step(grace + RUNG_TIME, Rung.term)
    yield from _kill(grace + 2 * RUNG_TIME)


def by_force() -> Iterator[Step]:
    """Yield the steps of a stop by force."""
    yield from _kill(0.0)


def _kill(at: float) -> Iterator[Step]:
    """Yield SIGKILL twice: the kernel may fail to deliver it, for example when it is out of memory."""
    yield Step(at, Rung.kill)
    yield Step(at + RUNG_TIME, Rung.kill)


class Reason(enum.StrEnum):
    """Why a QEMU ended."""

    powered_off = words.Reason.powered_off
    powered_down = words.Reason.powered_down
    reset = words.Reason.reset
    panicked = words.Reason.panicked
    quit = words.Reason.quit
    forced = words.Reason.forced
    moved = words.Reason.moved
    signalled = words.Reason.signalled
    failed = words.Reason.failed
    refused = words.Reason.refused
    unseen = words.Reason.unseen
    unknown = words.Reason.unknown

    @classmethod
    def of(cls, word: str) -> "Reason":
        """Return the reason in a record; `unknown` where it is not the name of one."""
        return cls.__members__.get(word, cls.unknown)


IN_WORDS: Mapping[Reason, str] = {
    Reason.powered_off: "guest powered off",
    Reason.powered_down: "powered down as asked",
    Reason.reset: "guest reset, and QEMU was told not to reboot",
    Reason.panicked: "guest panicked",
    Reason.quit: "QEMU was told to quit",
    Reason.forced: "forced off",
    Reason.moved: "moved to another host",
    Reason.signalled: "killed by signal",
    Reason.failed: "QEMU failed",
    Reason.refused: "QEMU did not start",
    Reason.unseen: "ended while no vmessd was watching",
    Reason.unknown: "ended for an unknown reason",
}
"""The texts of `status` for each reason."""


class Ending(NamedTuple):
    """What is known about the end of a QEMU."""

    ran: bool
    """The guest has run."""
    shutdown: str | None
    """The reason in QMP's SHUTDOWN event (ShutdownCause in qapi/run-state.json); None where none was seen."""
    status: int | None
    """Exit status, negative for a signal; None where the process was not our child."""
    rung: Rung | None
    """The last rung of a stop; None where no stop was requested."""


_BY_SHUTDOWN = {
    "guest-reset": Reason.reset,
    "guest-panic": Reason.panicked,
    "host-qmp-quit": Reason.quit,
}


def classify(ending: Ending) -> tuple[Reason, str]:
    """Return why a QEMU ended, and the same in words.

    The event counts first: QEMU's exit status is 0 for nearly every way to end (measured on 7.2).
    """
    reason = _reason(ending)
    if reason is Reason.signalled and ending.status is not None and ending.status < 0:
        return reason, f"{IN_WORDS[reason]} {-ending.status}"
    if reason is Reason.signalled:
        return reason, "killed by a signal"
    if reason is Reason.failed:
        return reason, f"QEMU failed with exit status {ending.status}"
    return reason, IN_WORDS[reason]


def _reason(ending: Ending) -> Reason:
    if ending.shutdown in ("guest-shutdown", "host-ui"):
        return Reason.powered_off if ending.rung is None else Reason.powered_down
    if ending.rung in (Rung.quit, Rung.term, Rung.kill):
        return Reason.forced
    if ending.shutdown in _BY_SHUTDOWN:
        return _BY_SHUTDOWN[ending.shutdown]
    if ending.shutdown == "host-signal" or (ending.status is not None and ending.status < 0):
        return Reason.signalled
    if ending.status:
        return Reason.failed if ending.ran else Reason.refused
    if not ending.ran:
        return Reason.refused
    return Reason.unknown


RESTARTS_MAX = 6
"""Consecutive restarts, after which the VM is not started again."""
PAUSE_MAX = 60.0
"""Maximum delay before a restart, in seconds."""
STEADY = 60.0
"""Seconds of run time after which earlier restarts no longer count."""


class Policy(enum.StrEnum):
    """After which unrequested exits a VM is started again."""

    no = words.Policy.no
    on_crash = words.Policy.on_crash
    always = words.Policy.always


_CRASHES = frozenset({Reason.signalled, Reason.failed, Reason.refused, Reason.panicked, Reason.unknown})


def is_restarted(policy: Policy, reason: Reason) -> bool:
    """Tell whether a policy starts a VM again after an exit that nobody requested."""
    return policy is Policy.always or (policy is Policy.on_crash and reason in _CRASHES)


def pause(tries: int) -> float | None:
    """Return the delay before the next start in seconds, after `tries` consecutive ones; None to give up."""
    return min(2.0 ** max(tries, 0), PAUSE_MAX) if tries < RESTARTS_MAX else None
