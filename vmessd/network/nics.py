"""Interfaces of VMs: what NICS says of each, what the kernel has, and how the two differ. Pure.

While links exist, the kernel is the truth.
"""

from vmessd.core.dataclass import dataclass
from vmessd.core.wires import End, Wire
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import Tap, is_leaving


@dataclass(frozen=True)
class Nic:
    """One interface of a VM: what NICS says and what the kernel has."""

    index: int
    tap: Tap
    noted: Wire | None
    """The connection according to NICS."""
    link: Link | None
    """The TAP, if it exists."""
    bridge: str | None
    """The bridge that the TAP is a port of."""
    taken_by: str | None = None
    """The other VM root that owns a link of this name."""
    cable: End | None = None
    """The other end of the cable that is plugged into the TAP."""
    mtu: int | None = None
    """The MTU of the segment that it is in, if that has one."""
    by_qemu: bool = False
    """It has no TAP: QEMU itself carries its frames, in a user-mode network or to another QEMU."""
    far: Link | None = None
    """The TAP at the other end of the cable."""
    is_segment: bool = False
    """The bridge is vmess's own."""

    @property
    def wire(self) -> Wire:
        """What it is plugged into: according to the kernel if the TAP exists, else according to NICS.

        A cable counts even if there is nothing at its other end yet.
        """
        if self.link is None or (self.waits and not self.bridge):
            return self.noted or Wire()
        return Wire(bridge=self.bridge, cable=self.cable)

    @property
    def waits(self) -> bool:
        """NICS says that it has a cable, and the kernel has none."""
        return self.noted is not None and self.noted.cable is not None and self.cable is None

    @property
    def leaving(self) -> bool:
        """The guest was asked to release its card and has not done so yet."""
        return self.link is not None and is_leaving(self.link)

    @property
    def is_whole(self) -> bool:
        """The TAP exists, has an owner, is up if it is a port, and has its cable."""
        up = self.link is not None and (self.link.up or not self.bridge)
        return self.link is not None and self.link.owner is not None and up and not self.waits

    def difference(self) -> str | None:
        """Return how the kernel differs from NICS, as a text; None if it does not."""
        if self.taken_by is not None:
            return f"{self.tap.long} belongs to the VM root {self.taken_by}"
        if self.link is not None and self.bridge and not self.link.up:
            return f"{self.tap.long} is down and passes no frames: ip link set {self.tap.long} up"
        if self.noted is None or self.leaving or self.by_qemu:
            return None
        if self.link is None:
            return f"{self.tap.long} does not exist; a start creates it, {_connected(self.noted)}"
        if self.wire != self.noted:
            return f"{self.tap.long} is {_connected(self.wire)}, but NICS says {self.noted}"
        if self.waits:
            return f"{self.tap.long} and the TAP of {self.noted} are not joined; a start joins them"
        return None


def _connected(wire: Wire) -> str:
    """Return where an interface is, in words."""
    return "connected to nothing" if wire == Wire() else f"plugged into {wire}"
