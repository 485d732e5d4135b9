"""The serial console: the real client on a pseudo-terminal, or as a pipe, with real guests."""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import guests
import pexpect
import pytest
from accounts import NOBODY, of_nobody
from consoles import VM as A
from consoles import running
from daemons import CLIENT, TESTS, UNIT, Daemon, a_qemu_that_hangs_is_told, wait_for

from vmessctl.client import Client
from vmessctl.commands.console.attached import MODES_END, SCREEN_END
from vmessctl.commands.console.delivery import Delivery

ESCAPE = "\x1d"
HERE = "Ctrl-] detaches.]"


@contextlib.contextmanager
def attached(daemon: Daemon, *words: str, wrapper: str = "exec") -> Iterator[Any]:
    """The client on a terminal of its own, attached to a console; the wrapper is a shell's."""
    command = shlex.join([*CLIENT, A, "console", *words])
    child = pexpect.spawn(
        "/bin/bash",
        ["-c", f"read -r; {wrapper} {command}"],
        env=daemon.environment(),
        cwd=str(TESTS.parent),
        timeout=10 * UNIT,
        dimensions=(24, 200),
    )
    try:
        before = modes(child)  # of a terminal that nobody has touched yet
        child.sendline()
        child.expect_exact(HERE)
        wait_for(lambda: modes(child) != before, what="raw mode")
        child.cooked = before
        yield child
    finally:
        child.close(force=True)


def modes(child: Any) -> list[Any]:
    """What stty(1) shows of a child's terminal."""
    return termios.tcgetattr(child.child_fd)[:4]


def ended(child: Any, said: str = "") -> Any:
    """Wait for the client's end, see that its terminal is as it was, and return its exit status."""
    child.expect(pexpect.EOF)
    restored = modes(child)
    child.wait()
    assert restored == child.cooked
    assert said in child.before.decode()
    return child.exitstatus if child.signalstatus is None else -child.signalstatus


