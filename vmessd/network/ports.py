"""Ports of bridges: what they pass, what they learn, and how long the frames may be."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping

from vmessd.network import cables, netlink_requests
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import is_made_by_vmess, segment_mtu
from vmessd.network.reversals import Reversal
from vmessd.network.rtnetlink import Netlink

MTU_DEFAULT = 1500
"""Of a TAP as the kernel makes it (ETH_DATA_LEN)."""
CROWD = 3
"""A bridge with more ports is not looked at for whether it has two."""


class Ports:
    """The ports of the bridges of vmess; `stations` are links on which the host has a configured address."""

    def __init__(self, is_own: Callable[[Link], bool], may_change: Callable[[Link], bool]) -> None:
        """`is_own` tells whether a link belongs to this VM root, `may_change` also whether it is allowed."""
        self._is_own = is_own
        self._may_change = may_change
        self._known: dict[int, int] = {}
        """How many ports bridges have, as far as known: a hint that saves looking at all links."""

    @contextlib.contextmanager
    def tuning(
        self, kernel: Netlink, reversals: list[Reversal], stations: Collection[int]
    ) -> Iterator[dict[int, Link]]:
        """Yield a place for bridges whose ports change in the body of the `with`; :meth:`tune` them then."""
        touched: dict[int, Link] = {}
        reversals.append(lambda kernel: self._retune(kernel, touched, stations))
        yield touched
        self.tune(kernel, touched, stations)

    def _retune(self, kernel: Netlink, bridges: Mapping[int, Link], stations: Collection[int]) -> None:
        """Tune bridges whose number of ports is not known any more."""
        for index in bridges:
            self._known.pop(index, None)
        self.tune(kernel, bridges, stations)

    def moving(self, kernel: Netlink, link: Link, master: Link | None) -> dict[int, Link]:
        """Return the bridges that a link leaves and joins, by index; none if it stays where it is."""
        there = master.index if master is not None else 0
        if link.master == there:
            return {}
        self._count(link.master, -1)
        self._count(there, 1)
        left = kernel.links_at([link.master]) if link.master else {}
        return left | ({there: master} if master is not None else {})

    def left(self, kernel: Netlink, links: Collection[Link]) -> None:
        """Tune the bridges whose ports these links were, which do not exist any more."""
        bridges = kernel.links_at(link.master for link in links if link.master)
        for link in links:
            self._count(link.master, -1)
        self.tune(kernel, bridges, kernel.addressed() if bridges else ())

    def _count(self, bridge: int, more: int) -> None:
        if bridge in self._known:
            self._known[bridge] += more

    def tune(self, kernel: Netlink, bridges: Mapping[int, Link], stations: Collection[int]) -> None:
        """Have the ports of our bridges pass what they can, and learn what there is to learn.

        Two TAPs and nothing else are nearly a cable: a guest may be a switch, and a station move from one side
        to the other without a word. With learning, nobody would reach it for 300 s. Beyond a port that is not a
        TAP, there may be a VM with the same MAC as one here, and only what the bridge learns tells that.
        """
        for bridge in bridges.values():
            if not self._is_own(bridge) or self._known.get(bridge.index, 0) > CROWD:
                continue
            ports = kernel.ports(bridge.index)
            self._known[bridge.index] = len(ports)
            alone = len(ports) == 2 and all(port.tap for port in ports) and bridge.index not in stations
            deaf = [port for port in ports if not port.passes and self._may_change(port)]
            kernel.do(netlink_requests.passing(port.index) for port in deaf)
            wrong = [port for port in ports if port.learns is alone]
            kernel.do(netlink_requests.learning(port.index, on=not alone) for port in wrong)


def mtu_of(link: Link, master: Link | None, stations: Collection[int]) -> int:
    """Return the MTU that a link gets in a bridge, or without one; `stations` as for :class:`Ports`.

    A frame that is longer than the MTU of a port vanishes. The host sends no longer frames on a bridge than
    its smallest port takes, so where it is a station or the bridge is not vmess's, ports are as before.
    """
    if not link.tap and link.kind != "veth":
        return link.mtu
    if master is None:
        return cables.MTU
    if not is_made_by_vmess(master):
        return master.mtu
    return segment_mtu(master) or (max(master.mtu, MTU_DEFAULT) if master.index in stations else cables.MTU)
