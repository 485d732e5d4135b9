"""The pictures of README and docs: there, drawn by a scene, small, of no machine in particular, up to date."""

import functools
import re
import struct
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "contrib" / "dev"))

import recording  # noqa: E402 -- contrib/dev is no package
import scenes  # noqa: E402 -- as above

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


@functools.cache
def recorded() -> tuple[dict[str, list[tuple[float, int]]], str]:
    """Return when each animation of the recording changes its opacity, in percent, and the source."""
    source = (scenes.PICTURES / "tour.svg").read_text(encoding="utf-8")
    frames = re.findall(r"@keyframes (k[0-9]+)[{](.*)[}]$", source, re.MULTILINE)
    steps = {name: re.findall(r"([0-9.e-]+)%[{]opacity:([01])[}]", rule) for name, rule in frames}
    return {name: [(float(at), int(value)) for at, value in found] for name, found in steps.items()}, source


def screen(moment: float) -> list[str]:
    """Return the rows of the recording that are not empty, at a moment in percent."""
    styles, source = recorded()
    lines: dict[float, str] = {}
    drawn = []
    for group in ET.fromstring(source).iter("{http://www.w3.org/2000/svg}g"):  # noqa: S314 -- our own
        name = group.attrib["class"].split()[0]
        if name != "screen" and [value for at, value in styles[name] if at <= moment][-1] == 1:
            drawn += [(float(text.attrib["y"]), float(text.attrib["x"]), text.text or "") for text in group]
    for y, x, text in sorted(drawn):
        column = round((x - recording.MARGIN) / recording.CELL_WIDTH)
        lines[y] = lines.get(y, "").ljust(column) + text.replace("\xa0", " ")
    return list(lines.values())


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
    assert "://" not in re.sub(r">[^<>]*</text>", "", rest)
    for foreign in ("href", "<script", "<image", "@import", "@font-face", "/root", "/tmp", str(ROOT)):
        assert foreign not in rest
    assert not re.search(r"url\((?!#)", rest)
    shown = rows(name) or screen(100)
    assert len(shown) > 5
    assert all(re.match(r"~\$ |[^@]*$", row) for row in shown)  # no prompt of somebody on some host


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


def test_the_recording_types_the_session_that_is_written() -> None:
    styles, _ = recorded()
    moments = sorted({at for steps in styles.values() for at, _ in steps})
    seen = {row for moment in moments for row in screen(moment)}
    for step in scenes.session():
        assert f"{'~$' if step.prompt == '$' else step.prompt} {step.command}" in seen
    assert not any("#" in row for row in seen)
    assert scenes.first_line().startswith("vmessctl newvm make ")


def test_the_recording_is_the_first_thing_in_the_readme_and_short() -> None:
    assert "/tour.svg)" in scenes.README.partition("\n## ")[0]
    _, source = recorded()
    assert re.findall(r"animation-duration: ([0-9.]+)s", source) == ["20"]


def test_where_animation_is_off_the_last_screen_is_seen() -> None:
    styles, source = recorded()
    still = re.findall(r'<g class="(k[0-9]+) last">', source)
    assert still == [name for name, steps in styles.items() if steps[-1][1] == 1]
    assert "@media (prefers-reduced-motion: reduce) { .screen g { animation: none } }" in source
    shown = screen(100)
    assert [row for row in shown if row.startswith("~$ ")] == [
        f"~$ {step.command}" for step in scenes.session()[-3:]
    ]
    assert shown[-1] == "~$"


def test_each_piece_has_its_own_animation() -> None:
    """The shorthand `animation` of `.screen g` would have taken the name away, being more specific."""
    styles, source = recorded()
    assert "animation:" not in source.partition("@media")[0]
    assert re.findall(r"[.](k[0-9]+)[{]animation-name:(k[0-9]+)[}]", source) == [
        (name, name) for name in styles
    ]


def test_top_is_drawn_with_the_columns_it_has() -> None:
    from vmessctl.output.top_table import COLUMNS

    shown = rows("top.svg")
    assert shown[1].split() == [column.title for column in COLUMNS]
    assert {line.split()[0] for line in shown[2 : 2 + len(scenes.LAB)]} == {f"{vm[0]}0" for vm in scenes.LAB}
