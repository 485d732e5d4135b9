"""A VM's life as tables: states, events and one transition for each pair; the stop ladder; exits.

Pure: no clock is read and nothing is done here. `machine` feeds events in and carries actions out.
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
    """There is no QEMU; its restart policy starts one when a pause is over."""
    starting = words.State.starting
    """QEMU was spawned; the guest has not run yet."""
    running = words.State.running
    """The guest runs."""
    paused = words.State.paused
    """QEMU answers, but the guest stands still (paused by hand, by an I/O error, after a panic)."""
    unresponsive = words.State.unresponsive
    """The process lives and does not answer. It is left alone and never started a second time."""
    held = words.State.held
    """Its directory is locked by a process that cannot be told to be its QEMU: it counts as running."""
    stopping = words.State.stopping
    """A stop is under way; see :func:`ladder`."""


OFF = frozenset({State.stopped, State.waiting})
"""The states without a QEMU."""


class Event(enum.Enum):
    """What can happen to a VM."""

    start = "start is asked for"
    stop = "a graceful stop is asked for"
    force = "a stop by force is asked for"
    spawned = "its QEMU is there"
    late = "its start takes long: its files do not answer"
    found = "its process was found alive"
    held = "its directory is locked by a process that cannot be told to be its QEMU"
    free = "nobody has its directory locked any more"
    look = "it is to be looked for its process again"
    born = "QEMU answers; the guest has never run"
    runs = "QEMU says the guest runs"
    halts = "QEMU says the guest stands still"
    silent = "QEMU does not answer in time"
    lost = "the monitor connection is gone"
    rung = "the next rung of the ladder is due"
    pause = "it is to be started again after a pause"
    again = "the pause before it is started again is over"
    refused = "there is no process: it could not be spawned, or its end could not be handled"
    exited = "the process has ended"
    buried = "its end is on record, and cleared away"
    amiss = "a failure that nobody foresaw"


class Action(enum.Enum):
    """What is done about an event, besides changing the state."""

    nothing = "nothing"
    spawn = "read the settings, and spawn QEMU"
    take_on = "tell whoever waits for the start what was spawned, and connect"
    delay = "tell whoever waits that it takes long"
    connect = "connect to the monitor of the process that was found"
    reconnect = "connect again, after a pause"
    cont = "let the guest run"
    started = "tell whoever waits for the start"
    hangs = "tell whoever waits for the start that QEMU does not answer"
    hold = "call a restart off, tell whoever waits what is in the way, and look again"
    look = "look for its process again, then carry out what was asked for, or refuse it"
    climb = "take the step of the ladder that is due"
    ladder = "begin the ladder at its foot"
    kill = "begin the ladder at its top"
    cut_off = "end what was spawned, or found, when its start had been called off"
    join = "wait for what is under way"
    bury = "reap, record the exit, clean up, tell everyone"
    rest = "let the pause before a restart begin"
    call_off = "start it not again after all"
    mend = "see to it that the state has a way out, and that nobody waits in vain"
    say_running = "refuse: it runs"
    say_stopping = "refuse: it is being stopped"
    say_stopped = "refuse: it does not run"


_S, _E, _A = State, Event, Action

# Spelled out pair by pair, so that it can be checked by eye. What is missing changes nothing and asks
# for nothing: an event that comes too late to matter.
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
        _E.found: (_S.unresponsive, _A.connect),  # somebody else's start came before ours
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
        # Its daemon died between spawning it and letting it run: the start is carried through.
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
        _E.held: (_S.held, _A.hold),  # the start that was called off would have come to nothing
        _E.lost: (_S.stopping, _A.reconnect),
        _E.rung: (_S.stopping, _A.climb),
        _E.refused: (_S.stopping, _A.bury),
        _E.exited: (_S.stopping, _A.bury),
        _E.buried: (_S.stopped, _A.nothing),
    },
}


def transition(state: State, event: Event) -> tuple[State, Action]:
    """Return the state that follows and what is to be done. Total: every pair has an answer."""
    if event is Event.amiss:
        return state, Action.mend
    return _TABLE[state].get(event, (state, Action.nothing))


# QEMU's RunState (qapi/run-state.json), as far as it is not simply "the guest stands still".
_RUNSTATE_EVENT = {
    words.Runstate.prelaunch: Event.born,
    words.Runstate.running: Event.runs,
}


def runstate_event(runstate: str) -> Event:
    """Return what a runstate reported by `query-status` means for the VM's life."""
    return _RUNSTATE_EVENT.get(runstate, Event.halts)


