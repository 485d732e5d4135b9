"""What every method of the interface is called with: who calls, and what there is to call upon."""

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
    """A client, and what serves it. The groups of methods are its subclasses.

    One object for each connection, so that every call knows who makes it.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        fleet: Fleet,
        peer: Peer,
        hang_up: Callable[[], None],
        begin: Begin = asyncio.create_task,
    ) -> None:
        """Serve a peer; `hang_up` ends the connection, `begin` has work done beside a call."""
        self._supervisor = supervisor
        self._details = Details(supervisor)
        self._fleet = fleet
        self._peer = peer
        self._hang_up = hang_up
        self._begin = begin

    def _tell(self, kind: Kind, vm: str, text: str) -> None:
        """Tell those who watch of a change that was made for this client."""
        self._supervisor.events.publish(kind, names.parse(vm), text, uid=self._peer.uid)
