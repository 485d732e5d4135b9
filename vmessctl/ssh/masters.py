"""The connections to other hosts: control masters of ssh(1), each shared by up to eight commands at a time.

Masters are started here and end by themselves. A command holds a lock on its place among the sessions of a
host. Its ssh inherits the lock, so that a place is free when nobody uses it any more, however that came about.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct

from vmessctl.environment import variable
from vmessctl.output import foreground
from vmessctl.ssh import signals
from vmessd.core import places
from vmessd.core.errors import Failed, Unreachable, failing, printable, quoted, reason
from vmessd.core.plainrecord import PlainRecord

SESSIONS = 8
"""Sessions of one master: sshd allows 10 (MaxSessions), and one that has just ended may still count."""
MASTERS = 32
"""Masters of one host."""
STARTS = 1 << 20
"""The place in the file of locks from which on each master has a byte for its start."""
PERSISTS = 60
"""Seconds that a master stays without a session."""
CONNECT_TIME = 10
"""Seconds in which a host has to answer, unless ssh_config(5) says otherwise."""
LOGIN_TIME = 30.0
"""More seconds for the login, where nobody is asked for a password."""
ALIVE_TIME, ALIVE_COUNT = 5, 3
"""A host that missed so many questions, so many seconds apart, is gone, unless ssh_config(5) says otherwise."""
NAME_MAX = 40
"""Characters of a host in the name of a socket. A path has 108 at most, of which ssh needs 17 for itself."""
CHANGED = "REMOTE HOST IDENTIFICATION HAS CHANGED"
UNKNOWN = "Host key verification failed"
DENIED = "Permission denied"
"""What ssh(1) says if a host key has changed or was never seen, and if a login is refused; seen in OpenSSH 9.2.
It has nothing but sentences, which are the same in all languages."""


class Seat(PlainRecord):
    """A place among the sessions of a host; its lock ends with the last process that has the descriptor."""

    def __init__(self, host: str, path: str, descriptor: int) -> None:
        self.host = host
        self.path = path
        """The control socket of the master."""
        self.descriptor = descriptor

    def argv(self, *options: str) -> list[str]:
        """Return the words of ssh for a session, before the command."""
        return ["ssh", "-S", escaped(self.path), "-a", "-x", *_settings(SESSION), *options, "--", self.host]

    def close(self) -> None:
        """Give the place back."""
        os.close(self.descriptor)


SESSION = {"ControlMaster": "no", "RemoteCommand": "none", "ClearAllForwardings": "yes"}
MASTER = {**SESSION, "ControlMaster": "auto", "ControlPersist": str(PERSISTS), "RequestTTY": "no"}
DEFAULTS = {
    # Key of `ssh -G`: what it says if ssh_config(5) does not, and what holds then.
    "connecttimeout": ("none", {"ConnectTimeout": str(CONNECT_TIME)}),
    "serveraliveinterval": (
        "0",
        {"ServerAliveInterval": str(ALIVE_TIME), "ServerAliveCountMax": str(ALIVE_COUNT)},
    ),
}


def take(host: str, *, may_ask: bool) -> Seat:
    """Return a place among the sessions of a host, whose master is there.

    Args:
        host: as :mod:`vmessctl.host_choice` has it.
        may_ask: ssh may ask for passwords on the terminal, and speaks for itself there.

    Raises:
        Unreachable: there is no way to log in.
        Failed: there are too many sessions, or the place for sockets cannot be used.
    """
    directory = _directory()
    base = f"{directory}/ssh-{_short(host)}"
    with failing(f"{base}.lock cannot be opened"):
        descriptor = os.open(f"{base}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        number = next((each for each in range(SESSIONS * MASTERS) if _locked(descriptor, each)), None)
        if number is None:
            raise Failed(
                f"{SESSIONS * MASTERS} commands for {host} run already", hint="wait for the end of some"
            )
        seat = Seat(host, f"{base}-{number // SESSIONS}", descriptor)
        _have_master(seat, number // SESSIONS, may_ask=may_ask)
    except BaseException:
        os.close(descriptor)
        raise
    return seat


def _have_master(seat: Seat, number: int, *, may_ask: bool) -> None:
    """Start the master of a seat unless it is there; one command does so, and the others wait for it."""
    if _answers(seat.path):
        return
    _wait_for(seat.descriptor, STARTS + number)
    try:
        if not _answers(seat.path):
            _start(seat, may_ask=may_ask)
    finally:
        _unlock(seat.descriptor, STARTS + number)


def _start(seat: Seat, *, may_ask: bool) -> None:
    """Log in to a host; raises Unreachable."""
    settings, seconds = _unset(seat.host)
    options = _settings({**MASTER, **settings, **({} if may_ask else {"BatchMode": "yes"})})
    argv = ["ssh", "-N", "-f", "-S", escaped(seat.path), "-a", "-x", *options, "--", seat.host]
    if may_ask:
        status, said = foreground.run(argv), ""
    else:
        status, said = foreground.heard(argv, seconds + LOGIN_TIME)
    if status == -signals.INTERRUPT:
        raise KeyboardInterrupt
    if status:
        raise refusal(seat.host, said)


def _unset(host: str) -> tuple[dict[str, str], float]:
    """Return the settings that ssh_config(5) leaves to us, and the seconds that it gives to a connection.

    Raises:
        Unreachable: there is no ssh, or its configuration is wrong.
    """
    try:
        status, text = foreground.answer(["ssh", "-G", "--", host])
    except OSError as error:
        raise Unreachable(f"ssh cannot be run: {reason(error)}", hint="install openssh-client") from None
    if status:
        raise Unreachable(f"ssh refuses its configuration for {host}", hint=f"ssh -G {host}")
    said = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    found: dict[str, str] = {}
    for key, (unset, ours) in DEFAULTS.items():
        if said.get(key, unset) == unset:
            found |= ours
    seconds = said.get("connecttimeout", "")
    return found, float(seconds) if seconds.isdecimal() else CONNECT_TIME


def refusal(host: str, said: str) -> Unreachable:
    """Return the error for a login that failed, from what ssh said of it, if that was not seen. Pure."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if CHANGED in said:
        remedy = next((line for line in lines if line.startswith("ssh-keygen ")), f"ssh-keygen -R {host}")
        return Unreachable(
            f"the host key of {host} has changed: it may be an impostor",
            hint=f"if you know why it has changed: {remedy}",
        )
    last = lines[-1] if lines else "ssh has said why"
    if last.startswith(UNKNOWN):
        last, hint = "its host key is not known yet", f"look at it, and accept it: ssh {host}"
    elif DENIED in last:
        hint = f"a key must do, without a password: ssh-copy-id {host}; or, for a while: ssh-add"
    else:
        hint = f"what works here is what works with ssh: ssh {host}"
    return Unreachable(f"{host} cannot be reached: {last}", hint=hint)


