"""The client's own JSON says what the standard library's says."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmessctl import notation

TEXTS = st.text(st.characters(codec=None, exclude_categories=()))  # with lone surrogates: names of files
INTEGERS = st.integers(-(2**63), 2**63)
NUMBERS = INTEGERS | st.floats(allow_nan=False, allow_infinity=False)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)
CALLS: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 0, "\t"]))
@example("\U0001f5a5 \n\\u00e9 \\", True, None)
@example({"": [{}, [], [[]]], "a": {"b": -0.0, "c": 1e300}}, False, None)
def test_what_json_writes_is_read(value: Any, ascii_only: bool, indent: Any) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    # The two surrogates of a pair, escaped one by one, are read as one character by both.
    assert notation.loads(text) == json.loads(json.dumps(value))


@settings(deadline=None)
@given(CALLS)
@example({"method": "x", "parameters": {"value": 'caf\udce9 "\\\x00\x7f\U0001f5a5', "force": True}})
@example({"count": 2, "wires": ["bridge1", "-", "user:2222:22"], "guest": None, "interface": 0, "on": False})
@example([1, True, 0, False, -1, 0.5, -0.0, 1e300, None, [], {}, [[]]])
def test_what_is_written_json_reads(value: Any) -> None:
    written = notation.dumps(value)
    assert repr(json.loads(written.encode())) == repr(json.loads(json.dumps(value)))  # 1 is not True there
    assert repr(notation.loads(written)) == repr(json.loads(written.encode()))


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "[", '"', "{]", "[}", "[1", "[1 2]", "[,]", '{"a"}', '{"a":}', '{"a" 1}', "{1:2}"),
        *(
            '"a',
            '"\\',
            '"\\x"',
            '"\\u12"',
            '"\\u12',
            "nul",
            "-",
            "1-",
            "1 2",
            "{} {}",
            '{"a":1,}',
            "[1,]",
            "'a'",
        ),
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no JSON|could not convert|invalid literal|substring not found"):
        notation.loads(text)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), (), {1}, b"", object])
def test_a_call_has_nothing_that_json_has_no_word_for(value: object) -> None:
    for call in (value, {"value": value}, [value], {"value": [{"value": value}]}):
        with pytest.raises(TypeError):
            notation.dumps(call)
