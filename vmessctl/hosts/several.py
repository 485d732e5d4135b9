"""One command line on several hosts at once: each has a client, whose output is put together here."""

from __future__ import annotations

import os
import select
import sys

from vmessctl import light_json
from vmessctl.cli import grammar, verbs
from vmessctl.cli.verbs import BY_VERB, PROGRAM, Invocation
from vmessctl.commands import inspect
from vmessctl.hosts import session
from vmessctl.output import foreground, rendering
from vmessctl.output.descriptors import write_all
from vmessctl.output.terminal import say
from vmessctl.ssh import signals
from vmessd.core.errors import SEVERITY, Failed, failing, worst
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO

    from vmessctl.client import Reply

    Sink = Callable[["Host", bytes], None]

PIECE = 1 << 16
"""Bytes read at once."""
LINE_MAX = 1 << 24
"""Bytes of a line, after which it is cut: the list of a host has one line."""


def run(invocation: Invocation, words: Sequence[str], hosts: Sequence[str]) -> int:
    """Carry out a command line on several hosts; return the worst exit status."""
    is_list = invocation.command.verb == "list" and invocation.then is None
    if is_list and verbs.JSON.flag not in invocation.options and _is_table(invocation):
        return _list(invocation, hosts)
    as_json = verbs.JSON.flag in invocation.options
    return _status(_Hosts(hosts, words, _put_json if as_json else _put_line).run())


def _status(statuses: Sequence[int]) -> int:
    """Return the worst of exit statuses, among which may be those of other programs."""
    unknown = [status for status in statuses if status not in SEVERITY]
    if unknown and set(statuses) == {unknown[0]}:
        return unknown[0]
    return worst([status if status in SEVERITY else Failed.status for status in statuses])


# -- What they say --


def _put_line(host: Host, line: bytes) -> None:
    _write(sys.stdout, f"{host.name}: ".encode() + line)


def _put_json(host: Host, line: bytes) -> None:
    """Print a line of JSON with the host in front; what is not JSON does not belong there."""
    try:
        found = light_json.loads(line.decode())
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        _write(sys.stdout, light_json.dumps({"host": host.name} | found).encode())
    else:
        _write(sys.stderr, f"{host.name}: ".encode() + line)


def _write(stream: IO[str], line: bytes) -> None:
    write_all(stream.fileno(), line + b"\n")


# -- The list --


def _is_table(invocation: Invocation) -> bool:
    return not PROGRAM.is_original or bool({verbs.COLUMNS.flag, verbs.NO_HEADER.flag} & set(invocation.options))


def _list(invocation: Invocation, hosts: Sequence[str]) -> int:
    """Print one table of the VMs of all hosts that answer."""
    inspect.columns(invocation)  # before anything is asked
    replies: dict[str, Reply] = {}

    def take(host: Host, line: bytes) -> None:
        try:
            reply = light_json.loads(line.decode())
            replies[host.name] = {**reply, "vms": [{**vm, "host": host.name} for vm in reply["vms"]]}
        except (ValueError, TypeError, KeyError, RecursionError):
            _write(sys.stderr, f"{host.name}: ".encode() + line)

    options = {
        flag: value
        for flag, value in invocation.options.items()
        if flag not in {verbs.COLUMNS.flag, verbs.NO_HEADER.flag, verbs.ON_HOST.flag}
    }
    asked = Invocation(BY_VERB["list"], (), (), options | {verbs.JSON.flag: ""})
    status = _status(_Hosts(hosts, grammar.written(asked), take).run())
    known = [(host, replies[host]) for host in hosts if host in replies]
    if not known:
        return status
    names = ", ".join(host for host, _ in known)
    if vms := [vm for _, reply in known for vm in reply["vms"]]:
        try:
            inspect.print_table(invocation, vms, hosted=True)
        except (KeyError, TypeError, AttributeError):
            raise Failed(
                f"the list of one of {names} is not understood",
                hint=f"do they have another version? {PROGRAM} --host {names.replace(' ', '')} --version",
            ) from None
    else:
        say(f"no VMs on {names}")
    for host, reply in known:
        for remark, name in ((rendering.not_vms, "others"), (rendering.unread, "unread")):
            if reply.get(name):
                say(f"{host}: {remark(reply[name])}")
    return status


# -- The clients --


class Host(PlainRecord):
    """A host, and the client that carries out the line there."""

    def __init__(self, name: str, words: Sequence[str], life: int) -> None:
        self.name = name
        argv = [*_program(), "--host", name, *words]
        self.process = foreground.beside(argv, source=life, with_errors=True)
        self.is_told = False
        """A signal was sent to it."""

    def tell(self, number: int) -> None:
        """Send a signal to the client, which passes it on; a second one kills it."""
        if self.process.poll() is None:
            self.process.send_signal(signals.KILL if self.is_told else number)
        self.is_told = True


def _program() -> list[str]:
    """Return the words that started this program, without those for it."""
    own = len(sys.orig_argv) - len(sys.argv) + 1
    return [sys.executable, *sys.orig_argv[1:own]]


class _Hosts:
    """All hosts of a line, whose clients run at the same time."""

    def __init__(self, names: Sequence[str], words: Sequence[str], put: Sink) -> None:
        self._names = names
        self._words = words
        self._put = put
        self._hosts: list[Host] = []
        self._sources: dict[int, tuple[Host, Sink]] = {}
        self._life = -1
        """The end of a pipe that ends with this process; all clients, and what they do there, end with it."""
        self._begun: dict[int, bytes] = {}
        """By descriptor, the beginning of a line."""

    def run(self) -> list[int]:
        """Let all clients run to their end; return their exit statuses."""
        sys.stdout.flush()
        with signals.heard_by(self._tell):
            try:
                with failing("a client cannot be started"):
                    self._start()
                self._copy()
                return [foreground.as_shell(host.process.wait()) for host in self._hosts]
            finally:
                self._tell(signals.TERMINATE)

    def _start(self) -> None:
        life, self._life = os.pipe()
        os.environ[session.LIFE] = "1"
        for name in self._names:
            host = Host(name, self._words, life)
            self._hosts.append(host)
            for stream, put in ((host.process.stdout, self._put), (host.process.stderr, _put_error)):
                if stream is not None:
                    self._sources[stream.fileno()] = (host, put)
        os.close(life)

    def _tell(self, number: int) -> None:
        for host in self._hosts:
            host.tell(number)

    def _copy(self) -> None:
        """Hand over the lines of all hosts as they come."""
        poll = select.poll()
        for descriptor in self._sources:
            poll.register(descriptor, select.POLLIN)
        while self._sources:
            for descriptor, _ in poll.poll():
                data = os.read(descriptor, PIECE)
                self._read(descriptor, data)
                if not data:
                    poll.unregister(descriptor)
                    del self._sources[descriptor]

    def _read(self, descriptor: int, data: bytes) -> None:
        """Hand over the whole lines of what came; at the end, also a line without an end."""
        host, put = self._sources[descriptor]
        *lines, rest = (self._begun.pop(descriptor, b"") + data).split(b"\n")
        if rest and (not data or len(rest) > LINE_MAX):
            lines.append(rest)
            rest = b""
        self._begun[descriptor] = rest
        for line in lines:
            put(host, line)


def _put_error(host: Host, line: bytes) -> None:
    _write(sys.stderr, f"{host.name}: ".encode() + line)
