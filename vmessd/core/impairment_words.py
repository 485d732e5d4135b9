"""How impairments of cables are written, in the words of the verb `cable`. Pure, and light."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
"""Seconds by unit."""
RATES = {"k": 10**3, "M": 10**6, "G": 10**9}
"""Bits per second by unit."""


def time(seconds: float) -> str:
    """Return a time such as `20ms`."""
    unit = "s" if seconds >= 1 or not seconds else "ms" if seconds >= 1e-3 else "us"
    return f"{_plain(seconds / TIMES[unit])}{unit}"


def percent(fraction: float) -> str:
    """Return a fraction such as `0.1%`."""
    return f"{_plain(fraction * 100)}%"


def rate(bits: float) -> str:
    """Return a rate such as `10M`, exactly."""
    unit = next((unit for unit in ("G", "M", "k") if bits >= RATES[unit]), "")
    factor = RATES.get(unit, 1)
    text = _plain(bits / factor)
    return f"{text}{unit}" if round(float(text) * factor) == bits else f"{bits:.0f}"


def _plain(number: float) -> str:
    """Return a number with as few decimals as it needs."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


WORDS = {
    "delay": time,
    "jitter": time,
    "loss": percent,
    "rate": rate,
    "duplicate": percent,
    "reorder": percent,
    "corrupt": percent,
}
"""The fields of an impairment, in this order, and how each is written."""


def words(fields: Mapping[str, float]) -> str:
    """Return the words for an impairment with these fields: `delay 20ms loss 1%`."""
    return " ".join(f"{word} {shown(fields[word])}" for word, shown in WORDS.items() if fields.get(word))


def flap(up: float, down: float) -> str:
    """Return the words for a flapping cable: `5s/1s`."""
    return f"{time(up)}/{time(down)}"
