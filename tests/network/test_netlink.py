"""rtnetlink: requests and replies as bytes, hostile ones among them, and what the real kernel makes of them.

What touches a link runs in a process of its own in a network namespace of its own: a `@in_namespace`
test is called there by name.
"""

import contextlib
import errno
import functools
import ipaddress
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from conftest import SUPPORT, TESTS
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vmessd.network import rtnetlink, taps
from vmessd.network.rtnetlink import Link, Neighbour, Netlink, Refused, attribute, attributes, nested

MAC = "02:11:9b:af:00:00"
KINDS = st.integers(0, 0x3FFF)
ATTRIBUTES = st.lists(st.tuples(KINDS, st.binary(max_size=40)), max_size=6)


def packed(pairs: Sequence[tuple[int, bytes]]) -> bytes:
    return b"".join(attribute(kind, payload) for kind, payload in pairs)


# Attributes


@pytest.mark.parametrize(
    ("made", "golden"),
    [
        (attribute(1, b""), "0400 0100"),
        (attribute(10, b"\3\0\0\0"), "0800 0a00 03000000"),
        (attribute(3, b"br0\0"), "0800 0300 62723000"),
        (attribute(3, b"br10\0"), "0900 0300 62723130 00 000000"),
        (nested(18), "0400 1280"),
        (nested(18, attribute(1, b"x")), "0c00 1280 0500 0100 78 000000"),
    ],
)
@pytest.mark.skipif(sys.byteorder != "little", reason="written down as a little-endian host has them")
def test_golden_attributes(made: bytes, golden: str) -> None:
    assert made == bytes.fromhex(golden)


@settings(deadline=None)
@given(ATTRIBUTES, st.binary(max_size=20))
def test_attributes_are_read_as_they_were_written(pairs: list[tuple[int, bytes]], before: bytes) -> None:
    data = before + packed(pairs)
    assert list(attributes(data, len(before))) == pairs
    assert list(attributes(memoryview(data), len(before))) == pairs
    ((kind, payload),) = attributes(nested(7, packed(pairs)))
    assert (kind, list(attributes(payload))) == (7, pairs)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 20))
@example(b"\0\0\0\0" * 4, 0)
@example(b"\3\0\1\0" * 4, 0)
@example(b"\xff\xff\xff\xff\xff", 0)
def test_any_bytes_are_attributes_that_come_to_an_end(data: bytes, offset: int) -> None:
    found = list(itertools.islice(attributes(data, offset), 100))
    assert len(found) <= len(data) // 4
    assert all(kind < 0x4000 and payload in data for kind, payload in found)


