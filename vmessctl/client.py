"""A blocking Varlink client: a socket, JSON and a NUL byte (https://varlink.org/Method-Call)."""

from __future__ import annotations

import _socket  # `socket` makes enums of all constants, for as long as all the rest takes
import posix  # `os` takes a tenth of the time of a `status` to import
import sys

from vmessctl import light_json
from vmessctl.cli import verbs
from vmessctl.environment import variable
from vmessd.core.errors import (
    BY_WIRE_NAME,
    INTERFACE,
    Failed,
    TimedOut,
    Unreachable,
    VmessError,
    failing,
    printable,
    quoted,
    reason,
    shell_line,
)

ANSWER_TIME = 30.0
"""Seconds a daemon may take for a plain call."""
HOSTS = "/run/vmess/control.sock"
"""Where the host's daemon, the service, listens."""
VERSIONS = f"vmessd is of another version than {verbs.PROGRAM}? restart it: systemctl restart vmessd"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Reply = dict[str, Any]


def candidates(option: str | None) -> list[str]:
    """Return where the control socket may be: as told, else a person's own place, then the service's."""
    told = option or variable("VMESS_SOCKET")
    if told:
        return [told]
    own = variable("XDG_RUNTIME_DIR")
    return [*([f"{own}/vmess/control.sock"] if own else []), HOSTS]


def connect(invocation: verbs.Invocation) -> Client:
    """Connect to the daemon that a command line is meant for; raises Unreachable."""
    return Client(candidates(invocation.options.get(verbs.SOCKET.flag)))


class Client:
    """One connection to the daemon."""

    def __init__(self, paths: list[str], patience: float | None = None) -> None:
        """Connect to the first path where somebody answers, and within `patience` seconds.

        Raises:
            Unreachable: nobody does.
        """
        self._buffer = b""
        self._descriptors: list[int] = []
        self.is_lost = False
        """It is of no use any more: the daemon hung up, or a reply may come yet that nobody waits for."""
        self._patience = ANSWER_TIME if patience is None else patience
        self._socket = _connect(paths, self._patience)

    def fileno(self) -> int:
        """Return the descriptor, to wait for news with select(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def wait_longer(self, seconds: float) -> None:
        """Have answers come so many seconds later than others."""
        self._socket.settimeout(self._patience + seconds)

    def send(self, method: str, parameters: Mapping[str, object], *, more: bool = False) -> None:
        """Send a call; `more` asks for a stream of replies. Raises Unreachable."""
        call: dict[str, object] = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
        if more:
            call["more"] = True
        try:
            self._socket.sendall(light_json.dumps(call).encode() + b"\0")
        except OSError as error:
            self.is_lost = True
            raise _hung_up(f": {reason(error)}") from None

    def receive(self) -> tuple[Reply, bool]:
        """Return the next reply's parameters, and whether more replies follow.

        Raises:
            VmessError: the reply is an error of the daemon's.
            Unreachable: the daemon hung up.
            TimedOut: it does not answer.
            Failed: what answers does not speak Varlink.
        """
        while b"\0" not in self._buffer:
            self.fill()
        message, _, self._buffer = self._buffer.partition(b"\0")
        try:
            reply = light_json.loads(message.decode("utf-8", "surrogatepass"))
            error, parameters = reply.get("error"), dict(reply.get("parameters") or {})
        except (ValueError, AttributeError, TypeError, RecursionError):
            self.is_lost = True
            said = quoted(message.decode(errors="replace"))
            raise Failed(
                f"the program that listens on the control socket is not vmessd: it said {said}",
                hint="name vmessd's socket with --socket or in VMESS_SOCKET",
            ) from None
        if error is not None:
            raise told(str(error), parameters)
        return parameters, bool(reply.get("continues"))

    def pending(self) -> bool:
        """Tell whether a whole reply has arrived already."""
        return b"\0" in self._buffer

    def fill(self) -> None:
        """Read what has arrived; raises as :meth:`receive`."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(65536, 256, _socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            self.is_lost = True
            raise silence() from None
        except OSError as error:
            self.is_lost = True
            raise _hung_up(f": {reason(error)}") from None
        if not data:
            self.is_lost = True
            raise _hung_up()
        for level, kind, handed in ancillary:
            if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                self._descriptors += [
                    int.from_bytes(handed[at : at + 4], sys.byteorder) for at in range(0, len(handed), 4)
                ]
        self._buffer += data

    def call(self, method: str, **parameters: object) -> Reply:
        """Make a call and return the parameters of its reply; raises as :meth:`receive`."""
        self.send(method, parameters)
        return self.receive()[0]

    def descriptors(self, count: int) -> list[int]:
        """Return the descriptors that came with replies so far; they are the caller's to close.

        Raises:
            Failed: they are fewer than `count`.
        """
        handed, self._descriptors = self._descriptors, []
        if len(handed) < count:
            raise Failed(f"vmessd handed over {len(handed)} descriptors, not {count}", hint=VERSIONS)
        return handed


