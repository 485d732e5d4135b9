"""Consoles for other programs: over TCP, read-only, and typed on by a script, with real guests."""

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from consoles import VM as A
from consoles import running
from daemons import CLIENT, TESTS, UNIT, Daemon, own, wait_for
from sockets import received

from vmessctl.commands.console.tcp_ports import by_name

B = own("d")
GREETING = b"\xff\xfb\x01\xff\xfb\x03\xff\xfb\x00\xff\xfd\x00"


@contextlib.contextmanager
def listening(
    daemon: Daemon, *words: str, start: "Callable[..., subprocess.Popen[str]]" = Daemon.client
) -> "Iterator[tuple[list[int], subprocess.Popen[str]]]":
    """A client that serves consoles: their ports, and the process."""
    vms = [word for word in words if not word.startswith("-")] or ["--all"]
    count = 2 if vms == ["--all"] else len(vms)
    flags = [word for word in words if word.startswith("-") and word != "--all"]
    client = start(daemon, *vms, "console", "--listen=auto", *flags)
    try:
        assert client.stdout is not None
        lines = [client.stdout.readline() for _ in range(count)]
        yield [int(re.sub(r".*\D(\d+)\D*$", r"\1", line)) for line in lines], client
    finally:
        client.send_signal(signal.SIGINT)
        _, client.said = client.communicate(timeout=10 * UNIT)  # type: ignore[attr-defined]


@contextlib.contextmanager
def connected(port: int, *, plain: bool = False) -> Iterator[socket.socket]:
    """A client over TCP, past the greeting."""
    with socket.create_connection(("127.0.0.1", port), 10 * UNIT) as sock:
        if not plain:
            assert received(sock, len(GREETING)) == GREETING
        yield sock


def rest(sock: socket.socket) -> bytes:
    """All that comes until the end."""
    return received(sock, 1 << 20)


# -- Over TCP --


def test_a_console_is_served_by_telnet_and_the_next_client_has_it_after_the_first(daemon: Daemon) -> None:
    log = running(daemon)
    with listening(daemon, A) as ((port,), _):
        assert 20000 <= port < 32000
        for text in (b"one\r\n", b"two\r\0"):
            with connected(port) as sock:
                sock.sendall(b"\xff\xfd\x01" + text)
                assert received(sock, 4) == text[:4]
                with connected(port) as second:
                    refusal = rest(second).decode()
                    assert refusal.startswith(f"\r\nthe console of {A} is in use by uid {os.getuid()}, PID ")
            wait_for(
                lambda: daemon.vmess(A, "console", input="", stdin=None).returncode == 0, what="its release"
            )
    assert log.read_bytes() == b"Rone\rtwo\r"


PATIENT = (
    "import sys; from vmessctl import __main__; from vmessctl.commands.console import line; "
    "line.QUIET = 3.0; sys.exit(__main__.main())"
)


