"""The command line as a person meets it: words, output, exit status, on a terminal and off it."""

import contextlib
import errno
import json
import os
import re
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
from daemons import CLIENT, TESTS, UNIT, Daemon, own
from terminals import on_terminal

from vmessctl import app, client
from vmessctl.cli import helptext
from vmessctl.output import terminal
from vmessd import __version__
from vmessd.core.errors import Failed, NoSuchVM, VmessError

qemu = pytest.mark.qemu


A, B = own("a"), own("b")


# The program


def vmessctl(*words: str, **run: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "VMESS_SOCKET": "/nonexistent/control.sock", **run.pop("env", {})}
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **run}
    argv = [*CLIENT, *words]
    return subprocess.run(
        argv, env=environment, text=True, check=False, timeout=30 * UNIT, cwd=TESTS.parent, **options
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
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30 * UNIT)
    assert done.stdout.split()[1] == __version__


def test_no_daemon_is_one_line_and_what_to_do(tmp_path: Path) -> None:
    for words in ([], ["newvm", "status"], ["newvm", "start"], ["newvm", "stop"], ["newvm", "info"]):
        result = vmessctl(*words)
        assert (result.returncode, result.stdout) == (5, "")
        assert result.stderr.splitlines() == [
            "vmess: no vmessd answers (/nonexistent/control.sock: no such file or directory)",
            "  hint: start one on this socket: vmessd --background --socket /nonexistent/control.sock",
        ]
    place = tmp_path / "runtime\x1b"
    place.mkdir()
    every = vmessctl("--no-daemon", env={"VMESS_SOCKET": "", "XDG_RUNTIME_DIR": str(place)})
    assert every.returncode == 5
    complaint, hint = every.stderr.splitlines()
    assert f"({tmp_path}/runtime\\x1b/vmess/control.sock: no such file or directory; /tmp/vmess-" in complaint
    assert "; /run/vmess/control.sock: no such file or directory)" in complaint
    assert (
        hint == "  hint: start your own with: vmessd --background; or the host's with: systemctl start vmessd"
    )


def test_a_usage_error_is_one_line_and_a_hint() -> None:
    result = vmessctl("newvm", "strat")
    assert result.returncode == 2
    assert result.stderr == "vmess: no command 'strat'; did you mean start?\n  hint: vmess help\n"


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
        timeout=10 * UNIT,
        cwd=TESTS.parent,
    )
    assert result.returncode == 6
    assert time.monotonic() - begun >= 0.5
    complaint, hint = result.stderr.splitlines()
    assert complaint.startswith("vmess: vmessd did not answer within ")
    assert hint == (
        f"  hint: restart it, VMs keep running: vmess daemon stop --socket {daemon.socket}; "
        f"then start one on this socket: vmessd --background --socket {daemon.socket}"
    )


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
            server.join(10 * UNIT)


def test_an_answer_that_comes_too_late_is_not_taken_for_that_about_the_next_vm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "ANSWER_TIME", 1.0)
    monkeypatch.setattr(terminal, "AHEAD", 1)

    def answer(parameters: dict[str, Any]) -> bytes:
        time.sleep(1.5 if parameters["vm"] == "a0" else 0)
        return json.dumps({"parameters": {"path": f"/{parameters['vm']}"}}).encode()

    with scripted(tmp_path / "socket", answer):
        status = app.run(["--socket", str(tmp_path / "socket"), "a0", "b0", "make", "--json"])
    said = capfd.readouterr()
    assert (status, said.err.splitlines()[0]) == (6, "vmess: vmessd did not answer within 1 s")
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
        listener.settimeout(10 * UNIT)
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
            out, error = client.communicate(timeout=10 * UNIT)
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
            timeout=20 * UNIT,
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
        timeout=20 * UNIT,
        cwd=TESTS.parent,
    )
    assert (head.stdout.split()[:2], head.stderr) == (["NAME", "STATE"], "")
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
        assert (result.returncode, result.stderr) == (141, "")


def test_a_pipe_that_nobody_reads_is_reported_as_shells_do(daemon: Daemon) -> None:
    daemon.make(A)
    lines = ("list", "help", "help start", f"{A} info", f"{A} why", f"{A} {A} status --json", "watch")
    ended = []
    for line in lines:
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as stdout:
            result = vmessctl(*line.split(), env={"VMESS_SOCKET": str(daemon.socket)}, stdout=stdout)
        ended.append((result.returncode, result.stderr, line))
    assert ended == [(141, "", line) for line in lines]


# Names and remarks that are not ASCII


