"""Other hosts: their names and groups, and which lines are for them."""

from pathlib import Path
from typing import NoReturn

import pytest

from vmessctl import host_choice as choice
from vmessctl.cli import grammar
from vmessctl.commands import completion
from vmessd.core.errors import InvalidValue, Unreachable


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

    def client(paths: list[str], *_: object) -> NoReturn:
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
