"""One program under two names: the words of the original, and terse ones; everything else is the same."""

import pytest
from daemons import AS_VMESSCTL, CLIENT, Daemon, WiredDaemon, own
from terminals import on_terminal

A, B, C = own("a"), own("b"), own("c")
STATUSES = (
    (0, "list"),
    (0, f"{C} status"),
    (1, f"{C} rm --yes"),
    (2, f"{A} ram banana"),
    (2, f"{A} strat"),
    (2, "list -o colour"),
    (3, f"{A} status"),
    (3, f"{A} reset"),
    (3, f"{A} {C} status"),
    (4, "missing status"),
    (4, f"missing {A} status"),
    (5, "list --socket /nonexistent/control.sock"),
    (6, f"{C} wait stopped --timeout 0.2"),
    (7, f"{B} start"),
    (8, f"{C} stop"),
)
"""Each exit status of vmessctl, and command lines that end with it."""

qemu = pytest.mark.qemu


@qemu
def test_vmessctl_prints_one_line_for_each_thing_done(daemon: Daemon) -> None:
    made = daemon.vmessctl(A, "make", "ram", "16M", "hda", "1M", "autostart", "on")
    assert (made.returncode, made.stdout.splitlines(), made.stderr) == (
        0,
        [
            f"{A}: made ({daemon.root}/{A})",
            f"{A}: ram 16M",
            f"{A}: hda: {A}-hda.img: created, 1M, sparse",
            f"{A}: autostart on",
        ],
        "",
    )
    started = daemon.vmessctl(A, "start")
    pid = daemon.status(A)["pid"]
    assert (started.stdout, started.stderr) == (f"{A}: started (PID {pid}, TCG)\n", "")
    assert daemon.vmessctl(A).stdout.startswith(f"{A}: running, PID {pid}, up ")
    assert daemon.vmessctl("start", A).stdout == f"{A}: already running, PID {pid}\n"
    for verb, done in (
        ("suspend", "paused"),
        ("resume", "resumed"),
        ("lock", "locked"),
        ("unlock", "unlocked"),
    ):
        assert daemon.vmessctl(A, verb).stdout == f"{A}: {done}\n"
    again = daemon.vmessctl("restart", A, "force").stdout
    assert again == f"{A}: stopped\n{A}: started (PID {daemon.status(A)['pid']}, TCG)\n"
    stopped = daemon.vmessctl(A, "stop", "force")
    assert (stopped.stdout, stopped.stderr) == (f"{A}: stopped\n", "")
    assert daemon.vmessctl("stop", A).stdout == f"{A}: already stopped\n"
    assert daemon.vmessctl(A).stdout.startswith(f"{A}: stopped (forced off ")
    assert daemon.vmessctl(A, "ram", "none", "--quiet").stdout == ""
    assert daemon.vmessctl(A, "rename", B).stdout == f"{A}: renamed to {B}\n"
    gone = daemon.vmessctl(B, "rm", "--yes")
    assert (gone.stdout, gone.stderr) == (f"{B}: deleted\n", "")


