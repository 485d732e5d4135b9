"""Ports of another host that are ports of this one for a while: the master of its sessions forwards them."""

from __future__ import annotations

import os

from vmessctl.hosts import session
from vmessctl.output import foreground
from vmessctl.output.addresses import bracketed
from vmessctl.output.terminal import say
from vmessctl.ssh import masters, signals
from vmessctl.ssh.remote_line import remote_line
from vmessd.core.errors import DONE, Failed, Unreachable
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.ssh.masters import Seat

HERE = "127.0.0.1"


def hold(seat: Seat, ports: Sequence[tuple[str, int]]) -> int:
    """Have addresses and ports of a host as ports of this one, until a signal comes; return the exit status.

    A session keeps the master alive meanwhile. It ends with this process, and the master a minute later.

    Raises:
        Failed: a port is taken here.
        Unreachable: the connection broke.
    """
    return _Tunnel(seat, ports).hold()


class _Tunnel(PlainRecord):
    """Forwarded ports, and the session beside them."""

    def __init__(self, seat: Seat, ports: Sequence[tuple[str, int]]) -> None:
        self._seat = seat
        self._ports = ports
        self._begun: list[str] = []
        self._process: foreground.Child | None = None
        self._signal = 0
        """The first signal that came; 0 for none."""

    def hold(self) -> int:
        """Forward the ports until a signal comes; return the exit status."""
        try:
            with signals.heard_by(self._hear):
                self._forward()
                if not self._signal:
                    self._wait()
        finally:
            for forward in self._begun:
                _ask(self._seat, "cancel", forward)
        return DONE if self._signal == signals.INTERRUPT else foreground.KILLED + self._signal

    def _hear(self, number: int) -> None:
        self._signal = self._signal or number
        if self._process is not None:
            self._process.terminate()

    def _forward(self) -> None:
        host = self._seat.host
        for address, port in self._ports:
            forward = f"{HERE}:{port}:{bracketed(address)}:{port}"
            self._begun.append(forward)
            status, said = _ask(self._seat, "forward", forward)
            if status and not self._signal:
                why = (said.strip().splitlines() or ["ssh does not say why"])[-1]
                raise Failed(
                    f"port {port} of this host cannot lead to {host}: {why}",
                    hint=f"who has it: ss -ltnp | grep :{port}",
                )
            say(f"{HERE}:{port} on this host is port {port} of {host}; Ctrl-C ends that")

    def _wait(self) -> None:
        """Hold a session until a signal ends it."""
        source, life = os.pipe()
        self._process = session.begun(self._seat, remote_line(["cat"], session.called(self._seat)), source)
        try:
            if self._signal:  # it came between the two
                self._process.terminate()
            self._process.wait()
        finally:
            os.close(life)
            if self._process.stdout is not None:
                self._process.stdout.close()
        if not self._signal:
            raise Unreachable(f"the connection to {self._seat.host} broke", hint="repeat the command")


def _ask(seat: Seat, what: str, forward: str) -> tuple[int, str]:
    """Ask the master; no configuration is read, as it may have forwards of its own."""
    path = masters.escaped(seat.path)
    argv = ["ssh", "-F", "/dev/null", "-S", path, "-O", what, "-L", forward, "--", seat.host]
    return foreground.heard(argv, masters.CONNECT_TIME)
