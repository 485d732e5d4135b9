"""The life of a VM: every pair of the table, every step of the ladder, every kind of end."""

import itertools

import pytest

from vmessd.core import lifecycle
from vmessd.core.lifecycle import Action, Ending, Event, Policy, Reason, Rung, State, Step, classify, transition

# Rows are states, columns events, a cell is the next state and the action; "=" is the same state and
# "." is "= nothing". Written without a look at the code's table: to change one is to change both.
EXPECTED = """
              start             stop              force             found
stopped       starting/spawn    =/say_stopped     =/say_stopped     unresponsive/connect
waiting       starting/spawn    stopped/call_off  stopped/call_off  unresponsive/connect
starting      =/join            stopping/kill     stopping/kill     unresponsive/connect
running       =/say_running     stopping/ladder   stopping/kill     .
paused        =/say_running     stopping/ladder   stopping/kill     .
unresponsive  =/say_running     stopping/ladder   stopping/kill     .
held          =/look            =/look            =/look            unresponsive/connect
stopping      =/say_stopping    =/join            =/kill            =/cut_off

              born              runs              halts             silent
stopped       .                 .                 .                 .
waiting       .                 .                 .                 .
starting      =/cont            running/started   paused/started    unresponsive/hangs
running       .                 .                 paused/nothing    unresponsive/nothing
paused        .                 running/nothing   .                 unresponsive/nothing
unresponsive  starting/cont     running/nothing   paused/nothing    .
held          .                 .                 .                 .
stopping      .                 .                 .                 .

              lost              rung              refused           exited
stopped       .                 .                 .                 .
waiting       .                 .                 .                 .
starting      =/reconnect       .                 =/bury            =/bury
running       unresponsive/reconnect  .           =/bury            =/bury
paused        unresponsive/reconnect  .           =/bury            =/bury
unresponsive  =/reconnect       .                 =/bury            =/bury
held          .                 .                 .                 .
stopping      =/reconnect       =/climb           =/bury            =/bury

              pause             again             amiss             buried
stopped       waiting/rest      .                 =/mend            .
waiting       .                 starting/spawn    =/mend            .
starting      .                 .                 =/mend            stopped/nothing
running       .                 .                 =/mend            stopped/nothing
paused        .                 .                 =/mend            stopped/nothing
unresponsive  .                 .                 =/mend            stopped/nothing
held          .                 .                 =/mend            .
stopping      .                 .                 =/mend            stopped/nothing

              spawned           late
stopped       .                 .
waiting       .                 .
starting      =/take_on         =/delay
running       .                 .
paused        .                 .
unresponsive  .                 .
held          .                 .
stopping      =/cut_off         =/delay

              held              free              look
stopped       held/hold         .                 =/look
waiting       held/hold         .                 =/look
starting      held/hold         .                 .
running       .                 .                 .
paused        .                 .                 .
unresponsive  .                 .                 .
held          .                 stopped/nothing   =/look
stopping      held/hold         .                 .
"""


def read_table(text: str) -> dict[tuple[State, Event], tuple[State, Action]]:
    table = {}
    for block in text.strip("\n").split("\n\n"):
        heading, *rows = block.splitlines()
        events = [Event[name] for name in heading.split()]
        for row in rows:
            name, *cells = row.split()
            state = State[name]
            for event, cell in zip(events, cells, strict=True):
                target, action = ("= nothing" if cell == "." else cell.replace("/", " ")).split()
                table[state, event] = (state if target == "=" else State[target], Action[action])
    return table


TABLE = read_table(EXPECTED)
PAIRS = list(itertools.product(State, Event))


def test_the_expected_table_has_every_pair() -> None:
    assert TABLE.keys() == set(PAIRS)


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.name)
def test_transition(state: State, event: Event) -> None:
    assert transition(state, event) == TABLE[state, event]


OFF = {State.stopped, State.waiting}


def test_only_a_vm_that_is_off_is_spawned() -> None:
    assert {pair for pair in PAIRS if transition(*pair)[1] is Action.spawn} == {
        *((state, Event.start) for state in OFF),
        (State.waiting, Event.again),
    }
    assert OFF == lifecycle.OFF


def test_a_vm_is_off_only_when_the_end_of_its_process_is_on_record() -> None:
    ways = {
        event for state, event in PAIRS if state not in OFF and transition(state, event)[0] in lifecycle.OFF
    }
    assert ways == {Event.buried, Event.free}


def test_what_is_held_is_neither_started_nor_stopped_while_it_is() -> None:
    outcomes = {event: transition(State.held, event) for event in Event}
    assert {event for event, (state, _) in outcomes.items() if state is not State.held} == {
        Event.found,
        Event.free,
    }
    actions = {action for _, action in outcomes.values()}
    assert actions == {Action.look, Action.connect, Action.nothing, Action.mend}


