"""rtnetlink: what the real kernel makes of each request, what is read of its replies, and what that costs.

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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import forkserver
import pytest
from daemons import TESTS, UNIT, Namespace, WiredDaemon, need_wires
from hypothesis import example, given
from hypothesis import strategies as st

from vmessd.core.wires import Wire
from vmessd.network import netlink_replies, rtnetlink, taps
from vmessd.network.fdb_events import FDBEvents
from vmessd.network.links import Network
from vmessd.network.netlink_replies import Link, Neighbour, attributes
from vmessd.network.netlink_requests import (
    IPV6_MTU_MIN,
    Request,
    baptism,
    change,
    deletion,
    new_bridge,
    new_veth,
    new_vlan,
    new_vxlan,
    set_alias,
    silence,
    without_host_traffic,
    without_link_local,
)
from vmessd.network.policy import Access
from vmessd.network.rtnetlink import Netlink, Refused

MakeWired = Callable[..., WiredDaemon]
MAC = "02:11:9b:af:00:00"


# What is read of a reply, whatever it is


@given(st.binary(max_size=200), st.integers(0, 20))
@example(b"\0\0\0\0" * 4, 0)
@example(b"\3\0\1\0" * 4, 0)
@example(b"\xff\xff\xff\xff\xff", 0)
def test_any_bytes_are_attributes_that_come_to_an_end(data: bytes, offset: int) -> None:
    found = list(itertools.islice(attributes(data, offset), 100))
    assert len(found) <= len(data) // 4
    assert all(kind < 0x4000 and payload in data for kind, payload in found)


def packed(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


ATTRIBUTES = st.lists(
    st.builds(
        packed,
        st.sampled_from([1, 2, 3, 5, 9, 10, 18, 20, 27, 33, 52, 53]) | st.integers(0, 0x3FFF),
        st.binary(max_size=20)
        | st.builds(lambda data: packed(1, b"tun\0") + packed(2, data), st.binary(max_size=12)),
    ),
    max_size=6,
).map(b"".join)


@given(st.binary(min_size=16, max_size=16), ATTRIBUTES | st.binary(max_size=80))
def test_whatever_stands_behind_its_head_a_link_is_read(head: bytes, rest: bytes) -> None:
    link = netlink_replies.parse_link(head + rest)
    assert link.index == struct.unpack_from("=i", head, 4)[0]
    assert os.fsencode(link.name) in rest
    assert os.fsencode(link.alias) in rest
    assert bytes.fromhex(link.mac.replace(":", "")) in rest
    assert "\ufffd" in link.kind or link.kind.encode() in rest
    assert not (link.tap or link.multi_queue or link.owner is not None) or link.kind == "tun"


@given(st.binary(max_size=14), ATTRIBUTES | st.binary(max_size=80))
def test_any_bytes_are_a_neighbour_or_a_plain_error(head: bytes, rest: bytes) -> None:
    # ValueError: an address that is neither IPv4's nor IPv6's; struct.error: too short to be one.
    try:
        found = netlink_replies.parse_neighbour(head + rest)
    except (ValueError, struct.error):
        return
    assert found.ip is None or ipaddress.ip_address(found.ip).packed in head + rest
    assert bytes.fromhex(found.mac.replace(":", "")) in head + rest


@given(st.binary(min_size=20, max_size=20), ATTRIBUTES | st.binary(max_size=120))
def test_any_bytes_are_a_redirection_or_none(head: bytes, rest: bytes) -> None:
    assert netlink_replies.parse_redirection(head + rest) is None or packed(1, b"u32\0") in rest


@pytest.mark.parametrize(
    ("filter_kind", "action", "effect", "target"),
    [
        (b"u32\0", b"mirred\0", 1, 7),
        (b"u32\0", b"mirred\0", 2, None),
        (b"bpf\0", b"mirred\0", 1, None),
        (b"u32\0", b"gact\0", 1, None),
    ],
)
def test_a_redirection_is_one_action_of_a_u32_filter(
    filter_kind: bytes, action: bytes, effect: int, target: int | None
) -> None:
    parameters = packed(2, struct.pack("=20xiI", effect, 7))
    actions = packed(7, packed(1, packed(1, action) + packed(2, parameters)))
    body = bytes(20) + packed(1, filter_kind) + packed(2, actions)
    assert netlink_replies.parse_redirection(body) == target


# What the kernel does at its own time, so that it cannot be asked for


class Answers:
    """A socket whose other end says what was written down, a datagram a time."""

    def __init__(self, *datagrams: bytes) -> None:
        self.datagrams = list(datagrams)
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sent.append(bytes(data))
        return len(data)

    def recv_into(self, buffer: bytearray) -> int:
        assert self.datagrams, "it waits for what never comes"
        datagram = self.datagrams.pop(0)
        buffer[: len(datagram)] = datagram
        return len(datagram)


@contextlib.contextmanager
def answered(*datagrams: bytes) -> Iterator[tuple[Netlink, Answers]]:
    kernel, answers = Netlink(), Answers(*datagrams)
    kernel._used = used = rtnetlink._Socket()
    used._socket = answers  # type: ignore[assignment]
    try:
        yield kernel, answers
    finally:
        used.close()


def message(kind: int, sequence: int, body: bytes = b"", flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def part(sequence: int, *indices: int, flags: int = 2) -> bytes:
    return b"".join(
        message(16, sequence, struct.pack("=BxHiII", 0, 1, index, 0, 0), flags) for index in indices
    )


def done(sequence: int, flags: int = 2, error: int = 0) -> bytes:
    return message(3, sequence, struct.pack("=i", -error), flags)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_dump_that_was_interrupted_is_asked_for_anew(place: int) -> None:
    flags = [0x12 if index == place else 2 for index in range(3)]
    first = (part(1, 1, flags=flags[0]), part(1, 2, flags=flags[1]), done(1, flags[2]))
    with answered(*first, part(2, 1, 2, 3) + done(2)) as (kernel, answers):
        assert [link.index for link in kernel.links()] == [1, 2, 3]
        assert len(answers.sent) == 2


def test_a_dump_that_is_always_interrupted_is_given_up() -> None:
    with answered(*(part(number, 1) + done(number, 0x12) for number in range(1, 21))) as (kernel, answers):
        with pytest.raises(OSError, match="change faster than they can be read") as caught:
            kernel.links()
        assert caught.value.errno == errno.EAGAIN
        assert answers.datagrams == []


@pytest.mark.parametrize(
    "end", [message(2, 1, struct.pack("=i", -errno.EPERM) + bytes(16)), done(1, 2, errno.EPERM)]
)
def test_a_dump_that_is_refused_is_an_error_and_what_is_left_of_it_no_answer_to_the_next(end: bytes) -> None:
    with answered(part(1, 1) + end, part(1, 1) + done(1), part(2, 7) + done(2)) as (kernel, _):
        with pytest.raises(Refused, match="Operation not permitted"):
            kernel.links()
        assert [link.index for link in kernel.links()] == [7]


# What is loaded, and when


def test_pyroute2_is_loaded_at_the_first_word_and_no_sooner() -> None:
    code = """
