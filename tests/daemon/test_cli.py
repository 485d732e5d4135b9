"""The command line as a person meets it: words, output, exit status, on a terminal and off it."""

import contextlib
import errno
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import CLIENT, TESTS, Daemon, own
from terminals import on_terminal

from vmessctl import app, client, commands, light_json
from vmessctl.cli import helptext
from vmessctl.cli.grammar import parse
from vmessctl.cli.verbs import BY_VERB, COMMANDS
from vmessctl.commands import network
from vmessctl.output import rendering, terminal
from vmessd import __version__
from vmessd.api.interface import VmessInterface
from vmessd.core import names, settings
from vmessd.core.errors import Failed, InvalidValue, VmessError
from vmessd.core.models.wires import StepKind
from vmessd.core.wires import FORWARD_FORM

qemu = pytest.mark.qemu


A, B = own("a"), own("b")


# What a command line means

UNDERSTOOD: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], dict[str, str]], ...] = (
    ("", "list", (), (), {}),
    ("list", "list", (), (), {}),
    ("--json", "list", (), (), {"--json": ""}),
    ("list --json --socket /s", "list", (), (), {"--json": "", "--socket": "/s"}),
    ("--socket=/s list", "list", (), (), {"--socket": "/s"}),
    ("help", "help", (), (), {}),
    ("help stop", "help", (), ("stop",), {}),
    ("--help", "help", (), (), {"--help": ""}),
    ("-h", "help", (), (), {"--help": ""}),
    ("newvm start --help", "help", (), ("start",), {"--help": ""}),
    ("newvm", "status", ("newvm0",), (), {}),
    ("newvm3 --json", "status", ("newvm3",), (), {"--json": ""}),
    ("newvm status", "status", ("newvm0",), (), {}),
    ("newvm make", "make", ("newvm0",), (), {}),
    ("newvm smp 4", "smp", ("newvm0",), ("4",), {}),
    ("newvm ram 2G", "ram", ("newvm0",), ("2G",), {}),
    ("newvm ram -5", "ram", ("newvm0",), ("-5",), {}),
    ("newvm ram none", "ram", ("newvm0",), ("none",), {}),
    ("newvm accel tcg", "accel", ("newvm0",), ("tcg",), {}),
    ("newvm cpu best", "cpu", ("newvm0",), ("best",), {}),
    ("newvm hda 8G", "hda", ("newvm0",), ("8G",), {}),
    ("newvm hdd 8G", "hdd", ("newvm0",), ("8G",), {}),
    ("newvm cdrom -", "cdrom", ("newvm0",), ("-",), {}),
    ("newvm cdrom -- -x.iso", "cdrom", ("newvm0",), ("-x.iso",), {}),
    ("newvm cdrom start", "cdrom", ("newvm0",), ("start",), {}),
    ("a b1 a0 c start", "start", ("a0", "b1", "c0"), (), {}),
    ("newvm stop", "stop", ("newvm0",), (), {}),
    ("newvm stop force --no-wait", "stop", ("newvm0",), ("force",), {"--no-wait": ""}),
    ("newvm --timeout 5 stop", "stop", ("newvm0",), (), {"--timeout": "5"}),
    ("newvm stop --timeout=-1", "stop", ("newvm0",), (), {"--timeout": "-1"}),
    ("newvm info --json", "info", ("newvm0",), (), {"--json": ""}),
    ("start0 rm --yes", "rm", ("start0",), (), {"--yes": ""}),
    ("--version", "list", (), (), {"--version": ""}),
    ("top", "top", (), (), {}),
    ("top -b -n3 -d0.5", "top", (), (), {"-b": "", "-n": "3", "-d": "0.5"}),
    ("top -b -n 3 -d 0.5 --sort rss", "top", (), (), {"-b": "", "-n": "3", "-d": "0.5", "--sort": "rss"}),
    ("--json top -n=1", "top", (), (), {"--json": "", "-n": "1"}),
    ("newvm suspend", "suspend", ("newvm0",), (), {}),
    ("a b resume", "resume", ("a0", "b0"), (), {}),
    ("newvm reset", "reset", ("newvm0",), (), {}),
    ("newvm sendkey ctrl-alt-f2 ret", "sendkey", ("newvm0",), ("ctrl-alt-f2", "ret"), {}),
    ("newvm ctrl-alt-delete", "ctrl-alt-delete", ("newvm0",), (), {}),
    ("newvm type root", "type", ("newvm0",), ("root",), {}),
    ("newvm screenshot", "screenshot", ("newvm0",), (), {}),
    ("newvm screenshot -", "screenshot", ("newvm0",), ("-",), {}),
    ("newvm lock for the demo", "lock", ("newvm0",), ("for", "the", "demo"), {}),
    ("newvm unlock --yes", "unlock", ("newvm0",), (), {"--yes": ""}),
    ("watch", "watch", (), (), {}),
    ("--all watch", "watch", (), (), {"--all": ""}),
    ("'lab*' watch", "watch", ("'lab*'",), (), {}),
    ("a b watch --json", "watch", ("a0", "b0"), (), {"--json": ""}),
    ("newvm wait running", "wait", ("newvm0",), ("running",), {}),
    (
        "a b wait serial:login: --since-start --timeout 5",
        "wait",
        ("a0", "b0"),
        ("serial:login:",),
        {"--since-start": "", "--timeout": "5"},
    ),
    ("newvm why --json", "why", ("newvm0",), (), {"--json": ""}),
    ("boot", "boot", (), (), {}),
    ("--socket /s shutdown", "shutdown", (), (), {"--socket": "/s"}),
    ("newvm autostart on", "autostart", ("newvm0",), ("on",), {}),
    ("a b autostart on 10 5", "autostart", ("a0", "b0"), ("on", "10", "5"), {}),
    ("newvm restart on-crash", "restart", ("newvm0",), ("on-crash",), {}),
    ("newvm ifadd 2 bridge1", "ifadd", ("newvm0",), ("2", "bridge1"), {}),
    (
        "newvm ifadd 3 - user:2222:22,80:80 br2",
        "ifadd",
        ("newvm0",),
        ("3", "-", "user:2222:22,80:80", "br2"),
        {},
    ),
    ("leaf spine ifadd 1", "ifadd", ("leaf0", "spine0"), ("1",), {}),
    ("newvm ifadd -1", "ifadd", ("newvm0",), ("-1",), {}),
    ("newvm ifadd 1 -- -x", "ifadd", ("newvm0",), ("1", "-x"), {}),
    ("newvm ifdel", "ifdel", ("newvm0",), (), {}),
    ("a b ifdel", "ifdel", ("a0", "b0"), (), {}),
    ("newvm connect 0 bridge1", "connect", ("newvm0",), ("0", "bridge1"), {}),
    ("newvm connect 1 -", "connect", ("newvm0",), ("1", "-"), {}),
    ("newvm connect -1 net", "connect", ("newvm0",), ("-1", "net"), {}),
    ("newvm ifstat", "ifstat", ("newvm0",), (), {}),
    ("a b ifstat --json", "ifstat", ("a0", "b0"), (), {"--json": ""}),
    ("newvm cable 0 off", "cable", ("newvm0",), ("0", "off"), {}),
    ("newvm mac 0 none", "mac", ("newvm0",), ("0", "none"), {}),
    ("newvm forward 0 2222:22", "forward", ("newvm0",), ("0", "2222:22"), {}),
    ("newvm forward 0 2222:none", "forward", ("newvm0",), ("0", "2222:none"), {}),
    ("newvm addr --json", "addr", ("newvm0",), (), {"--json": ""}),
    ("newvm vnc", "vnc", ("newvm0",), (), {}),
    (
        "newvm vnc 5901 --bind 0.0.0.0 --timeout 5",
        "vnc",
        ("newvm0",),
        ("5901",),
        {"--bind": "0.0.0.0", "--timeout": "5"},  # noqa: S104 -- nobody listens
    ),
    ("newvm console --steal", "console", ("newvm0",), (), {"--steal": ""}),
    ("newvm console --log -f", "console", ("newvm0",), (), {"--log": "", "-f": ""}),
    ("newvm log -f --json", "log", ("newvm0",), (), {"-f": "", "--json": ""}),
    ("net", "net show", (), (), {}),
    ("net --json", "net show", (), (), {"--json": ""}),
    ("--json net show", "net show", (), (), {"--json": ""}),
    ("net vlan bridge1", "net vlan", (), ("bridge1",), {}),
    (
        "net vlan bridge1 eth1.100 newvm0e0 start",
        "net vlan",
        (),
        ("bridge1", "eth1.100", "newvm0e0", "start"),
        {},
    ),
    ("net add vethA0 --socket /s", "net add", (), ("vethA0",), {"--socket": "/s"}),
    ("net delete vxlan7", "net delete", (), ("vxlan7",), {}),
    ("net ignore", "net ignore", (), (), {}),
    ("net ignore --json", "net ignore", (), (), {"--json": ""}),
    ("net ignore net", "net ignore", (), ("net",), {}),
    ("net prune", "net prune", (), (), {}),
    ("completion bash", "completion", (), ("bash",), {}),
    ("completion words -- 1 newvm --all", "completion", (), ("words", "1", "newvm", "--all"), {}),
    ("help net", "help", (), ("net",), {}),
    ("help net vlan", "help", (), ("net", "vlan"), {}),
    ("net --help", "help", (), ("net",), {"--help": ""}),
    ("net vlan -h", "help", (), ("net", "vlan"), {"--help": ""}),
    ("net vlan bridge1 eth0 --help", "help", (), ("net", "vlan"), {"--help": ""}),
    ("newvm ifadd 1 start --help", "help", (), ("ifadd",), {"--help": ""}),
)


