"""Plans in a VM directory, which others may have written."""

import json
import os
from pathlib import Path

import pytest

from vmessd.storage import plans

STEPS = {"slot": "hda", "drops": [["x", 1]], "moves": [["a", "b", 1, 2.5]], "links": ["c"]}


def read(place: Path, **changed: object) -> plans.Plan | None:
    text = json.dumps({"vm": "newvm0", "steps": [STEPS | changed], "undo": [], "run": None, "nodes": None})
    (place / plans.FILE).write_text(text.replace('"endless"', "1e999"))
    directory = os.open(place, os.O_PATH)
    try:
        return plans.pending(directory, "newvm0")
    finally:
        os.close(directory)


def test_a_plan_is_read(tmp_path: Path) -> None:
    plan = read(tmp_path)
    assert plan is not None
    assert plan.steps[0].moves[0].when == 2.5


@pytest.mark.parametrize(
    "changed",
    [
        {"drops": [["x", "endless"]]},
        {"drops": [["x\0", 1]]},
        {"drops": [["\ud800", 1]]},
        {"links": ["a\0b"]},
        {"links": ["\ud800"]},
        {"moves": [["a", "b", 1, "endless"]]},
        {"moves": [["a", "b", 1, float("nan")]]},
        {"moves": [["a", "b", 1, 1e300]]},
    ],
)
def test_a_plan_that_the_kernel_would_not_take_is_none(tmp_path: Path, changed: dict[str, object]) -> None:
    assert read(tmp_path, **changed) is None
