"""What happens on a terminal: lines for people, complaints, and lines that move.

Data go to standard output, everything else to standard error; what moves, moves on a terminal only.
"""

from __future__ import annotations

import posix
import sys
from _stat import S_ISFIFO  # what `stat` has it from

from vmessctl import light_json
from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect, told
from vmessctl.environment import variable
from vmessd.core import stdio
from vmessd.core.errors import VmessError, worst

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmessctl.client import Client, Reply


PLAIN = "\x1b[0m"
"""Ends colours and all that is like them (SGR 0 of ECMA-48)."""
TOGETHER = 1000
"""VMs that are looked at by one call, whose names fit into a message the daemon takes."""


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
    """Print what is wrong; where nothing can be printed, the exit status has to say it."""
    try:
        print(text, file=sys.stderr)
    except OSError:
        stdio.give_up(2)


complaints: list[VmessError] = []
"""What has been complained of so far."""


def complain(error: VmessError) -> int:
    """Print an error and its hint, a line each; return the exit status."""
    complaints.append(error)
    warn(f"{PROGRAM}: {error.message}")
    if error.hint:
        warn(f"  hint: {error.hint}")
    return error.status


def for_each(invocation: Invocation, work: Callable[[Client, str], int]) -> int:
    """Do the same for every VM over one connection; each is reported, the worst status wins."""
    client = connect(invocation)
    statuses = []
    for vm in invocation.vms:
        if client.is_lost:
            client.close()
            client = connect(invocation)
        try:
            statuses.append(work(client, vm))
        except VmessError as error:
            statuses.append(complain(error))
    client.close()
    return worst(statuses)


def look_at_each(invocation: Invocation, work: Callable[[Reply, str], int]) -> int:
    """Do something with what the daemon tells of every VM, of several by one call; the worst status wins."""
    method = invocation.command.method
    if len(invocation.vms) == 1:
        return for_each(invocation, lambda client, vm: work(client.call(method, vm=vm), vm))
    client = connect(invocation)
    statuses = []
    for start in range(0, len(invocation.vms), TOGETHER):
        vms = list(invocation.vms[start : start + TOGETHER])
        client.send("Look", {"vms": vms, "aspect": method.lower()}, more=True)
        for vm in vms:
            view = client.receive()[0]["view"]
            try:
                if view["refusal"]:
                    raise told(view["refusal"]["error"], view["refusal"])
                statuses.append(work({method.lower(): view[method.lower()]}, vm))
            except VmessError as error:
                statuses.append(complain(error))
    client.close()
    return worst(statuses)


def show(invocation: Invocation, reply: Reply, text: Callable[[Reply], str], vm: str = "") -> None:
    """Print an answer: as `text` makes it for people, or as JSON where that is asked for."""
    if verbs.JSON.flag in invocation.options:
        emit(invocation, reply, vm)
    elif shown := text(reply):
        prefix = f"{vm}: " if len(invocation.vms) > 1 else ""
        print("\n".join(f"{prefix}{line}" for line in shown.splitlines()))


def emit(invocation: Invocation, reply: Reply, vm: str = "") -> None:
    """Print an answer as a line of JSON, where that is asked for; one about a VM says so, and what asked."""
    if verbs.JSON.flag in invocation.options:
        about = {"vm": vm, "verb": invocation.command.verb} if vm else {}
        print(light_json.dumps(about | reply), flush=True)


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


def may_move() -> bool:
    """Tell whether standard error is a terminal that can draw over what it shows.

    What standard output has in a pipe may come to the same terminal, and would be drawn over.
    """
    piped = S_ISFIFO(posix.fstat(sys.stdout.fileno()).st_mode)
    return sys.stderr.isatty() and not piped and variable("TERM") != "dumb"


def painted(text: str, colour: str) -> str:
    """Return a text in a colour, parameters of SGR (ECMA-48), for a terminal; unless NO_COLOR is set."""
    return f"\x1b[{colour}m{text}\x1b[m" if colour and not variable("NO_COLOR") else text


class Lines:
    """Lines at the bottom of a terminal that are drawn over and over; nothing elsewhere."""

    def __init__(self) -> None:
        self._drawn: list[int] = []
        """How many characters each has."""

    def draw(self, *texts: str | tuple[str, str]) -> None:
        """Draw texts, or colours and texts, in the place of what was there, a line each.

        None is longer than the terminal is wide; of more than it has lines, the last says how many.
        """
        if not may_move() or hushed.now:
            return
        size = posix.get_terminal_size(sys.stderr.fileno())
        width, height = size.columns or 80, size.lines or 24
        wanted = [("", text) if isinstance(text, str) else text for text in texts]
        # Behind the last one a terminal may write ^C, and that is not to fold it.
        shown = fitting([(colour, text) for colour, text in wanted if text], width - 3, height - 1)
        if shown or self._drawn:
            lines = "\r\n".join(painted(text, colour) for colour, text in shown)
            try:
                sys.stderr.write(self._erasure(width) + lines)
                sys.stderr.flush()
            finally:  # Ctrl-C may come as soon as they are seen
                self._drawn = [len(text) for _, text in shown]

    def clear(self) -> None:
        """Take the lines away."""
        if self._drawn:
            self.draw()

    def leave(self) -> None:
        """Take the lines away after Ctrl-C, and the ^C that a terminal writes where the cursor is."""
        if may_move():
            sys.stderr.write(self._erasure(posix.get_terminal_size(sys.stderr.fileno()).columns or 80))
            sys.stderr.flush()
            self._drawn = []

    def _erasure(self, width: int) -> str:
        """Return what takes away the lines that are there; a narrower terminal may have folded them since."""
        rows = sum(max(1, -(-length // width)) for length in self._drawn)
        return f"\r\x1b[{rows - 1}A\x1b[J" if rows > 1 else "\r\x1b[K"


def fitting(texts: list[tuple[str, str]], width: int, height: int) -> list[tuple[str, str]]:
    """Return colours and texts, cut to a width; where there are too many, the last says how many more."""
    width, height = max(width, 10), max(height, 1)
    if len(texts) > height:
        texts = [*texts[: height - 1], ("", f"and {len(texts) - height + 1} more")]
    return [(colour, text[:width]) for colour, text in texts]


def is_live(invocation: Invocation) -> bool:
    """Tell whether lines that move stand for those that say what goes on: on a terminal, for several VMs."""
    moves = may_move() and sys.stdout.isatty() and not hushed.now
    return moves and (invocation.command.is_global or len(invocation.vms) > 1)


moving = Lines()
"""The lines that a terminal has for what goes on."""