@pytest.mark.parametrize("case", UNDERSTOOD, ids=[case[0] or "nothing" for case in UNDERSTOOD])
def test_a_command_line_is_understood(case: tuple[Any, ...]) -> None:
    line, verb, vms, arguments, options = case
    understood = {"command": BY_VERB[verb], "vms": vms, "arguments": arguments, "options": options}
    assert vars(parse(line.split())) == understood | {"then": None}


def test_every_verb_is_among_those_understood() -> None:
    assert {verb for _, verb, *_ in UNDERSTOOD} >= set(BY_VERB) - {"hdb", "hdc"}


REFUSED = (
    ("newvm strat", "'strat' is not a verb; did you mean start?", "vmess help"),
    ("newvm reboot", "'reboot' is not a verb; did you mean reset?", "vmess help"),
    ("newvm destroy", "'destroy' is not a verb; did you mean stop force?", "vmess help"),
    ("newvm pause", "'pause' is not a verb; did you mean suspend?", "vmess help"),
    ("a b shutdown", "shutdown takes no VM", "vmess a b stop"),
    ("newvm boot", "boot takes no VM", "vmess newvm start"),
    ("newvm stat", "'stat' is not a verb; did you mean status?", "vmess help"),
    ("newvm infoo x", "'infoo' is not a verb; did you mean info?", "vmess help"),
    ("newvm qqqqq", "'qqqqq' is not a verb", "vmess help"),
    ("start", "start needs a VM before it", "usage: vmess <vmname> start [--at-once N]"),
    ("start newvm", "start needs a VM before it", "vmess newvm start"),
    ("stop leaf spine --timeout 5", "stop needs a VM before it", "vmess leaf spine stop --timeout=5"),
    ("stop force newvm", "stop needs a VM before it", "vmess newvm stop force"),
    ("ram newvm 2G", "ram needs a VM before it", "vmess newvm ram 2G"),
    ("start lab*", "start needs a VM before it", "vmess 'lab*' start"),
    ("autostart on newvm", "autostart needs a VM before it", "vmess newvm autostart on"),
    # Which of two words would be the VM, nobody can tell.
    ("lock newvm mine", "lock needs a VM before it", "usage: vmess <vmname> lock [remark]..."),
    ("cdrom x", "cdrom needs a VM before it", "usage: vmess <vmname> cdrom <path-to-iso|none>"),
    ("stop start newvm", "stop needs a VM before it", f"usage: {BY_VERB['stop'].usage()}"),
    ("newvm list", "list takes no VM", "usage: vmess list [--json]"),
    ("newvm help", "help takes no VM", "usage: vmess help [verb]..."),
    ("list newvm", "list takes no argument, not 'newvm'", "usage: vmess list [--json]"),
    ("newvm make it", "make takes no argument, not 'it'", "usage: vmess <vmname> make"),
    (
        "newvm ram",
        "ram needs <size|none>",
        "usage: vmess <vmname> ram <size|none>; to see its value: vmess newvm0 info",
    ),
    (
        "--all autostart",
        "autostart needs <on|off|none> [order] [delay]",
        "usage: vmess <vmname> autostart <on|off|none> [order] [delay]; to see its value: vmess --all info",
    ),
    ("newvm ram 2 G", "ram takes <size|none>, not '2 G'", "usage: vmess <vmname> ram <size|none>"),
    (
        "newvm stop force now",
        "stop takes [force], not 'force now'",
        "usage: vmess <vmname> stop [force] [--timeout SECONDS] [--no-wait]",
    ),
    ("newvm start --yes", "--yes is not an option of start", "usage: vmess <vmname> start [--at-once N]"),
    ("help --json", "--json is not an option of help", "usage: vmess help [verb]..."),
    ("list --yes", "--yes is not an option of list", "usage: vmess list [--json]"),
    ("newvm start --foo", "'--foo' is not an option", "vmess help"),
    ("newvm start -x", "'-x' is not an option", "vmess help"),
    ("newvm stop --timeout", "--timeout needs a value: --timeout SECONDS", None),
    ("newvm rm --yes=1", "--yes takes no value, but was given '1'", None),
    ("A1 start", "VM name 'A1' is not letters a-z followed by one digit, such as newvm0", None),
    ("../x", "VM name '../x' is not letters a-z followed by one digit, such as newvm0", None),
    (
        "abcdefghijklm",
        "VM name 'abcdefghijklm' has 13 letters; at most 12 are allowed, so that TAP names fit into 15 bytes",
        None,
    ),
    ("ifadd 2", "ifadd needs a VM before it", "usage: vmess <vmname> ifadd <N> [bridge|-|user]..."),
    ("newvm ifadd", "ifadd needs <N> [bridge|-|user]...", "usage: vmess <vmname> ifadd <N> [bridge|-|user]..."),
    ("newvm ifadd 1 -x", "'-x' is not an option", "vmess help"),
    ("newvm ifdel 1", "ifdel takes no argument, not '1'", "usage: vmess <vmname> ifdel"),
    (
        "newvm connect",
        "connect needs <ifnum> <bridge|-|user>",
        "usage: vmess <vmname> connect <ifnum> <bridge|-|user>",
    ),
    (
        "newvm connect bridge1",
        "connect takes <ifnum> <bridge|-|user>, not 'bridge1'",
        "usage: vmess <vmname> connect <ifnum> <bridge|-|user>",
    ),
    (
        "newvm connect 0 a b",
        "connect takes <ifnum> <bridge|-|user>, not '0 a b'",
        "usage: vmess <vmname> connect <ifnum> <bridge|-|user>",
    ),
    ("newvm cable 0", "cable takes <ifnum> <on|off>, not '0'", "usage: vmess <vmname> cable <ifnum> <on|off>"),
    ("a b mac 0 none", "mac takes one VM, not 2", "usage: vmess <vmname> mac <ifnum> <address|none>"),
    (
        "a b forward 0 2222:22",
        "forward takes one VM, not 2",
        "usage: vmess <vmname> forward <ifnum> <hostport>:<guestport|none>",
    ),
    (
        "newvm connect 0 br0 --yes",
        "--yes is not an option of connect",
        "usage: vmess <vmname> connect <ifnum> <bridge|-|user>",
    ),
    ("net vlan", "net vlan needs <bridge> [intf]...", "usage: vmess net vlan <bridge> [intf]..."),
    ("net show bridge1", "net show takes no argument, not 'bridge1'", "usage: vmess net show [--json]"),
    ("net add a b", "net add takes <intf>, not 'a b'", "usage: vmess net add <intf>"),
    ("net delete", "net delete needs <intf>", "usage: vmess net delete <intf>"),
    ("net ignore a b", "net ignore takes [link], not 'a b'", "usage: vmess net ignore [link] [--json]"),
    ("net prune --yes", "--yes is not an option of net prune", "usage: vmess net prune"),
    ("watch newvm", "watch takes no argument, not 'newvm'", "usage: vmess [vmname]... watch [--json]"),
    ("wait running", "wait needs a VM before it", f"usage: {BY_VERB['wait'].usage()}"),
    (
        "newvm wait",
        "wait needs <running|stopped|paused|addr|serial:REGEX>",
        f"usage: {BY_VERB['wait'].usage()}",
    ),
    ("newvm why not", "why takes no argument, not 'not'", "usage: vmess <vmname> why [--json]"),
    ("net prnue", "net takes show, vlan, add, delete, ignore, prune, not 'prnue'", "vmess help net"),
    ("newvm net show", "net takes no VM", "vmess help net"),
)


