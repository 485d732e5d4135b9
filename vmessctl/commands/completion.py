"""The verb completion: the script of a shell, or the candidates at the cursor, with the daemon's help."""

from __future__ import annotations

import posix
import sys

from vmessctl import client as wire
from vmessctl import host_choice, private_daemon
from vmessctl.cli import completion
from vmessctl.cli.completion import candidates
from vmessctl.cli.shells import SHELLS
from vmessctl.cli.verbs import NO_DAEMON, ON_HOST, PROGRAM, SOCKET, Invocation
from vmessctl.environment import variable
from vmessd.core import names, places
from vmessd.core.errors import DONE, InvalidValue, VmessError, printable, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.grammar import Line
    from vmessctl.client import Client, Reply

PATIENCE = 0.5
"""Seconds that the daemon has to answer, while the user waits after TAB."""


class World(completion.World):
    """The candidates that the daemon knows, if it answers in time; without one, the VMs of the next one."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self._socket = line.options.get(SOCKET.flag)
        self._client: Client | None = None
        self._is_here = _is_here(line)
        """The line is for this host, whose daemon can be asked."""
        self._starts = NO_DAEMON.flag not in line.options and not variable("VMESS_NO_DAEMON")
        """The line may start a daemon; its completion never does."""
        self._is_absent = False

    def _ask(self, method: str, **parameters: object) -> Reply:
        if not self._is_here:
            return {}
        try:
            paths = wire.candidates(self._socket)
            self._client = self._client or wire.Client(paths, PATIENCE, self._note_absence)
            return self._client.call(method, **parameters)
        except (VmessError, ValueError):
            return {}

    def _note_absence(self) -> None:
        self._is_absent = True

    def vms(self) -> list[Reply]:
        """Return the status of every VM; the names in its VM root where the line would start a daemon."""
        found = super().vms()
        if not self._is_absent or not self._starts or wire.named(self._socket):
            return found
        try:
            private_daemon.leave_to_service()
            with posix.scandir(places.own_root(variable)) as entries:
                there = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (VmessError, OSError, ValueError):
            return []
        return [{"name": name} for name in sorted(filter(names.is_full, there), key=names.natural)]


def _is_here(line: Line) -> bool:
    named = line.options.get(ON_HOST.flag, variable("VMESS_HOST") or None)
    try:
        return host_choice.of_line(named, places.hosts_file(variable)) is None
    except VmessError:
        return False


def run(invocation: Invocation) -> int:
    """Print the completion script of a shell, or candidates for one."""
    shell, *words = invocation.arguments
    if shell in SHELLS:
        if words:
            raise InvalidValue(f"completion {shell} takes no more arguments, not {quoted(' '.join(words))}")
        sys.stdout.write(SHELLS[shell])
        return DONE
    if shell != "words":
        known = ", ".join(SHELLS)
        raise InvalidValue(f"{quoted(shell)} is not one of {known}", hint=f"{PROGRAM} help completion")
    if not words or not words[0].isdecimal() or len(words[0]) > 4:
        raise InvalidValue(
            "completion words needs the index of the word at the cursor and the words of the line",
            hint=f"{PROGRAM} completion words -- 1 newvm st",
        )
    place, line = int(words[0]), words[1:]
    current = line[place] if place < len(line) else ""
    for word, about in candidates(line[:place], current, line[place + 1 :], World):
        print(f"{printable(word)}\t{printable(about)}")
    return DONE
