"""The TCP ports on which consoles are served: which one for which VM, and what may be typed for it."""

from __future__ import annotations

import _socket  # as in `client`
import errno

from vmessctl.cli.verbs import PROGRAM
from vmessd.core import names
from vmessd.core.errors import Failed, InvalidValue, NotPermitted, VmessError, quoted, reason
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from typing import Any

ADDRESS = "127.0.0.1"
AUTO = "auto"
BASE = 20000
"""The first port of `auto`."""
SPAN = 10_000
"""Ports above the first one that names of VMs lead to."""
TRIES = 50
"""Ports that are tried for a VM if its own one is taken."""
PORT_MAX = 65535


class Endpoint(PlainRecord):
    """Where to listen."""

    def __init__(self, address: str, port: int | None, family: int, place: tuple[Any, ...]) -> None:
        self.address = address
        self.port = port
        """None for `auto`."""
        self.family = family
        self.place = place
        """The socket address in the form of its family, with port 0."""


def parse(text: str) -> Endpoint:
    """Return what `[ADDRESS:]PORT` means; raises InvalidValue."""
    address, colon, port = text.rpartition(":")
    address = address.removeprefix("[").removesuffix("]") if colon else ADDRESS
    try:
        if not address or "\0" in address:
            raise ValueError
        flags = _socket.AI_NUMERICHOST | _socket.AI_PASSIVE
        family, _, _, _, place = _socket.getaddrinfo(address, 0, type=_socket.SOCK_STREAM, flags=flags)[0]
    except (OSError, ValueError):  # UnicodeError is a ValueError
        raise InvalidValue(
            f"address {quoted(address)} is not an IP address",
            hint="for example 127.0.0.1:5001, [::1]:5001, 0.0.0.0:5001 (all addresses), or only 5001",
        ) from None
    if port == AUTO:
        return Endpoint(str(place[0]), None, family, place)
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5
    if not is_number or not 1 <= int(port) <= PORT_MAX:
        raise InvalidValue(f"port {quoted(port)} is not a number from 1 to {PORT_MAX}, or {AUTO}")
    return Endpoint(str(place[0]), int(port), family, place)


def by_name(vms: Iterable[str], base: int) -> dict[str, int]:
    """Return a port for each VM, which follows from its name; two VMs that share one get the next free ones.

    As VNC displays, the instances of one name have ports one after the other.

    Raises:
        InvalidValue: the ports would be above the last one.
    """
    if base + SPAN - 1 > PORT_MAX:
        raise InvalidValue(
            f"port {base} is too high for several VMs: their ports are up to {SPAN - 1} above it",
            hint=f"the highest is {PORT_MAX - SPAN + 1}",
        )
    found: dict[str, int] = {}
    taken: set[int] = set()
    for vm in sorted(vms, key=names.natural):
        offset = (names.display(vm) - 1) % SPAN
        while base + offset in taken:
            offset = (offset + 1) % SPAN
        found[vm] = base + offset
        taken.add(base + offset)
    return found


def listen(where: Endpoint, port: int, others: frozenset[int] | None = None) -> socket.socket:
    """Return a listening socket at a port, or, given the ports of others, the next one that is free.

    Raises:
        Failed, NotPermitted: the port is taken or privileged; the address is not one of this host.
    """
    choices = [port]
    if others is not None:
        above = range(port + 1, min(port + TRIES, PORT_MAX) + 1)
        choices += [choice for choice in above if choice not in others]
    for choice in choices:
        try:
            return _listener(where, choice)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or choice == choices[-1]:
                raise _refusal(where, choice, error) from None
    raise AssertionError


def _listener(where: Endpoint, port: int) -> socket.socket:
    import socket  # noqa: PLC0415 -- slow to import

    listener = socket.socket(where.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if where.family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((where.place[0], port, *where.place[2:]))
        listener.listen(16)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _refusal(where: Endpoint, port: int, error: OSError) -> VmessError:
    if error.errno == errno.EADDRINUSE:
        return Failed(
            f"port {port} on {where.address} is taken", hint=f"to see by whom: ss -ltnp sport = {port}"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(f"port {port} is privileged, and {PROGRAM} is not", hint="name one above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return Failed(f"{where.address} is not an address of this host", hint="to see them: ip address")
    return Failed(f"cannot listen on {where.address}, port {port}: {reason(error)}")
