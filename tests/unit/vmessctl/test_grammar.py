"""What a command line means, what is refused, and the table of verbs that says so."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from vmessctl import app, commands
from vmessctl.cli import helptext
from vmessctl.cli.grammar import parse
from vmessctl.cli.verbs import BY_VERB, COMMANDS
from vmessd.api.interface import VmessInterface
from vmessd.core import names, settings
from vmessd.core.errors import InvalidValue

OF_LIST = "usage: vmess list [-o COLUMNS] [--no-header] [--json]"

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
    ("newvm rename router", "rename", ("newvm0",), ("router",), {}),
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
    ("daemon", "daemon", (), (), {}),
    ("daemon log -f", "daemon", (), ("log",), {"-f": ""}),
    ("--no-daemon newvm start", "start", ("newvm0",), (), {"--no-daemon": ""}),
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
    ("newvm list", "list takes no VM", OF_LIST),
    ("newvm help", "help takes no VM", "usage: vmess help [verb]..."),
    (
        "list newvm",
        "list takes no argument, not 'newvm'",
        OF_LIST,
    ),
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
    ("list --yes", "--yes is not an option of list", OF_LIST),
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
    assert {command.method for command in COMMANDS if command.method} == methods - {
        "NetIgnored",
        "Look",
        "Overview",
    }


def test_no_verb_can_be_taken_for_a_vm() -> None:
    could_be = {verb.partition(" ")[0] for verb in BY_VERB if "-" not in verb}
    assert could_be == names.RESERVED, "and no word is kept for a verb that there is not"
    alone = {command.verb for command in COMMANDS if command.is_global}
    nets = {verb for verb in BY_VERB if verb.startswith("net ")}
    assert alone == {"list", "help", "top", "boot", "shutdown", "watch", "completion", "daemon"} | nets


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
