"""The host's side of VMs' wires: TAPs and bridges, all of a change or none of it.

The kernel is the truth while links exist; a NICS file says what is made anew where they do not. All of
this blocks; callers are in a thread, and one piece of work follows the other.
"""

import contextlib
import errno
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmessd.core import names
from vmessd.core.errors import AlreadyRunning, Failed, NotPermitted, reason, shell_line
from vmessd.core.models.wires import Step, StepKind
from vmessd.core.wires import Wire, new_bridge_name, room
from vmessd.network import rtnetlink, taps
from vmessd.network.policy import Access, describe, is_leaving, root_text
from vmessd.network.rtnetlink import Link, Netlink

log = logging.getLogger(__name__)

IDLE_MAX = 256
"""Bridges of ours without a port; `net prune` deletes them."""
MADE_MAX = 1024
"""Links of ours that are neither bridges nor TAPs: VLANs, both ends of pairs, VXLANs."""

Reversal = Callable[[Netlink], None]


@dataclass(frozen=True)
class Nic:
    """One interface of a VM: what its file says, and what the kernel has."""

    index: int
    tap: str
    """Name of the TAP, whether there is one or not."""
    noted: Wire | None
    """As in NICS."""
    link: Link | None
    """The TAP."""
    bridge: str | None
    """What the TAP is a port of."""
    taken_by: str | None = None
    """The other VM root that a link of this name belongs to."""

    @property
    def wire(self) -> Wire:
        """What it is plugged into: by the kernel if there is a TAP, else as noted."""
        return Wire(bridge=self.bridge) if self.link else self.noted or Wire()

    @property
    def leaving(self) -> bool:
        """The guest was asked to let go of it and has not yet."""
        return self.link is not None and is_leaving(self.link)

    @property
    def is_whole(self) -> bool:
        """There is a TAP, it belongs to somebody, and it is up if it is a port."""
        return self.link is not None and self.link.owner is not None and (self.link.up or not self.bridge)

    def difference(self) -> str | None:
        """Return in what the kernel differs from what it should be by the file; None if in nothing."""
        if self.taken_by is not None:
            return f"{self.tap} belongs to the VM root {self.taken_by}"
        if self.link is not None and self.bridge and not self.link.up:
            return f"{self.tap} is down, so nothing passes: ip link set {self.tap} up"
        if self.noted is None or self.leaving or (self.link is None and self.noted.user):
            return None
        if self.link is None:
            return f"{self.tap} is not there; a start makes it, plugged into {self.noted}"
        if self.wire != self.noted:
            return f"{self.tap} is plugged into {self.wire}, but NICS says {self.noted}"
        return None


@dataclass
class Change:
    """What was done to the host's links, and how to take it back."""

    network: "Network"
    steps: list[Step] = field(default_factory=list)
    reversals: list[Reversal] = field(default_factory=list)

    def undo(self) -> None:
        """Take everything back, the last thing first; what has vanished meanwhile is no matter."""
        with self.network.kernel() as kernel:
            while self.reversals:
                try:
                    self.reversals.pop()(kernel)
                except OSError as error:
                    log.warning("a change of links could not be taken back whole: %s", reason(error))


