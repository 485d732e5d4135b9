"""Ports of another host that are ports of this one for a while: the master of its sessions forwards them."""

from __future__ import annotations

import os

from vmessctl.hosts import masters, session, signals
from vmessctl.hosts.remote_line import remote_line
from vmessctl.output import foreground
from vmessctl.output.addresses import bracketed
from vmessctl.output.terminal import say
from vmessd.core.errors import DONE, Failed, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.hosts.masters import Seat

HERE = "127.0.0.1"


def hold(seat: Seat, ports: Sequence[tuple[str, int]]) -> int:
    """Have addresses and ports of a host as ports of this one, until a signal comes; return the exit status.

    A session keeps the master alive meanwhile. It ends with this process, and the master a minute later.

    Raises:
        Failed: a port is taken here.
        Unreachable: the connection broke.
    """
    forwards = [f"{HERE}:{port}:{bracketed(address)}:{port}" for address, port in ports]
    opened: list[str] = []
    try:
        for forward, (_, port) in zip(forwards, ports, strict=True):
            status, said = _ask(seat, "forward", forward)
            if status:
                why = (said.strip().splitlines() or ["ssh does not say why"])[-1]
                raise Failed(f"port {port} of this host cannot lead to {seat.host}: {why}")
            opened.append(forward)
            say(f"{HERE}:{port} on this host is port {port} of {seat.host}; Ctrl-C ends that")
        return _until_signal(seat)
    finally:
        for forward in opened:
            _ask(seat, "cancel", forward)


def _ask(seat: Seat, what: str, forward: str) -> tuple[int, str]:
    """Ask the master; no configuration is read, as it may have forwards of its own."""
    path = masters.escaped(seat.path)
    argv = ["ssh", "-F", "/dev/null", "-S", path, "-O", what, "-L", forward, "--", seat.host]
    return foreground.heard(argv, masters.CONNECT_TIME)


def _until_signal(seat: Seat) -> int:
    """Hold a session until a signal ends it; Ctrl-C is the usual end."""
    source, life = os.pipe()
    process = session.begun(seat, remote_line(["cat"], session.called(seat)), source)
    heard: list[int] = []

    def end(number: int) -> None:
        heard.append(number)
        process.terminate()

    try:
        with signals.heard_by(end):
            process.wait()
    finally:
        os.close(life)
        if process.stdout is not None:
            process.stdout.close()
    if not heard:
        raise Unreachable(f"the connection to {seat.host} broke")
    return DONE if heard[0] == signals.INTERRUPT else foreground.KILLED + heard[0]
