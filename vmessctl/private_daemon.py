"""Starts a private `vmessd` for a person who has none, as tmux starts its server.

It is started as a program, and stays when the client ends. Two clients at once start one.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import time

from vmessctl.cli.verbs import PROGRAM
from vmessctl.environment import variable
from vmessd.core import places, stdio
from vmessd.core.errors import TimedOut, Unreachable, VmessError, printable, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

START_TIME = 30.0
"""Seconds that a daemon may take to start; one whose disk is slow takes ten."""
RETRY = 0.02
"""Seconds between looks whether another client has started the daemon."""
SAID_MAX = 65536
"""Bytes of a daemon's complaint that are read."""
OWN_UNIT = "systemd/user/default.target.wants/vmessd.service"
"""Where `systemctl --user enable` puts the link, below $XDG_CONFIG_HOME."""
DEFAULT = (1, 2, 3, 13, 15)
"""SIGHUP, SIGINT, SIGQUIT, SIGPIPE and SIGTERM (signal(7)), which the program that starts a client may ignore.

They are numbers because `signal` is slow to import."""
COMPLAINT, HINT = "vmessd: ", "  hint: "
"""What the lines of a daemon that does not start begin with."""


def start(answers: Callable[[], bool], *, silent: bool) -> None:
    """Start a private daemon unless `answers` tells that another client has done so; wait until it serves.

    Raises:
        Unreachable: it does not start, or another one should serve.
        TimedOut: it takes longer than :data:`START_TIME`.
    """
    leave_to_service()
    deadline = time.monotonic() + START_TIME
    lock = _lock_file()
    try:
        while not _locked(lock):
            if answers():
                return
            if time.monotonic() > deadline:
                raise _late()
            time.sleep(RETRY)
        if answers():
            return
        try:
            _start(deadline)
        except Unreachable:
            if not answers():  # otherwise one was started by hand meanwhile
                raise
            return
    finally:
        os.close(lock)
    if not silent:
        _tell(f"{PROGRAM}: started a private vmessd, which ends by itself when unused; see: {PROGRAM} daemon")


def leave_to_service() -> None:
    """Raise Unreachable where a service manager looks after the daemon that this person should use."""
    if os.path.isdir(places.SERVICE_DIRECTORY):
        raise Unreachable(
            f"the host's vmessd does not answer on {places.SERVICE_SOCKET}",
            hint="systemctl status vmessd; or start your own: vmessd --background",
        )
    if any(map(os.path.exists, places.SERVICE_UNITS)):
        raise Unreachable(
            "the host's vmessd is installed and does not run",
            hint="systemctl start vmessd; or start your own: vmessd --background",
        )
    directory = variable("XDG_CONFIG_HOME") or f"{variable('HOME') or ''}/.config"
    if os.path.lexists(f"{directory}/{OWN_UNIT}"):
        raise Unreachable(
            "your own service vmessd does not answer",
            hint="systemctl --user restart vmessd; systemctl --user status vmessd",
        )


def _lock_file() -> int:
    """Return a descriptor of the file that is locked during a start; raises Unreachable."""
    path = places.own_directories(variable, os.geteuid())[0]
    try:
        directory = places.opened(path, create=True)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(places.LOCK, flags, 0o600, dir_fd=directory)
        finally:
            os.close(directory)
    except VmessError as error:
        raise Unreachable(f"no private vmessd was started: {error.message}", error.hint) from None
    except OSError as error:
        why = f"{printable(f'{path}/{places.LOCK}')} cannot be used: {reason(error)}"
        raise Unreachable(f"no private vmessd was started: {why}", places.ELSEWHERE) from None


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _late() -> TimedOut:
    return TimedOut(f"vmessd has not started within {START_TIME:g} s", hint=f"{PROGRAM} daemon log")


def _command() -> tuple[list[str], dict[str, str]]:
    """Return the words that run vmessd, and additions to its environment.

    It is the program beside this one, or else the package beside this one, never one in the current directory.
    """
    if os.sep in sys.argv[0]:
        beside = os.path.join(os.path.dirname(os.path.realpath(sys.argv[0])), "vmessd")
        if os.path.isfile(beside) and os.access(beside, os.X_OK):
            return [beside], {}
    library = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = variable("PYTHONPATH")
    return [sys.executable, "-P", "-m", "vmessd"], {
        "PYTHONPATH": f"{library}{os.pathsep}{path}" if path else library
    }


def _start(deadline: float) -> None:
    """Start a daemon and wait until it serves; raises Unreachable, TimedOut."""
    words, more = _command()
    reader, writer = os.pipe()
    try:
        try:
            pid = os.posix_spawn(
                words[0],
                [*words, "--background"],
                {**os.environ, **more},
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, writer, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=DEFAULT,
            )
        except OSError as error:
            why = f"{printable(words[0])} cannot be run: {reason(error)}"
            raise Unreachable(
                f"no private vmessd was started: {why}", hint="start it by hand: vmessd --background"
            ) from None
        finally:
            os.close(writer)
        said = _read(reader, deadline)
    finally:
        os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise refusal(said.decode(errors="replace"), status)


def _read(reader: int, deadline: float) -> bytes:
    """Return what a daemon says until it serves or has ended; raises TimedOut."""
    said = b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _late()
        data = os.read(reader, SAID_MAX)
        if not data:
            return said
        said = (said + data)[-SAID_MAX:]


def refusal(said: str, status: int) -> Unreachable:
    """Return the error for a daemon that did not start: its own complaint and hint, or how it ended. Pure."""
    lines = said.splitlines()
    complaints = [number for number, line in enumerate(lines) if line.startswith(COMPLAINT)]
    if complaints:
        number = complaints[-1]
        after = "".join(lines[number + 1 : number + 2])
        hint = after.removeprefix(HINT) if after.startswith(HINT) else f"{PROGRAM} daemon log"
        return Unreachable(f"no private vmessd was started: {lines[number].removeprefix(COMPLAINT)}", hint)
    how = f"exit status {status}" if status >= 0 else f"signal {-status}"
    last = f": {lines[-1]}" if lines else ""
    return Unreachable(f"vmessd ended with {how} before it served{last}", hint=f"{PROGRAM} daemon log")


def _tell(text: str) -> None:
    try:
        print(text, file=sys.stderr)  # noqa: T201 -- said once, before the output of the verb
    except OSError:
        stdio.give_up(2)
