"""Regular expressions on the command line."""

from __future__ import annotations

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