def patient(daemon: Daemon, *words: str) -> "subprocess.Popen[str]":
    """A client as that of :meth:`Daemon.client`, for which a guest is silent after three seconds."""
    return subprocess.Popen(
        [sys.executable, "-c", PATIENT, *words],
        env=daemon.environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_plain_bytes_pass_as_they_are_and_none_is_lost_by_a_client_that_closes_its_direction(
    daemon: Daemon,
) -> None:
    """Here, a guest that has no processor for a while is not silent."""
    running(daemon)
    much = bytes(range(256)) * 16
    with (
        listening(daemon, A, "--plain", start=patient) as ((port,), _),
        connected(port, plain=True) as sock,
    ):
        sock.sendall(much)
        sock.shutdown(socket.SHUT_WR)
        assert rest(sock) == much


def test_all_vms_have_stable_ports_and_one_that_is_off_says_so(daemon: Daemon) -> None:
    running(daemon)
    daemon.make(B)
    with listening(daemon, "--all", "--json") as (ports, _), connected(ports[0]) as sock:
        sock.sendall(b"x")
        assert received(sock, 1) == b"x"
        with connected(ports[1]) as other:
            assert rest(other).startswith(f"\r\nVM not running: {B}".encode())
        daemon.done(A, "stop", "force")
        assert rest(sock) == f"\r\nthe console of {A} has ended\r\n".encode()
    with listening(daemon, "--all") as (again, _):
        assert again == ports
    daemon.make(own("a"))  # before both by name
    with listening(daemon, B) as ((alone,), _):
        assert alone == ports[1]


def test_vms_whose_names_lead_to_one_port_are_not_served_there(daemon: Daemon) -> None:
    port = by_name([A], 20000)[A]
    twin = next(name for name in map("a{}-a".format, itertools.count()) if by_name([name], 20000)[name] == port)
    for vm in (A, B, twin):
        daemon.make(vm)
    pairs = ((A, twin), (twin, A))
    instead = []
    for one, other in pairs:
        result = daemon.vmessctl(one, "console", "--listen", "auto")
        assert (result.returncode, result.stdout) == (1, "")
        said, hint = result.stderr.splitlines()
        assert said == f"vmessctl: {one} is not served: its port {port} is that of {other} as well"
        line, _, free = hint.partition("=")
        assert line == f"  hint: a port of its own: vmessctl {one} console --listen"
        instead.append(int(free))
    assert len({port, by_name([B], 20000)[B], *instead}) == 4
    client = daemon.client("--all", "console", "--listen=auto")
    assert client.stdout is not None
    assert client.stdout.readline() == f"{B}: 127.0.0.1:{by_name([B], 20000)[B]}\n"
    client.send_signal(signal.SIGINT)
    _, said = client.communicate(timeout=10 * UNIT)
    assert said.count("is not served") == 2


def test_any_number_may_watch_a_console_that_somebody_has(daemon: Daemon) -> None:
    running(daemon)
    with (
        listening(daemon, A, "--read-only") as ((port,), _),
        daemon.client(A, "console", stdin=subprocess.PIPE) as user,
        contextlib.ExitStack() as stack,
    ):
        watchers = [stack.enter_context(connected(port)) for _ in range(3)]
        assert [received(watcher, 1) for watcher in watchers] == [b"R"] * 3
        watchers[0].sendall(b"not this")
        assert user.stdin is not None
        user.stdin.write("hello")
        user.stdin.close()
        assert [received(watcher, 5) for watcher in watchers] == [b"hello"] * 3
        daemon.done(A, "stop", "force")
        assert rest(watchers[0]) == b"\r\nforced off\r\n"


def test_c120_clients_that_misbehave_harm_neither_guest_nor_others(daemon: Daemon) -> None:
    log = running(daemon, "chatter")
    with listening(daemon, A) as ((port,), client):
        with socket.socket() as sock:  # it never reads, and the guest goes on
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", port))
            size = log.stat().st_size
            wait_for(lambda: log.stat().st_size > size + 600_000, 20, "output beyond all buffers")
            before = Path(f"/proc/{client.pid}/statm").read_text().split()[1]
            assert int(before) * 4096 < 60 << 20
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leaves by a reset
        for junk in (b"\xff", b"\xff\xfa\x1f\0", os.urandom(20_000), b"\xff\xf6" * 50_000):
            with contextlib.suppress(ConnectionError), connected(port) as sock:
                sock.sendall(junk)
        wait_for(lambda: b"ABCDEFG" in _some_output(port), what="a console as before")
    assert "dropped that it did not read" in client.said  # type: ignore[attr-defined]
    daemon.done(A, "stop", "force")


def _some_output(port: int) -> bytes:
    with connected(port) as sock:
        return received(sock, 200)


def test_a_port_that_is_taken_or_privileged_is_one_line(daemon: Daemon) -> None:
    daemon.make(A)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = daemon.vmessctl(A, "console", "--listen", str(port))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.splitlines()[0] == f"vmessctl: {A} is not served: port {port} on 127.0.0.1 is taken"
    result = daemon.vmessctl(own("nobody"), "console", "--listen", str(port))
    assert result.returncode == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="another account is entered as root")
