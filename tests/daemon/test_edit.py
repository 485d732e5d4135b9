"""The verb edit: what the editor gets, what is made of what it leaves, and that no mishap changes anything."""

from pathlib import Path

import pytest
from daemons import AS_VMESSCTL, CLIENT, Daemon, own
from terminals import on_terminal

from vmessctl.commands.edit import SHOWN, parsed, written
from vmessd.core.errors import InvalidValue

A = own("a")
LAST = len(written(A, {}).splitlines()) + 1
"""The line after the last of what the editor gets."""


def test_what_is_written_is_read_back() -> None:
    values = {"ram": "2G", "autostart": "on 10 5", "qemu-options": "-device 'a b' # no comment"}
    assert parsed(written("leaf0", values)) == values
    assert parsed(written("leaf0", {})) == {}
    assert parsed("") == {}
    assert parsed("  ram   2G  \n# smp 4\nsmp none\n") == {"ram": "2G"}
    assert [line.strip("#").split()[0] for line in written("leaf0", {}).splitlines()[3::3]] == list(SHOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nrma 2G", "line 2: 'rma' is not one of smp, ram, "),
        ("ram 2G\nram 1G", "line 2: ram must be there only once"),
        ("ram", "line 1: ram must have a value, or # before it"),
        ("\x1b[31m 1", r"line 1: '\x1b[31m' is not one of "),
        ("hda 8G", "line 1: 'hda' is not one of "),
    ],
)
def test_what_is_no_setting_is_refused_by_its_line(text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parsed(text)
    assert caught.value.message.startswith(message)


def editor(daemon: Daemon, script: str, client: tuple[str, ...] = CLIENT) -> tuple[str, ...]:
    """The command of a client whose editor is a shell script."""
    path = daemon.directory / "my editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return ("env", f"VISUAL='{path}' +1", f"TMPDIR={daemon.directory}", *client)


def left_behind(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith("vmess-")]


def kept(daemon: Daemon, said: str) -> str:
    """The text that was kept, in a file for its owner alone, of which the last line tells; it is deleted."""
    told = f"{A}: the edited text is kept in "
    line = said.splitlines()[-1]
    assert line.startswith(told)
    path = Path(line.removeprefix(told))
    assert left_behind(daemon.directory) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    path.unlink()
    return text


def test_what_has_changed_is_set(daemon: Daemon) -> None:
    daemon.done("make", A, "ram", "16M", "smp", "2")
    change = "s/^ram .*/ram 32M/; s/^smp/#smp/; s/^#grace/grace 7/"
    program = editor(daemon, f'sed -i "{change}" "$2"; stat -c %a "${{2%/*}}" >&2')
    result = daemon.vmess(A, "edit", program=program)
    assert (result.returncode, result.stderr) == (0, "700\n")
    assert daemon.done(A, "ram", "smp", "grace", "cpu") == "32M\nnone\n7\nbest\n"
    assert left_behind(daemon.directory) == []
    same = daemon.vmess("edit", A, program=editor(daemon, "true"))
    assert (same.returncode, same.stdout) == (0, "nothing was changed\n")


def test_as_vmessctl_each_change_is_a_line(daemon: Daemon) -> None:
    daemon.done("make", A, "ram", "16M", "smp", "2")
    change = "s/^ram .*/ram 32/; s/^smp/#smp/; s/^#grace/grace 7/"
    program = editor(daemon, f'sed -i "{change}" "$2"', client=AS_VMESSCTL)
    result = daemon.vmess("edit", A, program=program)
    assert (result.returncode, result.stderr) == (0, "RAM 32 taken as 32M\n")
    assert sorted(result.stdout.splitlines()) == [f"{A}: grace 7", f"{A}: ram 32M", f"{A}: smp none"]
    same = daemon.vmess("edit", A, program=editor(daemon, "true", client=AS_VMESSCTL))
    assert (same.returncode, same.stdout) == (0, f"{A}: nothing was changed\n")


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("smp x", "SMP 'x' is not a number of processors"),
        ("banana", f"line {LAST}: 'banana' is not one of "),
        ("ram 1G", f"line {LAST}: ram must be there only once"),
    ],
)
def test_a_text_with_a_mistake_sets_nothing_and_is_kept(daemon: Daemon, mistake: str, told: str) -> None:
    daemon.done("make", A, "ram", "16M")
    result = daemon.vmess(A, "edit", program=editor(daemon, f'echo "{mistake}\naccel tcg" >>"$2"'))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"vmess: {told}")
    assert kept(daemon, result.stderr).endswith(f"\n{mistake}\naccel tcg\n")
    assert daemon.done(A, "smp", "accel", "ram") == "none\nnone\n16M\n"


