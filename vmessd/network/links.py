"""The host's side of VM interfaces: TAPs and bridges. A change is made completely or not at all.

While links exist, the kernel is the truth; the NICS file says how to create missing ones. Everything here
blocks, so call it from a thread. A lock serializes the callers.
"""

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vmessd.core import names
from vmessd.core.errors import Failed
from vmessd.core.models.wires import Step, StepKind
from vmessd.core.wires import End, Wire, new_bridge_name
from vmessd.network import cables, netlink_requests, rtnetlink
from vmessd.network.changes import Change
from vmessd.network.impairments import Impairments
from vmessd.network.kernel_errors import explained, making, missing_capability
from vmessd.network.netlink_replies import Link
from vmessd.network.nics import Nic
from vmessd.network.policy import Access, Tap, is_leaving, root_text, segment_mtu, tap_of
from vmessd.network.ports import Ports, mtu_of
from vmessd.network.reversals import deleting, restoring
from vmessd.network.rtnetlink import Netlink
from vmessd.network.vm_taps import VMTaps, any_tap, attached, tap_names

IDLE_MAX = 256
"""Bridges of ours that may be without a port; `net prune` deletes them."""
MADE_MAX = 1024
"""Links of ours that are neither bridges nor TAPs: VLANs, both ends of pairs, VXLANs."""


