"""Messages of the kernel about routes."""

import socket

import pytest

from vmessd.network.netlink_replies import concerns_uplinks

KERNEL, BOOT, DHCP, BIRD, BGP = 2, 3, 16, 12, 186  # RTPROT_*
MAIN, LOCAL = 254, 255
UNICAST, TO_HOST, BLACKHOLE = 1, 2, 6  # RTN_*


@pytest.mark.parametrize(
    ("prefix", "protocol", "table", "kind", "concerns"),
    [
        (24, BOOT, MAIN, UNICAST, True),
        (24, KERNEL, MAIN, UNICAST, True),
        (0, DHCP, MAIN, UNICAST, True),
        (32, DHCP, MAIN, UNICAST, True),
        (0, BGP, MAIN, UNICAST, True),
        (1, BIRD, MAIN, UNICAST, True),
        (24, BGP, MAIN, UNICAST, False),
        (24, BIRD, MAIN, UNICAST, False),
        (24, BGP, MAIN, BLACKHOLE, False),
        (32, KERNEL, LOCAL, TO_HOST, False),
        (0, BOOT, 100, UNICAST, False),
    ],
)
def test_routes_of_routing_daemons_do_not_count_unless_they_are_the_default_one(
    prefix: int, protocol: int, table: int, kind: int, *, concerns: bool
) -> None:
    body = bytes([socket.AF_INET, prefix, 0, 0, table, protocol, 0, kind]) + bytes(4)
    assert concerns_uplinks(body) is concerns