def test_what_the_daemon_refuses_is_kept_too(daemon: Daemon) -> None:
    daemon.done("make", A, "ram", "16M")
    daemon.done(A, "lock")
    result = daemon.vmess(A, "edit", program=editor(daemon, 'echo "accel tcg" >>"$2"'))
    assert (result.returncode, result.stdout) == (7, "")
    assert result.stderr.startswith(f"vmess: VM {A} is locked")
    assert kept(daemon, result.stderr).endswith("\naccel tcg\n")


CORRECTION = """grep -q banana "$2" && exec sed -i s/banana/smp/ "$2"; echo banana 2 >>"$2" """


def test_on_a_terminal_a_mistake_can_be_edited_again(daemon: Daemon) -> None:
    daemon.done("make", A, "ram", "16M")
    with on_terminal(daemon, A, "edit", program=editor(daemon, CORRECTION)) as terminal:
        terminal.see(f"line {LAST}: 'banana' is not one of ")
        terminal.see("[e]dit again, or [q]uit?")
        terminal.type("e\n")
        assert terminal.end() == 0, terminal.said
    assert daemon.done(A, "smp") == "2\n"
    assert left_behind(daemon.directory) == []


@pytest.mark.parametrize(("typed", "status"), [("q\n", 1), ("\x04", 1), ("\x03", 130)])
def test_whoever_gives_up_finds_the_text_in_a_file(daemon: Daemon, typed: str, status: int) -> None:
    daemon.done("make", A, "ram", "16M")
    with on_terminal(daemon, A, "edit", program=editor(daemon, CORRECTION), size=(200, 24)) as terminal:
        terminal.see("[e]dit again, or [q]uit?")
        if typed == "\x03":
            terminal.interrupt()
        else:
            terminal.type(typed)
        assert terminal.end() == status, terminal.said
    assert daemon.done(A, "smp") == "none\n"
    assert kept(daemon, terminal.said.replace("\r", "")).endswith("banana 2\n")


@pytest.mark.parametrize(
    ("script", "status", "told"),
    [
        ("exit 3", 1, "ended with exit status 3; nothing was changed"),
        ("kill -KILL $$", 1, "was ended by signal 9; nothing was changed"),
        (': >"$2"', 1, "the edited text is empty; nothing was changed"),
        ('echo >"$2"', 1, "the edited text is empty; nothing was changed"),
        (
            'yes "#" | head -c 1048577 >>"$2"',
            1,
            "the edited text has more than 1048576 characters; nothing was changed",
        ),
        ('rm "$2"', 1, "the settings cannot be edited: no such file or directory"),
        ('rm "$2"; mkfifo "$2"', 1, "the editor did not leave a regular file; nothing was changed"),
        ('ln -sf /dev/zero "$2"', 1, "the editor did not leave a regular file; nothing was changed"),
    ],
)
def test_a_mishap_of_the_editor_changes_nothing(daemon: Daemon, script: str, status: int, told: str) -> None:
    daemon.done("make", A, "ram", "16M")
    result = daemon.vmess(A, "edit", program=editor(daemon, script))
    assert (result.returncode, told in result.stderr) == (status, True), result.stderr
    assert daemon.done(A, "ram") == "16M\n"
    assert left_behind(daemon.directory) == []


def test_without_an_editor_and_a_terminal_nothing_is_edited(daemon: Daemon) -> None:
    daemon.done("make", A)
    bare = ("env", "-u", "VISUAL", "-u", "EDITOR", *CLIENT)
    result = daemon.vmess(A, "edit", program=bare)
    assert (result.returncode, result.stderr.splitlines()[0]) == (
        2,
        "vmess: edit needs a terminal, or an editor in VISUAL",
    )
    missing = daemon.vmess(A, "edit", program=("env", "VISUAL=/nonexistent/editor -n", *CLIENT))
    assert (missing.returncode, missing.stderr.splitlines()) == (
        1,
        [
            "vmess: the editor '/nonexistent/editor' cannot be run: no such file or directory",
            "  hint: name an editor in VISUAL",
        ],
    )
    assert daemon.vmess("missing", "edit", program=bare).returncode == 4


def test_ctrl_c_is_for_the_editor(daemon: Daemon) -> None:
    daemon.done("make", A, "ram", "16M")
    waits = "trap 'heard=1' INT; echo ready; until [ $heard ]; do sleep 0.05; done; sleep 0.5"
    program = editor(daemon, f"""{waits}; sed -i 's/^ram .*/ram 32M/' "$2" """)
    with on_terminal(daemon, A, "edit", program=program) as terminal:
        terminal.see("ready")
        terminal.interrupt()
        assert terminal.end() == 0, terminal.said
    assert daemon.done(A, "ram") == "32M\n"


def test_an_editor_that_is_killed_leaves_the_terminal_as_it_was(daemon: Daemon) -> None:
    daemon.done("make", A)
    program = editor(daemon, "stty raw -echo; kill -KILL $$")
    with on_terminal(daemon, A, "edit", program=program) as terminal:
        assert terminal.end() == 1
        assert terminal.is_as_before()
