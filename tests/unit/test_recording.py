"""A recording of a terminal: which parts of a line stay, when, and in which colours."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "contrib/dev"))

import recording
from recording import FOR_EVER, Frame, Piece


def plain(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((char, "") for char in text)


def test_the_same_beginning_of_a_line_stays_and_what_is_typed_is_added() -> None:
    frames = [Frame(0, "$"), Frame(1, "$ ls"), Frame(2, "$ ls -l\nfile"), Frame(3, "$\nfile")]
    assert sorted(recording.pieces(frames), key=lambda piece: (piece.row, piece.column)) == [
        Piece(0, 0, plain("$"), 0),
        Piece(0, 1, plain(" ls"), 1, 3),
        Piece(0, 4, plain(" -l"), 2, 3),
        Piece(1, 0, plain("file"), 2),
    ]


def test_a_piece_that_becomes_shorter_or_changes_its_colour_is_another() -> None:
    frames = [Frame(0, "abc"), Frame(1, "ab"), Frame(2, "\x1b[31mab")]
    red = (("a", "c1"), ("b", "c1"))
    assert list(recording.pieces(frames)) == [
        Piece(0, 0, plain("abc"), 0, 1),
        Piece(0, 0, plain("ab"), 1, 2),
        Piece(0, 0, red, 2, FOR_EVER),
    ]


@pytest.mark.parametrize(
    ("line", "styles"),
    [
        ("a \x1b[0m ", [""]),
        ("\x1b[1;32ma\x1b[39mb\x1b[22mc", ["b c2", "b", ""]),
        ("\x1b[36ma\x1b[mb\x1b[1mc\x1b[0md", ["c6", "", "b", ""]),
    ],
)
def test_cells_have_the_style_that_sgr_says(line: str, styles: list[str]) -> None:
    assert [style for _, style in recording.cells_of(line)] == styles


def test_long_pauses_are_shortened_and_the_rest_is_scaled() -> None:
    frames = [Frame(5, "a"), Frame(6, "a"), Frame(7, "b"), Frame(107, "c"), Frame(108, "d")]
    assert recording.paced(frames, 2, 10) == [Frame(0, "a"), Frame(4, "b"), Frame(8, "c"), Frame(10, "d")]


def test_a_drawing_has_what_is_seen_escaped_and_in_its_place() -> None:
    drawn = recording.svg([Frame(0, "  <a  b>"), Frame(1, "")], (20, 2), "a & b", 4)
    assert "<title>a &amp; b</title>" in drawn
    assert '<text x="29.6" y="46.8" textLength="46.8">&lt;a\xa0\xa0b&gt;</text>' in drawn
    assert "@keyframes k0{0%{opacity:1}25%{opacity:0}}" in drawn