@settings(deadline=None)
@given(ATTRIBUTES, st.data())
def test_of_attributes_that_are_cut_off_the_whole_ones_are_read(
    pairs: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    whole = packed(pairs)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    found = list(attributes(cut))
    assert found[:-1] == pairs[: max(len(found) - 1, 0)]
    assert not found or pairs[len(found) - 1][1].startswith(found[-1][1])


# Requests

GOLDEN: dict[str, tuple[tuple[int, int, bytes], int, int, str]] = {
    "up and into a bridge": (
        rtnetlink.change(7, up=True, master=3),
        *(16, 0),
        "00 00 0000 07000000 01000000 01000000  0800 0a00 03000000",
    ),
    "down and out of a bridge": (
        rtnetlink.change(7, up=False, master=0),
        *(16, 0),
        "00 00 0000 07000000 00000000 01000000  0800 0a00 00000000",
    ),
    "a MAC, an alias and a group": (
        rtnetlink.change(2, mac=MAC, alias="vmess", group=0xFFFFFFFF),
        *(16, 0),
        (
            "00 00 0000 02000000 00000000 00000000"
            "0a00 0100 02119baf0000 0000  0900 1400 766d657373 000000  0800 1b00 ffffffff"
        ),
    ),
    "no IPv6 address": (
        rtnetlink.quiet(2),
        *(16, 0),
        "00 00 0000 02000000 00000000 00000000  1000 1a80  0c00 0a80  0500 0800 01 000000",
    ),
    "a VLAN": (
        rtnetlink.new_vlan("eth0.5", 2, 5),
        *(16, 0x600),
        (
            "00000000 00000000 00000000 00000000  0b00 0300 65746830 2e3500 00  0800 0500 02000000"
            "1800 1280  0800 0100 766c616e  0c00 0280  0600 0100 0500 0000"
        ),
    ),
    "a VXLAN": (
        rtnetlink.new_vxlan("vxlan7", 7, 4789),
        *(16, 0x600),
        (
            "00000000 00000000 00000000 00000000  0b00 0300 76786c61 6e3700 00"
            "2400 1280  0900 0100 7678 6c61 6e 000000  1400 0280  0800 0100 07000000  0600 0f00 12b5 0000"
        ),
    ),
    "a deletion": (rtnetlink.deletion(7), *(17, 0), "00 00 0000 07000000 00000000 00000000"),
}


@pytest.mark.parametrize("what", GOLDEN)
@pytest.mark.skipif(sys.byteorder != "little", reason="written down as a little-endian host has them")
def test_golden_requests(what: str) -> None:
    request, kind, flags, body = GOLDEN[what]
    assert request == (kind, flags, bytes.fromhex(body))


CREATIONS: dict[str, tuple[tuple[int, int, bytes], str]] = {
    "br0": (rtnetlink.new_bridge("br0", MAC), "bridge"),
    "eth0.4094": (rtnetlink.new_vlan("eth0.4094", 2, 4094), "vlan"),
    "vethA0": (rtnetlink.new_veth("vethA0", "vethB0"), "veth"),
    "vxlan7": (rtnetlink.new_vxlan("vxlan7", 2**24 - 1, 4789), "vxlan"),
    "x" * 15: (rtnetlink.new_bridge("x" * 15, MAC), "bridge"),
    os.fsdecode(b"br\xff"): (rtnetlink.new_bridge(os.fsdecode(b"br\xff"), MAC), "bridge"),
}


@pytest.mark.parametrize("name", CREATIONS, ids=ascii)
def test_a_creation_reads_as_the_link_it_asks_for_and_never_takes_one_that_is_there(name: str) -> None:
    (kind, flags, body), sort = CREATIONS[name]
    assert (kind, flags) == (16, 0x400 | 0x200)  # NLM_F_CREATE | NLM_F_EXCL
    link = rtnetlink.parse_link(body)
    assert (link.index, link.name, link.kind, link.up) == (0, name, sort, False)
    assert link.mac == (MAC if sort == "bridge" else "")
    assert link.parent == (2 if sort == "vlan" else 0)


@settings(deadline=None)
@given(
    index=st.integers(1, 2**31 - 1),
    up=st.none() | st.booleans(),
    master=st.none() | st.integers(0, 2**31 - 1),
    mac=st.none() | st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":")),
    alias=st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
    group=st.none() | st.integers(0, 2**32 - 1),
)
def test_a_change_reads_as_what_it_changes(index: int, up: bool | None, **rest: Any) -> None:
    kind, flags, body = rtnetlink.change(index, up=up, **rest)
    assert (kind, flags, len(body) % 4) == (16, 0, 0)
    link = rtnetlink.parse_link(body)
    assert (link.index, link.up) == (index, bool(up))
    asked = {name: value or type(value)() for name, value in rest.items() if value is not None}
    assert {name: getattr(link, name) for name in asked} == asked
    # Nothing but what was asked for is told to be changed.
    assert struct.unpack_from("=I", body, 12) == (up is not None,)
    assert len(list(attributes(body, 16))) == len(asked)


# Replies


def body_of(index: int = 7, flags: int = 0, *pairs: bytes) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, 0) + b"".join(pairs)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


TAP_DATA = (attribute(1, u32(1000)), attribute(3, b"\2"), attribute(7, b"\0"))
SOME_LINK = Link(
    index=7,
    name="newvm0e0",
    kind="tun",
    master=3,
    parent=0,
    up=True,
    attached=True,
    loopback=False,
    mac=MAC,
    alias="vmess",
    group=5,
    tap=True,
    owner=1000,
    multi_queue=False,
)
SOME_BODY = body_of(
    7,
    0x10001,
    attribute(3, b"newvm0e0\0"),
    attribute(1, bytes.fromhex("02119baf0000")),
    attribute(10, u32(3)),
    attribute(20, b"vmess\0"),
    attribute(27, u32(5)),
    attribute(33, b"\1"),
    nested(18, attribute(1, b"tun\0"), nested(2, *TAP_DATA)),
    nested(52, attribute(53, b"one\0"), attribute(99, b"x"), attribute(53, b"\xfftwo\0")),
    attribute(0x3FFF, b"what a later kernel tells"),
)


def test_a_link_is_read() -> None:
    assert rtnetlink.parse_link(SOME_BODY) == SOME_LINK


def test_of_a_link_that_tells_nothing_nothing_is_known() -> None:
    link = rtnetlink.parse_link(body_of())
    assert link == Link(7, "", "", 0, 0, up=False, attached=False, loopback=False, mac="", alias="",
                        group=0, tap=False, owner=None, multi_queue=False)  # fmt: skip


@pytest.mark.parametrize(
    ("data", "is_tap", "owner", "queues"),
    [
        (TAP_DATA, True, 1000, False),
        (TAP_DATA[1:], True, None, False),
        ((attribute(1, u32(0)), *TAP_DATA[1:]), True, 0, False),
        ((attribute(3, b"\1"),), False, None, False),
        ((attribute(3, b"\2"), attribute(7, b"\1")), True, None, True),
        ((), False, None, False),
    ],
)
def test_a_tap_is_known_by_its_type_and_its_owner(
    data: tuple[bytes, ...], is_tap: bool, owner: int | None, queues: bool
) -> None:
    link = rtnetlink.parse_link(body_of(7, 0, nested(18, attribute(1, b"tun\0"), nested(2, *data))))
    assert (link.tap, link.owner, link.multi_queue) == (is_tap, owner, queues)
    other = rtnetlink.parse_link(body_of(7, 0, nested(18, attribute(1, b"veth\0"), nested(2, *data))))
    assert (other.tap, other.owner, other.multi_queue) == (False, None, False)


