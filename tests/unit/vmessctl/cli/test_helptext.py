"""Help: one screen for all verbs, all about each of them, and nothing that is wider than a terminal."""

import re
import shlex
from pathlib import Path

import pytest

import vmessctl
from vmessctl import app
from vmessctl.cli import helptext
from vmessctl.cli.grammar import parse
from vmessctl.cli.verbs import (
    ALIASES,
    BY_VERB,
    COMMANDS,
    EVERYWHERE,
    GROUPS,
    GROWS,
    LIVE,
    ORIGINAL,
    PROGRAM,
    REFUSED,
    SUMMARIES,
    TERSE,
    WAITS,
    Command,
    of_group,
)
from vmessd.core import names, places, quantities, settings
from vmessd.core.contract import METHODS, Needs
from vmessd.core.errors import InvalidValue

WIDTH, LINES = 80, 24
TEXTS = [*(command.verb for command in COMMANDS), *ALIASES, *GROUPS, *helptext.TOPICS, "net", ""]


@pytest.fixture(params=[ORIGINAL, TERSE])
def _called(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROGRAM, "name", request.param)


def said(text: str) -> str:
    """A text without its lay-out."""
    return " ".join(text.split())


def test_every_word_that_a_line_may_begin_with_has_help() -> None:
    assert said(helptext.help_text("version")) == "Options --version Show the version."
    for verb in ("smp", "cpu"):
        assert "cpu" in said(helptext.help_text(verb))
    assert "Aliases cpu <N>" in said(helptext.help_text("smp"))
    assert "cpu 4 is smp 4" in said(helptext.help_text("cpu"))


# One screen


@pytest.mark.usefixtures("_called")
def test_all_verbs_are_on_one_screen_each_once_and_under_its_group() -> None:
    lines = helptext.help_text().splitlines()
    assert len(lines) < LINES, "one line of a terminal is for the prompt"
    found, group = [], ""
    for line in lines[lines.index("") + 1 :]:
        group = line[:10].strip() or group
        listed = re.split(r"  +", line[10:])[0]
        for word in listed.removeprefix("hda ... ").split(", "):
            first, *more = word.split("|")
            stem = f"{first.partition(' ')[0]} "
            found += [(group, verb) for verb in (first, *(stem + each for each in more))]
    assert len(found) == len(set(found))
    found = [(group, "hda" if verb == "hdz" else verb) for group, verb in found]
    assert {verb: group for group, verb in found} == {each.verb: each.group.title for each in COMMANDS}


def test_the_groups_follow_each_other_and_have_no_empty_line() -> None:
    titles = [line.split()[0] for line in helptext.help_text().splitlines()[4:] if not line.startswith(" ")]
    assert titles == [group.title for group in GROUPS.values()]
    assert all(any(command.summary is each for command in COMMANDS) for each in SUMMARIES)
    assert sorted(each.verb for group in GROUPS.values() for each in of_group(group)) == sorted(
        each.verb for each in COMMANDS
    )


@pytest.mark.usefixtures("_called")
def test_the_verb_of_each_disk_has_the_help_of_the_first() -> None:
    assert BY_VERB.keys() - {each.verb for each in COMMANDS} == set(names.DISKS[1:])
    text = helptext.help_text("hdx")
    assert said(text).startswith(f"Usage: {BY_VERB['hdx'].usage()} {said(BY_VERB['hda'].help)}")
    assert "newvm hdx 8G" in text
    assert "newvm0-hdx.img" in text
    assert len(helptext.help_text("disks").splitlines()) < LINES


def test_the_screen_names_each_topic_and_an_example_that_parses() -> None:
    head = helptext.help_text().splitlines()[:3]
    assert [line.split()[0] for line in head] == ["Usage", "Example", "More"]
    assert head[2].split("|")[2:] == list(helptext.TOPICS)
    assert [each.command.verb for each in parse(helptext.EXAMPLE.split()).steps()][-1] == "start"
    for title in ("More", *(group.title for group in GROUPS.values())):
        assert title in helptext.help_text("", lambda text: f"*{text}*").replace("*", "").split()


# All texts


@pytest.mark.usefixtures("_called")
@pytest.mark.parametrize("words", TEXTS, ids=lambda words: words or "all on a screen")
def test_no_line_is_wider_than_a_terminal(words: str) -> None:
    lines = helptext.help_text(words).splitlines()
    assert max(map(len, lines)) < WIDTH
    assert [line for line in lines if line != line.rstrip() or not line.isascii()] == []


@pytest.mark.parametrize("words", TEXTS, ids=lambda words: words or "all on a screen")
def test_a_style_changes_headings_and_nothing_else(words: str) -> None:
    styled = helptext.help_text(words, lambda text: f"\x1b[1m{text}\x1b[m")
    assert "\x1b[1m" in styled
    assert re.sub(r"\x1b\[1?m", "", styled) == helptext.help_text(words)


def test_a_group_and_a_topic_are_never_named_like_a_verb() -> None:
    assert len({*GROUPS, *helptext.TOPICS}) == len(GROUPS) + len(helptext.TOPICS)
    assert names.RESERVED.isdisjoint({*GROUPS, *helptext.TOPICS})
    for name in (*GROUPS, *helptext.TOPICS):  # the first screen has groups in title case
        assert helptext.help_text(name.title()) == helptext.help_text(name.upper()) == helptext.help_text(name)


