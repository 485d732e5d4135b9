"""The TAPs of VMs: found by name, created, checked and removed. Others plug them in.

Everything here blocks; the caller holds the links of the host.
"""

import errno
import functools
import socket
from collections.abc import Callable, Collection, Iterable
from typing import NoReturn

from vmessd.core import names
from vmessd.core.errors import AlreadyRunning, Failed, NotPermitted
from vmessd.core.models.wires import Step, StepKind
from vmessd.core.names import INTERFACES_MAX
from vmessd.network import cables, netlink_requests, rtnetlink, taps
from vmessd.network.changes import Change
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import Access, Tap, describe, is_leaving, shown, tap_of
from vmessd.network.rtnetlink import Netlink

VMS_CACHED = 512
"""VMs whose names of TAPs are kept, because a list needs all of them."""
FEW = 16
"""TAPs of a VM that are asked for each time; to ask for more takes long, and most VMs have no more."""


class VMTaps:
    """The TAPs of all VMs of a root."""

    def __init__(self, access: Callable[[], Access], emptying: Callable[[Netlink, Link], None]) -> None:
        """`access` is asked each time, since the root is known later; `emptying` ends what impairs a TAP."""
        self._access = access
        self._emptying = emptying
        self._with_few: set[str] = set()
        """VMs that have no TAP behind the first FEW: as seen once, and unless one was made since."""

    # -- Queries --

    def named(self, kernel: Netlink, vm: str, noted: int = 0) -> dict[str, Link]:
        """Return the links with the names of a VM's TAPs, by name; `noted` is the number of its interfaces."""
        wanted, few = tap_names(vm), vm in self._with_few and noted <= FEW
        found = kernel.named(wanted[:FEW] if few else wanted)
        if few and wanted[FEW - 1] in found:  # somebody else may have made more
            found |= kernel.named(wanted[FEW:])
        if len(self._with_few) >= VMS_CACHED:
            self._with_few.clear()
        self._with_few.add(vm)
        if not found.keys().isdisjoint(wanted[FEW:]):
            self._with_few.remove(vm)
        return found

    def of(self, kernel: Netlink, vm: str) -> list[tuple[Tap, Link]]:
        """Return the TAPs of a VM that exist and are ours, by interface."""
        found = self.named(kernel, vm) if any_tap(vm) else {}
        pairs = [(Tap.of(vm, index), found[name]) for index, name in enumerate(tap_names(vm)) if name in found]
        return [(tap, link) for tap, link in pairs if self.is_own(link, tap)]

    def is_own(self, link: Link, tap: Tap) -> bool:
        """Tell whether a link is this TAP and ours; it may lack its long name."""
        return (
            link.name == tap.name and link.tap and self._access().is_own(link) and tap_of(link) in (None, tap)
        )

    # -- Changes --

    def make(self, kernel: Netlink, change: Change, tap: Tap) -> Link:
        """Return this TAP, created if necessary.

        Raises:
            NotPermitted: it belongs to another user.
            Failed: a name of it is taken by another link.
            AlreadyRunning: it is being unplugged, and the guest has not released it.
            OSError: the kernel refused.
        """
        found = kernel.named([tap.name, tap.long])
        self._check_long_name(tap, found.get(tap.long))
        self._make(kernel, change, tap, found.get(tap.name))
        made = kernel.present(tap.name)
        if not self.is_own(made, tap):
            raise OSError(errno.ENODEV, f"{tap.long} vanished right after it was created")
        change.steps.append(Step(StepKind.persistent, tap.long, made.owner))
        return made

    def make_all(
        self,
        kernel: Netlink,
        change: Change,
        wanted: Iterable[Tap],
        found: dict[str, Link],
        queued: Collection[int] | None,
    ) -> None:
        """Create missing TAPs, and have all of them in `found`, which has links by name.

        `queued` are the interfaces whose TAP is to have several queues; None leaves existing ones as they are.
        Raises as :meth:`make`.
        """
        for tap in wanted:
            self._check_long_name(tap, found.get(tap.long))
            many = None if queued is None else tap.interface in queued
            if self._make(kernel, change, tap, found.get(tap.name), many):
                found.pop(tap.name, None)
        found |= kernel.named(tap.name for tap in wanted if tap.name not in found)
        if any(tap.name not in found or not self.is_own(found[tap.name], tap) for tap in wanted):
            raise OSError(errno.ENODEV, "a TAP vanished right after it was created")

    def _make(
        self, kernel: Netlink, change: Change, tap: Tap, link: Link | None, queued: bool | None = None
    ) -> bool:
        """Create a missing TAP, or check an existing one; return whether anything changed.

        `queued`: it is to have several queues, or not; None leaves an existing one as it is.
        """
        if tap.interface >= FEW:
            self._with_few.discard(tap.vm)
        if link is not None:
            self._check(link, tap)
        wrong = link is not None and queued is not None and link.multi_queue is not queued and not link.attached
        if link is None or wrong:
            try:
                self._create(kernel, tap, link, queued=bool(queued))
            except OSError as error:
                if wrong or error.errno != errno.EEXIST or (link := kernel.link(tap.name)) is None:
                    raise  # else another process has just created one
                self._check(link, tap)
            else:
                change.reversals.append(lambda kernel: self._remove(kernel, tap))
                change.made.add(tap.name)
                return True
        changed = self.give_long_name(kernel, tap, link)
        if link.owner is None and not link.attached:  # the owner of an attached TAP cannot be changed
            taps.claim(tap.name, self._access().owner, queued=link.multi_queue)
            return True
        return changed

    def _create(self, kernel: Netlink, tap: Tap, instead_of: Link | None, *, queued: bool) -> None:
        with taps.made(self._access().owner, queued=queued) as first_name:
            index = socket.if_nametoindex(first_name)
            # Mark it before it has the name: other daemons would take it for their own.
            between = [netlink_requests.deletion(instead_of.index)] if instead_of is not None else []
            between += [netlink_requests.add_name(index, tap.long)] if tap.long != tap.name else []
            requests = netlink_requests.baptism(index, tap.name, self._access().mark(), cables.MTU, *between)
            kernel.do(requests, tolerate=errno.EAFNOSUPPORT)

    def give_long_name(self, kernel: Netlink, tap: Tap, link: Link) -> bool:
        """Give a TAP of ours its long name if it lacks it; return whether it did."""
        lacks = tap.long not in (link.name, *link.other_names)
        if lacks:
            kernel.do([netlink_requests.add_name(link.index, tap.long)])
        return lacks

    def _remove(self, kernel: Netlink, tap: Tap) -> None:
        """Delete a TAP; if a process is attached, mark it for later deletion instead."""
        link = kernel.link(tap.name)
        if link is not None and self.is_own(link, tap):
            self._emptying(kernel, link)
            kernel.do(self.leaving(link) if link.attached else [netlink_requests.deletion(link.index)])

    def leaving(self, link: Link) -> list[netlink_requests.Request]:
        """Return requests that remove a TAP from its bridge and mark it as leaving."""
        return netlink_requests.move(link, 0, up=False, alias=self._access().mark(leaving=True))

    # -- Checks --

    def _check_long_name(self, tap: Tap, other: Link | None) -> None:
        """Raise Failed if the long name of a TAP belongs to an `other` link, that of this name."""
        if other is not None and tap.name not in (tap.long, other.name):
            raise Failed(
                f"the name {tap.long} is taken by {describe(other)}, {other.name}; a TAP needs it",
                hint=f"rename or delete it: ip link show {tap.long}",
            )

    def _check(self, link: Link, tap: Tap) -> None:
        """Raise unless a link that has the name of a TAP is this TAP, and ours to use."""
        if link.name != tap.name or not link.tap:
            raise Failed(
                f"the name {tap.name} is taken by {describe(link)}, {link.name}; a TAP of this name is needed",
                hint=f"rename or delete it: ip link show {tap.name}",
            )
        self._access().check_root(link)
        if tap_of(link) not in (None, tap):
            raise Failed(
                f"the hash {tap.name}, which names TAP {tap.long}, is that of TAP {shown(link)}, too",
                hint=f"rename one of the VMs: vmess {tap.vm} rename {names.like(tap.vm)[1]}",
            )
        if not self._access().is_own(link):
            self._refuse(link, tap)
        if is_leaving(link) and link.attached:
            raise AlreadyRunning(
                f"{tap.long} is still being unplugged: the guest has not released it",
                hint="it goes away when the guest releases it, or when the VM ends",
            )

    def _refuse(self, link: Link, tap: Tap) -> NoReturn:
        owner = self._access().owner
        if link.owner in (None, owner) or owner == 0:
            why = "was not made by vmessd, so it is left alone"
        else:
            why = f"belongs to uid {link.owner}, not to uid {owner}"
        raise NotPermitted(
            f"TAP {tap.long} {why}", hint=f"as root: ip link delete {tap.long}; vmessd then creates a new one"
        )


@functools.lru_cache(VMS_CACHED)
def tap_names(vm: str) -> tuple[str, ...]:
    """Return the names that TAPs of a VM can have in the kernel, by interface."""
    return tuple(names.tap(vm, index) for index in range(INTERFACES_MAX))


def any_tap(vm: str) -> bool:
    """Tell whether a link has a name of a VM's TAPs, without asking by netlink."""
    return rtnetlink.any_link(tap_names(vm).__contains__)


def attached(name: str) -> AlreadyRunning:
    """Return the error for a TAP that cannot be deleted now."""
    return AlreadyRunning(
        f"{name}: a process is attached, so it is not deleted", hint="to see which: fuser -v /dev/net/tun"
    )