def test_a_privileged_port_is_one_line(daemon: Daemon) -> None:
    daemon.make(A)
    code = (
        "import os, sys; from vmessctl import __main__; from vmessctl.commands.console import listen, modes;"
        "listen._known = lambda invocation: []; os.setuid(65534); sys.exit(__main__.main())"
    )
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
        if int(file.read()) <= 23:
            pytest.skip("no port is privileged here")
    result = daemon.vmess(A, "console", "--listen", "23", program=(sys.executable, "-c", code))
    assert result.returncode == 1
    assert "port 23 is privileged, and vmess" in result.stderr


def test_expect_of_debian_and_telnet_speak_to_it(daemon: Daemon) -> None:
    for program in ("expect", "telnet"):
        if not _has(program):
            pytest.skip(f"{program} is not installed")
    running(daemon, "prompt")
    script = """
        set timeout 10
        spawn telnet 127.0.0.1 $env(PORT)
        expect "Escape character"
        send "\\r"
        expect "# "
        send "show version\\r"
        expect -re "show version\\r\\n# " { exit 7 }
        exit 1
    """
    with listening(daemon, A) as ((port,), _):
        done = subprocess.run(
            ["expect", "-c", script],
            env={**os.environ, "PORT": str(port)},
            capture_output=True,
            timeout=30 * UNIT,
            check=False,
        )
    assert done.returncode == 7, done.stdout


@pytest.mark.long
def test_scrapli_speaks_to_it(daemon: Daemon) -> None:
    generic = pytest.importorskip("scrapli.driver.generic", reason="scrapli is not installed")
    running(daemon, "prompt")
    with (
        listening(daemon, A) as ((port,), _),
        generic.GenericDriver(
            host="127.0.0.1",
            port=port,
            transport="telnet",
            auth_bypass=True,
            comms_prompt_pattern=r"^# ?$",
            comms_return_char="\r",  # the guest knows no other end of a line
            timeout_ops=20 * UNIT,
        ) as router,
    ):
        assert router.get_prompt() == "#"
        for line in ("show version", "show interfaces"):
            reply = router.send_command(line)
            assert (reply.failed, reply.result) == (False, "")
    assert b"show version\r\n# show interfaces\r\n# " in Path(daemon.root, A, "serial.log").read_bytes()


@pytest.mark.long
async def test_telnetlib3_speaks_to_it(daemon: Daemon) -> None:
    telnetlib3 = pytest.importorskip("telnetlib3", reason="telnetlib3 is not installed")
    running(daemon, "prompt")
    with listening(daemon, A) as ((port,), _):
        reader, writer = await telnetlib3.open_connection("127.0.0.1", port, encoding="ascii")
        async with asyncio.timeout(20 * UNIT):
            writer.write("show version\r")
            said = ""
            while not said.endswith("show version\r\n# "):
                said += await reader.read(1)
        writer.close()
        await writer.wait_closed()


def _has(program: str) -> bool:
    return any(Path(place, program).exists() for place in os.get_exec_path())


# -- Read-only --


def test_a_watcher_sees_the_last_lines_and_what_comes_until_the_run_ends(daemon: Daemon) -> None:
    log = running(daemon)
    with log.open("ab") as file:
        file.write(b"\r\n" + b"".join(b"line %d\n" % number for number in range(3000)))
    with daemon.client(A, "console", "--read-only") as watcher:
        assert watcher.stdout is not None
        lines = [watcher.stdout.readline() for _ in range(500)]
        assert lines[0].startswith("line 2")
        daemon.vmess(A, "console", input="live\n", stdin=None)
        daemon.done(A, "stop", "force")
        out, said = watcher.communicate(timeout=10 * UNIT)
    assert watcher.returncode == 0
    assert out.endswith("live\n")
    assert said == f"{A}: read-only; Ctrl-C ends\n{A}: forced off\n"


