"""A recording of a terminal as an animated SVG, without a script. Pure.

Where animation is off, the last screen is seen.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import accumulate, groupby, pairwise

BACKGROUND, FOREGROUND = (13, 17, 23), (201, 209, 217)
COLOURS = (
    (28, 33, 40),
    (255, 123, 114),
    (63, 185, 80),
    (210, 153, 34),
    (88, 166, 255),
    (188, 140, 255),
    (57, 197, 207),
    (177, 186, 196),
)
"""The colours 0 to 7 of the terminals in pictures."""
CELL_WIDTH, CELL_HEIGHT = 7.8, 17
MARGIN, TITLE_BAR = 14, 34
SVG = """\
<svg width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" \
xmlns="http://www.w3.org/2000/svg" role="img">
<title>{title}</title>
<style>
text {{ font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: {foreground} }}
{colours}
.b {{ font-weight: bold }}
.screen g {{ opacity: 0; animation-duration: {seconds:g}s; animation-timing-function: step-end; \
animation-iteration-count: infinite }}
.screen .last {{ opacity: 1 }}
{keyframes}
@media (prefers-reduced-motion: reduce) {{ .screen g {{ animation: none }} }}
</style>
<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="{background}"/>
<circle cx="20" cy="18" r="6" fill="#ff5f57"/><circle cx="40" cy="18" r="6" fill="#febc2e"/>\
<circle cx="60" cy="18" r="6" fill="#28c840"/>
<g class="screen">
{screen}
</g>
</svg>
"""

FOR_EVER = math.inf
Cell = tuple[str, str]
"""A character, and the classes of its style."""


@dataclass(frozen=True)
class Frame:
    """A screen: the text with SGR sequences, and the second at which it is there."""

    second: float
    page: str


@dataclass(frozen=True)
class Piece:
    """A part of a line that is on the screen for a while."""

    row: int
    column: int
    cells: tuple[Cell, ...]
    begin: float
    end: float = FOR_EVER


def cells_of(line: str) -> tuple[Cell, ...]:
    """Return the characters of a line with SGR sequences, without the blanks at its end."""
    cells: list[Cell] = []
    bold, colour = "", ""
    for sequence, char in re.findall(r"\x1b\[([0-9;]*)m|(.)", line):
        if char:
            cells.append((char, f"{bold}{colour}".strip()))
            continue
        for number in (int(word or 0) for word in sequence.split(";")):
            if number in (0, 1, 22):
                bold = "b " if number == 1 else ""
            if number in (0, 39) or 30 <= number <= 37:
                colour = f"c{number - 30}" if 30 <= number <= 37 else ""
    while cells and cells[-1][0] == " ":
        cells.pop()
    return tuple(cells)


def paced(frames: list[Frame], longest: float, seconds: float) -> list[Frame]:
    """Return the frames in which something changes, from second 0 to `seconds`.

    No screen stands longer than `longest`, before all is played at the speed that fits.
    """
    kept = [frames[0]]
    for frame in frames[1:]:
        if frame.page != kept[-1].page:
            kept.append(frame)
    stood = [min(after.second - before.second, longest) for before, after in pairwise(kept)]
    begins = [seconds * second / sum(stood) for second in accumulate(stood, initial=0.0)]
    return [Frame(begin, frame.page) for begin, frame in zip(begins, kept, strict=True)]


def pieces(frames: list[Frame]) -> Iterator[Piece]:
    """Yield what is on the screen, and when. The same beginning of a line stays when its end changes."""
    pages = [[cells_of(line) for line in frame.page.splitlines()] for frame in frames]
    for row in range(max(map(len, pages))):
        there: list[Piece] = []
        for frame, page in zip(frames, pages, strict=True):
            cells = page[row] if row < len(page) else ()
            stays = 0
            for piece in there:
                if cells[piece.column : piece.column + len(piece.cells)] != piece.cells:
                    break
                stays += 1
            for piece in there[stays:]:
                yield Piece(row, piece.column, piece.cells, piece.begin, frame.second)
            del there[stays:]
            column = there[-1].column + len(there[-1].cells) if there else 0
            if cells[column:]:
                there.append(Piece(row, column, cells[column:], frame.second))
        yield from there


def svg(frames: list[Frame], size: tuple[int, int], title: str, seconds: float) -> str:
    """Return an animation of frames on a terminal of so many columns and rows; it takes `seconds`."""
    keyframes, screen = [], []
    for number, ((begin, end), group) in enumerate(groupby(sorted(pieces(frames), key=_while), key=_while)):
        keyframes.append(
            f".k{number}{{animation-name:k{number}}}@keyframes k{number}{{{_steps(begin, end, seconds)}}}"
        )
        texts = "".join(text for piece in group for text in _texts(piece))
        screen.append(f'<g class="k{number}{" last" if end == FOR_EVER else ""}">{texts}</g>')
    return SVG.format(
        width=size[0] * CELL_WIDTH + 2 * MARGIN,
        height=size[1] * CELL_HEIGHT + TITLE_BAR + MARGIN,
        title=escape(title),
        background=_hex(BACKGROUND),
        foreground=_hex(FOREGROUND),
        colours="\n".join(f".c{number} {{ fill: {_hex(rgb)} }}" for number, rgb in enumerate(COLOURS)),
        seconds=seconds,
        keyframes="\n".join(keyframes),
        screen="\n".join(screen),
    )


def _while(piece: Piece) -> tuple[float, float]:
    return piece.begin, piece.end


def _steps(begin: float, end: float, seconds: float) -> str:
    """Return the steps of the opacity of what is there from `begin` to `end`."""
    steps = [(0.0, 0), (begin, 1), (end, 0)] if begin else [(begin, 1), (end, 0)]
    return "".join(f"{100 * at / seconds:.4g}%{{opacity:{value}}}" for at, value in steps if at != FOR_EVER)


def _texts(piece: Piece) -> Iterator[str]:
    """Yield the text elements of a piece, one for each style."""
    column = piece.column
    for style, group in groupby(piece.cells, key=lambda cell: cell[1]):
        whole = "".join(char for char, _ in group)
        text = whole.strip()
        x = MARGIN + (column + len(whole) - len(whole.lstrip())) * CELL_WIDTH
        y = TITLE_BAR + piece.row * CELL_HEIGHT + CELL_HEIGHT * 0.75
        column += len(whole)
        if text:
            kind = f' class="{style}"' if style else ""
            written = escape(text, quote=False).replace(" ", "\N{NO-BREAK SPACE}")
            place = f'x="{x:.1f}" y="{y:.1f}" textLength="{len(text) * CELL_WIDTH:.1f}"'
            yield f"<text{kind} {place}>{written}</text>"


def _hex(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
