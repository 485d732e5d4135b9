"""Serial consoles for other programs: each on a TCP port, by telnet or as plain bytes.

This process listens and copies, with the rights of its user, so it can do nothing that the user could not do
with `console` itself. The daemon passes the console of a VM when a client connects.
"""

from __future__ import annotations

import select
import time

from vmessctl.cli import grammar, verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands.console import serial_port, tcp_ports
from vmessctl.commands.console.line import Line
from vmessctl.output.addresses import bracketed, is_loopback
from vmessctl.output.terminal import complain, emit, hushed, say
from vmessd.core import serial_ports
from vmessd.core.errors import DONE, INTERRUPTED, counted, shell_line, worst

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

    Listeners = dict[int, tuple[socket.socket, str]]
    """Listening sockets by number, each with its VM."""

LINES_MAX = 200
"""Connections at a time; each may have a connection to the daemon, which accepts 240 of a user."""
PAUSE = 0.05
"""Seconds without new connections after one could not be accepted."""


def run(invocation: Invocation) -> int:
    """Serve the consoles until Ctrl-C; return the exit status."""
    where = tcp_ports.parse(invocation.options[verbs.LISTEN.flag])
    ports, status = _ports(invocation, where), DONE
    instead = tcp_ports.instead(ports)
    listeners: Listeners = {}
    try:
        for vm in (vm for vm in ports if vm in invocation.vms):
            others = [other for other, port in ports.items() if port == ports[vm] and other != vm]
            listener = None if others else tcp_ports.listen(where, ports[vm])
            if listener is None:
                own = alone(invocation, vm, instead[vm])
                status = worst([status, complain(tcp_ports.taken(where, vm, ports[vm], others, own))])
            else:
                listeners[listener.fileno()] = (listener, vm)
                _announce(invocation, vm, where, ports[vm])
        if not listeners:
            return status
        if not is_loopback(where.address):
            say(f"anybody who reaches {where.address} can use {counted(len(listeners), 'console')}")
        with hushed(verbs.QUIET.flag in invocation.options):
            _serve(invocation, listeners)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        for listener, _ in listeners.values():
            listener.close()


def _known(invocation: Invocation) -> list[str]:
    """Return the names of all VMs; raises NoSuchVM if one that is to be served does not exist."""
    client = connect(invocation)
    try:
        for vm in invocation.vms:
            client.call("Status", vm=vm)
        return [vm["name"] for vm in client.call("List")["vms"]]
    finally:
        client.close()


def _ports(invocation: Invocation, where: tcp_ports.Endpoint) -> dict[str, int]:
    """Return the ports of the VMs, and of others that may have the same by their names.

    Raises:
        InvalidValue: the ports would be above the last one.
        NoSuchVM: one of the VMs does not exist.
    """
    known = _known(invocation)
    if len(invocation.vms) == 1 and where.port is not None and verbs.ALL.flag not in invocation.options:
        return {invocation.vms[0]: where.port}
    base = tcp_ports.BASE + tcp_ports.SPAN * (serial_port.number(invocation.arguments) - serial_ports.FIRST)
    return tcp_ports.by_name({*invocation.vms, *known}, where.port or base)


def alone(invocation: Invocation, vm: str, port: int) -> str:
    """Return a command line that serves one of the VMs as this one does, at a port."""
    address, colon, _ = invocation.options[verbs.LISTEN.flag].rpartition(":")
    options = invocation.options | {verbs.LISTEN.flag: f"{address}{colon}{port}"}
    options.pop(verbs.ALL.flag, None)
    line = Invocation(invocation.command, (vm,), invocation.arguments, options)
    return shell_line([PROGRAM.name, *grammar.written(line)])


def _announce(invocation: Invocation, vm: str, where: tcp_ports.Endpoint, port: int) -> None:
    if verbs.JSON.flag in invocation.options:
        emit(invocation, {"address": where.address, "port": port}, vm)
    else:
        print(f"{vm}: {bracketed(where.address)}:{port}", flush=True)


def _serve(invocation: Invocation, listeners: Listeners) -> NoReturn:
    """Serve connections for ever."""
    lines: list[Line] = []
    accepts_at = 0.0
    while True:
        poll = select.poll()
        now = time.monotonic()
        limits = [limit for line in lines if (limit := line.limit(now)) is not None]
        if now < accepts_at:
            limits.append(accepts_at - now)
        else:
            for number in listeners:
                poll.register(number, select.POLLIN)
        for line in lines:
            for number, events in line.waits_for().items():
                poll.register(number, events)
        ready = dict(poll.poll(min(limits) * 1000 if limits else None))
        for line in lines:
            line.turn(ready)
        lines = [line for line in lines if not line.is_closed]
        for number in listeners.keys() & ready.keys():
            try:
                _accept(invocation, *listeners[number], lines)
            except OSError:  # the client has left already, or there is no descriptor for it
                accepts_at = time.monotonic() + PAUSE


def _accept(invocation: Invocation, listener: socket.socket, vm: str, lines: list[Line]) -> None:
    """Accept a connection; raises OSError."""
    connected, peer = listener.accept()
    if len(lines) < LINES_MAX:
        lines.append(Line(invocation, vm, connected, peer))
    else:
        connected.close()
        say(f"{vm}: a connection was refused: {LINES_MAX} are open already")
