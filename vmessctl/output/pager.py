"""Long texts on a terminal: a pager shows them a screen at a time."""

from __future__ import annotations

import posix
import sys

from vmessctl.environment import variable
from vmessctl.output import foreground

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

LESS = ("less", "-FRX")
"""The pager where none is named: it ends if the text fits, and knows bold letters."""
SHELL = ("/bin/sh", "-c")


def show(plain: str, styled: str) -> None:
    """Print a text: styled on a terminal, and through a pager if it is too long for it."""
    if not sys.stdout.isatty() or variable("TERM") == "dumb":
        print(plain)
        return
    size = posix.get_terminal_size(sys.stdout.fileno())
    if _rows(plain, size.columns or 80) < (size.lines or 24) or not _paged(plain, styled):
        print(styled)


def _rows(text: str, width: int) -> int:
    """Return the number of rows that a text takes on a terminal."""
    return sum(max(1, -(-len(line) // width)) for line in text.splitlines())


def _paged(plain: str, styled: str) -> bool:
    """Show a text with the pager of the user; tell whether it could. A pager that is killed has shown enough.

    A pager that the user names may not know bold letters.
    """
    named = variable("PAGER")
    if named is None:
        status = _run(LESS, styled)
    elif named.strip():
        status = _run((*SHELL, named), plain)
    else:
        return False
    return status is not None and not 0 < status < foreground.KILLED


def _run(command: Sequence[str], text: str) -> int | None:
    """Give a text to a program and return its exit status; None if it cannot be started."""
    try:
        return foreground.run(command, text + "\n")
    except OSError:
        return None
