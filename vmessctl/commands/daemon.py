"""The verb daemon: shows the daemon that answers, ends it, and shows its log."""

from __future__ import annotations

import os
import select
import time

from vmessctl import private_daemon
from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import Client, candidates, named
from vmessctl.commands import logs
from vmessctl.environment import variable
from vmessctl.output import rendering
from vmessctl.output.terminal import emit, show, tell
from vmessd.core import places
from vmessd.core.errors import (
    DONE,
    INTERRUPTED,
    Failed,
    InvalidValue,
    TimedOut,
    Unreachable,
    printable,
    quoted,
    reason,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Reply

END_TIME = 30.0
"""Seconds that a daemon may take to end."""
SILENCE = 5.0
"""Seconds without an answer after which a daemon that is to end counts as hanging."""
KILL_TIME = 5.0
"""Seconds that it has then, before it is killed."""
PACE = 0.2
"""Seconds between looks whether the log has grown."""
PIECE = 1 << 16


def run(invocation: Invocation) -> int:
    """Show, end, or show the log of the daemon; never start one."""
    word = invocation.arguments[0] if invocation.arguments else "status"
    if word not in WORDS:
        known = ", ".join(WORDS)
        raise InvalidValue(f"daemon takes {known}, not {quoted(word)}", hint=f"{PROGRAM} help daemon")
    return WORDS[word](invocation)


def _client(invocation: Invocation) -> Client:
    """Connect without starting a daemon; raises Unreachable."""
    absent: list[bool] = []
    option = invocation.options.get(verbs.SOCKET.flag)
    try:
        return Client(candidates(option), otherwise=lambda: absent.append(True))
    except Unreachable as error:
        if not absent or named(option) or variable("VMESS_NO_DAEMON"):
            raise
        private_daemon.leave_to_service()
        raise Unreachable("no vmessd runs; the next command starts one", hint=PROGRAM.name) from error


def _status(invocation: Invocation) -> int:
    client = _client(invocation)
    show(invocation, client.call("Daemon"), rendering.daemon)
    client.close()
    return DONE


def _stop(invocation: Invocation) -> int:
    option = invocation.options.get(verbs.SOCKET.flag)
    paths = [path for path in candidates(option) if named(option) or path != places.SERVICE_SOCKET]
    absent: list[bool] = []
    try:
        client = Client(paths, SILENCE, otherwise=lambda: absent.append(True))
    except Unreachable:
        if not absent:
            raise
        emit(invocation, {"pid": None})
        tell("no private vmessd runs")
        return DONE
    pid = client.peer()
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise Failed(f"vmessd (PID {pid}) cannot be ended: {reason(error)}") from None
    # The daemon has the connection open, so the PID is still its own, even if it does not answer.
    try:
        daemon: Reply | None = client.call("Daemon")["daemon"]
    except TimedOut:
        daemon = None
    client.close()
    if places.SERVICE_SOCKET in ([daemon["socket"]] if daemon else map(os.path.realpath, paths)):
        raise Failed("the host's service is not ended from here", hint="systemctl stop vmessd")
    was_killed = _end(process, pid, answers=daemon is not None)
    emit(invocation, {"pid": pid})
    tell(rendering.daemon_ended(daemon) if daemon else rendering.daemon_forced(pid, was_killed=was_killed))
    return DONE


def _end(process: int, pid: int, *, answers: bool) -> bool:
    """End a daemon, and kill one that neither answers nor ends; tell whether it was killed.

    Raises:
        Failed: it cannot be ended.
        TimedOut: it has not ended in time.
    """
    from signal import SIGKILL, SIGTERM, pidfd_send_signal  # noqa: PLC0415 -- slow to import, needed only here

    poll = select.poll()
    poll.register(process, select.POLLIN)
    for number, seconds in ((SIGTERM, END_TIME),) if answers else ((SIGTERM, KILL_TIME), (SIGKILL, END_TIME)):
        try:
            pidfd_send_signal(process, number)
        except OSError as error:
            raise Failed(f"vmessd (PID {pid}) cannot be ended: {reason(error)}") from None
        if poll.poll(seconds * 1000):
            return number == SIGKILL
    raise TimedOut(f"vmessd (PID {pid}) has not ended within {END_TIME:g} s", hint=f"{PROGRAM} daemon log")


def _log(invocation: Invocation) -> int:
    path = _log_path(invocation)
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Failed(f"log {printable(path)} cannot be read: {reason(error)}") from None
    put = logs.printer(invocation, logs.escaped)
    try:
        while True:
            while data := os.read(file, PIECE):
                put(data)
            if verbs.FOLLOW.flag not in invocation.options:
                put(b"")
                return DONE
            time.sleep(PACE)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        os.close(file)


def _log_path(invocation: Invocation) -> str:
    """Return the log of the daemon that answers, or else the newest one of this user; raises Failed."""
    try:
        client = _client(invocation)
    except Unreachable:
        if named(invocation.options.get(verbs.SOCKET.flag)):
            raise
        there = [path for path in places.logs(variable, os.geteuid()) if os.path.isfile(path)]
        if not there:
            raise
        return max(there, key=os.path.getmtime)
    reply: Reply = client.call("Daemon")["daemon"]
    client.close()
    if reply["log"] is None:
        raise Failed(
            f"the vmessd on {reply['socket']} logs to its standard error, not to a file",
            hint="for the host's service: journalctl -u vmessd",
        )
    return str(reply["log"])


WORDS = {"status": _status, "stop": _stop, "log": _log}
