"""The net verbs: bridges and what is plugged into them, whatever VM it belongs to.

The name says what a link is, as with the original: `newvm0e0` a TAP, `eth0.100` a VLAN sub-interface,
`vethA0` and `vethB0` the two ends of a pair, `vxlan7` a VXLAN end point. What cannot be told by its
name has to be there already.
"""

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmessd.core import names
from vmessd.core.errors import BadFile, Failed, InvalidValue, NotPermitted, quoted
from vmessd.core.models.wires import ForeignPort, Segment, Step, StepKind
from vmessd.core.wires import NamedKind, bridge_name, kind_by_name, link_name, peer, room
from vmessd.network import rtnetlink
from vmessd.network.links import Change, Network, as_it_was, attached, making, undoing, users
from vmessd.network.policy import describe
from vmessd.network.rtnetlink import Link, Netlink
from vmessd.storage import safefile

IGNORED = "NET_IGNORE"
"""File in the VM root: links that `net` leaves out, a name to a line."""
IGNORED_LIMIT = 64 * 1024
IGNORED_MAX = 1000
TOGETHER_MAX = 64
"""Interfaces of one call: the host's links wait for it."""
VXLAN_PORT = 4789  # IANA's
VXLAN_MAX = 2**24 - 1
VLAN_MAX = 4094
_DEPTH_MAX = 4  # a VLAN on a VLAN on a VXLAN is sense; more is a slip


