"""The contract of each method: what it does, what it requires, and what it costs its caller. Pure.

The server enforces this table before a method runs (:mod:`vmessd.api.connection`). It logs the caller of a
change, refuses a VM that is locked or in the wrong state, charges the call to its user's budget, and cancels
calls whose client has left. A method without a row is not served.
"""

import enum
from collections.abc import Mapping
from typing import Any

from vmessd.core.dataclass import dataclass
from vmessd.core.ownership import MOVE, OTHERWISE


class Effect(enum.Enum):
    """The effect of a method on a VM, or on the links of the host."""

    looks = "changes nothing"
    changes = "changes something"
    ends = "may end or delete something: a run, files, a link"


class Needs(enum.Enum):
    """The state that a method needs its VM to be in."""

    on = "it has a QEMU"
    off = "it has none"


class Cost(enum.Enum):
    """The kind of place that a call takes in the budget of its user."""

    look = "a query, answered at once"
    change = "a change, answered when it is done"
    follow = "progress of one VM; ends with what it reports, or with the client"
    fleet = "progress of all VMs; the work continues without the client, and the call counts until it is done"
    endless = "replies until the client leaves"


@dataclass(frozen=True)
class Method:
    """One method."""

    effect: Effect
    cost: Cost
    about: str | None = None
    """The parameter that names its subject."""
    locks: bool = False
    """`about` is a VM, and a locked VM refuses the method."""
    needs: Needs | None = None
    """The state that the VM must be in; for a link, the VM whose TAP it is. The server checks it before the
    method runs, and the VM checks it again in its turn, because it may have changed in between."""
    checks_values: bool = False
    """Wrong values are reported before a wrong state, so what carries out the method checks both."""
    instead: str = ""
    """The hint of the refusal: a command that works in this state; `{vm}` stands for the VM."""
    stops: bool = False
    """It ends a run, so it does not wait for files on a file system that hangs, not even for LOCK."""
    owned: str = ""
    """Only the owner of a VM may call it, if the VM has one. This is the hint for others: what to type instead,
    with `{vm}` and `{resource}`. Empty: everybody may."""
    despite_lock: bool = False
    """The owner of a VM may call the method although the VM is locked: a lock is between people."""
    in_move: bool = False
    """It is also for a VM in a move, which other methods with `locks` refuse."""
    links: str | None = None
    """The parameter that names one or several links; the method is refused if one belongs to a locked VM."""
    descriptors: int = 0
    """The maximum number of descriptors in a reply."""
    takes: str | None = None
    """The parameter that is a descriptor, which comes with the call."""
    secret: frozenset[str] = frozenset()
    """Parameters of which only the length is logged."""

    @property
    def is_noted(self) -> bool:
        """The caller is logged."""
        return self.effect is not Effect.looks

    @property
    def ends_with_client(self) -> bool:
        """The call may be cancelled at any moment once its client has left."""
        return self.effect is Effect.looks and not self.descriptors


def _look(
    about: str | None = None, cost: Cost = Cost.look, descriptors: int = 0, needs: Needs | None = None
) -> Method:
    return Method(Effect.looks, cost, about, descriptors=descriptors, needs=needs)


def _vm(
    effect: Effect = Effect.changes, cost: Cost = Cost.change, needs: Needs | None = None, **more: Any
) -> Method:
    return Method(effect, cost, "vm", locks=True, needs=needs, **{"owned": OTHERWISE, **more})


def _guest(effect: Effect = Effect.changes, **more: Any) -> Method:
    return _vm(effect, needs=Needs.on, **more)


def _used(effect: Effect = Effect.changes, **more: Any) -> Method:
    """A method that uses a guest as a person at its keyboard would, to which no owner objects."""
    return _guest(effect, owned="", **more)


def _net(
    about: str | None,
    effect: Effect = Effect.changes,
    links: str | None = None,
    **more: Any,
) -> Method:
    return Method(effect, Cost.change, about, links=links, **more)


_TAKE_OUT = "take it out of the cluster first: pcs resource delete {resource}; vmess {vm} cluster off"

SERVICE = _look()
"""Any method of org.varlink.service."""

