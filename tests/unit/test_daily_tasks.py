"""The table of daily tasks: each as short as with the other tools, in words that parse."""

import re
import shlex
from pathlib import Path

import pytest

from vmessctl.cli.grammar import parse

PAGE = Path(__file__).parents[2] / "docs/explanation/daily-tasks.md"
NAMES = ("vmess", "incus", "virsh", "limactl", "quickemu")
NONE = "\N{EN DASH}"
PROGRAMS = ("vmessctl", *NAMES[1:])


def table() -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rows of the table, without the row of dashes."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    titles, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return titles, rows


TASKS = {row[0]: row[1:] for row in table()[1]}


def words(cell: str) -> int:
    """Return how many words are typed."""
    return len(shlex.split(cell.strip("`")))


def test_there_are_twenty_tasks_and_a_column_for_each_tool() -> None:
    titles, rows = table()
    assert titles == ["task", *NAMES]
    assert len(rows) == len(TASKS) == 22
    assert {len(row) for row in rows} == {len(titles)}


@pytest.mark.parametrize("task", TASKS)
def test_no_command_is_longer_than_the_shortest_of_the_others_by_more_than_a_word(task: str) -> None:
    ours, *others = TASKS[task]
    theirs = [words(cell) for cell in others if cell != NONE]
    assert theirs, "nothing to compare with"
    assert words(ours) <= min(theirs) + 1


@pytest.mark.parametrize("task", TASKS)
def test_a_cell_is_a_command_of_its_tool_or_a_dash(task: str) -> None:
    for program, cell in zip(PROGRAMS, TASKS[task], strict=True):
        assert cell == NONE or re.fullmatch(rf"`{program}( [^`]+)?`", cell), cell
    _, *command = shlex.split(TASKS[task][0].strip("`"))
    assert parse(command).vms[:1] == (("leaf0",) if command else ())
