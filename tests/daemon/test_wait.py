"""Waiting for a state, for words on the serial console, for an address: by real clients, with no race."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import psutil
import pytest
from daemons import UNIT, Daemon, WiredDaemon, own, wait_for
from terminals import on_terminal
from varlink_wire import Wire, answers, nothing_unforeseen
from watchers import is_waiting

from vmessctl import app
from vmessctl.cli import grammar
from vmessctl.cli.verbs import PROGRAM
from vmessctl.commands import start_stop, waiting
from vmessctl.commands.expression import Alarm
from vmessctl.commands.waiting import Says
from vmessctl.stream import Stream
from vmessd.api import budgets
from vmessd.core.contract import Cost
from vmessd.core.errors import InvalidValue, NotRunning

A, B = own("g"), own("h")
MAC = "02:11:9b:af:00:00"


class Waiter:
    """A client that waits."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.began = time.monotonic()

    def end(self, seconds: float = 10.0) -> tuple[int, str, str]:
        """Wait for its end; return exit status, standard output and standard error."""
        out, error = self.process.communicate(timeout=seconds * UNIT)
        return self.process.returncode, out, error


def is_matching(process: "subprocess.Popen[str]") -> bool:
    """Tell whether a client has come to an expression that does not let go of it."""
    return bool(psutil.Process(process.pid).cpu_times().user > 0.2)  # ten times what its start takes


@contextlib.contextmanager
def wait(
    daemon: Daemon, *words: str, begun: Callable[["subprocess.Popen[str]"], bool] = is_waiting
) -> Iterator[Waiter]:
    """Begin to wait; the daemon has heard of it."""
    waiter = Waiter(daemon.client(*words))
    try:
        wait_for(lambda: begun(waiter.process), what="the call")
        with Wire(daemon.socket) as wire:
            wire.call("org.varlink.service.GetInfo")  # no work, however many VMs there are
        yield waiter
    finally:
        waiter.process.kill()
        waiter.process.communicate(timeout=10 * UNIT)


@pytest.mark.parametrize("program", ["vmess", "vmessctl"])
def test_an_empty_pattern_is_refused_before_any_call(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROGRAM, "name", program)
    with pytest.raises(InvalidValue, match=r"^wait serial: needs a regular expression$") as refused:
        app.run(["newvm", "wait", "serial:"])
    assert refused.value.hint == f"{program} newvm0 wait serial:login:"


def test_an_address_in_a_user_network_is_not_waited_for(daemon: Daemon) -> None:
    daemon.make(A, NICS="user user")
    daemon.make(B, NICS="user -")
    daemon.done(A, "start")
    assert "10.0.2.15" in daemon.done(A, "addr")
    refused = daemon.vmessctl(A, "wait", "addr")
    assert (refused.returncode, refused.stdout, refused.stderr.splitlines()) == (
        1,
        "",
        [
            f"vmessctl: VM {A} has only user networks, whose addresses the host cannot reach",
            f"  hint: vmessctl {A} wait ssh; for another port: vmessctl {A} forward 0 8080:80",
        ],
    )
    late = daemon.vmess(B, "wait", "addr", "--timeout", "0.2")
    assert (late.returncode, late.stdout) == (6, "")
    assert late.stderr.splitlines() == [
        f"vmess: timed out after 0.2 s: VM {B} has no address known to the host",
        f"  hint: vmess {B} addr",
    ]
    off = daemon.vmess(B, "wait", "ssh", "--timeout", "0.2")
    assert off.stderr.splitlines() == [
        f"vmess: timed out after 0.2 s: VM {B} is not running",
        f"  hint: vmess {B} start",
    ]
    (daemon.root / B / "NICS").unlink()
    without = daemon.vmessctl(B, "wait", "addr")
    assert without.stderr.splitlines() == [
        f"vmessctl: VM {B} has no interfaces",
        f"  hint: vmessctl {B} ifadd 1 br0",
    ]
    assert daemon.vmessctl(B, "addr").stdout == f"{B} has no interfaces\n"
    named = [line.partition("  ")[0] for line in daemon.vmessctl(A, "addr").stdout.splitlines()]
    assert named == ["interface 0", "interface 1"]
    assert all(f"{name}: user network, MAC" in daemon.vmessctl(A, "info").stdout for name in named)


# -- States --


