"""The net verbs: bridges and their ports, independent of VMs.

As in the original, the name of a link says its kind: `newvm0e0` is a TAP, `eth0.100` a VLAN sub-interface,
`vethA0` and `vethB0` are the two ends of a veth pair, `vxlan7` is a VXLAN endpoint. A link with any other name
must exist already.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vmessd.core import names
from vmessd.core.errors import BadFile, Failed, InvalidValue, NotPermitted, quoted
from vmessd.core.models.wires import ForeignPort, Segment, Step, StepKind
from vmessd.core.wires import NamedKind, bridge_name, kind_by_name, link_name, peer, room
from vmessd.network import rtnetlink
from vmessd.network.links import Change, Network, attached, deleting, making, restoring, users
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import describe
from vmessd.network.rtnetlink import Netlink
from vmessd.storage import safefile

IGNORED = "NET_IGNORE"
"""File in the VM root: links that `net` leaves out, one name per line."""
IGNORED_LIMIT = 64 * 1024
IGNORED_MAX = 1000
TOGETHER_MAX = 64
"""Interfaces per call, because a call locks the links of the host."""
VXLAN_PORT = 4789  # assigned by IANA
VXLAN_MAX = 2**24 - 1
VLAN_MAX = 4094
_DEPTH_MAX = 4  # a VLAN on a VLAN on a VXLAN makes sense; more is a mistake


class Segments:
    """The bridges of the host."""

    def __init__(self, network: Network, root: Path) -> None:
        self._network = network
        self._root = root
        self._ignoring = threading.Lock()

    # -- Queries --

    def show(self) -> list[Segment]:
        """Return all bridges with their ports, by name; raises Failed."""
        ignored = self.ignored()
        access = self._network.access
        with self._network.kernel() as kernel:
            links = [link for link in kernel.links() if link.name not in ignored]
        links.sort(key=lambda link: natural(link.name))
        segments = [
            self._segment(bridge, [port for port in links if port.master == bridge.index])
            for bridge in links
            if bridge.kind == "bridge"
        ]
        loose = [
            link.name
            for link in links
            if link.kind in ("vlan", "veth", "vxlan") and not link.master and access.is_own(link)
        ]
        return [*segments, Segment(None, True, loose, None, [])] if loose else segments

    def _segment(self, bridge: Link, ports: Sequence[Link]) -> Segment:
        access = self._network.access
        foreign = [ForeignPort(port.name, root) for port in ports if (root := access.other_root(port))]
        names_of_ports = [port.name for port in ports]
        return Segment(bridge.name, access.is_own(bridge), names_of_ports, access.other_root(bridge), foreign)

    def ignored(self) -> list[str]:
        """Return the links that `net` leaves out; raises BadFile."""
        with safefile.opened(self._root) as root:
            data = safefile.read(root, IGNORED, IGNORED_LIMIT)
            try:
                return (data or b"").decode().split()
            except UnicodeDecodeError:
                raise BadFile(
                    f"{safefile.place(root, IGNORED)} is not text; it must contain names of links"
                ) from None

    # -- Changes --

    def ignore(self, name: str) -> None:
        """Leave a link out of `net` from now on; raises InvalidValue, BadFile, Failed."""
        link_name(name, "link name")
        with self._ignoring:
            ignored = self.ignored()
            if len(ignored) >= IGNORED_MAX:
                raise Failed(f"{IGNORED} has {len(ignored)} links already; net add removes one")
            if name not in ignored:
                self._write_ignored([*ignored, name])

    def _write_ignored(self, links: Sequence[str]) -> None:
        with safefile.opened(self._root) as root:
            safefile.write(root, IGNORED, "".join(f"{link}\n" for link in links).encode())

    def vlan(self, bridge: str, interfaces: Sequence[str], macs: Mapping[str, str]) -> list[Step]:
        """Put interfaces into a bridge; create the bridge and the interfaces if necessary.

        `macs` are the MACs of TAPs, by name, for TAPs whose MAC does not follow from the name.

        Raises:
            InvalidValue: a name is not valid for a bridge or link.
            NotPermitted: a link is neither vmess's own nor allowed.
            VmessError: the change failed and was undone.
        """
        bridge_name(bridge)
        interfaces = list(dict.fromkeys(interfaces))
        if len(interfaces) > TOGETHER_MAX:
            raise InvalidValue(f"{len(interfaces)} interfaces are more than {TOGETHER_MAX} at once")
        for name in interfaces:
            link_name(name, "link name")
        with self._network.change() as (kernel, change):
            stations = kernel.addressed()
            found = kernel.link(bridge)
            if found is None:
                self._network.check_idle(kernel)
            master = self._network.make_bridge(kernel, change, bridge, found, deliberate=True)
            if not self._network.access.is_own(master) and not all(map(names.tap_parts, interfaces)):
                self._network.access.check_change(
                    master, bridge
                )  # TAPs of VMs may join it, other links may not
            for name in interfaces:
                link = self._prepare(kernel, change, name)
                if link.index in stations and not self._network.access.is_allowed(link):
                    raise NotPermitted(
                        f"{name} has an IP address of the host, which would be unreachable in a bridge",
                        hint=f"remove the address first, or allow it: vmessd --allow-links {name}",
                    )
                other = kernel.link(peer(name)) if peer(name) else None
                if other is not None and other.master == master.index:
                    raise Failed(
                        f"{name} and {other.name} are the ends of a pair; in one bridge they form a loop"
                    )
                self._plug(kernel, change, link, master, macs.get(name))
        return change.steps

    def _plug(self, kernel: Netlink, change: Change, link: Link, master: Link, mac: str | None) -> None:
        """Make a link a port of a bridge. Nothing else changes for a link that is not vmess's own."""
        if self._network.access.is_own(link):
            self._network.plug(kernel, change, link, master.index, (), mac)
        elif link.master != master.index:
            change.reversals.append(restoring(link, master.index, own=False))
            kernel.do([rtnetlink.change(link.index, master=master.index)])

    def add(self, name: str) -> list[Step]:
        """Create a link in no bridge, and therefore down if it is ours. `net` no longer leaves it out.

        Raises as :meth:`vlan`.
        """
        link_name(name, "link name")
        self.ignored()  # create nothing if the file cannot be read
        with self._network.change() as (kernel, change):
            found = kernel.link(name)
            if not (found.up if found else self._unignore(name)):
                self._prepare(kernel, change, name)
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
        link_name(name, "link name")
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
            kernel.delete([link])
        return [Step(StepKind.nonpersistent if link.tap else StepKind.deleted, name)]

    def prune(self, is_gone: Callable[[str], bool] = lambda _vm: False) -> list[Step]:
        """Delete the TAPs of VMs that are gone, then the bridges of vmess that have neither port nor address.

        Only TAPs with our mark that no process is attached to are deleted. Raises Failed.
        """
        with self._network.kernel() as kernel:
            taps = [link for link in kernel.links() if self._is_left_behind(link, is_gone)]
            kernel.delete(taps)
            links, addressed = kernel.links(), kernel.addressed()
            used = {link.master for link in links} | {link.parent for link in links} | addressed
            empty = [
                link
                for link in links
                if link.kind == "bridge" and self._network.access.is_own(link) and link.index not in used
            ]
            kernel.delete(empty)
        return [
            Step(StepKind.deleted, link.name)
            for links in (taps, empty)
            for link in sorted(links, key=lambda link: natural(link.name))
        ]

    def _is_left_behind(self, link: Link, is_gone: Callable[[str], bool]) -> bool:
        """Tell whether a link is a TAP of a VM of this root that is gone, such as one renamed by hand."""
        parts = names.tap_parts(link.name)
        if parts is None or not link.tap or link.attached:
            return False
        return self._network.access.is_marked(link) and is_gone(parts[0])

    # -- One link --

    def _prepare(self, kernel: Netlink, change: Change, name: str, depth: int = 0) -> Link:
        """Return a link by its name, created if necessary; a link that is not our own is set up."""
        if parts := names.tap_parts(name):
            if parts[1] >= room(parts[0]):
                raise InvalidValue(
                    f"no VM can have TAP {quoted(name)}; the last interface is {room(parts[0]) - 1}"
                )
            change.steps.append(Step(StepKind.preparing, name))
            return self._network.make_tap(kernel, change, name)
        found = kernel.link(name)
        if found is None:
            return self._make(kernel, change, name, depth)
        if found.kind == "bridge":
            raise Failed(f"{name} is a bridge; a bridge cannot be a port of another bridge")
        self._network.access.check_change(found, name)
        change.steps.append(Step(StepKind.existing, name))
        if not found.up and not self._network.access.is_own(found):
            change.reversals.append(restoring(found, found.master, own=False))
            kernel.do([rtnetlink.change(found.index, up=True)])
        return found

    def _make(self, kernel: Netlink, change: Change, name: str, depth: int) -> Link:
        """Create a link of the kind that its name implies; it is down until it is plugged in."""
        self._network.check_made(kernel)
        request = self._creation(kernel, change, name, depth)
        ends = [name, peer(name)] if peer(name) else [name]
        mark = self._network.access.mark()
        with making(name):
            kernel.do([request, *(rtnetlink.set_alias(end, mark) for end in ends)])
        made = [kernel.present(end) for end in ends]
        if any(
            link.name != end or not link.kind or link.alias != mark
            for link, end in zip(made, ends, strict=True)
        ):
            raise Failed(f"{name} vanished right after it was created", hint="try again")
        change.reversals.append(deleting(made[0]))
        return made[0]

    def _creation(self, kernel: Netlink, change: Change, name: str, depth: int) -> rtnetlink.Request:
        kind = kind_by_name(name)
        parent, _, tag = name.rpartition(".")
        if kind is NamedKind.vlan:
            if not 1 <= int(tag) <= VLAN_MAX or depth >= _DEPTH_MAX:
                raise InvalidValue(f"VLAN {quoted(tag)} of {quoted(name)} is not between 1 and {VLAN_MAX}")
            base = self._prepare(kernel, change, parent, depth + 1)
            change.steps.append(Step(StepKind.subinterface, name))
            return rtnetlink.new_vlan(name, base.index, int(tag))
        if kind is NamedKind.pair:
            if kernel.link(peer(name)):
                raise Failed(
                    f"{peer(name)} exists already and is not the other end of a pair with {name}",
                    hint=f"vmess net delete {peer(name)}",
                )
            change.steps.append(Step(StepKind.pair, name))
            return rtnetlink.new_veth(name, peer(name))
        if kind is NamedKind.vxlan:
            number = int(name.removeprefix("vxlan"))
            if not 1 <= number <= VXLAN_MAX:
                raise InvalidValue(f"VXLAN '{number}' of {quoted(name)} is not between 1 and {VXLAN_MAX}")
            change.steps.append(Step(StepKind.vxlan, name))
            return rtnetlink.new_vxlan(name, number, VXLAN_PORT)
        raise InvalidValue(
            f"there is no link {quoted(name)}, and its name does not say what to create",
            hint="newvm0e0 is a TAP, eth0.100 a VLAN, vethA0 and vethB0 are a pair, vxlan7 is a VXLAN; "
            "to create a bridge: vmess net vlan <bridge>",
        )


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts bridge2 before bridge10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]
