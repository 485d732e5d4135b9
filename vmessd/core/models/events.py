"""Events of VMs, as `Watch` reports them. Pure."""

import enum

from vmessd.core import words
from vmessd.core.dataclass import dataclass
from vmessd.core.lifecycle import State
from vmessd.core.models.vms import Exit


class Kind(enum.Enum):
    """The kind of an event."""

    watching = words.Kind.watching
    """The first event: from here on nothing is missed. It belongs to no VM."""
    now = words.Kind.now
    """The state of a VM when the watch begins."""
    state = words.Kind.state
    """The state of a VM has changed."""
    start = words.Kind.start
    """A QEMU runs, or was found running."""
    stop = words.Kind.stop
    """A stop has reached a rung of its ladder."""
    exit = words.Kind.exit
    """A QEMU has ended."""
    restart = words.Kind.restart
    """The restart policy will start the VM again, or no longer will."""
    qemu = words.Kind.qemu
    """A QMP event such as RESET or BLOCK_IO_ERROR; or a process beside QEMU has failed."""
    wires = words.Kind.wires
    """Interfaces, cables or forwarded ports were changed."""
    setting = words.Kind.setting
    lock = words.Kind.lock
    """A VM was locked or unlocked."""
    vnc = words.Kind.vnc
    """The port for a viewer is open, has accepted a viewer, or has timed out."""
    console = words.Kind.console
    """A client has attached to the serial console or left it."""
    made = words.Kind.made
    removed = words.Kind.removed


@dataclass(frozen=True)
class VMEvent:
    """One event."""

    number: int
    """Counted over all VMs since the start of the daemon; `watching` and `now` have the number before them."""
    time: float
    """Seconds since 1970, by the wall clock."""
    monotonic: float
    """Seconds by CLOCK_MONOTONIC, which cannot be set."""
    vm: str
    event: Kind
    text: str
    """The event in words: one line, escaped."""
    state: State | None
    """In `state` and `now`."""
    before: State | None
    """In `state`."""
    uid: int | None
    """The user who requested it."""
    pid: int | None
    """The PID of the QEMU concerned."""
    exit: Exit | None
    """In `exit`."""
    count: int
    """The number of events it stands for: a QMP event that repeats is reported once a second."""
    vms: int | None = None
    """In `watching`: the number of watched VMs."""
