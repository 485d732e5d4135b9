"""Files of this host that a command on another one needs: each is copied there first, into a new directory.

A session there, the keeper, makes the directory, and deletes it when its input ends: after the command, and
if this process or the connection is dead. The content goes through tar(1), which leaves holes out.
"""

from __future__ import annotations

import os
import stat
import sys

from vmessctl.cli import verbs
from vmessctl.cli.verbs import Invocation
from vmessctl.commands.transfer import PIECE, Bar
from vmessctl.hosts import session
from vmessctl.output import foreground
from vmessctl.output.descriptors import write_all
from vmessctl.output.terminal import say, status_lines
from vmessctl.ssh import masters
from vmessctl.ssh.remote_line import Opening, remote_line
from vmessd.core import names, places
from vmessd.core.errors import Failed, InvalidValue, Unreachable, failing, printable, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from vmessctl.ssh.masters import Seat

TEMPORARY = "mode=700 base=${TMPDIR:-/var/tmp}"
STAYS = (
    f'mode=711 base={places.SERVICE_ISOS}; [ -z "$VMESS_SOCKET" ] && [ -w "$base" ] || '
    "mode=700 base=${XDG_DATA_HOME:-$HOME/.local/share}/vmess"
)
"""Where a medium stays: with the service, vmessd and QEMU see no home directory."""
KEEP = b"keep\n"
_KEEPER = (
    'umask 077; mkdir -p -- "$base" && d=$(mktemp -d "$base/upload-XXXXXX") && chmod $mode "$d" || exit 1; '
    "trap 'rm -rf -- \"$d\"' EXIT; trap 'exit 1' HUP INT TERM; "
    """printf '%s\\n' "$d"; read -r word; [ "$word" = keep ] && trap - EXIT; exit 0"""
)
"""For sh(1), behind one of the above: prints the directory; deletes it at the end, unless told to keep it."""
END_TIME = 10.0
"""Seconds that a keeper may take to delete its directory before it is left alone with that."""
_FILES = {**dict.fromkeys(names.DISKS, 0), names.CDROM: 0, "import": 0, "images": 1}
"""The place of the file among the arguments of a verb."""


def check(invocation: Invocation) -> None:
    """Raise InvalidValue unless each file to be copied is one of this host."""
    for step in invocation.steps():
        if verbs.UPLOAD.flag in step.options:
            if verbs.LINKED.flag in step.options:
                raise InvalidValue(
                    "--upload deletes the file afterwards, and a disk with --linked is based on it"
                )
            _opened(step)


def _opened(step: Invocation) -> tuple[str, os.stat_result]:
    """Return the path of the file that a verb names; raises InvalidValue."""
    place = _FILES[step.command.verb]
    path = step.arguments[place] if len(step.arguments) > place else ""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise InvalidValue(
            f"{verbs.UPLOAD.flag}: {quoted(path, 300)} is not a file of this host",
            hint=f"usage: {step.command.usage()}",
        )
    return path, found


