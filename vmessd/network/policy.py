"""Which links of the host vmess may touch: its own, and those that the administrator allows. Pure.

The mark in the ifalias of a link, which needs CAP_NET_ADMIN to set, makes it vmess's own. So does, for a TAP, a
name by the original's convention together with the right owner (any owner for root): TAPs of the original
script are recognized this way. Names of TAPs that the original did not know resemble those of other programs.
By such a name, only a TAP that was made for the user of the daemon is recognized, unless that is root.

The mark names the VM root that the link belongs to. Links of another root are left alone, whatever their name
and owner.
"""

import fnmatch
import hashlib
import re
from typing import NamedTuple, Self

from vmessd.core import names, refusals
from vmessd.core.dataclass import dataclass
from vmessd.core.errors import Failed, NotPermitted
from vmessd.network.netlink_replies import Link

MARK = "vmess"
"""The beginning of the ifalias of vmess's links. Without a VM root after it, the link belongs to any root."""
MARK_MAX = 255  # IFALIASZ - 1, in bytes
_LEAVING = ", being unplugged"
"""The mark of a TAP that is to be deleted as soon as its QEMU detaches."""
_MTU = ", MTU "
"""In the mark of a bridge: the MTU of its segment."""
_MARKED = re.compile(
    f"{MARK}(?P<leaving>{_LEAVING})?(?:{_MTU}(?P<mtu>[0-9]{{3,5}}))?(?:: (?P<root>.+))?", re.DOTALL
)
_ROOT_MAX = MARK_MAX - len(f"{MARK}{_LEAVING}: ")

_KINDS = {"": "a network card", "tun": "a TAP or TUN", "vlan": "a VLAN sub-interface", "veth": "a veth"}


class Tap(NamedTuple):
    """The TAP of an interface of a VM, whether it exists or not."""

    vm: str
    interface: int
    name: str
    """Its name in the kernel."""
    long: str
    """Its name for people: the same, or its alternative name in the kernel."""

    @classmethod
    def of(cls, vm: str, interface: int) -> Self:
        """Return the TAP of an interface."""
        return cls(vm, interface, names.tap(vm, interface), names.long_tap(vm, interface))


def tap_of(link: Link) -> Tap | None:
    """Return the TAP of a VM that a link is by its names; None if it is none."""
    for name in (link.name, *link.other_names):
        parts = names.tap_parts(name, loosely=True)
        if parts is not None and (tap := Tap.of(*parts)).name == link.name:
            return tap
    return None


def shown(link: Link) -> str:
    """Return the name of a link for people: of a TAP, the long name."""
    tap = tap_of(link) if link.other_names else None
    return tap.long if tap is not None else link.name


def describe(link: Link) -> str:
    """Return the kind of a link in words."""
    if link.loopback:
        return "the loopback"
    return _KINDS.get(link.kind, f"a {link.kind}")


def root_text(path: bytes, host: str) -> str:
    """Return the name of a VM root for marks: printable ASCII, short enough for an ifalias.

    `host` distinguishes roots with the same path inside and outside a container. A hash replaces the end of a
    path that is too long.
    """
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F and byte not in b"%@" else f"%{byte:02X}" for byte in path)
    end = f"@{host}" if host else ""
    if len(text) + len(end) > _ROOT_MAX:
        end = f"%-{hashlib.sha256(path).hexdigest()[:32]}{end}"  # unlike any escaped byte
        text = text[: _ROOT_MAX - len(end)]
    return text + end


def is_leaving(link: Link) -> bool:
    """Tell whether a TAP is to be deleted as soon as its QEMU detaches."""
    marked = _MARKED.fullmatch(link.alias)
    return marked is not None and marked["leaving"] is not None


def is_made_by_vmess(link: Link) -> bool:
    """Tell whether a link has the mark of any VM root."""
    return _MARKED.fullmatch(link.alias) is not None


def segment_mtu(bridge: Link) -> int | None:
    """Return the MTU of the segment of a bridge; None if none was set."""
    marked = _MARKED.fullmatch(bridge.alias)
    return int(marked["mtu"]) if marked is not None and marked["mtu"] is not None else None