@contextlib.contextmanager
def piped(
    daemon: Daemon, *words: str, program: tuple[str, ...] = ("-m", "vmessctl")
) -> "Iterator[subprocess.Popen[bytes]]":
    """The client without a terminal."""
    client = subprocess.Popen(
        [sys.executable, *program, A, "console", *words],
        env=daemon.environment(),
        cwd=TESTS.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield client
    finally:
        client.kill()
        client.wait(10 * UNIT)
        for stream in (client.stdin, client.stdout, client.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


@contextlib.contextmanager
def flooded(daemon: Daemon) -> "Iterator[subprocess.Popen[bytes]]":
    """The client as a pipe that nobody reads, attached to a guest that prints for ever."""
    with piped(daemon) as client:
        assert client.stdout is not None
        client.stdout.read(1)  # it is attached
        yield client


def grows(log: Path, seconds: float = 0.5) -> int:
    before = log.stat().st_size
    time.sleep(seconds)
    return log.stat().st_size - before


# -- On a terminal --


DRAWN = (
    (b"just here", "\r\n"),
    (b"\x1b[1mhere", f"{MODES_END}\r\n"),
    (b"\x1b[?2004h\x1b[?1003h\x1b[?25lhere", f"{MODES_END}\r\n"),
    (b"\x0ehere", f"{MODES_END}\r\n"),
    (b"\x1b[?1047hhere", SCREEN_END),
    (b"\x1b[5;5Hhere", SCREEN_END),
)
"""What a guest prints, and what is sent to the terminal at the end."""


def test_c69_what_the_guest_switched_on_is_switched_off_when_the_console_is_left(daemon: Daemon) -> None:
    running(daemon)
    for drawn, end in DRAWN:
        with attached(daemon) as child:
            child.send(drawn)
            child.expect_exact("here")
            child.send(ESCAPE)
            assert ended(child) == 0
            assert child.before.decode() == end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_c69_what_the_guest_switched_on_is_switched_off_by_a_signal_too(
    daemon: Daemon, number: signal.Signals
) -> None:
    running(daemon)
    with attached(daemon) as child:
        child.send(b"\x1b[31m\x1b[?1049hred")
        child.expect_exact("red")
        child.kill(number)
        assert ended(child) == -number
        assert child.before.decode() == SCREEN_END


def test_c69_a_pipe_leaves_a_terminal_as_it_was_and_sends_nothing_of_its_own_elsewhere(daemon: Daemon) -> None:
    running(daemon)
    command = f"printf '\\033[31mred' | {shlex.join([sys.executable, '-m', 'vmessctl', A, 'console'])}"
    shown = pexpect.run(f"sh -c {shlex.quote(command)}", env=daemon.environment(), cwd=str(TESTS.parent))
    assert shown.decode() == f"\x1b[31mred{MODES_END}"
    with piped(daemon) as client:
        out, _ = client.communicate(b"\x1b[31mred", timeout=10 * UNIT)
    assert out == b"\x1b[31mred"


def test_what_is_typed_reaches_the_guest_and_what_it_says_the_terminal(daemon: Daemon) -> None:
    running(daemon)
    with attached(daemon) as child:
        child.send("hello\x03\x1a\x00\xff")  # Ctrl-C and Ctrl-Z are the guest's, too
        child.expect_exact(b"hello\x03\x1a\x00")
        child.send(f"more{ESCAPE}not this")
        assert ended(child) == 0
    daemon.wait_guest(A, b"more")
    assert b"not" not in (daemon.root / A / "serial.log").read_bytes()


def test_the_history_of_this_run_comes_first_and_its_end_is_told(daemon: Daemon) -> None:
    running(daemon, "listener")
    with attached(daemon) as child:
        told = child.before.decode()
        assert re.search(rf"\[{A}: 31 bytes printed so far; all of it: vmess {A} console --log\]", told)
        assert (
            told.index("so far") < told.index("Ready. Press my power button.") < told.index("Live from here on")
        )
    daemon.done(A, "stop")
    daemon.done(A, "start")
    daemon.wait_guest(A, b"Good night.\r\nReady.")
    with attached(daemon) as child:
        assert "Good night" not in child.before.decode()


def test_of_a_long_history_the_end_is_shown_and_the_terminal_is_asked_nothing(daemon: Daemon) -> None:
    log = running(daemon, "idle")
    lines = b"".join(b"line %d\n" % number for number in range(5000))
    with log.open("ab") as file:
        file.write(lines + b"\x1b[31mred\x1b[6n\x1b[c\x1b]10;?\x07\x05\x1b[0m\n")
    with attached(daemon) as child:
        told = child.before
        assert b"the last 8.0K of " in told
        assert b"line 4999" in told
        assert b"line 1000" not in told
        assert b"\x1b[31mred\x1b[0m" in told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_the_terminal_is_as_before_after_a_signal(daemon: Daemon, number: signal.Signals) -> None:
    running(daemon)
    with attached(daemon) as child:
        child.kill(number)
        assert ended(child) == -number
    with attached(daemon):
        pass


def test_the_terminal_is_as_before_while_the_client_stands_still(daemon: Daemon) -> None:
    running(daemon)
    job = "trap 'echo it stands; read -r line; fg' CHLD; set -m;"
    with attached(daemon, wrapper=job) as child:
        raw = modes(child)
        holder = re.search(r"PID (\d+)", daemon.vmess(A, "console").stderr)
        assert holder
        os.kill(int(holder[1]), signal.SIGTSTP)
        child.expect_exact("it stands")
        assert modes(child) == child.cooked
        child.sendline()
        wait_for(lambda: modes(child) == raw, what="raw mode again")
        child.send("back")
        child.expect_exact("back")
        child.send(ESCAPE)
        wait_for(lambda: modes(child) == child.cooked, what="the terminal as it was")


def test_the_end_of_the_vm_ends_the_console(daemon: Daemon) -> None:
    running(daemon, "listener")
    with attached(daemon) as child:
        daemon.done(A, "stop")
        child.expect_exact("Good night.")
        assert ended(child, f"{A}: powered down as asked") == 0


def test_a_terminal_that_changes_its_size_does_no_harm(daemon: Daemon) -> None:
    running(daemon)
    with attached(daemon) as child:
        for rows in (1, 50, 24):
            child.setwinsize(rows, 80)
            child.kill(signal.SIGWINCH)
        child.send("still here")
        child.expect_exact("still here")
        child.send(ESCAPE)
        assert ended(child) == 0


def test_a_client_that_dies_leaves_the_console_free(daemon: Daemon) -> None:
    running(daemon)
    for _ in range(3):
        with attached(daemon) as child:
            child.kill(signal.SIGKILL)
            child.expect(pexpect.EOF)
    before = daemon.descriptors()
    for _ in range(10):
        with attached(daemon) as child:
            child.send(ESCAPE)
            child.expect(pexpect.EOF)
    wait_for(lambda: abs(daemon.descriptors() - before) <= 1, what="the descriptors' return")


# -- Who has it --


def test_a_second_console_is_refused_or_steals(daemon: Daemon) -> None:
    running(daemon)
    with attached(daemon) as first:
        result = daemon.vmess(A, "console")
        assert (result.returncode, result.stdout) == (7, "")
        assert result.stderr == (
            f"vmess: the console of {A} is in use by uid {os.getuid()}, PID {first.pid}\n"
            f"  hint: to take it over: vmess {A} console --steal\n"
        )
        with attached(daemon, "--steal") as second:
            taken = f"the console is no longer yours: it was taken over by uid {os.getuid()}, PID {second.pid}"
            assert ended(first, taken) == 7
            second.send("mine")
            second.expect_exact("mine")
            assert daemon.vmess(A, "console").returncode == 7
            second.send(ESCAPE)
            assert ended(second) == 0
    with attached(daemon) as third:
        third.send("next")
        third.expect_exact("next")


def test_a_console_outlives_the_daemon_and_is_refused_or_stolen_from_the_next(daemon: Daemon) -> None:
    running(daemon)
    with attached(daemon) as first:
        for number in (signal.SIGTERM, signal.SIGKILL):
            daemon.stop(number)
            first.send("alone")
            first.expect_exact("alone")
            daemon.start()
        result = daemon.vmess(A, "console")
        assert result.returncode == 7
        assert "a client that this vmessd did not attach" in result.stderr
        first.send("together")
        first.expect_exact("together")
        with attached(daemon, "--steal") as second:
            assert ended(first, "it was taken over") == 7
            second.send("mine")
            second.expect_exact("mine")


def test_whoever_went_past_the_daemon_counts_too(daemon: Daemon) -> None:
    running(daemon)
    with socket.socket(socket.AF_UNIX) as past, socket.socket(socket.AF_UNIX) as waiting:
        past.connect(str(daemon.root / A / "serial.sock"))
        waiting.connect(str(daemon.root / A / "serial.sock"))
        past.sendall(b"x")
        assert past.recv(1) == b"x"
        result = daemon.vmess(A, "console")
        assert result.returncode == 7
        with attached(daemon, "--steal") as thief:
            assert past.recv(1) == b""
            thief.send("mine")
            thief.expect_exact("mine")


def test_a_socket_that_was_removed_is_made_anew(daemon: Daemon) -> None:
    running(daemon)
    (daemon.root / A / "serial.sock").unlink()
    for _ in range(2):
        with attached(daemon) as child:
            child.send("through")
            child.expect_exact("through")
            child.send(ESCAPE)
            assert ended(child) == 0
    mode = (daemon.root / A / "serial.sock").stat().st_mode
    assert mode & 0o777 == 0o600
    assert not [name for name in os.listdir(daemon.root / A) if name.startswith(".vmess")]


def test_a_socket_of_somebody_else_is_replaced(daemon: Daemon) -> None:
    running(daemon)
    place = daemon.root / A / "serial.sock"
    place.unlink()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(place))
        foreign.listen()
        with attached(daemon) as child:
            child.send("through")
            child.expect_exact("through")


def test_everything_is_logged_whoever_has_the_console(daemon: Daemon) -> None:
    log = running(daemon)
    for word in ("one", "two", "three"):
        with attached(daemon, "--steal") as child:
            with attached(daemon, "--steal") as thief:
                thief.send(word)
                thief.expect_exact(word)
            child.expect(pexpect.EOF)
    daemon.stop()
    daemon.start()
    with attached(daemon) as child, attached(daemon, "--steal") as thief:
        thief.send("four")
        thief.expect_exact("four")
        child.expect(pexpect.EOF)
    assert log.read_bytes() == b"Ronetwothreefour"


@pytest.mark.qemu
@pytest.mark.xdist_group("relays")
@pytest.mark.skipif(os.geteuid() != 0, reason="another account is entered as root")
def test_a_qemu_of_another_account_gives_its_console_and_screen_away_too() -> None:
    with of_nobody() as daemon:
        daemon.done(A, "make")
        (daemon.directory / "echo.rom").write_bytes(guests.rom("echo"))
        (daemon.root / A / "EXARGS").write_text(f"-m 16M -bios {daemon.directory}/echo.rom")
        daemon.done(A, "start")
        daemon.wait_guest(A)
        assert os.stat(f"/proc/{daemon.status(A)['pid']}").st_uid == NOBODY.pw_uid
        for _ in range(2):
            with attached(daemon) as first, attached(daemon, "--steal") as thief:
                assert ended(first, "it was taken over") == 7
                thief.send("mine")
                thief.expect_exact("mine")
        assert daemon.done(A, "console", "--log") == "Rminemine"
        assert "-name" in daemon.done(A, "log")
        assert daemon.done(A, "vnc").startswith("Please VNC to ")


def test_who_lets_go_of_the_leash_alone_does_not_hold_up_the_guest(daemon: Daemon) -> None:
    log = running(daemon, "chatter")
    with contextlib.closing(Client([str(daemon.socket)])) as client:
        seat = client.call("Console", vm=A, steal=False)["console"]
        handed = client.descriptors(2)
    console, leash = handed[seat["console"]], handed[seat["leash"]]
    try:
        wait_for(lambda: not grows(log), what="a serial port that stands still")
        os.close(leash)
        wait_for(lambda: grows(log), what="a guest that goes on")
    finally:
        os.close(console)


# -- A guest that floods --


def test_c32_a_console_that_nobody_reads_stops_neither_guest_nor_daemon(daemon: Daemon) -> None:
    log = running(daemon, "chatter")
    with flooded(daemon) as client:
        assert grows(log), "the client reads, although nobody reads it"
        os.kill(client.pid, signal.SIGSTOP)
        wait_for(lambda: not grows(log), what="the serial port's standstill")
        began = time.monotonic()
        assert daemon.status(A)["state"] == "running"
        assert time.monotonic() - began < 3
        wait_for(lambda: grows(log), 10, "the end of it")
        os.kill(client.pid, signal.SIGCONT)
        out, said = client.communicate(timeout=10 * UNIT)
    assert client.returncode == 1
    assert b"it was not read, so the serial port of the guest was blocked" in said
    assert b"!\"#$%&'()" in out
    assert ": it was not read, so the serial port of the guest was blocked" in daemon.log.read_text()
    daemon.done(A, "stop", "force")


def test_a_console_that_stands_still_can_be_stolen(daemon: Daemon) -> None:
    log = running(daemon, "chatter")
    with flooded(daemon) as client:
        os.kill(client.pid, signal.SIGSTOP)
        wait_for(lambda: not grows(log, 0.1), what="the serial port's standstill")
        with attached(daemon, "--steal") as thief:
            thief.expect_exact("ABCDEFG")
            assert grows(log)
        assert grows(log)


def test_a_terminal_that_takes_nothing_can_be_left(daemon: Daemon) -> None:
    log = running(daemon, "chatter")
    with attached(daemon) as child:
        time.sleep(5)  # more than a terminal holds, and than the daemon is patient
        assert grows(log), "the client reads, although its terminal does not"
        child.send(ESCAPE)
        wait_for(lambda: modes(child) == child.cooked, what="the terminal as it was")
    with attached(daemon):
        pass


# -- As a pipe --


def test_without_a_terminal_it_is_a_pipe(daemon: Daemon) -> None:
    running(daemon)
    with piped(daemon) as client:
        out, said = client.communicate(b"data in" + ESCAPE.encode() + b"\n", timeout=10 * UNIT)
    assert (client.returncode, out, said) == (0, b"data in\x1d\n", b"")
    with piped(daemon) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for word in (b"one", b"two"):
            client.stdin.write(word)
            client.stdin.flush()
            assert client.stdout.read(3) == word
        daemon.done(A, "stop", "force")
        out, said = client.communicate(timeout=10 * UNIT)
    assert (client.returncode, out) == (0, b"")
    assert said.startswith(f"{A}: ".encode())


def test_more_than_fits_goes_through_a_pipe(daemon: Daemon) -> None:
    running(daemon)
    much = os.urandom(8_000)
    with piped(daemon) as client:
        out, _ = client.communicate(much, timeout=60 * UNIT)
    assert client.returncode == 0
    assert out == much


def told(text: bytes) -> str:
    """What the client said, without the hints."""
    return "".join(line for line in text.decode().splitlines(keepends=True) if not line.startswith("  hint: "))


INPUT = b"more than a serial port takes when nobody reads it"
IMPATIENT = (
    "import sys; from vmessctl import __main__; from vmessctl.commands.console import attached; "
    "attached.REMARK_TIME = 0.3; sys.exit(__main__.main())"
)


@contextlib.contextmanager
def waiting(daemon: Daemon, *words: str, end: bool = False) -> "Iterator[subprocess.Popen[bytes]]":
    """The client as a pipe whose input is not taken, when it has said so; the input may have its end."""
    with piped(daemon, *words, program=("-c", IMPATIENT)) as client:
        assert client.stdin is not None
        assert client.stderr is not None
        client.stdin.write(INPUT)
        client.stdin.flush()
        if end:
            client.stdin.close()
            client.stdin = None
        remark = client.stderr.readline().decode()
        waits = f"vmess: {A}: QEMU took [01] of {len(INPUT)} bytes of the input; waiting for the guest to take"
        assert re.match(waits, remark)
        yield client


def test_c58_a_pipe_waits_for_a_guest_that_takes_nothing_yet(daemon: Daemon) -> None:
    running(daemon)
    daemon.done(A, "suspend")
    with waiting(daemon, end=True) as client:
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(2)  # more than a guest has to be quiet that has taken all
        daemon.done(A, "resume")
        out, said = client.communicate(timeout=20 * UNIT)
    assert (client.returncode, out, said) == (0, INPUT, b"")


def test_c58_a_pipe_waits_as_long_as_it_is_told_and_counts_what_was_taken(daemon: Daemon) -> None:
    running(daemon)
    daemon.done(A, "suspend")
    with piped(daemon, "--timeout", "0.5") as client:
        out, said = client.communicate(INPUT, timeout=10 * UNIT)
    assert (client.returncode, out) == (6, b"")
    taken = f"QEMU took 1 of {len(INPUT)} bytes of the input, and no more within 0.5 s"
    assert told(said) == f"vmessctl: {A}: {taken}\n"
    daemon.done(A, "resume")
    daemon.wait_guest(A, INPUT[:1])
    assert (daemon.root / A / "serial.log").read_bytes() == b"R" + INPUT[:1]


def test_c58_a_guest_that_takes_all_and_is_quiet_is_never_late(daemon: Daemon) -> None:
    running(daemon)
    with piped(daemon, "--timeout", "0.3") as client:
        out, said = client.communicate(INPUT, timeout=10 * UNIT)
    assert (client.returncode, out, said) == (0, INPUT, b"")


def test_c58_an_input_that_does_not_end_is_given_up_in_time_too(daemon: Daemon) -> None:
    running(daemon, "idle")
    with piped(daemon, "--timeout", "0.5") as client:
        assert client.stdin is not None
        client.stdin.write(INPUT)
        client.stdin.flush()
        assert client.wait(10 * UNIT) == 6


def test_c58_what_was_not_taken_is_counted_where_the_console_is_taken_over(daemon: Daemon) -> None:
    running(daemon)
    daemon.done(A, "suspend")
    with waiting(daemon) as client, attached(daemon, "--steal"):
        out, said = client.communicate(timeout=10 * UNIT)
    assert (client.returncode, out) == (7, b"")
    taken, count = told(said).splitlines()
    assert taken.startswith(f"vmess: {A}: the console is no longer yours: it was taken over by uid")
    assert count == f"vmess: {A}: QEMU took at least 1 of {len(INPUT)} bytes of the input"


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [("Ctrl-C", 130, ""), ("stop force", 1, f"{A}: forced off\n")],
    ids=("Ctrl-C", "stop force"),
)
def test_c58_what_was_not_taken_is_counted_however_it_ends(
    daemon: Daemon, end: str, status: int, reason: str
) -> None:
    running(daemon)
    daemon.done(A, "suspend")
    with waiting(daemon, end=True) as client:
        if end == "Ctrl-C":
            client.send_signal(signal.SIGINT)
        else:
            daemon.done(A, *end.split())
        out, said = client.communicate(timeout=10 * UNIT)
    assert (client.returncode, out) == (status, b"")
    count = rf"vmess: {A}: QEMU took (at least )?1 of {len(INPUT)} bytes of the input\n"
    assert re.fullmatch(reason + count, told(said))