@pytest.mark.parametrize(
    ("flags", "carrier", "attached"),
    [(0, b"\0", False), (0x10000, b"\0", True), (0, b"\1", True), (1, b"", False)],
)
def test_a_link_is_attached_where_it_has_a_carrier(flags: int, carrier: bytes, attached: bool) -> None:
    assert rtnetlink.parse_link(body_of(7, flags, attribute(33, carrier))).attached is attached


def neighbour_body(family: int, state: int, *pairs: bytes) -> bytes:
    return struct.pack("=BxxxiHBB", family, 7, state, 0, 0) + b"".join(pairs)


NEIGHBOURS: dict[str, tuple[bytes, Neighbour]] = {
    "heard in a bridge": (
        neighbour_body(7, 2, attribute(2, bytes.fromhex("02119baf0000")), attribute(9, u32(3))),
        Neighbour(7, 3, MAC, None, permanent=False),
    ),
    "a port's own": (
        neighbour_body(7, 0x80, attribute(2, bytes.fromhex("02119baf0000")), attribute(9, u32(3))),
        Neighbour(7, 3, MAC, None, permanent=True),
    ),
    "beyond a VXLAN": (
        neighbour_body(7, 2, attribute(1, bytes([192, 0, 2, 1])), attribute(2, bytes(6))),
        Neighbour(7, 0, "00:00:00:00:00:00", None, permanent=False),
    ),
    "ARP": (
        neighbour_body(2, 2, attribute(1, bytes([192, 0, 2, 5])), attribute(2, bytes.fromhex("02119baf0000"))),
        Neighbour(7, 0, MAC, "192.0.2.5", permanent=False),
    ),
    "NDP": (
        neighbour_body(
            10, 4, attribute(1, ipaddress.ip_address("2001:db8::5").packed), attribute(2, b"\2" * 6)
        ),
        Neighbour(7, 0, "02:02:02:02:02:02", "2001:db8::5", permanent=False),
    ),
    "failed": (
        neighbour_body(
            2, 0x20, attribute(1, bytes([192, 0, 2, 5])), attribute(2, bytes.fromhex("02119baf0000"))
        ),
        Neighbour(7, 0, "", "192.0.2.5", permanent=False),
    ),
    "nothing told": (neighbour_body(2, 0), Neighbour(7, 0, "", None, permanent=False)),
}


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_a_neighbour_is_read(what: str) -> None:
    body, neighbour = NEIGHBOURS[what]
    assert rtnetlink.parse_neighbour(body) == neighbour


HOSTILE_ATTRIBUTES = st.lists(
    st.tuples(
        st.sampled_from([1, 2, 3, 5, 9, 10, 18, 20, 27, 33, 52, 53]) | KINDS,
        st.binary(max_size=20)
        | st.builds(packed, ATTRIBUTES)
        | st.builds(lambda data: attribute(1, b"tun\0") + nested(2, data), st.binary(max_size=12)),
    ),
    max_size=6,
).map(packed)


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16), HOSTILE_ATTRIBUTES | st.binary(max_size=80))
def test_whatever_stands_behind_its_head_a_link_is_read(head: bytes, rest: bytes) -> None:
    link = rtnetlink.parse_link(head + rest)
    assert os.fsencode(link.name) in rest
    assert link.kind.isprintable() or link.kind
    assert not link.tap or link.kind == "tun"


@settings(deadline=None)
@given(st.integers(0, len(SOME_BODY)))
def test_a_link_that_is_cut_off_is_read_or_refused(size: int) -> None:
    if size < 16:
        with pytest.raises(struct.error):
            rtnetlink.parse_link(SOME_BODY[:size])
    else:
        assert rtnetlink.parse_link(SOME_BODY[:size]).index == 7


@settings(deadline=None)
@given(st.binary(max_size=14), HOSTILE_ATTRIBUTES | st.binary(max_size=80))
def test_any_bytes_are_a_neighbour_or_a_plain_error(head: bytes, rest: bytes) -> None:
    # ValueError: an address that is neither IPv4's nor IPv6's; struct.error: too short to be one.
    with contextlib.suppress(ValueError, struct.error):
        found = rtnetlink.parse_neighbour(head + rest)
        assert found.ip is None or str(ipaddress.ip_address(found.ip)) == found.ip


# The protocol, with a kernel that answers as it is told