def test_all_is_all() -> None:
    whole = helptext.help_text("all")
    for words in [text for text in TEXTS if text not in (*GROUPS, "all", "net")]:
        assert helptext.help_text(words) in whole, words


def test_the_topics_have_what_the_screen_has_no_place_for() -> None:
    assert said(helptext.VMS) in said(helptext.help_text("syntax"))
    assert said(helptext.VERBS) in said(helptext.help_text("syntax"))
    assert all(option.flag in helptext.help_text("options") for option in EVERYWHERE)
    for status, meaning in helptext.STATUSES:
        assert re.search(rf"^  {status} +{re.escape(meaning)}$", helptext.help_text("exit"), re.MULTILINE)


def test_every_variable_that_the_client_reads_is_in_the_help() -> None:
    files = [*Path(vmessctl.__path__[0]).rglob("*.py"), Path(places.__file__)]
    code = "".join(map(Path.read_text, files))
    read = set(re.findall(r'(?:variable|environ\.get)\("([A-Z_]+)"\)', code))
    for_the_daemon = {"HOME", "PYTHONPATH"}  # that the client may start
    assert read - for_the_daemon == {name for names_, _ in helptext.ENVIRONMENT for name in names_.split(", ")}


# One verb


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.verb)
def test_the_help_for_a_verb_is_all_that_the_table_says(command: Command) -> None:
    text = helptext.help_text(command.verb)
    assert said(text).startswith(f"Usage: {command.usage()} {said(command.help)}")
    for option in command.own_options():
        assert said(f"{option.flag} {option.metavar or ''} {option.help}") in said(text)
    for label, about in helptext.facts(command):
        assert said(f"{label} {about}") in said(text)
    assert f"vmess {command.example}" in text


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.verb)
def test_the_example_of_a_verb_is_a_line_with_this_verb(command: Command) -> None:
    words = shlex.split(command.example)
    line = parse(words)
    assert line.command is command
    assert line.vms == (() if command.is_global else ("newvm0",))
    assert words[0] == ("newvm" if line.vms else command.verb.split()[0])


def test_the_examples_of_settings_have_good_values() -> None:
    rows = [row for row in settings.SETTINGS if row.verb]
    for row in rows:
        arguments = parse(shlex.split(BY_VERB[row.verb or ""].example)).arguments
        assert arguments
        row.value(" ".join(arguments))
    assert quantities.disk_size(BY_VERB["hda"].example.split()[-1])


def test_help_says_what_a_running_vm_makes_of_a_change() -> None:
    for row in settings.SETTINGS:
        if row.verb:
            assert BY_VERB[row.verb].running == (LIVE if row.live else WAITS)
            assert BY_VERB[row.verb].files == row.file
    needs_off = {name for name, method in METHODS.items() if method.needs is Needs.off and method.about == "vm"}
    refused = {command.verb for command in COMMANDS if command.running == REFUSED}
    assert refused == {c.verb for c in COMMANDS if c.method in needs_off}
    assert {BY_VERB[disk].running for disk in names.DISKS} == {GROWS}
    assert "Running VM  takes effect at its next start" in helptext.help_text("ram")
    assert "Running VM  takes effect at once" in helptext.help_text("connect")


# Ways to ask


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("help", ""),
        ("-h", ""),
        ("--help", ""),
        ("newvm help", ""),
        ("'lab*' help", ""),
        ("newvm -h", ""),
        ("help start", "start"),
        ("newvm help start", "start"),
        ("help start --help", "start"),
        ("start --help", "start"),
        ("start -h", "start"),
        ("newvm start -h", "start"),
        ("newvm ram 2G smp --help", "ram"),
        ("help kill", "stop"),
        ("kill -h", "stop"),
        ("reboot --help", "restart"),
        ("help help", "help"),
        ("help wires", "wires"),
        ("help syntax", "syntax"),
        ("help net", "net"),
        ("net help", "net"),
        ("net --help", "net"),
        ("help net vlan", "net vlan"),
        ("net help vlan", "net vlan"),
        ("net vlan -h", "net vlan"),
    ],
)
def test_help_can_be_asked_for_in_many_ways(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(shlex.split(line)) == 0
    assert capsys.readouterr().out == helptext.help_text(words) + "\n"


def test_help_for_net_is_that_of_all_that_begins_so() -> None:
    nets = [command.verb for command in COMMANDS if command.verb.startswith("net ")]
    assert len(nets) == 7
    said = helptext.help_text("net")
    for verb in nets:
        assert helptext.help_text(verb).partition("\n\nOptions\n")[0] in said
    assert said.count("--json  ") == 1, "options that several verbs have are told once, at the end"
    assert [said.count(f"  {flag}  ") for flag in ("--hub", "--switch")] == [1, 1]


def test_all_is_an_option_of_verbs_that_take_several_vms_alone() -> None:
    assert "--all" not in helptext.help_text("vnc")
    assert "--all" in helptext.help_text("start")


def test_help_for_what_is_no_verb_says_what_may_be_meant() -> None:
    for words, meant in {"strat": "start", "net vlna": "net vlan", "syntx": "syntax", "disk": "disks"}.items():
        with pytest.raises(InvalidValue, match=rf"^no command '{words}'; did you mean {meant}\?$"):
            app.run(["help", *words.split()])
    for words in ("ne", "net v", "net vlan x", "start stop"):
        with pytest.raises(InvalidValue, match=r"^no command ") as caught:
            helptext.help_text(words)
        assert caught.value.hint == "vmess help"
