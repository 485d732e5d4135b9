"""The base class of the groups of methods: the client, and the parts of the daemon that serve it."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import NamedTuple

from vmessd.api.audit import Peer
from vmessd.core import names
from vmessd.core.models.events import Kind
from vmessd.supervisor.details import Details
from vmessd.supervisor.fleet import Fleet
from vmessd.supervisor.host_links import HostLinks
from vmessd.supervisor.registry import Supervisor
from vmessd.supervisor.views import Begin

lock_note: contextvars.ContextVar[str | None] = contextvars.ContextVar("lock_note", default=None)
"""A note of the gate for the call of this task: why the LOCK file of the VM to stop could not be read."""


class Line(NamedTuple):
    """The connection of a client, as its methods use it."""

    hang_up: Callable[[], None]
    """Closes it."""
    act_for: Callable[[str], None]
    """Notes for which owner of VMs the client acts."""
    actor: Callable[[], str]
    """Returns that; empty for people."""
    begin: Begin = asyncio.create_task
    """Starts a task on the client's account."""


class Caller:
    """A client, and the parts of the daemon that serve it. The groups of methods are subclasses.

    Each connection has its own object, so every call knows its caller.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        fleet: Fleet,
        peer: Peer,
        line: Line,
    ) -> None:
        """Serve a peer on its connection."""
        self._supervisor = supervisor
        self._details = Details(supervisor)
        self._links = HostLinks(supervisor)
        self._fleet = fleet
        self._peer = peer
        self._hang_up = line.hang_up
        self._act_for = line.act_for
        self._actor = line.actor
        self._begin = line.begin

    def _tell(self, kind: Kind, vm: str, text: str) -> None:
        """Publish an event for a change that this client made."""
        self._supervisor.events.publish(kind, names.parse(vm), text, uid=self._peer.uid)
