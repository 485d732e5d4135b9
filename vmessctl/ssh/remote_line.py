"""The command line for the login shell of another host, and the line by which its output begins. Pure."""

from __future__ import annotations

from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:,+@-")
"""Characters that no shell gives a meaning, wherever they stand."""
BARE = frozenset("\\'!")
"""Characters that have a meaning between single quotes in some shell: escapes of fish(1), history of csh(1)."""

NOT_THERE = 127
"""The exit status of a shell that does not find a command."""
_LOOK = 'command -v "$2" >/dev/null 2>&1 || '
_GO = 'export VMESS_HOST=local VMESS_CALLED="$1"; shift; exec "$@"'
PROLOGUE = f"{_LOOK}exit 127; {_GO}"
"""For sh(1): its arguments are how the program was called here, and the command, which must not go to a host
of its own."""
MARKED_PROLOGUE = _LOOK + '{ echo "$0 -"; exit 127; }; echo "$0 $$"; ' + _GO
"""The same, but a line comes first: the mark, and the PID that the command is about to have, or `-`."""
WATCHED_PROLOGUE = MARKED_PROLOGUE.replace(
    'exec "$@"', 'exec 3<&0; (cat <&3; kill $$) >/dev/null 2>&1 & exec "$@" </dev/null 3<&-'
)
"""The same for a command without input: it is killed when the input of the session ends, because the client
here is dead, or the connection. sshd(8) would not say so, and the command would run until it writes."""


def quoted(word: str) -> str:
    """Return a word as the login shells of people read it: sh, bash, zsh, ksh, fish and csh.

    `shlex.quote` leaves backslashes between quotes, where fish reads two of them as one.
    """
    if word and PLAIN.issuperset(word):
        return word
    return "'" + "".join(f"'\\{char}'" if char in BARE else char for char in word) + "'"


def remote_line(words: Sequence[str], called: str, mark: str = "", *, watched: bool = False) -> str:
    """Return the line that runs a command there; with a mark, its output begins with it.

    `called` is how hints of the command name the program. A command that is `watched` has no input, and ends
    when that of the session does.
    """
    script = WATCHED_PROLOGUE if mark and watched else MARKED_PROLOGUE if mark else PROLOGUE
    return " ".join(map(quoted, ("exec", "sh", "-c", script, mark or "sh", called, *words)))


GREETING_MAX = 1 << 16
"""Bytes kept of a greeting, more than a mark and a line."""


class Opening(PlainRecord):
    """What a session says before the output of the command: a greeting of the login shell, and the mark."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{mark} ".encode()
        self.pid = 0
        """The PID of the command there; 0 before the mark was seen, or if there is no such command."""
        self.is_over = False
        self.greeting = b""

    def read(self, data: bytes) -> bytes:
        """Take what came and return what of it is output of the command."""
        if self.is_over:
            return data
        self.greeting += data
        start = self.greeting.find(self._mark)
        while start >= 0:
            end = start + len(self._mark)
            pid, newline, output = self.greeting[end:].partition(b"\n")
            if newline and (pid == b"-" or pid.isdigit()):
                self.is_over = True
                self.greeting = self.greeting[:start]
                self.pid = int(pid) if pid.isdigit() else 0
                return output
            start = self.greeting.find(self._mark, end)  # a shell may show the line that it was given
        self.greeting = self.greeting[-GREETING_MAX:]
        return b""