class Rung(enum.StrEnum):
    """How hard a stop is being asked for."""

    powerdown = words.Rung.powerdown
    quit = words.Rung.quit
    term = words.Rung.term
    kill = words.Rung.kill


class Step(NamedTuple):
    """One thing the ladder does, `at` so many seconds after the stop began."""

    at: float
    rung: Rung


PRESS_EVERY = 5.0  # a press before the guest listens is lost without a trace, so it is repeated
RUNG_TIME = 1.5  # for quit and SIGTERM each: the whole takes no more than the grace and 5 seconds


def ladder(grace: float) -> Iterator[Step]:
    """Yield the steps of a graceful stop: the button for `grace` seconds, then force in three rungs.

    The last step is SIGKILL, twice; after it there is nothing left but to wait for the process.
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
    """Yield SIGKILL, and once more: the kernel may refuse to deliver it, as for lack of memory."""
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
    signalled = words.Reason.signalled
    failed = words.Reason.failed
    refused = words.Reason.refused
    unseen = words.Reason.unseen
    unknown = words.Reason.unknown

    @classmethod
    def of(cls, word: str) -> "Reason":
        """Return the reason that a record says, `unknown` for a word that nobody wrote."""
        return cls.__members__.get(word, cls.unknown)


IN_WORDS: Mapping[Reason, str] = {
    Reason.powered_off: "guest powered off",
    Reason.powered_down: "powered down as asked",
    Reason.reset: "guest reset, and QEMU was told not to reboot",
    Reason.panicked: "guest panicked",
    Reason.quit: "QEMU was told to quit",
    Reason.forced: "forced off",
    Reason.signalled: "killed by signal",
    Reason.failed: "QEMU failed",
    Reason.refused: "QEMU did not start",
    Reason.unseen: "ended while no vmessd watched",
    Reason.unknown: "ended for an unknown reason",
}
"""Why a QEMU ended, as `status` shows it."""


class Ending(NamedTuple):
    """What is known when a QEMU has ended."""

    ran: bool
    """The guest had run."""
    shutdown: str | None
    """The reason of QMP's SHUTDOWN event (ShutdownCause in qapi/run-state.json), if one was seen."""
    status: int | None
    """Exit status, negative for a signal; None where the process was not our child."""
    rung: Rung | None
    """How far a stop had come; None where nobody asked for one."""


_BY_SHUTDOWN = {
    "guest-reset": Reason.reset,
    "guest-panic": Reason.panicked,
    "host-qmp-quit": Reason.quit,
}


def classify(ending: Ending) -> tuple[Reason, str]:
    """Return why a QEMU ended, and the same in words.

    By the event first: QEMU's exit status is 0 for nearly every way to end (measured on 7.2).
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
"""Restarts in a row after which a VM is given up."""
PAUSE_MAX = 60.0
STEADY = 60.0
"""Seconds a VM has to run for its earlier ends to be forgotten."""


class Policy(enum.StrEnum):
    """Which ends are followed by a start, nobody having asked for them."""

    no = words.Policy.no
    on_crash = words.Policy.on_crash
    always = words.Policy.always


_CRASHES = frozenset({Reason.signalled, Reason.failed, Reason.refused, Reason.panicked, Reason.unknown})


def is_restarted(policy: Policy, reason: Reason) -> bool:
    """Tell whether a policy starts a VM again that ended so, nobody having asked."""
    return policy is Policy.always or (policy is Policy.on_crash and reason in _CRASHES)


def pause(tries: int) -> float | None:
    """Return the seconds before the next start after so many in a row; None where it is given up."""
    return min(2.0 ** max(tries, 0), PAUSE_MAX) if tries < RESTARTS_MAX else None
