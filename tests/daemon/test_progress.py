"""Lines that move while several VMs come up or go down: one for each, on a terminal only."""

import os
import posix
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import AS_VMESSCTL, UNIT, Daemon, own
from hypothesis import given
from hypothesis import strategies as st
from terminals import Page, Terminal, on_terminal

from vmessctl.output import rendering, terminal
from vmessctl.output.terminal import StatusLines, fitting

A, B, C = (own(letter) for letter in "abc")


# Lines


def test_what_goes_through_a_pipe_is_not_drawn_over(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    master, slave = os.openpty()
    try:
        with daemon.client(A, B, "start", stderr=slave) as client:
            out, _ = client.communicate(timeout=20 * UNIT)
        os.write(slave, b"|")
        assert os.read(master, 4096) == b"|"
        assert sorted(line.split()[0] for line in out.splitlines()) == [f"{A}:", f"{B}:"]
    finally:
        os.close(master)
        os.close(slave)


def test_of_more_texts_than_lines_the_last_says_how_many() -> None:
    texts = [("", f"vm{number}: power button pressed") for number in range(5)]
    assert fitting(texts, 12, 5) == [("", f"vm{number}: power b") for number in range(5)]
    assert fitting(texts, 80, 3) == [*texts[:2], ("", "and 3 more")]
    assert fitting(texts, 80, 1) == [("", "and 5 more")]
    assert fitting([], 80, 3) == []


@given(st.lists(st.text("x ", max_size=200), max_size=60), st.integers(0, 200), st.integers(0, 60))
def test_what_is_drawn_fits_whatever_the_terminal(texts: list[str], width: int, height: int) -> None:
    shown = fitting([("", text) for text in texts], width, height)
    assert len(shown) <= max(1, height)
    assert max((len(text) for _, text in shown), default=0) <= max(10, width)


def drawn_on(
    monkeypatch: pytest.MonkeyPatch, steps: list[list[str | tuple[str, str]]], sizes: list[tuple[int, int]]
) -> Page:
    """Draw on a page that changes its size before each step, and return it."""
    page = Page(*sizes[0])
    master, slave = os.openpty()
    try:
        with os.fdopen(os.dup(slave), "w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            monkeypatch.setattr(sys, "stdout", stream)
            monkeypatch.setitem(posix.environ, b"TERM", b"xterm")
            lines = StatusLines()
            for texts, (width, height) in zip(steps, sizes, strict=True):
                page.resize(width, height)
                monkeypatch.setattr(
                    posix, "get_terminal_size", lambda _fd, at=(width, height): os.terminal_size(at)
                )
                lines.draw(*texts)
                stream.write("\0")
                stream.flush()
                said = b""
                while not said.endswith(b"\0"):
                    said += os.read(master, 4096)
                page.feed(said.decode().replace("\0", "").replace("\r\r\n", "\r\n"))
    finally:
        os.close(slave)
        os.close(master)
    return page


def test_lines_are_drawn_in_the_place_of_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (40, 6)
    page = drawn_on(monkeypatch, [["a 1", "b 1", "c 1"], ["a 2", "c 2"]], [size] * 2)
    assert page.text() == ["a 2", "c 2", "", "", "", ""]
    page = drawn_on(monkeypatch, [["a 1", "b 1"], ["a 2", "", "b 2", "c 2"], []], [size] * 3)
    assert page.text() == [""] * 6
    assert (page.line, page.column) == (0, 0)
    many = [f"{number} {'x' * 60}" for number in range(9)]
    page = drawn_on(monkeypatch, [list(many)] * 3, [size] * 3)
    assert page.text() == [*(f"{number} {'x' * 35}" for number in range(4)), "and 5 more", ""]
    assert not page.wrapped


def test_force_stands_out_unless_nobody_wants_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(posix.environ, b"NO_COLOR", raising=False)
    assert drawn_on(monkeypatch, [["a", ("31", "b")]], [(40, 6)]).colours == ["31", ""]
    monkeypatch.setitem(posix.environ, b"NO_COLOR", b"1")
    page = drawn_on(monkeypatch, [["a", ("31", "b")]], [(40, 6)])
    assert (page.text()[:2], page.colours) == (["a", "b"], [])
    rungs = ("power button", "QMP quit", "SIGTERM", "SIGKILL", None)
    assert [rendering.rung_colour({"rung": rung}) for rung in rungs] == ["", "33", "33", "31", ""]
    assert rendering.rung_colour({}) == ""


def test_a_line_that_a_narrower_terminal_has_folded_is_taken_away_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = StatusLines()
    lines._drawn = [30, 30]
    assert lines._erasure(80) == "\r\x1b[1A\x1b[J"
    assert lines._erasure(20) == "\r\x1b[3A\x1b[J"
    monkeypatch.setitem(posix.environ, b"TERM", b"dumb")
    assert not terminal.can_redraw()


# The real client


def stubborn(daemon: Daemon, graces: dict[str, str]) -> None:
    """Start VMs that ignore the power button, each with a grace of its own."""
    for vm, grace in graces.items():
        daemon.make(vm, "ignoring", STOP=grace)
    daemon.done(*graces, "start")
    for vm in graces:
        daemon.wait_guest(vm)


def lines_of(screen: Terminal) -> list[str]:
    return [line for line in screen.page.text() if line]


def like(*patterns: str) -> Callable[[list[str]], bool]:
    """A condition: the page has these lines, in this order, and no others."""

    def condition(page: list[str]) -> bool:
        lines = [line for line in page if line]
        return len(lines) == len(patterns) and all(map(re.fullmatch, patterns, lines))

    return condition


def pressed(vm: str, seconds: str, grace: int) -> str:
    return f"{vm}: power button pressed, {seconds} s of {grace} s"


def test_each_of_several_stops_has_a_line_of_its_own(daemon: Daemon) -> None:
    stubborn(daemon, {A: "3", B: "6"})
    daemon.make(C)
    daemon.done(C, "start")
    daemon.wait_guest(C)
    off, forced = f"{C}: powered down as asked", f"{A}: had to use force: QMP quit"
    with on_terminal(daemon, A, B, C, "stop") as screen:
        screen.wait(like(off, pressed(A, "[01]", 3), pressed(B, "[01]", 6)))
        screen.wait(like(off, pressed(A, "[23]", 3), pressed(B, "[23]", 6)))
        screen.wait(like(off, forced, pressed(B, "[345]", 6)))
        assert screen.end() == 8
        assert lines_of(screen) == [off, forced, f"{B}: had to use force: QMP quit"]
        assert not screen.page.wrapped
        assert "Traceback" not in screen.said


def test_each_of_several_starts_has_a_line_of_its_own(daemon: Daemon) -> None:
    for vm in (A, B):
        daemon.make(vm)
    daemon.make(C, EXARGS="-nonsense")
    with on_terminal(daemon, A, B, C, "start") as screen:
        assert screen.end() == 1
        assert re.search(f"{A}: starting, 0 s", screen.said)
        shown = lines_of(screen)
    pids = {vm: daemon.status(vm)["pid"] for vm in (A, B)}
    assert {f"{vm}: VM is running, PID: {pid}" for vm, pid in pids.items()} <= set(shown)
    assert any(line.startswith(f"vmess: VM {C}: ") and "nonsense" in line for line in shown)


def test_more_vms_than_lines_are_counted_and_nothing_is_folded(daemon: Daemon) -> None:
    vms = [f"{A[:-1]}{number}" for number in range(6)]
    stubborn(daemon, dict.fromkeys(vms, "60"))
    with on_terminal(daemon, *vms, "stop", size=(24, 4)) as screen:
        screen.wait(like(*(pressed(vm, "", 60)[:21].rstrip() for vm in vms[:2]), "and 4 more"))
        assert not screen.page.wrapped
        screen.resize(80, 24)
        screen.wait(lambda lines: sum(": power button pressed" in line for line in lines) == 6)
        screen.interrupt()
        assert screen.end() == 130
        assert lines_of(screen) == [
            *(f"vmess: the stop of {vm} continues; to check: vmess {vm} status" for vm in vms),
            f"  hint: to kill it: vmess {' '.join(vms)} kill",
        ]
        assert not screen.page.wrapped
        assert screen.is_as_before()
    daemon.done(*vms, "stop", "force")


def test_a_terminal_without_colours_or_movement(daemon: Daemon) -> None:
    stubborn(daemon, {A: "1", B: "1"})
    pids = {vm: daemon.status(vm)["pid"] for vm in (A, B)}
    with on_terminal(daemon, A, B, "stop", TERM="dumb") as screen:
        assert screen.end() == 8
        assert "\x1b" not in screen.said
        assert {f"{vm}: Stopping VM PID {pid}" for vm, pid in pids.items()} <= set(screen.said.splitlines())
    daemon.done(A, B, "start")
    for vm in (A, B):
        daemon.wait_guest(vm, said=b"RR")
    with on_terminal(daemon, A, B, "stop", NO_COLOR="1") as screen:
        assert screen.end() == 8
        assert screen.page.colours == []


def test_twenty_columns_are_enough(daemon: Daemon) -> None:
    """Lines of what was done are folded by the terminal; what is drawn again is cut to its width."""
    daemon.make(A, "ignoring", STOP="1")
    daemon.make(B, "ignoring", STOP="1")

    def shown(*words: str) -> tuple[int, str, str]:
        with on_terminal(daemon, *words, program=AS_VMESSCTL, size=(20, 24), PAGER="cat") as screen:
            status = screen.end()
            drawn = re.findall(r"\r\x1b\[K([^\r\n\x1b]+)", screen.said)
            assert all(len(text) < 20 for text in drawn if "PID" not in text and "force" not in text)
            return status, screen.said, "".join(screen.page.text())

    status, _, page = shown("start", "--all")
    assert status == 0
    for vm in (A, B):
        assert f"{vm}:started(PID{daemon.status(vm)['pid']},TCG)" in page.replace(" ", "")
        daemon.wait_guest(vm)
    assert shown("top", "-n", "1", "-d", "0.2")[0] == 0
    status, said, page = shown("stop", "--all")
    assert status == 8
    assert f"{A}: power button"[:17] in said
    for vm in (A, B):
        assert f"{vm}:stoppedbyforce" in page.replace(" ", "")
    assert shown("help", "start")[0] == 0


def test_no_wait_says_what_was_begun(daemon: Daemon) -> None:
    stubborn(daemon, {A: "60", B: "60"})
    pids = {vm: daemon.status(vm)["pid"] for vm in (A, B)}
    with on_terminal(daemon, A, B, "stop", "--no-wait") as screen:
        assert screen.end() == 0
        assert sorted(lines_of(screen)) == sorted(f"{vm}: Stopping VM PID {pid}" for vm, pid in pids.items())
    daemon.done(A, B, "stop", "force")


def test_what_goes_to_a_file_is_lines(daemon: Daemon, tmp_path: Path) -> None:
    stubborn(daemon, {A: "1", B: "1"})
    pids = {vm: daemon.status(vm)["pid"] for vm in (A, B)}
    file = tmp_path / "said"
    with on_terminal(daemon, A, B, "stop", into=file) as screen:
        assert screen.end() == 8
    assert sorted(file.read_text().splitlines()) == sorted(f"{vm}: Stopping VM PID {pids[vm]}" for vm in pids)


def test_boot_and_shutdown_have_a_line_for_each_vm(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", AUTOSTART="on", STOP="3")
    daemon.make(B, "ignoring", AUTOSTART="on", STOP="60")
    daemon.make(C, AUTOSTART="on")
    with on_terminal(daemon, "boot") as screen:
        assert screen.end() == 0
        shown = lines_of(screen)
    pids = {vm: daemon.status(vm)["pid"] for vm in (A, B, C)}
    assert sorted(shown) == sorted(f"{vm}: VM is running, PID: {pid}" for vm, pid in pids.items())
    for vm in (A, B, C):
        daemon.wait_guest(vm)
    with on_terminal(daemon, "shutdown", size=(80, 10)) as screen:
        off, first, second = f"{C}: powered down as asked", pressed(A, "[0-3]", 3), pressed(B, "[0-3]", 60)
        either = like(off, first, second), like(off, second, first)
        screen.wait(lambda page: either[0](page) or either[1](page))
        screen.wait(like(off, f"{A}: forced off", pressed(B, "[0-9]+", 60)))
        screen.interrupt()
        assert screen.end() == 130
        assert lines_of(screen)[:2] == [f"{C}: powered down as asked", f"{A}: forced off"]
        assert lines_of(screen)[2].startswith("vmess: the shutdown continues; to check:")
    daemon.done(B, "stop", "force")
