"""Sizes and other numbers as people write them. Pure, and light: the client imports it at every start."""

from __future__ import annotations

from vmessd.core.errors import InvalidValue, counted, quoted

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
DISK_MIN = UNITS["M"]
DISK_MAX = 64 * UNITS["T"]
GRACE_MAX = 86400
AT_ONCE_MAX = 64  # threads of vmessd for the files of VMs; more starts would wait for each other


def size(text: str, bare: int = 1) -> int:
    """Return a size in bytes: `8G`, `8GB` and `8GiB` are 8 x 1024^3, in letters of either case.

    A number without a unit is in units of `bare` bytes.

    Raises:
        ValueError: the text is not a size.
    """
    figures = text
    for ending in ("ib", "b"):
        if text[-len(ending) :].lower() == ending and text[: -len(ending)][-1:].upper() in UNITS:
            figures = text[: -len(ending)]
            break
    unit = UNITS.get(figures[-1:].upper())
    return number(figures[:-1], 15) * unit if unit else number(figures, 15) * bare


def is_bare(text: str) -> bool:
    """Tell whether the text of a size is a number without a unit."""
    return text.isascii() and text.isdecimal()


def size_text(count: int) -> str:
    """Return the shortest exact text of a size: `8G` for 8589934592."""
    for unit, factor in reversed(UNITS.items()):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def size_shown(count: int) -> str:
    """Return a size for people: exact where a unit fits, else with one decimal; small sizes in bytes."""
    exact = size_text(count)
    if not exact.isdecimal():
        return exact
    for unit, factor in reversed(UNITS.items()):
        if count >= factor:
            return f"{count / factor:.1f}{unit}"
    return counted(count, "byte")


def number(text: str, digits: int) -> int:
    """Return a number of at most `digits` digits 0-9; refuses signs and other forms that int() accepts."""
    if not (text.isascii() and text.isdecimal() and len(text) <= digits):
        raise ValueError(text)
    return int(text)


def within(low: int, found: int, high: int) -> int:
    """Return a number that is within limits; raises ValueError for others."""
    if not low <= found <= high:
        raise ValueError(found)
    return found


def integer(text: str, low: int, high: int) -> int:
    """Return a number within limits; raises ValueError for another text."""
    return within(low, number(text, 9), high)


def at_once(text: str) -> int:
    """Return the maximum number of concurrent starts; raises InvalidValue."""
    try:
        return integer(text.strip(), 1, AT_ONCE_MAX)
    except ValueError:
        raise InvalidValue(f"at-once {quoted(text.strip())} is not a number from 1 to {AT_ONCE_MAX}") from None


def check_grace(seconds: float) -> None:
    """Raise InvalidValue unless a grace period is within its limits; seconds."""
    if not 0 <= seconds <= GRACE_MAX:
        raise InvalidValue(f"grace period {seconds:g} is not a number of seconds from 0 to {GRACE_MAX}")


def disk_size(text: str) -> int:
    """Return the size of a disk in bytes.

    Raises:
        InvalidValue: not a size, or out of range (a bare `8` is probably a slip, and does not mean 8 bytes).
    """
    try:
        return within(DISK_MIN, size(text.strip()), DISK_MAX)
    except ValueError:
        unit = " (without a unit: bytes)" if is_bare(text) else ""
        raise InvalidValue(
            f"disk size {quoted(text.strip())} is not a size from 1M to 64T such as 8G{unit}"
        ) from None