@pytest.fixture(scope="module")
def latin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a locale whose encoding is ISO-8859-1."""
    place = tmp_path_factory.mktemp("locales")
    command = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(place / "en_US.ISO-8859-1")]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=60 * UNIT)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no locale can be made here: {error}")
    return {"LOCPATH": str(place), "LC_ALL": "en_US.ISO-8859-1"}


@pytest.mark.parametrize("name", ["C", "latin", "ascii"])
def test_a_locale_that_is_not_utf_8_makes_no_traceback(
    daemon: Daemon, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    environment = {
        "C": {"LC_ALL": "C"},
        "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    }.get(name) or request.getfixturevalue("latin")
    encoding = {"C": "utf-8", "latin": "latin-1", "ascii": "ascii"}[name]
    image = tmp_path / "müll☃.iso"
    image.write_bytes(bytes(1 << 20))
    daemon.make(A, LOCK="für Jürgen")
    (daemon.root / A / f"{A}-cdrom.iso").symlink_to(image)
    (daemon.root / "Ärger").mkdir()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "vmessctl", *(word.encode(encoding, "replace") for word in words)],
            env={**os.environ, "VMESS_SOCKET": str(daemon.socket), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=30 * UNIT,
            cwd=TESTS.parent,
            encoding=encoding,
        )
        assert "Traceback" not in result.stderr
        assert len(result.stderr.splitlines()) <= 2, result.stderr
        return result

    for line in ("list", f"{A} status", f"{A} info --json", "Ärger", f"{A} cdrom Ärger.iso"):
        run(*line.split())
    shown = run(A, "info")
    assert shown.returncode == 0
    wanted = {
        "C": "für Jürgen müll☃",
        "latin": "für Jürgen müll\\u2603",
        "ascii": "f\\xfcr J\\xfcrgen m\\xfcll\\u2603",
    }
    remark, _, file = wanted[name].rpartition(" ")
    assert (f"LOCK: {remark}" in shown.stdout, f"{file}.iso" in shown.stdout) == (True, True)
    assert run(A, "lock", "☃", "unlock").returncode == 0
    if name != "ascii":
        run(A, "lock", "größer")
        assert (daemon.root / A / "LOCK").read_text(encoding="utf-8").strip() == "größer"


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
    assert mixed.stderr.splitlines()[0] == f"vmess: no VM missing0: {daemon.root}/missing0 does not exist"
    daemon.wait_guest(A)
    daemon.wait_guest(B)
    daemon.done(A, "stop")
    again = daemon.vmess(A, B, "missing", "stop")
    assert again.returncode == 4
    assert sorted(again.stdout.splitlines()) == sorted(
        [f"{A}: VM not running: {A} (powered down as asked)", f"{B}: Stopping VM PID {pids[B]}"]
    )
    assert daemon.vmess(A, B, "status").returncode == 3
    assert daemon.done(A, "stop") == f"VM not running: {A} (powered down as asked)\n"


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
        screen.expect(f"  hint: to kill it: vmess {A} kill\r\n")
        assert screen.end() == 130
        assert "Traceback" not in screen.said
    assert daemon.done(A) == f"VM is running, PID: {pid} (stopping)\n"
    stopping = rf"vmess: VM {A} is stopping, up to (6[0-3]|5\d) s more"
    hints = {"start": f"to start it afterwards: vmess {A} stop start, or at once: vmess {A} kill start"}
    for verb in ("start", "suspend", "rm --yes", "rename other", "hda 1M"):
        refused = daemon.vmess(A, *verb.split())
        message, hint = refused.stderr.splitlines()
        assert refused.returncode == 1
        assert re.fullmatch(stopping, message), message
        assert hint == f"  hint: {hints.get(verb, f'vmess {A} kill')}"
    assert 30 < daemon.status(A)["left"] < 63
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
        f"  hint: vmess {A} status, or to kill it: vmess {A} kill",
    ]
    begun = time.monotonic()
    left = daemon.vmess(A, "stop", "--no-wait")
    assert time.monotonic() - begun < 1
    assert (left.returncode, left.stdout, left.stderr) == (0, f"Stopping VM PID {pid}\n", "")
    assert daemon.status(A)["state"] == "stopping"
    assert daemon.wait_state(A, "stopped", 5)["last_exit"]["reason"] == "forced"
    assert daemon.vmess(A, "stop", "--no-wait").returncode == 0


# vmessd that writes settings of four VMs at the same time or of none.
TOGETHER = """
import threading
from vmessd.storage.vmdir import VMDirectory
real, four = VMDirectory.write_setting, threading.Barrier(4, timeout={limit})

def write_setting(self, setting, text):
    four.wait()
    real(self, setting, text)

VMDirectory.write_setting = write_setting
from vmessd.__main__ import main
raise SystemExit(main())
"""


def test_a_setting_of_many_vms_is_written_for_several_at_a_time_and_told_in_order(daemon: Daemon) -> None:
    daemon.stop()
    daemon.program = ("-c", TOGETHER.format(limit=10 * UNIT))
    daemon.start()
    vms = [f"a{number}" for number in (3, 1, 2, 0, 7, 5, 6, 4)]
    assert [line.split(":")[0] for line in daemon.vmessctl(*vms, "make").stdout.splitlines()] == vms
    told = daemon.vmessctl(*vms, "ram", "64M")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines() == [f"{vm}: ram 64M" for vm in vms]
    assert {(daemon.root / vm / "RAM").read_text() for vm in vms} == {"64M\n"}


def test_an_error_of_one_vm_keeps_no_other_from_its_turn(daemon: Daemon) -> None:
    there, vms = {"a1", "a3", "a4", "a6"}, [f"a{number}" for number in range(8)]
    for vm in there:
        daemon.make(vm)
    told = daemon.vmessctl(*vms, "smp", "2")
    assert told.returncode == NoSuchVM.status
    assert told.stdout.splitlines() == [f"{vm}: smp 2" for vm in vms if vm in there]
    errors = [line for line in told.stderr.splitlines() if "hint" not in line]
    assert [line.split()[3].rstrip(":") for line in errors] == [vm for vm in vms if vm not in there]


@qemu
def test_rm_asks_on_a_terminal_and_obeys(daemon: Daemon) -> None:
    directory = daemon.make(A)
    daemon.done(A, "hda", "1M")
    for answer in (b"n\n", b"\n", b"yess\n", b"y\xff\n", b"\x04"):
        with on_terminal(daemon, A, "rm", LC_ALL="C.UTF-8") as screen:
            screen.expect(f"Delete {A} and all files in {directory}, including hda? [y/N] ")
            os.write(screen.master, answer)
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
