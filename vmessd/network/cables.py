"""Cables: two TAPs, and every frame that comes out of one goes into the other.

A bridge keeps some frames for itself, and learns where stations are. A cable does neither: the kernel redirects
frames between the TAPs before a bridge or the network stack of the host could see them. A TAP with a cable is
up, in no bridge, and the host sends nothing on it.

Sources: tc-u32(8), tc-mirred(8), and Linux's net/sched/act_mirred.c.
"""

import errno
from collections.abc import Iterable, Mapping

from vmessd.core.errors import Failed
from vmessd.network import netlink_requests
from vmessd.network.netlink_replies import Link
from vmessd.network.reversals import Reversal
from vmessd.network.rtnetlink import Netlink

MTU = 65000
"""Of TAPs: a frame that is longer vanishes. The most that the kernel allows is 65521 (tun_net_init())."""
UNKNOWN_KIND = (errno.ENOENT, errno.EOPNOTSUPP)
"""What the kernel says of a kind of queue, filter or link that it does not have."""


def joined(kernel: Netlink, links: Iterable[Link]) -> dict[int, int]:
    """Return the other ends of cables by the indices of links; links without a whole cable are left out."""
    loose = [link.index for link in links if link.tap and link.up and not link.master]
    there = kernel.redirections(loose)
    targets = {target for target in there.values() if target}
    back = there | kernel.redirections(targets - there.keys())
    return {index: target for index, target in there.items() if back.get(target) == index}


def join(kernel: Netlink, one: Link, other: Link) -> Reversal:
    """Plug a cable into two links of ours that are in no bridge, and set them up; return the reversal."""
    quiet = [
        request
        for link in (one, other)
        for request in (
            *([netlink_requests.change(link.index, up=False)] if link.up else []),
            *netlink_requests.without_host_traffic(link),
        )
    ]
    kernel.do(quiet, tolerate=errno.EAFNOSUPPORT)
    _redirect(kernel, one.index, other.index)

    def undo(kernel: Netlink) -> None:
        cut(kernel, one.index)

    return undo


def _redirect(kernel: Netlink, one: int, other: int) -> None:
    redirect(kernel, {one: other, other: one})
    kernel.do(netlink_requests.change(index, up=True, mtu=MTU) for index in (one, other))


def redirect(kernel: Netlink, targets: Mapping[int, int]) -> None:
    """Have every frame that comes out of a link go into another one: from index to index, all or none.

    Raises:
        Failed: this kernel has no u32 or mirred.
        OSError: it refuses.
    """
    gone = [netlink_requests.no_redirection(index) for index in targets]
    kernel.do(gone, tolerate=errno.ENOENT)
    try:
        kernel.do(request for pair in targets.items() for request in netlink_requests.redirection(*pair))
    except OSError as error:
        kernel.do(gone, tolerate=errno.ENOENT)
        if error.errno not in UNKNOWN_KIND:
            raise
        raise Failed(
            "this kernel has no u32 or mirred, which carry the frames of a cable",
            hint="as root, if the modules are installed: modprobe -a cls_u32 act_mirred",
        ) from None


def cut(kernel: Netlink, index: int) -> Reversal | None:
    """Pull the cable out of a link and out of the link at its other end, which are down then.

    Returns the reversal; None if there was no cable.
    """
    there = kernel.redirections([index])
    if index not in there:
        return None
    other = there[index]
    ends = [index, other] if other and kernel.redirections([other]).get(other) == index else [index]
    kernel.do([netlink_requests.change(end, up=False) for end in ends])
    kernel.do([netlink_requests.no_redirection(end) for end in ends], tolerate=errno.ENOENT)

    def undo(kernel: Netlink) -> None:
        now = kernel.links_at(ends)
        if len(ends) == len(now) == 2 and not any(link.master for link in now.values()):
            _redirect(kernel, index, other)

    return undo