def silence() -> TimedOut:
    """Return the error for a daemon that does not answer."""
    return TimedOut(
        f"vmessd does not answer within {ANSWER_TIME:g} s",
        hint="restart it, the VMs go on: systemctl restart vmessd; one of your own, kill and start again",
    )


def _hung_up(why: str = "") -> Unreachable:
    return Unreachable(f"vmessd hung up{why}", hint="what was under way may have to be asked for again")


def _connect(paths: list[str], patience: float) -> _socket.socket:
    failures: list[str] = []
    denied: list[str] = []
    for path in paths:
        with failing("no socket can be had"):
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            _wait_in_line(sock, patience)
            _connect_to(sock, path)
            sock.settimeout(patience)
        except OSError as error:
            sock.close()
            if isinstance(error, PermissionError):
                denied.append(path)
            failures.append(f"{printable(path)}: {reason(error)}")
        else:
            return sock
    if denied:
        raise Unreachable(
            f"the control socket {printable(denied[0])} may not be used: permission denied",
            hint=_way_in(denied[0]),
        )
    raise Unreachable(
        f"no vmessd answers ({'; '.join(failures)})",
        hint=_beginning(paths),
    )


def _beginning(paths: list[str]) -> str:
    """Return how a daemon is started that serves one of the paths."""
    if len(paths) == 1 and paths[0] != HOSTS:
        return f"start one there with: {shell_line(['vmessd', '--socket', paths[0]])}"
    return "start one of your own with: vmessd; or the host's with: systemctl start vmessd"


def _way_in(path: str) -> str:
    """Return how somebody who may not use a control socket comes to be allowed to."""
    import grp  # noqa: PLC0415 -- only who is kept out waits for it
    import pwd  # noqa: PLC0415

    try:
        gid = posix.stat(path).st_gid
        group, user = grp.getgrgid(gid).gr_name, pwd.getpwuid(posix.getuid()).pw_name
    except (OSError, KeyError):
        gid = 0
    if gid == 0:
        return f"it is for its owner and the members of its group: ls -l {printable(path)}"
    return f"it is for members of group {group}; as root: usermod -aG {group} {user}, and log in again"


def _wait_in_line(sock: _socket.socket, seconds: float) -> None:
    """Have connect(2) wait so long for its place in the daemon's queue: with a timeout it would not at all.

    Where others fill the queue, one that does not block gets EAGAIN at once (unix(7), socket(7): SO_SNDTIMEO).
    """
    whole = int(seconds)
    micros = max(1, int((seconds - whole) * 1e6)) if not whole else 0
    timeval = b"".join(number.to_bytes(8, sys.byteorder) for number in (whole, micros))
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeval)


def _connect_to(sock: _socket.socket, path: str) -> None:
    """Connect by way of the directory's descriptor: a path may be longer than the 107 bytes of unix(7)."""
    before, slash, name = path.rpartition("/")
    directory = posix.open(before + slash or ".", posix.O_PATH | posix.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{name}")
    finally:
        posix.close(directory)


def told(name: str, parameters: Mapping[str, Any]) -> VmessError:
    """Return the error of this name on the wire."""
    kind = BY_WIRE_NAME.get(name)
    if kind is None:
        return Failed(f"vmessd refused the call: {name} {parameters}", hint=VERSIONS)
    return kind(str(parameters.get("message")), parameters.get("hint"))