class Uploads:
    """The files of a line, on that host until the end of the `with` block."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._keepers: list[_Keeper] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for keeper in self._keepers:
            keeper.end()

    def bring(self, invocation: Invocation) -> None:
        """Copy all files of a line, and put their paths there into its arguments.

        Raises:
            Failed, Unreachable: one cannot be read, or copied.
        """
        for step in invocation.steps():
            if verbs.UPLOAD.flag not in step.options:
                continue
            path, found = _opened(step)
            keeper = _Keeper(self._seat.host, stays=step.command.verb == names.CDROM)
            self._keepers.append(keeper)
            _copy(self._seat, path, found, keeper)
            arguments = list(step.arguments)
            arguments[_FILES[step.command.verb]] = f"{keeper.directory}/{os.path.basename(path)}"
            step.arguments = tuple(arguments)
            del step.options[verbs.UPLOAD.flag]

    def keep(self) -> None:
        """Leave there what the VMs use from now on, and say where it is."""
        for keeper in self._keepers:
            if keeper.stays:
                keeper.keep()
                say(f"the medium stays on {self._seat.host}: {printable(keeper.directory)}")


class _Keeper:
    """The session that has the directory of a file."""

    def __init__(self, host: str, *, stays: bool) -> None:
        self.stays = stays
        self.directory = ""
        self._host = host
        self._seat: Seat | None = None
        self._process: foreground.Child | None = None
        self._life = -1

    def begin(self) -> str:
        """Make the directory, and return its path; raises Failed, Unreachable."""
        self._seat = masters.take(self._host, may_ask=False)
        mark = session.new_mark()
        script = f"{STAYS if self.stays else TEMPORARY}; {_KEEPER}"
        line = remote_line(["sh", "-c", script], session.called(self._seat), mark)
        source, self._life = os.pipe()
        self._process = session.begun(self._seat, line, source)
        self.directory = self._first_line(Opening(mark))
        return self.directory

    def _first_line(self, opening: Opening) -> str:
        output = b""
        assert self._process is not None and self._process.stdout is not None  # noqa: S101, PT018 -- just begun
        while not output.endswith(b"\n"):
            data = os.read(self._process.stdout.fileno(), PIECE)
            if not data:
                raise Failed(
                    f"no directory can be made on {self._host}", hint=f"look there: ssh {self._host} df -h"
                )
            output += opening.read(data)
        return output.decode("utf-8", "surrogateescape").rstrip("\n")

    def keep(self) -> None:
        """Let the directory stay."""
        with failing(f"the connection to {self._host} broke"):
            write_all(self._life, KEEP)

    def end(self) -> None:
        """Let the directory go, and wait until it is gone."""
        if self._life >= 0:
            os.close(self._life)
        if self._process is not None:
            if not foreground.ends_within(self._process, END_TIME):
                say(f"{self._host} does not answer; when it does, it deletes {printable(self.directory)}")
                self._process.terminate()
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._seat is not None:
            self._seat.close()


def _copy(seat: Seat, path: str, found: os.stat_result, keeper: _Keeper) -> None:
    """Copy a file into the directory of a keeper, which is begun; raises Failed, Unreachable."""
    directory = keeper.begin()
    parent, name = os.path.split(path)
    mode = "--mode=u=rw,go=r" if keeper.stays else "--mode=u=rw,go="  # the user of QEMU reads what stays
    words = ["--create", "--sparse", "--dereference", mode, "--file=-"]
    with failing("tar cannot be run"):
        tar = foreground.beside(["tar", *words, f"--directory={parent or '.'}", f"./{name}"])
    line = remote_line(["tar", "-x", "-p", "-o", "-f", "-", "-C", directory], session.called(seat))
    source, sink = os.pipe()
    try:
        there = session.begun(seat, line, source)
    except Unreachable:
        os.close(sink)
        tar.terminate()
        raise
    size = min(found.st_size, found.st_blocks * 512)
    try:
        _pump(tar, sink, Bar(f"{printable(name)}: copying to {seat.host}", size))
    except BaseException:
        tar.terminate()
        there.terminate()
        raise
    finally:
        status_lines.clear()
    read, written = tar.wait(), there.wait()
    if there.stdout is not None:
        there.stdout.close()
    if written:
        raise Failed(
            f"{quoted(path, 300)} cannot be copied to {seat.host}", hint=f"look there: ssh {seat.host} df -h"
        )
    if read:
        raise Failed(f"{quoted(path, 300)} cannot be read whole", hint="leave it alone, and repeat the command")


def _pump(tar: foreground.Child, sink: int, bar: Bar) -> None:
    """Pass on what tar reads; the other side may have ended, and has said why."""
    assert tar.stdout is not None  # noqa: S101 -- it is a pipe
    done = 0
    with tar.stdout, os.fdopen(sink, "wb", buffering=0) as target:
        try:
            while data := os.read(tar.stdout.fileno(), PIECE):
                write_all(target.fileno(), data)
                done += len(data)
                if sys.stderr.isatty():
                    bar.show(done)
        except BrokenPipeError:
            return
