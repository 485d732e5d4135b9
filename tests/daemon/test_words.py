"""Several verbs in one line, VMs by pattern, and output for programs."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, WiredDaemon, own
from hypothesis import given, settings
from hypothesis import strategies as st

from vmessctl import app
from vmessctl.cli import grammar, patterns
from vmessctl.cli.grammar import VERBS, parse
from vmessctl.cli.verbs import BY_VERB, COMMANDS, JSON, Invocation
from vmessctl.commands import files
from vmessctl.output import terminal
from vmessd.core.errors import InvalidValue, NoSuchVM, VmessError

A, B, C = own("a"), own("b"), own("c")


def steps(line: str) -> list[tuple[str, ...]]:
    """The verbs of a line in turn, each with its arguments."""
    found = []
    step: Invocation | None = parse(shlex.split(line))
    while step is not None:
        found.append((step.command.verb, *step.arguments))
        step = step.then
    return found


# Several verbs

CHAINS: tuple[tuple[str, list[tuple[str, ...]]], ...] = (
    (
        "newvm make ram 2G smp 2 hda 8G cdrom x.iso ifadd 1 br0 start",
        [
            *(("make",), ("ram", "2G"), ("smp", "2"), ("hda", "8G"), ("cdrom", "x.iso")),
            *(("ifadd", "1", "br0"), ("start",)),
        ],
    ),
    ("a b make start", [("make",), ("start",)]),
    # What is needed is taken, whatever it looks like.
    ("newvm cdrom start start", [("cdrom", "start"), ("start",)]),
    ("newvm ram smp", [("ram", "smp")]),
    ("newvm connect 0 stop stop", [("connect", "0", "stop"), ("stop",)]),
    # What may be there as well ends at the next verb, or at `--`.
    ("newvm stop force start", [("stop", "force"), ("start",)]),
    ("newvm stop start", [("stop",), ("start",)]),
    ("newvm stop -- start", [("stop",), ("start",)]),
    ("newvm autostart on start", [("autostart", "on"), ("start",)]),
    ("newvm autostart on 10 5 start", [("autostart", "on", "10", "5"), ("start",)]),
    ("newvm ifadd 2 br0 br1 -- start", [("ifadd", "2", "br0", "br1"), ("start",)]),
    ("newvm ifadd 0 start", [("ifadd", "0"), ("start",)]),
    ("newvm make -- ram 2G -- start --", [("make",), ("ram", "2G"), ("start",)]),
    # Where arguments are missing, `--` has what follows be arguments.
    ("newvm ifadd -- 1 stop", [("ifadd", "1", "stop")]),
    ("newvm ifadd -- 2 stop --json -- start", [("ifadd", "2", "stop", "--json"), ("start",)]),
    ("newvm cdrom -- -x.iso -- start", [("cdrom", "-x.iso"), ("start",)]),
    ("newvm cdrom -- start -- start", [("cdrom", "start"), ("start",)]),
    # A `--` with no verb behind it ends nothing.
    ("newvm ifadd 1 -- br0 start", [("ifadd", "1", "br0", "start")]),
    ("newvm ifadd 1 -- br0 stop -- start", [("ifadd", "1", "br0", "stop"), ("start",)]),
    ("-- newvm cdrom -x.iso", [("cdrom", "-x.iso")]),
    # Words that stand alone have the whole line.
    ("net vlan bridge1 start -- stop", [("net vlan", "bridge1", "start", "stop")]),
    ("newvm ifadd 1 list", [("ifadd", "1", "list")]),
    ("newvm ifadd 1 net start", [("ifadd", "1", "net"), ("start",)]),
    ("newvm start start", [("start",), ("start",)]),
)


@pytest.mark.parametrize(("line", "meant"), CHAINS, ids=[line for line, _ in CHAINS])
def test_verbs_stand_behind_each_other(line: str, meant: list[tuple[str, ...]]) -> None:
    assert steps(line) == meant


OPTIONS = (
    ("newvm stop --timeout 5 start", [{"--timeout": "5"}, {}]),
    ("newvm stop start --json", [{}, {"--json": ""}]),
    ("newvm --json stop start status", [{"--json": ""}, {"--json": ""}, {"--json": ""}]),
    ("newvm --timeout=5 start stop", [{}, {"--timeout": "5"}]),
    ("newvm --timeout 5 stop --timeout 7", [{"--timeout": "7"}]),
    ("newvm stop start -q", [{"--quiet": ""}, {"--quiet": ""}]),
    ("newvm stop --socket /s start", [{"--socket": "/s"}, {"--socket": "/s"}]),
)


@pytest.mark.parametrize(("line", "options"), OPTIONS, ids=[line for line, _ in OPTIONS])
def test_an_option_belongs_to_the_verb_it_stands_behind(line: str, options: list[dict[str, str]]) -> None:
    found = []
    step: Invocation | None = parse(line.split())
    while step is not None:
        found.append(step.options)
        step = step.then
    assert found == options


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            "newvm start --timeout 5 stop",
            "--timeout is not an option of start",
            "usage: vmess <vmname> start [--at-once N]",
        ),
        ("newvm --yes start stop", "--yes is not an option of start, stop", "vmess help"),
        ("newvm make strat", "make takes no argument, not 'strat'; did you mean start?", None),
        ("newvm make ram 2G smpp 2", "ram takes <size|none>, not '2G smpp 2'; did you mean smp?", None),
        ("newvm make list", "make takes no argument, not 'list'", "usage: vmess <vmname> make"),
        (
            "newvm make ram",
            "ram needs <size|none>",
            "usage: vmess <vmname> ram <size|none>; to see its value: vmess newvm0 info",
        ),
        ("newvm make cable 0", "cable takes <ifnum> <on|off>, not '0'", None),
        ("a b make forward 0 2:2", "forward takes one VM, not 2", None),
        ("newvm stop --jsno", "'--jsno' is not an option; did you mean --json?", "vmess help"),
        ("newvm --all stop", "--all stands for all VMs; do not name any as well", None),
        ("list --all", "--all is not an option of list", "usage: vmess list [--json]"),
        ("--all net", "--all is not an option of net show", None),
        ("'lab*' newvm", "'newvm' is not a verb", "vmess help"),
        ("net 'lab*' x", "net takes show, vlan, add, delete, ignore, prune, not 'lab*'", "vmess help net"),
    ],
)
def test_a_line_of_several_verbs_is_refused_as_a_whole(line: str, message: str, hint: str | None) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(shlex.split(line))
    assert caught.value.message == message
    assert hint is None or caught.value.hint == hint


WORDS = st.sampled_from(["start", "stop", "br0", "-1", "-", "2G", "list", "-x", "--json", "user:1:2", "net"])
PIECES = st.sampled_from([*VERBS, *BY_VERB, "--", "force", "1", "--json", "--timeout=5", "-q", "--all", "none"])


@settings(deadline=None)
@given(st.lists(st.one_of(PIECES, WORDS), max_size=9))
def test_whatever_is_understood_can_be_written_down(words: list[str]) -> None:
    try:
        meant = parse(["newvm", *words])
    except InvalidValue:
        return
    if meant.command.verb != "help":
        assert said(parse(grammar.written(meant))) == said(meant)


def said(step: Invocation | None) -> list[Any]:
    return [] if step is None else [vars(step) | {"then": None}, *said(step.then)]


NO_TEXT = {"screenshot"}
"""What these verbs hand over is no answer in words."""


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.method and c.verb not in NO_TEXT], ids=lambda command: command.verb
)
def test_what_says_or_shows_something_can_say_it_as_json(command: Any) -> None:
    assert command.knows(JSON) == (command.reports or "--json" in command.usage())
    assert command.reports or "--json" in command.usage(), "neither --quiet nor --json would mean a thing"


# Carried out


def test_one_line_makes_a_vm_and_starts_it(daemon: Daemon) -> None:
    result = daemon.vmess(
        A, "make", "ram", "32M", "smp", "2", "hda", "1M", "cdrom", "none", "ifadd", "1", "user", "start"
    )
    assert result.returncode == 0, result.stderr
    directory = daemon.root / A
    assert result.stdout.splitlines()[:2] == [
        f"You need to create directory {directory} if are serious about that VM - use vmess make",
        "Oh, I see you are serious. Okay, I will proceed.",
    ]
    assert result.stdout.splitlines()[2].startswith("Starting VM: ")
    assert len(result.stdout.splitlines()) == 3
    assert [(directory / name).read_text().strip() for name in ("RAM", "SMP", "NICS")] == ["32M", "2", "user"]
    assert (directory / f"{A}-hda.img").stat().st_size == 2**20
    assert daemon.status(A)["state"] == "running"
    assert daemon.vmess(A, "stop", "force", "rm", "--yes").returncode == 0
    assert not directory.exists()


def test_one_line_wires_a_vm_to_a_bridge(wired: WiredDaemon) -> None:
    wired.done(A, "make", "ifadd", "2", "br0", "start", "ifstat")
    assert wired.wiring() == {"br0": None, f"{A}e0": "br0", f"{A}e1": None}
    assert wired.status(A)["state"] == "running"
    # Bridges that are spelled like verbs.
    wired.done(A, "ifadd", "--", "2", "stop", "start", "--", "connect", "0", "info")
    assert wired.wiring()[f"{A}e0"] == "info"
    assert wired.wiring()[f"{A}e1"] == "start"
    assert wired.status(A)["state"] == "running"


def test_a_line_ends_at_the_verb_that_fails(daemon: Daemon) -> None:
    result = daemon.vmess(
        A, "make", "ram", "32M", "smp", "x", "hda", "1M", "ifadd", "--", "1", "-", "--", "start"
    )
    assert result.returncode == 2
    complaint, *rest = result.stderr.splitlines()
    assert complaint.startswith("vmess: SMP 'x' is not a number of processors")
    assert rest == [
        "vmess: smp failed; done: make, ram; not done: hda, ifadd, start",
    ]
    assert sorted(path.name for path in (daemon.root / A).iterdir()) == ["CPU", "RAM"]
    first = daemon.vmess(A, "make", "start")
    assert first.returncode == 1
    assert first.stderr.splitlines()[-2] == "vmess: make failed; not done: start"
    last = daemon.vmess(A, "ram", "16M", "stop")
    assert last.returncode == 3
    assert last.stderr.splitlines()[-1] == "vmess: stop failed; done: ram"


@pytest.mark.parametrize(
    ("words", "status", "onward"),
    [
        # What is off needs no stop; what has been shown need not be shown again.
        (["stop", "force", "rm", "--yes"], 3, ["rm", "--yes"]),
        (["ram", "16M", "stop", "smp", "2", "start"], 3, ["smp", "2", "start"]),
        (["status", "start"], 3, ["start"]),
        (["ram", "16M", "stop"], 3, None),
        # These would fail in the same way again.
        (["suspend", "stop"], 3, None),
        (["ram", "16M", "smp", "x", "start"], 2, None),
        (["lock", "mine", "ram", "16M", "start"], 7, None),
        # This may work at another time.
        (["ram", "16M", "make", "start"], 1, ["make", "start"]),
    ],
)
def test_the_way_on_has_only_what_can_work(
    daemon: Daemon, words: list[str], status: int, onward: list[str] | None
) -> None:
    daemon.done(A, "make")
    result = daemon.vmess(A, *words)
    assert result.returncode == status, result.stderr
    hints = [line for line in result.stderr.splitlines() if "to continue" in line]
    assert hints == ([] if onward is None else [f"  hint: to continue: vmess {' '.join([A, *onward])}"])


def test_the_way_on_from_a_start_of_what_runs(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    daemon.done(A, "start")
    result = daemon.vmess(A, "start", "info")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"  hint: to continue: vmess {A} info"
    result = daemon.vmess(A, B, "start", "info")
    assert (result.returncode, daemon.status(B)["state"]) == (1, "running")
    assert result.stderr.splitlines()[-1] == f"  hint: to continue: vmess {A} {B} info"


def test_the_way_on_for_a_vm_that_is_not_there(daemon: Daemon) -> None:
    result = daemon.vmess(A, "ram", "16M", "start")
    assert result.returncode == 4
    assert "to continue" not in result.stderr


def test_nothing_is_done_of_a_line_that_makes_no_sense(daemon: Daemon) -> None:
    for words in (["make", "ram"], ["make", "strat"], ["make", "start", "--yes"], ["make", "--foo", "start"]):
        assert daemon.vmess(A, *words).returncode == 2
    assert list(daemon.root.iterdir()) == []


def test_whom_it_took_force_to_stop_is_started_again(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="0")
    daemon.done(A, "start")
    pid = daemon.status(A)["pid"]
    result = daemon.vmess(A, "stop", "start")
    assert result.returncode == 8, result.stderr
    assert daemon.status(A)["state"] == "running"
    assert daemon.status(A)["pid"] != pid


def test_a_daemon_that_is_not_there_is_said_with_the_verb(tmp_path: Path) -> None:
    result = Daemon(tmp_path).vmess(A, "make", "start")
    assert result.returncode == 5
    lines = result.stderr.splitlines()
    assert lines[0].startswith("vmess: no vmessd answers")
    assert lines[2:] == [
        "vmess: make failed; not done: start",
        f"  hint: to continue: vmess {A} make start",
    ]


def test_ctrl_c_ends_the_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_invocation: Invocation) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "make", interrupted)
    assert app.run(["newvm", "make", "start"]) == 130
    assert capsys.readouterr().err.splitlines()[0] == "vmess: make was interrupted; not done: start"


# Patterns

KNOWN = ["alab0", "lab0", "lab1", "labs0", "leaf0"]


@pytest.mark.parametrize(
    ("words", "vms"),
    [
        (["lab*"], ("lab0", "lab1", "labs0")),
        (["lab?"], ("lab0", "lab1")),
        (["*"], tuple(KNOWN)),
        (["[al]*0"], ("alab0", "lab0", "labs0", "leaf0")),
        (["leaf0", "l*"], ("leaf0", "lab0", "lab1", "labs0")),
        (["lab[!0]"], ("lab1",)),
        (["x0"], ("x0",)),
    ],
)
def test_a_pattern_stands_for_the_vms_there_are(words: list[str], vms: tuple[str, ...]) -> None:
    assert patterns.chosen(words, KNOWN) == vms


@pytest.mark.parametrize("pattern", ["x*", "LAB*", "../*", "["])
def test_a_pattern_that_matches_nothing_is_one_line(pattern: str) -> None:
    with pytest.raises(NoSuchVM) as caught:
        patterns.chosen([pattern], KNOWN)
    assert caught.value.message.startswith("no VM matches '")
    assert caught.value.hint == "there are: alab0, lab0, lab1, labs0, leaf0; --all stands for all"
    with pytest.raises(NoSuchVM, match="there are no VMs yet"):
        patterns.chosen([pattern], [])


def test_vms_by_pattern_are_each_reported(daemon: Daemon) -> None:
    for vm in (A, B, C):
        daemon.make(vm)
    pattern = f"[ab]{A[1:]}"
    started = daemon.vmess(pattern, "start")
    assert started.returncode == 0, started.stderr
    assert sorted(line.split()[0] for line in started.stdout.splitlines()) == [f"{A}:", f"{B}:"]
    shown = daemon.vmess("--all", "status")
    assert shown.returncode == 3
    assert [line.split(" (")[0].split(", ")[0] for line in shown.stdout.splitlines()] == [
        f"{A}: VM is running",
        f"{B}: VM is running",
        f"{C}: VM not running",
    ]
    assert daemon.vmess("--all").stdout.splitlines()[2] == f"{C}: VM not running"
    assert daemon.vmess("c*").stdout == "VM not running\n"
    none = daemon.vmess("x*", "stop")
    assert (none.returncode, none.stdout) == (4, "")
    assert none.stderr.splitlines() == [
        "vmess: no VM matches 'x*'",
        f"  hint: there are: {A}, {B}, {C}; --all stands for all",
    ]
    too_many = daemon.vmess("*", "forward", "0", "22:22")
    assert (too_many.returncode, too_many.stderr.splitlines()[0]) == (2, "vmess: forward takes one VM, not 3")
    mixed = daemon.vmess("--all", "stop", "force")
    assert mixed.returncode == 3  # C was off; the others are stopped all the same
    assert [daemon.status(vm)["state"] for vm in (A, B, C)] == ["stopped"] * 3
    assert daemon.vmess("--all", "rm", "--yes").returncode == 0
    empty = daemon.vmess("--all", "start")
    assert (empty.returncode, empty.stderr.splitlines()) == (
        4,
        ["vmess: there are no VMs yet", "  hint: make one: vmess newvm make"],
    )


# For programs


def objects(result: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_quiet_says_nothing_but_what_was_asked_for(wired: WiredDaemon) -> None:
    line = f"{A} -q make ram 16M hda 1M ifadd 1 br0 connect 0 br1 start stop force autostart on rm --yes"
    result = wired.vmess(*line.split())
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    wired.done("-q", "net", "prune")
    wired.make(B)
    assert wired.done(B, "ifstat", "--quiet") == f"vmess {B} ifadd 0\n"
    assert wired.vmess(B, "-q").stdout == "VM not running\n"
    assert wired.done("-q", "list") == wired.done("list")
    assert wired.vmess(B, "-q", "boot").returncode == 2
    assert wired.vmess("boot", "-q").stdout == ""
    failed = wired.vmess(B, "-q", "make", "start")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert len(failed.stderr.splitlines()) >= 2


def test_quiet_still_tells_of_force(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="0")
    daemon.done(A, "start")
    result = daemon.vmess(A, "stop", "-q")
    assert (result.returncode, result.stdout) == (8, "")
    assert result.stderr == f"{A}: had to use force: QMP quit\n"


def test_every_verb_answers_in_json(wired: WiredDaemon) -> None:
    made = wired.vmess(
        "--json", A, "make", "ram", "16M", "hda", "1M", "ifadd", "1", "br0", "connect", "0", "br1"
    )
    assert (made.returncode, made.stderr) == (0, "")
    assert [(each["vm"], each["verb"]) for each in objects(made)] == [
        (A, verb) for verb in ("make", "ram", "hda", "ifadd", "connect")
    ]
    path, ram, hda, ifadd, _ = objects(made)
    assert path["path"] == str(wired.root / A)
    assert ram["note"] is None
    assert hda["note"] == f"{A}-hda.img: created, 1M, sparse"
    assert {"making", "persistent"} <= {step["step"] for step in ifadd["steps"]}
    wired.make(B)
    ran = wired.vmess("--json", A, B, "start", "status", "info", "ifstat", "addr", "stop", "force")
    assert (ran.returncode, ran.stderr) == (0, "")
    told = objects(ran)
    starts = [each["progress"] for each in told if each["verb"] == "start" and each["vm"] == A]
    assert [progress["done"] for progress in starts] == [False, True]
    assert starts[0]["command"][0].endswith("qemu-system-x86_64")
    assert [each["status"]["name"] for each in told if each["verb"] == "status"] == [A, B]
    assert [each["vm"] for each in told if each["verb"] == "addr"] == [A, B]
    stops = [each["progress"] for each in told if each["verb"] == "stop" and each["vm"] == B]
    assert stops[-1]["done"]
    assert not stops[-1]["forced"]
    for line in (f"{A} autostart on", f"{A} cable 0 off", f"{A} ifdel", f"{A} rm --yes"):
        result = wired.vmess("--json", *line.split())
        assert result.returncode in (0, 3), result.stderr
        if result.returncode == 0:
            assert [each["verb"] for each in objects(result)] == [line.split()[1]]
    wired.done(B, "autostart", "on")
    for verb, end in (("boot", "running"), ("shutdown", "off")):
        result = wired.vmess(verb, "--json")
        steps = [each["progress"] for each in objects(result)]
        assert steps[-1]["done"]
        assert end in [step["step"] for step in steps if step["vm"] == B]
        assert result.stderr == ""
    for line in (
        "net vlan br7",
        "net add vethA0",
        "net delete vethA0",
        "net prune",
        "net",
        "list",
        "net ignore",
    ):
        result = wired.vmess(*line.split(), "--json")
        assert result.returncode == 0, result.stderr
        assert len(objects(result)) == 1


def test_an_error_is_no_json(daemon: Daemon) -> None:
    daemon.make(A)
    result = daemon.vmess("--json", "missing", A, "status")
    assert result.returncode == 4
    assert [each["vm"] for each in objects(result)] == [A]
    assert result.stderr.startswith("vmess: You need to create directory")


def test_silence_ends_with_the_verb() -> None:
    with pytest.raises(VmessError), terminal.hushed(True):
        raise NoSuchVM("none")
    assert terminal.hushed.now is False
