"""The words of `ifadd` and NICS: what each means, what is refused, what is read as it was written."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmessd.core import names, wires
from vmessd.core.errors import InvalidValue, quoted
from vmessd.core.names import INTERFACES_MAX
from vmessd.core.settings import BY_FILE
from vmessd.core.wires import (
    ANY,
    LOCALHOST,
    End,
    Forward,
    Protocol,
    Wire,
    bridge_name,
    cables,
    check_interface,
    file_text,
    link_name,
    parse_file,
    parse_wire,
    parse_wires,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.characters(categories=["Cs"]))
NEARLY_WORDS = st.from_regex(r"(user|-|br)?[:,]?([0-9]{1,6}[:,]?){0,6}\n?", fullmatch=True)
PORTS = st.integers(1, 65535)
ADDRESSES = st.ip_addresses(v=4).map(str) | st.sampled_from([LOCALHOST, ANY])
FORWARDS = st.lists(
    st.builds(Forward, PORTS, PORTS, st.sampled_from(["tcp", "udp"]), ADDRESSES),
    max_size=5,
    unique_by=lambda forward: (forward.protocol, forward.host),
).map(tuple)
BRIDGES = (
    st.text(st.characters(exclude_characters="/:%"), min_size=1, max_size=15)
    .filter(lambda name: name.isprintable() and not any(char.isspace() for char in name))
    .filter(
        lambda name: len(name.encode()) <= 15 and name[0] != "-" and name not in (".", "..", "user", "none")
    )
    .filter(lambda name: names.tap_parts(name) is None)
)
WIRES = (
    st.builds(Wire, bridge=BRIDGES) | st.just(Wire()) | st.builds(Wire, user=st.just(True), forwards=FORWARDS)
)
LONGEST = "abcdefghijkl0"


def refused(function: Callable[..., Any], *arguments: Any, says: str = "") -> InvalidValue:
    """The error is one printable line, not too long, that has the words in it."""
    with pytest.raises(InvalidValue) as caught:
        function(*arguments)
    message = caught.value.message
    assert says in message
    assert message.isprintable()
    assert len(message) < 500
    return caught.value


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function makes of its arguments, or the InvalidValue it raises."""
    try:
        return function(*arguments)
    except InvalidValue as error:
        return error


# A word

GOOD = {
    "-": Wire(),
    "user": Wire(user=True),
    "user:2222:22": Wire(user=True, forwards=(Forward(2222, 22),)),
    "user:2222:22,8080:80": Wire(user=True, forwards=(Forward(2222, 22), Forward(8080, 80))),
    "user:1:65535,65535:1": Wire(user=True, forwards=(Forward(1, 65535), Forward(65535, 1))),
    "user:udp:5353:53": Wire(user=True, forwards=(Forward(5353, 53, Protocol.udp),)),
    "user:2222:22,udp:2222:22,0.0.0.0:80:80,udp:192.0.2.7:53:53,192.0.2.8:8080:80,192.0.2.9:8080:80": Wire(
        user=True,
        forwards=(
            Forward(2222, 22),
            Forward(2222, 22, Protocol.udp),
            Forward(80, 80, Protocol.tcp, "0.0.0.0"),  # noqa: S104 -- a word
            Forward(53, 53, Protocol.udp, "192.0.2.7"),
            Forward(8080, 80, Protocol.tcp, "192.0.2.8"),
            Forward(8080, 80, Protocol.tcp, "192.0.2.9"),
        ),
    ),
    "bridge1": Wire("bridge1"),
    "a": Wire("a"),
    "0": Wire("0"),
    "users": Wire("users"),
    "user0": Wire("user0"),
    "User": Wire("User"),
    "user,1": Wire("user,1"),
    "br-lan": Wire("br-lan"),
    "eth0.100": Wire("eth0.100"),
    "...": Wire("..."),
    "x" * 15: Wire("x" * 15),
    "é" * 7: Wire("é" * 7),
    "$(id)": Wire("$(id)"),
    "newvm0": Wire("newvm0"),  # that this is a VM, only who knows the VMs can tell
    "newvm0e00": Wire("newvm0e00"),
    "spine0:1": Wire(cable=End("spine0", 1)),
    "web-1:28": Wire(cable=End("web-1", 28)),
}


@pytest.mark.parametrize("word", GOOD, ids=ascii)
def test_a_word_is_a_wire_and_the_wire_the_word(word: str) -> None:
    assert parse_wire(word) == GOOD[word]
    assert str(GOOD[word]) == word
    assert parse_wire(str(parse_wire(word))) == parse_wire(word)