def message(kind: int, sequence: int, body: bytes = b"", flags: int = 0) -> bytes:
    padded = body + b"\0" * (-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + padded


def ack(sequence: int, error: int = 0, words: str = "") -> bytes:
    body = struct.pack("=i", -error) + bytes(16)
    if words:
        return message(2, sequence, body + attribute(1, words.encode() + b"\0"), 0x200)
    return message(2, sequence, body)


class Answers:
    """A socket whose other end says what was written down, a datagram a time."""

    def __init__(self, *datagrams: bytes) -> None:
        self.datagrams = list(datagrams)
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)

    def recv_into(self, buffer: bytearray) -> int:
        assert self.datagrams, "it waits for what never comes"
        datagram = self.datagrams.pop(0)
        buffer[: len(datagram)] = datagram
        return len(datagram)


def answered(*datagrams: bytes) -> tuple[Netlink, Answers]:
    kernel, answers = Netlink(), Answers(*datagrams)
    kernel._socket.close()
    kernel._socket = answers  # type: ignore[assignment]
    return kernel, answers


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(bytes(64))
@example(struct.pack("=IHHII", 15, 0, 0, 0, 0) * 4)
@example(struct.pack("=IHHII", 0xFFFFFFFF, 0, 0, 0, 0) * 4)
def test_any_datagram_is_messages_that_come_to_an_end(data: bytes) -> None:
    kernel, _ = answered(data)
    found = list(itertools.islice(kernel._messages(), 100))
    assert len(found) <= len(data) // 16
    assert all(body in data for *_, body in found)


def test_requests_go_out_together_numbered_and_to_be_acknowledged() -> None:
    kernel, answers = answered(ack(1) + ack(2), ack(3))
    kernel.do([rtnetlink.deletion(7), rtnetlink.deletion(8)])
    kernel.do([rtnetlink.new_bridge("br0", MAC)])
    first, second = answers.sent
    assert len(first) == 2 * 32
    heads = [struct.unpack_from("=IHHII", data) for data in (first, first[32:], second)]
    assert [head[1:] for head in heads] == [(17, 0x5, 1, 0), (17, 0x5, 2, 0), (16, 0x605, 3, 0)]
    assert [head[0] for head in heads] == [32, 32, len(second)]


def test_many_requests_go_out_in_portions() -> None:
    portion = rtnetlink._TOGETHER
    kernel, answers = answered(
        *(b"".join(ack(low + number) for number in range(portion)) for low in (1, portion + 1)),
        ack(2 * portion + 1),
    )
    kernel.do(rtnetlink.deletion(index) for index in range(2 * portion + 1))
    assert [len(data) // 32 for data in answers.sent] == [portion, portion, 1]
    kernel.do([])
    assert len(answers.sent) == 3


def test_the_first_refusal_is_raised_when_all_have_been_answered() -> None:
    kernel, answers = answered(ack(1), ack(3, errno.EPERM) + ack(2, errno.EEXIST, "Taken by\nsomebody"), ack(4))
    with pytest.raises(Refused) as caught:
        kernel.do([rtnetlink.deletion(7)] * 3)
    assert caught.value.errno == errno.EEXIST
    assert caught.value.strerror == "File exists (Taken by\nsomebody)"
    assert answers.datagrams == [ack(4)]
    kernel.do([rtnetlink.deletion(7)])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ack(1, errno.EBUSY), "Device or resource busy"),
        (ack(1, errno.EBUSY, "\u00fcber"), "Device or resource busy (\u00fcber)"),
        (message(2, 1, struct.pack("=i", -errno.EBUSY), 0x200), "Device or resource busy"),
        (message(2, 1, struct.pack("=i", -errno.EBUSY) + bytes(18), 0x200), "Device or resource busy"),
        (message(2, 1, struct.pack("=i", -errno.EBUSY) + b"\xff" * 40, 0x200), "Device or resource busy"),
        (
            message(2, 1, struct.pack("=i", -errno.EBUSY) + bytes(16) + attribute(1, b"\xff\xfe"), 0x200),
            "Device or resource busy (\ufffd\ufffd)",
        ),
    ],
)
def test_a_refusal_has_the_kernel_s_words_where_it_gave_any(answer: bytes, words: str) -> None:
    kernel, _ = answered(answer)
    with pytest.raises(Refused) as caught:
        kernel.do([rtnetlink.deletion(7)])
    assert (caught.value.errno, caught.value.strerror) == (errno.EBUSY, words)


def test_a_link_is_asked_for_and_none_is_no_error() -> None:
    kernel, answers = answered(
        message(16, 1, SOME_BODY), ack(2, errno.ENODEV), ack(3, errno.EPERM), ack(4, errno.ENODEV)
    )
    assert kernel.link("newvm0e0") == SOME_LINK
    assert kernel.link("x") is None
    with pytest.raises(Refused):
        kernel.link_at(7)
    with pytest.raises(OSError, match="x vanished") as caught:
        kernel.present("x")
    assert caught.value.errno == errno.ENODEV
    assert kernel.link_at(0) is None
    assert len(answers.sent) == 4
    assert b"\x0d\0\3\0newvm0e0\0" in answers.sent[0]
    assert struct.unpack_from("=i", answers.sent[2], 20) == (7,)


