"""The net verbs: bridges and their ports, independent of VMs.

As in the original, the name of a link says its kind: `newvm0e0` is a TAP, `eth0.100` a VLAN sub-interface,
`vethA0` and `vethB0` are the two ends of a veth pair, `vxlan7` is a VXLAN endpoint. A link with any other name
must exist already.
"""

import contextlib
import errno
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vmessd.core import names
from vmessd.core.errors import Failed, InvalidValue, NotPermitted, counted, quoted
from vmessd.core.models.wires import CableEnds, ForeignPort, Segment, Step, StepKind, VxlanPeers
from vmessd.core.wires import NamedKind, bridge_name, kind_by_name, peer, typed_link_name
from vmessd.network import netlink_requests
from vmessd.network.cables import MTU
from vmessd.network.changes import Change
from vmessd.network.kernel_errors import making
from vmessd.network.links import Network
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import Tap, describe, segment_mtu, shown, tap_of
from vmessd.network.ports import mtu_of
from vmessd.network.reversals import deleting, restoring, users
from vmessd.network.rtnetlink import Netlink
from vmessd.network.vm_taps import attached
from vmessd.storage.root_files import RootFile

IGNORED = "NET_IGNORE"
"""File in the VM root: links that `net` leaves out, one name per line."""
IGNORED_LIMIT = 64 * 1024
IGNORED_MAX = 1000
TOGETHER_MAX = 64
"""Interfaces per call, because a call locks the links of the host."""
VXLAN_PORT = 4789  # assigned by IANA
VXLAN_MAX = 2**24 - 1
VLAN_MAX = 4094
MTU_MIN = 576  # what every IPv4 host must be able to receive (RFC 791)
_DEPTH_MAX = 4  # a VLAN on a VLAN on a VXLAN makes sense; more is a mistake


def _typed(interfaces: Sequence[str]) -> list[str]:
    """Return the names of links that were typed, each once; raises InvalidValue."""
    interfaces = list(dict.fromkeys(interfaces))
    if len(interfaces) > TOGETHER_MAX:
        raise InvalidValue(f"{len(interfaces)} interfaces are more than {TOGETHER_MAX} at once")
    for name in interfaces:
        typed_link_name(name)
    return interfaces


def _unseen(cables: int) -> str:
    return (
        f"{counted(cables, 'cable')} between VMs cannot be seen on the host: without CAP_NET_ADMIN, "
        f"QEMU carries the frames; to list them: vmess --all ifstat"
    )


def host_remark() -> str | None:
    """Return what the host does to frames on all bridges, in words; None for nothing. Blocks.

    A bridge cannot be excepted. Source: Linux's net/bridge/br_netfilter_hooks.c.
    """
    for name in ("iptables", "ip6tables", "arptables"):
        with contextlib.suppress(OSError):
            setting = f"bridge-nf-call-{name}"
            if Path(f"/proc/sys/net/bridge/{setting}").read_text(encoding="ascii").strip() == "1":
                return (
                    f"{setting} is 1: the host's firewall sees what passes a bridge, and may drop it, but not "
                    f"what passes a cable; to end that, as root: sysctl net.bridge.{setting}=0"
                )
    return None


def _new_vxlan(change: Change, name: str, *, ipv6: bool = False) -> netlink_requests.Request:
    number = int(name.removeprefix("vxlan"))
    if not 1 <= number <= VXLAN_MAX:
        raise InvalidValue(f"VXLAN '{number}' of {quoted(name)} is not between 1 and {VXLAN_MAX}")
    change.steps.append(Step(StepKind.vxlan, name))
    return netlink_requests.new_vxlan(name, number, VXLAN_PORT, ipv6=ipv6)


