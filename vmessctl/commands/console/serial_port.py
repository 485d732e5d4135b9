"""The serial port that a command line names."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessd.core import serial_ports
from vmessd.core.errors import InvalidValue, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.cli.verbs import Invocation


def number(arguments: Sequence[str]) -> int:
    """Return the number of the port, the first one unless one is named; raises InvalidValue."""
    if not arguments:
        return serial_ports.FIRST
    (text,) = arguments
    if text not in map(str, serial_ports.PORTS):
        known = ", ".join(map(str, serial_ports.PORTS))
        usage = verbs.BY_VERB["console"].usage()
        raise InvalidValue(f"serial port {quoted(text)} is not one of {known}", hint=f"usage: {usage}")
    return int(text)


def parameters(invocation: Invocation) -> dict[str, object]:
    """Return the port as parameters of a method; the first one needs none, also of an older vmessd."""
    port = number(invocation.arguments)
    return {} if port == serial_ports.FIRST else {"port": port}
