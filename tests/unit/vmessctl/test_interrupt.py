"""Ctrl-C at a moment when Python drops it, or before the client has begun."""

import subprocess
import sys

import pytest

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
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "vmessctl.app":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


PRETENDED = "sys.modules['vmessctl.app'] = vmessctl.app = types.SimpleNamespace(main=main)"


@pytest.mark.parametrize(
    "code", [f"{DROPPED}import vmessctl\n{PRETENDED}", AT_ONCE], ids=["dropped", "while the client is imported"]
)
def test_an_interrupt_is_never_lost(code: str) -> None:
    code += "\nfrom vmessctl import __main__\nsys.exit(__main__.main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=15)
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", "")


def test_its_status_is_that_of_the_table() -> None:
    assert INTERRUPTED == errors.INTERRUPTED
