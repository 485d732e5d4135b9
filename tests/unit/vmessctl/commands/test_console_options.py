"""Which options of a console go together, its escape key, and the values of a script."""

import base64
import socket

import pytest

from vmessctl.cli.grammar import parse
from vmessctl.commands.console import escape_key, modes, script
from vmessctl.commands.expression import compiled
from vmessd.core.errors import InvalidValue, TimedOut


@pytest.mark.parametrize(
    ("options", "module"),
    [
        ("", "console.attached"),
        ("--steal --timeout 5 --escape ctrl-a", "console.attached"),
        ("--log -f --json", "logs"),
        ("--listen 5001 --plain --read-only --steal --json", "console.listen"),
        ("--send config --expect # --rate 9600 --steal --timeout 5", "console.script"),
        ("--expect login:", "console.script"),
        ("--read-only", "console.watch"),
    ],
)
def test_an_option_chooses_the_use_of_a_console(options: str, module: str) -> None:
    assert modes.chosen(parse(["newvm", "console", *options.split()])).module == module


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("-f", "-f requires --log"),
        ("--json", "--json requires --log or --listen"),
        ("--plain", "--plain requires --listen"),
        ("--rate 9600", "--rate requires --send"),
        ("--log --timeout 5", "--timeout cannot be used with --log"),
        ("--log --listen 5001", "--listen cannot be used with --log"),
        ("--listen 5001 --send config", "--send cannot be used with --listen"),
        ("--listen 5001 --timeout 5", "--timeout cannot be used with --listen"),
        ("--send config --read-only", "--read-only cannot be used with --send"),
        ("--expect # --rate 9600", "--rate cannot be used with --expect"),
        ("--read-only --steal", "--steal cannot be used with --read-only"),
        ("--send config --escape ^a", "--escape cannot be used with --send"),
    ],
)
def test_options_that_exclude_each_other_are_said(options: str, why: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        modes.chosen(parse(["newvm", "console", *options.split()]))
    assert refused.value.message == why
    assert str(refused.value.hint).startswith("usage: ")


@pytest.mark.parametrize("options", ["", "--log", "--read-only", "--expect x"])
def test_only_a_listener_takes_several_vms(options: str) -> None:
    with pytest.raises(InvalidValue, match=r"^console takes one VM, not 2$"):
        modes.run(parse(["leaf", "spine", "console", *options.split()]))


@pytest.mark.parametrize(
    ("text", "byte", "shown"),
    [
        ("ctrl-a", b"\x01", "Ctrl-A"),
        ("^a", b"\x01", "Ctrl-A"),
        ("Ctrl-]", b"\x1d", "Ctrl-]"),
        ("^^", b"\x1e", "Ctrl-^"),
        ("ctrl-\\", b"\x1c", "Ctrl-\\"),
        ("^_", b"\x1f", "Ctrl-_"),
    ],
)
def test_an_escape_key_is_ctrl_and_a_sign(text: str, byte: bytes, shown: str) -> None:
    key = escape_key.parse(text)
    assert (key.byte, key.shown, key.how) == (byte, shown, f"{shown} detaches")
    assert key.before(b"ab" + byte + b"c") == (b"ab", True)
    assert key.before(b"ab") == (b"ab", False)


def test_without_an_escape_key_every_key_is_the_guests() -> None:
    key = escape_key.parse("none")
    assert key.before(bytes(range(256))) == (bytes(range(256)), False)
    assert key.how == "closing the terminal detaches"


@pytest.mark.parametrize("text", ["", "a", "ctrl-", "^", "ctrl-j", "^M", "ctrl-aa", "ctrl-1", "^é", "esc"])
def test_any_other_escape_key_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"^escape key .* is not ctrl- and a letter"):
        escape_key.parse(text)


@pytest.mark.parametrize(
    "text", ["", "0", "49", "1000001", "-1", "9600.0", "9k", "\N{ARABIC-INDIC DIGIT SIX}00"]
)
def test_a_rate_is_a_number_of_bits_per_second(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a number of bits per second from 50 to 1000000"):
        script.run(parse(["newvm", "console", "--send=/dev/null/x", f"--rate={text}"]))


def test_a_prompt_that_takes_for_ever_to_look_for_ends_in_time() -> None:
    ours, guests = socket.socketpair()
    history = base64.b64encode(b"a" * 100).decode()
    talk = script._Talk(parse(["newvm", "console"]), ours.detach(), history, None, 0.1)
    prompt = compiled("(.|..)*Q", "(.|..)*Q")
    with guests, pytest.raises(TimedOut, match=r"^the guest has not printed '\(\.\|\.\.\)\*Q' within 0\.1 s$"):
        talk.expect(prompt)
    talk.close()
