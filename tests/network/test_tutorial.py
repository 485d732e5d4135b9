"""The tutorial is carried out as it is written: two guests boot, and one pings the other."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import TESTS, WiredDaemon

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]

TUTORIAL = (TESTS.parent / "docs/tutorial.md").read_text(encoding="utf-8")
GUEST = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"


def commands(section: int) -> Iterator[tuple[str, list[str]]]:
    """What is typed in a section of the tutorial, with its prompt, and the lines that are shown for it."""
    text = TUTORIAL.partition(f"\n## {section}. ")[2].partition("\n## ")[0]
    lines = [line.removeprefix("    ") for line in text.splitlines() if line.startswith("    ")]
    typed = [number for number, line in enumerate(lines) if line.startswith(("$ ", "~ # "))]
    for begin, end in zip(typed, [*typed[1:], len(lines)], strict=True):
        yield lines[begin], lines[begin + 1 : end]


class Reader:
    """Somebody who does what the tutorial says."""

    def __init__(self, wired: WiredDaemon) -> None:
        self.wired = wired
        self.home = wired.directory
        self.typed: list[str] = []
        """What was typed into the shell."""
        self.lines: list[str] = []
        """What is to be typed into the console of the VM that is attached."""
        self.attached = ""

    def run(self, line: str, **options: Any) -> str:
        """Run a line of a shell, in the namespace of the daemon; return all that it prints."""
        tools = self.home / "bin"
        if not tools.is_dir():
            tools.mkdir()
            program = f'#!/bin/sh\nPYTHONPATH={TESTS.parent} exec {sys.executable} -m vmessctl "$@"\n'
            (tools / "vmessctl").write_text(program)
            (tools / "vmessctl").chmod(0o755)
        environment = {"HOME": str(self.home), "VMESS_SOCKET": str(self.wired.socket)}
        done = subprocess.run(
            [*self.wired.inside, "bash", "-ec", line],
            env={**os.environ, **environment, "PATH": f"{tools}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=600,
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
    reader = Reader(wired)
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