def test_the_end_of_the_process_stops_a_vm_in_any_state_and_buries_it_once() -> None:
    for state in set(State) - OFF - {State.held}:
        assert transition(state, Event.exited) == (state, Action.bury)
        assert transition(state, Event.buried) == (State.stopped, Action.nothing)
    for state in {*OFF, State.held}:
        assert transition(state, Event.exited) == (state, Action.nothing)


def test_a_stopped_vm_is_left_only_by_start_and_found_and_held_and_for_a_pause() -> None:
    left = {event for event in Event if transition(State.stopped, event)[0] is not State.stopped}
    assert left == {Event.start, Event.found, Event.held, Event.pause}


def test_a_stop_ends_the_wait_for_a_restart() -> None:
    ways = {event for event in Event if transition(State.waiting, event)[0] is State.stopped}
    assert ways == {Event.stop, Event.force}


# Restarts


CRASHES = (Reason.signalled, Reason.failed, Reason.refused, Reason.panicked, Reason.unknown)


@pytest.mark.parametrize("reason", Reason)
def test_each_policy_restarts_what_it_says(reason: Reason) -> None:
    restarted = [lifecycle.is_restarted(policy, reason) for policy in Policy]
    assert restarted == [False, reason in CRASHES, True]


def test_pauses_double_up_to_a_minute_and_come_to_an_end() -> None:
    pauses = [lifecycle.pause(tries) for tries in range(8)]
    assert pauses == [1, 2, 4, 8, 16, 32, None, None]


def test_a_stop_once_begun_is_never_taken_back() -> None:
    ways = {transition(State.stopping, event)[0] for event in Event}
    assert ways == {State.stopping, State.stopped, State.held}
    # A start that was called off would have come to nothing: somebody else has the directory.
    assert [event for event in Event if transition(State.stopping, event)[0] is State.held] == [Event.held]


def test_silence_never_ends_a_vm() -> None:
    for state in State:
        for event in (Event.silent, Event.lost):
            after, action = transition(state, event)
            assert after in (state, State.unresponsive)
            assert action not in (Action.kill, Action.ladder, Action.bury, Action.spawn)


def test_every_request_is_answered_or_under_way() -> None:
    for state in State:
        for event in (Event.start, Event.stop, Event.force):
            assert transition(state, event)[1] is not Action.nothing


def test_every_state_and_action_is_reached_and_every_event_is_used() -> None:
    outcomes = [transition(*pair) for pair in PAIRS]
    assert {state for state, _ in outcomes} == set(State)
    assert {action for _, action in outcomes} == set(Action)
    used = {event for state, event in PAIRS if transition(state, event) != (state, Action.nothing)}
    assert used == set(Event)


@pytest.mark.parametrize(
    ("runstate", "event"),
    [
        ("running", Event.runs),
        ("prelaunch", Event.born),
        ("paused", Event.halts),
        ("io-error", Event.halts),
        ("internal-error", Event.halts),
        ("guest-panicked", Event.halts),
        ("shutdown", Event.halts),
        ("suspended", Event.halts),
        ("watchdog", Event.halts),
        ("debug", Event.halts),
        ("one that QEMU will have next year", Event.halts),
    ],
)
def test_runstate_event(runstate: str, event: Event) -> None:
    assert lifecycle.runstate_event(runstate) is event


PRESSES = {
    0: [],
    1: [0],
    5: [0],
    12: [0, 5, 10],
    60: [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55],
}


@pytest.mark.parametrize("grace", PRESSES)
def test_ladder(grace: int) -> None:
    assert list(lifecycle.ladder(grace)) == [
        *(Step(at, Rung.powerdown) for at in PRESSES[grace]),
        Step(grace, Rung.quit),
        Step(grace + 1.5, Rung.term),
        Step(grace + 3.0, Rung.kill),
        Step(grace + 4.5, Rung.kill),
    ]


@pytest.mark.parametrize("grace", [*PRESSES, 0.1, 4.999, 5.001, 86400])
def test_c08_ladder_climbs_and_ends_within_grace_and_five_seconds(grace: float) -> None:
    steps = list(lifecycle.ladder(grace))
    moments = [step.at for step in steps]
    assert moments == sorted(set(moments))
    assert moments[-1] < grace + 5
    hardness = [list(Rung).index(step.rung) for step in steps]
    assert hardness == sorted(hardness)
    assert [step.rung for step in steps[-4:]] == [Rung.quit, Rung.term, Rung.kill, Rung.kill]


