"""Output to the terminal: results, errors, and status lines that are redrawn.

Data goes to standard output, everything else to standard error. Lines are redrawn only on a terminal.
"""

from __future__ import annotations

import posix
import sys
from _stat import S_ISFIFO  # where `stat` takes it from

from vmessctl import light_json
from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect, error_from_wire
from vmessctl.environment import variable
from vmessctl.output import phrases
from vmessd.core import stdio
from vmessd.core.errors import NoSuchVM, NotPermitted, VmessError, worst

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmessctl.client import Client, Reply


PLAIN = "\x1b[0m"
"""Resets colours and attributes (SGR 0 of ECMA-48)."""
AHEAD = 4
"""VMs that a verb works on at a time. More of them gain nothing on one disk."""
BATCH = 1000
"""VMs in one call; their names fit into the daemon's message limit."""


class hushed:  # noqa: N801 -- it reads as a statement: with hushed(...)
    """Suppress reports of what was done, for --quiet and --json. Use as a context manager."""

    now = False

    def __init__(self, on: bool) -> None:
        self._on = on

    def __enter__(self) -> None:
        hushed.now = self._on

    def __exit__(self, *_error: object) -> None:
        hushed.now = False


def tell(text: str) -> None:
    """Report what was done, on standard output; an empty text is nothing to report."""
    if text and not hushed.now:
        status_lines.clear()
        print(text, flush=True)


def say(text: str) -> None:
    """Print a remark on standard error; an empty text is not printed."""
    if text and not hushed.now:
        warn(text)


def warn(text: str) -> None:
    """Print to standard error; if that fails, only the exit status remains."""
    try:
        status_lines.clear()
        print(text, file=sys.stderr)
    except OSError:
        stdio.give_up(2)


def advise(hint: str) -> None:
    """Print a hint on standard error; one from another host names the program as it was called on this side."""
    called = variable("VMESS_CALLED")
    if called and called.isprintable():
        hint = " ".join(called if word == PROGRAM.name else word for word in hint.split(" "))
    warn(f"  hint: {hint}")


complaints: list[VmessError] = []
"""The errors printed so far."""


def complain(error: VmessError) -> int:
    """Print an error and its hints on one line each; return the exit status."""
    complaints.append(error)
    warn(f"{PROGRAM}: {phrases.message(error)}")
    if isinstance(error, NotPermitted) and error.instead:
        advise(error.instead)
    if error.hint:
        advise(phrases.command(error.hint))
    return error.status


def for_each(
    invocation: Invocation,
    work: Callable[[Client, str], int],
    begin: Callable[[Client, str], None] | None = None,
) -> int:
    """Do the same for every VM, in order. Errors are reported; return the worst status.

    `begin` begins the first call of the work, see :meth:`Client.begin`: some VMs are ahead of their turn, so
    that the daemon and its disk work on several.
    """
    vms = invocation.vms
    clients = [connect(invocation)]
    if begin is not None and len(vms) > 1:
        clients += _more_connections(invocation, min(AHEAD, len(vms)) - 1)
        for client, vm in zip(clients, vms, strict=False):
            begin(client, vm)
    statuses = []
    for number, vm in enumerate(vms):
        turn = number % len(clients)
        try:
            statuses.append(work(clients[turn], vm))
        except NoSuchVM as error:
            word = invocation.word
            statuses.append(complain(_unknown(clients[turn], word, error) if word else error))
        except VmessError as error:
            statuses.append(complain(error))
        following = number + len(clients)
        if clients[turn].is_lost and following < len(vms):
            clients[turn].close()
            clients[turn] = connect(invocation)
        if begin is not None and following < len(vms):
            begin(clients[turn], vms[following])
    for client in clients:
        client.close()
    return worst(statuses)


def _more_connections(invocation: Invocation, count: int) -> list[Client]:
    """Return that many connections, or as many as the daemon accepts."""
    found: list[Client] = []
    try:
        while len(found) < count:
            found.append(connect(invocation))
    except VmessError:
        pass
    return found


def _unknown(client: Client, word: str, error: NoSuchVM) -> VmessError:
    """Return the error for a word that stands alone and is not a VM: it may be a mistyped verb instead.

    As `vmess`, a word that resembles nothing gets the sentence of the original, which is that of the daemon. In
    a line with a verb, such as `laef3 rm`, the name is more likely mistyped than new.
    """
    from vmessctl.cli import mistyped  # noqa: PLC0415 -- only a wrong line needs it

    try:
        known = [vm["name"] for vm in client.call("List")["vms"]]
    except VmessError:
        return error
    suggestion = mistyped.meant(word, [*verbs.BY_VERB, *known])
    if PROGRAM.is_original and not suggestion:
        return NoSuchVM(error.message, error.hint)
    return mistyped.no_vm_or_verb(word, suggestion)


def show_each(invocation: Invocation, work: Callable[[Reply, str], int]) -> int:
    """Handle the daemon's view of every VM, several VMs in one call; return the worst status."""
    method = invocation.command.method
    if len(invocation.vms) == 1:
        return for_each(invocation, lambda client, vm: work(client.call(method, vm=vm), vm))
    client = connect(invocation)
    statuses = []
    for start in range(0, len(invocation.vms), BATCH):
        vms = list(invocation.vms[start : start + BATCH])
        client.send("Look", {"vms": vms, "aspect": method.lower()}, more=True)
        for vm in vms:
            view = client.receive()[0]["view"]
            try:
                if view["refusal"]:
                    raise error_from_wire(view["refusal"]["error"], view["refusal"])
                statuses.append(work({method.lower(): view[method.lower()]}, vm))
            except VmessError as error:
                statuses.append(complain(error))
    client.close()
    return worst(statuses)


