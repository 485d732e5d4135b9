"""Ranges of bridges with NAT: which are right, what is said about wrong ones, and the file that keeps them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmessd.core import nat
from vmessd.core.errors import BadFile, InvalidValue
from vmessd.core.nat import Nat


def test_the_host_has_the_first_address_and_guests_the_others() -> None:
    found = nat.parse("lab0", "10.99.0.0/24")
    assert [str(one) for one in (found.network, found.address, found.first, found.last)] == [
        *("10.99.0.0/24", "10.99.0.1", "10.99.0.2", "10.99.0.254"),
    ]
    small = nat.parse("lab0", "192.168.7.8/29")
    assert [str(one) for one in (small.address, small.first, small.last)] == [
        *("192.168.7.9", "192.168.7.10", "192.168.7.14"),
    ]


@pytest.mark.parametrize(
    ("bridge", "text", "message"),
    [
        ("lab0", "10.99.0.0", "range '10.99.0.0' must have a length from /16 to /29"),
        ("lab0", "10.99.0.0/30", "range '10.99.0.0/30' must have a length from /16 to /29"),
        ("lab0", "10.0.0.0/8", "range '10.0.0.0/8' must have a length from /16 to /29"),
        (
            "lab0",
            "10.99.0.1/24",
            "range '10.99.0.1/24' does not begin with 10.99.0.1; its beginning is 10.99.0.0/24",
        ),
        ("lab0", "fd00::/64", "range 'fd00::/64' is IPv6; NAT is for IPv4 only"),
        ("lab0", "on", "range 'on' is not a range of IPv4 addresses such as 10.99.0.0/24"),
        ("lab0", "10.99.0/24", "range '10.99.0/24' is not a range of IPv4"),
        ("lab0", "10.99.0.0/24/5", "range '10.99.0.0/24/5' is not a range of IPv4"),
        ("lab0", "127.0.0.0/24", "range '127.0.0.0/24' has another meaning"),
        ("lab0", "0.0.0.0/24", "range '0.0.0.0/24' has another meaning"),
        ("lab0", "224.0.1.0/24", "range '224.0.1.0/24' has another meaning"),
        ("lab0", "169.254.0.0/16", "range '169.254.0.0/16' has another meaning"),
        ("lab0", "240.0.0.0/24", "range '240.0.0.0/24' has another meaning"),
        ('lab"0', "10.99.0.0/24", "bridge name 'lab\"0' is not for NAT; it must consist of letters, digits"),
        ("-", "10.99.0.0/24", "bridge name '-' has another meaning"),
        ("newvm0e0", "10.99.0.0/24", "bridge name 'newvm0e0' is the name of a VM's TAP"),
    ],
)
def test_a_wrong_range_is_one_line(bridge: str, text: str, message: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        nat.parse(bridge, text)
    assert raised.value.message.startswith(message)


@given(st.text(max_size=30))
def test_any_text_is_a_range_or_one_line(text: str) -> None:
    with contextlib.suppress(InvalidValue):
        assert 16 <= nat.parse_range(text).prefixlen <= 29


def test_the_file_is_read_as_it_was_written() -> None:
    nats = [nat.parse("lab0", "10.99.0.0/24"), nat.parse("br-1.x", "192.168.0.0/16")]
    assert nat.file_text(nats) == "lab0 10.99.0.0/24\nbr-1.x 192.168.0.0/16\n"
    assert nat.parse_file(nat.file_text(nats), "/vms/NET_NAT") == nats
    assert nat.parse_file("\n  \n", "/vms/NET_NAT") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lab0", "/f: line 'lab0' is not a bridge and a range"),
        ("lab0 10.99.0.0/24 x", "/f: line 'lab0 10.99.0.0/24 x' is not a bridge and a range"),
        ("lab0 10.99.0.0/24\nlab0 10.98.0.0/24", "/f: bridge 'lab0' is there twice"),
        ("lab0 10.99.0.0/99", "/f: range '10.99.0.0/99' is not"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, message: str) -> None:
    with pytest.raises(BadFile) as raised:
        nat.parse_file(text, "/f")
    assert raised.value.message.startswith(message)
    assert raised.value.hint == "correct or delete the file /f"


def test_what_may_be_allowed() -> None:
    assert str(nat.parse_allowed("10.0.0.0/8")) == "10.0.0.0/8"
    for text in ("10.0.0.1/8", "lab", "fd00::/8", ""):
        with pytest.raises(InvalidValue, match="is not a range such as"):
            nat.parse_allowed(text)


def test_names_are_plain_or_not() -> None:
    assert all(map(nat.is_plain, ("eth0", "br-lab.1", "wg_0")))
    assert not any(map(nat.is_plain, ("", '"', "a b", "-a", "ü", "a\n", ".")))
    assert isinstance(nat.parse("a", "10.0.0.0/16"), Nat)
