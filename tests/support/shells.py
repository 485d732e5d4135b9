"""Real shells that complete a command line, as somebody with a keyboard would have them do."""

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from daemons import TESTS, UNIT

READY = "shell-is-ready"
DUMP = "\x18\x04"  # Ctrl-X Ctrl-D: what has become of the line goes into the file `line`
TAB, LEFT = "\t", "\x02"

BASH = f"""
PS2=; PS1="{READY} " # shown when the terminal is ready for keys
source completion.bash
bind 'set enable-bracketed-paste off'
bind -x '"\\C-x\\C-d": printf "%s" "$READLINE_LINE" >line.new; mv line.new line'
"""
ZSH = f"""
PS1=; PS2=; RPS1=; unsetopt zle_bracketed_paste prompt_cr prompt_sp beep
autoload -Uz compinit && compinit -u
source completion.zsh
dump() {{ print -rn -- "$BUFFER" >line.new; mv line.new line }}
zle -N dump
bindkey -e
bindkey '^X^D' dump
zle-line-init() {{ print {READY} }}
zle -N zle-line-init
"""


class Shell:
    """A shell at work in a directory where `vmess` is this checkout's client."""

    def __init__(self, directory: Path, **environment: str) -> None:
        self.directory = directory
        programs = directory / "bin"
        programs.mkdir(exist_ok=True)
        for name in ("vmess", "vmessctl"):
            program = programs / name
            program.write_text(f'#!/bin/sh\nPYTHONPATH={TESTS.parent} exec {sys.executable} -m vmessctl "$@"\n')
            program.chmod(0o755)
        self.environment = {
            **os.environ,
            **environment,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(directory),
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }
        for shell in ("bash", "zsh", "fish"):
            completion = self.run(programs / "vmess", "completion", shell)
            (directory / f"completion.{shell}").write_text(completion)
        (directory / "bashrc").write_text(BASH)
        (directory / ".zshrc").write_text(ZSH)

    def run(self, *words: str | os.PathLike[str]) -> str:
        """Run a program to its end and return its standard output; it must not complain."""
        done = subprocess.run(
            words,
            env=self.environment,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=30 * UNIT,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def fish(self, line: str, option: str = "--no-config") -> list[str]:
        """Return what fish offers for the end of a line."""
        offered = self.run("fish", option, "-c", "source completion.fish; complete -C $argv[1]", "--", line)
        return [each.partition("\t")[0] for each in offered.splitlines()]

    def type(self, shell: str, keys: str) -> str:
        """Type keys and TAB; return what the shell makes of the line."""
        options = {
            "bash": ["--noprofile", "--rcfile", "bashrc", "-i"],
            "zsh": ["-o", "no_global_rcs", "-i"],
        }
        return self._typed([shell, *options[shell]], keys)

    def _typed(self, shell: list[str], keys: str) -> str:
        result = self.directory / "line"
        result.unlink(missing_ok=True)
        with self._terminal(shell) as master:
            said = ""
            while READY not in said:
                assert select.select([master], [], [], 20 * UNIT)[0], f"{shell[0]} is not ready: {said!r}"
                said += os.read(master, 4096).decode(errors="replace")
            os.write(master, (keys + TAB + DUMP).encode())
            deadline = time.monotonic() + 20 * UNIT
            while not result.exists():
                assert time.monotonic() < deadline, f"{shell[0]} does not complete: {said!r}"
                if select.select([master], [], [], 0.02)[0]:
                    said += os.read(master, 4096).decode(errors="replace")
        return " ".join(result.read_text().split())

    @contextlib.contextmanager
    def _terminal(self, shell: list[str]) -> Iterator[int]:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            shell,
            env=self.environment,
            cwd=self.directory,
            preexec_fn=lambda: os.login_tty(slave),  # type: ignore[attr-defined,unused-ignore]  # noqa: PLW1509 -- no other thread runs here
        )
        os.close(slave)
        try:
            yield master
        finally:
            process.kill()
            process.wait(10 * UNIT)
            os.close(master)
