"""The base of the small records that the client makes at every start.

`dataclasses` and `typing` take longer to import than all the client does, and named tuples a third as long.
`types.SimpleNamespace` takes next to nothing; equality and repr are its own. Which fields a record has to have,
its class says in `__init__`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    PlainRecord = object  # for a type checker, a SimpleNamespace has any attribute there is
else:
    from types import SimpleNamespace as PlainRecord

__all__ = ["PlainRecord"]
