"""What the host can tell of a guest's addresses: from MACs, and from whom it has heard."""

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmessd.core import names
from vmessd.core.models.wires import VMAddress
from vmessd.network.neighbours import Leased, Tables, behind, link_local, of_interface
from vmessd.network.netlink_replies import Neighbour

MAC = names.mac("newvm0", 0)
LOCAL = "fe80::11:9bff:feaf:0"
OTHER, OTHER_LOCAL = "02:11:9b:af:01:00", "fe80::11:9bff:feaf:100"
PORT, BRIDGE, CARD = 7, 3, 2
LINKS = {PORT: "newvm0e0", BRIDGE: "bridge1", CARD: "eth0"}

MACS = st.binary(min_size=6, max_size=6).map(lambda octets: octets.hex(":"))


def station(mac: str, *, index: int = PORT, master: int = BRIDGE, permanent: bool = False) -> Neighbour:
    """An entry of a forwarding table."""
    return Neighbour(index, master, mac, None, permanent)


def neighbour(mac: str, ip: str | None, index: int = BRIDGE) -> Neighbour:
    return Neighbour(index, 0, mac, ip, permanent=False)


def tables(*entries: Neighbour) -> Tables:
    forwarding = [entry for entry in entries if entry.ip is None]
    return Tables(forwarding, [entry for entry in entries if entry.ip is not None], LINKS)


# Link-local addresses


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        ("34:56:78:9a:bc:de", "fe80::3656:78ff:fe9a:bcde"),  # RFC 2464, section 4
        ("36:56:78:9a:bc:de", "fe80::3456:78ff:fe9a:bcde"),
        ("00:00:00:00:00:00", "fe80::200:ff:fe00:0"),
        ("02:00:00:00:00:00", "fe80::ff:fe00:0"),
        ("ff:ff:ff:ff:ff:ff", "fe80::fdff:ffff:feff:ffff"),
        ("52:54:00:12:34:56", "fe80::5054:ff:fe12:3456"),  # the card of a QEMU without -device ...,mac=
        (MAC, LOCAL),
        (names.mac("newvm7", 10), "fe80::11:9bff:feaf:70a"),
    ],
)
def test_link_local_addresses(mac: str, address: str) -> None:
    assert link_local(mac) == address


@given(MACS)
@example("00:00:00:00:00:00")
def test_an_interface_identifier_is_the_modified_eui_64(mac: str) -> None:
    """RFC 4291, appendix A: `fffe` in the middle, and the universal/local bit inverted."""
    address = ipaddress.IPv6Address(link_local(mac))
    assert address in ipaddress.IPv6Network("fe80::/64")
    identifier, octets = address.packed[8:], bytes.fromhex(mac.replace(":", ""))
    assert identifier[0] == octets[0] ^ 0x02
    assert identifier[1:3] + identifier[5:] == octets[1:]
    assert identifier[3:5] == b"\xff\xfe"
    assert link_local(mac) == str(address), "in its shortest form"


# Who is behind a port


def test_behind_a_port_is_the_card_first_and_then_who_was_heard() -> None:
    heard = [station("06:00:00:00:00:02"), station(MAC), station("06:00:00:00:00:01"), station(OTHER)]
    assert behind(PORT, MAC, heard) == [MAC, OTHER, "06:00:00:00:00:01", "06:00:00:00:00:02"]
    assert behind(PORT, MAC, []) == [MAC]


@pytest.mark.parametrize(
    "entry",
    [
        station(OTHER, index=PORT + 1),
        station(OTHER, permanent=True),  # the port's own address
        station(OTHER, master=0),  # what a link listens to, not whom it heard
    ],
    ids=["another port", "permanent", "no bridge"],
)
def test_who_is_not_behind_a_port(entry: Neighbour) -> None:
    assert behind(PORT, MAC, [entry, entry]) == [MAC]


# The addresses of an interface


def addresses(found: list[VMAddress]) -> list[tuple[str, str, bool, str]]:
    return [(one.mac, one.address, one.seen, one.source) for one in found]


NOTHING = "EUI-64 of the MAC, not heard"
FRAMES = "EUI-64 of the MAC, which was heard"
ON_BRIDGE = "neighbour table, bridge1"


def test_of_a_guest_nobody_heard_the_link_local_address_is_a_guess() -> None:
    assert of_interface(4, MAC, PORT, tables()) == [
        VMAddress(4, MAC, LOCAL, seen=False, source=NOTHING, known=False)
    ]