def test_leading_zeros_of_a_port_are_not_kept() -> None:
    assert str(parse_wire("user:02222:00022")) == "user:2222:22"


LETTERS = "contains a character that is not allowed in it"
MEANING = "has another meaning"
PORT = "is not a number from 1 to 65535"
END = "is not <vm>:<interface>, such as spine0:1"
PAIR = "is not [udp:][address:]<hostport>:<guestport>, such as 2222:22"

# The word, what of it the message shows, and why it is refused.
BAD: tuple[tuple[str, str, str], ...] = (
    ("", "", "is empty; it must be a name of 1 to 15 bytes"),
    ("x" * 16, "x" * 16, "has 16 bytes; at most 15 are allowed"),
    ("é" * 8, "é" * 8, "has 16 bytes"),
    ("x" * 5000, "x" * 5000, "has 5000 bytes"),
    (".", ".", MEANING),
    ("..", "..", MEANING),
    ("--", "--", MEANING),
    ("-x", "-x", MEANING),
    ("-1", "-1", MEANING),
    ("br/0", "br/0", LETTERS),
    ("/", "/", LETTERS),
    ("br 0", "br 0", LETTERS),
    (" ", " ", LETTERS),
    ("br%d", "br%d", LETTERS),
    ("br\n", "br\n", LETTERS),
    ("br\0", "br\0", LETTERS),
    ("\x1b[31m", "\x1b[31m", LETTERS),
    ("br\u00a00", "br\u00a00", LETTERS),
    ("\u202ebr", "\u202ebr", LETTERS),
    ("br\udcff", "br\udcff", LETTERS),
    ("\ud800", "\ud800", LETTERS),
    ("newvm0e0", "newvm0e0", "is the name of a VM's TAP"),
    ("abcdefghijkl0e9", "abcdefghijkl0e9", "is the name of a VM's TAP"),
    ("user ", "user ", LETTERS),
    ("USER:1:2", "USER:1:2", END),
    ("user:", "", PAIR),
    ("user:22", "22", PAIR),
    ("user:2222:22,", "", PAIR),
    ("user:,2222:22", "", PAIR),
    ("user:2222:22,80", "80", PAIR),
    ("user:2222:", "", PORT),
    ("user::22", "", PORT),
    ("user:0:22", "0", PORT),
    ("user:2222:0", "0", PORT),
    ("user:65536:22", "65536", PORT),
    ("user:2222:65536", "65536", PORT),
    ("user:000001:22", "000001", PORT),
    ("user:2222:22:22", "2222", "is not an IPv4 address"),
    ("user:-1:22", "-1", PORT),
    ("user:+1:22", "+1", PORT),
    ("user:0x16:22", "0x16", PORT),
    ("user: 1:22", " 1", PORT),
    ("user:1\n:22", "1\n", PORT),
    ("user:٣:22", "٣", PORT),
    ("user:²:22", "²", PORT),
    ("user:1_0:22", "1_0", PORT),
    ("user:ssh:22", "ssh", PORT),
    ("user:\ud800:22", "\ud800", PORT),
    (f"user:{'9' * 5000}:22", "9" * 5000, PORT),
    ("user:2222:22;8080:80", "22;8080", PORT),
    ("user:localhost:2222:22", "localhost", "is not an IPv4 address"),
    ("user::2222:22", "", "is not an IPv4 address"),
    ("user:0177.0.0.1:2222:22", "0177.0.0.1", "is not an IPv4 address"),
    ("user:0:2222:22", "0", "is not an IPv4 address"),
    ("user:127.1:2222:22", "127.1", "is not an IPv4 address"),
    ("user:udp:", "udp:", PAIR),
    ("user:udp:1", "udp:1", PAIR),
    ("user:UDP:1:2", "UDP", "is not an IPv4 address"),
    ("user:sctp:1:2", "sctp", "is not an IPv4 address"),
    ("user:udp:udp:1:2", "udp", "is not an IPv4 address"),
    ("user:1.2.3.4:udp:1:2", "1.2.3.4:udp:1:2", PAIR),
    ("user:[::1]:8080:80", "[::1]:8080:80", "such as 2222:22; QEMU does not forward IPv6"),
    ("user:udp:::1:8080:80", "udp:::1:8080:80", "such as 2222:22; QEMU does not forward IPv6"),
    ("user:2222:22,127.0.0.1:2222:23", "2222", "is forwarded twice"),
    ("user:2222:22,0.0.0.0:2222:23", "0.0.0.0:2222", "is forwarded twice"),
    ("user:udp:0.0.0.0:53:53,udp:192.0.2.7:53:53", "udp:192.0.2.7:53", "is forwarded twice"),
    ("user:2222:22,2222:23", "2222", "is forwarded twice"),
    ("user:22:1,022:1", "22", "is forwarded twice"),
    ("br0:x", "br0:x", END),
    ("br0:", "br0:", END),
    ("br0:0:1", "br0:0:1", END),
    ("br0:-1", "br0:-1", END),
    ("br0:64", "br0:64", "no VM has interface 64; the last one is 63"),
    ("br/0:1", "br/0", "is not"),
    (":", ":", END),
    (":1", "", "is not"),
)


