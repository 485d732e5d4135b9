"""Help on a terminal: bold headings, a pager for what does not fit, and what happens when the pager fails."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from daemons import CLIENT, TESTS, UNIT, Daemon
from terminals import Terminal, on_terminal

from vmessctl import app
from vmessctl.cli import helptext
from vmessctl.cli.verbs import BY_VERB, COMMANDS

BOLD = "\x1b[1m"
SCREEN = helptext.help_text()
EVERYTHING = helptext.help_text("all")


@pytest.fixture
def nobody(tmp_path: Path) -> Daemon:
    """No daemon: help needs none."""
    return Daemon(tmp_path)


@pytest.fixture
def pager(tmp_path: Path) -> Path:
    """A program called `less` that keeps its arguments and its input."""
    program = tmp_path / "less"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\nexec cat >{tmp_path}/input\n')
    program.chmod(0o755)
    return program


def shown(terminal: Terminal) -> str:
    """What a client has printed when it has ended well, without what a terminal obeys."""
    assert terminal.end() == 0
    return re.sub(r"\x1b\[1?m", "", terminal.said).replace("\r\n", "\n").removesuffix("\n")


def test_the_screen_fits_and_its_headings_are_bold(nobody: Daemon, pager: Path) -> None:
    for words in (["help"], ["newvm", "help"], ["--help"]):
        with on_terminal(nobody, *words, PAGER=str(pager)) as terminal:
            assert shown(terminal) == SCREEN
            assert f"{BOLD}Life\x1b[m" in terminal.said
            assert terminal.page.text()[0].startswith("Usage"), "nothing has left the screen"
            assert not terminal.page.wrapped
    with on_terminal(nobody, "help", NO_COLOR="1") as terminal:
        assert shown(terminal) == SCREEN
        assert "\x1b" not in terminal.said
    assert not (pager.parent / "input").exists()


def test_a_long_text_goes_through_less(nobody: Daemon, pager: Path) -> None:
    with on_terminal(nobody, "help", "all", PATH=f"{pager.parent}:{os.environ['PATH']}") as terminal:
        assert shown(terminal) == ""
    assert (pager.parent / "arguments").read_text() == "-FRX\n"
    text = (pager.parent / "input").read_text()
    assert BOLD in text
    assert re.sub(r"\x1b\[1?m", "", text) == EVERYTHING + "\n"


def test_a_screen_that_is_narrow_or_low_makes_a_text_long(nobody: Daemon, pager: Path) -> None:
    for size in ((40, 24), (80, 12), (20, 10)):
        with on_terminal(nobody, "help", size=size, PAGER=str(pager)) as terminal:
            assert shown(terminal) == ""
        (pager.parent / "input").unlink()


def test_another_pager_gets_plain_text(nobody: Daemon, pager: Path) -> None:
    with on_terminal(nobody, "help", "all", PAGER=f"{pager} --one 'two  three'") as terminal:
        assert shown(terminal) == ""
    assert (pager.parent / "arguments").read_text() == "--one two  three\n"
    assert (pager.parent / "input").read_text() == EVERYTHING + "\n"


@pytest.mark.parametrize(
    ("environment", "bold"),
    [
        ({"PAGER": ""}, True),
        ({"PAGER": "cat"}, False),
        ({"PAGER": "false"}, True),
        ({"PATH": "/nonexistent"}, True),
        ({"TERM": "dumb"}, False),
    ],
    ids=str,
)
def test_without_a_pager_that_works_the_text_is_printed(
    nobody: Daemon, environment: dict[str, str], bold: bool
) -> None:
    with on_terminal(nobody, "help", "all", **environment) as terminal:
        assert shown(terminal) == EVERYTHING
        assert (BOLD in terminal.said) is bold


def test_a_pager_that_is_not_there_is_named_and_the_text_is_printed(nobody: Daemon) -> None:
    with on_terminal(nobody, "help", "all", PAGER="no-such-pager") as terminal:
        complaint, _, text = shown(terminal).partition("\n")
        assert "no-such-pager" in complaint
        assert text == EVERYTHING


@pytest.mark.parametrize("command", ["stty raw -echo; kill -KILL $$", "sh -c 'kill -TERM $$'; exit $?"])
def test_a_pager_that_is_killed_has_shown_enough(nobody: Daemon, command: str) -> None:
    with on_terminal(nobody, "help", "all", PAGER=command.replace("stty", "</dev/tty stty")) as terminal:
        said = shown(terminal)
        assert said.strip() in ("", "Terminated")  # which is the shell's
        assert terminal.is_as_before()


def test_ctrl_c_is_for_the_pager(nobody: Daemon) -> None:
    command = "trap 'echo heard; exit' INT; echo ready; while :; do sleep 0.05; done"
    with on_terminal(nobody, "help", "all", PAGER=command) as terminal:
        terminal.see("ready")
        terminal.interrupt()
        assert shown(terminal).splitlines()[-1].endswith("heard")


def test_less_itself_shows_the_first_screen_and_ends_at_q(nobody: Daemon) -> None:
    if shutil.which("less") is None:
        pytest.skip("there is no less(1); it is in the package of this name")
    with on_terminal(nobody, "help", "all", TERM="ansi") as terminal:
        terminal.expect("Hardware")
        terminal.type("q")
        assert terminal.end() == 0
        assert terminal.is_as_before()


OFF = frozenset(("Make", "Set", "Lock", "Unlock", "List", "Status", "Info", "Why", "Nics", "Addresses"))
"""Methods that make sense for a VM that has never been started, and need no privilege."""


def test_examples_work_as_typed(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("debian.iso", "vmlinuz", "initrd.img"):
        (tmp_path / file).touch()
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # unlock asks
    interactive = ("edit", "ssh", "scp")
    verbs = [each.verb for each in COMMANDS if each.method in OFF and each.verb not in interactive]
    assert len(verbs) > 20
    for verb in verbs:
        words = shlex.split(BY_VERB[verb].example)
        assert app.run(["--socket", str(daemon.socket), *words]) == (3 if verb == "status" else 0), words


def test_what_is_no_terminal_gets_neither_pager_nor_bold_letters(pager: Path) -> None:
    done = subprocess.run(
        [*CLIENT, "help", "all"],
        env={**os.environ, "PAGER": str(pager), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30 * UNIT,
        cwd=TESTS.parent,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, EVERYTHING + "\n", "")
    assert not (pager.parent / "input").exists()
