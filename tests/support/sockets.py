"""What tests do with sockets of the host."""

import socket


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def received(connected: socket.socket, count: int) -> bytes:
    """Return as many bytes, or those until the end."""
    data = b""
    while len(data) < count and (piece := connected.recv(count - len(data))):
        data += piece
    return data