# -- A script --


def test_c121_every_line_of_a_script_waits_for_its_prompt_and_none_is_lost(
    daemon: Daemon, tmp_path: Path
) -> None:
    log = running(daemon, "prompt")
    lines = [f"set interfaces ethernet eth{number} address 10.0.{number}.1/24 # core" for number in range(60)]
    script = tmp_path / "config"
    script.write_text("".join(f"{line}\r\n" for line in lines))
    words = ("console", f"--send={script}", "--expect=(R|# )$", "--rate=115200", "--timeout=20")
    result = daemon.vmess(A, *words)
    assert (result.returncode, result.stderr) == (0, "")
    everything = "R" + "".join(f"{line}\r\n# " for line in lines)
    wait_for(lambda: log.read_bytes().decode() == everything, what="all lines in the log")


def test_a_script_keeps_to_its_rate_and_says_what_a_prompt_that_does_not_come_left(
    daemon: Daemon, tmp_path: Path
) -> None:
    running(daemon)
    script = tmp_path / "config"
    script.write_text("x" * 119 + "\nthe second line\n")
    began = time.monotonic()
    result = daemon.vmess(
        A, "console", "--send", str(script), "--expect", "R|> $", "--rate", "2400", "--timeout", "1"
    )
    assert result.returncode == 6
    assert time.monotonic() - began > 1.4  # 120 characters at 240 a second, and the timeout
    assert result.stderr.splitlines()[0] == (
        f"vmess: {A}: the guest has not printed 'R|> $' within 1 s; 1 of 2 lines typed"
    )


def test_a_script_without_prompts_ends_when_the_guest_is_silent_or_off(daemon: Daemon) -> None:
    log = running(daemon)
    result = daemon.vmess(A, "console", "--send", "-", input="one\ntwo", stdin=None)
    assert (result.returncode, result.stdout, result.stderr) == (0, "one\ntwo\n", "")
    assert log.read_bytes() == b"Rone\rtwo\r"
    consoles = daemon.log.read_text().count(f"Console '{A}'")
    with daemon.client(A, "console", "--expect", "never") as waiting:
        wait_for(lambda: daemon.log.read_text().count(f"Console '{A}'") > consoles, what="the wait")
        daemon.done(A, "stop", "force")
        _, said = waiting.communicate(timeout=10 * UNIT)
    assert waiting.returncode == 1
    assert f"{A}: the console has ended" in said


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (("--send", "nothing-here"), 1, "nothing-here cannot be read: no such file or directory"),
        (("--expect", "("), 2, "'(' is not a valid regular expression"),
        (("--expect=",), 2, "--expect needs a regular expression"),
    ],
)
def test_a_script_that_is_wrong_types_nothing(
    daemon: Daemon, words: tuple[str, ...], status: int, why: str
) -> None:
    daemon.make(A)
    result = daemon.vmess(A, "console", *words)
    assert (result.returncode, result.stdout) == (status, "")
    assert why in result.stderr


# -- The escape key --


@pytest.mark.parametrize("by", ["option", "environment"])
def test_another_key_detaches_and_the_usual_one_is_the_guests(daemon: Daemon, by: str) -> None:
    running(daemon)
    flags = ["--escape", "^a"] if by == "option" else []
    variables = {**daemon.environment(), **({"VMESS_ESCAPE": "ctrl-a"} if by == "environment" else {})}
    child = pexpect.spawn(
        CLIENT[0], [*CLIENT[1:], A, "console", *flags], env=variables, cwd=str(TESTS.parent), timeout=10 * UNIT
    )
    with contextlib.closing(child):
        child.expect_exact("Ctrl-A detaches.]")
        child.send("\x1d")
        child.expect_exact("\x1d")
        child.send("\x01")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
