"""Quantities among the options of a command line: seconds, counts and sizes."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.quantities import size as bytes_of


def seconds(text: str | None, option: verbs.Option = verbs.TIMEOUT, least: float | None = None) -> float | None:
    """Return the value of an option in seconds, at least `least` or above 0; None if it is not given.

    Raises:
        InvalidValue: it is not a number of seconds.
    """
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e9 or (value == 0 and least is None):
        bound = "above 0" if least is None else f"from {least:g} on"
        raise InvalidValue(f"{option.flag} {quoted(text)} is not a number of seconds {bound}")
    return value


def count(text: str | None, option: verbs.Option, what: str) -> int | None:
    """Return the value of an option that counts something, 1 or more; None if it is not given.

    Raises:
        InvalidValue: it is not such a number.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 15 and int(text) > 0):
        raise InvalidValue(f"{option.flag} {quoted(text)} is not a number of {what}, 1 or more")
    return int(text)


def size(text: str | None, option: verbs.Option) -> int | None:
    """Return the value of an option in bytes, 1 or more; None if it is not given.

    Raises:
        InvalidValue: it is not a size.
    """
    if text is None:
        return None
    try:
        found = bytes_of(text)
    except ValueError:
        found = 0
    if not found:
        raise InvalidValue(f"{option.flag} {quoted(text)} is not a size such as 100M")
    return found