class Segments:
    """The bridges of the host."""

    def __init__(self, network: Network, root: Path) -> None:
        self._network = network
        self._ignored_file = RootFile(root, IGNORED, IGNORED_LIMIT, "names of links")
        self._ignoring = threading.Lock()

    # -- Queries --

    def show(self, unseen: int = 0) -> list[Segment]:
        """Return all bridges with their ports, by name; raises Failed.

        `unseen` is the number of cables that QEMU carries, about which the kernel knows nothing.
        """
        ignored = frozenset(self.ignored())
        access = self._network.access
        with self._network.kernel() as kernel:
            links = [link for link in kernel.links() if ignored.isdisjoint((link.name, shown(link)))]
            flooding = kernel.flooding() if any(link.kind == "vxlan" for link in links) else {}
        links.sort(key=lambda link: names.natural(shown(link)))
        remark = host_remark()
        led = {
            link.index: sorted(flooding[link.index], key=lambda one: (one.version, one.packed))
            for link in links
            if link.index in flooding
        }
        segments = [
            self._segment(bridge, [port for port in links if port.master == bridge.index], led, remark)
            for bridge in links
            if bridge.kind == "bridge"
        ]
        loose = [
            link.name
            for link in links
            if link.kind in ("vlan", "veth", "vxlan") and not link.master and access.is_own(link)
        ]
        cables = [CableEnds(str(one), str(other)) for one, other in self._network.cable_ends(links)]
        if loose or cables:
            segments.append(Segment(None, True, loose, None, [], cables or None))
        if unseen:
            segments.append(Segment(None, True, [], None, [], remark=_unseen(unseen)))
        return segments

    def _segment(
        self, bridge: Link, ports: Sequence[Link], led: Mapping[int, Sequence[object]], remark: str | None
    ) -> Segment:
        access = self._network.access
        foreign = [ForeignPort(shown(port), root) for port in ports if (root := access.other_root(port))]
        inside = [shown(port) for port in ports]
        own, root = access.is_own(bridge), access.other_root(bridge)
        if not own:
            return Segment(bridge.name, own, inside, root, foreign)
        hub, mtu = bridge.hub or None, segment_mtu(bridge)
        vxlans = [port for port in ports if port.index in led and access.is_own(port)]
        peers = [VxlanPeers(port.name, [*map(str, led[port.index])]) for port in vxlans] or None
        return Segment(bridge.name, own, inside, root, foreign, hub=hub, mtu=mtu, remark=remark, vxlans=peers)

    def ignored(self) -> list[str]:
        """Return the links that `net` leaves out; raises BadFile."""
        text, _ = self._ignored_file.read()
        return text.split()

    # -- Changes --

    def ignore(self, name: str) -> None:
        """Leave a link out of `net` from now on; raises InvalidValue, BadFile, Failed."""
        typed_link_name(name)
        with self._ignoring:
            ignored = self.ignored()
            if len(ignored) >= IGNORED_MAX:
                raise Failed(f"{IGNORED} has {len(ignored)} links already; net add removes one")
            if name not in ignored:
                self._write_ignored([*ignored, name])

    def _write_ignored(self, links: Sequence[str]) -> None:
        self._ignored_file.write("".join(f"{link}\n" for link in links))

    def vlan(  # noqa: PLR0913 -- all that can be said about a segment
        self,
        bridge: str,
        interfaces: Sequence[str],
        macs: Mapping[str, str],
        vms: Collection[str] = (),
        *,
        hub: bool | None = None,
        mtu: int | None = None,
        first: Callable[[Netlink, Change], None] = lambda _kernel, _change: None,
    ) -> list[Step]:
        """Put interfaces into a bridge; create the bridge and the interfaces if necessary.

        Args:
            bridge: its name.
            interfaces: names of links; a TAP may have its long name.
            macs: the MACs of TAPs, by name in the kernel, for TAPs whose MAC does not follow from the name.
            vms: VMs that there are, as for :meth:`_tap_meant`.
            hub: whether the bridge sends each frame to all ports; None leaves it as it is.
            mtu: the MTU of the segment in bytes, from MTU_MIN to cables.MTU; None leaves it as it is.
            first: is done before the interfaces are looked at, and undone with the rest.

        Raises:
            InvalidValue: a name is not valid for a bridge or link, or the MTU is out of bounds.
            NotPermitted: a link is neither vmess's own nor allowed.
            VmessError: the change failed and was undone.
        """
        bridge_name(bridge)
        if mtu is not None and not MTU_MIN <= mtu <= MTU:
            raise InvalidValue(f"MTU {quoted(mtu)} is not a number of bytes from {MTU_MIN} to {MTU}")
        interfaces = _typed(interfaces)
        for vm in vms:
            self._network.impairments.look(vm)
        with self._network.change() as (kernel, change):
            stations = kernel.addressed()
            found = kernel.link(bridge)
            if found is None:
                self._network.check_idle(kernel)
            master = self._network.make_bridge(kernel, change, bridge, found, deliberate=True)
            if hub is not None or mtu is not None:
                master = self._shaped(kernel, change, master, stations, hub, mtu)
            first(kernel, change)
            taps = {name: self._tap_meant(kernel, name, vms) for name in interfaces}
            if not self._network.access.is_own(master) and not all(taps.values()):
                # TAPs of VMs may join it, other links may not.
                self._network.access.check_change(master, bridge)
            with self._network.ports.tuning(kernel, change.reversals, stations) as touched:
                touched[master.index] = master
                for name, tap in taps.items():
                    link = self._prepare(kernel, change, name, tap)
                    self._check_port(kernel, name, link, master, stations)
                    touched.update(self._network.ports.moving(kernel, link, master))
                    self._plug(kernel, change, link, master, stations, macs.get(link.name))
            self._network.impairments.settle_quietly(kernel, filter(None, taps.values()))
        return change.steps

    def _check_port(
        self, kernel: Netlink, name: str, link: Link, master: Link, stations: Collection[int]
    ) -> None:
        """Raise if a link would take an address of the host into a bridge, or form a loop."""
        if link.index in stations and not self._network.access.is_allowed(link):
            raise NotPermitted(
                f"{name} has an IP address of the host, which would be unreachable in a bridge",
                hint=f"remove the address first, or allow it: vmessd --allow-links {name}",
            )
        other = kernel.link(peer(name)) if peer(name) else None
        if other is not None and other.master == master.index:
            raise Failed(f"{name} and {other.name} are the ends of a pair; in one bridge they form a loop")

    def _shaped(  # noqa: PLR0913, PLR0917 -- a part of `vlan`
        self,
        kernel: Netlink,
        change: Change,
        bridge: Link,
        stations: Collection[int],
        hub: bool | None,
        mtu: int | None,
    ) -> Link:
        """Make a bridge of ours a hub or a switch, and set the MTU of its segment; raises NotPermitted."""
        access = self._network.access
        if not access.is_own(bridge):
            raise NotPermitted(
                f"bridge {bridge.name} is not vmess's own, so neither its MTU nor its learning is changed",
                hint="make one, for example: vmess net vlan lab0",
            )
        new = segment_mtu(bridge) if mtu is None else mtu if mtu != MTU else None
        alias = access.mark(mtu=new)
        wanted = replace(bridge, hub=bridge.hub if hub is None else hub, alias=alias)
        ports = [port for port in kernel.ports(bridge.index) if access.is_own(port)]

        def requests(bridge: Link, mtus: Mapping[int, int]) -> list[netlink_requests.Request]:
            return [
                netlink_requests.ageing(bridge.index, 0 if bridge.hub else netlink_requests.AGEING),
                netlink_requests.change(bridge.index, alias=bridge.alias),
                *(netlink_requests.change(index, mtu=mtu) for index, mtu in mtus.items()),
            ]

        before = {port.index: port.mtu for port in ports}
        change.reversals.append(lambda kernel: kernel.do(requests(bridge, before), tolerate=errno.ENODEV))
        after = {port.index: mtu_of(port, wanted, stations) for port in ports}
        kernel.do(requests(wanted, after))
        return wanted

    def _plug(  # noqa: PLR0913, PLR0917 -- all properties of a port
        self,
        kernel: Netlink,
        change: Change,
        link: Link,
        master: Link,
        stations: Collection[int],
        mac: str | None,
    ) -> None:
        """Make a link a port of a bridge, with the settings of a port of ours if the bridge is.

        Nothing else changes for a link that is not vmess's own.
        """
        if self._network.access.is_own(link):
            self._network.plug(kernel, change, link, master, stations, mac)
        elif link.master != master.index:
            change.reversals.append(restoring(link, master.index, own=False))
            passing = [netlink_requests.passing(link.index)] if self._network.access.is_own(master) else []
            kernel.do([netlink_requests.change(link.index, master=master.index), *passing])

    def add(self, name: str, vms: Collection[str] = ()) -> list[Step]:
        """Create a link in no bridge, and therefore down if it is ours. `net` no longer leaves it out.

        `vms` as for :meth:`vlan`. Raises as :meth:`vlan`.
        """
        typed_link_name(name)
        self.ignored()  # create nothing if the file cannot be read
        with self._network.change() as (kernel, change):
            found = kernel.link(name)
            if not (found.up if found else self._unignore(name)):
                self._prepare(kernel, change, name, self._tap_meant(kernel, name, vms))
        self._unignore(name)
        return change.steps

    def _unignore(self, name: str) -> bool:
        """Show a link in `net` again; return whether it was left out."""
        with self._ignoring:
            ignored = self.ignored()
            if name in ignored:
                self._write_ignored([other for other in ignored if other != name])
            return name in ignored

    def delete(self, name: str) -> list[Step]:
        """Delete a link of ours.

        Raises:
            Failed: it does not exist, or it is in use, for example a bridge with ports.
            AlreadyRunning: a process is attached to this TAP.
            NotPermitted: it is neither vmess's own nor allowed.
        """
        typed_link_name(name)
        with self._network.kernel() as kernel:
            link = kernel.link(name)
            if link is None:
                raise Failed(f"there is no link {quoted(name)}", hint="vmess net show")
            self._network.access.check_change(link, name)
            if link.kind == "":
                raise Failed(f"{name} is {describe(link)}, which cannot be deleted")
            if link.tap and link.attached:
                raise attached(name)
            if used := users(kernel, link):
                raise Failed(
                    f"{name} is in use ({', '.join(used[:8])}), so it is not deleted", hint="vmess net show"
                )
            other = kernel.link_at(link.parent) if link.kind == "veth" else None
            if other:
                self._network.access.check_root(other)  # both ends are deleted together
            bridge = kernel.link_at(other.master) if other else None
            if other and bridge and not self._network.access.is_own(bridge):
                raise Failed(
                    f"{other.name}, its other end, is in {bridge.name}, so {name} is not deleted",
                    hint=f"as root: ip link delete {name}",
                )
            kernel.delete([link, *self._network.impairments.ways_out(kernel, [link])])
            self._network.ports.left(kernel, [link, other] if other else [link])
        return [Step(StepKind.nonpersistent if link.tap else StepKind.deleted, shown(link))]

    def prune(self, is_gone: Callable[[str], bool] = lambda _vm: False) -> list[Step]:
        """Delete the TAPs of VMs that are gone, then the bridges of vmess that have neither port nor address.

        Only TAPs with our mark that no process is attached to are deleted. Raises Failed.
        """
        with self._network.kernel() as kernel:
            links = kernel.links()
            taps = [link for link in links if self._is_left_behind(link, is_gone)]
            kept = [link for link in links if link not in taps]
            kernel.delete([*taps, *self._network.impairments.strays(kept)])
            self._network.ports.left(kernel, taps)
            links, addressed = kernel.links(), kernel.addressed()
            used = {link.master for link in links} | {link.parent for link in links} | addressed
            empty = [
                link
                for link in links
                if link.kind == "bridge" and self._network.access.is_own(link) and link.index not in used
            ]
            kernel.delete(empty)
        return [
            Step(StepKind.deleted, shown(link))
            for links in (taps, empty)
            for link in sorted(links, key=lambda link: names.natural(shown(link)))
        ]

    def _is_left_behind(self, link: Link, is_gone: Callable[[str], bool]) -> bool:
        """Tell whether a link is a TAP of a VM of this root that is gone, such as one renamed by hand."""
        tap = tap_of(link)
        if tap is None or not link.tap or link.attached:
            return False
        return self._network.access.is_marked(link) and is_gone(tap.vm)

    # -- One link --

    def _tap_meant(self, kernel: Netlink, name: str, vms: Collection[str] = ()) -> Tap | None:
        """Return the TAP that a person means by the name of a link; None if it is another link.

        Other programs give links names that could be those of TAPs, such as `veth0a1b2e3`. A name like
        `lab-bridge1` only means a TAP if `lab-bridg` is one of the `vms`.
        """
        parts = names.tap_parts(name)
        if parts and names.is_original(parts[0]):
            return Tap.of(*parts)
        found = kernel.link(name)
        if found is not None:
            return tap_of(found) if found.tap and self._network.access.is_own(found) else None
        loose = names.tap_parts(name, loosely=True)
        parts = parts or (loose if loose and loose[0] in vms else None)
        return Tap.of(*parts) if parts else None

    def _prepare(self, kernel: Netlink, change: Change, name: str, tap: Tap | None, depth: int = 0) -> Link:
        """Return a link by its name, created if necessary; a link that is not our own is set up."""
        if tap is not None:
            change.steps.append(Step(StepKind.preparing, tap.long))
            return self._network.taps.make(kernel, change, tap)
        found = kernel.link(name)
        if found is None:
            return self._make(kernel, change, name, depth)
        if found.kind == "bridge":
            raise Failed(f"{name} is a bridge; a bridge cannot be a port of another bridge")
        self._network.access.check_change(found, name)
        change.steps.append(Step(StepKind.existing, name))
        if not found.up and not self._network.access.is_own(found):
            change.reversals.append(restoring(found, found.master, own=False))
            kernel.do([netlink_requests.change(found.index, up=True)])
        return found

    def _make(self, kernel: Netlink, change: Change, name: str, depth: int) -> Link:
        """Create a link of the kind that its name implies; it is down until it is plugged in."""
        self._network.check_made(kernel)
        return self._made(kernel, change, name, self._creation(kernel, change, name, depth))

    def make_vxlan(self, kernel: Netlink, change: Change, name: str, *, ipv6: bool) -> Link:
        """Create a VXLAN for peers of IPv4 or IPv6; it is down until it is plugged in."""
        self._network.check_made(kernel)
        return self._made(kernel, change, name, _new_vxlan(change, name, ipv6=ipv6))

    def _made(self, kernel: Netlink, change: Change, name: str, request: netlink_requests.Request) -> Link:
        ends = [name, peer(name)] if peer(name) else [name]
        mark = self._network.access.mark()
        with making(name):
            kernel.do([request, *(netlink_requests.set_alias(end, mark) for end in ends)])
        made = [kernel.present(end) for end in ends]
        if any(
            link.name != end or not link.kind or link.alias != mark
            for link, end in zip(made, ends, strict=True)
        ):
            raise Failed(f"{name} vanished right after it was created", hint="try again")
        change.reversals.append(deleting(made[0]))
        return made[0]

    def _creation(self, kernel: Netlink, change: Change, name: str, depth: int) -> netlink_requests.Request:
        kind = kind_by_name(name)
        parent, _, tag = name.rpartition(".")
        if kind is NamedKind.vlan:
            if not 1 <= int(tag) <= VLAN_MAX or depth >= _DEPTH_MAX:
                raise InvalidValue(f"VLAN {quoted(tag)} of {quoted(name)} is not between 1 and {VLAN_MAX}")
            base = self._prepare(kernel, change, parent, self._tap_meant(kernel, parent), depth + 1)
            change.steps.append(Step(StepKind.subinterface, name))
            return netlink_requests.new_vlan(name, base.index, int(tag))
        if kind is NamedKind.pair:
            if kernel.link(peer(name)):
                raise Failed(
                    f"{peer(name)} exists already and is not the other end of a pair with {name}",
                    hint=f"vmess net delete {peer(name)}",
                )
            change.steps.append(Step(StepKind.pair, name))
            return netlink_requests.new_veth(name, peer(name))
        if kind is NamedKind.vxlan:
            return _new_vxlan(change, name)
        raise InvalidValue(
            f"there is no link {quoted(name)}, and its name does not say what to create",
            hint="newvm0e0 is a TAP, eth0.100 a VLAN, vethA0 and vethB0 are a pair, vxlan7 is a VXLAN; "
            "to create a bridge, for example: vmess net vlan lab0",
        )
