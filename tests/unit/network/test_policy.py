"""Which links vmess may touch: its own by mark, name and owner, and what the administrator allows."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmessd.core.errors import Failed, NotPermitted, VmessError
from vmessd.network import policy
from vmessd.network.netlink_replies import Link
from vmessd.network.policy import MARK, MARK_MAX, Access, is_leaving, root_text

UID = 1000
CARD = Link(
    index=2,
    name="eth0",
    kind="",
    master=0,
    parent=0,
    up=True,
    attached=True,
    loopback=False,
    mac="02:00:00:00:00:01",
    alias="",
    group=0,
    tap=False,
    owner=None,
    multi_queue=False,
)
LOOPBACK = replace(CARD, index=1, name="lo", loopback=True)
BRIDGE = replace(CARD, index=3, name="bridge1", kind="bridge")
VETH = replace(CARD, index=4, name="vethA0", kind="veth")
TAP = replace(CARD, index=5, name="newvm0e0", kind="tun", tap=True, owner=UID)
TUN = replace(TAP, name="newvm0e0", tap=False)
ROOT = "/var/lib/vmess@0a1b2c3d"
MINE = Access(UID, root=ROOT)
OTHERS = Access(UID, root="/srv/other@0a1b2c3d")
LEAVING = f"{MARK}, being unplugged"

NAMES = st.text(
    st.characters(codec="ascii", exclude_characters="/: \t\n\v\f\r\0[]*?!"), min_size=1, max_size=15
)


# What is vmess's own

OWN: tuple[tuple[str, Link, bool], ...] = (
    ("a TAP of the convention and of our uid", TAP, True),
    ("the same that nobody owns", replace(TAP, owner=None), True),
    ("the same of somebody else", replace(TAP, owner=UID + 1), False),
    ("the same of root", replace(TAP, owner=0), False),
    ("the same of somebody else, marked", replace(TAP, owner=UID + 1, alias=MARK), False),
    ("a TAP of another name", replace(TAP, name="tap0"), False),
    ("a TAP nearly named so", replace(TAP, name="newvm0e00"), False),
    ("a TAP of a VM that the original does not know", replace(TAP, name="web-1e0"), True),
    ("the same that nobody owns", replace(TAP, name="web-1e0", owner=None), False),
    ("the same of root", replace(TAP, name="web-1e0", owner=0), False),
    ("a TAP of containers", replace(TAP, name="tap1a2b3c4e5", owner=None), False),
    ("a TAP of a VM that the original does not know, marked", replace(TAP, name="web-1e0", alias=MARK), True),
    ("a TAP of ours with a long name", replace(TAP, name="vm_ddbeabfe7e1", alias=MINE.mark()), True),
    ("a TAP of another name, marked", replace(TAP, name="tap0", alias=MARK), True),
    ("a TAP that is leaving", replace(TAP, name="x", alias=LEAVING), True),
    ("a TAP with this root's mark", replace(TAP, alias=MINE.mark()), True),
    ("a TAP that is leaving this root", replace(TAP, alias=MINE.mark(leaving=True)), True),
    ("a TAP of another root", replace(TAP, alias=OTHERS.mark()), False),
    ("a TAP of another root that nobody owns", replace(TAP, owner=None, alias=OTHERS.mark()), False),
    ("a TAP that is leaving another root", replace(TAP, alias=OTHERS.mark(leaving=True)), False),
    ("a TAP with somebody's alias", replace(TAP, alias="lab"), True),
    ("a bridge with this root's mark", replace(BRIDGE, alias=MINE.mark()), True),
    ("a bridge of another root", replace(BRIDGE, alias=OTHERS.mark()), False),
    ("a TUN of the convention", TUN, False),
    ("a TUN, marked", replace(TUN, alias=MARK), True),
    ("a bridge", BRIDGE, False),
    ("a bridge, marked", replace(BRIDGE, alias=MARK), True),
    ("a bridge with somebody's alias", replace(BRIDGE, alias="lab"), False),
    ("a bridge whose alias has the mark elsewhere", replace(BRIDGE, alias=f"not {MARK}"), False),
    ("a bridge named as a TAP", replace(BRIDGE, name="newvm0e0"), False),
    ("a veth", VETH, False),
    ("a veth, marked", replace(VETH, alias=MARK), True),
    ("a card", CARD, False),
    ("a card, marked", replace(CARD, alias=MARK), False),
    ("a card named as a TAP", replace(CARD, name="newvm0e0", alias=MARK), False),
    ("the loopback, marked", replace(LOOPBACK, alias=MARK), False),
)


@pytest.mark.parametrize(("link", "own"), [case[1:] for case in OWN], ids=[case[0] for case in OWN])
def test_a_link_is_own_by_its_mark_or_as_a_tap_of_the_convention(link: Link, own: bool) -> None:
    assert MINE.is_own(link) is own


def test_for_root_every_tap_of_the_convention_is_its_own() -> None:
    root = Access(0)
    assert root.is_own(TAP)
    assert root.is_own(replace(TAP, owner=None))
    assert not root.is_own(replace(TAP, name="tap0"))
    assert not root.is_own(CARD)
    for owner in (None, 0, UID):
        assert not root.is_own(replace(TAP, name="web-1e0", owner=owner))


# Which TAP it is

LONG = "kubernetes-node-12e3"
HASHED = replace(TAP, name="vm_01bb0481ee3", other_names=("uplink", LONG))


@pytest.mark.parametrize(
    ("link", "tap"),
    [
        (TAP, ("newvm0", 0)),
        (replace(TAP, name="web-1e12"), ("web-1", 12)),
        (HASHED, ("kubernetes-node-12", 3)),
        (replace(HASHED, other_names=()), None),
        (replace(HASHED, other_names=("kubernetes-node-12e4",)), None),
        (replace(HASHED, other_names=("kubernetes-node-13e3",)), None),
        (replace(TAP, name="lab-bridge1"), None),
        (replace(TAP, name="vm_1cbbbd215e1", other_names=("lab-bridge1",)), ("lab-bridg", 1)),
        (replace(TAP, name="tap0", other_names=("newvm0e0",)), None),
        (replace(BRIDGE, other_names=(LONG,)), None),
    ],
)
def test_a_tap_tells_its_vm_by_its_name_or_by_the_long_one(link: Link, tap: tuple[str, int] | None) -> None:
    found = policy.tap_of(link)
    assert (None if found is None else (found.vm, found.interface)) == tap
    assert found is None or policy.shown(link) == f"{found.vm}e{found.interface}"
    assert found is not None or policy.shown(link) == link.name


def test_a_tap_may_be_called_by_its_long_name_and_other_links_by_their_own_only() -> None:
    ours = replace(HASHED, alias=MINE.mark())
    for name in (LONG, ours.name):
        MINE.check_change(ours, name)
    with pytest.raises(Failed, match="uplink is an alternative name of vm_01bb0481ee3"):
        MINE.check_change(ours, "uplink")
    with pytest.raises(NotPermitted, match=f"{LONG} belongs to the VM root /srv/other"):
        MINE.check_change(replace(HASHED, alias=OTHERS.mark()), LONG)


# Whose it is


def test_a_mark_says_which_root_a_link_belongs_to() -> None:
    assert MINE.mark() == f"vmess: {ROOT}"
    assert MINE.mark(leaving=True) == f"vmess, being unplugged: {ROOT}"
    for leaving in (False, True):
        link = replace(BRIDGE, alias=MINE.mark(leaving=leaving))
        assert is_leaving(link) is leaving
        assert (MINE.other_root(link), OTHERS.other_root(link)) == (None, "/var/lib/vmess")
    assert is_leaving(replace(TAP, alias=LEAVING))
    assert MINE.other_root(replace(TAP, alias=LEAVING)) is None
    assert MINE.other_root(replace(CARD, alias=OTHERS.mark())) is None


def test_one_path_on_two_hosts_or_in_two_containers_is_two_roots() -> None:
    other = Access(UID, root="/var/lib/vmess@ffffffff")
    link = replace(BRIDGE, alias=other.mark())
    assert not MINE.is_own(link)
    assert MINE.other_root(link) == "/var/lib/vmess@ffffffff"


def test_what_another_root_has_is_left_alone_whatever_the_administrator_allows() -> None:
    generous = Access(UID, links=("*",), root=ROOT)
    for link in (replace(TAP, alias=OTHERS.mark()), replace(BRIDGE, alias=OTHERS.mark())):
        with pytest.raises(NotPermitted) as caught:
            generous.check_change(link, link.name)
        told = f"{link.name} belongs to the VM root /srv/other, so it is left alone"
        assert caught.value.message == told
        assert (caught.value.hint or "").endswith(f"ip link set dev {link.name} alias vmess")
    generous.check_bridge(replace(BRIDGE, alias=OTHERS.mark()), "bridge1")
    with pytest.raises(NotPermitted):
        Access(UID, bridges=(), root=ROOT).check_bridge(replace(BRIDGE, alias=OTHERS.mark()), "bridge1")


PATHS = st.binary(min_size=1, max_size=4096).map(lambda tail: b"/" + tail.replace(b"\0", b""))


@given(PATHS, PATHS, st.sampled_from(["", "0a1b2c3d"]))
@example(b"/" + b"x" * 300, b"/" + b"x" * 301, "0a1b2c3d")
@example(b"/a@b", b"/a%40b", "")
def test_any_path_makes_a_mark_that_fits_and_is_its_own(path: bytes, other: bytes, host: str) -> None:
    access = Access(UID, root=root_text(path, host))
    for leaving in (False, True):
        mark = access.mark(leaving=leaving)
        assert mark.isascii()
        assert mark.isprintable()
        assert len(mark) <= MARK_MAX
        assert access.is_own(replace(BRIDGE, alias=mark))
        others = Access(UID, root=root_text(other, host))
        assert others.is_own(replace(BRIDGE, alias=mark)) is (path == other)


# Patterns

PATTERNS: tuple[tuple[tuple[str, ...], str, bool], ...] = (
    ((), "eth0", False),
    (("eth0",), "eth0", True),
    (("eth0",), "eth00", False),
    (("eth",), "eth0", False),
    (("*",), "eth0", True),
    (("eth*",), "eth", True),
    (("eth*",), "veth0", False),
    (("eth?",), "eth10", False),
    (("lab[0-3]",), "lab3", True),
    (("lab[0-3]",), "lab4", False),
    (("lab[!0]",), "lab1", True),
    (("lab[!0]",), "lab0", False),
    (("ETH0",), "eth0", False),
    (("*", "!eth0"), "eth0", False),
    (("!eth0", "*"), "eth0", False),
    (("!eth0", "*"), "eth1", True),
    (("eth0", "!eth*"), "eth0", False),
    (("lab*", "!lab[0-3]"), "lab2", False),
    (("lab*", "!lab[0-3]"), "lab7", True),
    (("!eth0",), "eth1", False),
    (("!*",), "eth0", False),
    (("*", "!*"), "eth0", False),
    (("*", "!"), "eth0", True),
    (("!!eth0", "*"), "eth0", True),
    (("!!eth0", "*"), "!eth0", False),
    ((".*",), "eth0", False),
    (("eth0\n",), "eth0", False),
)


@pytest.mark.parametrize(("patterns", "name", "allowed"), PATTERNS, ids=str)
def test_patterns_are_those_of_shells_and_one_that_denies_wins(
    patterns: tuple[str, ...], name: str, allowed: bool
) -> None:
    assert Access(UID, links=patterns).is_allowed(replace(CARD, name=name)) is allowed
    bridge = replace(BRIDGE, name=name)
    if allowed:
        Access(UID, bridges=patterns).check_bridge(bridge, name)
    else:
        with pytest.raises(NotPermitted):
            Access(UID, bridges=patterns).check_bridge(bridge, name)


@given(st.lists(st.text(max_size=8), max_size=5), NAMES)
def test_what_is_denied_is_denied_whatever_else_allows_it(patterns: list[str], name: str) -> None:
    link = replace(CARD, name=name)
    for place in range(len(patterns) + 1):
        denying = (*patterns[:place], f"!{name}", *patterns[place:], "*")
        assert not Access(UID, links=denying).is_allowed(link)
        with pytest.raises(NotPermitted):
            Access(UID, bridges=denying).check_bridge(replace(BRIDGE, name=name), name)


# May it be changed


@pytest.mark.parametrize("link", [link for _, link, own in OWN if own], ids=lambda link: link.name)
def test_what_is_own_may_be_changed_whatever_the_administrator_denies(link: Link) -> None:
    Access(UID, links=("!*",), bridges=("!*",), root=ROOT).check_change(link, link.name)


@pytest.mark.parametrize(
    ("link", "told"),
    [
        (CARD, "eth0 is a network card and not vmess's own, so it is left alone"),
        (LOOPBACK, "lo is the loopback and not vmess's own, so it is left alone"),
        (BRIDGE, "bridge1 is a bridge and not vmess's own, so it is left alone"),
        (VETH, "vethA0 is a veth and not vmess's own, so it is left alone"),
        (replace(TAP, owner=7), "newvm0e0 is a TAP or TUN and not vmess's own, so it is left alone"),
        (replace(VETH, name="eth0.5", kind="vlan"), "eth0.5 is a VLAN sub-interface and not vmess's own"),
        (replace(VETH, name="vx", kind="vxlan"), "vx is a vxlan and not vmess's own"),
        (replace(VETH, name="bond0", kind="bond"), "bond0 is a bond and not vmess's own"),
    ],
    ids=lambda value: value.name if isinstance(value, Link) else "",
)
def test_what_is_not_own_is_left_alone_unless_it_is_allowed(link: Link, told: str) -> None:
    with pytest.raises(NotPermitted) as caught:
        MINE.check_change(link, link.name)
    assert caught.value.message.startswith(told)
    assert f'allow-links = ["{link.name}"]' in (caught.value.hint or "")
    Access(UID, links=(link.name,)).check_change(link, link.name)
    with pytest.raises(NotPermitted):
        Access(UID, links=("*", f"!{link.name}")).check_change(link, link.name)


# May a VM be connected to it


def test_a_bridge_of_others_may_be_used_by_default_and_not_be_changed() -> None:
    MINE.check_bridge(BRIDGE, "bridge1")
    with pytest.raises(NotPermitted):
        MINE.check_change(BRIDGE, "bridge1")


@pytest.mark.parametrize("bridges", [(), ("br0",), ("*", "!bridge1"), ("!*",)])
def test_a_bridge_that_is_not_allowed_is_refused_unless_it_is_own(bridges: tuple[str, ...]) -> None:
    strict = Access(UID, bridges=bridges)
    with pytest.raises(NotPermitted) as caught:
        strict.check_bridge(BRIDGE, "bridge1")
    message = "bridge bridge1 is neither vmess's own nor allowed by the administrator"
    assert caught.value.message == message
    strict.check_bridge(replace(BRIDGE, alias=MARK), "bridge1")


@pytest.mark.parametrize(
    ("link", "what"),
    [
        (CARD, "a network card"),
        (LOOPBACK, "the loopback"),
        (VETH, "a veth"),
        (TAP, "a TAP or TUN"),
        (replace(VETH, kind="bond", alias=MARK), "a bond"),
    ],
    ids=lambda value: str(getattr(value, "name", "")),
)
def test_what_is_no_bridge_is_none_whoever_allows_it(link: Link, what: str) -> None:
    generous = Access(UID, links=("*",), bridges=("*",))
    with pytest.raises(Failed) as caught:
        generous.check_bridge(link, link.name)
    assert caught.value.message == f"{link.name} is {what}, not a bridge"
    assert not isinstance(caught.value, NotPermitted)


# Other names


@pytest.mark.parametrize("link", [CARD, replace(BRIDGE, alias=MARK), TAP], ids=lambda link: link.name)
def test_a_link_asked_for_by_another_of_its_names_is_refused(link: Link) -> None:
    generous = Access(UID, links=("*",), bridges=("*",))
    for check in (generous.check_change, generous.check_bridge):
        with pytest.raises(Failed) as caught:
            check(link, "uplink")
        assert caught.value.message.startswith(f"uplink is an alternative name of {link.name}, ")
        assert not isinstance(caught.value, NotPermitted)


@given(st.text(max_size=15), st.text(max_size=15), st.text(max_size=20))
def test_whatever_links_are_called_a_refusal_is_one_printable_line(name: str, asked: str, kind: str) -> None:
    link = replace(CARD, name=name, kind=kind)
    for check in (policy.Access(UID, bridges=()).check_change, policy.Access(UID, bridges=()).check_bridge):
        for called in (name, asked):
            with pytest.raises(VmessError) as caught:
                check(link, called)
            assert caught.value.message.isprintable()
            assert (caught.value.hint or "x").isprintable()
