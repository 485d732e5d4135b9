"""The client's JSON is the standard library's, with and without the code in C."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemons import UNIT
from hypothesis import example, given
from hypothesis import strategies as st

from vmessctl import light_json

ROOT = Path(__file__).parents[3]
TEXTS = st.text(st.characters(codec=None, exclude_categories=()))  # with lone surrogates: names of files
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
PIECES = st.sampled_from(
    [
        *'{}[],:"\\ \t\n-.eE01',
        *("\\u00e9", "\\ud83d", "\\udda5", "nul", "null", "true", "NaN", "Infinity", '"a"', "é"),
    ]
)


def outcome(work: Callable[[Any], Any], value: Any) -> object:
    """What comes of it, so that NaN equals NaN and 1 is not True; for an error, its kind."""
    try:
        return repr(work(value))
    except (ValueError, TypeError) as error:
        return next(kind for kind in (ValueError, TypeError) if isinstance(error, kind))
    except RecursionError:
        return RecursionError


@given(VALUES, st.booleans(), st.sampled_from([None, 0, "\t"]))
@example("\U0001f5a5 \n\\u00e9 \\", True, None)
@example({"": [{}, [], [[]]], "a": {"b": -0.0, "c": 1e300}}, False, None)
@example([float("nan"), float("inf"), float("-inf"), 2**64, -(10**400)], True, None)
def test_values_are_read_and_written_alike(value: Any, ascii_only: bool, indent: Any) -> None:
    assert light_json.dumps(value) == json.dumps(value)
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert outcome(light_json.loads, text) == outcome(json.loads, text)


@given(st.lists(PIECES, max_size=12).map("".join))
@example('{"a": 1, "a": [2], "a": {"a": 3}}')
@example('"\ud83d\udda5 \\ud83d\\udda5 \\ud83d"')
@example("1" * 5000)
@example("-" + "1" * 4000)
@example("1e999")
@example("[" * 10**5)
@example('{"a":' * 10**5)
@example("\ufeff1")
@example("\u00a01")
@example('"\x00"')
@example("")
@example("1 2")
@example("[1,]")
@example("{1: 2}")
def test_texts_are_read_or_refused_alike(text: str) -> None:
    assert outcome(light_json.loads, text) == outcome(json.loads, text)


@pytest.mark.parametrize("value", [(1, 2), {1}, b"", object, {b"": 1}, {1: 2, None: 3, False: 4, 0.5: 5}, 1j])
def test_what_is_no_json_is_refused_alike(value: object) -> None:
    for call in (value, {"value": value}, [value], {"value": [{"value": value}]}):
        assert outcome(light_json.dumps, call) == outcome(json.dumps, call)


def test_nesting_without_end_is_an_error_that_can_be_caught() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(RecursionError):
        light_json.dumps(circle)


def printed(code: str) -> str:
    """What a Python prints that has not imported `json` yet."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30 * UNIT,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("text", ["{", '{"a" 1}', "[1", '"a', '"\\x"', "", "nul", "1 2", "\ufeff1"])
def test_the_first_text_that_is_no_json_is_refused_alike(text: str) -> None:
    """The scanner looks for its error among the modules there are, and `json` is not yet among them."""
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads(text)
    told = printed(f"from vmessctl.light_json import loads; loads({text!r})").splitlines()
    assert told[-1] == f"json.decoder.JSONDecodeError: {caught.value}"


def test_json_is_read_and_written_without_the_package() -> None:
    code = "from vmessctl.light_json import *; print(loads(dumps([1, {}])), 'json' in sys.modules)"
    assert printed(code) == "[1, {}] False\n"


WITHOUT = {
    "no _json": "sys.modules['_json'] = None",
    "another scanner": "import json, _json; _json.make_scanner = lambda context: context.array_hook",
    "another encoder": "import json, _json; _json.make_encoder = lambda markers, default: None",
}


@pytest.mark.parametrize("change", WITHOUT.values(), ids=WITHOUT)
def test_a_python_with_other_code_in_c_takes_the_package(change: str) -> None:
    code = f"{change}; from vmessctl.light_json import *; print(loads.__module__, dumps([1]))"
    assert printed(code) == "json [1]\n"
