"""How changes of links are undone: each leaves alone what somebody else has changed since."""

import errno
from collections.abc import Callable

from vmessd.network import netlink_requests
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import shown
from vmessd.network.rtnetlink import Netlink

Reversal = Callable[[Netlink], None]


def deleting(made: Link) -> Reversal:
    """Return a reversal that deletes a new link unless it is in use by then."""

    def undo(kernel: Netlink) -> None:
        link = kernel.link_at(made.index)
        if link is not None and (link.name, link.kind) == (made.name, made.kind) and not users(kernel, link):
            kernel.do([netlink_requests.deletion(link.index)])

    return undo


def users(kernel: Netlink, link: Link) -> list[str]:
    """Return the users of a link: its ports, its upper links, and the host if it has an address there."""
    others = [shown(other) for other in kernel.links() if link.index in (other.master, _base(other))]
    return others + (["an IP address of the host"] if link.index in kernel.addressed() else [])


def _base(link: Link) -> int:
    """Return the index of a link's lower link, 0 for none; the peer of a veth is not one."""
    return 0 if link.kind == "veth" else link.parent


def restoring(link: Link, master: int, *, own: bool = True) -> Reversal:
    """Return a reversal that restores a link. It stays in its bridge if that is no longer `master`, our choice.

    A link that is not our own is not set down in between: it may be a network card.
    """
    mac = link.mac if link.tap else None  # only TAPs get another MAC, and some cards refuse a change

    def undo(kernel: Netlink) -> None:
        now = kernel.link_at(link.index)
        if now is not None and now.name == link.name:
            back = link.master if now.master == master else now.master
            if own:
                requests = netlink_requests.move(now, back, up=link.up, mac=mac, alias=link.alias, mtu=link.mtu)
            else:
                requests = [netlink_requests.change(link.index, up=link.up, master=back)]
            kernel.do(requests, tolerate=errno.EAFNOSUPPORT)

    return undo
