"""Which of the host's links vmess may touch: its own, and those an administrator has allowed. Pure.

A link is its own by the mark in its ifalias, which takes CAP_NET_ADMIN to set, or, for a TAP, by a name
of the convention together with the right owner (for root any), so that TAPs of the original script are
known, too.
"""

import fnmatch
from dataclasses import dataclass

from vmessd import names
from vmessd.errors import Failed, NotPermitted
from vmessd.netlink import Link

MARK = "vmess"
LEAVING = "vmess, being unplugged"
"""Of a TAP that goes as soon as its QEMU lets go of it."""

_KINDS = {"": "a network card", "tun": "a TAP or TUN", "vlan": "a VLAN sub-interface", "veth": "a veth"}


def describe(link: Link) -> str:
    """Return in words what a link is."""
    if link.loopback:
        return "the loopback"
    return _KINDS.get(link.kind, f"a {link.kind}")


@dataclass(frozen=True)
class Access:
    """What the administrator allows, as patterns of shells over link names; one with `!` in front denies.

    As in QEMU's bridge helper, what is denied is denied whatever else allows it.
    """

    owner: int
    """The uid QEMU runs as, and TAPs belong to."""
    links: tuple[str, ...] = ()
    """Links that are not vmess's own and may be enslaved, changed and deleted all the same."""
    bridges: tuple[str, ...] = ("*",)
    """Bridges that are not vmess's own and TAPs may be connected to."""

    def is_own(self, link: Link) -> bool:
        """Tell whether a link is vmess's own."""
        marked = link.alias in (MARK, LEAVING)
        if link.tap:
            named = marked or names.tap_parts(link.name) is not None
            return named and (link.owner in (None, self.owner) or self.owner == 0)
        return marked and not link.loopback and link.kind != ""

    def is_allowed(self, link: Link) -> bool:
        """Tell whether the administrator lets vmess enslave, change and delete a link."""
        return _matches(link.name, self.links)

    def check_change(self, link: Link, asked: str) -> None:
        """Raise NotPermitted unless the link, asked for as `asked`, may be changed."""
        check_name(link, asked)
        if not self.is_own(link) and not self.is_allowed(link):
            raise NotPermitted(
                f"{link.name} is {describe(link)} and not vmess's own, so it is left alone",
                hint=_way("allow-links", self.links, link.name),
            )

    def check_bridge(self, link: Link, asked: str) -> None:
        """Raise unless TAPs may be connected to the link.

        Raises:
            Failed: it is no bridge.
            NotPermitted: the administrator does not allow it.
        """
        check_name(link, asked)
        if link.kind != "bridge":
            raise Failed(f"{link.name} is {describe(link)}, not a bridge", hint="choose another name")
        if not self.is_own(link) and not _matches(link.name, self.bridges):
            raise NotPermitted(
                f"bridge {link.name} is not vmess's own and not among those the administrator allows",
                hint=_way("allow-bridges", self.bridges, link.name),
            )


def check_name(link: Link, asked: str) -> None:
    """Raise Failed where a link goes by the name asked for only among others."""
    if link.name != asked:
        raise Failed(
            f"{asked} is another name of {link.name}, {describe(link)}; call links by their first names"
        )


def _way(key: str, patterns: tuple[str, ...], name: str) -> str:
    """Return how the administrator may allow a link."""
    denial = next((p for p in patterns if p[:1] == "!" and fnmatch.fnmatchcase(name, p[1:])), None)
    if denial is not None:
        return f"{key} denies it by {denial!r}"
    now = ", ".join(f'"{pattern}"' for pattern in (*patterns, name))
    return f"the administrator may allow it, in the file of vmessd --config: {key} = [{now}]"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    denied = any(fnmatch.fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern[:1] == "!")
    return not denied and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns if pattern[:1] != "!")