def show(invocation: Invocation, reply: Reply, text: Callable[[Reply], str], vm: str = "") -> None:
    """Print a reply: formatted by `text`, or as JSON with --json. Of several VMs, each line names its VM."""
    if verbs.JSON.flag in invocation.options:
        emit(invocation, reply, vm)
    elif shown := text(reply):
        prefix = f"{vm}: " if len(invocation.vms) > 1 else ""
        lines = [f"{prefix}{line}" for line in shown.splitlines()]
        print("\n".join(lines), flush=True)  # before any line on standard error


def emit(invocation: Invocation, reply: Reply, vm: str = "") -> None:
    """With --json, print a reply as a line of JSON; one about a VM begins with the VM and the verb."""
    if verbs.JSON.flag in invocation.options:
        about = {"vm": vm, "verb": invocation.command.verb} if vm else {}
        print(light_json.dumps(about | reply), flush=True)


def answer(question: str) -> str:
    """Ask a question on the terminal, and return the answer, whatever bytes it has; Ctrl-D is `quit`."""
    try:
        sys.stderr.write(f"{question} ")
        sys.stderr.flush()
        line = sys.stdin.buffer.readline().decode(errors="replace")
    except KeyboardInterrupt:
        warn("")
        raise
    if not line:
        warn("")
    return line.strip() if line else "quit"


def output_width() -> int | None:
    """Return the width of the terminal that standard output is; None if it is not a terminal."""
    if not sys.stdout.isatty():
        return None
    return posix.get_terminal_size(sys.stdout.fileno()).columns or 80


def can_redraw() -> bool:
    """Tell whether lines may be redrawn: standard error is a capable terminal, standard output is not a pipe.

    The end of the pipe may write to the same terminal, and redrawing would overwrite it.
    """
    piped = S_ISFIFO(posix.fstat(sys.stdout.fileno()).st_mode)
    return sys.stderr.isatty() and not piped and variable("TERM") != "dumb"


def painted(text: str, colour: str) -> str:
    """Return text in a colour (SGR parameters of ECMA-48); without it if NO_COLOR is set."""
    return f"\x1b[{colour}m{text}\x1b[m" if colour and not variable("NO_COLOR") else text


class StatusLines:
    """Lines at the bottom of a terminal that are redrawn; no output elsewhere."""

    def __init__(self) -> None:
        self._drawn: list[int] = []
        """The length of each line in characters."""

    def draw(self, *texts: str | tuple[str, str]) -> None:
        """Replace the lines by these texts, or colours and texts, one line each.

        Lines are cut to the width of the terminal. If there are too many, the last line says how many more.
        """
        if not can_redraw() or hushed.now:
            return
        size = posix.get_terminal_size(sys.stderr.fileno())
        width, height = size.columns or 80, size.lines or 24
        wanted = [("", text) if isinstance(text, str) else text for text in texts]
        # Leave room for the ^C that a terminal echoes, which must not wrap the last line.
        shown = fitting([(colour, text) for colour, text in wanted if text], width - 3, height - 1)
        if shown or self._drawn:
            lines = "\r\n".join(painted(text, colour) for colour, text in shown)
            try:
                sys.stderr.write(self._erasure(width) + lines)
                sys.stderr.flush()
            finally:  # Ctrl-C may interrupt the flush
                self._drawn = [len(text) for _, text in shown]

    def clear(self) -> None:
        """Erase the lines."""
        if self._drawn:
            self.draw()

    def leave(self) -> None:
        """Erase the lines after Ctrl-C, and the ^C that the terminal has echoed."""
        if can_redraw():
            sys.stderr.write(self._erasure(posix.get_terminal_size(sys.stderr.fileno()).columns or 80))
            sys.stderr.flush()
            self._drawn = []

    def _erasure(self, width: int) -> str:
        """Return the sequence that erases the lines; a terminal made narrower may have wrapped them."""
        rows = sum(max(1, -(-length // width)) for length in self._drawn)
        return f"\r\x1b[{rows - 1}A\x1b[J" if rows > 1 else "\r\x1b[K"


def fitting(texts: list[tuple[str, str]], width: int, height: int) -> list[tuple[str, str]]:
    """Return colours and texts, cut to a size; if there are too many lines, the last says how many more."""
    width, height = max(width, 10), max(height, 1)
    if len(texts) > height:
        texts = [*texts[: height - 1], ("", f"and {len(texts) - height + 1} more")]
    return [(colour, text[:width]) for colour, text in texts]


def is_live(invocation: Invocation) -> bool:
    """Tell whether status lines replace reports of progress: on a terminal, for several VMs."""
    redraws = can_redraw() and sys.stdout.isatty() and not hushed.now
    return redraws and (invocation.command.is_global or len(invocation.vms) > 1)


status_lines = StatusLines()
"""The lines that show operations in progress."""
