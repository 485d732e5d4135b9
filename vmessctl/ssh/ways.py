"""Some connections to one host at a time, for one command."""

from __future__ import annotations

import sys

from vmessctl.ssh import masters
from vmessctl.ssh.connection import Connection
from vmessd.core.plainrecord import PlainRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

    from vmessctl.ssh.masters import Seat


class Ways(PlainRecord):
    """The connections of a command. Use as a context manager, which closes them and waits for each ssh."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._open: list[tuple[Seat, Connection]] = []

    def __enter__(self) -> Ways:  # noqa: PYI034 -- `typing` is slow to import
        return self

    def to(self, words: Sequence[str]) -> _socket.socket:
        """Run a command there; return our end of its input and output. Raises Unreachable."""
        seat = masters.take(self._host, may_ask=sys.stderr.isatty())
        try:
            connection = Connection(seat, words)
        except BaseException:
            seat.close()
            raise
        self._open.append((seat, connection))
        return connection.socket

    def __exit__(self, *_error: object) -> None:
        for _, connection in self._open:
            connection.socket.close()
        for seat, connection in self._open:
            connection.close()
            seat.close()
