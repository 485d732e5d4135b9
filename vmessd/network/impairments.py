"""Impaired cables: the kernel's netem delays and loses frames to the guest of a TAP, and from it.

netem works where frames leave a link. Frames to the guest leave by its TAP. Frames from the guest leave

* on a cable, by the TAP at the other end. Its netem therefore does what both ends ask for;
* on a bridge, by the ports of others. So they are first redirected to a link of their own, the *way out* of the
  TAP, an ifb. After its netem, they come out of the TAP as if nothing had happened.

A way out is made with the first impairment, and deleted with the last one or with its TAP.

Sources: tc-netem(8), and Linux's net/sched/{sch_netem,act_mirred}.c and drivers/net/ifb.c.
"""

import errno
import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from vmessd.core.errors import Failed, VmessError, reason
from vmessd.core.impairments import PERFECT, Impaired, combined
from vmessd.core.models.wires import Impairment
from vmessd.network import cables, netlink_requests
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import Tap, describe, tap_of
from vmessd.network.rtnetlink import Netlink

log = logging.getLogger(__name__)


Noted = Mapping[int, Impaired]
"""How the cables of a VM are to be impaired, by interface."""


class _Found(NamedTuple):
    """A TAP, and what is to happen to its frames."""

    link: Link
    out: Link | None
    """The link of this name that is there, for its way out."""
    leads: int | None
    """The index of the link to which the frames from the guest are redirected; 0 if that was deleted."""
    to_guest: Impairment | None
    way_out: Impairment | None
    other: Tap | None = None
    """The TAP at the other end of the cable."""


def way_out_name(tap: str) -> str:
    """Return the name in the kernel of the way out of a TAP; with an underscore, it cannot be that of a TAP."""
    return f"out_{hashlib.md5(tap.encode(), usedforsecurity=False).hexdigest()[:11]}"


def _said(error: OSError | VmessError) -> str:
    return reason(error) if isinstance(error, OSError) else error.message


