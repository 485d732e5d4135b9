"""What happens on a terminal: lines for people, complaints, and one line that moves.

Data go to standard output, everything else to standard error; what moves, moves on a terminal only.
"""

from __future__ import annotations

import os
import sys

from vmessctl import commands
from vmessctl.client import connect
from vmessctl.commands import PROGRAM, Invocation
from vmessd.errors import VmessError, worst

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmessctl.client import Client, Reply


class hushed:  # noqa: N801 -- it reads as a statement: with hushed(...)
    """Say nothing inside of what was done: for --quiet, and for --json, which has it in the answers."""

    now = False

    def __init__(self, on: bool) -> None:
        self._on = on

    def __enter__(self) -> None:
        hushed.now = self._on

    def __exit__(self, *_error: object) -> None:
        hushed.now = False


def tell(text: str) -> None:
    """Print what was done."""
    if not hushed.now:
        print(text, flush=True)


def say(text: str) -> None:
    """Print a remark."""
    if not hushed.now:
        warn(text)


def warn(text: str) -> None:
    """Print what is wrong."""
    print(text, file=sys.stderr)


def complain(error: VmessError) -> int:
    """Print an error and its hint, a line each; return the exit status."""
    warn(f"{PROGRAM}: {error.message}")
    if error.hint:
        warn(f"  hint: {error.hint}")
    return error.status


def for_each(invocation: Invocation, work: Callable[[Client, str], int]) -> int:
    """Do the same for every VM over one connection; each is reported, the worst status wins."""
    client = connect(invocation)
    statuses = []
    for vm in invocation.vms:
        try:
            statuses.append(work(client, vm))
        except VmessError as error:
            statuses.append(complain(error))
    client.close()
    return worst(statuses)


def show(invocation: Invocation, reply: Reply, text: Callable[[Reply], str], vm: str = "") -> None:
    """Print an answer: as `text` makes it for people, or as JSON where that is asked for."""
    if commands.JSON.flag in invocation.options:
        emit(invocation, reply, vm)
    elif shown := text(reply):
        prefix = f"{vm}: " if len(invocation.vms) > 1 else ""
        print("\n".join(f"{prefix}{line}" for line in shown.splitlines()))


def emit(invocation: Invocation, reply: Reply, vm: str = "") -> None:
    """Print an answer as a line of JSON, where that is asked for; one about a VM says so, and what asked."""
    if commands.JSON.flag in invocation.options:
        import json  # noqa: PLC0415 -- it takes as long as all the rest

        about = {"vm": vm, "verb": invocation.command.verb} if vm else {}
        print(json.dumps(about | reply), flush=True)


def agreed(question: str) -> bool:
    """Ask on the terminal, and tell whether the answer is yes."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        warn("")
        raise
    if not answer:
        warn("")
    return answer.strip().lower() in ("y", "yes")


class Line:
    """A line at the bottom of a terminal that is drawn over and over; nothing elsewhere."""

    def __init__(self) -> None:
        self._drawn = False

    def draw(self, text: str) -> None:
        """Draw the text, cut to the terminal's width, in the place of what was there."""
        if sys.stderr.isatty() and not hushed.now:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            sys.stderr.write(f"\r\x1b[K{text[: max(width - 1, 10)]}")
            sys.stderr.flush()
            self._drawn = True

    def clear(self) -> None:
        """Take the line away."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


moving = Line()
"""The one line that a terminal has."""
