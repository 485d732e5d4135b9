"""What each method of the interface does, and what its caller is bound by: the one table. Pure.

The server reads it before a method runs (:mod:`vmessd.api.connection`): it has changes noted with their caller,
refuses those of a VM that is locked or not in the state it takes, gives each call its place in what a user may
have under way, and ends what is left without a client. A method without a row is served to nobody.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any


class Effect(enum.Enum):
    """What a method does to a VM, or to the host's links."""

    looks = "changes nothing"
    changes = "changes something"
    ends = "may take away what was there: a run, files, a link"


class Needs(enum.Enum):
    """What a method needs of its VM."""

    on = "it has a QEMU"
    off = "it has none"


class Cost(enum.Enum):
    """What a call takes a place of, among those that its user has."""

    look = "looks that are answered as soon as they can be"
    change = "changes that are answered when they are done"
    follow = "reports on what a VM does by itself: they end with it, or with their client"
    fleet = "reports on what all VMs do: what they tell of goes on without a client, and keeps the place"
    endless = "answers until the client leaves"


@dataclasses.dataclass(frozen=True)
class Method:
    """One method."""

    effect: Effect
    cost: Cost
    about: str | None = None
    """The parameter that names what it is about."""
    locks: bool = False
    """`about` is a VM, and one that is locked refuses it."""
    needs: Needs | None = None
    """In what state the VM has to be; of a link, the VM whose TAP it is. The server looks before the method
    runs, and so does the VM in its turn: it may have been started or have ended meanwhile."""
    checks_values: bool = False
    """Its values may be wrong in any state, and are looked at before the state: by the VM alone, then."""
    instead: str = ""
    """What is to be had without it, for the hint of the refusal; `{vm}` stands for the VM."""
    stops: bool = False
    """It ends a run, and so waits for no file that does not answer, not even the one that locks."""
    links: str | None = None
    """The parameter that names links, one or several; one of a VM that is locked has it refused."""
    descriptors: int = 0
    """Descriptors that a reply may carry."""
    secret: frozenset[str] = frozenset()
    """Parameters of which the log tells no more than the length."""

    @property
    def is_noted(self) -> bool:
        """Its caller is logged."""
        return self.effect is not Effect.looks

    @property
    def ends_with_client(self) -> bool:
        """A call that its client has left can be given up at any moment: nothing is lost by it."""
        return self.effect is Effect.looks and not self.descriptors


def _look(
    about: str | None = None, cost: Cost = Cost.look, descriptors: int = 0, needs: Needs | None = None
) -> Method:
    return Method(Effect.looks, cost, about, descriptors=descriptors, needs=needs)


def _vm(
    effect: Effect = Effect.changes, cost: Cost = Cost.change, needs: Needs | None = None, **more: Any
) -> Method:
    return Method(effect, cost, "vm", locks=True, needs=needs, **more)


def _guest(effect: Effect = Effect.changes, **more: Any) -> Method:
    return _vm(effect, needs=Needs.on, **more)


def _net(
    about: str | None,
    effect: Effect = Effect.changes,
    links: str | None = None,
    needs: Needs | None = None,
) -> Method:
    return Method(effect, Cost.change, about, links=links, needs=needs)


SERVICE = _look()
"""Any method of org.varlink.service."""

METHODS: Mapping[str, Method] = {
    # All VMs
    "List": _look(),
    "Look": _look(),
    "Boot": Method(Effect.changes, Cost.fleet),
    "Shutdown": Method(Effect.ends, Cost.fleet),
    "Top": _look(cost=Cost.endless),
    "Watch": _look(cost=Cost.endless),
    # One VM
    "Status": _look("vm"),
    "Info": _look("vm"),
    "Why": _look("vm"),
    "Make": Method(Effect.changes, Cost.change, "vm"),
    "Set": _vm(),
    "Remove": _vm(Effect.ends, needs=Needs.off),
    "Start": _vm(cost=Cost.follow),
    "Stop": Method(Effect.ends, Cost.follow, "vm", locks=True, stops=True),
    "Lock": Method(Effect.changes, Cost.change, "vm"),
    "Unlock": Method(Effect.changes, Cost.change, "vm"),
    # A guest that runs
    "Suspend": _guest(),
    "Resume": _guest(),
    "Reset": _guest(Effect.ends),
    "SendKeys": _guest(checks_values=True),
    "Type": _guest(secret=frozenset({"text"}), checks_values=True),
    "Screenshot": _look("vm", descriptors=1, needs=Needs.on),
    "Vnc": _guest(checks_values=True),
    "Console": _guest(descriptors=2, instead="what it printed: vmess {vm} console --log"),
    "Log": _look("vm", descriptors=2),
    "Serial": _look("vm", Cost.endless),
    # Wires
    "Nics": _look("vm"),
    "Addresses": _look("vm"),
    "SetNics": _vm(Effect.ends),
    "Connect": _vm(),
    "Cable": _vm(),
    "Mac": _vm(),
    "Forward": _vm(),
    "NetShow": _look(),
    "NetIgnored": _look(),
    "NetVlan": _net("bridge", links="interfaces"),
    "NetAdd": _net("interface", links="interface"),
    "NetDelete": _net("interface", Effect.ends, links="interface", needs=Needs.off),
    "NetIgnore": _net("name"),
    "NetPrune": _net(None, Effect.ends),
}