@dataclass(frozen=True)
class Access:
    """What the administrator allows, as shell patterns over link names; a leading `!` denies.

    As in QEMU's bridge helper, a denial wins over anything that allows the link.
    """

    owner: int
    """The uid that QEMU runs as and that owns TAPs."""
    links: tuple[str, ...] = ()
    """Foreign links that may be enslaved, changed and deleted."""
    bridges: tuple[str, ...] = ("*",)
    """Foreign bridges that TAPs may be connected to."""
    root: str = ""
    """The VM root, as returned by :func:`root_text`."""

    def mark(self, *, leaving: bool = False, mtu: int | None = None) -> str:
        """Return the ifalias of a link of ours; `mtu` is that of the segment of a bridge, if it has one."""
        root = f": {self.root}" if self.root else ""
        return f"{MARK}{_LEAVING if leaving else ''}{'' if mtu is None else f'{_MTU}{mtu}'}{root}"

    def other_root(self, link: Link) -> str | None:
        """Return the VM root in the mark of a link if it is not ours, else None."""
        marked = _MARKED.fullmatch(link.alias)
        if marked is None or marked["root"] in (None, self.root) or link.loopback or link.kind == "":
            return None
        host = self.root.rpartition("@")[2]
        return str(marked["root"]).removesuffix(f"@{host}")

    def is_marked(self, link: Link) -> bool:
        """Tell whether a link has the mark of this VM root, which only vmess gives it."""
        return link.alias in (self.mark(), self.mark(leaving=True))

    def is_own(self, link: Link) -> bool:
        """Tell whether a link is vmess's own and belongs to this VM root."""
        marked = _MARKED.fullmatch(link.alias) is not None
        if self.other_root(link) is not None:
            return False
        if link.tap:
            tap = tap_of(link)
            ours = tap is not None and (names.is_original(tap.vm) or link.owner == self.owner != 0)
            return (marked or ours) and (link.owner in (None, self.owner) or self.owner == 0)
        return marked and not link.loopback and link.kind != ""

    def is_allowed(self, link: Link) -> bool:
        """Tell whether the administrator allows vmess to enslave, change and delete a link."""
        return _matches(link.name, self.links)

    def may_change(self, link: Link) -> bool:
        """Tell whether a link is vmess's own, or no other VM root's and allowed."""
        return self.is_own(link) or (self.is_allowed(link) and self.other_root(link) is None)

    def check_change(self, link: Link, asked: str) -> None:
        """Raise NotPermitted unless the link may be changed; `asked` is the name that the user gave."""
        check_name(link, asked)
        self.check_root(link)
        if not self.is_own(link) and not self.is_allowed(link):
            raise NotPermitted(
                f"{shown(link)} is {describe(link)} and not vmess's own, so it is left alone",
                hint=_permission("allow-links", self.links, link.name),
            )

    def check_root(self, link: Link) -> None:
        """Raise NotPermitted if a link belongs to another VM root; no setting allows that."""
        root = self.other_root(link)
        if root is not None:
            raise NotPermitted(
                f"{shown(link)} belongs to the VM root {root}, so it is left alone",
                hint=f"if that root no longer exists, as root: ip link set dev {shown(link)} alias {MARK}",
            )

    def check_bridge(self, link: Link, asked: str) -> None:
        """Raise unless TAPs may be connected to the link.

        Raises:
            Failed: it is not a bridge.
            NotPermitted: the administrator does not allow it.
        """
        check_name(link, asked)
        if link.kind != "bridge":
            raise Failed(f"{link.name} is {describe(link)}, not a bridge", hint="choose another name")
        if not self.is_own(link) and not _matches(link.name, self.bridges):
            raise NotPermitted(
                f"bridge {link.name} is neither vmess's own nor allowed by the administrator",
                hint=_permission("allow-bridges", self.bridges, link.name),
            )


def check_name(link: Link, asked: str) -> None:
    """Raise Failed if `asked` is an alternative name of the link, but not the long name of a TAP."""
    if asked not in (link.name, shown(link)):
        raise Failed(
            f"{asked} is an alternative name of {link.name}, {describe(link)}; use the name {link.name}"
        )


def _permission(key: str, patterns: tuple[str, ...], name: str) -> str:
    """Return a hint on how the administrator can allow a link."""
    denial = next((p for p in patterns if p[:1] == "!" and fnmatch.fnmatchcase(name, p[1:])), None)
    if denial is not None:
        return f"{key} denies it with {denial!r}"
    return refusals.among(key, patterns, name)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    denied = any(fnmatch.fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern[:1] == "!")
    return not denied and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns if pattern[:1] != "!")