@pytest.mark.parametrize(("word", "shown", "why"), BAD, ids=[ascii(word[:30]) for word, *_ in BAD])
def test_a_word_that_is_none_is_refused_by_name(word: str, shown: str, why: str) -> None:
    message = refused(parse_wire, word, says=quoted(shown)).message
    assert why in message


@pytest.mark.parametrize("word", ["user", "-"])
def test_words_of_the_grammar_name_no_bridge(word: str) -> None:
    refused(bridge_name, word, says=f"bridge name '{word}' has another meaning")


def test_a_link_may_be_called_as_a_tap_and_a_bridge_may_not() -> None:
    assert link_name("newvm0e0", "link name") == "newvm0e0"
    assert bridge_name("newvm0e00") == "newvm0e00"
    refused(bridge_name, "newvm0e0", says="bridge name 'newvm0e0' is the name of a VM's TAP")


@pytest.mark.parametrize(("text", "shown", "why"), [case for case in BAD if "TAP" not in case[2]][:19])
def test_a_link_s_name_that_is_none_is_refused_by_what_it_should_be(text: str, shown: str, why: str) -> None:
    message = refused(link_name, text, "link name").message
    assert message.startswith(f"link name {quoted(shown)} ")
    assert why in message


@given(ANY_TEXT | NEARLY_WORDS)
@example("\ud800")
@example("user:\ud800:1")
@example("\udcff" * 5)
def test_any_text_is_a_wire_or_an_invalid_value(word: str) -> None:
    wire = outcome(parse_wire, word)
    if isinstance(wire, InvalidValue):
        assert wire.message.isprintable()
        assert len(wire.message) < 500
    else:
        assert parse_wire(str(wire)) == wire
        assert str(wire).split() == [str(wire)]
        # What a bridge is called can be given to the kernel: dev_valid_name(), IFNAMSIZ.
        name = wire.bridge or "x"
        assert 1 <= len(name.encode()) <= 15
        assert not set(name) & set("/: \t\n\v\f\r\0")


@given(WIRES)
def test_what_is_written_of_a_wire_is_read_as_that_wire(wire: Wire) -> None:
    assert parse_wire(str(wire)) == wire


# Names that could be those of TAPs


@pytest.mark.parametrize("name", ["newvm0e0", "vm_01bb0481ee0"])
def test_no_bridge_has_the_name_of_a_tap(name: str) -> None:
    refused(bridge_name, name, says=f"bridge name '{name}' is the name of a VM's TAP")


@pytest.mark.parametrize("name", ["br-0123456789e1", "leaf12e0", "web-1e28"])
def test_a_bridge_of_the_host_may_look_like_a_tap_but_none_is_made_so(name: str) -> None:
    assert bridge_name(name) == name
    assert wires.kind_by_name(name) is wires.NamedKind.tap
    refused(wires.new_bridge_name, name, says="is the name of a VM's TAP, and there is no such bridge")


@pytest.mark.parametrize("name", ["lab-bridge1", "bridge1", "br-node2", "vm_lan", "enx00e04c681e12"])
def test_names_of_bridges_and_cards_are_not_those_of_taps(name: str) -> None:
    assert bridge_name(name) == name
    assert wires.kind_by_name(name) is None


@pytest.mark.parametrize("name", ["kubernetes-node-12e28", "newvm0e0", "lab-bridge1", "lab-bridge99", "eth0.7"])
def test_a_link_may_be_typed_by_its_long_name(name: str) -> None:
    assert wires.typed_link_name(name) == name


def test_a_typed_link_that_cannot_be_is_told() -> None:
    refused(wires.typed_link_name, "newvm0e64", says="no VM can have TAP 'newvm0e64'; the last interface is 63")
    for name in ("kubernetes-node-12e0.7", "kubernetes-node-e99", "kubernetes-nodes"):
        refused(wires.typed_link_name, name, says=f"link name '{name}' has {len(name)} bytes; at most 15")


# How many there are


def test_there_is_room_for_what_pci_takes() -> None:
    assert len(parse_wires(INTERFACES_MAX, [])) == INTERFACES_MAX == 64
    refused(parse_wires, 65, [], says="number of NICs '65' is not from 0 to 64")