def test_a_state_is_waited_for(daemon: Daemon) -> None:
    daemon.make(A)
    assert daemon.done(A, "wait", "stopped") == "stopped\n"
    with wait(daemon, A, "wait", "running") as running:
        daemon.done(A, "start")
        assert running.end() == (0, "running\n", "")
    daemon.wait_guest(A)
    with wait(daemon, A, "wait", "stopped", "--json") as stopped:
        daemon.done(A, "stop")
        status, out, _ = stopped.end()
    assert (status, json.loads(out)) == (
        0,
        {"vm": A, "verb": "wait", "condition": "stopped", "state": "stopped"},
    )


def test_a_state_that_passes_in_no_time_is_not_missed(daemon: Daemon) -> None:
    daemon.make(A, "instant")
    with wait(daemon, A, "wait", "running") as waiter:
        daemon.done(A, "start")
        assert waiter.end() == (0, "running\n", "")
    assert daemon.wait_state(A, "stopped")


def test_paused_is_a_state(fake_daemon: Daemon) -> None:
    fake_daemon.make_fake(A, "ioerror")
    with wait(fake_daemon, A, "wait", "paused") as waiter:
        fake_daemon.done(A, "start")
        assert waiter.end() == (0, "paused\n", "")
    for condition in ("running", "serial:login:"):
        result = fake_daemon.vmess(A, "wait", condition, "--timeout", "0.1")
        assert result.returncode == 6
        said = result.stderr.splitlines()[0]
        assert said == f"{A} is paused, so this waits until it is resumed: vmess {A} resume"


def test_a_vm_that_is_about_to_be_started_again_is_not_stopped(daemon: Daemon) -> None:
    daemon.make(A, RESTART="always")
    daemon.done(A, "start")
    with wait(daemon, A, "wait", "stopped") as waiter:
        os.kill(daemon.status(A)["pid"], signal.SIGKILL)
        daemon.wait_state(A, "waiting")
        daemon.wait_state(A, "running")
        assert waiter.process.poll() is None
        daemon.done(A, "stop", "force")
        assert waiter.end() == (0, "stopped\n", "")


