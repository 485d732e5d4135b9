"""Several verbs in one line, VMs by pattern, and output for programs."""

import contextlib
import json
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from daemons import Daemon, WiredDaemon, own
from hypothesis import given
from hypothesis import strategies as st

from vmessctl import app
from vmessctl.cli import grammar, patterns
from vmessctl.cli.grammar import VERBS, parse
from vmessctl.cli.verbs import BY_VERB, COMMANDS, JSON, Invocation
from vmessctl.client import Client
from vmessctl.commands import make
from vmessctl.output import terminal
from vmessd.core import refusals
from vmessd.core.errors import InvalidValue, NoSuchVM, VmessError

OF_LIST = "usage: vmess list [-o COLUMNS] [--no-header] [--json]"

A, B, C = own("a"), own("b"), own("c")


def steps(line: str) -> list[tuple[str, ...]]:
    """The verbs of a line in turn, each with its arguments."""
    return [(step.command.verb, *step.arguments) for step in parse(shlex.split(line)).steps()]


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
    # The first verb may stand before the VMs.
    ("make newvm ram 2G start", [("make",), ("ram", "2G"), ("start",)]),
    ("connect newvm 0 br0 start", [("connect", "0", "br0"), ("start",)]),
    ("connect newvm 0 start", [("connect", "0", "start")]),
    ("connect 0 br0 start --all", [("connect", "0", "br0"), ("start",)]),
    ("kill newvm rm --yes", [("stop", "force"), ("rm",)]),
    # The value of a setting may be left out.
    ("newvm cdrom start", [("cdrom",), ("start",)]),
    ("newvm ram smp", [("ram",), ("smp",)]),
    ("newvm raw hda cdrom start", [("raw", "hda", "cdrom"), ("start",)]),
    ("newvm create memory 2G", [("make",), ("ram", "2G")]),
    # What is needed is taken, whatever it looks like.
    ("newvm type start start", [("type", "start"), ("start",)]),
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
    assert [step.options for step in parse(line.split()).steps()] == options


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
        ("newvm make ram 2G smpp 2", "ram takes [size|none], not '2G smpp 2'; did you mean smp?", None),
        ("newvm make list", "make takes no argument, not 'list'", "usage: vmess <vmname> make [--image IMAGE]"),
        (
            "newvm make cable 0",
            "cable needs <ifnum> <on|off|good|flap|impairment> [impairment]..., not only '0'",
            None,
        ),
        ("a b make forward 0 2:2", "forward takes one VM, not 2", None),
        ("newvm stop --jsno", "'--jsno' is not an option; did you mean --json?", "vmess help"),
        ("newvm --all stop", "--all stands for all VMs; do not name any as well", None),
        (
            "list --all",
            "--all is not an option of list",
            OF_LIST,
        ),
        ("--all net", "--all is not an option of net show", None),
        ("'lab*' newvm", "no command 'newvm'", "vmess help"),
        ("net 'lab*' x", "net takes show, vlan, nat, add, delete, ignore, prune, not 'lab*'", "vmess help net"),
    ],
)
def test_a_line_of_several_verbs_is_refused_as_a_whole(line: str, message: str, hint: str | None) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse(shlex.split(line))
    assert caught.value.message == message
    assert hint is None or caught.value.hint == hint


WORDS = st.sampled_from(["start", "stop", "br0", "-1", "-", "2G", "list", "-x", "--json", "user:1:2", "net"])
PIECES = st.sampled_from([*VERBS, *BY_VERB, "--", "force", "1", "--json", "--timeout=5", "-q", "--all", "none"])


@given(st.lists(st.one_of(PIECES, WORDS), max_size=9))
def test_whatever_is_understood_can_be_written_down(words: list[str]) -> None:
    try:
        meant = parse(["newvm", *words])
    except InvalidValue:
        return
    if meant.command.verb != "help":
        assert said(parse(grammar.written(meant))) == said(meant)


def said(step: Invocation | None) -> list[Any]:
    return [] if step is None else [vars(step) | {"then": None, "word": ""}, *said(step.then)]


NO_TEXT = {"screenshot", "ssh", "scp", "capture", "receive"}
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
    assert first.stderr.splitlines()[-1] == "vmess: make failed; not done: start"
    last = daemon.vmess(A, "ram", "16M", "suspend")
    assert last.returncode == 3
    assert last.stderr.splitlines()[-1] == "vmess: suspend failed; done: ram"


