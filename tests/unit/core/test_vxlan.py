"""Peers of VXLANs, and the file that keeps them."""

import ipaddress

import pytest

from vmessd.core import vxlan
from vmessd.core.errors import BadFile, InvalidValue


def test_the_file_says_what_was_written() -> None:
    peerings = [
        vxlan.Peering("lab1", "vxlan7", 1450, vxlan.parse_peers(["192.0.2.2", "192.0.2.3"])),
        vxlan.Peering("lab2", "vxlan8", 1430, vxlan.parse_peers(["2001:db8::2"])),
    ]
    assert vxlan.parse_file(vxlan.file_text(peerings), "/vms/NET_PEERS") == peerings
    assert vxlan.parse_file("\n  \n", "/vms/NET_PEERS") == []


@pytest.mark.parametrize(
    "line",
    [
        "lab1",
        "lab1 vxlan7 1450",
        "lab1 vxlan7 192.0.2.2 192.0.2.3",
        "lab1 vxlan7 99999 192.0.2.2",
        "lab1 veth7 1450 192.0.2.2",
        "lab/1 vxlan7 1450 192.0.2.2",
        "lab1 vxlan7 1450 127.0.0.1",
        "lab1 vxlan7 1450 192.0.2.2\nlab2 vxlan7 1450 192.0.2.2",
    ],
)
def test_a_damaged_file_is_named(line: str) -> None:
    with pytest.raises(BadFile, match=r"^/vms/NET_PEERS: "):
        vxlan.parse_file(line, "/vms/NET_PEERS")


def test_an_ipv4_address_in_ipv6_is_one_of_ipv4() -> None:
    assert vxlan.parse_peers(["::ffff:192.0.2.2"]) == (ipaddress.IPv4Address("192.0.2.2"),)
    with pytest.raises(InvalidValue, match="loopback"):
        vxlan.parse_peers(["::ffff:127.0.0.1"])


@pytest.mark.parametrize(
    "word", ["", "lab2", "192.0.2", "192.0.2.2/24", "fe80::1%eth0", "::", "ff02::1", "0.1.2.3"]
)
def test_what_is_no_address_of_a_host_is_refused(word: str) -> None:
    with pytest.raises(InvalidValue, match=r"^peer "):
        vxlan.parse_peers([word])
