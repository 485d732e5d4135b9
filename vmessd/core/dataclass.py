"""Dataclasses that are made in a quarter of the time, of which vmessd has dozens. Pure.

`dataclasses` compiles up to seven methods for each class, which was a fifth of the start of a daemon. Here it
compiles `__init__` only; comparison, hash and repr are shared. For a type checker, this is
`dataclasses.dataclass`: it refuses assignments to what is frozen.
"""

import dataclasses
from typing import TYPE_CHECKING, TypeVar

__all__ = ["dataclass"]

_T = TypeVar("_T")


def _values(one: object) -> tuple[object, ...]:
    return tuple([getattr(one, name) for name in one.__dataclass_fields__])  # type: ignore[attr-defined]


class _Shared:
    """The methods that all dataclasses have in common."""

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        fields = zip(self.__dataclass_fields__, _values(self), strict=True)  # type: ignore[attr-defined]
        return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in fields)})"


if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(kind: type[_T] | None = None, /, *, frozen: bool = False, eq: bool = True) -> object:
        """Make a class a dataclass. `frozen` gives its objects a hash; only a type checker sees to the rest."""

        def made(kind: type[_T]) -> type[_T]:
            kind.__repr__ = _Shared.__repr__
            if eq:
                kind.__eq__ = _Shared.__eq__
                kind.__hash__ = _Shared.__hash__ if frozen else None
            return dataclasses.dataclass(eq=False, repr=False)(kind)

        return made if kind is None else made(kind)
