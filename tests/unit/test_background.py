"""A daemon in the background: what is said if it ends before it serves, and where its log is."""

import os
import sys
from pathlib import Path

import pytest

from vmessd import background
from vmessd.config import read
from vmessd.core.errors import Failed, InvalidValue, Locked, VmessError


def ended(code: str, said: str, log: str = "/the/log", began: int = 0) -> VmessError:
    """Return the error for a daemon that runs some code and says something."""
    reader, writer = os.pipe()
    os.write(writer, said.encode())
    os.close(writer)
    child = os.posix_spawn(sys.executable, [sys.executable, "-IS", "-c", code], {})
    with pytest.raises(VmessError) as caught:
        background._wait(child, reader, log, began)
    with pytest.raises(ChildProcessError):
        os.waitpid(child, 0)  # it was waited for
    return caught.value


@pytest.mark.parametrize(
    ("said", "kind", "message", "hint"),
    [
        ("7\nanother vmessd\nchoose", Locked, "another vmessd", "choose"),
        ("2\nno QEMU\n", InvalidValue, "no QEMU", None),
        ("1\nfailed\n", Failed, "failed", None),
    ],
)
def test_the_error_of_the_daemon_is_that_of_its_parent(
    said: str, kind: type[VmessError], message: str, hint: str | None
) -> None:
    error = ended("", said)
    assert (type(error), error.message, error.hint) == (kind, message, hint)


def test_a_daemon_that_was_killed_says_nothing_itself() -> None:
    error = ended("import os; os.kill(os.getpid(), 9)", "")
    assert error.message == "the daemon ended with signal 9 before it served, and logged nothing"
    assert error.hint == "its log is /the/log"
    error = ended("raise SystemExit(3)", "")
    assert error.message == "the daemon ended with exit status 3 before it served, and logged nothing"


@pytest.mark.parametrize(
    ("logged", "told"),
    [
        ("", ", and logged nothing"),
        ("one\ntwo\nthree\nfour\n", ": two; three; four"),
        ("a\x1b[2Jb\n\n", r": a\x1b[2Jb"),
        (
            'warning\nTraceback (most recent call last):\n  File "x.py", line 1, in x\n    y()\nOSError: full',
            ": warning; OSError: full",
        ),
        pytest.param(f"{'x' * 5000}\nlast\n", f": {'x' * 4090}; last", id="long"),
    ],
)
def test_the_last_lines_of_the_log_are_told(tmp_path: Path, logged: str, told: str) -> None:
    log, earlier = tmp_path / "log", "an earlier daemon\n"
    log.write_text(f"{earlier}{logged}")
    error = ended("raise SystemExit(3)", "", str(log), len(earlier))
    assert error.message.removeprefix("the daemon ended with exit status 3 before it served") == told


def test_without_a_place_for_the_log_it_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(file))
    config = read(["--background", "--socket", str(file / "s")], {})
    with pytest.raises(Failed, match=r"log .*/file/vmessd.log cannot be written: ") as caught:
        background._log(config)
    assert caught.value.hint