def test_many_links_are_asked_for_in_portions_and_each_is_told_by_the_name_asked_for() -> None:
    """The kernel answers one by one, in a datagram each; some are not there."""
    last = rtnetlink._TOGETHER + 3
    kernel, answers = answered(
        *(
            ack(number, errno.ENODEV) if number % 5 == 0 else message(16, number, body_of(number))
            for number in range(1, last + 1)
        )
    )
    found = kernel.named([*(f"x{number}" for number in range(1, last + 1)), "x1", "x5"])
    expected = {f"x{number}": number for number in range(1, last + 1) if number % 5}
    assert {name: link.index for name, link in found.items()} == expected
    assert len(answers.sent) == 2
    assert kernel.named([]) == {}
    assert answers.datagrams == []


LINKS = [body_of(index, 0, attribute(3, f"x{index}".encode())) for index in range(1, 5)]
DONE = 3


def part(sequence: int, *bodies: bytes, flags: int = 2) -> bytes:
    return b"".join(message(16, sequence, body, flags) for body in bodies)


def test_a_dump_may_come_in_several_datagrams() -> None:
    kernel, answers = answered(
        part(1, *LINKS[:2]), part(1, LINKS[2]), part(1, LINKS[3]) + message(DONE, 1, bytes(4))
    )
    assert [link.index for link in kernel.links()] == [1, 2, 3, 4]
    (sent,) = answers.sent
    assert struct.unpack_from("=IHHII", sent) == (len(sent), 18, 0x301, 1, 0)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_dump_that_was_interrupted_is_asked_for_anew(place: int) -> None:
    flags = [0x12 if index == place else 2 for index in range(3)]
    kernel, answers = answered(
        *(
            part(1, LINKS[0], flags=flags[0]),
            part(1, LINKS[1], flags=flags[1]),
            message(DONE, 1, bytes(4), flags[2]),
        ),
        *(part(2, *LINKS), message(DONE, 2, bytes(4))),
    )
    assert [link.index for link in kernel.links()] == [1, 2, 3, 4]
    assert len(answers.sent) == 2


def test_a_dump_that_is_always_interrupted_is_given_up() -> None:
    kernel, answers = answered(
        *(part(number, flags=2) + message(DONE, number, b"", 0x12) for number in range(1, 21))
    )
    with pytest.raises(OSError, match="change faster than they can be read") as caught:
        kernel.links()
    assert caught.value.errno == errno.EAGAIN
    assert len(answers.sent) == 20
    assert answers.datagrams == []


def test_a_dump_that_is_refused_is_an_error() -> None:
    kernel, _ = answered(ack(1, errno.EPERM, "Not you"))
    with pytest.raises(Refused, match="Not you"):
        kernel.addressed()


def test_what_was_left_of_an_earlier_answer_is_not_taken_for_this_one() -> None:
    kernel, _ = answered(
        ack(1, errno.EPERM), part(1, LINKS[0]) + message(DONE, 1), part(2, LINKS[1]) + message(DONE, 2)
    )
    with pytest.raises(Refused):
        kernel.links()
    assert [link.index for link in kernel.links()] == [2]
    kernel._socket.datagrams += [ack(1) + ack(2, errno.EPERM), ack(3)]  # type: ignore[attr-defined]
    kernel.do([rtnetlink.deletion(1)])


# The real kernel

INSIDE = "VMESS_TEST_INSIDE"


@functools.cache
def obstacle() -> str:
    """Why no network namespace can be had; empty where one can."""
    if os.geteuid() != 0:
        return "only root may make a network namespace"
    made = subprocess.run(
        ["unshare", "--net", "ip", "link"], capture_output=True, text=True, check=False, timeout=20
    )
    return "" if made.returncode == 0 else f"no network namespace can be made here: {made.stderr.strip()}"