class Network:
    """The links of the host, as far as VMs are concerned."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def kernel(self) -> Iterator[Netlink]:
        """Have the kernel's links to oneself for the length of a `with`.

        Raises:
            NotPermitted: CAP_NET_ADMIN is missing.
            Failed: the kernel refused something; carries its words.
        """
        with self._lock, explained(), Netlink() as kernel:
            yield kernel

    @contextlib.contextmanager
    def change(self) -> Iterator[tuple[Netlink, Change]]:
        """Change links: if what is inside fails, all of it is taken back."""
        change = Change(self)
        try:
            with self.kernel() as kernel:
                yield kernel, change
        except BaseException:
            change.undo()
            raise

    # -- What there is --

    def nics(self, vm: str, noted: Sequence[Wire] | None) -> list[Nic]:
        """Return a VM's interfaces: those noted, and behind them TAPs by their names without a gap.

        One that is being unplugged is told apart by :attr:`Nic.leaving`, and may stand behind a gap.
        """
        with self.kernel() as kernel:
            taps = any(not wire.user for wire in noted or ()) or rtnetlink.any_link(_taps(vm).__contains__)
            found = kernel.named(_taps(vm)) if taps else {}
            masters = {link.master for link in found.values() if link.master}
            bridges = {index: link.name for index in masters if (link := kernel.link_at(index))}
        return self._nics(vm, noted or (), found, bridges)

    def nics_of(self, noted: Mapping[str, Sequence[Wire] | None]) -> dict[str, list[Nic]]:
        """Return the interfaces of several VMs as :meth:`nics` does, by one look at all links there are."""
        with self.kernel() as kernel:
            links = kernel.links() if noted and rtnetlink.any_link(names.tap_parts) else []
        found = {link.name: link for link in links}
        bridges = {link.index: link.name for link in links}
        return {vm: self._nics(vm, wires or (), found, bridges) for vm, wires in noted.items()}

    def _nics(
        self, vm: str, noted: Sequence[Wire], found: Mapping[str, Link], bridges: Mapping[int, str]
    ) -> list[Nic]:
        """Return a VM's interfaces; `found` are links by the names they go by, `bridges` names by indices."""
        nics: list[Nic] = []
        gap = False
        for index in range(room(vm)):
            name = names.tap(vm, index)
            link = found.get(name)
            taken_by = self.access.other_root(link) if link is not None else None
            if link is not None and not self._is_own_tap(link, name):
                link = None  # somebody else's; whoever needs the name is told
            gap = gap or (link is None and index >= len(noted))
            if gap and (link is None or not is_leaving(link)):
                continue
            wire = noted[index] if index < len(noted) else None
            bridge = bridges.get(link.master) if link else None
            nics.append(Nic(index, name, wire, link, bridge, None if wire and wire.user else taken_by))
        return nics

    def mac_of(self, name: str) -> str | None:
        """Return the MAC of a link, None where there is none of this name; raises Failed."""
        with self.kernel() as kernel:
            link = kernel.link(name)
        return link.mac if link is not None else None

    def carried(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Return the bytes that VMs' TAPs in use have carried, by VM and TAP: to the guest, and from it.

        Waits for no change of links that is under way. Raises Failed.
        """
        found: dict[str, dict[str, tuple[int, int]]] = {}
        with explained(), Netlink() as kernel:
            for link, received, sent in kernel.carried() if rtnetlink.any_link(names.tap_parts) else ():
                parts = names.tap_parts(link.name)
                if parts and link.attached and self._is_own_tap(link, link.name):
                    # The TAP sends what its guest receives. Made anew, it has another index.
                    found.setdefault(parts[0], {})[f"{link.name} {link.index}"] = (sent, received)
        return found

    # -- What is changed --

    def wire(
        self,
        vm: str,
        wires: Mapping[int, Wire],
        macs: Mapping[int, str] | None = None,
        *,
        starts: bool = False,
    ) -> Change:
        """Give interfaces their TAPs and plug them in, making what is missing; user networks need none.

        `macs` are those of cards that were set, by interface. Bridges of a VM that `starts` are made however
        many are idle.

        Raises:
            NotPermitted: CAP_NET_ADMIN is missing, a TAP is another user's, a bridge is not allowed.
            Failed: a name is taken by something else, or the kernel refused. Nothing was changed then.
        """
        plugged = {names.tap(vm, index): wire for index, wire in sorted(wires.items()) if not wire.user}
        own = {names.tap(vm, index): names.tap_mac(mac) for index, mac in (macs or {}).items()}
        with self.change() as (kernel, change):
            bridges = [wire.bridge for wire in plugged.values() if wire.bridge is not None]
            found = kernel.named([*plugged, *bridges])
            for name in plugged:
                if self._make_tap(kernel, change, name, found.get(name)):
                    found.pop(name, None)
            found |= kernel.named(name for name in plugged if name not in found)
            if any(name not in found or not self._is_own_tap(found[name], name) for name in plugged):
                raise OSError(errno.ENODEV, "a TAP vanished as soon as it was made")
            stations = kernel.addressed() if plugged else ()
            for name, wire in plugged.items():
                change.steps.append(owned := Step(StepKind.persistent, name, found[name].owner))
                master = 0
                if wire.bridge is not None:
                    if found.get(wire.bridge) is None and not starts:
                        self.check_idle(kernel)
                    found[wire.bridge] = self.make_bridge(kernel, change, wire.bridge, found.get(wire.bridge))
                    master = found[wire.bridge].index
                    change.steps += [Step(StepKind.preparing, name), owned]
                self.plug(kernel, change, found[name], master, stations, own.get(name))
        return change

    def plug(  # noqa: PLR0913, PLR0917 -- all that a port is made of
        self,
        kernel: Netlink,
        change: Change,
        link: Link,
        master: int,
        stations: Collection[int],
        own: str | None = None,
    ) -> None:
        """Make a link of ours a port of the bridge `master`, 0 being none, and mark it.

        What is in no bridge is down: nothing else keeps what comes out of it from the host's own stack. It is
        left up where the host is one of the `stations`, which have an address that somebody gave it. `own` is
        its own MAC where that does not follow from its name.
        """
        up = master != 0 or (link.up and link.index in stations)
        if link.kind == "vlan" and (base := kernel.link_at(link.parent)) and not base.up:
            change.steps.append(Step(StepKind.waiting, base.name))
            up = False  # the kernel sets it up along with what it lives on
        mark, mac = self.access.mark(), link.mac
        if own is not None:
            mac = own
        elif link.tap and (link.master, link.up) != (master, True) and (parts := names.tap_parts(link.name)):
            mac = names.tap_mac(names.mac(*parts))
        if (link.master, link.up, link.alias, link.mac) == (master, up, mark, mac):
            return
        change.reversals.append(as_it_was(link, master))
        requests = _moved(link, master, up=up, mac=None if mac == link.mac else mac, alias=mark)
        kernel.do(requests, tolerate=errno.EAFNOSUPPORT)

    def settle(self, vm: str, macs: Mapping[int, str]) -> Change:
        """Bring a VM's TAPs, and the bridges of ours they are in, to how they are made today.

        They may be the original's, or an earlier version's. Without CAP_NET_ADMIN they stay as they are. `macs`
        are those of cards that were set, by interface.
        """
        own = {names.tap(vm, index): names.tap_mac(mac) for index, mac in macs.items()}
        with self.change() as (kernel, change):
            try:
                self._settle(kernel, change, vm, own)
            except OSError as error:
                if error.errno != errno.EPERM:
                    raise
        return change

    def _settle(self, kernel: Netlink, change: Change, vm: str, own: Mapping[str, str]) -> None:
        mark = self.access.mark()
        taps = [link for link in self._own_taps(kernel, vm) if not is_leaving(link)]
        stations = kernel.addressed() if taps else set()
        for link in taps:
            if link.alias != mark:
                kernel.do([rtnetlink.change(link.index, alias=mark)])
                change.reversals.append(as_it_was(link, link.master))
            known = replace(link, alias=mark)
            self.plug(kernel, change, known, link.master, stations, own.get(link.name))
        for index in {link.master for link in taps if link.master}:
            bridge = kernel.link_at(index)
            if bridge is not None and self.access.is_own(bridge):
                self._settle_bridge(kernel, bridge, stations)

    def _settle_bridge(self, kernel: Netlink, bridge: Link, stations: Collection[int]) -> None:
        """Have the host be no station on a bridge of ours, unless somebody gave it an address there."""
        if bridge.index not in stations:
            kernel.do(rtnetlink.silence(bridge.index))
        if bridge.alias != self.access.mark():
            kernel.do([rtnetlink.change(bridge.index, alias=self.access.mark())])

    def make_tap(self, kernel: Netlink, change: Change, name: str) -> Link:
        """Return the TAP of this name, made if need be; raises as :meth:`wire`."""
        self._make_tap(kernel, change, name, kernel.link(name))
        made = kernel.present(name)
        if not self._is_own_tap(made, name):
            raise OSError(errno.ENODEV, f"{name} vanished as soon as it was made")
        change.steps.append(Step(StepKind.persistent, name, made.owner))
        return made

    def _make_tap(self, kernel: Netlink, change: Change, name: str, link: Link | None) -> bool:
        """Make a TAP where there is none, see that one that is there will do; tell whether it changed."""
        if link is None:
            try:
                with taps.made(self.access.owner) as first_name:
                    index = kernel.present(first_name).index
                    # Marked before it has the name by which other daemons would take it for their own.
                    kernel.do(
                        [rtnetlink.change(index, alias=self.access.mark()), rtnetlink.change(index, name=name)]
                    )
            except OSError as error:
                if error.errno != errno.EEXIST or (link := kernel.link(name)) is None:
                    raise  # else somebody has made one just now
            else:
                change.reversals.append(lambda kernel: self._part_with(kernel, name))
                return True
        self._check_tap(link, name)
        if link.owner is None and not link.attached:  # else whoever holds it would have to let go first
            taps.claim(name, self.access.owner)
            return True
        return False

    def _check_tap(self, link: Link, name: str) -> None:
        if link.name != name or not link.tap:
            raise Failed(
                f"{name} is taken by {describe(link)} named {link.name}; a TAP of this name is needed",
                hint=f"rename or delete it: ip link show {name}",
            )
        self.access.check_root(link)
        if not self.access.is_own(link):
            raise NotPermitted(
                f"TAP {name} belongs to uid {link.owner}, not to uid {self.access.owner}", hint=_anew(name)
            )
        if link.multi_queue:
            raise Failed(
                f"TAP {name} has several queues, so QEMU cannot attach to it as vmess has it do",
                hint=_anew(name),
            )
        if is_leaving(link) and link.attached:
            raise AlreadyRunning(
                f"{name} is still being unplugged: the guest has not let go of it",
                hint="it goes when the guest lets go of it, or when the VM ends",
            )

    def make_bridge(
        self, kernel: Netlink, change: Change, name: str, link: Link | None, *, deliberate: bool = False
    ) -> Link:
        """Return the bridge of this name, made if `link` says there is none; raises as :meth:`wire`.

        It is `deliberate` where a bridge of just this name was asked for, and not a VM's connection.
        """
        if link is not None:
            self.access.check_bridge(link, name)
            change.steps.append(Step(StepKind.exists, name))
            if self.access.is_own(link):
                self._settle_bridge(kernel, link, kernel.addressed())
                if not link.up:
                    change.reversals.append(as_it_was(link, link.master))
                    kernel.do([rtnetlink.change(link.index, up=True)])
            elif not link.up:
                change.steps.append(Step(StepKind.down, name))
            return link
        new_bridge_name(name, deliberate=deliberate)
        change.steps.append(Step(StepKind.making, name))
        with making(name):
            kernel.do(
                [rtnetlink.new_bridge(name, bridge_mac(name)), rtnetlink.marked(name, self.access.mark())]
            )
        made = kernel.present(name)
        if made.name != name or made.kind != "bridge" or not self.access.is_own(made):
            raise OSError(errno.ENODEV, f"{name} vanished as soon as it was made")
        change.reversals.append(undoing(made))
        kernel.do([*rtnetlink.silence(made.index), rtnetlink.change(made.index, up=True)])
        return replace(made, up=True)

    def check_idle(self, kernel: Netlink) -> None:
        """Raise Failed where there are so many bridges of ours without a port that no more is made."""
        links = kernel.links()
        used = {link.master for link in links}
        bridges = [link for link in links if link.kind == "bridge" and self.access.is_own(link)]
        idle = sum(link.index not in used for link in bridges)
        if idle >= IDLE_MAX:
            raise Failed(
                f"{idle} bridges made by vmess have no port, and no other is made: {IDLE_MAX} are the most",
                hint="vmess net prune deletes those that nobody uses",
            )

    def check_made(self, kernel: Netlink) -> None:
        """Raise Failed where there are so many other links of ours, but for TAPs, that no more is made."""
        own = [link for link in kernel.links() if self.access.is_own(link)]
        made = sum(link.kind != "bridge" and not link.tap for link in own)
        if made >= MADE_MAX:
            raise Failed(
                f"{made} VLANs, pairs and VXLANs made by vmess are there, and no other is made: "
                f"{MADE_MAX} are the most",
                hint="vmess net delete <interface>, where one is not used; vmess net show tells what there is",
            )

    def unwire(self, vm: str, keep: Sequence[int] = ()) -> list[Step]:
        """Delete a VM's TAPs but those to `keep`, in one step of the kernel's.

        Raises:
            AlreadyRunning: a process holds one; none was deleted.
        """
        with self.kernel() as kernel:
            kept = {names.tap(vm, index) for index in keep}
            links = [link for link in self._own_taps(kernel, vm) if link.name not in kept]
            held = [link.name for link in links if link.attached]
            if held:
                raise attached(", ".join(held))
            kernel.delete(links)
        return [Step(StepKind.nonpersistent, link.name) for link in links]

    def _own_taps(self, kernel: Netlink, vm: str) -> list[Link]:
        found = kernel.named(_taps(vm)) if rtnetlink.any_link(_taps(vm).__contains__) else {}
        return [link for name, link in found.items() if self._is_own_tap(link, name)]

    def _is_own_tap(self, link: Link, name: str) -> bool:
        return link.name == name and link.tap and self.access.is_own(link)

    def _part_with(self, kernel: Netlink, name: str) -> None:
        """Delete a TAP, or, while a process holds it, mark it so that it goes when that ends."""
        link = kernel.link(name)
        if link is not None and self._is_own_tap(link, name):
            kernel.do(self._left(link) if link.attached else [rtnetlink.deletion(link.index)])

    def _left(self, link: Link) -> list[rtnetlink.Request]:
        """Return requests that pull a TAP out of its bridge and note at it that it is to go."""
        return _moved(link, 0, up=False, alias=self.access.mark(leaving=True))

    def mark_leaving(self, vm: str, keep: Sequence[int]) -> Change:
        """Pull a VM's TAPs, but those to `keep`, out of their bridges, and note at them that they are to go."""
        kept = {names.tap(vm, index) for index in keep}
        with self.change() as (kernel, change):
            taps = [link for link in self._own_taps(kernel, vm) if link.name not in kept]
            change.reversals += [as_it_was(link, 0) for link in taps]
            kernel.do(request for link in taps for request in self._left(link))
        return change

    def sweep(self, vm: str) -> list[Step]:
        """Delete the VM's TAPs that were to go and that no process holds any more."""
        with self.kernel() as kernel:
            taps = self._own_taps(kernel, vm)
            gone = [link for link in taps if is_leaving(link) and not link.attached]
            kernel.delete(gone)
        return [Step(StepKind.nonpersistent, link.name) for link in gone]


def _taps(vm: str) -> list[str]:
    """Return the names that TAPs of a VM can have."""
    return [names.tap(vm, index) for index in range(room(vm))]


def attached(name: str) -> AlreadyRunning:
    """Return the error for a TAP that cannot be deleted now."""
    return AlreadyRunning(
        f"{name}: a process is attached, so it is not deleted", hint="fuser -v /dev/net/tun tells which"
    )


def _anew(name: str) -> str:
    return f"as root: ip link delete {name}; vmessd makes it anew"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turn what the kernel says into a line that helps."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise missing_capability() from None
        if error.errno == errno.ENODEV:
            raise Failed(
                "a link vanished while it was being used; nothing was changed", hint="try again"
            ) from None
        words = error.strerror or str(error)
        raise Failed(f"the kernel refused to change links: {words[:1].lower()}{words[1:]}") from None


@contextlib.contextmanager
def making(name: str) -> Iterator[None]:
    """Name the link that cannot be made, unless nothing could be."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise
        raise Failed(f"{name} cannot be made: {reason(error)}") from None


def missing_capability() -> NotPermitted:
    """Return the error for a daemon that may not change links, with the two ways to let it."""
    uid = os.geteuid()
    command = shell_line(sys.argv) if os.access(sys.argv[0], os.X_OK) else "vmessd"
    return NotPermitted(
        f"vmessd, uid {uid}, lacks CAP_NET_ADMIN, which TAPs and bridges take: run it as root, or as "
        f"yourself with that capability alone",
        hint=f"sudo -E setpriv --reuid {uid} --regid {os.getegid()} --init-groups --inh-caps +net_admin "
        f'--ambient-caps +net_admin {command}; "user" in place of a bridge needs neither',
    )


def _machine_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/etc/machine-id").read_text(encoding="ascii", errors="replace").strip()
    return ""


def bridge_mac(name: str) -> str:
    """Return the MAC of a bridge, the same after every boot of this host, and of this host alone."""
    digest = hashlib.md5(f"{_machine_id()} {name}\n".encode(), usedforsecurity=False).digest()
    return f"06:{digest[:5].hex(':')}"


def root_name(root: Path) -> str:
    """Return how the marks of links name a VM root that is there.

    Containers that share the host's links may have other directories at this path: they are told apart by
    their machine-id(5), or, for want of one, by the directory's inode. What is told of the former is a hash.
    """
    seed = _machine_id() or str(root.stat().st_ino)
    return root_text(os.fsencode(root.resolve()), hashlib.sha256(f"vmess {seed}".encode()).hexdigest()[:8])


def _moved(
    link: Link, master: int, *, up: bool, mac: str | None = None, alias: str | None = None
) -> list[rtnetlink.Request]:
    """Return requests that plug a link into another bridge, 0 for none.

    At no moment is it up and in no bridge: what its guest sends then would be the host's own to hear.
    EAFNOSUPPORT of some of them is to be tolerated.
    """
    aside = link.up and (link.master != master or not up)
    requests = [rtnetlink.change(link.index, up=False)] if aside else []
    down = aside or not link.up
    if down and master:
        # Out of its bridge meanwhile, whose MTU may follow that of its ports.
        requests += [rtnetlink.change(link.index, master=0)] if link.master else []
        requests += rtnetlink.forgotten(link)
    requests.append(rtnetlink.change(link.index, master=master, mac=mac, alias=alias))
    return requests + ([rtnetlink.change(link.index, up=True)] if up and down else [])


def undoing(made: Link) -> Reversal:
    """Return what deletes a link again that was made just now, unless others use it meanwhile."""

    def undo(kernel: Netlink) -> None:
        link = kernel.link_at(made.index)
        if link is not None and (link.name, link.kind) == (made.name, made.kind) and not users(kernel, link):
            kernel.do([rtnetlink.deletion(link.index)])

    return undo


def users(kernel: Netlink, link: Link) -> list[str]:
    """Return what uses a link: its ports, links that live on it, the host with an address of its own."""
    others = [other.name for other in kernel.links() if link.index in (other.master, _base(other))]
    return others + (["an IP address of the host"] if link.index in kernel.addressed() else [])


def _base(link: Link) -> int:
    """Return the index of the link that another lives on; the two ends of a pair do not live on each other."""
    return 0 if link.kind == "veth" else link.parent


def as_it_was(link: Link, master: int, *, own: bool = True) -> Reversal:
    """Return what puts a changed link back, unless others have moved it from the `master` we gave it.

    One that is not our own is not set down on the way: it may be a card.
    """
    mac = link.mac if link.tap else None  # nothing else gets another one here, and some cards refuse any

    def undo(kernel: Netlink) -> None:
        now = kernel.link_at(link.index)
        if now is not None and now.name == link.name:
            back = link.master if now.master == master else now.master
            if own:
                requests = _moved(now, back, up=link.up, mac=mac, alias=link.alias)
            else:
                requests = [rtnetlink.change(link.index, up=link.up, master=back)]
            kernel.do(requests, tolerate=errno.EAFNOSUPPORT)

    return undo
