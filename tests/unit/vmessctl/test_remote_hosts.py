"""Other hosts: their names and groups, the line for a login shell, what comes before its output, refusals."""

import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmessctl import host_choice as choice
from vmessctl.cli import grammar, verbs
from vmessctl.commands import completion
from vmessctl.hosts import several
from vmessctl.ssh import masters
from vmessctl.ssh.remote_line import Opening, quoted, remote_line
from vmessd.core.errors import InvalidValue, Unreachable

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


# -- Names of hosts --


@pytest.mark.parametrize(
    "host", ["lab1", "root@lab1", "lab1.example.org", "10.0.0.1", "fe80::1", "A_b-c", "me.too@h", "x" * 255]
)
def test_the_name_of_a_host(host: str) -> None:
    assert choice.chosen(host, {}).hosts == (host,)


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "-oProxyCommand=touch x",
        "-lroot",
        "--",
        "root@-oProxyCommand=x",
        "-x@lab1",
        "@lab1",
        "lab1@",
        "lab 1",
        "lab1\n",
        "lab1;id",
        "lab1/x",
        "$(id)",
        "ssh://lab1",
        "lab1%eth0",
        "a@b@c d",
        "läb",
        "x" * 256,
        "lab1,",
        ",lab1",
        "lab1,-oX=y",
    ],
)
def test_what_is_not_the_name_of_a_host(host: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        choice.chosen(host, {})
    assert caught.value.status == 2
    assert "is not a host: a host has letters" in caught.value.message
    assert "\n" not in caught.value.message


def test_several_hosts_and_groups() -> None:
    groups = {"lab": "lab1,root@lab2", "one": "lab9", "host": "lab7"}
    chosen = [choice.chosen(text, groups) for text in ("lab1", "lab", "lab,lab3,lab1", "one", "host")]
    assert [each.hosts for each in chosen] == [
        ("lab1",),
        ("lab1", "root@lab2"),
        ("lab1", "root@lab2", "lab3"),
        ("lab9",),
        ("host",),
    ]
    assert [each.several for each in chosen] == [False, True, True, True, True]


def test_the_file_of_groups() -> None:
    text = "# Hosts\n\n lab = lab1, lab2 root@lab3  # three\nhost=lab1\n"
    assert choice.parsed(text, "hosts") == {"lab": "lab1,lab2,root@lab3", "host": "lab1"}


@pytest.mark.parametrize("line", ["lab", "= lab1", "lab =", "my lab = x", "-o = x", "local = lab1", "[lab]"])
def test_a_wrong_line_in_the_file_of_groups_is_named(line: str) -> None:
    with pytest.raises(InvalidValue, match=r"^/x/hosts, line 2: '.*' is not a group$"):
        choice.parsed(f"a = b\n{line}\n", "/x/hosts")


def test_which_lines_are_for_this_host(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    assert [choice.of_line(named, str(file)) for named in (None, "local")] == [None, None]
    file.write_text("host = lab1\nhere = local\n")
    found = [choice.of_line(named, str(file)) for named in (None, "lab2", "here", "local,lab1")]
    assert [each and each.hosts for each in found] == [
        ("lab1",),
        ("lab2",),
        ("local",),
        ("local", "lab1"),
    ]
    assert choice.of_line("local", str(file)) is None


@pytest.mark.parametrize("words", [[], ["--host=lab2"], ["--host=-x"]])
def test_after_tab_no_daemon_is_asked_for_a_line_that_is_for_another_host(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "vmess").mkdir()
    (tmp_path / "vmess/hosts").write_text("host = lab1\n")
    asked: list[object] = []

    def client(paths: list[str], _patience: float) -> NoReturn:
        asked.append(paths)
        raise Unreachable("there is none")

    monkeypatch.setattr("vmessctl.client.Client", client)

    def world(*typed: str) -> completion.World:
        line = grammar.Line()
        for word in typed:
            line.read(word)
        return completion.World(line)

    assert world(*words)._ask("List") == {}
    assert asked == []
    assert world("--host=local")._ask("List") == {}
    assert len(asked) == 1


def test_a_wrong_host_in_a_group_is_refused() -> None:
    with pytest.raises(InvalidValue):
        choice.chosen("lab", {"lab": "lab1,-oProxyCommand=x"})


# -- The command line --


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["--host", "lab1", "newvm", "start"], ["newvm", "start"]),
        (["newvm", "start", "--host=lab1", "vnc"], ["newvm", "start", "vnc"]),
        (["newvm", "--host", "--host", "status"], ["newvm", "status"]),
        (["newvm", "ssh", "echo", "--host", "x"], ["newvm", "ssh", "echo", "--host", "x"]),
        (["newvm", "lock", "--", "--host"], ["newvm", "lock", "--", "--host"]),
        (["newvm", "wait", "on", "--timeout", "--host"], ["newvm", "wait", "on", "--timeout", "--host"]),
    ],
)
def test_the_line_goes_on_without_the_host(words: list[str], left: list[str]) -> None:
    assert grammar.without(verbs.ON_HOST, words) == left


SHELLS = [shell for shell in ("sh", "bash", "zsh", "fish", "ksh", "tcsh") if shutil.which(shell)]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_login_shell_hands_over_all_words(shell: str) -> None:
    words = [
        word for word in NASTY if shell != "tcsh" or "\n" not in word
    ]  # csh ends a line there, come what may
    line = remote_line(["printf", "%s\\0", *words], "x")
    done = subprocess.run([shell, "-c", line], capture_output=True, check=True, timeout=30)
    assert done.stdout.decode().split("\0")[:-1] == words


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=3))
def test_any_word_is_one_word_of_sh(words: list[str]) -> None:
    line = " ".join(["printf", "'%s\\0'", "x", *map(quoted, words)])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=30)
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


def test_where_no_host_answers_there_is_no_table_and_no_advice_to_make_a_vm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(several._Hosts, "run", lambda _hosts: [Unreachable.status, Unreachable.status])
    asked = grammar.parse(["list", "--no-header"])
    assert several.run(asked, ["list"], ["dead", "mute"]) == Unreachable.status
    assert capsys.readouterr() == ("", "")
