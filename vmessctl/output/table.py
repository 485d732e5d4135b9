"""Tables that fit into the width of a terminal. Pure."""

from __future__ import annotations

from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    VM = Mapping[str, Any]

GAP = "  "
UNLIMITED = 1 << 30


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
        """The width to which its cells may be cut before other columns are dropped; None for not at all."""


def grid(columns: Sequence[Column], vms: Sequence[VM], width: int | None = None) -> list[str]:
    """Return a line of titles and one for each VM, at most `width` long; None is unlimited."""
    limit = UNLIMITED if width is None else width
    cells = [(column, [column.title, *map(column.text, vms)]) for column in columns]
    fitted, gap = _fitting([(column, max(column.width, *map(len, texts))) for column, texts in cells], limit)
    end = "…" if len(fitted) > 1 else ""  # of a name alone, as much as fits
    padded = [
        [(str.ljust if column.left else str.rjust)(_cut(text, wide, end), wide) for text in texts]
        for column, texts in cells
        if (wide := fitted.get(column.title)) is not None
    ]
    return [_cut(gap.join(line).rstrip(), limit, end) for line in zip(*padded, strict=True)]


def _cut(text: str, width: int, end: str) -> str:
    """Return a text of at most `width` characters, with another end if it was longer."""
    return text if len(text) <= width else text[: width - len(end)] + end


def _fitting(widths: Sequence[tuple[Column, int]], width: int) -> tuple[dict[str, int], str]:
    """Return the widths of the columns that fit, by title, and the gap between them."""
    fitted = widths
    while True:
        taken = sum(_least(column, wide) for column, wide in fitted)
        for gap in (GAP, " "):
            spare = width - taken - len(gap) * (len(fitted) - 1)
            if spare >= 0 or len(fitted) == 1:
                share = spare // max(1, sum(column.least is not None for column, _ in fitted))
                return {column.title: min(wide, _least(column, wide) + share) for column, wide in fitted}, gap
        lowest = min(column.importance for column, _ in fitted)
        fitted = [(column, wide) for column, wide in fitted if column.importance > lowest] or fitted[:1]


def _least(column: Column, wide: int) -> int:
    return wide if column.least is None else min(wide, column.least)
