"""The README's first session, typed as it is written by somebody who has nothing yet, and what is seen."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import TESTS, end_processes_of
from packages import run_as
from terminals import Page, Typist

sys.path.append(str(TESTS.parent / "contrib/dev"))

import scenes

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

PROGRAMS = Path(sys.executable).parent
SIZE = (100, 60)
VARIES = (
    (r"\bPID [0-9]+", "PID 1"),
    (r"\b(TCG|KVM)\b", "TCG"),
    (r"\b[0-9]+ (s|min)\b", "1 s"),
    (r"\.{3,} ok\b", "... ok"),
    (r" +", " "),
)
"""What is seen may differ from what is written in these things."""
NO_KVM = r"newvm0: without KVM, which is slower: |  hint: sudo adduser \$USER kvm; "
"""What a host says in addition on which this user may not use KVM."""


def plain(text: str) -> str:
    """Return a line without what varies."""
    for varies, same in VARIES:
        text = re.sub(varies, same, text)
    return text.strip()


def is_seen(shown: list[str], seen: list[str]) -> bool:
    """Tell whether lines are what the README shows, where `...` stands for any number of lines."""
    written = ["(.*\n)*" if line == "..." else re.escape(f"{plain(line)}\n") for line in shown]
    return (
        re.fullmatch("".join(written), "".join(f"{plain(line)}\n" for line in seen if _counts(line)))
        is not None
    )


def _counts(line: str) -> bool:
    return bool(line.strip()) and not re.match(NO_KVM, line)


class Newcomer(Typist):
    """A user without privileges, with an empty home directory and without a daemon, at a shell."""

    def __init__(self, uid: int, home: Path) -> None:
        self.uid, self.home = uid, home
        self.environment = {
            "HOME": str(home),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
            "PS1": "$ ",
        }
        shell = ["bash", "--norc", "--noprofile", "-i"]
        super().__init__(shell, SIZE, uid, env=self.environment, cwd=home)

    def follow(self, step: scenes.Step) -> list[str]:
        """Type a line as it is written, press the keys that it names, and return the lines seen after it."""
        self.page = Page(*SIZE)
        self.type(f"{step.line}\r")
        if not step.keys():
            return self._until(step.prompt)
        key, _leave = step.keys()
        self.see(f"Press Ctrl-{key} for", 60)
        self.press(key)
        return self._until(scenes.GUEST_PROMPT)

    def press(self, key: str) -> None:
        self.type(chr(ord(key) & 0x1F))

    def leave(self, key: str) -> None:
        """Press the key that leaves the console, and wait for the shell."""
        self.page = Page(*SIZE)
        self.press(key)
        self.wait(lambda lines: [line for line in lines if line] == ["$"])

    def _until(self, prompt: str) -> list[str]:
        """Wait for a prompt on a line of its own, and return the lines before it, without what was typed.

        A guest that clears its screen clears the line that was typed as well.
        """
        seen = self.wait(lambda lines: [line for line in lines if line][-1:] == [prompt], 60)
        return [line.replace(str(self.home), "/home/you") for line in seen if line][1:-1]


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    if os.geteuid():
        pytest.skip("only root can become another user")
    uid = 800_000 + os.getpid()
    with tempfile.TemporaryDirectory(prefix="vmess-test-") as place:
        home = Path(place)
        os.chown(home, uid, uid)
        try:
            run_as(uid, PROGRAMS / "vmessctl", "--version", HOME=place)
        except (PermissionError, AssertionError):
            pytest.skip("other users may not run this checkout")
        somebody = Newcomer(uid, home)
        try:
            yield somebody
        finally:
            somebody.close()
            run_as(uid, PROGRAMS / "vmessctl", "daemon", "stop", **somebody.environment)
            end_processes_of(home / "vms")
            shutil.rmtree(f"/tmp/vmess-{uid}", ignore_errors=True)


def test_the_first_session_of_the_readme_is_seen_as_it_is_written(newcomer: Newcomer) -> None:
    steps = scenes.session()
    assert 6 <= sum(step.prompt == "$" for step in steps) <= 8
    assert list(newcomer.home.iterdir()) == []
    newcomer.see("$")
    leave = ""
    for step in steps:
        if leave and step.prompt == "$":
            newcomer.leave(leave)
            leave = ""
        seen = newcomer.follow(step)
        assert is_seen(step.shown, seen), f"{step.line}: {seen}"
        leave = step.keys()[-1] if step.keys() else leave
    assert list((newcomer.home / "vms").iterdir()) == []
    assert steps[0].shown[0].startswith("vmessctl: started a private vmessd")


@pytest.mark.parametrize(
    ("seen", "same"),
    [
        (["newvm0: started (PID 7, TCG)", "", "a", "b", "ok"], True),
        (["newvm0: started (PID 7, TCG)", "ok"], True),
        (["newvm1: started (PID 7, TCG)", "ok"], False),
        (["newvm0: started (PID 7, TCG)"], False),
        (["newvm0: started (PID 7, TCG)", "ok", "more"], False),
    ],
)
def test_what_is_seen_is_compared_line_by_line(seen: list[str], same: bool) -> None:
    assert is_seen(["newvm0: started (PID 5748, KVM)", "...", "ok"], seen) is same
