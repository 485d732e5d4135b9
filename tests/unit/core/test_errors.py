"""The error tree: wire names, exit statuses, and text that no terminal obeys."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmessd.core import errors
from vmessd.core.errors import (
    DONE,
    ERRORS,
    FORCED,
    INTERRUPTED,
    SEVERITY,
    UNREAD,
    VmessError,
    counted,
    printable,
    quoted,
    worst,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.characters(categories=["Cs"]))
NASTY = ["a\nb", "\x1b[31mred\x1b[0m", "nul\0", "\ud800", "\udcff", "\u202egnp", "\x9b2J", "\r", "x" * 300, ""]

# The contract with everybody's scripts; never renumbered.
STATUSES = {
    "Failed": 1,
    "AlreadyRunning": 1,
    "Stopping": 1,
    "BadFile": 1,
    "StartFailed": 1,
    "NotPermitted": 1,
    "InvalidValue": 2,
    "NotRunning": 3,
    "NoSuchVM": 4,
    "Unreachable": 5,
    "TimedOut": 6,
    "Locked": 7,
}


def descendants(error: type[VmessError]) -> list[type[VmessError]]:
    return [each for child in error.__subclasses__() for each in (child, *descendants(child))]


def test_every_error_is_in_the_table_once() -> None:
    assert len(set(ERRORS)) == len(ERRORS)
    # Other modules under test may be imported by now: a subclass made elsewhere is found here, too.
    assert set(descendants(VmessError)) == set(ERRORS)


def test_exit_statuses_are_the_promised_ones() -> None:
    assert {error.__name__: error.status for error in ERRORS} == STATUSES
    assert (DONE, FORCED, INTERRUPTED, UNREAD) == (0, 8, 130, 141)


def test_module_docstring_is_the_tree() -> None:
    told = dict(re.findall(r":exc:`(\w+)`(?: \((\d)\))? --", errors.__doc__ or ""))
    assert told.keys() == {*STATUSES, "VmessError"}
    assert all(int(status) == STATUSES[name] for name, status in told.items() if status)


def test_wire_names_lead_back_to_their_errors() -> None:
    assert errors.NoSuchVM.wire_name() == "org.emptystack.vmess.NoSuchVM"
    assert {name: error.wire_name() for name, error in errors.BY_WIRE_NAME.items()} == {
        error.wire_name(): error.wire_name() for error in ERRORS
    }


def test_severity_ranks_every_status_once() -> None:
    assert sorted(SEVERITY) == [*range(11), INTERRUPTED, UNREAD]
    assert {error.status for error in ERRORS} < set(SEVERITY)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], 0),
        ([0, 0], 0),
        ([0, 8, 0], 8),
        ([8, 3], 3),
        ([3, 6, 4], 4),
        ([4, 1], 1),
        ([1, 2], 2),
        ([2, 5, 0], 5),
        ([5, 130, 5], 130),
    ],
)
def test_worst_status_wins(statuses: list[int], expected: int) -> None:
    assert worst(statuses) == worst(statuses[::-1]) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text: ünï 日本", "plain text: ünï 日本"),
        ("two\nlines", r"two\nlines"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\0", r"\x00"),
        ("\ud800", r"\ud800"),
        ("\udcff", r"\udcff"),
        ("\u202e", r"\u202e"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_a_terminal_might_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANY_TEXT)
@example("\ud800\udfff")
def test_whatever_comes_in_is_one_printable_line(text: str) -> None:
    for shown in (printable(text), quoted(text), quoted(text, 3)):
        assert shown.isprintable()
        shown.encode("utf-8")


@pytest.mark.parametrize("text", NASTY)
def test_a_message_and_its_hint_are_one_printable_line(text: str) -> None:
    error = VmessError(f"bad {text}", hint=f"try {text}")
    assert error.message.isprintable()
    assert error.hint is not None
    assert error.hint.isprintable()
    assert str(error) == error.message


def test_without_a_hint_there_is_none() -> None:
    assert VmessError("bad").hint is None


def test_long_values_are_cut_and_their_length_told() -> None:
    assert quoted("x" * 80) == f"'{'x' * 80}'"
    assert quoted("x" * 300) == f"'{'x' * 80}...' (300 characters)"
    assert quoted("abcdef", 3) == "'abc...' (6 characters)"
    assert quoted(7) == "'7'"


@pytest.mark.parametrize(("number", "text"), [(0, "0 VMs"), (1, "1 VM"), (2, "2 VMs"), (1000, "1000 VMs")])
def test_one_thing_is_singular(number: int, text: str) -> None:
    assert counted(number, "VM") == text
