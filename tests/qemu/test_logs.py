"""What a VM printed since its last start: `console --log` and `log`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pexpect
import pytest
from daemons import CLIENT, TESTS, UNIT, Daemon, own, wait_for

from vmessctl.commands.logs import escaped, plain
from vmessd.core.accelerators import Accelerator
from vmessd.core.errors import BadFile, InvalidValue, NotRunning
from vmessd.core.records import Moment, RunRecord
from vmessd.storage import logs, serial_stream
from vmessd.storage.logs import LogName
from vmessd.storage.vmdir import VMDirectory

A = own("l")


def run(daemon: Daemon, guest: str = "listener", **files: str) -> Path:
    """Start a VM, wait for its words, stop it; return its directory."""
    directory = daemon.make(A, guest, **files)
    daemon.done(A, "start")
    daemon.wait_guest(A)
    daemon.done(A, "stop")
    return directory


def test_what_the_last_run_printed_is_shown_also_when_it_is_over(daemon: Daemon) -> None:
    run(daemon)
    both = "Ready. Press my power button.\nGood night.\n"
    assert daemon.done(A, "console", "--log") == both
    daemon.done(A, "start")
    wait_for(lambda: daemon.done(A, "console", "--log") == "Ready. Press my power button.\n", what="a new run")
    daemon.stop()
    daemon.start()
    assert daemon.done(A, "console", "--log") == "Ready. Press my power button.\n"
    daemon.done(A, "stop")
    daemon.stop()
    daemon.start()
    assert daemon.done(A, "console", "--log") == both
    lines = [json.loads(line) for line in daemon.done(A, "console", "--log", "--json").splitlines()]
    assert lines == [{"line": "Ready. Press my power button."}, {"line": "Good night."}]


def test_qemu_s_words_begin_with_its_command_line(daemon: Daemon) -> None:
    directory = run(daemon)
    daemon.done(A, "start")
    with (directory / "qemu.log").open("a") as log:
        log.write("qemu-system-x86_64: warning: \x1b[31m-name x -nodefaults\n")
    told = daemon.done(A, "log")
    command = json.loads(daemon.done(A, "info", "--json"))["info"]["command"]
    assert told.startswith(" ".join(command[:5]))
    assert told.endswith("-name x -nodefaults\n")
    assert len(told.splitlines()) == 2
    daemon.done(A, "stop")
    assert daemon.done(A, "log") == told


def test_a_vm_that_never_ran_has_no_log(daemon: Daemon) -> None:
    daemon.make(A)
    for words, name in ((("console", "--log"), "serial.log"), (("log",), "qemu.log")):
        result = daemon.vmess(A, *words)
        assert (result.returncode, result.stdout) == (3, "")
        assert result.stderr == f"vmess: VM {A} has never run: there is no {name}\n  hint: vmess {A} start\n"
    assert daemon.vmess("nobody", "log").returncode == 4


def test_a_log_that_is_a_link_is_not_followed(daemon: Daemon) -> None:
    (daemon.make(A) / "serial.log").symlink_to("/etc/hostname")
    result = daemon.vmess(A, "console", "--log")
    assert (result.returncode, result.stdout) == (1, "")
    assert "is a symbolic link" in result.stderr


class Follower:
    """A client that follows a log."""

    def __init__(self, daemon: Daemon, *words: str) -> None:
        self.process = subprocess.Popen(
            [*CLIENT, A, *words, "-f"],
            env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
            cwd=TESTS.parent,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def has_said(self, text: str) -> bool:
        assert self.process.stdout is not None
        self.said += (self.process.stdout.read() or b"").decode().replace("\r\n", "\n")
        return text in self.said

    def wait(self, text: str) -> None:
        wait_for(lambda: self.has_said(text), 10, f"{text!r}")


def test_a_log_is_followed_also_into_the_next_run(daemon: Daemon) -> None:
    run(daemon)
    with Follower(daemon, "console", "--log") as follower:
        follower.wait("Good night.\n")
        daemon.done(A, "start")
        follower.wait("Good night.\nReady. Press my power button.\n")
        daemon.stop()
        daemon.start()
        daemon.done(A, "stop")
        follower.wait("button.\nGood night.\n")
        daemon.done(A, "rm", "--yes")
        assert follower.process.wait(10 * UNIT) == 0


def shorten(log: Path, keep: int) -> None:
    """Do what keeps logs short: their front moves to `<log>.1`, and what is left begins the log."""
    data = log.read_bytes()
    log.with_name(f"{log.name}.1").write_bytes(data[: len(data) - keep])
    with log.open("r+b") as file:
        file.write(data[len(data) - keep :])
        file.truncate(keep)


@pytest.mark.parametrize("keep", [0, 50, 500])
def test_nothing_is_missed_and_nothing_shown_twice_where_a_log_loses_its_front(
    daemon: Daemon, keep: int
) -> None:
    log = run(daemon) / "serial.log"
    wanted = log.read_text()
    with Follower(daemon, "console", "--log") as follower:
        follower.wait("Good night.\n")
        for turn in range(3):
            more = "".join(f"{turn}: line {number}\n" for number in range(100))
            with log.open("a") as file:
                file.write(more)
            wanted += more
            follower.wait(f"{turn}: line 99\n")
            shorten(log, keep)
            late = f"{turn}: afterwards\n"
            with log.open("a") as file:
                file.write(late)
            wanted += late
            follower.wait(late)
        assert follower.said == wanted.replace("\r\n", "\n")


def test_both_parts_of_a_log_are_shown_as_one(daemon: Daemon) -> None:
    log = run(daemon) / "serial.log"
    for keep in (0, 5, 41):
        data = log.read_bytes()
        shorten(log, keep)
        assert daemon.done(A, "console", "--log") == "Ready. Press my power button.\nGood night.\n"
        log.with_name("serial.log.1").unlink()
        log.write_bytes(data)


def test_a_line_that_does_not_end_comes_in_parts_as_json(daemon: Daemon) -> None:
    with (run(daemon) / "serial.log").open("ab") as log:
        log.write(b"a" * (3 << 20))
    shown = daemon.done(A, "console", "--log", "--json").splitlines()
    lines = [json.loads(line)["line"] for line in shown[2:]]
    assert "".join(lines) == "a" * (3 << 20)
    assert max(map(len, lines)) < 2 << 20


def on_terminal(daemon: Daemon, *words: str) -> bytes:
    """Return what the client shows on a terminal."""
    child: Any = pexpect.spawn(
        sys.executable,
        ["-m", "vmessctl", A, *words],
        env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
        cwd=str(TESTS.parent),
        timeout=10 * UNIT,
    )
    child.expect(pexpect.EOF)
    shown: bytes = child.before
    child.close()
    assert child.exitstatus == 0
    return shown


def test_a_terminal_gets_colours_and_nothing_else_that_it_would_obey(daemon: Daemon) -> None:
    directory = run(daemon)
    nasty = "\x1b[31mred\x1b[0m\x1b[2J\x1b[6n\x1b]0;title\x07\x9b31m\xe9\x07\n"
    for name in ("serial.log", "qemu.log"):
        with (directory / name).open("a") as log:
            log.write(nasty)
    assert on_terminal(daemon, "console", "--log").endswith("\x1b[31mred\x1b[0m31m\xe9\r\n".encode())
    assert on_terminal(daemon, "log").endswith(
        rb"\x1b[31mred\x1b[0m\x1b[2J\x1b[6n\x1b]0;title\x07\x9b31m" + "\xe9".encode() + b"\\x07\r\n"
    )
    assert daemon.done(A, "console", "--log").endswith(nasty)


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[1;31mred", "\x1b[1;31mred\x1b[0m"),
        ("\x1b[31mred\x1b[0mplain", "\x1b[31mred\x1b[0mplain"),
        ("\x1b[31mred\x1b[0;1mbold", "\x1b[31mred\x1b[0;1mbold\x1b[0m"),
        ("\x1b[?1049h\x1b[?25l\x1b[?2004h\x0eplain", "plain"),
    ],
)
def test_c69_a_log_leaves_no_colour_behind(daemon: Daemon, printed: str, shown: str) -> None:
    log = run(daemon) / "serial.log"
    before = on_terminal(daemon, "console", "--log").decode()
    with log.open("a") as file:
        file.write(printed)
    assert on_terminal(daemon, "console", "--log").decode() == before + shown
    assert daemon.done(A, "console", "--log").endswith(printed)  # elsewhere it is what it is


def test_c69_a_log_that_is_followed_has_left_its_colour_before_ctrl_c(daemon: Daemon) -> None:
    log = run(daemon) / "serial.log"
    child: Any = pexpect.spawn(
        sys.executable,
        ["-m", "vmessctl", A, "console", "--log", "-f"],
        env={**os.environ, "VMESS_SOCKET": str(daemon.socket)},
        cwd=str(TESTS.parent),
        timeout=10 * UNIT,
        echo=False,
    )
    try:
        child.expect_exact("Good night.\r\r\n")
        for printed, shown in (
            ("\x1b[31mred", "\x1b[31mred\x1b[0m"),
            (" goes on", "\x1b[31m goes on\x1b[0m"),
            ("\x1b[1m, bold", "\x1b[31m\x1b[1m, bold\x1b[0m"),
            ("\x1b[m, plain", "\x1b[31m\x1b[1m\x1b[m, plain"),
            (" goes on", " goes on"),
        ):
            with log.open("a") as file:
                file.write(printed)
            child.expect_exact(shown)
            assert child.before == b""
        child.sendintr()
        child.expect(pexpect.EOF)
        assert child.before == b""
    finally:
        child.close()
    assert child.exitstatus == 130


def test_a_reader_that_has_had_enough_ends_it(daemon: Daemon) -> None:
    daemon.make(A, "chatter")
    daemon.done(A, "start")
    command = [*CLIENT, A, "console", "--log", "-f"]
    environment = {**os.environ, "VMESS_SOCKET": str(daemon.socket)}
    with subprocess.Popen(command, env=environment, cwd=TESTS.parent, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        client.stdout.read(1000)
        client.stdout.close()
        assert client.wait(10 * UNIT) == 141


# -- Pure --


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("text\twith\r\nlines\b", "text\twith\r\nlines\b"),
        ("\x1b[1;32mOK\x1b[m", "\x1b[1;32mOK\x1b[m"),
        ("\x1b[2J\x1b[H\x1b[?25l\x1b[>c\x1b[5 q", ""),
        ("\x1b]0;title\x1b\\a\x1bPq...\x1b\\b\x1b_x\x07c", "abc"),
        ("\x1bc\x1b7\x1b(B\x1b=\x0e\x05\x00", ""),
        ("\u202eevil\x85\x9b2J", "evil2J"),
    ],
)
def test_what_a_terminal_would_obey_is_left_out(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert escaped("a\x1b[2Jb\nc\r\n") == "a\\x1b[2Jb\nc\\r\n"


def directory_with(tmp_path: Path, older: bytes | None, log: bytes) -> VMDirectory:
    directory = VMDirectory(tmp_path, "newvm0")
    directory.path.mkdir(exist_ok=True)
    (directory.path / "serial.log").write_bytes(log)
    if older is not None:
        (directory.path / "serial.log.1").write_bytes(older)
    return directory


def record(serial: str) -> RunRecord:
    return RunRecord(1, 1, 1, Accelerator.tcg, [], Moment.now(), serial=serial)


def test_a_run_s_beginning_is_found_wherever_it_went(tmp_path: Path) -> None:
    before, after = os.urandom(1000), os.urandom(1000)
    mark = str(serial_stream.end(directory_with(tmp_path, None, before)))
    whole = before + after
    for cut in (0, 500, 999, 1000, 1001, 1900, 2000):
        directory = directory_with(tmp_path, whole[:cut], whole[cut:])
        with logs.open_log(directory, LogName.serial, record(mark)) as found:
            assert found.read(found.begin, found.size) == after
            assert found.tail(100_000) == after
    (directory.path / "serial.log.1").unlink()
    directory = directory_with(tmp_path, None, after[100:])
    with logs.open_log(directory, LogName.serial, record(mark)) as found:
        assert found.read(found.begin, found.size) == after[100:], "what there is, where the beginning is gone"


@pytest.mark.parametrize("mark", ["", "nonsense", "-5:", "99999999999:00", "0:"])
def test_without_a_place_all_counts(tmp_path: Path, mark: str) -> None:
    with logs.open_log(directory_with(tmp_path, b"a\n", b"b\n"), LogName.serial, record(mark)) as found:
        assert (found.begin, found.size, found.read(0, 4)) == (0, 4, b"a\nb\n")
        assert found.tail(3) == b"b\n"


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    directory = directory_with(tmp_path, None, b"")
    with pytest.raises(NotRunning):
        logs.open_log(directory, LogName.qemu, None)
    (directory.path / "serial.log.1").symlink_to("/etc/hostname")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BadFile):
        logs.open_log(directory, LogName.serial, None)
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(InvalidValue):
        LogName.parse("x")