METHODS: Mapping[str, Method] = {
    # The daemon
    "Daemon": _look(),
    "ActFor": _look(),
    # All VMs
    "List": _look(),
    "Overview": _look(),
    "Look": _look(),
    "Boot": Method(Effect.changes, Cost.fleet),
    "Shutdown": Method(Effect.ends, Cost.fleet),
    "Top": _look(cost=Cost.endless),
    "Watch": _look(cost=Cost.endless),
    # The image store
    "Images": _look(),
    "AddImage": Method(Effect.changes, Cost.follow, "name", takes="image"),
    "RemoveImage": Method(Effect.ends, Cost.change, "name"),
    # One VM
    "Status": _look("vm"),
    "Info": _look("vm"),
    "Why": _look("vm"),
    "Make": Method(Effect.changes, Cost.change, "vm"),
    "Set": _vm(),
    "Bring": _vm(cost=Cost.follow, needs=Needs.off, takes="image"),
    "PutOn": _vm(needs=Needs.off, takes="image"),
    "PutOnImage": _vm(needs=Needs.off),
    "DeleteDisk": _vm(Effect.ends, needs=Needs.off),
    "Share": _vm(),
    "Clone": _vm(cost=Cost.follow),
    "Snapshots": _look("vm"),
    "NewerSnapshots": _look("vm"),
    "TakeSnapshot": _vm(),
    "RevertSnapshot": _vm(Effect.ends, needs=Needs.off),
    "DeleteSnapshot": _vm(Effect.ends, cost=Cost.follow),
    "Remove": _vm(Effect.ends, needs=Needs.off, owned=_TAKE_OUT),
    "Rename": _vm(Effect.ends, needs=Needs.off, owned=_TAKE_OUT),
    "Export": Method(Effect.changes, Cost.follow, "vm", needs=Needs.off, descriptors=1),
    "Import": Method(Effect.changes, Cost.follow, "name", descriptors=1),
    "Move": _vm(Effect.ends, Cost.follow, takes="channel", owned=MOVE, despite_lock=True, in_move=True),
    "Receive": Method(Effect.changes, Cost.follow, "connection", descriptors=1),
    "JoinMove": Method(Effect.changes, Cost.change, "vm", takes="channel"),
    "DecideMove": _vm(Effect.ends, owned="", in_move=True),
    "Start": _vm(cost=Cost.follow, owned="pcs resource enable {resource}", despite_lock=True),
    "Stop": _vm(
        Effect.ends,
        Cost.follow,
        stops=True,
        owned="pcs resource disable {resource}, or pcs resource restart {resource}",
        despite_lock=True,
    ),
    "Lock": Method(Effect.changes, Cost.change, "vm"),
    "Unlock": Method(Effect.changes, Cost.change, "vm"),
    "Own": _vm(owned=""),
    # A guest that runs
    "Suspend": _guest(),
    "Resume": _guest(),
    "Reset": _guest(Effect.ends, owned="pcs resource restart {resource}"),
    "SendKeys": _used(checks_values=True),
    "Type": _used(secret=frozenset({"text"}), checks_values=True),
    "Screenshot": _look("vm", descriptors=1, needs=Needs.on),
    "Vnc": _used(checks_values=True),
    "Console": _used(descriptors=2, instead="to see what it printed: vmess {vm} console --log"),
    "Log": _look("vm", descriptors=2),
    "Serial": _look("vm", Cost.endless),
    # The system in the guest
    "CloudInit": _look("vm"),
    "SetCloudInit": _vm(takes="files"),
    "Startup": _look("vm"),
    "SetStartup": _vm(takes="configuration"),
    # Wires
    "Nics": _look("vm"),
    "Addresses": _look("vm"),
    "SetNics": _vm(Effect.ends),
    "Connect": _vm(),
    "Cable": _vm(),
    "Impair": _vm(),
    "Mac": _vm(),
    "Forward": _vm(),
    "Capture": Method(Effect.changes, Cost.follow, "vm", descriptors=1),
    "NetShow": _look(),
    "NetIgnored": _look(),
    "NetVlan": _net("bridge", links="interfaces"),
    "NetNat": _net("bridge"),
    "NetPeers": _net("bridge", links="interface"),
    "NetAdd": _net("interface", links="interface"),
    "NetDelete": _net("interface", Effect.ends, links="interface", needs=Needs.off, checks_values=True),
    "NetIgnore": _net("name"),
    "NetPrune": _net(None, Effect.ends),
}