def test_c58_what_was_not_taken_is_counted_where_the_reader_has_had_enough(daemon: Daemon) -> None:
    running(daemon, "chatter")
    with piped(daemon) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stderr is not None
        client.stdin.write(INPUT)
        client.stdin.flush()
        client.stdout.read(1)
        client.stdout.close()
        assert client.wait(10 * UNIT) == 141
        assert re.search(f"QEMU took [01] of {len(INPUT)} bytes", client.stderr.read().decode())


def test_c58_a_pipe_without_input_shows_what_comes_and_ends(daemon: Daemon) -> None:
    running(daemon)
    daemon.done(A, "suspend")
    with piped(daemon) as client:
        assert client.communicate(b"", timeout=10 * UNIT) == (b"", b"")
    assert client.returncode == 0
    daemon.done(A, "stop", "force")
    (daemon.root / A / "EXARGS").write_text(f"-bios {daemon.directory}/chatter.rom")
    (daemon.directory / "chatter.rom").write_bytes(guests.rom("chatter"))
    daemon.done(A, "start")
    with piped(daemon, "--timeout", "1.5") as client:
        out, said = client.communicate(b"", timeout=10 * UNIT)
    assert client.returncode == 6
    assert b"!\"#$%&'()" in out
    assert "the guest was still printing after 1.5 s" in told(said)


