"""The words of the control socket: one table for each enumeration, and the same on both sides."""

import enum

import pytest

from vmessctl.commands import network
from vmessctl.output.phrases import PHRASES
from vmessd.core import accelerators, lifecycle, settings, words
from vmessd.core.impairments import Direction
from vmessd.core.models import consoles, daemon, events, moves, progress, wires
from vmessd.core.wires import Protocol

ENUMERATIONS: tuple[tuple[type[enum.Enum], type], ...] = (
    (lifecycle.State, words.State),
    (lifecycle.Reason, words.Reason),
    (lifecycle.Rung, words.Rung),
    (lifecycle.Policy, words.Policy),
    (accelerators.Accelerator, words.Accelerator),
    (Protocol, words.Protocol),
    (Direction, words.Direction),
    (wires.StepKind, words.StepKind),
    (progress.FleetStep, words.FleetStep),
    (daemon.DaemonKind, words.DaemonKind),
    (progress.BringStep, words.BringStep),
    (consoles.Ending, words.Ending),
    (moves.MoveStep, words.MoveStep),
    (events.Kind, words.Kind),
)


def members(kind: type) -> dict[str, str]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize(("enumeration", "table"), ENUMERATIONS, ids=lambda kind: kind.__qualname__)
def test_an_enumeration_has_the_words_of_its_table(enumeration: type[enum.Enum], table: type) -> None:
    assert {member.name: member.value for member in enumeration} == members(table)


def test_every_table_is_somebodys() -> None:
    tables = {kind for kind in vars(words).values() if isinstance(kind, type)}
    assert tables == {table for _, table in ENUMERATIONS} | {words.Runstate}


def test_the_states_without_a_qemu_are_the_same_on_both_sides() -> None:
    assert {lifecycle.State(word) for word in words.OFF} == lifecycle.OFF


def test_every_policy_can_be_set() -> None:
    setting = settings.BY_FILE["RESTART"]
    assert [setting.value(policy) for policy in lifecycle.Policy] == list(settings.RESTARTS)


def test_every_reason_has_its_words() -> None:
    assert set(lifecycle.IN_WORDS) == set(lifecycle.Reason)


def test_every_step_of_wires_is_told_by_the_client() -> None:
    said = {kind for kind in wires.StepKind if kind in PHRASES}
    assert set(wires.StepKind) == said | set(network.ASIDES)
    assert {f"aside {kind}" for kind in network.ASIDES} <= set(PHRASES)
    assert set(network.QUIETLY) <= said