import sys
from vmessd.api import server
from vmessd.network import links, rtnetlink
def loaded(): return "pyroute2" in sys.modules
with rtnetlink.Netlink() as kernel:
    assert kernel.named([]) == {}
    assert kernel.link_at(0) is None
    assert not rtnetlink.any_link(lambda name: name == "nosuch")
    kernel.delete([])
    assert not loaded()
    assert rtnetlink.any_link(lambda name: name == "lo")
    assert kernel.link("lo").loopback
    assert loaded()
assert rtnetlink.any_link(lambda name: False)  # from now on, the look itself tells
"""
    subprocess.run([sys.executable, "-c", code], cwd=TESTS.parent, check=True, timeout=60 * UNIT)


WATCHED = """
import logging, sys, threading
from importlib.abc import MetaPathFinder
class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "pyroute2":
            logging.info("loaded in the thread %s", threading.current_thread().name)
sys.meta_path.insert(0, Watch())
from vmessd.__main__ import main
raise SystemExit(main())
"""


@pytest.mark.qemu
def test_a_daemon_without_wires_never_loads_pyroute2_and_one_with_wires_in_a_thread(
    make_wired: MakeWired,
) -> None:
    wired = make_wired()
    wired.program = ("-c", WATCHED)
    wired.start()
    wired.make("newvm0")
    wired.done("newvm", "start")
    for verb in ("info", "status", "ifstat", "why"):
        wired.vmess("newvm", verb)
        wired.vmess("--all", verb)
    wired.done("list")
    wired.vmess("top", "--json", "--count", "2")
    wired.done("newvm", "stop", "force", "ifdel", "rm", "--yes")
    assert "loaded" not in wired.log.read_text()
    wired.make("newvm0")
    wired.done("newvm", "ifadd", "1", "lan")
    loads = [line for line in wired.log.read_text().splitlines() if "loaded" in line]
    assert [line.rpartition(" ")[2] for line in loads] == ["blocking"]


# The real kernel


def in_namespace(check: Callable[[], None]) -> Callable[[], None]:
    """Make a test of a function that is called in a network namespace, in a process of its own."""

    @pytest.mark.xdist_group("rtnetlink")  # so that they are forked from one process
    @functools.wraps(check)
    def run() -> None:
        need_wires()
        code = f"import test_rtnetlink; test_rtnetlink.{check.__name__}.__wrapped__()"
        with contextlib.closing(Namespace(loopback=False)) as namespace:
            done = forkserver.ran(
                ["-c"],
                os.environ,
                cwd=TESTS.parent,
                timeout=60 * UNIT,
                namespace=namespace.name,
                program="rtnetlink checks",
                code=code,
            )
        assert done.returncode == 0, done.stderr[-3000:]

    return run


def ip(*lines: str) -> None:
    """Do what lines of ip(8) say, without the word `ip`."""
    subprocess.run(
        ["ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True, check=True, timeout=20 * UNIT
    )


def knows(line: str) -> bool:
    """Try a line of ip(8) that this kernel may not have, and tell whether it has."""
    return (
        subprocess.run(["ip", *line.split()], capture_output=True, check=False, timeout=20 * UNIT).returncode
        == 0
    )


def shown(name: str) -> dict[str, Any]:
    """Return what ip(8) knows of a link."""
    done = subprocess.run(
        ["ip", "-d", "-j", "link", "show", name], capture_output=True, check=True, timeout=20 * UNIT
    )
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
        kernel.do([new_bridge("bridge1", MAC)])
        made = there(kernel, "bridge1")
        assert (made.kind, made.mac, made.master, made.up, made.alias) == ("bridge", MAC, 0, False, "")
        assert (made.group, made.tap, made.owner, made.loopback) == (0, False, None, False)
        details = shown("bridge1")["linkinfo"]["info_data"]
        assert (details["forward_delay"], details["stp_state"]) == (0, 0)
        kernel.do([change(made.index, up=True, alias="vmess, \u00fc")])
        now = there(kernel, "bridge1")
        assert (now.up, now.alias, now.index) == (True, "vmess, \u00fc", made.index)
        assert kernel.link_at(made.index) == now
        assert kernel.link_at(made.index + 1000) is None
        time.sleep(0.05)
        assert kernel.addressed() == set(), "it gave itself no IPv6 address"
        kernel.do([change(made.index, up=False, alias="", mac="02:00:00:00:00:07", group=9)])
        last = there(kernel, "bridge1")
        assert (last.up, last.alias, last.mac, last.group) == (False, "", "02:00:00:00:00:07", 9)
        kernel.do([deletion(made.index)])
        assert kernel.link("bridge1") is None
        assert kernel.link_at(made.index) is None


@in_namespace
def test_links_of_each_kind_are_made_and_read_back() -> None:
    with Netlink() as kernel:
        kernel.do([new_bridge("bridge1", MAC), new_veth("vethA0", "vethB0")])
        bridge, one, other = (there(kernel, name) for name in ("bridge1", "vethA0", "vethB0"))
        assert (one.kind, other.kind) == ("veth", "veth")
        assert (one.parent, other.parent) == (other.index, one.index)
        kernel.do([change(one.index, up=True, master=bridge.index), change(other.index, up=True)])
        assert there(kernel, "vethA0").master == bridge.index
        assert there(kernel, "vethA0").attached
        kernel.do([change(one.index, master=0)])
        assert there(kernel, "vethA0").master == 0
        if knows("link add link vethB0 name vethB0.1 type vlan id 1"):
            kernel.do([new_vlan("vethA0.100", one.index, 100)])
            vlan = there(kernel, "vethA0.100")
            assert (vlan.kind, vlan.parent) == ("vlan", one.index)
            assert shown("vethA0.100")["linkinfo"]["info_data"]["id"] == 100
        name = os.fsdecode(b"br\xff\xc3")
        kernel.do([new_bridge(name, MAC)])
        assert there(kernel, name).name == name
        assert name in indices(kernel)


@in_namespace
def test_a_vxlan_learns_and_has_its_port() -> None:
    if not knows("link add vxlan1 type vxlan id 1 dstport 4790"):
        return
    with Netlink() as kernel:
        kernel.do([new_vxlan("vxlan7", 7, 4789)])
        assert there(kernel, "vxlan7").kind == "vxlan"
        details = shown("vxlan7")["linkinfo"]["info_data"]
        assert (details["id"], details["port"], details["learning"]) == (7, 4789, True)
        with refused(errno.EEXIST):
            kernel.do([new_vxlan("vxlan8", 7, 4789)])


@in_namespace
def test_a_link_answers_to_its_other_names() -> None:
    with Netlink() as kernel:
        kernel.do([new_bridge("bridge1", MAC)])
        ip("link property add dev bridge1 altname uplink altname the-uplink-of-the-whole-laboratory")
        link = there(kernel, "uplink")
        assert link.name == "bridge1"
        assert kernel.link("bridge1") == link
        assert link in kernel.links()
        with refused(errno.EEXIST):
            kernel.do([new_bridge("uplink", MAC)])


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
            kernel.do([change(index, alias="vmess"), change(index, name="newvm0e0")])
        made = there(kernel, "newvm0e0")
        assert (made.index, made.alias) == (index, "vmess")
        assert (made.tap, made.owner, made.attached, made.multi_queue) == (True, 4711, False, False)
        with refused(errno.EEXIST), taps.made(4712) as name:
            kernel.do([change(there(kernel, name).index, name="newvm0e0")])
        assert there(kernel, "newvm0e0").owner == 4711, "somebody else's TAP was taken"
        assert len(kernel.links()) == 6, "what got no name is gone"
        taps.claim("x2", 1000)
        assert there(kernel, "x2").owner == 1000
        kernel.do([change(made.index, up=True)])
        with taps._attached("newvm0e0"):
            assert there(kernel, "newvm0e0").attached
        assert not there(kernel, "newvm0e0").attached


@in_namespace
def test_a_dump_of_300_links_tells_what_each_of_them_tells_alone() -> None:
    with Netlink() as kernel:
        kernel.do([new_bridge("bridge1", MAC)])
        kernel.do(new_veth(f"vethA{number}", f"vethB{number}") for number in range(150))
        bridge = there(kernel, "bridge1").index
        kernel.do(
            change(index, up=True, master=bridge, alias=name)
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
        kernel.do(new_bridge(f"br{number}", MAC) for number in range(100))
        kernel.do([new_veth("vethA0", "vethB0"), new_veth("vethA1", "vethB1")])
        ip("link set br99 group 77", "link set vethA1 group 77")
        before = indices(kernel)
        kernel.do([change(before["vethA0"], master=before["br0"])])
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
        kernel.do(new_bridge(f"br{number}", MAC) for number in range(4))
        gone, *rest = (there(kernel, f"br{number}") for number in range(3))
        kernel.do([deletion(gone.index)])
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
        kernel.do([new_bridge("br0", MAC), new_bridge("br1", MAC)])
        one, other = there(kernel, "br0"), there(kernel, "br1")
        with refused(errno.EEXIST, "File exists"):
            kernel.do([new_bridge("br0", MAC)])
        with refused(errno.ENODEV, "No such device"):
            kernel.do([change(one.index + 1000, up=True)])
        with refused(errno.ENODEV):
            kernel.do([deletion(one.index + 1000)])
        with refused(errno.ELOOP, "Can not enslave a bridge to a bridge"):
            kernel.do([change(one.index, master=other.index)])
        with refused(errno.EADDRNOTAVAIL):
            kernel.do([new_bridge("br2", "01:00:00:00:00:00")])
        with refused(errno.EOPNOTSUPP):
            kernel.do([deletion(there(kernel, "lo").index)])
        for name in ("x" * 16, "a/b", "", "."):
            try:
                kernel.do([new_bridge(name, MAC)])
            except Refused:
                continue
            assert name == "", "the kernel finds a name for itself"
        with refused(errno.EEXIST):  # what was sent together with it is carried out all the same
            kernel.do(
                [
                    new_bridge("a", MAC),
                    new_bridge("br0", MAC),
                    new_bridge("b", MAC),
                ]
            )
        assert {"a", "b"} <= set(indices(kernel))
        assert there(kernel, "br0") == one


@in_namespace
def test_who_may_not_is_refused() -> None:
    with Netlink() as kernel:  # this imports what the child may not read, perhaps
        assert there(kernel, "lo").loopback
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
                    kernel.do([new_bridge("br0", MAC)])
                status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


@in_namespace
def test_what_the_host_has_heard_is_read() -> None:
    with Netlink() as kernel:
        kernel.do([new_bridge("bridge1", "02:00:00:00:00:01"), new_veth("vethA0", "vethB0")])
        bridge, port, end = (there(kernel, name) for name in ("bridge1", "vethA0", "vethB0"))
        kernel.do(
            [
                *(without_link_local(link.index) for link in (bridge, port, end)),
                change(bridge.index, up=True),
                change(end.index, up=True),
            ]
        )
        kernel.do([change(port.index, up=True, master=bridge.index)])
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
        deadline = time.monotonic() + 5 * UNIT
        while Neighbour(port.index, bridge.index, MAC, None, permanent=False) not in kernel.forwarding():
            assert time.monotonic() < deadline, kernel.forwarding()
            time.sleep(0.01)
        own = [entry for entry in kernel.forwarding() if entry.mac == port.mac and entry.index == port.index]
        assert own
        assert all(entry.permanent for entry in own)


CHURN = """
import time
from vmessd.network.netlink_requests import new_bridge
from vmessd.network.rtnetlink import Netlink
with Netlink() as kernel:
    print("ready", flush=True)
    for number in range(100_000):
        kernel.do([new_bridge(f"churn{number % 10}", "02:00:00:00:00:01")])
        time.sleep(0.02)
        kernel.delete([kernel.link(f"churn{number % 10}")])
