"""Which of the host's links vmess may touch: its own, and those an administrator has allowed. Pure.

A link is its own by the mark in its ifalias, which takes CAP_NET_ADMIN to set, or, for a TAP, by a name
of the convention together with the right owner (for root any), so that TAPs of the original script are
known, too. The mark says which VM root the link belongs to: what is another root's is left alone, whatever
its name and owner.
"""

import fnmatch
import hashlib
import re
from dataclasses import dataclass

from vmessd.core import names
from vmessd.core.errors import Failed, NotPermitted
from vmessd.network.rtnetlink import Link

MARK = "vmess"
"""Begins the ifalias of a link of vmess's. Where no VM root is named behind it, the next to use it has it."""
MARK_MAX = 255  # IFALIASZ - 1, in bytes
_LEAVING = ", being unplugged"
"""Of a TAP that goes as soon as its QEMU lets go of it."""
_MARKED = re.compile(f"{MARK}(?P<leaving>{_LEAVING})?(?:: (?P<root>.+))?", re.DOTALL)
_ROOT_MAX = MARK_MAX - len(f"{MARK}{_LEAVING}: ")

_KINDS = {"": "a network card", "tun": "a TAP or TUN", "vlan": "a VLAN sub-interface", "veth": "a veth"}


def describe(link: Link) -> str:
    """Return in words what a link is."""
    if link.loopback:
        return "the loopback"
    return _KINDS.get(link.kind, f"a {link.kind}")


def root_text(path: bytes, host: str) -> str:
    """Return how marks name a VM root: printable ASCII, of a length that fits.

    `host` tells roots apart that have one path, in a container and beside it. Where the path is too long, a
    hash stands for its end.
    """
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F and byte not in b"%@" else f"%{byte:02X}" for byte in path)
    end = f"@{host}" if host else ""
    if len(text) + len(end) > _ROOT_MAX:
        end = f"%-{hashlib.sha256(path).hexdigest()[:32]}{end}"  # no byte is written so
        text = text[: _ROOT_MAX - len(end)]
    return text + end


def is_leaving(link: Link) -> bool:
    """Tell whether a TAP goes as soon as its QEMU lets go of it."""
    marked = _MARKED.fullmatch(link.alias)
    return marked is not None and marked["leaving"] is not None


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
    root: str = ""
    """The VM root, as :func:`root_text` has it."""

    def mark(self, *, leaving: bool = False) -> str:
        """Return the ifalias of a link of ours."""
        root = f": {self.root}" if self.root else ""
        return f"{MARK}{_LEAVING if leaving else ''}{root}"

    def other_root(self, link: Link) -> str | None:
        """Return the VM root that a link belongs to, if that is another than ours; as its mark names it."""
        marked = _MARKED.fullmatch(link.alias)
        if marked is None or marked["root"] in (None, self.root) or link.loopback or link.kind == "":
            return None
        host = self.root.rpartition("@")[2]
        return str(marked["root"]).removesuffix(f"@{host}")

    def is_own(self, link: Link) -> bool:
        """Tell whether a link is vmess's own, and this VM root's."""
        marked = _MARKED.fullmatch(link.alias) is not None
        if self.other_root(link) is not None:
            return False
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
        self.check_root(link)
        if not self.is_own(link) and not self.is_allowed(link):
            raise NotPermitted(
                f"{link.name} is {describe(link)} and not vmess's own, so it is left alone",
                hint=_way("allow-links", self.links, link.name),
            )

    def check_root(self, link: Link) -> None:
        """Raise NotPermitted where a link belongs to another VM root; nobody can allow that."""
        root = self.other_root(link)
        if root is not None:
            raise NotPermitted(
                f"{link.name} belongs to the VM root {root}, so it is left alone",
                hint=f"if there is no such root any more, as root: ip link set dev {link.name} alias {MARK}",
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
