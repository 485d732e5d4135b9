"""The base class of the groups of methods: the client, and the parts of the daemon that serve it."""

import asyncio
import contextvars
from collections.abc import Callable

from vmessd.api.audit import Peer
from vmessd.core import names
from vmessd.core.models.events import Kind
from vmessd.supervisor.details import Details
from vmessd.supervisor.fleet import Fleet
from vmessd.supervisor.registry import Supervisor
from vmessd.supervisor.views import Begin

lock_note: contextvars.ContextVar[str | None] = contextvars.ContextVar("lock_note", default=None)
"""A note of the gate for the call of this task: why the LOCK file of the VM to stop could not be read."""


class Caller:
    """A client, and the parts of the daemon that serve it. The groups of methods are subclasses.

    Each connection has its own object, so every call knows its caller.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        fleet: Fleet,
        peer: Peer,
        hang_up: Callable[[], None],
        begin: Begin = asyncio.create_task,
    ) -> None:
        """Serve a peer. `hang_up` closes the connection; `begin` starts a task on the peer's account."""
        self._supervisor = supervisor
        self._details = Details(supervisor)
        self._fleet = fleet
        self._peer = peer
        self._hang_up = hang_up
        self._begin = begin

    def _tell(self, kind: Kind, vm: str, text: str) -> None:
        """Publish an event for a change that this client made."""
        self._supervisor.events.publish(kind, names.parse(vm), text, uid=self._peer.uid)
