"""Files of exports where a file system has neither files without a name nor, perhaps, links."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemons import UNIT

from vmessctl.output.new_file import NewFile
from vmessd.core.errors import Failed

os_open = os.open


def unnamed_refused(path: str, flags: int, *more: Any, **options: Any) -> int:
    if flags & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, "no files without a name")
    return os_open(path, flags, *more, **options)


def signal_while_created(number: int) -> Callable[..., int]:
    """An open(2) of such a file system, during which a signal comes when a file is created."""

    def opened(path: str, flags: int, *more: Any, **options: Any) -> int:
        fd = unnamed_refused(path, flags, *more, **options)
        if flags & os.O_CREAT:
            os.kill(os.getpid(), number)
        return fd

    return opened


def link_refused(*_paths: object, **_options: object) -> None:
    raise OSError(errno.EPERM, "no links")


@pytest.fixture(params=[True, False], ids=["links", "no links"])
def plain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory of a file system that can do little, and the signals as they were."""
    monkeypatch.setattr(os, "open", unnamed_refused)
    if not request.param:
        monkeypatch.setattr(os, "link", link_refused)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path


def write(file: Path, meanwhile: Callable[[], object] = lambda: None) -> None:
    with NewFile(str(file)) as output:
        os.write(output, b"whole")
        assert file.name not in os.listdir(file.parent)
        meanwhile()


def test_a_file_has_its_name_when_it_is_whole(plain: Path) -> None:
    write(plain / "vm.tar")
    assert [(file.name, file.read_bytes()) for file in plain.iterdir()] == [("vm.tar", b"whole")]


def test_one_that_came_meanwhile_is_not_overwritten(plain: Path) -> None:
    file = plain / "vm.tar"
    with pytest.raises(Failed, match=r"vm\.tar cannot be written: file exists"):
        write(file, lambda: file.write_bytes(b"mine"))
    assert [(file.name, file.read_bytes()) for file in plain.iterdir()] == [("vm.tar", b"mine")]


def test_nothing_stays_of_one_that_fails(plain: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write(plain / "vm.tar", lambda: 1 // 0)
    assert not os.listdir(plain)


@pytest.mark.parametrize("opens", ["unnamed_refused", "signal_while_created({})"], ids=["written", "created"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_stays_after_a_signal(number: signal.Signals, opens: str, tmp_path: Path) -> None:
    code = f"""
import os, pathlib, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]}
import test_new_file
os.open = test_new_file.{opens.format(int(number))}
test_new_file.write(pathlib.Path({str(tmp_path)!r}, "vm.tar"), lambda: os.kill(os.getpid(), {int(number)}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=20 * UNIT
    )
    assert (done.returncode, os.listdir(tmp_path)) in ((128 + number, []), (-number, [])), done