def in_namespace(check: Callable[[], None]) -> Callable[[], None]:
    """Make a test of a function that is called in a network namespace, in a process of its own."""

    @functools.wraps(check)
    def run() -> None:
        if os.environ.get(INSIDE) == check.__name__:
            check()
            return
        if obstacle():
            pytest.skip(obstacle())
        code = f"import test_netlink; test_netlink.{check.__name__}()"
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONPATH": ":".join(map(str, (TESTS / "network", SUPPORT, TESTS, TESTS.parent))),
                INSIDE: check.__name__,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def ip(*lines: str) -> None:
    """Do what lines of ip(8) say, without the word `ip`."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True, timeout=20)


def knows(line: str) -> bool:
    """Try a line of ip(8) that this kernel may not have, and tell whether it has."""
    return subprocess.run(["ip", *line.split()], capture_output=True, check=False, timeout=20).returncode == 0


def shown(name: str) -> dict[str, Any]:
    """Return what ip(8) knows of a link."""
    done = subprocess.run(["ip", "-d", "-j", "link", "show", name], capture_output=True, check=True, timeout=20)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found[0]


def there(kernel: Netlink, name: str) -> Link:
    link = kernel.link(name)
    assert link is not None, name
    return link


def indices(kernel: Netlink) -> dict[str, int]:
    return {link.name: link.index for link in kernel.links()}


@contextlib.contextmanager
def refused(number: int, words: str = "") -> Iterator[None]:
    try:
        yield
    except Refused as error:
        assert (error.errno, words in str(error.strerror)) == (number, True), error  # noqa: PT017 -- no pytest here
    else:
        raise AssertionError("it was not refused")


@in_namespace
def test_a_bridge_is_made_as_asked_for() -> None:
    with Netlink() as kernel:
        assert kernel.link("bridge1") is None
        kernel.do([rtnetlink.new_bridge("bridge1", MAC)])
        made = there(kernel, "bridge1")
        assert (made.kind, made.mac, made.master, made.up, made.alias) == ("bridge", MAC, 0, False, "")
        assert (made.group, made.tap, made.owner, made.loopback) == (0, False, None, False)
        details = shown("bridge1")["linkinfo"]["info_data"]
        assert (details["forward_delay"], details["stp_state"]) == (0, 0)
        kernel.do([rtnetlink.change(made.index, up=True, alias="vmess, \u00fc")])
        now = there(kernel, "bridge1")
        assert (now.up, now.alias, now.index) == (True, "vmess, \u00fc", made.index)
        assert kernel.link_at(made.index) == now
        assert kernel.link_at(made.index + 1000) is None
        time.sleep(0.05)
        assert kernel.addressed() == set(), "it gave itself no IPv6 address"
        kernel.do([rtnetlink.change(made.index, up=False, alias="", mac="02:00:00:00:00:07", group=9)])
        last = there(kernel, "bridge1")
        assert (last.up, last.alias, last.mac, last.group) == (False, "", "02:00:00:00:00:07", 9)
        kernel.do([rtnetlink.deletion(made.index)])
        assert kernel.link("bridge1") is None
        assert kernel.link_at(made.index) is None


@in_namespace
def test_links_of_each_kind_are_made_and_read_back() -> None:
    with Netlink() as kernel:
        kernel.do([rtnetlink.new_bridge("bridge1", MAC), rtnetlink.new_veth("vethA0", "vethB0")])
        bridge, one, other = (there(kernel, name) for name in ("bridge1", "vethA0", "vethB0"))
        assert (one.kind, other.kind) == ("veth", "veth")
        assert (one.parent, other.parent) == (other.index, one.index)
        kernel.do(
            [rtnetlink.change(one.index, up=True, master=bridge.index), rtnetlink.change(other.index, up=True)]
        )
        assert there(kernel, "vethA0").master == bridge.index
        assert there(kernel, "vethA0").attached
        kernel.do([rtnetlink.change(one.index, master=0)])
        assert there(kernel, "vethA0").master == 0
        if knows("link add link vethB0 name vethB0.1 type vlan id 1"):
            kernel.do([rtnetlink.new_vlan("vethA0.100", one.index, 100)])
            vlan = there(kernel, "vethA0.100")
            assert (vlan.kind, vlan.parent) == ("vlan", one.index)
            assert shown("vethA0.100")["linkinfo"]["info_data"]["id"] == 100
        name = os.fsdecode(b"br\xff\xc3")
        kernel.do([rtnetlink.new_bridge(name, MAC)])
        assert there(kernel, name).name == name
        assert name in indices(kernel)


@in_namespace
def test_a_vxlan_learns_and_has_its_port() -> None:
    if not knows("link add vxlan1 type vxlan id 1 dstport 4790"):
        return
    with Netlink() as kernel:
        kernel.do([rtnetlink.new_vxlan("vxlan7", 7, 4789)])
        assert there(kernel, "vxlan7").kind == "vxlan"
        details = shown("vxlan7")["linkinfo"]["info_data"]
        assert (details["id"], details["port"], details["learning"]) == (7, 4789, True)
        with refused(errno.EEXIST):
            kernel.do([rtnetlink.new_vxlan("vxlan8", 7, 4789)])


@in_namespace
def test_a_link_answers_to_its_other_names() -> None:
    with Netlink() as kernel:
        kernel.do([rtnetlink.new_bridge("bridge1", MAC)])
        ip("link property add dev bridge1 altname uplink altname the-uplink-of-the-whole-laboratory")
        link = there(kernel, "uplink")
        assert link.name == "bridge1"
        assert kernel.link("bridge1") == link
        assert link in kernel.links()
        with refused(errno.EEXIST):
            kernel.do([rtnetlink.new_bridge("uplink", MAC)])


@in_namespace
def test_a_tap_is_known_with_its_owner() -> None:
    if not os.path.exists(taps.DEVICE):
        return
    ip(
        "tuntap add x1 mode tap user 1000",
        "tuntap add x2 mode tap",
        "tuntap add x3 mode tap user 0 multi_queue",
        "tuntap add x4 mode tun user 1000",
    )
    with Netlink() as kernel:
        found = {link.name: (link.tap, link.owner, link.multi_queue) for link in kernel.links()}
        del found["lo"]
        assert found == {
            "x1": (True, 1000, False),
            "x2": (True, None, False),
            "x3": (True, 0, True),
            "x4": (False, 1000, False),
        }
        with taps.made(4711) as name:
            index = there(kernel, name).index
            kernel.do([rtnetlink.change(index, alias="vmess"), rtnetlink.change(index, name="newvm0e0")])
        made = there(kernel, "newvm0e0")
        assert (made.index, made.alias) == (index, "vmess")
        assert (made.tap, made.owner, made.attached, made.multi_queue) == (True, 4711, False, False)
        with refused(errno.EEXIST), taps.made(4712) as name:
            kernel.do([rtnetlink.change(there(kernel, name).index, name="newvm0e0")])
        assert there(kernel, "newvm0e0").owner == 4711, "somebody else's TAP was taken"
        assert len(kernel.links()) == 6, "what got no name is gone"
        taps.claim("x2", 1000)
        assert there(kernel, "x2").owner == 1000
        kernel.do([rtnetlink.change(made.index, up=True)])
        with taps._attached("newvm0e0"):
            assert there(kernel, "newvm0e0").attached
        assert not there(kernel, "newvm0e0").attached


@in_namespace
def test_a_dump_of_300_links_tells_what_each_of_them_tells_alone() -> None:
    with Netlink() as kernel:
        kernel.do([rtnetlink.new_bridge("bridge1", MAC)])
        kernel.do(rtnetlink.new_veth(f"vethA{number}", f"vethB{number}") for number in range(150))
        bridge = there(kernel, "bridge1").index
        kernel.do(
            rtnetlink.change(index, up=True, master=bridge, alias=name)
            for name, index in indices(kernel).items()
            if name.startswith("vethB")
        )
        links = kernel.links()
        assert len(links) == 302
        assert [kernel.link_at(link.index) for link in links] == links
        assert [kernel.link(link.name) for link in links] == links
        assert len([link for link in links if link.master == bridge and link.alias == link.name]) == 150


@in_namespace
def test_several_links_are_deleted_in_one_step_and_no_others() -> None:
    with Netlink() as kernel:
        kernel.do(rtnetlink.new_bridge(f"br{number}", MAC) for number in range(100))
        kernel.do([rtnetlink.new_veth("vethA0", "vethB0"), rtnetlink.new_veth("vethA1", "vethB1")])
        ip("link set br99 group 77", "link set vethA1 group 77")
        before = indices(kernel)
        kernel.do([rtnetlink.change(before["vethA0"], master=before["br0"])])
        kernel.delete([])
        assert indices(kernel) == before
        kernel.delete([there(kernel, "br98")])
        del before["br98"]
        assert indices(kernel) == before
        going = [f"br{number}" for number in range(0, 98, 2)] + ["vethA0", "vethB0"]
        kernel.delete([there(kernel, name) for name in going])
        assert indices(kernel) == {name: index for name, index in before.items() if name not in going}
        assert {link.name: link.group for link in kernel.links() if link.group} == {"br99": 77, "vethA1": 77}
        kernel.delete([there(kernel, "br99"), there(kernel, "vethB1")])
        left = set(indices(kernel))
        assert not left & {"br99", "vethA1", "vethB1"}, "the other end of a pair goes with it"
        assert {"lo", "br1", "br97"} <= left


@in_namespace
def test_where_one_link_is_gone_already_the_others_are_deleted_and_no_more() -> None:
    with Netlink() as kernel:
        kernel.do(rtnetlink.new_bridge(f"br{number}", MAC) for number in range(4))
        gone, *rest = (there(kernel, f"br{number}") for number in range(3))
        kernel.do([rtnetlink.deletion(gone.index)])
        kernel.delete([gone, *rest])
        assert {"lo", "br3"} <= set(indices(kernel))
        assert set(indices(kernel)) - {"lo", "br3"} <= {
            "tunl0",
            "sit0",
            "ip6tnl0",
            "gre0",
            "gretap0",
            "erspan0",
        }


@in_namespace
def test_a_refusal_carries_its_number_and_the_kernel_s_words() -> None:
    with Netlink() as kernel:
        kernel.do([rtnetlink.new_bridge("br0", MAC), rtnetlink.new_bridge("br1", MAC)])
        one, other = there(kernel, "br0"), there(kernel, "br1")
        with refused(errno.EEXIST, "File exists"):
            kernel.do([rtnetlink.new_bridge("br0", MAC)])
        with refused(errno.ENODEV, "No such device"):
            kernel.do([rtnetlink.change(one.index + 1000, up=True)])
        with refused(errno.ENODEV):
            kernel.do([rtnetlink.deletion(one.index + 1000)])
        with refused(errno.ELOOP, "Can not enslave a bridge to a bridge"):
            kernel.do([rtnetlink.change(one.index, master=other.index)])
        with refused(errno.EADDRNOTAVAIL):
            kernel.do([rtnetlink.new_bridge("br2", "01:00:00:00:00:00")])
        with refused(errno.EOPNOTSUPP):
            kernel.do([rtnetlink.deletion(there(kernel, "lo").index)])
        for name in ("x" * 16, "a/b", "", "."):
            try:
                kernel.do([rtnetlink.new_bridge(name, MAC)])
            except Refused:
                continue
            assert name == "", "the kernel finds a name for itself"
        with refused(errno.EEXIST):  # what was sent together with it is carried out all the same
            kernel.do(
                [
                    rtnetlink.new_bridge("a", MAC),
                    rtnetlink.new_bridge("br0", MAC),
                    rtnetlink.new_bridge("b", MAC),
                ]
            )
        assert {"a", "b"} <= set(indices(kernel))
        assert there(kernel, "br0") == one


@in_namespace
def test_who_may_not_is_refused() -> None:
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with Netlink() as kernel:
                assert there(kernel, "lo").loopback, "whoever may look"
                with refused(errno.EPERM):
                    kernel.do([rtnetlink.new_bridge("br0", MAC)])
                status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@in_namespace
def test_what_the_host_has_heard_is_read() -> None:
    with Netlink() as kernel:
        kernel.do(
            [rtnetlink.new_bridge("bridge1", "02:00:00:00:00:01"), rtnetlink.new_veth("vethA0", "vethB0")]
        )
        bridge, port, end = (there(kernel, name) for name in ("bridge1", "vethA0", "vethB0"))
        kernel.do(
            [
                *(rtnetlink.quiet(link.index) for link in (bridge, port, end)),
                rtnetlink.change(bridge.index, up=True),
                rtnetlink.change(end.index, up=True),
            ]
        )
        kernel.do([rtnetlink.change(port.index, up=True, master=bridge.index)])
        assert kernel.addressed() == set()
        ip("address add 192.0.2.1/24 dev bridge1", "address add 2001:db8::1/64 dev bridge1 nodad")
        assert kernel.addressed() == {bridge.index}
        ip(
            f"neighbour add 192.0.2.5 lladdr {MAC} dev bridge1",
            f"neighbour add 2001:db8::5 lladdr {MAC} dev bridge1 nud reachable",
        )
        known = {(entry.ip, entry.mac, entry.index, entry.permanent) for entry in kernel.neighbours()}
        assert ("192.0.2.5", MAC, bridge.index, True) in known
        assert ("2001:db8::5", MAC, bridge.index, False) in known
        frame = b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) + b"\x88\xb5" + bytes(46)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("vethB0", 0))
            sender.send(frame)
        deadline = time.monotonic() + 5
        while Neighbour(port.index, bridge.index, MAC, None, permanent=False) not in kernel.forwarding():
            assert time.monotonic() < deadline, kernel.forwarding()
            time.sleep(0.01)
        own = [entry for entry in kernel.forwarding() if entry.mac == port.mac and entry.index == port.index]
        assert own
        assert all(entry.permanent for entry in own)


CHURN = """
import time
from vmessd.network import rtnetlink
with rtnetlink.Netlink() as kernel:
    print("ready", flush=True)
    for number in range(100_000):
        kernel.do([rtnetlink.new_bridge(f"churn{number % 10}", "02:00:00:00:00:01")])
        time.sleep(0.02)
        kernel.delete([kernel.link(f"churn{number % 10}")])
