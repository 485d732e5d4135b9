"""`json.loads` and `json.dumps` as they are without arguments, by the same code in C.

The package `json` imports `re`, and that takes as long as all else that the client does. The package's scanner
and encoder are in `_json`, which imports nothing. Where `_json` is missing, or has another signature, the
package is imported instead.
"""

from __future__ import annotations

__all__ = ["dumps", "loads"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Defaults:
    """What `json.JSONDecoder` tells the scanner of itself."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # NaN, Infinity, -Infinity


def _refuse(value: object) -> object:
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


try:
    from _json import encode_basestring_ascii, make_encoder, make_scanner

    # No indent, the two separators; keys are not sorted, keys of odd types are refused, NaN is written.
    _encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
    _scan = make_scanner(_Defaults)  # type: ignore[arg-type]  # it takes whatever has these attributes
except (ImportError, AttributeError, TypeError):
    from json import dumps, loads
else:

    def loads(text: str) -> Any:  # type: ignore[misc]
        """Return what JSON stands for; raises ValueError, RecursionError for what is nested too deeply."""
        bare = text.strip(" \t\n\r")
        try:
            value, end = _scan(bare, 0)
        except (StopIteration, SystemError):  # up to 3.12, the scanner fails without an error of `json`'s
            end = -1
        if end == len(bare):
            return value
        import json  # noqa: PLC0415 -- it says what is wrong with the text

        return json.loads(text)

    def dumps(value: object) -> str:  # type: ignore[misc]
        """Return a value as JSON, in ASCII; raises TypeError for what JSON has no word for."""
        return "".join(_encode(value, 0))
