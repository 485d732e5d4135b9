"""Cables that are worse than perfect: the words for that, and the file IMPAIRMENTS. Pure.

The words are those of tc-netem(8), which does it. Times need a unit and fractions a percent sign; rates are in
bits per second, with k, M and G as powers of 1000.
"""

import enum
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from vmessd.core import impairment_words
from vmessd.core import words as spelled
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.impairment_words import RATES, TIMES, WORDS, percent
from vmessd.core.impairment_words import rate as rate_text
from vmessd.core.impairment_words import time as time_text
from vmessd.core.models.wires import Flap, Impairment
from vmessd.core.names import INTERFACES_MAX

DELAY_MAX = 60.0
"""Seconds: no path on Earth takes longer, and netem keeps every frame that is under way in memory."""
RATE_MIN, RATE_MAX = 1000, 32 * 10**9
"""Bits per second; netem counts bytes per second in 32 bits."""
PERIOD_MIN, PERIOD_MAX = 0.1, 86400.0
"""Seconds for which a flapping cable may be in or out."""

GOOD, FLAP = "good", "flap"

_NUMBER = r"[0-9]{1,11}(?:\.[0-9]{1,6})?"
_FORM = "delay 20ms, jitter 5ms, loss 1%, rate 10M, duplicate 0.1%, reorder 1%, corrupt 0.1%"


class Direction(enum.StrEnum):
    """Where frames of an interface go."""

    to_guest = spelled.Direction.to_guest
    from_guest = spelled.Direction.from_guest

    @classmethod
    def parse(cls, word: str | None) -> "Direction | None":
        """Return the direction of a word, or None for None, both of them; raises InvalidValue."""
        if word is None:
            return None
        try:
            return cls(word)
        except ValueError:
            raise InvalidValue(f"direction {quoted(word)} is neither {' nor '.join(cls)}") from None


@dataclass(frozen=True)
class Impaired:
    """What is wrong with the cable of one interface; None for nothing."""

    incoming: Impairment | None = None
    """With frames to the guest."""
    outgoing: Impairment | None = None
    """With frames from the guest."""
    flap: Flap | None = None

    def with_direction(self, direction: Direction | None, impairment: Impairment | None) -> "Impaired":
        """Return the same with one direction, or both for None, impaired like this."""
        incoming = impairment if direction != Direction.from_guest else self.incoming
        outgoing = impairment if direction != Direction.to_guest else self.outgoing
        return replace(self, incoming=incoming, outgoing=outgoing)


PERFECT = Impaired()


# -- Words --


def parse(words: Sequence[str]) -> Impairment | None:
    """Return the impairment that pairs of words say, such as `delay 20ms loss 1%`; None for `good`.

    Raises InvalidValue.
    """
    if list(words) == [GOOD]:
        return None
    if not words or words[0] not in WORDS:
        said = f"cable {quoted(words[0])} is" if words else "a cable is"
        raise InvalidValue(f"{said} none of on, off, good, flap 5s/1s, or words such as {_FORM}")
    found: dict[str, float] = {}
    for word, value in zip(words[::2], [*words[1::2], *([""] * (len(words) % 2))], strict=True):
        if word not in WORDS:
            raise InvalidValue(f"{quoted(word)} is none of {', '.join(WORDS)}")
        if word in found:
            raise InvalidValue(f"{word} is given twice")
        if not value:
            raise InvalidValue(f"{word} lacks its value: {_FORM}")
        found[word] = _value(word, value)
    impairment = Impairment(**{**found, "rate": int(found.get("rate", 0))})  # type: ignore[arg-type]
    _check(impairment)
    return impairment if impairment != Impairment() else None


def _value(word: str, text: str) -> float:
    if WORDS[word] is time_text:
        return seconds(word, text, 0.0, DELAY_MAX)
    return _rate(text) if word == "rate" else _share(word, text)


def _check(impairment: Impairment) -> None:
    """Raise InvalidValue for words that do not fit together."""
    if impairment.jitter > impairment.delay:
        raise InvalidValue(
            f"jitter {time_text(impairment.jitter)} is more than the delay, {time_text(impairment.delay)}: "
            "a frame cannot arrive before it was sent"
        )
    if impairment.reorder and not impairment.delay:
        raise InvalidValue(
            f"reorder {percent(impairment.reorder)} needs a delay: frames that are not delayed overtake others"
        )