# -- Sockets and locks --


def _directory() -> str:
    """Return the directory of the control sockets, which is that of the person's own daemon; raises BadFile."""
    path = places.own_directories(variable, os.geteuid())[0]
    os.close(places.opened(path, create=True))
    if len(os.fsencode(path)) + len("/ssh--00") + NAME_MAX + len(".0123456789abcdef") >= 108:  # unix(7)
        raise Failed(
            f"the path {quoted(printable(path))} is too long for a control socket of ssh",
            hint="export XDG_RUNTIME_DIR=/run/user/$(id -u)",
        )
    return path


def _short(host: str) -> str:
    """Return a host as a part of the name of a file, by which it is told from all others."""
    if len(host) <= NAME_MAX:
        return host
    import hashlib  # noqa: PLC0415 -- rarely needed

    return f"={hashlib.blake2b(host.encode(), digest_size=16).hexdigest()}"


def _answers(path: str) -> bool:
    """Tell whether a master listens; it takes no notice of a connection without a message."""
    with failing("no socket can be created"):
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        return False
    finally:
        sock.close()
    return True


def escaped(path: str) -> str:
    """Return a path in which ssh expands nothing."""
    return path.replace("%", "%%")


def _settings(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]


def _flock(kind: int, place: int) -> bytes:
    """Return a `struct flock` for one byte (fcntl(2))."""
    return struct.pack("hhqqi0q", kind, os.SEEK_SET, place, 1, 0)


def _locked(descriptor: int, place: int) -> bool:
    """Lock a byte unless somebody else has; the lock is that of the open file, which children share."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK, place))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _wait_for(descriptor: int, place: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLKW, _flock(fcntl.F_WRLCK, place))


def _unlock(descriptor: int, place: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, place))
