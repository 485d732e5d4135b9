"""What happens on a terminal: lines for people, complaints, and one line that moves.

Data go to standard output, everything else to standard error; what moves, moves on a terminal only.
"""

import os
import sys

from vmessctl.commands import PROGRAM
from vmessd.errors import VmessError


def say(text: str) -> None:
    """Print what is no data."""
    print(text, file=sys.stderr)


def complain(error: VmessError) -> int:
    """Print an error and its hint, a line each; return the exit status."""
    say(f"{PROGRAM}: {error.message}")
    if error.hint:
        say(f"  hint: {error.hint}")
    return error.status


class Line:
    """A line at the bottom of a terminal that is drawn over and over; nothing elsewhere."""

    def __init__(self) -> None:
        self._drawn = False

    def draw(self, text: str) -> None:
        """Draw the text, cut to the terminal's width, in the place of what was there."""
        if sys.stderr.isatty():
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\x1b[K{text[: max(width - 1, 10)]}")
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


moving = Line()
"""The one line that a terminal has."""
