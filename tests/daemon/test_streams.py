"""Programs that are started with standard streams closed, or with some that take nothing."""

import contextlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from daemons import TESTS, UNIT, Daemon, own

A = own("a")
CLOSED = [each for count in (1, 2, 3) for each in itertools.combinations(range(3), count)]


def closing(numbers: tuple[int, ...]) -> dict[str, Any]:
    """What has subprocess close standard streams in the child: by the shell's words, as a user would."""
    redirections = " ".join(f"{number}>&-" for number in numbers)
    return {"inside": ("sh", "-c", f'exec "$@" {redirections}', "sh")}


def run(numbers: tuple[int, ...], *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "stdin": subprocess.DEVNULL, "timeout": 30 * UNIT, **options}
    command = [*closing(numbers)["inside"], sys.executable, *words]
    return subprocess.run(command, text=True, check=False, cwd=TESTS.parent, **options)


def leads_to(pid: int, number: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/{number}")


@pytest.mark.parametrize("numbers", [(2,), (0,), (0, 1, 2)], ids=str)
def test_c66_a_daemon_without_standard_streams_serves_and_nothing_else_has_their_numbers(
    tmp_path: Path, numbers: tuple[int, ...]
) -> None:
    daemon = Daemon(tmp_path)
    daemon.wrapper = closing(numbers)["inside"]
    with contextlib.closing(daemon):
        daemon.start()
        daemon.make(A)
        daemon.done(A, "start")
        daemon.wait_guest(A)
        qemu = daemon.status(A)["pid"]
        assert [leads_to(daemon.pid, number) for number in numbers] == ["/dev/null"] * len(numbers)
        assert (leads_to(qemu, 0), leads_to(qemu, 2)) == ("/dev/null", str(daemon.root / A / "qemu.log"))
        if 2 not in numbers:
            daemon.wait_log("serves")
        daemon.done(A, "stop")
        assert daemon.stop() == 0


def test_c66_a_daemon_that_cannot_serve_says_so_by_its_status(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    words = ("-m", "vmessd", "--vmdir", str(taken), "--socket", str(tmp_path / "s"))
    told, untold = run((), *words), run((0, 2), *words)
    assert told.stderr.startswith("vmessd: ")
    assert (untold.returncode, untold.stdout, untold.stderr) == (told.returncode, "", "") == (2, "", "")
    assert taken.read_text() == "mine"


def test_c66_a_client_without_standard_streams_does_the_same_and_says_what_can_be_said(daemon: Daemon) -> None:
    daemon.make(A)
    socket = ("--socket", str(daemon.socket))
    for words, status, out, error in (
        ((A, "status"), 3, f"{A}: stopped\n", ""),
        (("nosuch", "status"), 4, "", "vmessctl: no VM"),
        ((A, "ram", "32M"), 0, f"{A}: ram 32M\n", ""),
        ((A, "screenshot", "-"), 3, "", "vmessctl: VM"),
        ((A, "console"), 3, "", "vmessctl: VM"),
    ):
        for numbers in CLOSED:
            result = run(numbers, "-m", "vmessctl", *socket, *words)
            assert result.returncode == status, (words, numbers, result)
            assert result.stdout == ("" if 1 in numbers else out), (words, numbers)
            assert result.stderr.startswith("" if 2 in numbers else error), (words, numbers)
            assert len(result.stderr.splitlines()) <= (0 if 2 in numbers or not error else 2), (words, numbers)
    assert (daemon.root / A / "RAM").read_text() == "32M\n"
    result = run((0, 1, 2), "-m", "vmessctl", *socket, A, "start")
    assert result.returncode == 0
    daemon.wait_guest(A)


@pytest.mark.parametrize("program", ["vmessd", "vmessctl"])
def test_c66_output_that_takes_nothing_is_a_line_and_a_status(program: str, tmp_path: Path) -> None:
    word = {"vmessd": "--check", "vmessctl": "help"}[program]
    more = ("--vmdir", str(tmp_path)) if program == "vmessd" else ()
    with open("/dev/full", "w") as full:
        result = run((), "-m", program, word, *more, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.stderr == f"{program}: the output cannot be written: no space left on device\n"
    assert result.returncode == 1
    with open("/dev/full", "w") as full:  # and where not even that can be said
        result = run((), "-m", program, "--nosuch", *more, capture_output=False, stdout=full, stderr=full)
    assert result.returncode == 2


def test_c66_a_daemon_s_streams_are_filled_before_anything_else_is_opened() -> None:
    code = "import os, vmessd.__main__ as it; it.stdio.fill_gaps(); print(*sorted(os.listdir('/proc/self/fd')))"
    result = run((0, 2), "-c", code)
    assert result.stdout.split() == ["0", "1", "2", "3"]  # the last is the listing's own


def test_characters_that_the_locale_has_no_code_for_are_escapes(daemon: Daemon) -> None:
    daemon.make("newvm0")
    daemon.done("newvm", "lock", "\u00e9\u2192")
    environment = {**os.environ, "VMESS_SOCKET": str(daemon.socket), "PYTHONIOENCODING": "ascii"}
    info = subprocess.run(
        [sys.executable, "-m", "vmessctl", "newvm", "info"],  # -I would not heed it
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "LOCK: \\xe9\\u2192" in info.stdout