@pytest.mark.parametrize(
    ("words", "status", "onward"),
    [
        # What has been shown need not be shown again.
        (["status", "start"], 3, ["start"]),
        (["ram", "16M", "suspend"], 3, None),
        # These would fail in the same way again.
        (["suspend", "stop"], 3, None),
        (["ram", "16M", "smp", "x", "start"], 2, None),
        (["lock", "mine", "ram", "16M", "start"], 7, None),
        (["ram", "16M", "make", "start"], 1, None),
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


def test_a_start_of_what_runs_and_a_stop_of_what_is_off_are_done(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    daemon.done(A, "start")
    running = f"VM {A} is already running, PID: {daemon.status(A)['pid']}"
    lines = daemon.done(A, "start", "ram").splitlines()
    assert lines == [running, "16M"]
    both = daemon.done(A, B, "start").splitlines()
    assert f"{A}: {running}" in both
    assert daemon.status(B)["state"] == "running"
    daemon.done(A, "suspend")
    assert daemon.done(A, "start") == f"{running} (paused)\n"
    for words in (["--quiet"], ["--json"]):
        result = daemon.vmess(A, "start", *words)
        assert (result.returncode, result.stderr) == (0, "")
    assert objects(result)[0]["progress"]["done"] is True
    assert daemon.vmess("stop", A, B, "force").returncode == 0
    assert daemon.done(A, "stop") == f"VM not running: {A} (forced off)\n"
    [step] = objects(daemon.vmess(A, "stop", "force", "--json"))
    assert (step["progress"]["done"], step["progress"]["pid"], step["progress"]["forced"]) == (
        True,
        None,
        False,
    )
    assert daemon.vmess(A, "missing", "stop").returncode == 4


def test_the_last_line_of_the_tour_works_on_a_vm_that_is_off(daemon: Daemon) -> None:
    daemon.done("make", A)
    assert daemon.done(A, "stop", "force", "rm", "--yes") == f"VM not running: {A}\n"
    assert not (daemon.root / A).exists()


def test_what_is_being_stopped_is_not_said_to_be_started(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="30")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    daemon.done(A, "stop", "--no-wait")
    result = daemon.vmess(A, "start")
    assert result.returncode == 1
    assert result.stderr.startswith(f"vmess: VM {A} is stopping, up to 3")
    assert daemon.vmess(A, "kill").returncode == 0


def test_a_lock_without_a_remark_keeps_the_one_there_is(daemon: Daemon) -> None:
    daemon.done("make", A)
    daemon.done(A, "lock", "until", "Friday")
    daemon.done(A, "lock")
    assert daemon.vmess(A, "ram", "1G").stderr.startswith(f"vmess: VM {A} is locked: until Friday\n")
    daemon.done(A, "lock", "until Monday")
    assert daemon.vmess(A, "ram", "1G").stderr.startswith(f"vmess: VM {A} is locked: until Monday\n")
    (daemon.root / A / "LOCK").write_bytes(b"\xff")
    daemon.done(A, "lock")
    daemon.done(A, "unlock")
    daemon.done(A, "lock")
    assert daemon.vmess(A, "ram", "1G").stderr.startswith(f"vmess: VM {A} is locked\n")


def test_a_restart_is_a_stop_and_a_start(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    daemon.done(A, "start")
    daemon.wait_guest(A)
    pid = daemon.status(A)["pid"]
    lines = daemon.done("restart", A, B).splitlines()
    assert {f"{A}: Stopping VM PID {pid}", f"{B}: VM not running: {B}"} < set(lines)
    assert sorted(line.split()[0] for line in lines if " Starting VM: " in line) == [f"{A}:", f"{B}:"]
    assert len(lines) == 4
    again = daemon.status(A)
    assert (again["state"], again["last_exit"]["reason"]) == ("running", "powered_down")
    assert again["pid"] != pid
    assert daemon.status(B)["state"] == "running"
    forced = daemon.vmess(A, "reboot", "force")
    assert forced.returncode == 0, forced.stderr
    assert daemon.status(A)["last_exit"]["reason"] == "forced"
    steps = objects(daemon.vmess(A, "restart", "--json"))
    assert [step["verb"] for step in steps if step["progress"]["done"]] == ["restart", "start"]


def test_whom_it_takes_force_to_restart_runs_again_and_the_status_says_so(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="60")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    pid = daemon.status(A)["pid"]
    result = daemon.vmess(A, "restart", "--grace", "0.5")
    assert result.returncode == 8, result.stderr
    assert f"{A}: had to use force: QMP quit" in result.stderr
    assert (daemon.status(A)["state"], daemon.status(A)["pid"] == pid) == ("running", False)


def test_a_restart_does_not_stop_whom_a_start_would_refuse(daemon: Daemon) -> None:
    for vm in (A, B):
        daemon.make(vm)
        daemon.done(vm, "start")
        daemon.wait_guest(vm)
    before = {vm: daemon.status(vm)["pid"] for vm in (A, B)}
    (daemon.root / A / "RAM").write_text("banana\n")
    for force in ([], ["force"]):
        refused = daemon.vmess(A, B, "restart", *force)
        assert refused.returncode == 1
        wrong = "RAM 'banana' is not a size from 1M to 16T such as 512M or 2G"
        assert refused.stderr.splitlines()[:2] == [
            f"vmess: {A} was not stopped, because it would not start again: {daemon.root}/{A}/{wrong}",
            f"  hint: to stop it all the same: vmess {A} stop",
        ]
        after = {vm: daemon.status(vm)["pid"] for vm in (A, B)}
        assert after[A] == before[A]
        assert after[B] not in (before[B], None)
        before = after


def test_a_restart_that_cannot_stop_does_not_start(daemon: Daemon) -> None:
    daemon.make(A, "ignoring")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    late = daemon.vmess(A, "restart", "--timeout", "0.3")
    assert (late.returncode, daemon.status(A)["state"]) == (6, "stopping")
    daemon.done(A, "kill")
    daemon.done(A, "lock", "mine")
    assert daemon.vmess(A, "restart").returncode == 7
    assert daemon.vmess("missing", "restart").returncode == 4
    assert daemon.status(A)["state"] == "stopped"


def test_a_grace_period_for_once(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="1")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    daemon.done(A, "stop", "--no-wait", "--grace", "60")
    time.sleep(1.5)  # longer than the setting
    assert daemon.status(A)["state"] == "stopping"
    began = time.monotonic()
    result = daemon.vmess("stop", A, "--grace", "0")  # that of a stop in progress, too
    assert (result.returncode, time.monotonic() - began < 5) == (8, True)
    assert (daemon.root / A / "STOP").read_text().strip() == "1"
    for words, told in (
        (["--grace", "-1"], "--grace '-1' is not a number of seconds from 0 on"),
        (["--grace", "nan"], "--grace 'nan' is not a number of seconds from 0 on"),
        (["--grace", "86401"], "grace period 86401 is not a number of seconds from 0 to 86400"),
        (["force", "--grace", "1"], "force kills at once; --grace has no meaning with it"),
    ):
        wrong = daemon.vmess(A, "stop", *words)
        assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (2, f"vmess: {told}")


def test_a_setting_without_a_value_is_shown_as_it_is_typed(daemon: Daemon) -> None:
    daemon.done("make", A)
    assert daemon.done(A, "ram", "smp", "hda", "cdrom", "cpu") == "none\nnone\nnone\nnone\nbest\n"
    image = daemon.directory / "x.iso"
    image.write_bytes(bytes(2**20))
    daemon.done("ram", A, "32MiB", "smp", "2", "hda", "2MB", "cdrom", image, "autostart", "on", "10", "5")
    assert daemon.done(A, "ram", "smp", "hda", "cdrom", "autostart").splitlines() == [
        *("32MiB", "2", "2M", str(image), "on 10 5"),
    ]
    daemon.done("make", B)
    assert daemon.done("ram", A, B) == f"{A}: 32MiB\n{B}: none\n"
    assert daemon.done(A, "ram", "-q") == "32MiB\n"
    assert [each["value"] for each in objects(daemon.vmess("--json", A, "ram", "hda", "grace"))] == [
        *("32MiB", "2M", None),
    ]
    (daemon.root / A / "RAM").write_text("ba\x1b[31mnana\n")
    shown = daemon.vmess(A, "ram")
    assert (shown.returncode, shown.stdout) == (0, "ba\\x1b[31mnana\n")
    assert shown.stderr.startswith(f"{A}: RAM 'ba\\x1b[31mnana' is not a size")
    assert daemon.vmess("missing", "ram").returncode == 4


SETTINGS = (
    (["grace", "5"], "STOP", "5"),
    (["restart-policy", "always"], "RESTART", "always"),
    (["nic-model", "virtio"], "NIC_MODEL", "virtio"),
    (["nic-options", "romfile="], "NIC_EXARGS", "romfile="),
    (["qemu-options", "-device 'a b' -S"], "EXARGS", "-device 'a b' -S"),
    (["qemu-options", "--", "-device", "a b"], "EXARGS", "-device 'a b'"),
    (["raw", "hda", "cdrom"], "RAW", "hda cdrom"),
)


@pytest.mark.parametrize(("words", "file", "text"), SETTINGS, ids=str)
def test_a_file_of_the_directory_has_a_verb(daemon: Daemon, words: list[str], file: str, text: str) -> None:
    daemon.done("make", A)
    result = daemon.vmess(A, *words)
    assert result.returncode == 0, result.stderr
    assert (daemon.root / A / file).read_text() == f"{text}\n"
    assert daemon.done(A, words[0]) == f"{text}\n"
    daemon.done(A, words[0], "none")
    assert not (daemon.root / A / file).exists()


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["-name \udcff"], r"\udcff"),
        (["--", "-name", "\udcff"], r"\udcff"),
        (["--", "-name", "a\nb"], r"a\nb"),
    ],
    ids=repr,
)
def test_arguments_for_qemu_are_printable(daemon: Daemon, words: list[str], wrong: str) -> None:
    daemon.done("make", A)
    result = daemon.vmess(A, "qemu-options", *words)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.endswith(f" is not QEMU arguments quoted as for a shell ('{wrong}' is not printable)")
    assert not (daemon.root / A / "EXARGS").exists()


def test_a_file_of_arguments_for_qemu_that_are_not_printable_is_told(daemon: Daemon) -> None:
    daemon.done("make", A)
    for data, why in ((b"-name a\x1bb", r"('a\x1bb' is not printable)"), (b"-name \xff", "is not text")):
        (daemon.root / A / "EXARGS").write_bytes(data)
        assert why in daemon.done(A, "info")
        result = daemon.vmess(A, "start")
        assert result.returncode == 1
        assert why in result.stderr.splitlines()[0]


def test_arguments_for_qemu_keep_their_tabs(daemon: Daemon) -> None:
    daemon.done("make", A)
    daemon.done(A, "qemu-options", "--", "-append", "a\tb 'c'")
    file = daemon.root / A / "EXARGS"
    assert shlex.split(file.read_text()) == ["-append", "a\tb 'c'"]


def test_arguments_for_qemu_are_refused_where_the_daemon_does_not_use_them(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.arguments += ["--exargs", "no"]
    hint = refusals.by_administrator('exargs = "yes"')
    try:
        daemon.start()
        daemon.done("make", A)
        for words in (["qemu-options", "--", "-S"], ["nic-options", "romfile="]):
            result = daemon.vmess(A, *words)
            assert result.returncode == 1
            assert result.stderr.splitlines() == [
                f"vmess: {words[0]} passes arguments to QEMU, which this vmessd does not allow",
                f"  hint: {hint}",
            ]
        (daemon.root / A / "EXARGS").write_text("-S")
        assert daemon.done(A, "qemu-options") == "-S\n"
        daemon.done(A, "qemu-options", "none", "nic-model", "virtio", "grace", "3")
        assert not (daemon.root / A / "EXARGS").exists()
    finally:
        daemon.close()


def test_a_setting_has_its_old_name_on_the_socket(daemon: Daemon) -> None:
    daemon.done("make", A)
    with contextlib.closing(Client([str(daemon.socket)])) as client:
        client.call("Set", vm=A, setting="restart", value="always")
        client.call("Set", vm=A, setting="stop", value="7")
        with pytest.raises(InvalidValue):
            client.call("Set", vm=A, setting="nics", value="br0")
    assert daemon.done(A, "restart-policy", "grace") == "always\n7\n"


def test_a_word_that_is_neither_vm_nor_verb_never_offers_to_become_a_vm(daemon: Daemon) -> None:
    daemon.done("make", "leaf3")
    for word, told in (
        ("strat", "'strat'; did you mean start?"),
        ("laef3", "'laef3'; did you mean leaf3?"),
    ):
        result = daemon.vmess(word)
        assert (result.returncode, result.stdout) == (4, "")
        assert result.stderr.splitlines() == [
            f"vmess: no VM or command {told}",
            "  hint: vmess list, or vmess help",
        ]
    terse = daemon.vmessctl("laef3", "status").stderr
    assert terse == f"vmessctl: no VM laef3: {daemon.root}/laef3 does not exist\n  hint: did you mean leaf3?\n"
    other = daemon.vmess("laef3", "rm", "--yes")
    assert (other.returncode, other.stderr) == (4, terse.replace("vmessctl", "vmess"))
    # What resembles nothing gets the sentence of the original.
    assert daemon.vmess("qqqqq").stderr.startswith(f"vmess: You need to create directory {daemon.root}/qqqqq0")


def test_numbers_without_a_unit_mean_what_they_did_to_the_original(daemon: Daemon) -> None:
    daemon.done("make", A)
    result = daemon.vmess(A, "ram", "32", "hda", str(2**20))
    assert result.returncode == 0
    assert "taken as" not in result.stderr
    assert (daemon.root / A / "RAM").read_text() == "32\n"
    assert (daemon.root / A / f"{A}-hda.img").stat().st_size == 2**20
    assert daemon.vmess(A, "hdb", "8").returncode == 2


def test_as_vmessctl_numbers_without_a_unit_are_mib_and_it_is_said(daemon: Daemon) -> None:
    daemon.done("make", A)
    result = daemon.vmessctl(A, "ram", "32", "hda", "2")
    assert (result.returncode, result.stdout) == (
        0,
        f"{A}: ram 32M\n{A}: hda: {A}-hda.img: created, 2M, sparse\n",
    )
    assert result.stderr.splitlines() == ["RAM 32 taken as 32M", "hda 2 taken as 2M"]
    assert (daemon.root / A / "RAM").read_text() == "32M\n"
    assert (daemon.root / A / f"{A}-hda.img").stat().st_size == 2 * 2**20
    daemon.done("make", B)
    both = daemon.vmessctl(A, B, "ram", "48").stderr.splitlines()
    assert both == [f"{A}: RAM 48 taken as 48M", f"{B}: RAM 48 taken as 48M"]
    assert daemon.vmessctl(A, "ram", "0").returncode == 2
    assert daemon.vmessctl(A, "smp", "2").stderr == ""


def test_as_vmessctl_a_vm_that_is_not_there_is_said_in_one_line(daemon: Daemon) -> None:
    missing = f"no VM qqqqq0: {daemon.root}/qqqqq0 does not exist"
    for words, told in (
        (["qqqqq"], "no VM or command 'qqqqq'"),
        (["show"], "no VM or command 'show'"),
        (["qqqqq", "start"], missing),
        (["qqqqq", "status", "--json"], missing),
        (["qqqqq", "console"], missing),
    ):
        result = daemon.vmessctl(*words)
        assert (result.returncode, result.stderr.splitlines()[0].partition(": ")[2]) == (4, told)
        assert "make" not in result.stderr


def test_the_way_on_for_a_vm_that_is_not_there(daemon: Daemon) -> None:
    result = daemon.vmess(A, "ram", "16M", "start")
    assert result.returncode == 4
    assert "to continue" not in result.stderr


def test_nothing_is_done_of_a_line_that_makes_no_sense(daemon: Daemon) -> None:
    for words in (["make", "type"], ["make", "strat"], ["make", "start", "--yes"], ["make", "--foo", "start"]):
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

    monkeypatch.setattr(make, "make", interrupted)
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


@pytest.mark.parametrize("pattern", ["x*", "LAX*", "../*", "["])
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
    assert (mixed.returncode, f"{C}: VM not running: {C}" in mixed.stdout) == (0, True)
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
    assert result.stderr.startswith(f"vmess: no VM missing0: {daemon.root}/missing0 does not exist")


def test_silence_ends_with_the_verb() -> None:
    with pytest.raises(VmessError), terminal.hushed(True):
        raise NoSuchVM("none")
    assert terminal.hushed.now is False