def test_each_of_several_is_reported_and_the_worst_status_wins(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    daemon.done(A, "start")
    result = daemon.vmess(A, "missing", B, "wait", "running", "--timeout", "0.5")
    assert (result.returncode, result.stdout) == (4, f"{A}: running\n")
    assert result.stderr.splitlines() == [
        result.stderr.splitlines()[0],
        "  hint: vmess list",
        f"vmess: timed out after 0.5 s: VM {B} is stopped, not running",
        f"  hint: vmess {B} status",
    ]


def test_a_time_limit_ends_the_waiting(daemon: Daemon) -> None:
    daemon.make(A)
    began = time.monotonic()
    result = daemon.vmess(A, "wait", "paused", "--timeout", "0.5")
    assert 0.5 <= time.monotonic() - began < 3
    assert (result.returncode, result.stdout) == (6, "")
    assert result.stderr.startswith(f"vmess: timed out after 0.5 s: VM {A} is stopped, not paused\n")


def test_a_vm_that_is_removed_is_waited_for_no_longer(daemon: Daemon) -> None:
    for words in (["running"], ["serial:x"], ["addr"]):
        daemon.make(A, NICS="-")
        with wait(daemon, A, "wait", *words) as waiter:
            daemon.done(A, "rm", "--yes")
            status, out, error = waiter.end()
        assert (status, out) == (4, ""), words
        assert error.startswith("vmess: "), words
        assert A in error


def test_waiting_outlives_a_restart_of_the_daemon(daemon: Daemon) -> None:
    daemon.make(A, "twice", STOP="30")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    with wait(daemon, A, "wait", "stopped") as stopped, wait(daemon, A, "wait", "serial:1") as said:
        with Wire(daemon.socket) as wire:  # behind the client's own call, which has its place by then
            wire.call("Serial", {"vm": A, "since": None}, more=True)
        daemon.stop(signal.SIGKILL)
        # Pressed by somebody else while no daemon is there, so that the word falls into the gap.
        with VMSocket(daemon.root / A / "qmp.sock") as qmp:
            qmp.execute("system_powerdown")
            daemon.wait_guest(A, b"1")
        daemon.start()
        assert said.end(30)[:2] == (0, "1\n")
        daemon.done(A, "stop")
        assert stopped.end(30)[:2] == (0, "stopped\n")


class VMSocket:
    """A monitor's client."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10 * UNIT)
        self.path = path

    def __enter__(self) -> Self:
        self.sock.connect(str(self.path))
        self.file = self.sock.makefile("rw")
        self.file.readline()
        self.execute("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def execute(self, command: str) -> None:
        self.file.write(json.dumps({"execute": command}) + "\n")
        self.file.flush()
        while "return" not in json.loads(self.file.readline()):
            pass


# -- Words --


def test_words_without_a_newline_are_seen_from_before_the_start(daemon: Daemon) -> None:
    daemon.make(A)
    with wait(daemon, A, "wait", "serial:^R$") as waiter:
        daemon.done(A, "start")
        assert waiter.end() == (0, "R\n", "")


def test_history_counts_when_asked(daemon: Daemon) -> None:
    daemon.make(A, "listener")
    daemon.done(A, "start")
    daemon.wait_guest(A, b"button.\r\n")
    out = daemon.done(A, "wait", r"serial:(\w+)\. Press (\w+)", "--since-start", "--json")
    assert json.loads(out) == {
        "vm": A,
        "verb": "wait",
        "condition": r"serial:(\w+)\. Press (\w+)",
        "line": "Ready. Press my power button.",
        "groups": ["Ready", "my"],
    }
    now = daemon.vmess(A, "wait", "serial:Ready", "--timeout", "0.5")
    assert now.returncode == 6
    assert now.stderr.startswith(f"vmess: timed out after 0.5 s: VM {A} has not printed 'Ready'\n")
    with wait(daemon, A, "wait", "serial:Good night") as waiter:
        daemon.done(A, "stop")
        assert waiter.end() == (0, "Good night.\n", "")
    assert daemon.done(A, "wait", "serial:Good", "--since-start") == "Good night.\n", "of a run that is over"
    over = daemon.vmess(A, "wait", "serial:nothing like it", "--since-start")
    assert (over.returncode, over.stdout) == (3, "")
    assert over.stderr.splitlines() == [
        f"vmess: VM {A} ended without a match: powered down as asked",
        f"  hint: vmess {A} why",
    ]


def test_history_is_that_of_one_run(daemon: Daemon) -> None:
    directory = daemon.make(A)
    (directory / "serial.log").write_bytes(b"what another run said\n")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    assert daemon.done(A, "wait", "serial:R", "--since-start") == "R\n"
    assert daemon.vmess(A, "wait", "serial:said", "--since-start", "--timeout", "0.5").returncode == 6
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert daemon.vmess(A, "wait", "serial:said", "--since-start", "--timeout", "0.5").returncode == 6
    log = (directory / "serial.log").read_bytes()
    (directory / "serial.log.1").write_bytes(log[:-3])  # as whoever keeps logs short does
    with (directory / "serial.log").open("r+b") as file:
        file.write(log[-3:])
        file.truncate()
    assert daemon.done(A, "wait", "serial:^R$", "--since-start") == "R\n"
    assert daemon.vmess(A, "wait", "serial:said", "--since-start", "--timeout", "0.5").returncode == 6


def test_a_run_that_ends_without_a_word_is_an_error_with_how_it_ended(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.done(A, "start")
    daemon.wait_guest(A)
    with wait(daemon, A, "wait", "serial:login:") as waiter:
        os.kill(daemon.status(A)["pid"], signal.SIGKILL)
        status, out, error = waiter.end()
    assert (status, out) == (3, "")
    assert error.splitlines()[0] == f"vmess: VM {A} ended without a match: killed by signal 9"
    daemon.make(B, "instant")
    with wait(daemon, B, "wait", "serial:login:") as waiter:  # of a VM that is off, the next run
        daemon.done(B, "start")
        assert waiter.end()[0] == 3
    never = own("i")
    daemon.make(never)
    result = daemon.vmess(never, "wait", "serial:x", "--since-start")
    assert (result.returncode, result.stderr.splitlines()) == (
        3,
        [f"vmess: VM {never} has never run", f"  hint: vmess {never} start"],
    )


def test_a_restart_is_followed_into_the_next_run(daemon: Daemon) -> None:
    daemon.make(A, RESTART="on-crash")
    daemon.done(A, "start")
    daemon.wait_guest(A)
    with wait(daemon, A, "wait", "serial:^R$") as waiter:
        os.kill(daemon.status(A)["pid"], signal.SIGKILL)
        assert waiter.end() == (0, "R\n", "")


EVIL = r"serial:^(([ -~])+)+\x00$"
"""Exponential on a line of printable characters."""


def test_an_expression_that_never_ends_hurts_nobody_else(daemon: Daemon) -> None:
    daemon.make(A, "chatter")
    daemon.done(A, "start")
    began = time.monotonic()
    with (
        wait(daemon, A, "wait", EVIL, "--timeout", "2", begun=is_matching) as timed,
        wait(daemon, A, "wait", EVIL, begun=is_matching) as endless,
    ):
        memory = Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]
        for _ in range(10):
            answers(daemon, within=0.5)
        with Wire(daemon.socket) as wire:
            assert "error" not in wire.call("Status", {"vm": A})
        status, out, error = timed.end()
        assert (status, out) == (6, "")
        assert "has not printed" in error
        assert time.monotonic() - began >= 2
        assert abs(int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) - int(memory)) * 4 < 16 * 1024
        endless.process.send_signal(signal.SIGINT)
        assert endless.end(5) == (130, "", "")
    daemon.done(A, "stop", "force")
    nothing_unforeseen(daemon)


def test_c33_a_serial_flood_that_is_not_read_slows_nobody(daemon: Daemon) -> None:
    daemon.make(A, "chatter")
    daemon.make(B)
    daemon.done(A, B, "start")
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(daemon.socket)) for _ in range(20)]
        for wire in wires:
            wire.begin("Serial", {"vm": A, "since": None}, more=True)
            assert wire.receive() is not None  # and nothing more
        log = daemon.root / A / "serial.log"
        before = log.stat().st_size
        wait_for(lambda: log.stat().st_size > before + 500_000, 30, "the flood")
        began = time.monotonic()
        for _ in range(20):
            answers(daemon, within=0.5)
        assert time.monotonic() - began < 5
        assert '!"#$' in daemon.done(
            A, "wait", r'serial:!"#\$', "--timeout", "10"
        )  # from where a line may be half
    daemon.done(A, "stop", "force")


def test_what_a_terminal_would_obey_is_matched_without_and_told_escaped() -> None:
    says = Says(A, re.compile("^login: $"), re.compile(waiting.ESCAPES), Alarm(None))
    reply = {"mark": "1:00", "gap": False, "ended": None}
    assert says.take({"piece": {**reply, "data": ""}}) is None
    assert says.take({"piece": {**reply, "data": "G1szMm1s"}}) is None  # ESC [32m l
    met = says.take({"piece": {**reply, "data": "b2dpbjogG1swbQ=="}})  # ogin: ESC [0m
    assert met is not None
    assert met["text"] == r"\x1b[32mlogin: \x1b[0m"
    assert says.parameters() == {"vm": A, "since": "1:00"}
    with pytest.raises(NotRunning, match="ended without a match: forced off"):
        Says(A, re.compile("x"), re.compile("y"), Alarm(None)).take(
            {"piece": {**reply, "data": "", "ended": "forced off"}}
        )


def test_a_line_without_end_is_looked_at_in_bounds() -> None:
    says = Says(A, re.compile("never"), re.compile(waiting.ESCAPES), Alarm(None))
    for _ in range(30):
        list(says._lines(b"x" * 32768))
    assert len(says._line) == waiting.LINE_LIMIT


# -- Addresses --


def test_an_address_is_waited_for(wired: WiredDaemon) -> None:
    vm = "newvm0"
    wired.make(vm, "talker")
    wired.done(vm, "ifadd", "1", "lab")
    wired.ip("address add 10.9.0.1/24 dev lab", f"neigh add 10.9.0.5 lladdr {MAC} dev lab nud reachable")
    stale = wired.vmess(vm, "wait", "addr", "--timeout", "1")
    assert stale.returncode == 6, "what is known of one that is off is of an earlier run"
    assert stale.stderr.startswith(f"vmess: timed out after 1 s: VM {vm} has no address known to the host")
    with wait(wired, vm, "wait", "addr") as waiter:
        wired.done(vm, "start")
        assert waiter.end() == (0, "10.9.0.5\n", "")
    wired.ip("neigh del 10.9.0.5 dev lab")
    wired.wait_guest(vm)
    wait_for(lambda: "which was heard" in wired.done(vm, "addr"), 5, "hearing the guest")
    began = time.monotonic()
    out = json.loads(wired.done(vm, "wait", "addr", "--json"))
    assert out["address"]["address"] == "fe80::11:9bff:feaf:0"
    assert time.monotonic() - began > waiting.LINK_LOCAL_TIME - 0.5, "a better one was waited for"


# -- What makes no sense, and what is seen on a terminal --


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["running paused"],
            "wait takes running, stopped, paused, addr, ssh or serial:REGEX, not 'running paused'",
        ),
        (["up"], "wait takes running, stopped, paused, addr, ssh or serial:REGEX, not 'up'"),
        (["serial"], "wait takes running, stopped, paused, addr, ssh or serial:REGEX, not 'serial'"),
        (
            ["serial:("],
            "'serial:(' is not a valid regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            ["serial:\x1b["],
            r"'serial:\x1b[' is not a valid regular expression: unterminated character set at position 1",
        ),
        (
            ["serial:x{99999999999}"],
            "'serial:x{99999999999}' is not a valid regular expression: the repetition number",
        ),
        (["running", "--since-start"], "--since-start applies to serial:REGEX, not to 'running'"),
        (["running", "--timeout", "-1"], "--timeout '-1' is not a number of seconds above 0"),
    ],
)
def test_what_cannot_be_waited_for_is_refused_before_any_call(words: list[str], message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        app.run(["--socket", "/nonexistent", "newvm", "wait", *words])
    assert caught.value.message.startswith(message)
    assert caught.value.message.isprintable()


def test_an_expression_that_python_warns_of_is_taken_without_a_word(daemon: Daemon) -> None:
    daemon.make("a0")
    result = daemon.vmess("a0", "wait", "serial:[[a]", "--timeout", "0.1")
    assert (result.returncode, result.stdout) == (6, "")
    assert result.stderr.startswith("vmess: timed out after 0.1 s: VM a0 has not printed '[[a]'\n")


def test_a_place_that_is_none_is_refused(daemon: Daemon) -> None:
    daemon.make(A)
    with Wire(daemon.socket) as wire:
        for since in ("", "now", "1:zz", "9" * 100 + ":00", "-1:", "\x1b"):
            reply = wire.call("Serial", {"vm": A, "since": since}, more=True)
            assert "is not a place in a serial log" in reply.get("parameters", {}).get("message", ""), (
                since,
                reply,
            )


def test_a_terminal_shows_what_is_waited_for_and_ctrl_c_ends_it(daemon: Daemon) -> None:
    daemon.make(A)
    daemon.make(B)
    with on_terminal(daemon, A, B, "wait", "running") as screen:
        for vm in (A, B):
            screen.expect(f"{vm}: is stopped, not running (0 s)")
        daemon.done(B, "start")
        screen.expect(f"{B}: running\r\n")
        screen.expect(f"\r\x1b[K{A}: is stopped, not running (")
        screen.type("\x03")
        assert screen.end() == 130
        assert screen.said.endswith("\r\x1b[K"), "the line is taken away"
    with on_terminal(daemon, "watch") as screen:
        screen.expect("watching all VMs, 2 now; Ctrl-C ends it\r\n")
        screen.type("\x03")
        assert screen.end() == 130
        assert "Traceback" not in screen.said


def test_a_client_that_is_killed_while_it_waits_leaves_no_trace(daemon: Daemon) -> None:
    daemon.make(A)
    for words in (["running"], ["serial:x"]):
        with wait(daemon, A, "wait", *words):
            pass
    daemon.done(A, "start")
    daemon.done(A, "stop", "force")
    nothing_unforeseen(daemon)


# -- Many --


def test_more_vms_than_can_be_asked_about_at_a_time_all_have_their_turn(daemon: Daemon) -> None:
    vms = [f"v{''.join('abcdefghij'[int(digit)] for digit in f'{number:03}')}0" for number in range(300)]
    for vm in vms:
        (daemon.root / vm).mkdir()
    daemon.make(A)
    with wait(daemon, "--all", "wait", "stopped", "--timeout", "60") as waiter:
        status, out, error = waiter.end(60)
    assert (status, error, sorted(out.splitlines())) == (0, "", sorted(f"{vm}: stopped" for vm in (A, *vms)))
    daemon.done(A, "start")
    daemon.wait_guest(A)
    for words in (["running"], ["serial:R", "--since-start"]):
        done = daemon.vmess(*vms[:100], A, "wait", *words, "--timeout", "4")
        assert done.stdout.startswith(f"{A}: "), "although all before it have to be waited for"
        assert "hung up" not in done.stderr
        assert re.search(f"VM (not running: )?{vms[99]}", done.stderr)


def test_as_many_are_asked_about_at_a_time_as_any_user_may() -> None:
    assert budgets.MEMBER.places[Cost.endless] > waiting.WAITS_MAX
    assert budgets.MEMBER.clients > 2 * start_stop.FOLLOWED_MAX


def test_a_question_that_is_put_to_a_daemon_that_is_gone_is_put_to_the_next(
    daemon: Daemon, capfd: pytest.CaptureFixture[str]
) -> None:
    daemon.make(A)
    line = grammar.parse(["--socket", str(daemon.socket), A, "addr"])
    stream = Stream(line, "Addresses", lambda: {"vm": A}, more=False)
    try:
        daemon.stop(signal.SIGKILL)
        stream.ask()
        assert stream.fileno() is None
        daemon.start()
        assert stream.news(ready=False) == []
        assert stream.fileno() is not None
    finally:
        stream.close()
    assert "vmessd is back" in capfd.readouterr().err