class Impairments:
    """The impairments of the TAPs of one VM root."""

    def __init__(self, is_own: Callable[[Link], bool], mark: Callable[[], str]) -> None:
        """`is_own` tells whether a link belongs to this VM root, which `mark` says."""
        self._is_own = is_own
        self._mark = mark
        self.read: Callable[[str], Noted] = lambda _vm: {}
        """Returns what is noted for a VM; blocks."""
        self.neighbours: Callable[[str], Collection[str]] = lambda _vm: ()
        """Returns the VMs at the other ends of the cables of a VM; blocks."""
        self._noted: dict[str, Noted] = {}
        """What was read last, by VM: no file is read, which may take long, while the links are locked."""
        self._unmet: dict[str, str] = {}
        """Why links, TAPs and ways out, are not impaired as they should be, by their name."""

    def unmet(self, link: str) -> str | None:
        """Return why a link is not impaired as it should be, in words; None if it is, as far as is known."""
        return self._unmet.get(link)

    def wants(self, tap: Tap) -> bool:
        """Tell whether an impairment of the cable of a TAP was noted when this was looked at last."""
        return self._of(tap) != PERFECT

    def look(self, vm: str) -> None:
        """Read what is noted for a VM, before the links of the host are locked; blocks."""
        self._noted[vm] = self.read(vm)
        for other in self.neighbours(vm):
            if other not in self._noted:
                self._noted[other] = self.read(other)

    def forget(self, vm: str) -> None:
        """Forget what was noted for a VM that is gone."""
        self._noted.pop(vm, None)

    # -- Changes --

    def settle(self, kernel: Netlink, taps: Iterable[Tap]) -> None:
        """Have these TAPs, and those at the other ends of their cables, impaired as it is noted.

        TAPs of VMs that were not looked at stay as they are.

        Raises:
            Failed: the kernel has no netem, or a name is taken.
            OSError: the kernel refused something else.
        """
        for failure in self._settle(kernel, taps).values():
            raise failure

    def settle_quietly(self, kernel: Netlink, taps: Iterable[Tap]) -> None:
        """As :meth:`settle`; a failure is logged, and :meth:`unmet` has it."""
        try:
            wrong = self._settle(kernel, taps)
        except (OSError, VmessError) as error:
            log.warning("impairments of cables cannot be looked at: %s", _said(error))
            return
        for tap, failure in wrong.items():
            log.warning("%s is not impaired as it should be: %s", tap.long, _said(failure))

    def _settle(self, kernel: Netlink, taps: Iterable[Tap]) -> dict[Tap, OSError | VmessError]:
        """Do what :meth:`settle` does, as far as it is possible; return what failed, by the TAPs that asked."""
        wrong: dict[Tap, OSError | VmessError] = {}
        for tap, found in self._look_at(kernel, taps).items():
            try:
                self._impair(kernel, found.link, found.to_guest)
                self._unmet.pop(tap.name, None)
            except (OSError, VmessError) as error:
                self._unmet[tap.name] = _said(error)
                for asking in self._asking(tap, found.other):
                    wrong.setdefault(asking, error)
            try:
                self._lead_out(kernel, tap, found)
                self._unmet.pop(way_out_name(tap.name), None)
            except (OSError, VmessError) as error:
                self._unmet[way_out_name(tap.name)] = _said(error)
                wrong.setdefault(tap, error)
        return wrong

    def _asking(self, tap: Tap, other: Tap | None) -> list[Tap]:
        """Return the ends of a cable that have frames to the guest of a TAP impaired; the TAP if none has."""
        asking = [tap] if self._of(tap).incoming else []
        asking += [other] if other is not None and self._of(other).outgoing else []
        return asking or [tap]

    def _look_at(self, kernel: Netlink, taps: Iterable[Tap]) -> dict[Tap, _Found]:
        """Return the TAPs that exist and those at the other ends of their cables, with what is to happen."""
        asked = [tap for tap in taps if tap.vm in self._noted]
        named = kernel.named([name for tap in asked for name in (tap.name, way_out_name(tap.name))])
        links = {tap: named[tap.name] for tap in asked if self._is_there(named.get(tap.name), tap)}
        joined = cables.joined(kernel, links.values())
        others = {index: link for index, link in kernel.links_at(joined.values()).items() if self._is_own(link)}
        ends = {index: tap for index, link in others.items() if (tap := tap_of(link))}
        pairs = {tap: ends.get(joined.get(link.index, 0)) for tap, link in links.items()}
        for tap, end in [(tap, end) for tap, end in pairs.items() if end and end.vm in self._noted]:
            links.setdefault(end, others[joined[links[tap].index]])
            pairs.setdefault(end, tap)
        leads = kernel.redirections(link.index for link in links.values() if link.master)
        found = {}
        for tap, link in links.items():
            own, other = self._of(tap), pairs[tap]
            to_guest = combined(own.incoming, self._of(other).outgoing if other is not None else None)
            out = named.get(way_out_name(tap.name))
            way_out = own.outgoing if link.master else None
            found[tap] = _Found(link, out, leads.get(link.index), to_guest, way_out, other)
        return found

    def _of(self, tap: Tap) -> Impaired:
        return self._noted.get(tap.vm, {}).get(tap.interface, PERFECT)

    def _is_there(self, link: Link | None, tap: Tap) -> bool:
        return link is not None and link.name == tap.name and link.tap and self._is_own(link)

    def _impair(self, kernel: Netlink, link: Link, wanted: Impairment | None) -> None:
        """Have the kernel treat what a link sends like this; None for as usual."""
        if wanted is not None:
            try:
                kernel.do([netlink_requests.netem(link.index, wanted)])
            except OSError as error:
                raise self._lacking(error, "netem", "sch_netem") from None
        elif link.impaired:
            kernel.do([netlink_requests.no_netem(link.index)], tolerate=errno.EINVAL)  # it is not ours

    def _lacking(self, error: OSError, what: str, module: str) -> OSError | Failed:
        """Return the error for what the kernel may lack."""
        if error.errno not in cables.UNKNOWN_KIND:
            return error
        return Failed(
            f"this kernel has no {what}, which impairs cables; flap, on and off work without it",
            hint=f"as root, if the module is installed: modprobe {module}",
        )

    def _lead_out(self, kernel: Netlink, tap: Tap, found: _Found) -> None:
        """Have the frames from the guest of a TAP in a bridge take a way out, or not any longer."""
        out = found.out
        if out is not None and not (out.kind == "ifb" and self._is_own(out)):
            if found.way_out is None:
                return
            raise Failed(
                f"the name {out.name} is taken by {describe(out)}; {tap.long} needs it to impair its frames",
                hint=f"rename or delete it: ip link show {out.name}",
            )
        if found.way_out is None:
            self._close(kernel, found)
            return
        made = out or self._make_way_out(kernel, tap)
        found = found._replace(out=made)
        try:
            self._impair(kernel, made, found.way_out)
            if found.leads != made.index:
                cables.redirect(kernel, {found.link.index: made.index})
        except BaseException:
            self._close(kernel, found._replace(leads=made.index))
            raise

    def _close(self, kernel: Netlink, found: _Found) -> None:
        """Have frames from the guest take their usual way; the way out is deleted, with the frames in it."""
        if found.leads is not None and found.leads in (0, found.out.index if found.out else 0):
            kernel.do([netlink_requests.no_redirection(found.link.index)], tolerate=errno.ENOENT)
        if found.out is not None:
            kernel.do([netlink_requests.deletion(found.out.index)], tolerate=errno.ENODEV)

    def _make_way_out(self, kernel: Netlink, tap: Tap) -> Link:
        name = way_out_name(tap.name)
        try:
            kernel.do([netlink_requests.new_ifb(name), netlink_requests.set_alias(name, self._mark())])
        except OSError as error:
            raise self._lacking(error, "ifb, which delays what a guest sends to a bridge", "ifb") from None
        made = kernel.present(name)
        try:
            kernel.do([netlink_requests.add_name(made.index, f"{tap.long}-out")], tolerate=errno.EEXIST)
            kernel.do(netlink_requests.without_host_traffic(made), tolerate=errno.EAFNOSUPPORT)
            kernel.do([netlink_requests.change(made.index, up=True, mtu=cables.MTU)])
        except BaseException:
            kernel.do([netlink_requests.deletion(made.index)], tolerate=errno.ENODEV)
            raise
        return made

    # -- With their TAPs --

    def ways_out(self, kernel: Netlink, links: Collection[Link]) -> list[Link]:
        """Return the ways out of TAPs, which are to be deleted with them."""
        found = kernel.named(way_out_name(link.name) for link in links if link.tap)
        return [link for link in found.values() if link.kind == "ifb" and self._is_own(link)]

    def strays(self, links: Collection[Link]) -> list[Link]:
        """Return the ways out among all links of the host whose TAP is not there."""
        used = {way_out_name(link.name) for link in links if link.tap}
        return [link for link in links if link.kind == "ifb" and link.name not in used and self._is_own(link)]

    def empty(self, kernel: Netlink, link: Link) -> None:
        """Delete the way out of a TAP that is about to leave its bridge.

        Frames in it would otherwise come out of a TAP in no bridge, and reach the network stack of the host.
        """
        for out in self.ways_out(kernel, [link]):
            leads = kernel.redirections([link.index]).get(link.index)
            self._close(kernel, _Found(link, out, leads, None, None))
        self._unmet.pop(link.name, None)
        self._unmet.pop(way_out_name(link.name), None)
