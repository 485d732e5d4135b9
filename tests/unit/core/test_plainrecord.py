"""Rows of the tables that daemon and client share are records: equal by their fields, shown, and complete."""

from typing import Any

import pytest

from vmessctl.cli.grammar import Step
from vmessctl.cli.verbs import COMMANDS, Command, Group, Invocation, Option, Summary
from vmessctl.output.table import Column
from vmessctl.output.top_table import Sort
from vmessd.core.plainrecord import PlainRecord
from vmessd.core.settings import Autostart, Drive, Setting

KINDS = (Autostart, Drive, Setting, Option, Group, Summary, Command, Invocation, Step, Column, Sort)


def test_records_are_equal_where_their_fields_are() -> None:
    assert Autostart(1, 2) == Autostart(delay=2, order=1)
    assert Autostart(1, 2) != Autostart(1, 3)
    assert Option("-x", "Help.") == Option("-x", "Help.", None)
    assert COMMANDS[0] != COMMANDS[1]


def test_records_show_their_fields() -> None:
    assert repr(Autostart(1, 2)) == "Autostart(order=1, delay=2)"
    assert repr(Option("-x", "Help.")) == "Option(flag='-x', help='Help.', metavar=None, alias='')"


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_that_lacks_a_field_or_has_one_too_many_is_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="missing"):
        kind("a")
    with pytest.raises(TypeError, match="positional arguments"):
        kind(*"abcdefghijklmnopqrstuvwxyz")
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        kind(other=1)


def test_those_are_all_kinds_of_records() -> None:
    assert set(PlainRecord.__subclasses__()) >= set(KINDS)