def test_c58_all_is_delivered_where_the_output_was_closed(daemon: Daemon) -> None:
    log = running(daemon)
    command = f"exec {shlex.join([sys.executable, '-m', 'vmessctl', A, 'console'])} >&-"
    done = subprocess.run(
        ["sh", "-c", command],
        input=INPUT,
        env=daemon.environment(),
        cwd=TESTS.parent,
        capture_output=True,
        check=False,
        timeout=20 * UNIT,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert log.read_bytes() == b"R" + INPUT


@pytest.mark.long
@pytest.mark.timeout(700)
def test_c58_a_megabyte_goes_there_and_back(daemon: Daemon) -> None:
    running(daemon)
    much = os.urandom(1 << 20)
    with piped(daemon) as client:
        out, said = client.communicate(much, timeout=600 * UNIT)
    assert (client.returncode, said) == (0, b"")
    assert out == much


def test_c58_bytes_are_counted_as_they_are_read() -> None:
    def delivered() -> tuple[Delivery, socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        return Delivery(ours.fileno()), ours, theirs

    delivery, ours, theirs = delivered()
    with ours, theirs:
        much = os.urandom(5000)
        delivery.put(much)
        delivery.send()
        assert 0 < delivery.unsent < 5000
        got = b""
        for size in (1, 7, 16, 100):
            got += theirs.recv(size)
            delivery.look()
            assert (delivery.taken, delivery.left, delivery.given) == (len(got), 5000 - len(got), 5000)
        while len(got) < 5000:
            delivery.send()
            got += theirs.recv(100)
        delivery.look()
        assert (got, delivery.taken, delivery.left) == (much, 5000, 0)
    for read, count in ((3, "3 of 3"), (2, "at least 0 of 3")):
        delivery, ours, theirs = delivered()
        with ours:
            delivery.put(b"xyz")
            delivery.send()
            theirs.recv(read)
            theirs.close()
            delivery.look()
            try:
                assert ours.recv(1) == b""
            except ConnectionResetError as error:
                delivery.hung_up(error)
            delivery.look()
            assert delivery.count() == f"{count} bytes of the input"


def test_a_time_limit_is_for_pipes(daemon: Daemon) -> None:
    running(daemon)
    for words, said in (
        (("--log", "--timeout", "1"), "--timeout cannot be used with --log"),
        (("--timeout", "0"), "--timeout '0' is not a number of seconds above 0"),
    ):
        result = daemon.vmess(A, "console", *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.startswith(f"vmess: {said}\n")
    command = shlex.join([*CLIENT, A, "console", "--timeout", "1"])
    shown, status = pexpect.run(command, env=daemon.environment(), cwd=str(TESTS.parent), withexitstatus=True)
    assert status == 2
    assert b"--timeout is for input from a pipe or a file" in shown


def test_a_reader_that_has_had_enough_ends_the_console(daemon: Daemon) -> None:
    running(daemon, "chatter")
    with flooded(daemon) as client:
        assert client.stdout is not None
        client.stdout.close()
        assert client.wait(10 * UNIT) == 141
    with attached(daemon):
        pass


# -- What cannot be --


def test_a_guest_that_writes_nothing_to_its_serial_port_is_said_to_and_has_a_screen(daemon: Daemon) -> None:
    daemon.make(A, "mute")
    daemon.done(A, "start")
    silent = f"{A}: the guest has written nothing to its serial port yet; its screen: vmess {A} vnc"
    with attached(daemon) as child:
        assert child.before.decode().endswith(f"[{silent}. ")
        child.send(ESCAPE)
        assert ended(child) == 0
    with piped(daemon) as client:
        assert client.communicate(b"", timeout=10 * UNIT) == (
            b"",
            f"{silent}\n".replace("vmess ", "vmessctl ").encode(),
        )
    log = daemon.vmess(A, "console", "--log")
    assert (log.returncode, log.stdout, log.stderr) == (0, "", f"{silent}\n")
    daemon.done(A, "kill")
    log = daemon.vmess(A, "console", "--log")
    was = f"{A}: the guest has written nothing to its serial port since its last start\n"
    assert (log.returncode, log.stdout, log.stderr) == (0, "", was)
    assert daemon.vmess(A, "log").stderr == ""


def test_a_vm_that_is_off_has_no_console(daemon: Daemon) -> None:
    daemon.make(A)
    result = daemon.vmess(A, "console")
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.splitlines() == [
        f"vmess: VM not running: {A}",
        f"  hint: vmess {A} start; to see what it printed: vmess {A} console --log",
    ]
    assert daemon.vmess("nobody", "console").returncode == 4
    for words, status in ((("-f",), 2), (("--json",), 2), (("x",), 2)):
        assert daemon.vmess(A, "console", *words).returncode == status


def test_a_qemu_without_a_serial_console_or_that_is_silent_is_refused(fake_daemon: Daemon) -> None:
    fake_daemon.make_fake(A, "good")
    fake_daemon.done(A, "start")
    result = fake_daemon.vmess(A, "console")
    assert result.returncode == 1
    assert result.stderr.startswith(f"vmess: QEMU of {A} does not describe its serial port: ")
    a_qemu_that_hangs_is_told(fake_daemon, A, "console")
