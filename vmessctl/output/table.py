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


def grid(columns: Sequence[Column], vms: Sequence[VM], width: int | None = None) -> list[str]:
    """Return a line of titles and one for each VM, at most `width` long; None is unlimited."""
    cells = [(column, [column.title, *map(column.text, vms)]) for column in columns]
    fitted, gap = _fitting([(column, max(column.width, *map(len, texts))) for column, texts in cells], width)
    padded = [
        [text.ljust(wide) if column.left else text.rjust(wide) for text in texts]
        for column, texts in cells
        if (wide := fitted.get(column.title)) is not None
    ]
    end = "…" if len(fitted) > 1 else ""  # of a name alone, as much as fits
    return [_cut(gap.join(line).rstrip(), width, end) for line in zip(*padded, strict=True)]


def _cut(line: str, width: int | None, end: str) -> str:
    """Return a line of at most `width` characters, with another end if it was longer."""
    return line if width is None or len(line) <= width else line[: width - len(end)] + end


def _fitting(widths: Sequence[tuple[Column, int]], width: int | None) -> tuple[dict[str, int], str]:
    """Return the widths of the columns that fit, by title, and the gap between them."""
    fitted = widths
    while True:
        taken = sum(wide if column.least is None else min(wide, column.least) for column, wide in fitted)
        for gap in (GAP, " "):
            if width is None or taken + len(gap) * (len(fitted) - 1) <= width or len(fitted) == 1:
                return {column.title: wide for column, wide in fitted}, gap
        lowest = min(column.importance for column, _ in fitted)
        fitted = [(column, wide) for column, wide in fitted if column.importance > lowest] or fitted[:1]
