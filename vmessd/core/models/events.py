"""What happens to VMs, as those who watch are told. Pure."""

import dataclasses
import enum

from vmessd.core import words
from vmessd.core.lifecycle import State
from vmessd.core.models.vms import Exit


class Kind(enum.Enum):
    """What sort of event it is."""

    watching = words.Kind.watching
    """The first one: from here on everything is told. It is about no VM."""
    now = words.Kind.now
    """The state a VM has when the watching begins."""
    state = words.Kind.state
    """A VM has come from one state into another."""
    start = words.Kind.start
    """A QEMU runs, or was found running."""
    stop = words.Kind.stop
    """A stop has come to a rung of its ladder."""
    exit = words.Kind.exit
    """A QEMU has ended."""
    restart = words.Kind.restart
    """What the restart policy makes of that: a start to come, or none any more."""
    qemu = words.Kind.qemu
    """An event of QEMU's own (QMP), such as RESET or BLOCK_IO_ERROR."""
    wires = words.Kind.wires
    """Interfaces, cables or forwarded ports were changed."""
    setting = words.Kind.setting
    lock = words.Kind.lock
    """A VM was locked or unlocked."""
    vnc = words.Kind.vnc
    """A viewer is waited for, has come, or has not."""
    console = words.Kind.console
    """Somebody is attached to the serial console, or is no more."""
    made = words.Kind.made
    removed = words.Kind.removed


@dataclasses.dataclass(frozen=True)
class VMEvent:
    """One thing that happened."""

    number: int
    """Counted over all VMs since the daemon began; of `watching` and `now`, the last one before them."""
    time: float
    """Seconds since 1970, by the wall clock."""
    monotonic: float
    """Seconds by CLOCK_MONOTONIC, which nobody sets."""
    vm: str
    event: Kind
    text: str
    """The same in words: one line, escaped."""
    state: State | None
    """Of `state`, `now`."""
    before: State | None
    """Of `state`."""
    uid: int | None
    """Who asked for it."""
    pid: int | None
    """Of the QEMU it is about."""
    exit: Exit | None
    """Of `exit`."""
    count: int
    """How many it stands for: an event of QEMU's that came again and again is told once a second."""
    vms: int | None = None
    """Of `watching`: how many VMs there are that are watched."""