@pytest.mark.parametrize(("line", "message", "hint"), REFUSED, ids=[line for line, *_ in REFUSED])
def test_a_command_line_is_refused_with_a_word_on_why(line: str, message: str, hint: str | None) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(line.split())
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["new\nvm", "start"], r"VM name 'new\nvm' is not letters a-z"),
        (["newvm", "\x1b[31m"], r"'\x1b[31m' is not a verb"),
        (["newvm", "start", "--\udcff"], r"'--\udcff' is not an option"),
        (["", "start"], "VM name '' is not letters a-z"),
        (["newvm", ""], "'' is not a verb"),
    ],
)
def test_a_refusal_shows_what_a_terminal_would_obey(words: list[str], message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(words)
    assert caught.value.message.startswith(message)
    assert caught.value.message.isprintable()


def test_help_for_what_is_no_verb_says_what_may_be_meant() -> None:
    with pytest.raises(InvalidValue, match=r"^'strat' is not a verb; did you mean start\?$"):
        app.run(["help", "strat"])
    with pytest.raises(InvalidValue, match=r"^'net vlna' is not a verb; did you mean net vlan\?$"):
        app.run(["help", "net", "vlna"])
    for words in (["help", "ne"], ["help", "net", "v"], ["help", "net vlan", "x"], ["help", "start", "stop"]):
        with pytest.raises(InvalidValue, match=" is not a verb"):
            app.run(words)


def test_help_for_net_is_that_of_all_that_begins_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["help", "net"]) == 0
    told = capsys.readouterr().out
    nets = [command for command in COMMANDS if command.verb.startswith("net ")]
    assert len(nets) == 6
    assert told == "\n\n".join(helptext.help_text(command.verb) for command in nets) + "\n"
    assert [line.split()[2] for line in told.splitlines() if line.startswith("vmess net ")] == [
        *("show", "vlan", "add", "delete", "ignore", "prune"),
    ]
    assert app.run(["net", "--help"]) == 0
    assert capsys.readouterr().out == told
    assert app.run(["help", "net", "vlan"]) == 0
    assert capsys.readouterr().out == helptext.help_text("net vlan") + "\n"


@pytest.mark.parametrize("text", ["x", "", "-1", "nan", "inf", "1e10", "5 s"])
def test_a_time_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a number of seconds above 0"):
        app.run(["--socket", "/nonexistent", "newvm", "stop", f"--timeout={text}"])


def test_stop_takes_force_or_nothing() -> None:
    with pytest.raises(InvalidValue, match=r"^stop takes force or nothing, not 'now'$"):
        app.run(["--socket", "/nonexistent", "newvm", "stop", "now"])


# One table


def handlers(module: str) -> set[str]:
    """The functions of a module of commands that take a command line and return an exit status."""
    found = vars(importlib.import_module(f"vmessctl.commands.{module}"))
    takes = {"invocation": "Invocation", "return": "int"}
    return {name for name, each in found.items() if getattr(each, "__annotations__", None) == takes}


def test_every_verb_has_a_handler_and_every_handler_a_verb() -> None:
    assert len(BY_VERB) == len(COMMANDS)
    named = {command.handler for command in COMMANDS}
    modules = {path.stem for path in Path(commands.__path__[0]).glob("*.py")} - {"__init__"}
    there = {f"{module}.{name}" for module in modules for name in handlers(module)}
    assert named == {name for name in there if "._" not in name}


def test_every_method_of_the_table_is_in_the_interface() -> None:
    for command in COMMANDS:
        if command.method:
            assert callable(getattr(VmessInterface, command.method)), command.verb
    methods = {name for name in dir(VmessInterface) if name[0].isupper()}
    assert {command.method for command in COMMANDS if command.method} == methods - {"NetIgnored", "Look"}


def test_no_verb_can_be_taken_for_a_vm() -> None:
    could_be = {verb.partition(" ")[0] for verb in BY_VERB if "-" not in verb}
    assert could_be == names.RESERVED, "and no word is kept for a verb that there is not"
    alone = {command.verb for command in COMMANDS if command.is_global}
    nets = {verb for verb in BY_VERB if verb.startswith("net ")}
    assert alone == {"list", "help", "top", "boot", "shutdown", "watch", "completion"} | nets


def test_every_setting_and_drive_has_its_verb() -> None:
    wanted = {row.verb for row in settings.SETTINGS if row.verb} | {drive.verb for drive in settings.DRIVES}
    assert {command.verb for command in COMMANDS if command.method == "Set"} == wanted


def test_help_tells_every_verb_with_its_usage() -> None:
    whole = helptext.help_text()
    for command in COMMANDS:
        block = helptext.help_text(command.verb)
        assert block.startswith(f"{command.usage()}\n      {command.help.splitlines()[0]}")
        assert command.usage() in whole.splitlines()
        for option in command.options:
            assert option.help in block
    assert max(len(line) for line in whole.splitlines()) <= 110
    assert "did you mean" not in whole


# What is printed


def told(state: str, **more: object) -> dict[str, Any]:
    vm = {"name": "newvm0", "state": state, "pid": 7, "uptime": 5.0, "runstate": "running"}
    return {"status": {**vm, "last_exit": None, "restart": None, **more}}


