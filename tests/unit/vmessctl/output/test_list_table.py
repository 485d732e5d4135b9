"""The table of `list`: its columns, its order, and what fits into a terminal."""

from typing import Any

import pytest

from vmessctl.output import list_table
from vmessctl.output.table import Column, grid
from vmessd.core.errors import InvalidValue


def vm(name: str, state: str = "running", **more: object) -> dict[str, Any]:
    on = state not in ("stopped", "waiting")
    return {
        "name": name,
        "state": state,
        "pid": 7 if on else None,
        "uptime": 200.0 if on else None,
        "runstate": "running" if on else None,
        "cpus": 2,
        "memory": 2**31,
        "disk": 0,
        "addresses": [],
        "locked": False,
        "autostart": False,
        "pending": False,
        "problem": None,
        **more,
    }


VMS = [
    vm("a0", "stopped", locked=True, autostart=True, disk=2**33),
    vm("b0", "paused", runstate="io-error", problem="hda: bad\x1b"),
    vm("leaf12", addresses=["192.0.2.7", "fe80::1"], pending=True),
]


def test_one_line_a_vm_those_that_run_first() -> None:
    assert list_table.lines(list_table.in_order(VMS)) == [
        "NAME    STATE    CPU  MEMORY  DISK     UP  ADDRESS       NOTE",
        "b0      paused     2      2G     -  3 min  -             io-error, hda: bad\\x1b",
        "leaf12  running    2      2G     -  3 min  192.0.2.7 +1  changes at next start",
        "a0      stopped    2      2G    8G      -  -             locked, autostart",
    ]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 132])
def test_it_fits_into_the_terminal(width: int) -> None:
    lines = list_table.lines(list_table.in_order(VMS), width=width)
    assert all(len(line) <= width for line in lines)
    assert [line.split()[0] for line in lines] == ["NAME", "b0", "leaf12", "a0"]
    assert [line.split()[1] for line in lines] == ["STATE", "paused", "running", "stopped"]


def test_a_long_note_is_cut_before_a_column_is_dropped() -> None:
    long = list_table.lines([vm("a0", problem="x" * 500)], width=80)
    assert long[0].endswith("NOTE")
    assert "ADDRESS" in long[0]
    assert "DISK" in long[0]
    assert len(long[1]) == 80


def test_what_is_not_known_is_a_dash() -> None:
    unknown = dict.fromkeys(("cpus", "memory", "disk", "locked", "autostart", "uptime", "pid"))
    [line] = list_table.lines([vm("a0", "stopped", **unknown)], header=False)
    assert line.split() == ["a0", "stopped", *"-----"]


def test_columns_are_picked_by_name() -> None:
    columns = list_table.chosen("state,name,pid")
    assert list_table.lines(VMS[:1], columns) == ["STATE    NAME  PID", "stopped  a0      -"]
    assert list_table.lines(VMS[:1], columns, header=False) == ["stopped  a0      -"]


@pytest.mark.parametrize("picked", ["note,name", "name,note", "note,note,name", "note,host,name,state"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_long_note_leaves_room_for_the_columns_after_it(picked: str, width: int) -> None:
    lines = list_table.lines([vm("a0", problem="x" * 150), vm("b0")], list_table.chosen(picked), width)
    for line, name in zip(lines, ("NAME", "a0", "b0"), strict=True):
        assert name in line.split()
        assert len(line) <= width


def test_a_note_has_the_width_that_the_other_columns_leave() -> None:
    vms = [vm("a0", problem="x" * 150), vm("b0", problem="short")]
    assert list_table.lines(vms, list_table.chosen("note,name"), 20) == [
        "NOTE            NAME",
        "xxxxxxxxxxxxx…  a0",
        "short           b0",
    ]
    assert list_table.lines(vms, list_table.chosen("note,name"), 200)[1] == "x" * 150 + "  a0"
    assert list_table.lines(vms[1:], list_table.chosen("note,name"), 20) == ["NOTE   NAME", "short  b0"]


@pytest.mark.parametrize("text", ["", "name,", "Name", "name state", "colour\x1b"])
def test_a_wrong_column_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        list_table.chosen(text)
    assert caught.value.message.endswith("is not a column")
    assert caught.value.hint == "-o takes name,state,cpu,memory,disk,up,address,note,pid,host"


@pytest.mark.parametrize(
    ("one", "colour"),
    [
        (vm("a0"), ""),
        (vm("a0", "stopped"), "2"),
        (vm("a0", "paused"), "33"),
        (vm("a0", "unresponsive"), "31"),
        (vm("a0", "held"), "31"),
        (vm("a0", "stopped", problem="RAM 'x'"), "31"),
    ],
)
def test_what_needs_attention_stands_out(one: dict[str, Any], colour: str) -> None:
    assert list_table.colour(one) == colour


@pytest.mark.parametrize("width", [1, 5, 20, 40, 80])
def test_a_table_that_is_too_wide_keeps_its_names(width: int) -> None:
    columns = [Column(title, lambda _: "x" * 60, 0, left=True) for title in ("NAME", "ON")]
    assert grid(columns, [{}], width) == ["NAME"[:width], "x" * min(60, width)]
