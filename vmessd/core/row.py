"""Rows of the tables that daemon and client share: classes of a few fields, as dataclasses make them.

The client reads this at every start, and importing `dataclasses` or `typing` takes longer than its work.
"""

TYPE_CHECKING = False  # type checkers take it for True, so that they see a dataclass

if TYPE_CHECKING:
    from dataclasses import dataclass as row
else:

    def row(kind: type) -> type:
        """Have a class take its annotated fields, by place or by name; type checkers see to the rest."""

        def init(self: object, *values: object, **named: object) -> None:
            self.__dict__.update(zip(kind.__annotations__, values, strict=False), **named)

        kind.__init__ = init
        return kind


__all__ = ["row"]