def test_of_a_guest_that_was_heard_the_guess_is_a_better_one() -> None:
    assert addresses(of_interface(0, MAC, PORT, tables(station(MAC)))) == [(MAC, LOCAL, False, FRAMES)]
    elsewhere = tables(station(MAC, index=PORT + 1))
    assert addresses(of_interface(0, MAC, PORT, elsewhere)) == [(MAC, LOCAL, False, NOTHING)]


def test_addresses_the_host_has_seen_come_first() -> None:
    known = tables(station(MAC), neighbour(MAC, "192.0.2.5"), neighbour(MAC, "2001:db8::5", CARD))
    assert addresses(of_interface(0, MAC, PORT, known)) == [
        (MAC, "192.0.2.5", True, ON_BRIDGE),
        (MAC, "2001:db8::5", True, "neighbour table, eth0"),
        (MAC, LOCAL, False, FRAMES),
    ]


def test_a_link_local_address_that_was_seen_is_no_guess() -> None:
    known = tables(station(MAC), neighbour(MAC, LOCAL))
    assert addresses(of_interface(0, MAC, PORT, known)) == [(MAC, LOCAL, True, ON_BRIDGE)]


def test_an_address_is_told_once_also_where_two_tables_have_it() -> None:
    known = tables(neighbour(MAC, "192.0.2.5"), neighbour(MAC, "192.0.2.5", CARD))
    told = [one.address for one in of_interface(0, MAC, PORT, known)]
    assert told == ["192.0.2.5", LOCAL]


def test_stations_behind_the_card_are_told_with_theirs() -> None:
    known = tables(station(OTHER), neighbour(OTHER, "192.0.2.6"), neighbour("06:00:00:00:00:09", "192.0.2.9"))
    assert addresses(of_interface(0, MAC, PORT, known)) == [
        (MAC, LOCAL, False, NOTHING),
        (OTHER, "192.0.2.6", True, ON_BRIDGE),
        (OTHER, OTHER_LOCAL, False, FRAMES),
    ]


def test_a_neighbour_without_an_address_or_a_mac_says_nothing() -> None:
    known = Tables([], [neighbour("", "192.0.2.7"), neighbour(MAC, None)], LINKS)
    assert addresses(of_interface(0, MAC, PORT, known)) == [(MAC, LOCAL, False, NOTHING)]


def test_a_link_that_is_gone_is_told_by_its_number() -> None:
    (seen, _) = of_interface(0, MAC, PORT, tables(neighbour(MAC, "192.0.2.5", 99)))
    assert seen.source == "neighbour table, 99"


NEIGHBOURS = st.lists(
    st.builds(
        Neighbour,
        index=st.integers(1, 8),
        master=st.integers(0, 4),
        mac=st.sampled_from([MAC, OTHER]) | MACS,
        ip=st.none() | st.ip_addresses().map(str) | st.just(LOCAL),
        permanent=st.booleans(),
    ),
    max_size=8,
)


@given(NEIGHBOURS, NEIGHBOURS)
def test_whatever_was_heard_every_station_is_told_and_nothing_twice(
    forwarding: list[Neighbour], neighbours: list[Neighbour]
) -> None:
    found = of_interface(0, MAC, PORT, Tables(forwarding, neighbours, LINKS))
    told = [(one.mac, one.address) for one in found]
    assert len(set(told)) == len(told)
    assert found[0].mac == MAC
    for mac in behind(PORT, MAC, forwarding):
        assert (mac, link_local(mac)) in told
    for one in found:
        assert one.seen is any(entry.mac == one.mac and entry.ip == one.address for entry in neighbours)


def test_what_a_guest_got_by_dhcp_is_known_before_it_was_heard() -> None:
    leases = [Leased(MAC, "10.99.0.7", "lab0"), Leased("02:00:00:00:00:99", "10.99.0.8", "lab0")]
    found = of_interface(0, MAC, PORT, Tables([], [], LINKS, leases=leases))
    assert [(one.address, one.source) for one in found if one.known] == [("10.99.0.7", "DHCP, lab0")]
    both = of_interface(0, MAC, PORT, Tables([], [neighbour(MAC, "10.99.0.7")], LINKS, leases=leases))
    assert [one.source.partition(",")[0] for one in both if one.known] == ["neighbour table"]
