"""Tables that fit into the width of a terminal. Pure."""

from __future__ import annotations

from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    VM = Mapping[str, Any]

GAP = "  "


class Column(PlainRecord):
    """One column."""

    def __init__(  # noqa: PLR0913, PLR0917 -- a row of a table
        self,
        title: str,
        text: Callable[[VM], str],
        importance: int,
        width: int = 0,
        left: bool = False,
        least: int | None = None,
    ) -> None:
        self.title = title
        self.text = text
        self.importance = importance
        """On a narrow terminal, the columns of the lowest importance are dropped first, together."""
        self.width = width
        """Minimum width in characters, which keeps the table from moving."""
        self.left = left
        self.least = least
        """Of the last column, the width to which it may be cut before other columns are dropped."""


def _fitting(
    columns: Sequence[Column], vms: Sequence[VM], width: int | None
) -> tuple[list[tuple[Column, int]], str]:
    """Return the columns that fit into a width, each with its own width, and the gap between them."""
    fitted = [
        (column, max([column.width, len(column.title), *(len(column.text(vm)) for vm in vms)]))
        for column in columns
    ]
    while True:
        taken = sum(wide if column.least is None else min(wide, column.least) for column, wide in fitted)
        for gap in (GAP, " "):
            if width is None or taken + len(gap) * (len(fitted) - 1) <= width or len(fitted) == 1:
                return fitted, gap
        lowest = min(column.importance for column, _ in fitted)
        fitted = [(column, wide) for column, wide in fitted if column.importance > lowest]


def grid(columns: Sequence[Column], vms: Sequence[VM], width: int | None = None) -> list[str]:
    """Return a line of titles and one for each VM, at most `width` long; None is no limit."""
    fitted, gap = _fitting(columns, vms, width)

    def line(texts: Sequence[str]) -> str:
        cells = [
            text.ljust(wide) if column.left else text.rjust(wide)
            for (column, wide), text in zip(fitted, texts, strict=True)
        ]
        return gap.join(cells).rstrip()[:width]

    rows = [[column.text(vm) for column, _ in fitted] for vm in vms]
    return [line([column.title for column, _ in fitted]), *(line(texts) for texts in rows)]
