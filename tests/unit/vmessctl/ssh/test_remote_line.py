"""The line for a login shell of another host, what comes before its output, and refusals of ssh."""

import shutil
import subprocess

import pytest
from daemons import UNIT
from hypothesis import given, settings
from hypothesis import strategies as st

from vmessctl.ssh import masters
from vmessctl.ssh.remote_line import Opening, quoted, remote_line
from vmessd.core.errors import Unreachable

NASTY = [
    "",
    " ",
    "plain",
    "-x",
    "--",
    "two words",
    "it's",
    "'\\''",
    "\\",
    "a\\\\b",
    "\\'",
    '"$HOME"',
    "`id`",
    "$(id)",
    "${x}",
    "!!",
    "a!b",
    "*",
    "?[a-z]",
    "~",
    "~root",
    "#no comment",
    "{a,b}",
    "a=b",
    "^x^y",
    "%1",
    "&;|<>()",
    "tab\there",
    "line\nline",
    "carriage\r",
    "\x1b[31m",
    "\x7f",
    "é 漢 \U0001f600",
]

SHELLS = [shell for shell in ("sh", "bash", "zsh", "fish", "ksh", "tcsh") if shutil.which(shell)]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_login_shell_hands_over_all_words(shell: str) -> None:
    words = [
        word for word in NASTY if shell != "tcsh" or "\n" not in word
    ]  # csh ends a line there, come what may
    line = remote_line(["printf", "%s\\0", *words], "x")
    done = subprocess.run([shell, "-c", line], capture_output=True, check=True, timeout=30 * UNIT)
    assert done.stdout.decode().split("\0")[:-1] == words


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=3))
def test_any_word_is_one_word_of_sh(words: list[str]) -> None:
    line = " ".join(["printf", "'%s\\0'", "x", *map(quoted, words)])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=30 * UNIT)
    assert done.stdout.decode().split("\0")[1:-1] == words


def test_what_is_not_there_is_told_from_what_is() -> None:
    done = subprocess.run(
        ["sh", "-c", remote_line(["no-such-program", "x"], "x", "mark")], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (127, b"mark -\n", b"")
    done = subprocess.run(
        ["sh", "-c", remote_line(["printenv", "VMESS_HOST", "VMESS_CALLED"], "x --host y", "mark")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.partition(b"\n")[2] == b"local\nx --host y\n"


def test_the_output_begins_behind_the_mark() -> None:
    said = b"Welcome!\nmark is not it: mark\n> mark 123\n{}\nmark 5\n"
    for size in range(1, len(said)):
        opening = Opening("mark")
        pieces = [said[at : at + size] for at in range(0, len(said), size)]
        assert b"".join(map(opening.read, pieces)) == b"{}\nmark 5\n"
        assert (opening.pid, opening.is_over) == (123, True)


def test_of_a_greeting_without_end_little_is_kept() -> None:
    opening = Opening("mark")
    assert b"".join(opening.read(b"x" * 50_000) for _ in range(20)) == b""
    assert len(opening.greeting) == 1 << 16
    assert opening.read(b"mark -\nx") == b"x"


# -- Refusals --

CHANGED = """\
@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@
Someone could be eavesdropping on you right now (man-in-the-middle attack)!
  remove with:
  ssh-keygen -f "/x" -R "lab1"
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            CHANGED,
            "the host key of lab1 has changed: it may be an impostor",
            'if you know why it has changed: ssh-keygen -f "/x" -R "lab1"',
        ),
        (
            "No ED25519 host key is known for lab1 and you asked for it.\nHost key verification failed.\r\n",
            "lab1 cannot be reached: its host key is not known yet",
            "look at it, and accept it: ssh lab1",
        ),
        (
            "root@lab1: Permission denied (publickey).\r\n",
            "lab1 cannot be reached: root@lab1: Permission denied (publickey).",
            "a key must do, without a password: ssh-copy-id lab1; or, for a while: ssh-add",
        ),
        (
            "ssh: connect to host lab1 port 22: Connection timed out\r\n",
            "lab1 cannot be reached: ssh: connect to host lab1 port 22: Connection timed out",
            "what works here is what works with ssh: ssh lab1",
        ),
        (
            "",
            "lab1 cannot be reached: ssh has said why",
            "what works here is what works with ssh: ssh lab1",
        ),
    ],
)
def test_a_refusal_of_ssh_is_one_line(said: str, message: str, hint: str) -> None:
    error = masters.refusal("lab1", said)
    assert isinstance(error, Unreachable)
    assert (error.message, error.hint) == (message, hint)
