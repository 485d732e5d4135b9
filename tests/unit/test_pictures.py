"""The pictures of README and docs: there, drawn by a scene, small, of no machine in particular, up to date."""

import re
import struct
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "contrib" / "dev"))

import scenes  # noqa: E402 -- contrib/dev is no package

CELL = 12.2
"""Width of a character in the pictures."""
PAGES = "".join(
    page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
)
NAMES = re.findall(r"!\[[^]]{10,}\]\([^) ]*contrib/pictures/([a-z]+\.(?:svg|png))\)", PAGES)
DRAWN = [name for name in NAMES if name.endswith(".svg")]


def rows(name: str) -> list[str]:
    """Return the lines of text of a picture, as they stand on the terminal."""
    lines: dict[float, str] = {}
    for text in ET.parse(scenes.PICTURES / name).iter("{http://www.w3.org/2000/svg}text"):  # noqa: S314 -- our own
        if "clip-path" in text.attrib:
            y, column = float(text.attrib["y"]), round(float(text.attrib["x"]) / CELL)
            lines[y] = lines.get(y, "").ljust(column) + (text.text or "").replace("\xa0", " ")
    return [line.rstrip() for _, line in sorted(lines.items())]


def test_the_pages_show_each_picture_that_a_scene_draws_once() -> None:
    drawn = {f"{scene.name}.{'png' if scene.draw is scenes.draw_screen else 'svg'}" for scene in scenes.SCENES}
    assert len(drawn) == len(scenes.SCENES) == len(NAMES)
    assert drawn == set(NAMES) == {file.name for file in scenes.PICTURES.iterdir()}
    assert PAGES.count("contrib/pictures/") == len(NAMES)
    assert scenes.README.count("contrib/pictures/") == 1


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_stands_alone_and_tells_of_no_machine(name: str) -> None:
    source = (scenes.PICTURES / name).read_text(encoding="utf-8")
    assert len(source) < 60_000
    rest = source.replace('xmlns="http://www.w3.org/2000/svg"', "")
    for foreign in ("://", "href", "<script", "<image", "@import", "@font-face", "/root", "/tmp", str(ROOT)):
        assert foreign not in rest
    assert not re.search(r"url\((?!#)", rest)
    assert all(re.match(r"~\$ |[^@]*$", row) for row in rows(name))  # no prompt of somebody on some host


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(DRAWN)))
def test_a_screen_is_a_small_picture_without_words_beside_it(name: str) -> None:
    data = (scenes.PICTURES / name).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) < 150_000
    chunks, at = set(), 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunks.add(kind)
        at += length + 12
    assert chunks <= {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"pHYs", b"sRGB", b"gAMA", b"tRNS"}


def test_the_tour_that_is_drawn_is_the_tour_that_is_written() -> None:
    drawn = [row.removeprefix("~$ ") for row in rows("tour.svg") if row.startswith("~$ ")]
    assert drawn == scenes.tour()
    assert len(drawn) > 10
    assert scenes.first_line().startswith("vmessctl newvm make ")


def test_top_is_drawn_with_the_columns_it_has() -> None:
    from vmessctl.output.top_table import COLUMNS

    shown = rows("top.svg")
    assert shown[1].split() == [column.title for column in COLUMNS]
    assert {line.split()[0] for line in shown[2 : 2 + len(scenes.LAB)]} == {f"{vm[0]}0" for vm in scenes.LAB}
