"""The verbs export and import: a whole VM goes into a file, or comes from one.

The daemon passes a socket, and this process reads or writes the file: the daemon opens no path of the user's. A
file gets its name when it is whole: whatever happens before leaves none.
"""

from __future__ import annotations

import os
import stat
import sys
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect, versions
from vmessctl.commands.progress import bar, follow
from vmessctl.output.descriptors import write_all
from vmessctl.output.new_file import STANDARD, NewFile, must_be_new
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.terminal import emit, say, status_lines, tell
from vmessd.core import names
from vmessd.core.errors import DONE, Failed, InvalidValue, failing, printable, shell_line
from vmessd.core.quantities import size_shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply

PIECE = 1 << 20
"""Bytes that are copied at a time."""
BEGIN_TIME = 300.0
"""Seconds that the daemon may take to look through the disks before an export, in addition."""
REDRAW = 0.2
"""Seconds between two states of the bar."""


class Bar:
    """The line that shows how far a transfer is."""

    def __init__(self, doing: str, size: int | None) -> None:
        self._doing = doing
        self._size = size
        self._at = 0.0

    def show(self, done: int) -> None:
        """Draw the line if it is time."""
        if time.monotonic() - self._at < REDRAW:
            return
        self._at = time.monotonic()
        if not self._size:
            status_lines.draw(f"{self._doing}: {size_shown(done)}")
            return
        sizes = f"{size_shown(done)} of {size_shown(self._size)}"
        status_lines.draw(f"{bar(self._doing, min(100, 100 * done // self._size))}, {sizes}")


def export(invocation: Invocation) -> int:
    """Write a VM into a file; return the exit status."""
    if (form := invocation.options.get(verbs.FORMAT.flag)) is not None:
        from vmessctl.commands import foreign  # noqa: PLC0415 -- an archive does not need it

        return foreign.export(invocation, form)
    (vm,), (file,) = invocation.vms, invocation.arguments
    if file == STANDARD and sys.stdout.isatty():
        raise InvalidValue(
            "an export is not written to a terminal",
            hint=f"name a file: {shell_line([PROGRAM.name, vm, 'export', f'{vm}.tar'])}",
        )
    must_be_new(file)
    client = connect(invocation)
    with NewFile(file) as output:
        last = _export(client, vm, file, output)
    _report(invocation, last["vm"], "export", file, last)
    client.close()
    return DONE


def _export(client: Client, vm: str, file: str, output: int) -> Reply:
    """Have a VM exported into an open file; return the last progress."""
    client.wait_longer(BEGIN_TIME)
    client.send("Export", {"vm": vm}, more=True)
    begun = client.receive()[0]["transfer"]["progress"]
    client.wait_longer(0.0)
    channel = client.descriptors(1)[0]
    try:
        if file != STANDARD:
            _check_space(file, output, begun["size"])
        size = _drain(channel, output, file, Bar(f"{begun['vm']}: exporting", begun["size"]))
    finally:
        os.close(channel)
        status_lines.clear()
    last: Reply = client.receive()[0]["transfer"]["progress"]
    if size != last["size"]:
        raise Failed(f"vmessd sent {size} bytes of an archive of {last['size']}", hint=versions())
    return last


def take(invocation: Invocation) -> int:
    """Make a VM of a file; return the exit status."""
    if (form := invocation.options.get(verbs.FORMAT.flag)) is not None:
        from vmessctl.commands import foreign  # noqa: PLC0415 -- as above

        return foreign.take(invocation, form)
    file, *more = invocation.arguments
    name = names.parse(more[0]) if more else None
    if file == STANDARD and sys.stdin.isatty():
        raise InvalidValue(
            "an archive is not read from a terminal", hint=f"name a file: {PROGRAM} import newvm.tar"
        )
    source = _open(file)
    try:
        client = connect(invocation)
        client.send("Import", {"name": name}, more=True)
        client.receive()
        channel = client.descriptors(1)[0]
        found = os.fstat(source)
        size = found.st_size if stat.S_ISREG(found.st_mode) else None
        try:
            _fill(source, channel, file, Bar(f"{name or printable(file)}: importing", size))
        finally:
            os.close(channel)
            status_lines.clear()
    finally:
        os.close(source)
    last = follow(client, _doing, lambda reply: reply["transfer"]["progress"])
    client.close()
    _report(invocation, last["vm"], "import", file, last)
    return DONE


def _doing(progress: Reply) -> str:
    """Return what the daemon does with a disk of an OVA."""
    return f"{progress['vm']} {progress['disk']}: {progress['step']}"


def _report(invocation: Invocation, vm: str, verb: str, file: str, last: Reply) -> None:
    emit(invocation, {"progress": last}, vm)
    if file != STANDARD or verb == "import":
        shown = "standard input" if file == STANDARD else printable(file)
        tell(about(vm, phrase(verb, file=shown, size=size_shown(last["size"]))))
    for note in last["notes"] or ():
        say(command(f"{vm}: {printable(note)}"))


# -- The bytes --


def _check_space(file: str, output: int, wanted: int) -> None:
    room = os.fstatvfs(output)
    if wanted > (free := room.f_bavail * room.f_frsize):
        sizes = f"{size_shown(wanted)} are needed, {size_shown(free)} are free"
        hint = f"to look: {shell_line(['df', '-h', os.path.dirname(file) or '.'])}"
        raise Failed(f"there is no space for {printable(file)}: {sizes}", hint=hint)


def _drain(channel: int, output: int, file: str, bar: Bar) -> int:
    """Copy an archive from the daemon; return its size."""
    size = 0
    while True:
        with failing("vmessd hung up"):
            data = os.read(channel, PIECE)
        if not data:
            return size
        with failing(f"{'standard output' if file == STANDARD else printable(file)} cannot be written"):
            write_all(output, data)
        size += len(data)
        bar.show(size)


# -- The file of an import --


def _open(file: str) -> int:
    if file == STANDARD:
        return os.dup(sys.stdin.fileno())
    with failing(f"{printable(file)} cannot be read"):
        return os.open(file, os.O_RDONLY)


def _fill(source: int, channel: int, file: str, bar: Bar) -> None:
    """Copy an archive to the daemon, which may refuse it at any moment, and then says why."""
    size = 0
    while True:
        with failing(f"{printable(file)} cannot be read"):
            data = os.read(source, PIECE)
        if not data:
            return
        try:
            write_all(channel, data)
        except OSError:
            return
        size += len(data)
        bar.show(size)