EXIT = {
    "reason": "powered_off",
    "text": "guest powered off",
    "age": 200.0,
    "status": 0,
    "asked_by": None,
    "log": [],
    "note": None,
}
REFUSAL = {**EXIT, "reason": "refused", "text": "QEMU did not start: -foo: invalid\x1b option", "age": 1.9}

KILLED = {**EXIT, "reason": "signalled", "text": "killed by signal 9", "age": 1.9}

STATUS_LINES = (
    (told("stopped", pid=None), "VM not running"),
    (told("stopped", pid=None, last_exit=EXIT), "VM not running (guest powered off 3 min ago)"),
    (
        told("stopped", pid=None, last_exit=REFUSAL),
        "VM not running (QEMU did not start: -foo: invalid\\x1b option, 1 s ago)",
    ),
    (
        told("waiting", pid=None, last_exit=KILLED, restart={"attempt": 2, "limit": 6, "due": 1.5}),
        "VM not running (killed by signal 9 1 s ago; restart 2 of 6 in 1 s)",
    ),
    (
        told(
            "waiting",
            last_exit=KILLED | {"note": "no b\x1bridge"},
            restart={"attempt": 3, "limit": 6, "due": 4},
        ),
        "VM not running (killed by signal 9 1 s ago; no b\\x1bridge; restart 3 of 6 in 4 s)",
    ),
    (
        told("stopped", pid=None, last_exit=KILLED | {"note": "given up after 6 restarts"}),
        "VM not running (killed by signal 9 1 s ago; given up after 6 restarts)",
    ),
    (told("starting", pid=None), "VM is starting"),
    (told("starting"), "VM is starting, PID: 7"),
    (told("running"), "VM is running, PID: 7"),
    (told("running", last_exit=EXIT), "VM is running, PID: 7"),
    (told("paused", runstate="paused"), "VM is running, PID: 7 (paused)"),
    (told("paused", runstate="io-error"), "VM is running, PID: 7 (paused: io-error)"),
    (told("unresponsive"), "VM is running, PID: 7 (unresponsive: QEMU does not answer)"),
    (told("stopping"), "VM is running, PID: 7 (stopping)"),
    (told("running", problem="it's a\x1bway"), "VM is running, PID: 7 (it's a\\x1bway)"),
    (told("paused", problem="away"), "VM is running, PID: 7 (paused: running; away)"),
    (told("held", pid=None, uptime=None, problem="VM a0 is held"), "VM counts as running (VM a0 is held)"),
)