def test_what_was_done_to_a_disk_is_told_as_other_things_that_were_done(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    for value, done in (
        ("1M", "created, 1M, sparse"),
        ("1M", "already has 1M, unchanged"),
        ("2M", "2M now, was 1M"),
    ):
        told = daemon.vmessctl(A, B, "hda", value)
        assert told.stdout.splitlines() == [f"{vm}: hda: {vm}-hda.img: {done}" for vm in (A, B)]
        assert told.stderr == ""
    aside = daemon.vmessctl(A, "hda", "none")
    assert aside.stdout.startswith(f"{A}: hda: {A}-hda.img is kept in {A}-hda.detached; to have it back")
    assert (aside.stderr, len(aside.stdout.splitlines())) == ("", 1)
    nothing = daemon.vmessctl(A, "hda", "none")
    assert (nothing.stdout, nothing.stderr) == (f"{A}: hda none\n", "")
    original = daemon.vmess(A, "hda", "1M")
    assert (original.stdout, original.stderr) == ("", f"{A}-hda.img: created, 1M, sparse\n")


@qemu
def test_the_command_line_of_qemu_is_shown_where_it_is_asked_for(daemon: Daemon) -> None:
    daemon.make(A)
    started = daemon.vmessctl(A, "start", "-v").stdout.splitlines()
    [command] = daemon.vmessctl(A, "info", "--command").stdout.splitlines()
    assert f"-name {A} " in command
    assert started == [f"{A}: {command}", f"{A}: started (PID {daemon.status(A)['pid']}, TCG)"]
    assert command not in daemon.vmessctl(A, "info").stdout
    assert f"Command: {command}" in daemon.vmessctl(A, "info", "-v").stdout.splitlines()
    assert f"  {command}" in daemon.done(A, "info").splitlines()
    assert daemon.done(A, "info", "--command") == f"{command}\n"
    daemon.done(A, "stop", "force")
    (daemon.root / A / "RAM").write_text("banana\n")
    said = daemon.vmessctl(A, "info", "--command")
    assert (said.returncode, said.stdout) == (1, "")
    assert f"QEMU of {A} has no command line, since its start would fail: " in said.stderr
    assert "RAM 'banana' is not a size" in said.stderr


@qemu
def test_several_vms_on_a_terminal_end_in_the_same_words(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    with on_terminal(daemon, A, B, "start", program=AS_VMESSCTL) as screen:
        assert screen.end() == 0
    for vm in (A, B):
        assert f"{vm}: started (PID {daemon.status(vm)['pid']}, TCG)\r\n" in screen.said
    with on_terminal(daemon, A, B, "stop", "force", program=AS_VMESSCTL) as screen:
        assert screen.end() == 0
    assert f"{A}: stopped\r\n" in screen.said
    assert f"{B}: stopped\r\n" in screen.said


@qemu
def test_force_is_said_in_one_line(daemon: Daemon) -> None:
    daemon.make(A, "ignoring", STOP="1")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    result = daemon.vmessctl(A, "stop")
    assert (result.returncode, result.stdout) == (8, "")
    assert result.stderr.splitlines()[-1] == f"{A}: stopped by force"


def test_errors_and_hints_name_the_program_that_was_called(daemon: Daemon) -> None:
    missing = daemon.vmessctl("missing", "start")
    assert (missing.returncode, missing.stdout) == (4, "")
    assert missing.stderr == (
        f"vmessctl: no VM missing0: {daemon.root}/missing0 does not exist\n  hint: vmessctl list\n"
    )
    daemon.make(A)
    off = daemon.vmessctl(A, "reset")
    assert off.stderr == f"vmessctl: VM {A} is not running\n  hint: vmessctl {A} start\n"
    wrong = daemon.vmessctl(A, "start", "--yes")
    assert "\n  hint: usage: vmessctl <vmname> start [--at-once N]\n" in wrong.stderr
    several = daemon.vmessctl(A, "missing", "status")
    assert several.stderr == (
        f"vmessctl: no VM missing0: {daemon.root}/missing0 does not exist\n  hint: vmessctl list\n"
    )
    assert daemon.vmessctl("--version").stdout.startswith("vmessctl ")
    assert daemon.vmessctl("help").stdout.startswith("Usage     vmessctl <vmname>...")


WIRES = (
    ("leaf ifadd 2 lab", ["created bridge lab", "leaf0: interfaces: lab, -"]),
    ("spine ifadd 1 lab", ["spine0: interfaces: lab"]),
    ("leaf connect 1 core", ["created bridge core", "leaf0: interface 1 connected to core"]),
    ("leaf cable leaf0e1 off", ["leaf0: cable of interface 1 pulled"]),
    ("leaf mac 0 02:00:00:00:00:07", ["leaf0: MAC of interface 0: 02:00:00:00:00:07"]),
    ("leaf mac 0 none", ["leaf0: MAC of interface 0: the default"]),
    ("leaf ifstat", ["vmessctl leaf0 ifadd 2 lab core", "vmessctl leaf0 cable 1 off"]),
    ("net", ["vmessctl net vlan core leaf0e1", "vmessctl net vlan lab leaf0e0 spine0e0"]),
    ("net vlan core vethA0", ["connected to bridge core: vethA0"]),
    ("net vlan core --hub --mtu 1400", ["core: a hub, MTU 1400"]),
    ("net vlan core --switch", ["core: a switch"]),
    ("net delete vethA0", ["deleted vethA0"]),
    ("leaf ifdel", ["deleted TAP leaf0e0", "deleted TAP leaf0e1", "leaf0: no interfaces"]),
    ("net prune", ["deleted core"]),
)


def test_wires_are_told_in_terse_lines(wired: WiredDaemon) -> None:
    for vm in ("leaf0", "spine0"):
        wired.make(vm)
    for line, told in WIRES:
        result = wired.vmessctl(*line.split())
        of_host = result.stderr.startswith("bridge-nf-call-") and line == "net"
        assert (line, result.stdout.splitlines(), of_host or result.stderr == "") == (line, told, True)


@pytest.mark.parametrize("program", [CLIENT, AS_VMESSCTL], ids=["vmess", "vmessctl"])
@qemu
def test_exit_statuses_are_those_of_the_reference(daemon: Daemon, program: tuple[str, ...]) -> None:
    """A is off, B is locked, C ignores its power button."""
    daemon.make(A)
    daemon.make(B, LOCK="mine")
    daemon.make(C, "ignoring", STOP="1")
    daemon.done(C, "start")
    daemon.wait_guest(C)
    ended = [(daemon.vmess(*line.split(), program=program).returncode, line) for _, line in STATUSES]
    assert ended == list(STATUSES)