"""


@in_namespace
def test_while_others_change_links_a_dump_is_still_whole() -> None:
    """For two seconds; what was there all the time is told once each time, what comes and goes at most once."""
    with Netlink() as kernel:
        # With as many bridges, the end of the namespace has the kernel's one lock on links for 5 s.
        kernel.do(rtnetlink.new_veth(f"vethA{number}", f"vethB{number}") for number in range(150))
        steady = indices(kernel)
        interrupted = 0
        messages = kernel._messages

        def counted() -> Iterator[tuple[int, int, int, bytes]]:
            nonlocal interrupted
            for found in messages():
                interrupted += bool(found[1] & 0x10)
                yield found

        kernel._messages = counted  # type: ignore[method-assign]
        with subprocess.Popen([sys.executable, "-c", CHURN], stdout=subprocess.PIPE, cwd=TESTS.parent) as churn:
            try:
                assert churn.stdout is not None
                assert churn.stdout.readline() == b"ready\n"
                end = time.monotonic() + 2
                rounds = 0
                while time.monotonic() < end:
                    found = [link.name for link in kernel.links()]
                    assert len(set(found)) == len(found)
                    assert steady.keys() <= set(found)
                    assert all(name.startswith("churn") for name in set(found) - steady.keys())
                    rounds += 1
            finally:
                churn.kill()
        assert rounds > 10
        assert interrupted, "nothing was interrupted, so this showed nothing"