@pytest.mark.parametrize(("reply", "line"), STATUS_LINES, ids=[line for _, line in STATUS_LINES])
def test_a_status_is_one_line(reply: dict[str, Any], line: str) -> None:
    assert rendering.status(reply) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (47 * 3600, "47 h"),
        (48 * 3600, "2 days"),
        (1e8, "1157 days"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert rendering.duration(seconds) == text


def test_a_listing_has_those_that_run_first_and_then_all() -> None:
    vms = [
        told("running", name="a0")["status"],
        told("stopped", name="abcdefghijkl0", pid=None, uptime=None, last_exit=EXIT)["status"],
        told("unresponsive", name="c0", pid=4194303, uptime=7200.0)["status"],
        told("held", name="d0", pid=None, uptime=None, problem="VM d0 is held")["status"],
    ]
    assert rendering.listing({"vms": vms}).splitlines() == [
        "List of KVMs (with PIDs as in ps-ef):",
        "a0                    7  up 5 s",
        "c0              4194303  up 2 h (unresponsive: QEMU does not answer)",
        "d0                    -  held (VM d0 is held)",
        "All VMs:",
        "a0             VM is running, PID: 7",
        "abcdefghijkl0  VM not running (guest powered off 3 min ago)",
        "c0             VM is running, PID: 4194303 (unresponsive: QEMU does not answer)",
        "d0             VM counts as running (VM d0 is held)",
    ]
    assert rendering.listing({"vms": []}).splitlines()[0] == "List of KVMs (with PIDs as in ps-ef):"


def nic(index: int, **more: object) -> dict[str, Any]:
    """An interface as the daemon tells of it."""
    return {
        "index": index,
        "tap": f"newvm0e{index}",
        "mac": f"02:11:9b:af:00:{index:02x}",
        "wire": "bridge1",
        "present": True,
        "leaving": False,
        "cable": True,
        "difference": None,
        "duplicate": None,
        "mac_later": None,
        **more,
    }


USER = {"tap": None, "present": False}
NIC_LINES = (
    (nic(0), "newvm0e0: bridge1, MAC 02:11:9b:af:00:00"),
    (nic(1, wire="-"), "newvm0e1: in no bridge, MAC 02:11:9b:af:00:01"),
    (nic(0, present=False), "newvm0e0: bridge1, MAC 02:11:9b:af:00:00, not there yet"),
    (nic(0, cable=None), "newvm0e0: bridge1, MAC 02:11:9b:af:00:00, cable unknown"),
    (
        nic(0, mac_later="02:00:00:00:00:01", cable=False),
        "newvm0e0: bridge1, MAC 02:11:9b:af:00:00 (02:00:00:00:00:01 from the next start on), cable pulled",
    ),
    (nic(0, wire="\x1b[31m"), "newvm0e0: \\x1b[31m, MAC 02:11:9b:af:00:00"),
    (
        nic(0, cable=False, leaving=True, present=False),
        (
            "newvm0e0: bridge1, MAC 02:11:9b:af:00:00, not there yet, "
            "being unplugged: the guest has not released it yet, cable pulled"
        ),
    ),
    (nic(2, wire="user", **USER), "interface 2: user network, MAC 02:11:9b:af:00:02"),
    (
        nic(0, wire="user:2222:22,8080:80", **USER),
        "interface 0: user network, 127.0.0.1:2222 to port 22, 127.0.0.1:8080 to port 80, MAC " + nic(0)["mac"],
    ),
    (
        nic(0, wire="user:udp:5353:53,0.0.0.0:8080:80,udp:192.0.2.7:1:2", **USER),
        "interface 0: user network, UDP 127.0.0.1:5353 to port 53, 0.0.0.0:8080 to port 80, "
        "UDP 192.0.2.7:1 to port 2, MAC " + nic(0)["mac"],
    ),
)


@pytest.mark.parametrize(("reply", "line"), NIC_LINES, ids=[line for _, line in NIC_LINES])
def test_an_interface_is_one_line(reply: dict[str, Any], line: str) -> None:
    assert rendering.nic(reply) == line


def test_info_tells_everything_in_lines() -> None:
    drive = {
        "slot": "hda",
        "path": "/v/a0/a0-hda.img",
        "target": None,
        "size": 2**33,
        "read": 512,
        "written": 0,
    }
    disc = {
        "slot": "cdrom",
        "path": "/v/l",
        "target": "/iso\n.iso",
        "size": 4097,
        "read": None,
        "written": None,
    }
    vm = {
        **told("running"),
        "directory": "/v/a0",
        "nics": [
            nic(0),
            nic(1, wire="-", cable=False, difference="e1: in x, NICS: y\x1b"),
            nic(2, leaving=True, duplicate="heard elsewhere"),
        ],
        "command": ["qemu", "-name", "a b", "-x", "\x1b'"],
        "problem": None,
        "display": 2811,
        "accel": "tcg",
        "serial": "/v/a0/serial.sock",
        "changed": False,
        "settings": [{"name": "RAM", "value": "2G"}],
        "drives": [drive, disc],
    }
    assert rendering.info({"info": vm}).splitlines() == [
        "Total number of interfaces: 2",
        "Command for this VM",
        "  qemu -name 'a b' -x $'\\x1b\\''",
        "VNC display: 2811 (port 8711 on 127.0.0.1); to connect: vmess newvm0 vnc",
        "newvm0e0: bridge1, MAC 02:11:9b:af:00:00",
        "newvm0e1: in no bridge, MAC 02:11:9b:af:00:01, cable pulled",
        "newvm0e2: bridge1, MAC 02:11:9b:af:00:02, being unplugged: the guest has not released it yet",
        "hda: /v/a0/a0-hda.img, 8G, 512 bytes read, 0 bytes written",
        "cdrom: /iso\\n.iso, 4.0K",
        "RAM: 2G",
        "Note: e1: in x, NICS: y\\x1b",
        "Note: heard elsewhere",
        "Serial console: /v/a0/serial.sock",
        "VM is running, PID: 7",
    ]
    off = {
        **vm,
        **told("stopped", pid=None),
        "command": [],
        "problem": "bad\x1b",
        "display": None,
        "drives": [],
        "nics": [],
    }
    assert rendering.info({"info": off}).splitlines()[:4] == [
        "Total number of interfaces: 0",
        "Command for this VM",
        "  none: bad\\x1b",
        "RAM: 2G",
    ]


# The verbs of wires, with what the daemon would answer


def step(name: str, link: str = "bridge1", uid: int | None = None) -> dict[str, Any]:
    return {"step": name, "link": link, "uid": uid}


PLUGGED = [
    step("making"),
    step("preparing", "newvm0e0"),
    step("persistent", "newvm0e0", 1000),
    step("exists"),
    step("pending", "newvm0e1"),
    step("unheard of"),
]
MANY_STEPS = [
    *(
        step("subinterface", "eth1.100"),
        step("pair", "vethA0"),
        step("vxlan", "vxlan7"),
        step("existing", "eth1"),
    ),
    *(
        step("waiting", "vethA0"),
        step("down"),
        step("dropped", "user:1:2"),
        step("deleted", "br\x1b9"),
        step("nonpersistent", "newvm0e0"),
    ),
]
ADDRESSES = [
    {"interface": 0, "mac": "02:11:9b:af:00:00", "address": "192.0.2.5", "seen": True, "source": "seen\x1b"},
    {
        "interface": 1,
        "mac": "02:11:9b:af:00:01",
        "address": "fe80::11:9bff:feaf:1",
        "seen": False,
        "source": "MAC",
    },
]
SEGMENTS = [
    {"bridge": "bridge1", "own": True, "ports": ["newvm0e0", "eth1.100"]},
    {"bridge": "br$(id)", "own": False, "ports": []},
    {
        "bridge": "lab",
        "own": True,
        "ports": ["a0e0"],
        "root": None,
        "foreign": [{"link": "a0e0", "root": "/b\n"}],
    },
    {"bridge": "theirs", "own": False, "ports": [], "root": "/srv/b", "foreign": []},
    {"bridge": None, "own": True, "ports": ["vethA0", "vxlan7"]},
]
NET_LINES = ["vmess net vlan bridge1 newvm0e0 eth1.100", "vmess net vlan 'br$(id)'"]
NET_LINES += ["vmess net vlan lab a0e0  # from another VM root: a0e0: /b\\n"]
NET_LINES += ["vmess net vlan theirs  # from another VM root: /srv/b"]
NET_LINES += ["vmess net add vethA0", "vmess net add vxlan7"]

Calls = list[tuple[str, dict[str, Any]]]
# The line, the calls it makes, the answer to each, and then: exit status, standard output, standard error.
TOLD: tuple[tuple[str, Calls, dict[str, Any], int, list[str], list[str]], ...] = (
    (
        "newvm ifadd 2 bridge1 user:2222:22",
        [("SetNics", {"vm": "newvm0", "count": 2, "wires": ["bridge1", "user:2222:22"]})],
        {"steps": PLUGGED},
        6,
        [
            "Making a VLAN: bridge1",
            "preparing a TAP interface newvm0e0",
            "Set 'newvm0e0' persistent and owned by uid 1000",
            "Making a VLAN: bridge1",
        ],
        [
            "device bridge1 already exists; can't create bridge with the same name",
            "newvm0e1: pending: the guest has not released it; it goes when the guest does so or the VM stops",
        ],
    ),
    (
        "a b ifadd -5",
        [("SetNics", {"vm": vm, "count": -5, "wires": []}) for vm in ("a0", "b0")],
        {"steps": []},
        0,
        [],
        [],
    ),
    (
        "newvm ifdel",
        [("SetNics", {"vm": "newvm0", "count": 0, "wires": []})],
        {"steps": [step("nonpersistent", "newvm0e0")]},
        0,
        ["Set 'newvm0e0' nonpersistent"],
        [],
    ),
    (
        "newvm connect 1 bridge1",
        [("Connect", {"vm": "newvm0", "interface": 1, "wire": "bridge1"})],
        {"steps": PLUGGED[:4]},
        0,
        ["Making a VLAN: bridge1"],
        [],
    ),
    (
        "newvm connect 0 -",
        [("Connect", {"vm": "newvm0", "interface": 0, "wire": "-"})],
        {"steps": [step("down")]},
        0,
        [],
        ["bridge bridge1 is down and passes no frames: ip link set bridge1 up"],
    ),
    (
        "newvm ifstat",
        [("Nics", {"vm": "newvm0"})],
        {
            "nics": [
                nic(0),
                nic(1, leaving=True),
                nic(2, wire="-"),
                nic(3, wire="user:2222:22"),
                nic(4, wire="a;b"),
            ]
        },
        0,
        ["vmess newvm0 ifadd 4 bridge1 - user:2222:22 'a;b'"],
        [],
    ),
    ("newvm ifstat", [("Nics", {"vm": "newvm0"})], {"nics": []}, 0, ["vmess newvm0 ifadd 0"], []),
    (
        "newvm ifstat --json",
        [("Nics", {"vm": "newvm0"})],
        {"nics": []},
        0,
        ['{"vm": "newvm0", "verb": "ifstat", "nics": []}'],
        [],
    ),
    (
        "a b cable 0 off",
        [("Cable", {"vm": vm, "interface": 0, "on": False}) for vm in ("a0", "b0")],
        {},
        0,
        [],
        [],
    ),
    ("newvm cable 28 on", [("Cable", {"vm": "newvm0", "interface": 28, "on": True})], {}, 0, [], []),
    (
        "newvm cable 0 off",
        [("Cable", {"vm": "newvm0", "interface": 0, "on": False})],
        {"note": "tulip\x1b has no link state"},
        0,
        [],
        ["tulip\\x1b has no link state"],
    ),
    (
        "newvm mac newvm0e1 02:00:00:00:00:0A",
        [("Mac", {"vm": "newvm0", "interface": 1, "mac": "02:00:00:00:00:0A"})],
        {"note": None},
        0,
        [],
        [],
    ),
    (
        "newvm mac 1 none",
        [("Mac", {"vm": "newvm0", "interface": 1, "mac": None})],
        {"note": "later"},
        0,
        [],
        ["later"],
    ),
    (
        "newvm forward 0 2222:22",
        [("Forward", {"vm": "newvm0", "interface": 0, "host": 2222, "guest": 22})],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm forward 0 2222:none",
        [("Forward", {"vm": "newvm0", "interface": 0, "host": 2222, "guest": None})],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm forward 0 tcp:2222:22",
        [("Forward", {"vm": "newvm0", "interface": 0, "host": 2222, "guest": 22})],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm forward 0 udp:0.0.0.0:53:none",
        [
            (
                "Forward",
                {
                    "vm": "newvm0",
                    "interface": 0,
                    "protocol": "udp",
                    "address": "0.0.0.0",  # noqa: S104 -- a word
                    "host": 53,
                    "guest": None,
                },
            )
        ],
        {},
        0,
        [],
        [],
    ),
    (
        "newvm addr",
        [("Addresses", {"vm": "newvm0"})],
        {"addresses": ADDRESSES},
        0,
        [
            "newvm0e0  02:11:9b:af:00:00  192.0.2.5                 (seen\\x1b)",
            "newvm0e1  02:11:9b:af:00:01  fe80::11:9bff:feaf:1      (MAC)",
        ],
        [],
    ),
    (
        "newvm addr",
        [("Addresses", {"vm": "newvm0"})],
        {"addresses": []},
        0,
        ["newvm0 has no interface that exists now; the next start creates missing ones"],
        [],
    ),
    (
        "newvm addr --json",
        [("Addresses", {"vm": "newvm0"})],
        {"addresses": []},
        0,
        ['{"vm": "newvm0", "verb": "addr", "addresses": []}'],
        [],
    ),
    ("net", [("NetShow", {})], {"segments": SEGMENTS}, 0, NET_LINES, ["Network connections per-segment:"]),
    ("net show --json", [("NetShow", {})], {"segments": []}, 0, ['{"segments": []}'], []),
    (
        "net vlan bridge1",
        [("NetVlan", {"bridge": "bridge1", "interfaces": []})],
        {"steps": [step("exists")]},
        0,
        ["Making a VLAN: bridge1"],
        ["device bridge1 already exists; can't create bridge with the same name"],
    ),
    (
        "net vlan bridge1 eth1.100 vethA0",
        [("NetVlan", {"bridge": "bridge1", "interfaces": ["eth1.100", "vethA0"]})],
        {"steps": MANY_STEPS},
        0,
        [
            "[eth1.100]: Ethernet sub-interface",
            "[vethA0]: one end of a pair",
            "[vxlan7]: VXLAN main interface",
            "[eth1]: Ethernet interface",
            "Deleted br\\x1b9",
            "Set 'newvm0e0' nonpersistent",
        ],
        [
            "vethA0 is in no bridge, so its VLANs carry no frames: vmess net vlan BRIDGE vethA0",
            "bridge bridge1 is down and passes no frames: ip link set bridge1 up",
            "no longer forwarded: user:1:2",
        ],
    ),
    (
        "net add vxlan7",
        [("NetAdd", {"interface": "vxlan7"})],
        {"steps": [step("vxlan", "vxlan7")]},
        0,
        ["[vxlan7]: VXLAN main interface"],
        [],
    ),
    (
        "net delete vxlan7",
        [("NetDelete", {"interface": "vxlan7"})],
        {"steps": [step("deleted", "vxlan7")]},
        0,
        ["Deleted vxlan7"],
        [],
    ),
    ("net ignore eth0", [("NetIgnore", {"name": "eth0"})], {}, 0, [], []),
    ("net ignore", [("NetIgnored", {})], {"names": ["eth0", "\x1b"]}, 0, ["eth0", "\\x1b"], []),
    ("net ignore --json", [("NetIgnored", {})], {"names": []}, 0, ['{"names": []}'], []),
    (
        "net prune",
        [("NetPrune", {})],
        {"steps": [step("deleted"), step("deleted", "bridge2")]},
        0,
        ["Deleted bridge1", "Deleted bridge2"],
        [],
    ),
)


class Answering:
    """A client whose daemon answers always the same."""

    is_lost = False

    def __init__(self, answer: dict[str, Any] | VmessError) -> None:
        self.answer = answer
        self.calls: Calls = []
        self.closed = 0

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        light_json.dumps(parameters)  # raises where it cannot go over the wire
        self.calls.append((method, parameters))
        if isinstance(self.answer, VmessError):
            raise self.answer
        return self.answer

    def wait_longer(self, seconds: float) -> None:
        assert seconds >= 0

    def close(self) -> None:
        self.closed += 1


def answering(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | VmessError) -> Answering:
    client = Answering(answer)
    for module in (terminal, network):
        monkeypatch.setattr(module, "connect", lambda _invocation: client)
    return client


@pytest.mark.parametrize("case", TOLD, ids=[case[0] for case in TOLD])
def test_what_a_verb_of_wires_asks_and_tells(
    case: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line, calls, answer, status, out, aside = case
    client = answering(monkeypatch, answer)
    assert app.run(line.split()) == status
    assert client.calls == calls
    assert client.closed == 1
    said = capsys.readouterr()
    assert (said.out.splitlines(), said.err.splitlines()) == (out, aside)


def test_each_verb_of_wires_is_among_those_told() -> None:
    ours = {command.verb for command in COMMANDS if command.handler.startswith("network.")}
    assert {parse(case[0].split()).command.verb for case in TOLD} == ours


def test_every_step_of_the_daemon_is_among_those_told() -> None:
    told = {each["step"] for each in (*PLUGGED, *MANY_STEPS)} - {"unheard of"}
    assert told == set(StepKind)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("newvm ifadd x", "number of NICs 'x' is not a whole number"),
        ("newvm ifadd 1.5", "number of NICs '1.5' is not a whole number"),
        ("newvm ifadd -", "number of NICs '-' is not a whole number"),
        ("newvm ifadd bridge1 2", "number of NICs 'bridge1' is not a whole number"),
        ("newvm ifadd 9999999999", "number of NICs '9999999999' is not a whole number"),
        ("newvm ifadd ²", "number of NICs '²' is not a whole number"),
        ("newvm connect e0 bridge1", "interface 'e0' is not a whole number"),
        ("newvm connect bridge1 0", "interface 'bridge1' is not a whole number"),
        ("newvm cable x on", "interface 'x' is not a whole number"),
        ("newvm mac x none", "interface 'x' is not a whole number"),
        ("newvm cable 0 of", "cable 'of' is neither on nor off"),
        ("newvm cable 0 ON", "cable 'ON' is neither on nor off"),
        (
            "newvm forward 0 2222",
            f"forward '2222' is not {FORWARD_FORM}",
        ),
        (
            "newvm forward 0 none",
            f"forward 'none' is not {FORWARD_FORM}",
        ),
        ("newvm forward 0 :22", "port '' is not a whole number"),
        ("newvm forward 0 2222:", "port '' is not a whole number"),
        ("newvm forward 0 none:22", "port 'none' is not a whole number"),
        (
            "newvm forward 0 1:2:3:4",
            f"forward '1:2:3:4' is not {FORWARD_FORM}",
        ),
        (
            "newvm forward 0 udp:[::1]:2:3",
            f"forward 'udp:[::1]:2:3' is not {FORWARD_FORM}; QEMU does not forward IPv6",
        ),
        ("newvm forward 0 udp:0.0.0.0:x:22", "port 'x' is not a whole number"),
        ("newvm forward x 2222:22", "interface 'x' is not a whole number"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_before_any_call(
    line: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = answering(monkeypatch, {})
    with pytest.raises(InvalidValue) as caught:
        app.run(line.split())
    assert caught.value.message == message
    assert client.calls == []


@pytest.mark.parametrize("line", [case[0] for case in TOLD])
def test_what_the_daemon_refuses_is_passed_on(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = answering(monkeypatch, Failed("no\nway", hint="do this"))
    try:
        status = app.run(line.split())
    except VmessError as error:
        status = terminal.complain(error)
    assert status == 1
    said = capsys.readouterr()
    assert said.out == ""
    vms = len(parse(line.split()).vms) or 1
    assert said.err.splitlines() == ["vmess: no\\nway", "  hint: do this"] * vms
    assert len(client.calls) == vms


def test_the_words_of_the_original() -> None:
    assert rendering.starting({"command": ["kvm", "-m", "2G"]}) == "Starting VM: kvm -m 2G"
    assert rendering.stopping({"pid": 5748}) == "Stopping VM PID 5748"
    assert rendering.made({"path": "/home/ayourtch/vms/newvm0"}).splitlines() == [
        "You need to create directory /home/ayourtch/vms/newvm0 if are serious about that VM - use vmess make",
        "Oh, I see you are serious. Okay, I will proceed.",
    ]


def test_a_rung_of_the_ladder_is_told_with_its_time() -> None:
    pressed = {"rung": "power button", "grace": 60.0}
    assert rendering.rung(pressed, 3.4) == "power button pressed, 3 s of 60 s"
    assert rendering.rung({"rung": "SIGTERM", "grace": 60.0}, 61.6) == "SIGTERM, 62 s"


# The program


def vmessctl(*words: str, **run: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "VMESS_SOCKET": "/nonexistent/control.sock", **run.pop("env", {})}
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **run}
    argv = [*CLIENT, *words]
    return subprocess.run(
        argv, env=environment, text=True, check=False, timeout=30, cwd=TESTS.parent, **options
    )


def test_version_and_help_need_no_daemon() -> None:
    assert vmessctl("--version").stdout == f"vmess {__version__}\n"
    for words in (["-h"], ["--help"], ["help"]):
        result = vmessctl(*words)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == helptext.help_text() + "\n"
    assert vmessctl("newvm", "stop", "--help").stdout == helptext.help_text("stop") + "\n"


@pytest.mark.parametrize("program", ["vmess", "vmessctl", "vmessd"])
def test_the_programs_are_installed(program: str) -> None:
    path = Path(sys.executable).parent / program
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split()[1] == __version__


def test_no_daemon_is_one_line_and_what_to_do() -> None:
    for words in ([], ["newvm", "status"], ["newvm", "start"], ["newvm", "stop"], ["newvm", "info"]):
        result = vmessctl(*words)
        assert (result.returncode, result.stdout) == (5, "")
        assert result.stderr.splitlines() == [
            "vmess: no vmessd answers (/nonexistent/control.sock: no such file or directory)",
            "  hint: start one on this socket: vmessd --socket /nonexistent/control.sock",
        ]
    both = vmessctl(env={"VMESS_SOCKET": "", "XDG_RUNTIME_DIR": "/nonexistent\x1b"})
    assert both.returncode == 5
    complaint, hint = both.stderr.splitlines()
    assert "(/nonexistent\\x1b/vmess/control.sock: no such file or directory; /run/vmess/" in complaint
    assert hint == "  hint: start your own with: vmessd; or the host's with: systemctl start vmessd"


def test_a_usage_error_is_one_line_and_a_hint() -> None:
    result = vmessctl("newvm", "strat")
    assert result.returncode == 2
    assert result.stderr == "vmess: 'strat' is not a verb; did you mean start?\n  hint: vmess help\n"


IMPATIENT = """
import sys
from vmessctl import client
client.ANSWER_TIME = 0.5
from vmessctl.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "line", ["list", "newvm status", "newvm info", "newvm make", "newvm start", "newvm stop"]
)
def test_a_daemon_that_hangs_is_waited_for_so_long(daemon: Daemon, line: str) -> None:
    os.kill(daemon.pid, signal.SIGSTOP)
    begun = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *line.split()],
        env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
        cwd=TESTS.parent,
    )
    assert result.returncode == 6
    assert time.monotonic() - begun >= 0.5
    complaint, hint = result.stderr.splitlines()
    assert complaint.startswith("vmess: vmessd did not answer within ")
    assert "systemctl restart vmessd" in hint


@contextlib.contextmanager
def scripted(path: Path, answer: Callable[[dict[str, Any]], bytes]) -> Iterator[None]:
    """Have something answer on a socket, one connection after the other, with what it is told to."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connected, _ = listener.accept()
                with connected, contextlib.suppress(OSError):
                    while data := connected.recv(65536):
                        connected.sendall(answer(json.loads(data[:-1])["parameters"]) + b"\0")

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=serve)
        server.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join(10)


def test_an_answer_that_comes_too_late_is_not_taken_for_that_about_the_next_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIME", 0.3)

    def answer(parameters: dict[str, Any]) -> bytes:
        time.sleep(0.5 if parameters["vm"] == "a0" else 0)
        return json.dumps({"parameters": {"path": f"/{parameters['vm']}"}}).encode()

    with scripted(tmp_path / "socket", answer):
        status = app.run(["--socket", str(tmp_path / "socket"), "a0", "b0", "make", "--json"])
    said = capfd.readouterr()
    assert (status, said.err.splitlines()[0]) == (6, "vmess: vmessd did not answer within 0.3 s")
    assert [json.loads(line) for line in said.out.splitlines()] == [{"vm": "b0", "verb": "make", "path": "/b0"}]


NOT_VMESSD = [b"hello", b"[1]", b'{"parameters": 1}', b"\xff", b"{", b'"error"', b"[" * 10**5]


@pytest.mark.parametrize("said", NOT_VMESSD, ids=range(len(NOT_VMESSD)))
def test_what_is_no_vmessd_is_told_of_in_one_line(tmp_path: Path, said: bytes) -> None:
    with scripted(tmp_path / "socket", lambda _: said):
        done = vmessctl("list", env={"VMESS_SOCKET": str(tmp_path / "socket")})
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 2)  # the second is the hint
    told = "vmess: the program on the control socket is not vmessd: it said '"
    assert done.stderr.startswith(told)


def test_no_socket_to_be_had_is_not_said_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("_socket.socket", refuse)
    with pytest.raises(Failed, match="no socket can be created: too many open files"):
        client.Client(["/nonexistent"])


def test_a_long_text_may_take_longer_than_other_answers(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.make(A)
    daemon.done(A, "start")
    monkeypatch.setattr(client, "ANSWER_TIME", 1.0)
    for words in (["type", "x" * 30], ["sendkey", *["x"] * 30]):
        assert app.run(["--socket", str(daemon.socket), A, *words]) == 0


@pytest.mark.parametrize("line", ["list", "newvm status", "newvm start", "newvm stop"])
def test_a_daemon_that_hangs_up_is_told_of(tmp_path: Path, line: str) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)
        with subprocess.Popen(
            [*CLIENT, *line.split()],
            env={**os.environ, "VMESS_SOCKET": str(path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=TESTS.parent,
        ) as client:
            connected, _ = listener.accept()
            with connected:
                while not connected.recv(4096).endswith(b"\0"):
                    pass
            out, error = client.communicate(timeout=10)
    assert (client.returncode, out) == (5, "")
    assert error.splitlines() == [
        "vmess: vmessd hung up",
        "  hint: repeat what was in progress if necessary",
    ]


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-", ">/dev/full", "<&- >&- 2>&-"])
def test_descriptors_that_are_closed_or_full_make_no_traceback(daemon: Daemon, redirection: str) -> None:
    (daemon.root / "newvm0").mkdir()
    results = {}
    for line, status in {
        "--version": 0,
        "list": 0,
        "newvm status": 3,
        "newvm rm": 2,
        "missing info": 4,
    }.items():
        result = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m vmessctl {line} {redirection}"],
            env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
            cwd=TESTS.parent,
        )
        results[line] = (result.returncode, result.stderr[-200:])
        wanted = 1 if redirection == ">/dev/full" and status in (0, 3) else status
        if result.returncode != wanted or len(result.stderr.splitlines()) > 2:
            continue
        if wanted == 1 and not result.stderr.endswith("no space left on device\n"):
            continue
        del results[line]
    assert results == {}


def test_a_reader_that_has_had_enough_is_no_error(daemon: Daemon) -> None:
    for letters in range(40):
        (daemon.root / f"v{chr(97 + letters // 10)}{letters % 10}").mkdir()
    head = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m vmessctl list | head -1"],
        env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        cwd=TESTS.parent,
    )
    assert (head.stdout, head.stderr) == ("List of KVMs (with PIDs as in ps-ef):\n", "")
    for words in (["list"], ["va", "info"], ["va0", "vb1", "status"]):
        reading, writing = os.pipe()
        os.close(reading)
        try:
            result = vmessctl(
                *words,
                env={"VMESS_SOCKET": str(daemon.socket)},
                stdout=writing,
            )
        finally:
            os.close(writing)
        assert (result.returncode, result.stderr) == (1, "")


# Several VMs


@qemu
def test_several_vms_are_each_reported_and_the_worst_status_wins(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    started = daemon.vmess(A, B, "start")
    assert started.returncode == 0, started.stderr
    assert sorted(line.split()[0] for line in started.stdout.splitlines()) == [f"{A}:", f"{B}:"]
    pids = {vm: daemon.status(vm)["pid"] for vm in (A, B)}
    mixed = daemon.vmess(A, "missing", B, "status")
    assert mixed.returncode == 4
    assert mixed.stdout == "".join(f"{vm}: VM is running, PID: {pids[vm]}\n" for vm in (A, B))
    assert mixed.stderr.splitlines()[0].endswith(
        f"create directory {daemon.root}/missing0 if are serious about that VM - use vmess make"
    )
    daemon.wait_guest(A)
    daemon.wait_guest(B)
    daemon.done(A, "stop")
    again = daemon.vmess(A, B, "missing", "stop")
    assert again.returncode == 4
    assert again.stdout == f"{B}: Stopping VM PID {pids[B]}\n"
    assert f"VM not running: {A} (powered down as asked)" in again.stderr
    assert daemon.vmess(A, B, "status").returncode == 3
    assert daemon.vmess(A, "stop").returncode == 3


@qemu
def test_off_a_terminal_nothing_moves_and_nothing_is_coloured(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="1")
    said = ""
    for line in (
        f"{A} start",
        "list",
        A,
        f"{A} info",
        f"{A} ram 1G",
        f"{A} start",
        f"{A} stop",
        f"{A} strat",
        "help",
    ):
        result = daemon.vmess(*line.split())
        said += result.stdout + result.stderr
        if line.endswith("start"):
            daemon.wait_guest(A)
    assert "had to use force" in said
    assert "\x1b" not in said
    assert "\r" not in said


# On a terminal


def stubborn(daemon: Daemon, grace: int) -> int:
    """Start a VM that ignores the power button, and return its pid."""
    daemon.make(A, "ignoring", STOP=str(grace))
    daemon.done(A, "start")
    daemon.wait_guest(A)
    pid: int = daemon.status(A)["pid"]
    return pid


@qemu
def test_a_stop_moves_on_a_terminal_and_ctrl_c_leaves_it_going(daemon: Daemon) -> None:
    pid = stubborn(daemon, 60)
    with on_terminal(daemon, A, "stop") as screen:
        screen.expect(f"Stopping VM PID {pid}\r\n")
        screen.expect(f"\r\x1b[K{A}: power button pressed, 1 s of 60 s")
        screen.type("\x03")
        screen.expect(f"vmess: the stop of {A} continues; to check: vmess {A} status\r\n")
        assert screen.end() == 130
        assert "Traceback" not in screen.said
    assert daemon.done(A) == f"VM is running, PID: {pid} (stopping)\n"
    refused = daemon.vmess(A, "start")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (1, f"vmess: VM {A} is being stopped")
    daemon.done(A, "stop", "force")
    assert daemon.status(A)["last_exit"]["reason"] == "forced"


@qemu
def test_a_stop_that_was_left_is_carried_through(daemon: Daemon) -> None:
    stubborn(daemon, 1)
    with on_terminal(daemon, A, "stop", NO_COLOR="1") as screen:
        screen.expect("Stopping VM PID")
        screen.type("\x03")
        assert screen.end() == 130
        assert "\x1b[3" not in screen.said  # no colour
    assert daemon.wait_state(A, "stopped", 5)["last_exit"]["reason"] == "forced"


@qemu
def test_a_time_limit_ends_the_waiting_and_not_the_stop(daemon: Daemon) -> None:
    pid = stubborn(daemon, 2)
    begun = time.monotonic()
    result = daemon.vmess(A, "stop", "--timeout", "0.5")
    assert 0.5 <= time.monotonic() - begun < 1.5
    assert (result.returncode, result.stdout) == (6, f"Stopping VM PID {pid}\n")
    assert result.stderr.splitlines() == [
        f"vmess: VM {A} did not stop within 0.5 s (power button); the stop continues",
        f"  hint: vmess {A} status",
    ]
    begun = time.monotonic()
    left = daemon.vmess(A, "stop", "--no-wait")
    assert time.monotonic() - begun < 1
    assert (left.returncode, left.stdout, left.stderr) == (0, f"Stopping VM PID {pid}\n", "")
    assert daemon.status(A)["state"] == "stopping"
    assert daemon.wait_state(A, "stopped", 5)["last_exit"]["reason"] == "forced"
    assert daemon.vmess(A, "stop", "--no-wait").returncode == 3


@qemu
def test_rm_asks_on_a_terminal_and_obeys(daemon: Daemon) -> None:
    directory = daemon.make(A)
    daemon.done(A, "hda", "1M")
    for answer in ("n\n", "\n", "yess\n", "\x04"):
        with on_terminal(daemon, A, "rm") as screen:
            screen.expect(f"Delete {A} and all files in {directory}, including hda? [y/N] ")
            screen.type(answer)
            assert screen.end() == 1
            assert f"{A} is unchanged" in screen.said
        assert (directory / f"{A}-hda.img").exists()
    with on_terminal(daemon, A, "rm") as screen:
        screen.expect("[y/N] ")
        screen.type("\x03")
        assert screen.end() == 130
        assert "Traceback" not in screen.said
    assert directory.exists()
    with on_terminal(daemon, A, "rm") as screen:
        screen.expect("[y/N] ")
        screen.type("y\n")
        assert screen.end() == 0
    assert not directory.exists()


def test_a_terminal_of_unknown_width_still_shows_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    try:
        with os.fdopen(os.dup(slave), "w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            terminal.status_lines.draw(f"{A}: power button pressed, 1 s of 60 s")
            terminal.status_lines.clear()
        assert f"{A}: power button pressed, 1 s of 60 s".encode() in os.read(master, 4096)
    finally:
        os.close(slave)
        os.close(master)


def test_every_error_of_the_tree_can_be_complained_of(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in VmessError.__subclasses__():
        assert terminal.complain(kind("no\nway", "do\x1bso")) == kind.status
    assert set(capsys.readouterr().err.splitlines()) == {"vmess: no\\nway", "  hint: do\\x1bso"}