class Network:
    """The links of the host that VMs use."""

    def __init__(self, access: Access, *, may_make_taps: bool = True) -> None:
        """`may_make_taps`: this process has CAP_NET_ADMIN, and can make a TAP where there is none."""
        self.access = access
        self.may_make_taps = may_make_taps
        self._lock = threading.Lock()
        # Not the methods themselves: the root is known later.
        self.ports = Ports(lambda link: self.access.is_own(link), lambda link: self.access.may_change(link))  # noqa: PLW0108
        self.impairments = Impairments(lambda link: self.access.is_own(link), lambda: self.access.mark())  # noqa: PLW0108
        self.taps = VMTaps(lambda: self.access, self.impairments.empty)

    @contextlib.contextmanager
    def kernel(self) -> Iterator[Netlink]:
        """Lock the links of the host for the duration of a `with`.

        Raises:
            NotPermitted: CAP_NET_ADMIN is missing.
            Failed: the kernel refused a request; quotes its error.
        """
        with self._lock, explained(), Netlink() as kernel:
            yield kernel

    @contextlib.contextmanager
    def change(self) -> Iterator[tuple[Netlink, Change]]:
        """Change links; undo all changes if the body of the `with` fails."""
        change = Change(self.kernel)
        try:
            with self.kernel() as kernel:
                yield kernel, change
        except BaseException:
            change.undo()
            raise

    # -- Queries --

    def nics(self, vm: str, noted: Sequence[Wire] | None) -> list[Nic]:
        """Return the interfaces of a VM: those in NICS, then further TAPs by name, up to the first gap.

        An interface that is being unplugged (:attr:`Nic.leaving`) may follow a gap.
        """
        with self.kernel() as kernel:
            has_taps = any(not wire.user for wire in noted or ()) or any_tap(vm)
            found = self.taps.named(kernel, vm, len(noted or ())) if has_taps else {}
            masters = {link.master for link in found.values() if link.master}
            bridges = kernel.links_at(masters)
            ends = self._ends(kernel, [*found.values()])
        return self._nics(vm, noted or (), found, bridges, ends)

    def _ends(self, kernel: Netlink, links: Sequence[Link]) -> dict[int, tuple[End, Link]]:
        """Return the other ends of the cables of TAPs, and the TAPs there, by the index of the link."""
        joined = cables.joined(kernel, links)
        others = kernel.links_at(joined.values())
        taps = {index: tap for index, link in others.items() if (tap := tap_of(link))}
        own = {index: tap for index, tap in taps.items() if self.taps.is_own(others[index], tap)}
        return {
            index: (End(own[other].vm, own[other].interface), others[other])
            for index, other in joined.items()
            if other in own
        }

    def needs_tap(self, wire: Wire) -> bool:
        """Tell whether an interface without a TAP gets one for this wire; if not, QEMU carries its frames."""
        return not wire.user and (self.may_make_taps or wire.bridge is not None)

    def cable_ends(self, links: Sequence[Link]) -> list[tuple[End, End]]:
        """Return the cables between TAPs among these links, each with both ends; raises Failed."""
        taps = {link.index: tap for link in links if (tap := tap_of(link)) and self.taps.is_own(link, tap)}
        with explained(), Netlink() as kernel:
            ends = self._ends(kernel, [link for link in links if link.index in taps])
        found = [(End(taps[index].vm, taps[index].interface), other) for index, (other, _) in ends.items()]
        return [(one, other) for one, other in found if str(one) < str(other)]

    def nics_of(self, noted: Mapping[str, Sequence[Wire] | None]) -> dict[str, list[Nic]]:
        """Return the interfaces of several VMs, as :meth:`nics`, with a single dump of all links."""
        with self.kernel() as kernel:
            links = kernel.links() if noted and rtnetlink.any_link(names.is_tap) else []
            ends = self._ends(kernel, [link for link in links if self.access.is_own(link)])
        found = {link.name: link for link in links}
        bridges = {link.index: link for link in links}
        return {vm: self._nics(vm, wires or (), found, bridges, ends) for vm, wires in noted.items()}

    def _nics(
        self,
        vm: str,
        noted: Sequence[Wire],
        found: Mapping[str, Link],
        bridges: Mapping[int, Link],
        ends: Mapping[int, tuple[End, Link]],
    ) -> list[Nic]:
        """Return the interfaces of a VM; `found` has links by name, `bridges` and `ends` are by index."""
        nics: list[Nic] = []
        gap = False
        for index, name in enumerate(tap_names(vm)):
            link = found.get(name)
            taken_by = self.access.other_root(link) if link is not None else None
            if link is not None and not self.taps.is_own(link, Tap.of(vm, index)):
                link = None  # it is foreign; an attempt to use the name will say so
            gap = gap or (link is None and index >= len(noted))
            if gap and (link is None or not is_leaving(link)):
                continue
            wire = noted[index] if index < len(noted) else None
            bridge = bridges.get(link.master) if link else None
            mtu = segment_mtu(bridge) if bridge else None
            taken_by = None if wire and wire.user else taken_by
            cable, far = ends.get(link.index, (None, None)) if link else (None, None)
            where = bridge.name if bridge else None
            by_qemu = link is None and wire is not None and not self.needs_tap(wire)
            tap, own = Tap.of(vm, index), bridge is not None and self.access.is_own(bridge)
            nics.append(Nic(index, tap, wire, link, where, taken_by, cable, mtu, by_qemu, far, own))
        return nics

    def has_own_bridge(self, name: str) -> bool:
        """Tell whether a bridge of ours has this name. Does not wait for a change of links; raises Failed."""
        if not rtnetlink.any_link(name.__eq__):
            return False
        with explained(), Netlink() as kernel:
            link = kernel.link(name)
        return link is not None and link.name == name and link.kind == "bridge" and self.access.is_own(link)

    def check_bridges(self, wanted: Collection[str]) -> None:
        """Raise unless interfaces of a new VM can be in these bridges, which are made where they are missing.

        Raises:
            InvalidValue: one is missing, and its name says that it is something else.
            NotPermitted: CAP_NET_ADMIN is missing, or a bridge is not allowed.
            Failed: one is another kind of link; the kernel refused to tell.
        """
        if not wanted:
            return
        if not self.may_make_taps:
            raise missing_capability()
        with self.kernel() as kernel:
            found = kernel.named(list(wanted))
        for name in wanted:
            if name in found:
                self.access.check_bridge(found[name], name)
            else:
                new_bridge_name(name)

    def mac_of(self, name: str) -> str | None:
        """Return the MAC of a link, None if it does not exist; raises Failed."""
        with self.kernel() as kernel:
            link = kernel.link(name)
        return link.mac if link is not None else None

    def traffic(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return the traffic of TAPs in use, by VM and TAP: bytes to the guest and from it.

        Does not wait for a change of links in progress. Raises Failed.
        """
        found: dict[str, dict[str, tuple[int, int]]] = {}
        with explained(), Netlink() as kernel:
            for link, received, sent in kernel.traffic() if rtnetlink.any_link(names.is_tap) else ():
                tap = tap_of(link)
                if tap and link.attached and self.taps.is_own(link, tap):
                    # The TAP sends what its guest receives. A new TAP of the same name has another index.
                    found.setdefault(tap.vm, {})[f"{link.name} {link.index}"] = (sent, received)
        return found

    # -- Changes --

    def wire(
        self,
        vm: str,
        wires: Mapping[int, Wire],
        macs: Mapping[int, str] | None = None,
        *,
        starts: bool = False,
        queued: Collection[int] | None = None,
    ) -> Change:
        """Create missing TAPs and bridges, and plug the TAPs in. User networks need neither.

        A cable is plugged in if the TAP at its other end is there and in no bridge. The caller makes sure that
        the other end is noted as such. A TAP whose cable cannot be plugged in is down.

        `macs` are configured MACs of cards, by interface. For a VM that `starts`, bridges are created no matter
        how many idle ones exist. `queued` are the interfaces whose card has several queues: a TAP of the other
        kind is replaced if no process is attached to it. By default, the kind of a TAP is left alone.

        Raises:
            NotPermitted: CAP_NET_ADMIN is missing, a TAP belongs to another user, or a bridge is not allowed.
            Failed: a name is taken by another kind of link, or the kernel refused. Everything was undone.
        """
        plugged = {Tap.of(vm, index): wire for index, wire in sorted(wires.items()) if not wire.user}
        own = {names.tap(vm, index): names.tap_mac(mac) for index, mac in (macs or {}).items()}
        others = {
            tap: Tap.of(wire.cable.vm, wire.cable.interface) for tap, wire in plugged.items() if wire.cable
        }
        self.impairments.look(vm)
        with self.change() as (kernel, change):
            concerned = [*plugged]
            change.reversals.append(lambda kernel: self.impairments.settle_quietly(kernel, concerned))
            bridges = [wire.bridge for wire in plugged.values() if wire.bridge is not None]
            taps_of = [*plugged, *others.values()]
            found = kernel.named([*(name for tap in taps_of for name in (tap.name, tap.long)), *bridges])
            plugged = {tap: wire for tap, wire in plugged.items() if self.needs_tap(wire) or tap.name in found}
            self.taps.make_all(kernel, change, plugged, found, queued)
            stations = kernel.addressed() if plugged else set()
            joined = cables.joined(kernel, [found[tap.name] for tap in others if tap in plugged])
            with self.ports.tuning(kernel, change.reversals, stations) as touched:
                for tap, wire in plugged.items():
                    link, other = found[tap.name], self._other_end(others.get(tap), found)
                    cabled = other is not None and joined.get(link.index) == other.index
                    change.steps.append(Step(StepKind.persistent, tap.long, link.owner))
                    master = self._master(kernel, change, tap, wire, found, stations, starts=starts)
                    touched.update(self.ports.moving(kernel, link, master))
                    link = self.plug(kernel, change, link, master, stations, own.get(tap.name), cabled=cabled)
                    if other is not None and not cabled:
                        other = self.plug(kernel, change, other, None, stations, other.mac)
                        change.reversals.append(cables.join(kernel, link, other))
            if not starts:  # else `settle` sees to it
                plain = [tap for tap, wire in plugged.items() if tap.name in change.made and wire.cable is None]
                asked = [tap for tap in concerned if tap not in plain or self.impairments.wants(tap)]
                self.impairments.settle_quietly(kernel, asked)
        return change

    def _master(  # noqa: PLR0913, PLR0917 -- a part of `wire`
        self,
        kernel: Netlink,
        change: Change,
        tap: Tap,
        wire: Wire,
        found: dict[str, Link],
        stations: Collection[int],
        *,
        starts: bool,
    ) -> Link | None:
        """Return the bridge of a wire, created if necessary; None without one."""
        if wire.bridge is None:
            return None
        if found.get(wire.bridge) is None and not starts:
            self.check_idle(kernel)
        bridge = found.get(wire.bridge)
        found[wire.bridge] = self.make_bridge(kernel, change, wire.bridge, bridge, stations)
        owned = Step(StepKind.persistent, tap.long, found[tap.name].owner)
        change.steps += [Step(StepKind.preparing, tap.long), owned]
        return found[wire.bridge]

    def _other_end(self, tap: Tap | None, found: Mapping[str, Link]) -> Link | None:
        """Return the TAP at the other end of a cable if a cable can be plugged into it now, else None."""
        link = found.get(tap.name) if tap is not None else None
        if link is None or tap is None or not self.taps.is_own(link, tap):
            return None
        return None if link.master or is_leaving(link) else link

    def plug(  # noqa: PLR0913, PLR0917 -- all properties of a port
        self,
        kernel: Netlink,
        change: Change,
        link: Link,
        master: Link | None,
        stations: Collection[int],
        own: str | None = None,
        *,
        cabled: bool = False,
    ) -> Link:
        """Make a link of ours a port of the bridge `master` (or of none) and mark it; return it as it is then.

        A link in no bridge is set down, because its frames would otherwise reach the network stack of the host.
        It stays up if it is one of the `stations`: links on which the host has a configured address. `own` is
        the MAC of the link if that does not follow from its name. A cable is pulled, unless it stays: `cabled`.
        """
        if link.tap and link.master and (master is None or master.index != link.master):
            self.impairments.empty(kernel, link)
        may_be_cabled = link.tap and not link.master and link.name not in change.made
        if may_be_cabled and not cabled and (undo := cables.cut(kernel, link.index)):
            change.reversals.append(undo)
            link = replace(link, up=False)
        up = cabled or master is not None or (link.up and link.index in stations)
        if link.kind == "vlan" and (base := kernel.link_at(link.parent)) and not base.up:
            change.steps.append(Step(StepKind.waiting, base.name))
            up = False  # the kernel sets it up together with its lower link
        mark, mac, mtu = self.access.mark(), link.mac, mtu_of(link, master, stations)
        there = master.index if master is not None else 0
        if own is not None:
            mac = own
        elif link.tap and (link.master, link.up) != (there, True) and (tap := tap_of(link)):
            mac = names.tap_mac(names.mac(tap.vm, tap.interface))
        now = replace(link, master=there, up=up, alias=mark, mac=mac, mtu=mtu)
        if now == link:
            return link
        change.reversals.append(restoring(link, there))
        new = None if mtu == link.mtu else mtu
        address = None if mac == link.mac else mac
        requests = netlink_requests.move(link, there, up=up, mac=address, alias=mark, mtu=new)
        if master is not None and link.master != there and self.access.is_own(master):
            requests.append(netlink_requests.passing(link.index))
        kernel.do(requests, tolerate=errno.EAFNOSUPPORT)
        return now

    def settle(self, vm: str, macs: Mapping[int, str]) -> Change:
        """Update a VM's TAPs and our bridges that contain them to the settings of this version.

        They may come from the original script or from an earlier version. Without CAP_NET_ADMIN they stay as
        they are. `macs` are configured MACs of cards, by interface.
        """
        own = {names.tap(vm, index): names.tap_mac(mac) for index, mac in macs.items()}
        self.impairments.look(vm)
        with self.change() as (kernel, change):
            try:
                self._settle(kernel, change, vm, own)
            except OSError as error:
                if error.errno != errno.EPERM:
                    raise
        return change

    def _settle(self, kernel: Netlink, change: Change, vm: str, own: Mapping[str, str]) -> None:
        mark = self.access.mark()
        taps = [(tap, link) for tap, link in self.taps.of(kernel, vm) if not is_leaving(link)]
        stations = kernel.addressed() if taps else set()
        joined = cables.joined(kernel, [link for _, link in taps])
        bridges = kernel.links_at(link.master for _, link in taps if link.master)
        for tap, link in taps:
            self.taps.give_long_name(kernel, tap, link)
            if link.alias != mark:
                kernel.do([netlink_requests.change(link.index, alias=mark)])
                change.reversals.append(restoring(link, link.master))
            known = replace(link, alias=mark)
            cabled = link.index in joined
            master = bridges.get(link.master)
            self.plug(kernel, change, known, master, stations, own.get(link.name), cabled=cabled)
        for bridge in bridges.values():
            if self.access.is_own(bridge):
                self._settle_bridge(kernel, bridge, stations)
        self.ports.tune(kernel, bridges, stations)
        self.impairments.settle_quietly(kernel, [tap for tap, _ in taps])

    def impair(self, vm: str, interface: int) -> None:
        """Have the cable of an interface impaired as it is noted, if it has a TAP.

        Raises:
            NotPermitted: CAP_NET_ADMIN is missing.
            Failed: the kernel cannot do it.
        """
        self.impairments.look(vm)
        with self.kernel() as kernel:
            self.impairments.settle(kernel, [Tap.of(vm, interface)])

    def impair_all(self, vm: str) -> None:
        """Have all cables of a VM impaired as it is noted; failures are logged. Raises as :meth:`kernel`."""
        self.impairments.look(vm)
        with self.kernel() as kernel:
            self.impairments.settle_quietly(kernel, [tap for tap, _ in self.taps.of(kernel, vm)])

    def _settle_bridge(self, kernel: Netlink, bridge: Link, stations: Collection[int]) -> None:
        """Keep the host off a bridge of ours unless it has a configured address there."""
        if bridge.index not in stations:
            kernel.do(netlink_requests.silence(bridge.index))
        mark = self.access.mark(mtu=segment_mtu(bridge))
        if bridge.alias != mark:
            kernel.do([netlink_requests.change(bridge.index, alias=mark)])

    def make_bridge(  # noqa: PLR0913 -- the last two have defaults
        self,
        kernel: Netlink,
        change: Change,
        name: str,
        link: Link | None,
        stations: Collection[int] | None = None,
        *,
        deliberate: bool = False,
    ) -> Link:
        """Return the bridge of this name, created if `link` is None; raises as :meth:`wire`.

        `stations` are links on which the host has a configured address, if they are known. `deliberate`: the
        user asked for a bridge of this name, not for the connection of a VM.
        """
        if link is not None:
            self.access.check_bridge(link, name)
            change.steps.append(Step(StepKind.exists, name))
            if self.access.is_own(link):
                if link.index not in change.settled:
                    change.settled.add(link.index)
                    self._settle_bridge(kernel, link, kernel.addressed() if stations is None else stations)
                if not link.up:
                    change.reversals.append(restoring(link, link.master))
                    kernel.do([netlink_requests.change(link.index, up=True)])
            elif not link.up:
                change.steps.append(Step(StepKind.down, name))
            return link
        new_bridge_name(name, deliberate=deliberate)
        change.steps.append(Step(StepKind.making, name))
        with making(name):
            kernel.do(
                [
                    netlink_requests.new_bridge(name, bridge_mac(name)),
                    netlink_requests.set_alias(name, self.access.mark()),
                ]
            )
        made = kernel.present(name)
        if made.name != name or made.kind != "bridge" or not self.access.is_own(made):
            raise OSError(errno.ENODEV, f"{name} vanished right after it was created")
        change.reversals.append(deleting(made))
        change.settled.add(made.index)
        kernel.do([*netlink_requests.silence(made.index), netlink_requests.change(made.index, up=True)])
        return replace(made, up=True)

    def check_idle(self, kernel: Netlink) -> None:
        """Raise Failed if IDLE_MAX bridges of ours have no port."""
        links = kernel.links()
        used = {link.master for link in links}
        bridges = [link for link in links if link.kind == "bridge" and self.access.is_own(link)]
        idle = sum(link.index not in used for link in bridges)
        if idle >= IDLE_MAX:
            raise Failed(
                f"{idle} bridges created by vmess have no port; the limit is {IDLE_MAX}",
                hint="to delete unused ones: vmess net prune",
            )

    def check_made(self, kernel: Netlink) -> None:
        """Raise Failed if there are MADE_MAX links of ours that are neither bridges nor TAPs."""
        own = [link for link in kernel.links() if self.access.is_own(link)]
        made = sum(link.kind not in ("bridge", "ifb") and not link.tap for link in own)
        if made >= MADE_MAX:
            raise Failed(
                f"there are {made} VLANs, pairs and VXLANs created by vmess; the limit is {MADE_MAX}",
                hint="to see them: vmess net show; to delete one, see: vmess help net delete",
            )

    def unwire(self, vm: str, keep: Sequence[int] = ()) -> list[Step]:
        """Delete a VM's TAPs except those to `keep`, in one operation.

        Raises:
            AlreadyRunning: a process is attached to one; none was deleted.
        """
        with self.kernel() as kernel:
            links = {tap: link for tap, link in self.taps.of(kernel, vm) if tap.interface not in keep}
            held = [tap.long for tap, link in links.items() if link.attached]
            if held:
                raise attached(", ".join(held))
            kernel.delete([*links.values(), *self.impairments.ways_out(kernel, links.values())])
            self.ports.left(kernel, links.values())
        return [Step(StepKind.nonpersistent, tap.long) for tap in links]

    def mark_leaving(self, vm: str, keep: Sequence[int]) -> Change:
        """Remove a VM's TAPs, except those to `keep`, from their bridges and mark them as leaving."""
        with self.change() as (kernel, change):
            taps = [link for tap, link in self.taps.of(kernel, vm) if tap.interface not in keep]
            change.leaving += taps
            with self.ports.tuning(kernel, change.reversals, kernel.addressed() if taps else ()) as touched:
                for link in taps:
                    touched.update(self.ports.moving(kernel, link, None))
                change.reversals.append(
                    lambda kernel: self.impairments.settle_quietly(kernel, filter(None, map(tap_of, taps)))
                )
                change.reversals += [restoring(link, 0) for link in taps]
                for link in taps:
                    self.impairments.empty(kernel, link)
                kernel.do(request for link in taps for request in self.taps.leaving(link))
        return change

    def sweep(self, vm: str) -> list[Step]:
        """Delete the VM's leaving TAPs that no process is attached to any more."""
        with self.kernel() as kernel:
            taps = self.taps.of(kernel, vm)
            gone = {tap: link for tap, link in taps if is_leaving(link) and not link.attached}
            kernel.delete([*gone.values(), *self.impairments.ways_out(kernel, gone.values())])
        return [Step(StepKind.nonpersistent, tap.long) for tap in gone]


def _machine_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip()
    return ""


def bridge_mac(name: str) -> str:
    """Return the MAC of a bridge: stable across boots, different on each host."""
    digest = hashlib.md5(f"{_machine_id()} {name}\n".encode(), usedforsecurity=False).digest()
    return f"06:{digest[:5].hex(':')}"


def root_name(root: Path) -> str:
    """Return the name of an existing VM root in the marks of links.

    Containers that share the links of the host may have other directories at this path. A hash of the
    machine-id(5), or of the directory's inode if there is none, distinguishes them.
    """
    seed = _machine_id() or str(root.stat().st_ino)
    return root_text(os.fsencode(root.resolve()), hashlib.sha256(f"vmess {seed}".encode()).hexdigest()[:8])