def test_force_is_sigkill_at_once_and_once_more() -> None:
    assert list(lifecycle.by_force()) == [Step(0, Rung.kill), Step(1.5, Rung.kill)]


# ShutdownCause of qapi/run-state.json.
CAUSES = (
    *(None, "none", "host-error", "host-qmp-quit", "host-qmp-system-reset", "host-signal", "host-ui"),
    *("guest-shutdown", "guest-reset", "guest-panic", "subsystem-reset", "snapshot-load"),
)
STATUSES = (None, 0, 1, 2, 255, -6, -9, -15)
FORCE = (Rung.quit, Rung.term, Rung.kill)
ENDINGS = [
    Ending(ran, cause, status, rung)
    for ran in (True, False)
    for cause in CAUSES
    for status in STATUSES
    for rung in (None, *Rung)
]

MAIN_CASES = """
ran shutdown        status rung       reason       words
yes guest-shutdown  0      -          powered_off  guest powered off
yes guest-shutdown  -      -          powered_off  guest powered off
yes guest-shutdown  0      powerdown  powered_down powered down as asked
yes guest-shutdown  0      quit       powered_down powered down as asked
yes guest-reset     0      -          reset        guest reset, and QEMU was told not to reboot
yes guest-panic     0      -          panicked     guest panicked
yes guest-panic     0      powerdown  panicked     guest panicked
yes host-qmp-quit   0      -          quit         QEMU was told to quit
yes host-qmp-quit   0      quit       forced       forced off
yes host-signal     0      term       forced       forced off
yes -               -9     kill       forced       forced off
no  -               -9     kill       forced       forced off
yes -               -9     -          signalled    killed by signal 9
yes -               -9     powerdown  signalled    killed by signal 9
no  -               -6     -          signalled    killed by signal 6
yes host-signal     0      -          signalled    killed by a signal
yes host-signal     -      -          signalled    killed by a signal
yes -               1      -          failed       QEMU failed with exit status 1
no  -               1      -          refused      QEMU did not start
no  -               0      -          refused      QEMU did not start
yes -               0      -          unknown      ended for an unknown reason
yes -               -      -          unknown      ended for an unknown reason
"""


FOR_OTHERS = {Reason.unseen, Reason.moved}
"""The reasons that the end itself does not show: somebody was not there, or the guest is elsewhere."""


@pytest.mark.parametrize("row", MAIN_CASES.strip().splitlines()[1:])
def test_classify_main_cases(row: str) -> None:
    ran, shutdown, status, rung, reason, text = row.split(None, 5)
    ending = Ending(
        ran == "yes",
        None if shutdown == "-" else shutdown,
        None if status == "-" else int(status),
        None if rung == "-" else Rung[rung],
    )
    assert classify(ending) == (Reason[reason], text)


def test_classify_has_words_for_every_ending() -> None:
    for ending in ENDINGS:
        reason, text = classify(ending)
        assert text.isprintable()
        assert text
        assert reason not in FOR_OTHERS


def test_classify_says_forced_only_of_a_stop_that_came_to_force() -> None:
    for ending in ENDINGS:
        guest_obeyed = ending.shutdown in ("guest-shutdown", "host-ui")
        assert (classify(ending)[0] is Reason.forced) == (ending.rung in FORCE and not guest_obeyed)


def test_classify_believes_a_guest_that_powered_off() -> None:
    for ending in ENDINGS:
        if ending.shutdown == "guest-shutdown":
            expected = Reason.powered_off if ending.rung is None else Reason.powered_down
            assert classify(ending)[0] is expected


def test_classify_says_powered_down_only_where_it_was_asked() -> None:
    for ending in ENDINGS:
        if classify(ending)[0] is Reason.powered_down:
            assert ending.rung is not None
            assert ending.shutdown in ("guest-shutdown", "host-ui")


def test_classify_names_the_signal_where_it_is_known() -> None:
    for ending in ENDINGS:
        reason, text = classify(ending)
        if reason is Reason.signalled:
            negative = ending.status is not None and ending.status < 0
            assert negative or ending.shutdown == "host-signal"
            assert text == (f"killed by signal {-(ending.status or 0)}" if negative else "killed by a signal")


def test_classify_says_refused_only_of_a_guest_that_never_ran_and_failed_only_of_one_that_did() -> None:
    for ending in ENDINGS:
        reason, text = classify(ending)
        if reason is Reason.refused:
            assert not ending.ran
        if reason is Reason.failed:
            assert ending.ran
            assert ending.status is not None
            assert ending.status > 0
            assert text == f"QEMU failed with exit status {ending.status}"


def test_classify_reaches_every_other_reason() -> None:
    assert {classify(ending)[0] for ending in ENDINGS} == set(Reason) - FOR_OTHERS