def seconds(what: str, text: str, low: float, high: float) -> float:
    """Return a time such as `20ms` in seconds; raises InvalidValue, which says what it is the time of."""
    found = re.fullmatch(rf"({_NUMBER})(us|ms|s)", text, re.ASCII)
    if found is None:
        raise InvalidValue(f"{what} {quoted(text)} is not a time such as 20ms, 1.5s or 300us")
    value = round(float(found[1]) * TIMES[found[2]], 9)
    if not low <= value <= high:
        raise InvalidValue(f"{what} {text} is not between {time_text(low)} and {time_text(high)}")
    return value


def _share(word: str, text: str) -> float:
    found = re.fullmatch(rf"({_NUMBER})%", text, re.ASCII)
    if found is None:
        raise InvalidValue(f"{word} {quoted(text)} is not a percentage such as 1% or 0.1%")
    if float(found[1]) > 100:
        raise InvalidValue(f"{word} {text} is not between 0% and 100%")
    return round(float(found[1]) / 100, 9)


def _rate(text: str) -> int:
    found = re.fullmatch(rf"({_NUMBER})([kMG]?)", text, re.ASCII)
    if found is None:
        raise InvalidValue(f"rate {quoted(text)} is not a number of bits per second such as 10M, 512k or 1G")
    value = round(float(found[1]) * RATES.get(found[2], 1))
    if not RATE_MIN <= value <= RATE_MAX:
        raise InvalidValue(
            f"rate {text} is not between {rate_text(RATE_MIN)} and {rate_text(RATE_MAX)} bits per second"
        )
    return value


def parse_flap(text: str) -> Flap:
    """Return how a cable flaps from `5s/1s`, in for 5 s and out for 1 s; raises InvalidValue."""
    up, slash, down = text.partition("/")
    if not slash:
        raise InvalidValue(f"flap {quoted(text)} is not two times such as 5s/1s: in for 5 s, out for 1 s")
    return Flap(seconds(FLAP, up, PERIOD_MIN, PERIOD_MAX), seconds(FLAP, down, PERIOD_MIN, PERIOD_MAX))


# -- Texts --


def words(impairment: Impairment) -> str:
    """Return the words for an impairment, which :func:`parse` understands."""
    return impairment_words.words({word: getattr(impairment, word) for word in WORDS})


# -- The file --


def parse_file(text: str) -> dict[int, Impaired]:
    """Return what an IMPAIRMENTS file says, by interface; raises ValueError."""
    found: dict[int, Impaired] = {}
    for line in text.splitlines():
        index, what, *rest = line.split()
        if not re.fullmatch(r"[0-9]{1,2}", index, re.ASCII) or int(index) >= INTERFACES_MAX:
            raise ValueError(line)
        one = found.get(int(index), PERFECT)
        if what == FLAP and len(rest) == 1:
            found[int(index)] = replace(one, flap=parse_flap(rest[0]))
        else:
            found[int(index)] = one.with_direction(Direction(what), parse(rest))
    return {index: one for index, one in found.items() if one != PERFECT}


def file_text(noted: Mapping[int, Impaired]) -> str:
    """Return the text of an IMPAIRMENTS file; empty if all cables are good."""
    lines = []
    for index, one in sorted(noted.items()):
        lines += [f"{index} {Direction.to_guest} {words(one.incoming)}"] if one.incoming else []
        lines += [f"{index} {Direction.from_guest} {words(one.outgoing)}"] if one.outgoing else []
        lines += [f"{index} {FLAP} {impairment_words.flap(one.flap.up, one.flap.down)}"] if one.flap else []
    return "\n".join(lines)


def among(noted: Mapping[int, Impaired], indices: Collection[int]) -> dict[int, Impaired]:
    """Return the same without other interfaces."""
    return {index: one for index, one in noted.items() if index in indices}


# -- Both ends of a cable --


def combined(one: Impairment | None, other: Impairment | None) -> Impairment | None:
    """Return an impairment like two in a row: what one end does to what it sends, the other to what it gets.

    Delays and jitters add up, the lower rate counts, and chances are those of independent events.
    """
    if one is None or other is None:
        return one or other
    return Impairment(
        delay=round(one.delay + other.delay, 9),
        jitter=round(one.jitter + other.jitter, 9),
        loss=_either(one.loss, other.loss),
        duplicate=_either(one.duplicate, other.duplicate),
        reorder=_either(one.reorder, other.reorder),
        corrupt=_either(one.corrupt, other.corrupt),
        rate=min(filter(None, (one.rate, other.rate)), default=0),
    )


def _either(one: float, other: float) -> float:
    return 1 - (1 - one) * (1 - other)
