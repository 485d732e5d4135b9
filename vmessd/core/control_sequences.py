"""Text with the control sequences of a terminal, and what it says in plain text. Pure."""

from vmessd.core.errors import printable

CONTROL = (
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # cursor, modes, queries: ECMA-48, CSI
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, palettes: OSC, DCS and the like
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"  # two characters
)
"""A regular expression for a control sequence. It takes linear time."""
TAB = 8
"""Columns between tab stops."""


NEW_LINE = r"\n|\x1b\[[0-9;]*[Hf]"
"""Where the text of another line begins: also where the cursor is moved, as by a full screen."""


def plain_lines(text: str) -> list[str]:
    """Return what a terminal would show of some text, line by line and without colours; without empty lines."""
    import re  # noqa: PLC0415 -- the client imports this module, and starts light

    return [line for part in re.split(NEW_LINE, text) if (line := _plain(part))]


def _plain(line: str) -> str:
    """Return what a terminal would leave of one line.

    Backspace and carriage return move the cursor, and what follows overwrites; `CSI K` erases the line from the
    cursor on, or all of it. Other control sequences and control characters are left out.
    """
    import re  # noqa: PLC0415 -- as above

    cells: list[str] = []
    column = 0
    for match in re.finditer(rf"{CONTROL}|(?P<text>[^\x00-\x1f\x7f-\x9f]+)|.", line, re.DOTALL):
        piece = match[0]
        if match["text"]:
            cells += " " * (column - len(cells))
            cells[column : column + len(piece)] = piece
            column += len(piece)
        elif piece == "\r":
            column = 0
        elif piece == "\b":
            column = max(0, column - 1)
        elif piece == "\t":
            column += TAB - column % TAB
        elif re.fullmatch(r"\x1b\[[02]?K", piece):
            cells = [] if "2" in piece else cells[:column]
    return printable("".join(cells)).rstrip()
