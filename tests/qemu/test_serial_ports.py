"""Several serial ports of a VM: each has a console and a log of its own."""

import os
import subprocess

import pytest
from daemons import UNIT, Daemon, own, wait_for

A = own("c")


def with_two(daemon: Daemon) -> None:
    """Start a VM whose guest prints `R` on both ports, and prints what it reads on the second one."""
    daemon.make(A, "echo2")
    daemon.done(A, "serial", "2")
    daemon.done(A, "start")
    log = daemon.root / A / "serial2.log"
    wait_for(lambda: log.exists() and log.read_bytes() == b"R", what="the guest")


def test_each_port_has_a_console_and_a_log(daemon: Daemon) -> None:
    with_two(daemon)
    with daemon.client(A, "console", stdin=subprocess.PIPE) as first:
        said = daemon.vmess(A, "console", "2", input="hello", stdin=None)
        assert (said.returncode, said.stdout, said.stderr) == (0, "hello", "")
        with daemon.client(A, "console", "2", stdin=subprocess.PIPE) as second:
            assert second.stdin is not None
            assert second.stdout is not None
            second.stdin.write("x")
            second.stdin.flush()
            assert second.stdout.read(1) == "x"
            refused = daemon.vmess(A, "console", "2").stderr
            assert refused.startswith(f"vmess: the console 2 of {A} is in use by uid {os.getuid()}, PID ")
            assert refused.endswith(f"  hint: to take it over: vmess {A} console 2 --steal\n")
            assert daemon.vmess(A, "console", "2", "--steal").returncode == 0
            assert second.wait(10 * UNIT) == 7
        assert first.poll() is None
        first.kill()
    assert daemon.done(A, "console", "2", "--log") == "Rhellox"
    assert daemon.done(A, "console", "--log") == "R"
    for name in ("serial", "serial2"):
        assert (daemon.root / A / f"{name}.sock").stat().st_mode & 0o777 == 0o600


def test_the_log_of_a_port_begins_with_the_last_start_and_a_daemon_that_comes_back_knows_it(
    daemon: Daemon,
) -> None:
    with_two(daemon)
    daemon.vmess(A, "console", "2", input="before", stdin=None)
    daemon.done(A, "stop", "force")
    assert not list((daemon.root / A).glob("serial*.sock"))
    daemon.done(A, "start")
    wait_for(lambda: daemon.done(A, "console", "2", "--log") == "R", what="the second run")
    daemon.stop()
    daemon.start()
    assert daemon.vmess(A, "console", "2", input="after", stdin=None).stdout == "after"
    assert daemon.done(A, "console", "2", "--log") == "Rafter"
    with daemon.client(A, "console", "2", "--read-only") as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.read(6) == "Rafter"
        daemon.done(A, "stop", "force")
        assert watcher.wait(10 * UNIT) == 0


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        (("console", "3"), 1, "has no serial port 3"),
        (("console", "4"), 2, "serial port '4' is not one of 1, 2, 3"),
        (("serial", "4"), 2, "SERIAL '4' is not a number of serial ports from 1 to 3"),
    ],
)
def test_a_port_that_is_not_there_is_one_line(
    daemon: Daemon, words: tuple[str, ...], status: int, why: str
) -> None:
    with_two(daemon)
    result = daemon.vmess(A, *words)
    assert (result.returncode, result.stdout) == (status, "")
    assert result.stderr.splitlines()[0].endswith(why)
