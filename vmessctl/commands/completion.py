"""The verb completion: the script of a shell, or the candidates at the cursor, with the daemon's help."""

from __future__ import annotations

import sys

from vmessctl import client as wire
from vmessctl import host_choice
from vmessctl.cli import completion
from vmessctl.cli.completion import candidates
from vmessctl.cli.shells import SHELLS
from vmessctl.cli.verbs import ON_HOST, PROGRAM, SOCKET, Invocation
from vmessctl.environment import variable
from vmessd.core import places
from vmessd.core.errors import DONE, InvalidValue, VmessError, printable, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.grammar import Line
    from vmessctl.client import Client, Reply

PATIENCE = 0.5
"""Seconds that the daemon has to answer, while the user waits after TAB."""


class World(completion.World):
    """The candidates that the daemon knows, if it answers in time."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self._socket = line.options.get(SOCKET.flag)
        self._client: Client | None = None
        self._is_here = _is_here(line)
        """The line is for this host, whose daemon can be asked."""

    def _ask(self, method: str, **parameters: object) -> Reply:
        if not self._is_here:
            return {}
        try:
            self._client = self._client or wire.Client(wire.candidates(self._socket), PATIENCE)
            return self._client.call(method, **parameters)
        except (VmessError, ValueError):
            return {}


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
