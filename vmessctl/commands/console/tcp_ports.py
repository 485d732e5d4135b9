"""The TCP ports on which consoles are served: which one for which VM, and what may be typed for it."""

from __future__ import annotations

import _socket  # as in `client`
import errno
from itertools import chain

from vmessctl.cli.verbs import PROGRAM
from vmessd.core import names
from vmessd.core.errors import Failed, InvalidValue, NotPermitted, VmessError, quoted, reason
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterable, Mapping
    from typing import Any

ADDRESS = "127.0.0.1"
AUTO = "auto"
BASE = 20000
"""The first port of `auto`."""
SPAN = 12_000
"""Ports that names of VMs lead to; from 32768 on Linux gives them to connections (ip_local_port_range)."""
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
    """Return a port for each VM, which follows from its name and from nothing else, so two may have the same.

    Raises:
        InvalidValue: the ports would be above the last one.
    """
    if base + SPAN - 1 > PORT_MAX:
        raise InvalidValue(
            f"port {base} is too high for several VMs: their ports are up to {SPAN - 1} above it",
            hint=f"the highest is {PORT_MAX - SPAN + 1}",
        )
    return {vm: base + names.console(vm) % SPAN for vm in sorted(vms, key=names.natural)}


def instead(ports: Mapping[str, int]) -> dict[str, int]:
    """Return another port for each VM, the next one that neither is among the ports nor has been given."""
    given: dict[str, int] = {}
    used = {*ports.values()}
    for vm, port in ports.items():
        following = chain(range(port + 1, PORT_MAX + 1), range(port - 1, 0, -1))
        given[vm] = next(each for each in following if each not in used)
        used.add(given[vm])
    return given


def taken(where: Endpoint, vm: str, port: int, others: Collection[str], own: str) -> Failed:
    """Return why a VM is not served at a port: it is that of `others` as well, or a program has it.

    `own` is a command line that serves it at another port.
    """
    if others:
        return Failed(
            f"{vm} is not served: its port {port} is that of {', '.join(others)} as well",
            hint=f"a port of its own: {own}",
        )
    return Failed(
        f"{vm} is not served: port {port} on {where.address} is taken",
        hint=f"to see by whom: ss -ltnp sport = {port}; another port: {own}",
    )


def listen(where: Endpoint, port: int) -> socket.socket | None:
    """Return a listening socket at a port; None if it is taken.

    Raises:
        Failed, NotPermitted: the port is privileged; the address is not one of this host.
    """
    try:
        return _listener(where, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        raise _refusal(where, port, error) from None


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
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(f"port {port} is privileged, and {PROGRAM} is not", hint="name one above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return Failed(f"{where.address} is not an address of this host", hint="to see them: ip address")
    return Failed(f"cannot listen on {where.address}, port {port}: {reason(error)}")
