"""Other hosts: the line that goes there, and what is said where none answers."""

import pytest

from vmessctl.cli import grammar, verbs
from vmessctl.hosts import several
from vmessd.core.errors import Unreachable


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


def test_where_no_host_answers_there_is_no_table_and_no_advice_to_make_a_vm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(several._Hosts, "run", lambda _hosts: [Unreachable.status, Unreachable.status])
    asked = grammar.parse(["list", "--no-header"])
    assert several.run(asked, ["list"], ["dead", "mute"]) == Unreachable.status
    assert capsys.readouterr() == ("", "")