def test_interfaces_without_a_word_are_unplugged() -> None:
    assert parse_wires(0, []) == ()
    assert parse_wires(3, []) == (Wire(), Wire(), Wire())
    assert parse_wires(3, ["br0", "user"]) == (Wire("br0"), Wire(user=True), Wire())
    assert parse_wires(2, ["br0", "br0"]) == (Wire("br0"), Wire("br0"))


@pytest.mark.parametrize("count", [-1, 65, 2**63, -(2**63), 10**70])
def test_a_number_that_is_none_is_refused_by_name(count: int) -> None:
    refused(parse_wires, count, [], says=f"number of NICs '{count}' is not from 0 to 64")


def test_more_words_than_interfaces_are_refused() -> None:
    message = refused(parse_wires, 1, ["br0", "br1"]).message
    assert message == "'br0 br1': too many bridges for 1 NIC"
    refused(parse_wires, 0, ["-"], says="'-': too many bridges for 0 NICs")
    refused(parse_wires, 0, ["\x1b" * 1000], says=quoted("\x1b" * 1000))


@pytest.mark.parametrize(("word", "shown", "why"), BAD, ids=[ascii(word[:30]) for word, *_ in BAD])
def test_the_words_of_ifadd_are_those_words(word: str, shown: str, why: str) -> None:
    assert why in refused(parse_wires, 2, ["br0", word], says=quoted(shown)).message


@pytest.mark.parametrize(("number", "there"), [(0, {0}), (0, range(29)), (28, range(29)), (2, {0, 2})])
def test_an_interface_that_is_there(number: int, there: Collection[int]) -> None:
    check_interface("newvm0", number, there)


@pytest.mark.parametrize(
    ("number", "there", "message", "hint"),
    [
        (0, (), "interface '0': newvm0 has no interfaces", "vmess newvm0 ifadd 1"),
        (-1, {}, "interface '-1': newvm0 has no interfaces", "vmess newvm0 ifadd 1"),
        (1, {0}, "newvm0 has no interface '1'; it has 0", None),
        (-1, range(3), "newvm0 has no interface '-1'; it has 0, 1, 2", None),
        (1, {2: "c", 0: "a"}, "newvm0 has no interface '1'; it has 0, 2", None),
        (2**63, {0, 28}, f"newvm0 has no interface '{2**63}'; it has 0, 28", None),
    ],
)
def test_an_interface_that_is_not_there(
    number: int, there: Collection[int], message: str, hint: str | None
) -> None:
    error = refused(check_interface, "newvm0", number, there)
    assert (error.message, error.hint) == (message, hint)


# The file


@pytest.mark.parametrize(
    ("text", "wires"),
    [
        ("", ()),
        (" \n\t", ()),
        ("-", (Wire(),)),
        ("br0 - user\n", (Wire("br0"), Wire(), Wire(user=True))),
        (
            "br0\nbr0\n\n  user:2222:22\n",
            (Wire("br0"), Wire("br0"), Wire(user=True, forwards=(Forward(2222, 22),))),
        ),
        ("- " * 29, (Wire(),) * 29),
    ],
)
def test_a_file_is_words(text: str, wires: tuple[Wire, ...]) -> None:
    assert parse_file(text) == wires
    assert file_text(wires) == " ".join(text.split())


@pytest.mark.parametrize("text", ["- " * 65, "br0 " * 1000, "- " * 500_000])
def test_a_file_of_too_many_words_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 -- what it says is the text
        parse_file(text)
    assert refused.value.args == (text,)


@given(st.lists(WIRES, max_size=INTERFACES_MAX), st.sampled_from([" ", "\n", "\t ", "\r\n"]))
def test_a_file_is_read_as_it_was_written(wires: list[Wire], gap: str) -> None:
    text = file_text(wires)
    assert parse_file(text) == parse_file(text.replace(" ", gap)) == tuple(wires)
    assert BY_FILE["NICS"].value(f"{text}\n") == tuple(wires)


def each_alone(words: list[str]) -> tuple[Wire, ...]:
    """Wires of single words; together, they may not be one cable twice."""
    wires = tuple(map(parse_wire, words))
    ends = [*cables(wires).values()]
    if len(set(ends)) < len(ends):
        raise InvalidValue("one of them is there twice")
    return wires