class Segments:
    """The bridges of the host."""

    def __init__(self, network: Network, root: Path) -> None:
        self._network = network
        self._root = root
        self._ignoring = threading.Lock()

    # -- What there is --

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
                    f"{safefile.place(root, IGNORED)} is not text; it has to be names of links"
                ) from None

    # -- What is changed --

    def ignore(self, name: str) -> None:
        """Have `net` leave a link out from now on; raises InvalidValue, BadFile, Failed."""
        link_name(name, "link name")
        with self._ignoring:
            ignored = self.ignored()
            if len(ignored) >= IGNORED_MAX:
                raise Failed(f"{IGNORED} has {len(ignored)} links already; net add takes one out")
            if name not in ignored:
                self._write_ignored([*ignored, name])

    def _write_ignored(self, links: Sequence[str]) -> None:
        with safefile.opened(self._root) as root:
            safefile.write(root, IGNORED, "".join(f"{link}\n" for link in links).encode())

    def vlan(self, bridge: str, interfaces: Sequence[str], macs: Mapping[str, str]) -> list[Step]:
        """Put interfaces into a bridge, all of them made if need be.

        `macs` are TAPs' own MACs, by their names, where these do not tell them.

        Raises:
            InvalidValue: a name cannot be that of a bridge or link.
            NotPermitted: a link is not vmess's own and not allowed.
            VmessError: it could not be done; then nothing was.
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
                self._network.access.check_change(master, bridge)  # VMs may join it, other segments may not
            for name in interfaces:
                link = self._prepare(kernel, change, name)
                if link.index in stations and not self._network.access.is_allowed(link):
                    raise NotPermitted(
                        f"{name} has an IP address of the host, which would be cut off there",
                        hint=f"take the address away first, or allow it: vmessd --allow-links {name}",
                    )
                other = kernel.link(peer(name)) if peer(name) else None
                if other is not None and other.master == master.index:
                    raise Failed(
                        f"{name} and {other.name} are the ends of a pair; in one bridge they are a loop"
                    )
                self._plug(kernel, change, link, master, macs.get(name))
        return change.steps

    def _plug(self, kernel: Netlink, change: Change, link: Link, master: Link, mac: str | None) -> None:
        """Make a link a port of a bridge; one that is not our own is left as it is but for that."""
        if self._network.access.is_own(link):
            self._network.plug(kernel, change, link, master.index, (), mac)
        elif link.master != master.index:
            change.reversals.append(as_it_was(link, master.index, own=False))
            kernel.do([rtnetlink.change(link.index, master=master.index)])

    def add(self, name: str) -> list[Step]:
        """Make a link, in no bridge, and so down if it is ours; `net` no longer leaves it out.

        Raises as :meth:`vlan`.
        """
        link_name(name, "link name")
        self.ignored()  # if that cannot be read, nothing is made
        with self._network.change() as (kernel, change):
            found = kernel.link(name)
            if not (found.up if found else self._is_heard_again(name)):
                self._prepare(kernel, change, name)
        self._is_heard_again(name)
        return change.steps

    def _is_heard_again(self, name: str) -> bool:
        """Have `net` no longer leave a link out; tell whether it did."""
        with self._ignoring:
            ignored = self.ignored()
            if name in ignored:
                self._write_ignored([other for other in ignored if other != name])
            return name in ignored

    def delete(self, name: str) -> list[Step]:
        """Delete a link of ours.

        Raises:
            Failed: there is none, or it is a bridge with ports.
            AlreadyRunning: it is the TAP of a process.
            NotPermitted: it is not vmess's own and not allowed.
        """
        link_name(name, "link name")
        with self._network.kernel() as kernel:
            link = kernel.link(name)
            if link is None:
                raise Failed(f"there is no link {quoted(name)}", hint="vmess net show")
            self._network.access.check_change(link, name)
            if link.kind == "":
                raise Failed(f"{name} is {describe(link)}; nobody can delete it")
            if link.tap and link.attached:
                raise attached(name)
            if used := users(kernel, link):
                raise Failed(
                    f"{name} is in use ({', '.join(used[:8])}), so it is not deleted", hint="vmess net show"
                )
            other = kernel.link_at(link.parent) if link.kind == "veth" else None
            if other:
                self._network.access.check_root(other)  # it would go, too
            bridge = kernel.link_at(other.master) if other else None
            if other and bridge and not self._network.access.is_own(bridge):
                raise Failed(
                    f"{other.name}, its other end, is in {bridge.name}, so {name} is not deleted",
                    hint=f"as root: ip link delete {name}",
                )
            kernel.delete([link])
        return [Step(StepKind.nonpersistent if link.tap else StepKind.deleted, name)]

    def prune(self) -> list[Step]:
        """Delete the bridges vmess made that have neither a port nor an address; raises Failed."""
        with self._network.kernel() as kernel:
            links, addressed = kernel.links(), kernel.addressed()
            used = {link.master for link in links} | {link.parent for link in links} | addressed
            empty = [
                link
                for link in links
                if link.kind == "bridge" and self._network.access.is_own(link) and link.index not in used
            ]
            kernel.delete(empty)
        return [
            Step(StepKind.deleted, link.name) for link in sorted(empty, key=lambda link: natural(link.name))
        ]

    # -- One link --

    def _prepare(self, kernel: Netlink, change: Change, name: str, depth: int = 0) -> Link:
        """Return a link by its name, made if need be; up where it is not our own."""
        if parts := names.tap_parts(name):
            if parts[1] >= room(parts[0]):
                raise InvalidValue(
                    f"TAP {quoted(name)} is none a VM can have; {room(parts[0]) - 1} is the last"
                )
            change.steps.append(Step(StepKind.preparing, name))
            return self._network.make_tap(kernel, change, name)
        found = kernel.link(name)
        if found is None:
            return self._make(kernel, change, name, depth)
        if found.kind == "bridge":
            raise Failed(f"{name} is a bridge; a bridge is no port of another")
        self._network.access.check_change(found, name)
        change.steps.append(Step(StepKind.existing, name))
        if not found.up and not self._network.access.is_own(found):
            change.reversals.append(as_it_was(found, found.master, own=False))
            kernel.do([rtnetlink.change(found.index, up=True)])
        return found

    def _make(self, kernel: Netlink, change: Change, name: str, depth: int) -> Link:
        """Make a link whose name tells what it is; it is down until it is plugged in."""
        self._network.check_made(kernel)
        request = self._creation(kernel, change, name, depth)
        ends = [name, peer(name)] if peer(name) else [name]
        mark = self._network.access.mark()
        with making(name):
            kernel.do([request, *(rtnetlink.marked(end, mark) for end in ends)])
        made = [kernel.present(end) for end in ends]
        if any(
            link.name != end or not link.kind or link.alias != mark
            for link, end in zip(made, ends, strict=True)
        ):
            raise Failed(f"{name} vanished as soon as it was made", hint="try again")
        change.reversals.append(undoing(made[0]))
        return made[0]

    def _creation(self, kernel: Netlink, change: Change, name: str, depth: int) -> rtnetlink.Request:
        kind = kind_by_name(name)
        parent, _, tag = name.rpartition(".")
        if kind is NamedKind.vlan:
            if not 1 <= int(tag) <= VLAN_MAX or depth >= _DEPTH_MAX:
                raise InvalidValue(f"VLAN {quoted(tag)} of {quoted(name)} is not from 1 to {VLAN_MAX}")
            base = self._prepare(kernel, change, parent, depth + 1)
            change.steps.append(Step(StepKind.subinterface, name))
            return rtnetlink.new_vlan(name, base.index, int(tag))
        if kind is NamedKind.pair:
            if kernel.link(peer(name)):
                raise Failed(
                    f"{peer(name)} is there already, and is not the other end of a pair with {name}",
                    hint=f"vmess net delete {peer(name)}",
                )
            change.steps.append(Step(StepKind.pair, name))
            return rtnetlink.new_veth(name, peer(name))
        if kind is NamedKind.vxlan:
            number = int(name.removeprefix("vxlan"))
            if not 1 <= number <= VXLAN_MAX:
                raise InvalidValue(f"VXLAN '{number}' of {quoted(name)} is not from 1 to {VXLAN_MAX}")
            change.steps.append(Step(StepKind.vxlan, name))
            return rtnetlink.new_vxlan(name, number, VXLAN_PORT)
        raise InvalidValue(
            f"there is no link {quoted(name)}, and its name does not say what to make",
            hint="newvm0e0 is a TAP, eth0.100 a VLAN, vethA0 and vethB0 are a pair, vxlan7 is a VXLAN; "
            "a bridge is made by: vmess net vlan <bridge>",
        )


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts bridge2 before bridge10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]
