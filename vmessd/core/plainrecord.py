"""The base of the small records that the client makes at every start.

`dataclasses` and `typing` take longer to import than all the client does, and named tuples a third as long.
`types.SimpleNamespace` takes next to nothing; equality and repr are its own. Which fields a record has to have,
its class says in `__init__`.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    PlainRecord = object  # for a type checker, a SimpleNamespace has any attribute there is
else:
    PlainRecord = type(sys.implementation)  # as `types` has it, which takes longer to import

__all__ = ["PlainRecord"]
