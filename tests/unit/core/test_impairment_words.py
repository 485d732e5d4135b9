"""The words for impaired cables, and the file IMPAIRMENTS."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmessd.core import impairment_words, impairments
from vmessd.core.errors import InvalidValue
from vmessd.core.impairments import Impaired
from vmessd.core.models.wires import Flap, Impairment

FRACTIONS = st.integers(0, 10**6).map(lambda number: number / 10**6)
IMPAIRMENTS = st.builds(
    Impairment,
    delay=st.integers(10**6, 6 * 10**7).map(lambda number: number / 10**6),
    jitter=st.integers(0, 10**6).map(lambda number: number / 10**6),
    loss=FRACTIONS,
    duplicate=FRACTIONS,
    reorder=FRACTIONS,
    corrupt=FRACTIONS,
    rate=st.sampled_from([0]) | st.integers(impairments.RATE_MIN, impairments.RATE_MAX),
)


@pytest.mark.parametrize(
    ("text", "impairment"),
    [
        ("good", None),
        ("loss 0%", None),
        ("delay 20ms", Impairment(delay=0.02)),
        ("delay 1.5s jitter 300us", Impairment(delay=1.5, jitter=0.0003)),
        ("loss 0.1% duplicate 100%", Impairment(loss=0.001, duplicate=1.0)),
        ("rate 10M", Impairment(rate=10_000_000)),
        ("rate 1500", Impairment(rate=1500)),
        ("rate 2.5G corrupt 1%", Impairment(rate=2_500_000_000, corrupt=0.01)),
        ("reorder 25% delay 60s", Impairment(delay=60.0, reorder=0.25)),
    ],
)
def test_words_of_an_impairment(text: str, impairment: Impairment | None) -> None:
    assert impairments.parse(text.split()) == impairment


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a cable is none of on, off, good, flap 5s/1s, or words such as delay 20ms"),
        ("bogus 1", "cable 'bogus' is none of"),
        ("loss 200%", "loss 200% is not between 0% and 100%"),
        ("loss 1", "loss '1' is not a percentage such as 1% or 0.1%"),
        ("loss nan%", "loss 'nan%' is not a percentage"),
        ("delay 604800s", "delay 604800s is not between 0s and 60s"),
        ("delay 1w", "delay '1w' is not a time such as 20ms, 1.5s or 300us"),
        ("delay 20", "delay '20' is not a time"),
        ("delay -5ms", "delay '-5ms' is not a time"),
        ("delay 1e9s", "delay '1e9s' is not a time"),
        ("rate 0", "rate 0 is not between 1k and 32G bits per second"),
        ("rate 10Mbit", "rate '10Mbit' is not a number of bits per second such as 10M, 512k or 1G"),
        ("delay", "delay lacks its value"),
        ("delay 1ms loss", "loss lacks its value"),
        ("delay 1ms good 1", "'good' is none of delay, jitter"),
        ("delay 1ms delay 2ms", "delay is given twice"),
        ("jitter 5ms", "jitter 5ms is more than the delay, 0s"),
        ("delay 1ms jitter 1.5ms", "jitter 1.5ms is more than the delay, 1ms"),
        ("reorder 1%", "reorder 1% needs a delay"),
    ],
)
def test_what_makes_no_sense_is_named(text: str, why: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        impairments.parse(text.split())
    assert why in caught.value.message
    assert caught.value.message.isprintable()


def test_the_times_of_a_cable_that_flaps() -> None:
    assert impairments.parse_flap("5s/500ms") == Flap(5.0, 0.5)
    for text in ("5s", "5s/", "/", "5/1", "1ms/1s", "5s/1s/1s", "86401s/1s", "5s/99ms"):
        with pytest.raises(InvalidValue, match=r"^flap "):
            impairments.parse_flap(text)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.integers(0, 28), st.tuples(IMPAIRMENTS, st.none() | IMPAIRMENTS, st.booleans()), max_size=3
    )
)
def test_a_file_says_what_was_written(noted: dict[int, tuple[Impairment, Impairment | None, bool]]) -> None:
    whole = {
        index: Impaired(incoming, outgoing, Flap(5.0, 0.5) if flaps else None)
        for index, (incoming, outgoing, flaps) in noted.items()
    }
    text = impairments.file_text(whole)
    assert impairments.parse_file(text) == whole
    assert impairments.file_text(impairments.among(whole, {0})) == impairments.file_text(
        {index: one for index, one in whole.items() if index == 0}
    )


@pytest.mark.parametrize(
    "text",
    ["x", "0", "64 in loss 1%", "-1 in loss 1%", "0 up loss 1%", "0 flap", "0 in loss 200%", "0 in", "0\n\n1"],
)
def test_a_file_that_says_something_else_is_refused(text: str) -> None:
    with pytest.raises((ValueError, InvalidValue)):
        impairments.parse_file(text)


def test_two_impairments_in_a_row() -> None:
    one = Impairment(delay=0.02, jitter=0.01, loss=0.1, duplicate=0.5, rate=10**6)
    other = Impairment(delay=0.01, loss=0.5, reorder=0.25, corrupt=1.0, rate=10**7)
    assert impairments.combined(one, None) == impairments.combined(None, one) == one
    assert impairments.combined(None, None) is None
    both = impairments.combined(one, other)
    assert both == impairments.combined(other, one)
    assert both is not None
    assert (both.delay, both.jitter, both.rate) == (0.03, 0.01, 10**6)
    assert both.loss == pytest.approx(0.55)
    assert (both.duplicate, both.reorder, both.corrupt) == (0.5, 0.25, 1.0)


@pytest.mark.parametrize(
    ("rate", "text"),
    [(1000, "1k"), (1001, "1.001k"), (10**7, "10M"), (10**7 + 1, "10.000001M"), (32 * 10**9, "32G")],
)
def test_a_rate_is_written_exactly(rate: int, text: str) -> None:
    assert impairment_words.words({"rate": rate}) == f"rate {text}"
