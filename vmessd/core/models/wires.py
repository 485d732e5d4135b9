"""Interfaces of VMs, their addresses, and the bridges and links of the host. Pure."""

import enum
from typing import TypedDict

from vmessd.core import words
from vmessd.core.dataclass import dataclass


@dataclass(frozen=True)
class Impairment:
    """What happens to the frames that pass in one direction of a cable; 0 is nothing."""

    delay: float = 0.0
    """Seconds that each frame takes longer."""
    jitter: float = 0.0
    """Seconds by which the delay of a frame is at most longer or shorter."""
    loss: float = 0.0
    """The fraction of the frames that are lost, as all others from 0 to 1."""
    duplicate: float = 0.0
    """The fraction that arrives twice."""
    reorder: float = 0.0
    """The fraction that is not delayed, and so overtakes the others."""
    corrupt: float = 0.0
    """The fraction in which one bit is wrong."""
    rate: int = 0
    """Bits per second that pass at most; 0 for no limit."""


@dataclass(frozen=True)
class Flap:
    """A cable that is plugged in and pulled again and again."""

    up: float
    """Seconds for which it is in each time."""
    down: float
    """Seconds for which it is out."""


@dataclass(frozen=True)
class VMNic:
    """One interface of a VM."""

    index: int
    """Counted from 0."""
    tap: str | None
    """Name of its TAP, which may be the alternative name of the link; None if QEMU itself carries
    its frames, in a user-mode network or to another QEMU."""
    mac: str
    wire: str
    """What it is connected to, in the words of `ifadd`: a bridge, `-`, `user` with forwarded ports, or the
    other end of a cable."""
    present: bool
    """The TAP exists."""
    leaving: bool
    """It is being unplugged, but the guest has not released it yet."""
    cable: bool | None
    """Its cable is plugged in; the verb `cable` pulls it. None where this is unknown."""
    difference: str | None
    """How the links of the host differ from the NICS file, in words."""
    duplicate: str | None
    """Where else in its bridge its MAC was seen, in words."""
    mac_later: str | None
    """Its MAC after the next start of the VM, if that differs."""
    other_end: str | None = None
    """Why the other end of its cable is dead, in words; null if it is not, or if there is no cable."""
    incoming: Impairment | None = None
    """How its cable is impaired towards the guest; null if it is good."""
    outgoing: Impairment | None = None
    """How its cable is impaired from the guest; null if it is good."""
    flap: Flap | None = None
    """How its cable is plugged in and pulled in turn; null if it is not."""
    unimpaired: str | None = None
    """Why its cable is not impaired as it should be, in words."""
    remark: str | None = None
    """What of the host's settings affects frames on its bridge, if that is one of vmess, in words."""


class StepKind(enum.StrEnum):
    """What was done to a link."""

    persistent = words.StepKind.persistent
    """A TAP exists, or was created."""
    nonpersistent = words.StepKind.nonpersistent
    """A TAP was deleted."""
    pending = words.StepKind.pending
    """A TAP will be deleted when the guest has released its NIC."""
    making = words.StepKind.making
    """A bridge was created."""
    exists = words.StepKind.exists
    """The bridge exists already."""
    down = words.StepKind.down
    """The bridge is down."""
    preparing = words.StepKind.preparing
    """A link is being put into a bridge."""
    subinterface = words.StepKind.subinterface
    pair = words.StepKind.pair
    vxlan = words.StepKind.vxlan
    existing = words.StepKind.existing
    """A link of another kind, which exists already."""
    waiting = words.StepKind.waiting
    """The link will carry frames of the VLAN once it is connected itself."""
    deleted = words.StepKind.deleted
    dropped = words.StepKind.dropped
    """Ports are no longer forwarded; `link` is the wire with them."""
    peerless = words.StepKind.peerless
    """A VXLAN leads nowhere, because the administrator does not allow a peer that is noted for it."""


@dataclass(frozen=True)
class Step:
    """One thing that was done, for the client to report."""

    step: StepKind
    link: str
    uid: int | None = None
    """The owner of a TAP, in a step about the owner."""


@dataclass(frozen=True)
class VMAddress:
    """An address of a guest."""

    interface: int
    mac: str
    address: str
    seen: bool
    """The host has seen it in use; otherwise it is what the address should be."""
    source: str
    """How it is known, in words."""
    known: bool
    """It is in use as far as the host can tell: the guest is running, and frames from it were seen."""
    tap: str | None = None
    """Name of the TAP of the interface, as for :class:`VMNic`; None for QEMU's user-mode network."""


class Reach(TypedDict):
    """How the host reaches the guest of a VM."""

    addresses: list[VMAddress]
    only_user: bool | None
    """All its interfaces are in user-mode networks. null: it has no interfaces."""


@dataclass(frozen=True)
class ForeignPort:
    """A port of a bridge that belongs to another VM root."""

    link: str
    root: str


@dataclass(frozen=True)
class CableEnds:
    """A cable between two interfaces of VMs, each in the words of `ifadd`: `leaf0:1` and `spine0:0`."""

    one: str
    other: str


@dataclass(frozen=True)
class NatLease:
    """An address that a guest got by DHCP."""

    address: str
    mac: str
    vm: str | None
    """The VM that has this MAC on the bridge; null if none of this VM root has it."""
    expires: float
    """Seconds since 1970."""


@dataclass(frozen=True)
class BridgeNat:
    """The NAT of a bridge, with DHCP and DNS."""

    range: str
    """As in `10.99.0.0/24`."""
    address: str
    """The host's, which is router and DNS server of the guests."""
    first: str
    """The first address for guests."""
    last: str
    leases: list[NatLease]
    problem: str | None = None
    """What does not work, in words."""
    remark: str | None = None
    """What of the host's settings affects it, in words."""


@dataclass(frozen=True)
class VxlanPeers:
    """A VXLAN, and the hosts to which it leads."""

    link: str
    peers: list[str]
    """Their addresses."""


@dataclass(frozen=True)
class VxlanPeer:
    """A host to which a VXLAN leads."""

    address: str
    local: str
    """The address of this host that it sees, by the route to it; empty if the route says none."""


class Peered(TypedDict):
    """What was done for the peers of a VXLAN."""

    steps: list[Step]
    peers: list[VxlanPeer]
    mtu: int | None
    """What the underlay leaves for the VXLAN, in bytes; null without peers."""


@dataclass(frozen=True)
class Segment:
    """A bridge and its ports; without a bridge, the links of vmess that are in no bridge."""

    bridge: str | None
    own: bool
    """vmess created it for this VM root."""
    ports: list[str]
    root: str | None
    """The other VM root that the bridge belongs to."""
    foreign: list[ForeignPort]
    """The ports that belong to other VM roots."""
    cables: list[CableEnds] | None = None
    """The cables between VMs, in the segment without a bridge."""
    hub: bool | None = None
    """The bridge is one of vmess, and sends each frame to all its ports."""
    mtu: int | None = None
    """The MTU that was set for the segment, in bytes."""
    remark: str | None = None
    """What of the host's settings affects frames on a bridge of vmess, in words; without a bridge, which cables
    are not listed."""
    nat: BridgeNat | None = None
    vxlans: list[VxlanPeers] | None = None
    """The VXLANs of vmess among its ports that have peers."""
