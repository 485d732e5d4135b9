"""The tutorial is carried out as it is written: two guests boot, and one pings the other."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import TESTS, UNIT, WiredDaemon, end_processes_of

from vmessd import __version__

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

TUTORIAL = (TESTS.parent / "docs/tutorial.md").read_text(encoding="utf-8")
TCG = " --accel tcg"
"""What the tutorial says to append where KVM does not work, as it may here."""
GUEST = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"


def commands(section: int) -> Iterator[tuple[str, list[str]]]:
    """What is typed in a section of the tutorial, with its prompt, and the lines that are shown for it."""
    text = TUTORIAL.partition(f"\n## {section}. ")[2].partition("\n## ")[0]
    lines = [line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ")]
    typed = [number for number, line in enumerate(lines) if line.startswith(("$ ", "~ # "))]
    for begin, end in zip(typed, [*typed[1:], len(lines)], strict=True):
        last = next(number for number in range(begin, end) if not lines[number].endswith("\\"))
        yield "\n".join(lines[begin : last + 1]), lines[last + 1 : end]


class Reader:
    """Somebody who does what the tutorial says."""

    def __init__(self, wired: WiredDaemon) -> None:
        self.wired = wired
        self.home = wired.directory
        self.runtime, self.tools = self.home / "run", self.home / "bin"
        self.runtime.mkdir(mode=0o700)
        self.tools.mkdir()
        for name in ("vmessd", "vmessctl"):
            self._provide(name, f'PYTHONPATH={TESTS.parent} exec {sys.executable} -m {name} "$@"')
        self._provide("sudo", 'test "$1" = -E && shift && exec "$@"')
        self.typed: list[str] = []
        """What was typed into the shell."""
        self.lines: list[str] = []
        """What is to be typed into the console of the VM that is attached."""
        self.attached = ""

    def _provide(self, name: str, line: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (self.tools / name).chmod(0o755)

    def run(self, line: str, **options: Any) -> str:
        """Run a line of a shell, in the namespace of the daemon; return all that it prints."""
        environment = {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.runtime), "XDG_STATE_HOME": ""}
        done = subprocess.run(
            [*self.wired.inside, "bash", "-ec", line],
            env={**os.environ, **environment, "PATH": f"{self.tools}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600 * UNIT,
            **options,
        )
        assert done.returncode == 0, f"{line}: {done.stdout}"
        return str(done.stdout)

    def follow(self, section: int) -> str:
        """Do what a section says, and return all that was printed."""
        said = ""
        for line, _ in commands(section):
            if line.startswith("~ # "):
                self.lines.append(line.removeprefix("~ # "))
                continue
            self.type()
            command = line.removeprefix("$ ")
            if match := re.fullmatch(r"vmessctl (\w+) console", command):
                self.attached = match[1]
                continue
            self.typed.append(command)
            command += TCG if "vmessd" in command else ""
            said += self.run(f"{self.variables()}{command}{' --yes' if command.endswith(' rm') else ''}")
        self.type()
        return said

    def variables(self) -> str:
        """What the tutorial has set in the shell by now."""
        return "".join(f"{command}; " for command in self.typed if re.match(r"\w+=", command))

    def type(self) -> None:
        """Type into the console what has been collected."""
        if self.lines:
            lines, self.lines = self.lines, []
            self.run(f"vmessctl {self.attached} console", input="".join(f"{line}\n" for line in lines))


@pytest.mark.skipif(not Path(GUEST).is_dir(), reason="debian-installer-12-netboot-amd64 is not installed")
def test_two_guests_ping_each_other(wired: WiredDaemon) -> None:
    wired.stop()  # the tutorial has its own daemon, in the namespace of this one
    reader = Reader(wired)
    try:
        follow(reader)
    finally:
        end_processes_of(reader.home / "vms")
        reader.run("vmessctl daemon stop")


def follow(reader: Reader) -> None:
    said = reader.follow(2)
    assert said.startswith(
        f"vmessd {__version__} serves {reader.home}/vms on {reader.runtime}/vmess/control.sock, "
    )
    assert "ends: when it is told to" in reader.run("vmessctl daemon")
    said = reader.follow(3)
    for _, shown in commands(3):
        for line in shown:
            told = line.replace("/home/you", str(reader.home)).replace("uid 1000", f"uid {os.geteuid()}")
            assert " ".join(told.split()) in " ".join(said.split())
    assert "-append 'console=ttyS0 rdinit=/bin/sh quiet'" in reader.follow(4)
    assert reader.follow(5).count(": started (PID ") == 2
    reader.follow(6)
    reader.lines = [line.removeprefix("~ # ") for line, _ in commands(7)][:1]
    reader.type()
    reader.run("vmessctl spine wait serial:' 4 packets received' --since-start --timeout 120")
    reader.lines = [line.removeprefix("~ # ") for line, _ in commands(7)][1:]
    assert reader.lines == ["poweroff -f"]
    reader.type()
    reader.run("vmessctl spine wait stopped --timeout 60")
    said = reader.follow(8)
    assert "How: guest powered off" in said
    assert "deleted fabric1" in said
    assert list((reader.home / "vms").glob("*0")) == []
