"""Ctrl-C at a moment when Python drops it, or before the client has begun."""

import subprocess
import sys

import pytest
from daemons import TESTS, UNIT

from vmessctl.__main__ import INTERRUPTED
from vmessd.core import errors

DROPPED = """
import os, signal, sys, time, types
class Module:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
def main():
    Module()
    time.sleep(20)
    return 0
"""
"""An object's end is, like a callback of an import, a place that no exception leaves."""
AT_ONCE = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


PRETENDED = "sys.modules['vmessctl.app'] = vmessctl.app = types.SimpleNamespace(main=main)"


CALL = "\nfrom vmessctl import __main__\nsys.exit(__main__.main())"
INSTALLED = f"runpy.run_path({str(TESTS.parent / 'contrib/bin/vmess')!r}, run_name='__main__')"


@pytest.mark.parametrize(
    "code",
    [
        f"{DROPPED}import vmessctl\n{PRETENDED}{CALL}",
        f"{AT_ONCE.format(module='vmessctl.app')}{CALL}",
        f"{AT_ONCE.format(module='vmessctl.__main__')}{INSTALLED}",
    ],
    ids=["dropped", "while the client is imported", "before"],
)
def test_an_interrupt_is_never_lost(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=15 * UNIT
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_its_status_is_that_of_the_table() -> None:
    assert INTERRUPTED == errors.INTERRUPTED
