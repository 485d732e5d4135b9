"""What `contrib/bench --before` makes of its figures."""

import argparse
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "contrib/dev"))

from bench import app
from bench.before import BOUNDS, Comparison, all_hold


@pytest.mark.parametrize(
    ("slower", "now", "holds"),
    [
        ("ifadd of one NIC, whole command", 12.5, True),
        ("ifadd of one NIC, whole command", 12.6, False),
        ("ifadd of one NIC, open connection", 1000.0, None),
        ("longest wait of another client meanwhile", 20.1, False),
        ("memory without wires", 11.0, True),
        ("memory without wires", 11.1, False),
    ],
)
def test_each_bound_is_held_against_the_medians(slower: str, now: float, holds: bool | None) -> None:
    comparison = Comparison({})
    for what, figures in comparison.figures.items():
        figures["before"] += [9.0, 10.0, 50.0]
        figures["now"] += [1.0, now if what == slower else 10.0, 90.0]
    rows = comparison.judged()
    assert [row["what"] for row in rows] == [*BOUNDS]
    assert next(row["holds"] for row in rows if row["what"] == slower) is holds
    assert all_hold(rows) is (holds is not False)


@pytest.mark.parametrize("held", [True, False])
def test_the_exit_status_follows_from_the_bounds(
    held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "beside", lambda *_: held)
    chosen = argparse.Namespace(peers=False, images=False, wires=False, before="/x", runs=1, json=False)
    assert app.measure(chosen, tmp_path) is held
