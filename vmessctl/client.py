"""A blocking Varlink client: a socket, JSON and a NUL byte (https://varlink.org/Method-Call)."""

from __future__ import annotations

import _socket  # `socket` makes enums of its constants, which takes as long as everything else
import posix  # `os` takes a tenth of the time of a `status` to import
import sys

from vmessctl import light_json
from vmessctl.cli import verbs
from vmessctl.environment import variable
from vmessd.core import ownership, places
from vmessd.core.errors import (
    BY_WIRE_NAME,
    INTERFACE,
    AlreadyRunning,
    Failed,
    NoSuchVM,
    NotPermitted,
    NotRunning,
    TimedOut,
    Unreachable,
    VmessError,
    counted,
    failing,
    printable,
    quoted,
    reason,
    shell_line,
)

ANSWER_TIME = 30.0
"""Seconds that the daemon has to answer a plain call."""
ABSENT = (FileNotFoundError, ConnectionRefusedError)
"""The errors of connect(2) where no daemon runs; a stale socket refuses."""
_reached = [places.SERVICE_SOCKET]
"""The control socket of the daemon that accepted the last connection."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Reply = dict[str, Any]


def candidates(option: str | None) -> list[str]:
    """Return the control sockets to try: the given one, or those of an own daemon and of the service."""
    if given := named(option):
        return [given]
    own = places.own_directories(variable, posix.geteuid())
    return [*(f"{directory}/{places.SOCKET}" for directory in own), places.SERVICE_SOCKET]


def named(option: str | None) -> str | None:
    """Return the control socket that option or environment name; None if neither does."""
    return option or variable("VMESS_SOCKET") or None


def connect(invocation: verbs.Invocation, *, may_start: bool = True) -> Client:
    """Connect to the daemon for a command line; if there is none, start a private one unless that is forbidden.

    Without `may_start`, any daemon will do.

    Raises:
        Unreachable: there is no daemon, and none was started; or it serves another VM root than the named one.
    """
    option = invocation.options.get(verbs.SOCKET.flag)
    paths = candidates(option)
    if named(option) or not may_start:
        return _acting(Client(paths))

    def start() -> None:
        from vmessctl import private_daemon  # noqa: PLC0415 -- only the first command needs it

        private_daemon.start(lambda: answers(paths), silent=verbs.QUIET.flag in invocation.options)

    forbidden = verbs.NO_DAEMON.flag in invocation.options or variable("VMESS_NO_DAEMON")
    client = Client(paths, otherwise=None if forbidden else start)
    if root := variable("VMESS_VMDIR"):
        from vmessctl import vm_root  # noqa: PLC0415 -- it needs `os`

        vm_root.verify(root, client.peer(), client.call)
    return _acting(client)


def _acting(client: Client) -> Client:
    """Return a client that acts for the owner of VMs that the environment names, if it names one."""
    if owner := variable(ownership.VARIABLE):
        client.call("ActFor", owner=owner)
    return client


def answers(paths: list[str]) -> bool:
    """Tell whether a daemon accepts connections on one of the paths."""
    sock, _ = _search(paths, ANSWER_TIME)
    if sock is not None:
        sock.close()
    return sock is not None


class Client:
    """One connection to the daemon."""

    def __init__(
        self, paths: list[str], patience: float | None = None, otherwise: Callable[[], None] | None = None
    ) -> None:
        """Connect to the first path that answers; `patience` is the timeout in seconds of each operation.

        `otherwise` is called if there is no daemon; then this tries once more.

        Raises:
            Unreachable: no path answers.
        """
        self._buffer = b""
        self._descriptors: list[int] = []
        self.is_lost = False
        """Unusable: it is closed, the daemon hung up, or a late reply may still arrive."""
        self._patience = ANSWER_TIME if patience is None else patience
        self._socket = _connect(paths, self._patience, otherwise)
        self._begun: tuple[str, Mapping[str, object]] | None = None

    def peer(self) -> int:
        """Return the PID of the daemon, as the kernel knows it."""
        credentials = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], sys.byteorder)

    def fileno(self) -> int:
        """Return the descriptor, for select(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the connection."""
        self.is_lost = True
        self._socket.close()

    def wait_longer(self, seconds: float) -> None:
        """Extend the timeout by some seconds."""
        self._socket.settimeout(self._patience + seconds)

    def send(
        self,
        method: str,
        parameters: Mapping[str, object],
        *,
        more: bool = False,
        descriptor: int | None = None,
    ) -> None:
        """Send a call; `more` asks for a stream of replies, `descriptor` goes along. Raises Unreachable."""
        call: dict[str, object] = {"method": f"{INTERFACE}.{method}", "parameters": parameters}
        if more:
            call["more"] = True
        message = light_json.dumps(call).encode() + b"\0"
        try:
            if descriptor is not None:
                # With the last byte, so that it arrives when the message is complete.
                handed = descriptor.to_bytes(4, sys.byteorder)
                self._socket.sendall(message[:-1])
                self._socket.sendmsg([message[-1:]], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, handed)])
            else:
                self._socket.sendall(message)
        except OSError as error:
            self.is_lost = True
            raise _hung_up(f": {reason(error)}") from None

    def receive(self) -> tuple[Reply, bool]:
        """Return the next reply's parameters, and whether more replies follow.

        Raises:
            VmessError: the reply is an error.
            Unreachable: the daemon hung up.
            TimedOut: it does not answer.
            Failed: the program at the other end does not speak Varlink.
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
                f"the program on the control socket is not vmessd: it said {said}",
                hint="name vmessd's socket with --socket or in VMESS_SOCKET",
            ) from None
        if error is not None:
            raise error_from_wire(str(error), parameters)
        return parameters, bool(reply.get("continues"))

    def pending(self) -> bool:
        """Tell whether a complete reply is in the buffer."""
        return b"\0" in self._buffer

    def fill(self) -> None:
        """Read from the socket into the buffer; raises like :meth:`receive`."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(65536, 256, _socket.MSG_CMSG_CLOEXEC)
        except TimeoutError:
            self.is_lost = True
            raise silence(self._patience) from None
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

    def begin(self, method: str, **parameters: object) -> None:
        """Send a call, whose reply the same :meth:`call` returns later; raises Unreachable."""
        self.send(method, parameters)
        self._begun = (method, parameters)

    def call(self, method: str, **parameters: object) -> Reply:
        """Make a call and return the parameters of its reply; raises like :meth:`receive`."""
        begun, self._begun = self._begun, None
        if begun != (method, parameters):
            self.send(method, parameters)
        return self.receive()[0]

    def descriptors(self, count: int) -> list[int]:
        """Return the descriptors received so far; the caller closes them.

        Raises:
            Failed: there are fewer than `count`.
        """
        handed, self._descriptors = self._descriptors, []
        if len(handed) < count:
            raise Failed(f"vmessd passed {counted(len(handed), 'descriptor')}, not {count}", hint=versions())
        return handed


def silence(patience: float | None = None) -> TimedOut:
    """Return the error for a daemon that does not answer, within :data:`ANSWER_TIME` or another time."""
    return TimedOut(
        f"vmessd did not answer within {ANSWER_TIME if patience is None else patience:g} s",
        hint=_restart(),
    )


def versions() -> str:
    """Return a hint for a daemon that speaks another language than this client, as after an upgrade."""
    return f"do vmessd and {verbs.PROGRAM} have different versions? {_restart()}"


def _restart() -> str:
    """Return how to restart the daemon that was reached: the service, a private one, or that of a socket."""
    path = _reached[-1]
    if path == places.SERVICE_SOCKET:
        way = "systemctl restart vmessd"
    elif path.rpartition("/")[0] in places.own_directories(variable, posix.geteuid()):
        way = f"{verbs.PROGRAM} daemon stop; the next command starts it again"
    else:
        end = shell_line([verbs.PROGRAM.name, "daemon", "stop", verbs.SOCKET.flag, path])
        way = f"{end}; then {_how_to_start([path])}"
    return f"restart it, VMs keep running: {way}"


def _hung_up(why: str = "") -> Unreachable:
    return Unreachable(f"vmessd hung up{why}", hint="repeat what was in progress if necessary")


def _connect(paths: list[str], patience: float, otherwise: Callable[[], None] | None) -> _socket.socket:
    sock, failures = _search(paths, patience)
    if sock is None and otherwise is not None and all(isinstance(each, ABSENT) for each in failures.values()):
        otherwise()
        sock, failures = _search(paths, patience)
    if sock is None:
        raise _unreachable(failures)
    return sock


def _search(paths: list[str], patience: float) -> tuple[_socket.socket | None, dict[str, OSError | VmessError]]:
    """Connect to the first path that answers; return the socket, and why the paths before it do not.

    An unsafe directory is a failure only in the first place: anybody can make one of the others.
    """
    failures: dict[str, OSError | VmessError] = {}
    for path in paths:
        with failing("no socket can be created"):
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            _set_connect_timeout(sock, patience)
            _connect_to(sock, path)
            sock.settimeout(patience)
        except (OSError, VmessError) as error:
            sock.close()
            if isinstance(error, OSError) or path == paths[0]:
                failures[path] = error
        else:
            _reached[:] = [path]
            return sock, failures
    return None, failures


def _unreachable(failures: dict[str, OSError | VmessError]) -> Unreachable:
    """Return the error where no path answers."""
    for path, error in failures.items():
        if isinstance(error, VmessError):
            return Unreachable(error.message, error.hint)
        if isinstance(error, PermissionError):
            return Unreachable(
                f"the control socket {printable(path)} may not be used: permission denied",
                hint=_how_to_get_access(path),
            )
    why = "; ".join(
        f"{printable(path)}: {reason(error)}" for path, error in failures.items() if isinstance(error, OSError)
    )
    return Unreachable(f"no vmessd answers ({why})", hint=_how_to_start(list(failures)))


def _how_to_start(paths: list[str]) -> str:
    """Return a hint on how to start a daemon that serves one of the paths."""
    if len(paths) == 1 and paths[0] != places.SERVICE_SOCKET:
        return f"start one on this socket: {shell_line(['vmessd', '--background', '--socket', paths[0]])}"
    return "start your own with: vmessd --background; or the host's with: systemctl start vmessd"


def _how_to_get_access(path: str) -> str:
    """Return a hint on how to get access to a control socket."""
    import grp  # noqa: PLC0415 -- only a refusal needs it
    import pwd  # noqa: PLC0415

    try:
        gid = posix.stat(path).st_gid
        group, user = grp.getgrgid(gid).gr_name, pwd.getpwuid(posix.getuid()).pw_name
    except (OSError, KeyError):
        gid = 0
    own = "; or start your own: vmessd --background" if path == places.SERVICE_SOCKET else ""
    if gid == 0:
        return f"only its owner and members of its group may use it: ls -l {printable(path)}{own}"
    # The group has the name of the program, which a hint may not have as a word: it would be replaced.
    join = shell_line(["usermod", "--append", f"--groups={group}", user])
    return f"only members of its group may use it; as root: {join}; then log in again{own}"


def _set_connect_timeout(sock: _socket.socket, seconds: float) -> None:
    """Limit the time in which a blocking connect(2) waits for room in the daemon's backlog, by SO_SNDTIMEO.

    Python's own timeout makes the socket non-blocking: it gets EAGAIN at once if the backlog is full (unix(7)).
    """
    whole = int(seconds)
    micros = max(1, int((seconds - whole) * 1e6)) if not whole else 0
    timeval = b"".join(number.to_bytes(8, sys.byteorder) for number in (whole, micros))
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeval)


def _connect_to(sock: _socket.socket, path: str) -> None:
    """Connect through a descriptor of the directory, since a path may exceed the 107 bytes of unix(7)."""
    before, slash, name = path.rpartition("/")
    if before in places.own_directories(variable, posix.geteuid()):
        directory = places.opened(before)
    else:
        directory = posix.open(before + slash or ".", posix.O_PATH | posix.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{name}")
    finally:
        posix.close(directory)


MORE_PARAMETERS: dict[type[VmessError], tuple[str, ...]] = {
    NotRunning: ("vm",),
    NoSuchVM: ("directory",),
    AlreadyRunning: ("vm", "pid"),
    NotPermitted: ("capability",),
}
"""The parameters of errors besides message and hint; an older daemon may not send them."""


def error_from_wire(name: str, parameters: Mapping[str, Any]) -> VmessError:
    """Return the error for a name on the wire and its parameters."""
    kind = BY_WIRE_NAME.get(name)
    if kind is None:
        return Failed(f"vmessd refused the call: {name} {parameters}", hint=versions())
    more = {name: parameters.get(name) for name in MORE_PARAMETERS.get(kind, ())}
    return kind(str(parameters.get("message")), parameters.get("hint"), **more)
