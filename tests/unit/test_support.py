"""What the tests themselves stand on."""

import time

import daemons
import pytest
from daemons import wait_for
from pace import unit_of


@pytest.mark.parametrize(("text", "unit"), [("1", 1), ("3", 3), ("0.5", 0.5), ("100", 100)])
def test_a_unit_is_a_number_of_seconds(text: str, unit: float) -> None:
    assert unit_of(text) == unit


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "101", "nan", "inf", "1s"])
def test_what_is_no_unit_is_named_in_one_line(text: str) -> None:
    with pytest.raises(SystemExit, match="is not a number of seconds above 0 and up to 100") as refused:
        unit_of(text)
    assert f"VMESS_TEST_UNIT={text!r}" in str(refused.value)


def test_what_is_waited_for_has_as_many_units_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "UNIT", 0.01)
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"a wonder did not happen in 0\.2 s"):
        wait_for(lambda: False, 20, "a wonder")
    assert 0.2 <= time.monotonic() - began < 5
