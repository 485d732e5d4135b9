"""`json.loads` and `json.dumps` with their default arguments, by the same C code.

The package `json` imports `re`, which takes as long as everything else that the client does. Its scanner and
encoder are in `_json`, which imports nothing. If `_json` is missing or has another signature, the package is
imported instead.
"""

from __future__ import annotations

__all__ = ["dumps", "loads"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Defaults:
    """The attributes of `json.JSONDecoder` that the scanner reads."""

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

    # No indent, the two separators, no sorted keys, no skipped keys, NaN allowed.
    _encode = make_encoder(None, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
    _scan = make_scanner(_Defaults)  # type: ignore[arg-type]  # it takes any object with these attributes
except (ImportError, AttributeError, TypeError):
    from json import dumps, loads
else:

    def loads(text: str) -> Any:  # type: ignore[misc]
        """Return the value of JSON text; raises ValueError, or RecursionError if it is nested too deeply."""
        bare = text.strip(" \t\n\r")
        try:
            value, end = _scan(bare, 0)
        except (StopIteration, SystemError):  # up to 3.12, the scanner raises these instead of JSONDecodeError
            end = -1
        if end == len(bare):
            return value
        import json  # noqa: PLC0415 -- only an error needs it

        return json.loads(text)

    def dumps(value: object) -> str:  # type: ignore[misc]
        """Return a value as JSON in ASCII; raises TypeError if JSON cannot express it."""
        return "".join(_encode(value, 0))