@given(st.lists((ANY_TEXT | NEARLY_WORDS).filter(lambda text: text.split() == [text]), max_size=4))
@example(["A:0", "A:0"])
@example(["br/0"])
@example(["user:1:2", "user:1:2,1:3"])
@example(["\ud800"])
def test_ifadd_and_nics_have_one_grammar(words: list[str]) -> None:
    """What one of them takes, the other takes, as the same."""
    file = " ".join(words)
    outcomes = [
        outcome(parse_wires, len(words), words),
        outcome(parse_file, file),
        outcome(BY_FILE["NICS"].value, file),
        outcome(each_alone, words),
    ]
    if any(isinstance(found, InvalidValue) for found in outcomes):
        assert all(isinstance(found, InvalidValue) for found in outcomes)
        return
    assert outcomes == [outcomes[0]] * 4


@given(ANY_TEXT | st.lists(NEARLY_WORDS).map(" ".join))
@example("\udcff")
def test_any_file_is_wires_or_refused_in_one_line(text: str) -> None:
    wires = outcome(BY_FILE["NICS"].value, text)
    if isinstance(wires, InvalidValue):
        assert wires.message.startswith("NICS ")
        assert wires.message.isprintable()
        assert len(wires.message) < 1000
    else:
        assert len(wires) <= INTERFACES_MAX
        assert parse_file(file_text(wires)) == wires


def test_the_bounds_are_those_of_the_kernel_and_the_machine() -> None:
    assert (names.LINK_NAME_MAX, INTERFACES_MAX, wires.PORT_MAX) == (15, 64, 65535)


CARDS = [
    *(
        "eth0",
        "eth12",
        "wlan0",
        "wwan1",
        "eno1",
        "eno1np0",
        "ens3",
        "ens1f0np1",
        "enp3s0",
        "enp0s31f6",
        "enp5s0f1d1",
    ),
    *(
        "enP4p1s0",
        "enp0s20f0u1i5",
        "enx525400123456",
        "end0",
        "enX0",
        "enu1u1",
        "enahisic2i0",
        "wlp2s0",
        "wlo1",
    ),
    *("wlx00c0ca123456", "wwp0s20u4i6", "enp65s0f0v3"),
]
NO_CARDS = [
    *(
        "eth",
        "ethernet",
        "ether1",
        "veth0",
        "eth0a",
        "en",
        "en-lab",
        "entry",
        "entry1",
        "engine0",
        "ens",
        "end",
        "x",
    ),
    *(
        "wlab",
        "wlab1",
        "wlan",
        "web",
        "web0",
        "www",
        "www1",
        "wwan",
        "wan0",
        "enx5254001234",
        "Eth0",
        "bridge1",
        "lab",
    ),
]


@pytest.mark.parametrize("name", CARDS)
def test_c45_names_of_network_cards_are_known(name: str) -> None:
    with pytest.raises(InvalidValue, match="is the name of a network card"):
        wires.new_bridge_name(name)
    assert wires.new_bridge_name(name, deliberate=True) == name


@pytest.mark.parametrize("name", NO_CARDS)
def test_c45_other_names_are_left_to_bridges(name: str) -> None:
    assert wires.new_bridge_name(name) == name


# Forwarded ports


def test_c74_a_port_that_is_forwarded_and_one_that_is_not() -> None:
    wire = Wire(user=True, forwards=(Forward(2222, 22), Forward(53, 53, Protocol.udp, ANY)))
    more = wires.with_forward(wire, Forward(53, 54))
    assert str(more) == "user:2222:22,udp:0.0.0.0:53:53,53:54"
    assert wires.with_forward(more, Forward(53, 53, Protocol.udp, ANY)) == more
    assert wires.without_forward(more, Forward(53, 1)) == wire
    assert str(wires.without_forward(more, Forward(53, 1, Protocol.udp, ANY))) == "user:2222:22,53:54"
    for forward, says in (
        (Forward(2222, 23), "port 2222 is already forwarded: 2222:22"),
        (Forward(2222, 23, Protocol.tcp, ANY), "port 0.0.0.0:2222 is already forwarded: 2222:22"),
        (Forward(53, 53, Protocol.udp), "port udp:53 is already forwarded: udp:0.0.0.0:53:53"),
    ):
        refused(wires.with_forward, wire, forward, says=says)
    for forward, says in (
        (Forward(53, 1), "port 53 is not forwarded"),
        (Forward(53, 1, Protocol.udp), "port udp:53 is not forwarded"),
        (Forward(2222, 1, Protocol.tcp, ANY), "port 0.0.0.0:2222 is not forwarded"),
    ):
        refused(wires.without_forward, wire, forward, says=says)
    full = Wire(user=True, forwards=tuple(Forward(port, port) for port in range(1, 33)))
    refused(
        wires.with_forward,
        full,
        Forward(33, 33),
        says="33 forwarded ports are too many; at most 32 are allowed",
    )
