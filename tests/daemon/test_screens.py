"""The screens that people see most, kept as files: 80 and 132 columns, with and without colour.

`pytest tests/daemon/test_screens.py --redraw` writes the files again; look at them before they are committed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from daemons import AS_VMESSCTL, Daemon
from terminals import on_terminal

SCREENS = Path(__file__).with_name("screens")
WIDTHS = (80, 132)
VMS: tuple[tuple[str, dict[str, str]], ...] = (
    *(("web-1", {"RAM": "64M", "AUTOSTART": "on"}), ("db", {"RAM": "256M", "SMP": "4", "LOCK": "keep"})),
    *(("leaf1", {}), ("leaf2", {}), ("leaf12", {"RAM": "banana"}), ("spine0", {"RAM": "96M"})),
    *(("pe1", {}), ("ubuntu2204", {"RAM": "128M", "SMP": "2"}), ("a-long-name-of-thirty-letters0", {})),
    *(("router0", {}), ("probe0", {}), ("broken0", {"EXARGS": "-device nonsense"})),
)
RUNNING = ("web-1", "leaf1", "spine0", "ubuntu2204")


class Screen(NamedTuple):
    """A command whose screen is kept."""

    name: str
    line: str
    keys: str = ""
    """What is typed when the screen is drawn; then the program has to end."""
    status: int = 0


DRAWN = (
    Screen("list", ""),
    Screen("help", "help"),
    Screen("help-start", "help start"),
    Screen("top", "top -d 60 --sort name", keys="q"),
    Screen("status", "status --all", status=3),
    Screen("info", "info leaf1"),
    Screen("failing-start", "start broken", status=1),
    Screen("nonsense-in-a-file", "start leaf12", status=1),
    Screen("mistyped-verb", "strat", status=4),
    Screen("mistyped-vm", "status ubuntu2205", status=4),
)
# What differs from run to run.
VARYING = (
    (r"␛\[K[^␛\n]*\r(?=␛\[K)|\r(?=␛)", ""),  # progress that was drawn over
    (r"\b\d+(\.\d+)? (s|min)\b", "5 s"),
    (r"\bPID \d+", "PID 4711"),
    (r"/\S+/idle\.rom", "idle.rom"),
    (r"display: 3186\d \(port 3776\d", "display: 31862 (port 37762"),  # the next ones, if that is taken
)
NUMBER = re.compile(r"(?<![^ ])[0-9][0-9.:]*( s| min|[KMG]?%?)(?![^ ,])")


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with twelve VMs, of which some run."""
    instance = Daemon(tmp_path_factory.mktemp("screens"))
    try:
        instance.start()
        for vm, files in VMS:
            instance.make(f"{vm}0" if vm.isalpha() else vm, **files)
        instance.done(*RUNNING, "start")
        yield instance
    finally:
        instance.close()


def alike(text: str, daemon: Daemon) -> str:
    """Return what was written to a terminal with visible escapes; all runs of it are alike."""
    text = text.replace(str(daemon.root), "/home/you/vms").replace("\r\n", "\n").replace("\x1b", "␛")
    for pattern, instead in VARYING:
        text = re.sub(pattern, instead, text)
    return "".join(f"{line.rstrip()}\n" for line in text.rstrip().split("\n"))


def steady(page: str) -> str:
    """Return a page of `top` with 0 for each number, at the same right edge, and PIDs of five digits."""
    head, titles, *rows, keys = page.split("\n")
    start = titles.index("STATE") + len("stopped  ")
    wider = titles.find("PID") + len("PID") - start - 5  # more than five digits, where it is shown
    lines = [line[:start] + line[start + max(0, wider) :] for line in (titles, *rows)]
    lines = [NUMBER.sub(lambda number: "0".rjust(len(number[0])), line) for line in lines]
    return "\n".join([NUMBER.sub("0", head), *lines, keys])


@pytest.mark.xdist_group("screens")  # so that the VMs are made once
@pytest.mark.parametrize("colour", [False, True], ids=["plain", "colour"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("drawn", DRAWN, ids=[drawn.name for drawn in DRAWN])
def test_a_screen_is_as_it_was_drawn(
    twelve: Daemon, request: pytest.FixtureRequest, drawn: Screen, width: int, *, colour: bool
) -> None:
    options = {
        "size": (width, 50),
        "program": AS_VMESSCTL,
        "PAGER": "cat",
        **({} if colour else {"NO_COLOR": "1"}),
    }
    with on_terminal(twelve, *drawn.line.split(), **options) as screen:
        if drawn.keys:
            page = "\n".join(screen.see(RUNNING[0]))
            screen.type(drawn.keys)
        assert screen.end() == drawn.status, screen.said
        assert colour or not re.search(r"\x1b\[[0-9;]*[1-9][0-9;]*m", screen.said)
    found = alike(steady(page) if drawn.keys else screen.said, twelve)
    file = SCREENS / f"{drawn.name}.{width}{'.colour' if colour else ''}.txt"
    if request.config.option.redraw:
        SCREENS.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8")
