"""The base class of the small records that the client creates at every start.

`dataclasses` and `typing` take longer to import than the client takes to run, and named tuples a third of that.
`types.SimpleNamespace` takes almost nothing, and provides equality and repr. The `__init__` of each class
defines its fields.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    PlainRecord = object  # because a type checker accepts any attribute of a SimpleNamespace
else:
    PlainRecord = type(sys.implementation)  # types.SimpleNamespace, without importing `types`

__all__ = ["PlainRecord"]