"""


@in_namespace
def test_while_others_change_links_a_dump_is_still_whole() -> None:
    """What was there all the time is told once each time, what comes and goes at most once."""
    with Netlink() as kernel:
        # With as many bridges, the end of the namespace has the kernel's one lock on links for 5 s.
        kernel.do(new_veth(f"vethA{number}", f"vethB{number}") for number in range(150))
        steady = indices(kernel)
        interrupted = 0
        used = kernel._kernel()
        read = used.read

        def counted(datagram: bytes) -> Iterator[Any]:
            nonlocal interrupted
            for found in read(datagram):
                interrupted += bool(found["header"]["flags"] & 0x10)
                yield found

        used.read = counted  # type: ignore[method-assign]
        with subprocess.Popen([sys.executable, "-c", CHURN], stdout=subprocess.PIPE, cwd=TESTS.parent) as churn:
            try:
                assert churn.stdout is not None
                assert churn.stdout.readline() == b"ready\n"
                end = time.monotonic() + 30 * UNIT
                rounds = 0
                while not (interrupted and rounds > 10) and time.monotonic() < end:
                    found = [link.name for link in kernel.links()]
                    assert len(set(found)) == len(found)
                    assert steady.keys() <= set(found)
                    assert all(name.startswith("churn") for name in set(found) - steady.keys())
                    rounds += 1
            finally:
                churn.kill()
        assert interrupted, "nothing was interrupted, so this showed nothing"


@in_namespace
def test_what_is_read_of_links_is_what_pyroute2_reads_of_them() -> None:
    from pyroute2 import IPRoute

    with Netlink() as kernel:
        kernel.do([new_bridge("bridge1", MAC), new_veth("vethA0", "vethB0")])
        kernel.do([change(there(kernel, "bridge1").index, up=True, alias="vmess", group=5)])
        kernel.do([change(there(kernel, "vethA0").index, master=there(kernel, "bridge1").index)])
        if os.path.exists(taps.DEVICE):
            ip("tuntap add x1 mode tap user 1000 multi_queue")
        with IPRoute() as other:
            decoded = {link.get("ifname"): link for link in other.link("dump")}
        links = kernel.links()
        assert {link.name for link in links} == decoded.keys()
        for link in links:
            theirs = decoded[link.name]
            assert (link.index, link.mtu, link.group) == (
                theirs["index"],
                theirs.get("mtu"),
                theirs.get("group"),
            )
            assert (link.mac, link.alias) == (theirs.get("address"), theirs.get("ifalias") or "")
            assert (link.master, link.parent) == (theirs.get("master") or 0, theirs.get("link") or 0)
            assert link.kind == (theirs.get(("linkinfo", "kind")) or "")
            assert (link.up, link.multicast) == (bool(theirs["flags"] & 1), bool(theirs["flags"] & 0x1000))
            if link.kind == "tun":
                assert link.tap == (theirs.get(("linkinfo", "data", "tun_type")) == 2)
                assert link.owner == theirs.get(("linkinfo", "data", "tun_owner")) == 1000
                assert link.multi_queue == bool(theirs.get(("linkinfo", "data", "tun_multi_queue")))


def setting(name: str) -> str:
    return Path("/proc/sys/net", name).read_text().strip()


@in_namespace
def test_the_host_has_nothing_to_say_on_a_bridge_that_is_silenced() -> None:
    with Netlink() as kernel:
        kernel.do([new_bridge("bridge1", MAC)])
        ip("link set bridge1 type bridge mcast_snooping 1")
        made = there(kernel, "bridge1")
        kernel.do(silence(made.index))
        conf = [setting(f"ipv4/conf/bridge1/{name}") for name in ("rp_filter", "arp_announce", "arp_ignore")]
        assert conf == ["2", "2", "1"]
        assert there(kernel, "bridge1").mtu == IPV6_MTU_MIN - 1
        assert shown("bridge1")["linkinfo"]["info_data"]["mcast_snooping"] == 0
        assert not os.path.exists("/proc/sys/net/ipv6/conf/bridge1")
        others = ("proxy_arp", "forwarding", "accept_local")
        assert [setting(f"ipv4/conf/bridge1/{name}") for name in others] == ["0", "0", "0"]


@in_namespace
def test_what_is_forgotten_on_a_link_is_that_and_no_more() -> None:
    with Netlink() as kernel:
        kernel.do([new_veth("vethA0", "vethB0")])
        before = there(kernel, "vethA0")
        assert before.multicast
        kernel.do(without_host_traffic(before), tolerate=errno.EAFNOSUPPORT)
        now = there(kernel, "vethA0")
        assert (now.multicast, now.mtu, now.mac, now.up) == (False, before.mtu, before.mac, False)
        if os.path.exists("/proc/sys/net/ipv6"):
            assert setting("ipv6/conf/vethA0/addr_gen_mode") == "1"
            assert setting("ipv6/conf/vethB0/addr_gen_mode") == "0"


@in_namespace
def test_a_link_gets_its_name_with_nothing_to_say_for_the_host() -> None:
    with Netlink() as kernel:
        kernel.do([new_veth("vethA0", "vethB0")])
        ends = [there(kernel, name).index for name in ("vethA0", "vethB0")]
        other = change(ends[1], alias="meanwhile")
        kernel.do(baptism(ends[0], "leaf0e0", "vmess", 65000, other), tolerate=errno.EAFNOSUPPORT)
        now = there(kernel, "leaf0e0")
        assert (now.index, now.alias, now.multicast, now.mtu, now.up) == (ends[0], "vmess", False, 65000, False)
        assert there(kernel, "vethB0").alias == "meanwhile"
        if os.path.exists("/proc/sys/net/ipv6"):
            assert setting("ipv6/conf/leaf0e0/addr_gen_mode") == "1"


@in_namespace
def test_what_each_link_has_of_its_own_is_put_into_a_message_made_for_another() -> None:
    names, macs = ("bridge1", "leaf0", "longername0"), ("02:00:00:00:00:07", MAC, "02:00:00:00:00:09")
    with Netlink() as kernel:
        for name, mac in zip(names, macs, strict=True):
            kernel.do([new_bridge(name, mac), set_alias(name, name)])
        masters = dict(zip(names, map(functools.partial(there, kernel), names), strict=True))
        for _ in range(2):
            for number, (name, mac) in enumerate(zip(names, reversed(macs), strict=True)):
                kernel.do([new_veth(f"v{number}", f"w{number}")])
                index, master = there(kernel, f"v{number}").index, masters[name].index
                kernel.do([change(index, name=f"{name}x", mac=mac, master=master, mtu=1400 + number)])
                now = there(kernel, f"{name}x")
                assert (now.index, now.mac, now.master, now.mtu) == (index, mac, master, 1400 + number)
                assert [port.index for port in kernel.ports(master)] == [index]
                kernel.do([deletion(index)])
        assert {name: (link.mac, link.alias) for name, link in masters.items()} == {
            name: (mac, name) for name, mac in zip(names, macs, strict=True)
        }


@in_namespace
def test_interfaces_on_bridges_take_a_few_messages_and_none_is_asked_for_twice() -> None:
    asked: list[Request] = []
    send = rtnetlink._Socket.send

    def counted(self: Any, requests: Sequence[Request], read: Any) -> range:
        asked.extend(requests)
        return send(self, requests, read)

    rtnetlink._Socket.send = counted  # type: ignore[method-assign]
    network, wires = Network(Access(0)), {index: Wire(bridge=f"bridge{index}") for index in range(4)}
    for vm in ("a0", "b0", "c0", "d0"):
        network.wire(vm, wires)  # the bridges have a crowd of ports then
    for vm, most in (("e0", 60), ("e0", 25)):  # those of a new VM, and the same once more
        asked.clear()
        network.wire(vm, wires)
        counts = Counter(request.verb for request in asked)
        assert (len(asked) <= most, counts["addresses"], counts["links"]) == (True, 1, 0), counts
    asked.clear()
    assert network.mark_leaving("e0", [*wires]).leaving == []
    assert {request.verb for request in asked} == {"get"}, "nothing is changed"


@in_namespace
def test_an_alias_may_have_all_the_room_there_is() -> None:
    with Netlink() as kernel:
        kernel.do([new_veth("vethA0", "vethB0"), set_alias("vethB0", "x" * 255)])
        assert (there(kernel, "vethA0").alias, there(kernel, "vethB0").alias) == ("", "x" * 255)
        with refused(errno.ERANGE):
            kernel.do([set_alias("vethA0", "x" * 256)])
        kernel.do([set_alias("vethB0", "")])
        assert there(kernel, "vethB0").alias == ""


@in_namespace
def test_what_carried_bytes_is_told_with_them() -> None:
    with Netlink() as kernel:
        kernel.do([new_veth("vethA0", "vethB0")])
        ends = [there(kernel, name).index for name in ("vethA0", "vethB0")]
        kernel.do(request for index in ends for request in (without_link_local(index), change(index, up=True)))
        before = {link.name: counts for link, *counts in kernel.traffic()}
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("vethB0", 0))
            sender.send(b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) + b"\x88\xb5" + bytes(986))
        now = {link.name: counts for link, *counts in kernel.traffic()}
        assert now.keys() == before.keys() == {"lo", "vethA0", "vethB0"}
        assert now["vethA0"][0] - before["vethA0"][0] >= 1000
        assert now["vethB0"][1] - before["vethB0"][1] >= 1000


@in_namespace
def test_what_a_bridge_learns_of_the_macs_asked_for_is_told_and_nothing_else() -> None:
    other = "02:00:00:00:00:99"
    with Netlink() as kernel:
        kernel.do([new_bridge("bridge1", "02:00:00:00:00:01"), new_veth("vethA0", "vethB0")])
        bridge, port, end = (there(kernel, name) for name in ("bridge1", "vethA0", "vethB0"))
        kernel.do([change(bridge.index, up=True), change(end.index, up=True)])
        kernel.do([change(port.index, up=True, master=bridge.index)])
    learned = FDBEvents()
    with contextlib.closing(learned), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        learned.listen([MAC])
        sender.bind(("vethB0", 0))
        heard: list[Neighbour] = []
        deadline = time.monotonic() + 5 * UNIT
        while not heard:
            assert time.monotonic() < deadline
            for mac in (other, MAC):
                sender.send(b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) + b"\x88\xb5" + bytes(46))
            heard, whole = learned.read(100)
            assert whole
        assert heard == [Neighbour(port.index, bridge.index, MAC, None, permanent=False)]
        learned.listen([])
        ip("link set vethA0 nomaster", "link set vethA0 master bridge1")
        sender.send(b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) + b"\x88\xb5" + bytes(46))
        assert learned.read(100) == ([], True)


@in_namespace
def test_a_socket_is_used_again_and_after_a_failure_is_not() -> None:
    def sockets() -> int:
        links = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)]
        return sum(link.startswith("socket:") for link in links)

    with Netlink() as kernel:
        assert kernel.link("lo")
    assert sockets() == 1
    rtnetlink._SPARE[0].number = 1 << 31
    with Netlink() as kernel:
        assert kernel.link("lo")
    assert sockets() == 0, "its numbers would soon not fit"
    for _ in range(20):
        with Netlink() as kernel, Netlink() as other:
            assert kernel.links() == other.links()
    assert sockets() <= 2
    for _ in range(5):
        with contextlib.suppress(Refused), Netlink() as kernel:
            kernel.do([deletion(4711)])
    assert sockets() <= 2
    with Netlink() as kernel:
        assert kernel.link("lo")
