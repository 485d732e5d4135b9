"""Regular expressions on the command line, and their matches, which may take for ever."""

from __future__ import annotations

import time

from vmessd.core.errors import InvalidValue, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re


def compiled(text: str, shown: str) -> re.Pattern[str]:
    """Return a compiled regular expression; `shown` is what was typed.

    Raises:
        InvalidValue: it is not one.
    """
    import re  # noqa: PLC0415 -- slow to import, rarely needed
    import warnings  # noqa: PLC0415 -- as above

    try:
        with warnings.catch_warnings(action="ignore"):  # other versions of Python may read it differently
            return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidValue(
            f"{quoted(shown)} is not a valid regular expression: {error}",
            hint="the syntax is that of Python's re",
        ) from None


class DeadlinePassed(Exception):
    """The deadline passed, possibly in the middle of a match."""


class Alarm:
    """Interrupts a match at the deadline with DeadlinePassed. Use as a context manager."""

    def __init__(self, deadline: float | None) -> None:
        self._deadline = deadline

    def __enter__(self) -> None:
        if self._deadline is not None:
            import signal  # noqa: PLC0415 -- slow to import, rarely needed

            signal.signal(signal.SIGALRM, _late)
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, self._deadline - time.monotonic()))

    def __exit__(self, *_: object) -> None:
        if self._deadline is not None:
            import signal  # noqa: PLC0415 -- as above

            signal.setitimer(signal.ITIMER_REAL, 0)


def _late(_number: int, _frame: object) -> None:
    raise DeadlinePassed
