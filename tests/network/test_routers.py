"""Real routers on cables and a bridge: LLDP, LACP, OSPF and IS-IS come up, and have the right neighbours.

    r1 e0, e1 = bond, two cables = e0, e1 r2
    r1 e2 ------ bridge lab ------ e2 r2

OSPF and IS-IS are spoken over both: point to point over the bond, with an election on the bridge.
"""

import re
from collections.abc import Callable

import pytest
import routerguest
from daemons import UNIT, WiredDaemon, need_wires, wait_for

from vmessd.core import names

COME_UP = 100
"""Seconds that the routers may take from their start to a report of all neighbours.

Each needs 13 s of a processor for it under TCG. On two shared processors the boot alone was measured to take
18 s at a load of 3, and 25 to 48 s at one of 8; the neighbours and the report take a dozen more.
"""
NOTICE = 20
"""Seconds that both may take to report a change of a cable; measured: 4 to 10 s, most of it the report."""
LLDP = re.compile(r"^lldp\.(eth[0-9])\.chassis\.name=(\S+)$", re.MULTILINE)
OSPF = re.compile(r"^(\S+) .* Full/\S+ .* (\S+):10\.1\.", re.MULTILINE)
ISIS = re.compile(r"^ *(\S+) +(\S+) +2 +Up ", re.MULTILINE)

SETUP = """
hostname r{number}; other=10.0.0.{other}
echo 802.3ad >/sys/class/net/bond0/bonding/mode
echo fast >/sys/class/net/bond0/bonding/lacp_rate
echo 100 >/sys/class/net/bond0/bonding/miimon
echo +eth0 >/sys/class/net/bond0/bonding/slaves
echo +eth1 >/sys/class/net/bond0/bonding/slaves
ip link set bond0 up; ip link set eth2 up
"""
FRR = """hostname r{number}
interface lo
 ip address 10.0.0.{number}/32
 ip ospf area 0
!
interface bond0
 ip address 10.1.1.{number}/24
 ip ospf network point-to-point
 ip ospf hello-interval 1
 ip ospf dead-interval 10
 ip ospf area 0
 ip router isis LAB
 isis network point-to-point
 isis hello-interval 1
!
interface eth2
 ip address 10.1.2.{number}/24
 ip ospf hello-interval 1
 ip ospf dead-interval 4
 ip ospf area 0
 ip ospf cost 1000
 ip router isis LAB
 isis hello-interval 1
!
router ospf
 ospf router-id 10.0.0.{number}
!
router isis LAB
 net 49.0001.0000.0000.000{number}.00
 is-type level-2-only
!"""


@pytest.mark.qemu
@pytest.mark.long
@pytest.mark.xdist_group("linux-guest")
@pytest.mark.timeout((COME_UP + 2 * NOTICE + 60) * UNIT)
def test_lldp_lacp_ospf_and_isis_come_up_over_cables_and_a_bridge(wired: WiredDaemon) -> None:
    need_wires()
    wired.done("net", "vlan", "lab")
    for number, wires in ((1, ("-", "-", "lab")), (2, ("r1:0", "r1:1", "lab"))):
        values = {"number": number, "other": 3 - number}
        routerguest.make(wired, f"r{number}", wires, SETUP.format(**values), FRR.format(**values))
    wired.done("r1", "r2", "start")
    ends = (("r1", "r2", "10.0.0.2"), ("r2", "r1", "10.0.0.1"))
    for vm, other, address in ends:
        reported(
            wired,
            vm,
            COME_UP,
            bond_of_two(other),
            same(LLDP, [("eth0", other), ("eth1", other), ("eth2", other)]),
            same(OSPF, [(address, "bond0"), (address, "eth2")]),
            same(ISIS, [(other, "bond0"), (other, "eth2")]),
            routed(address),
        )

    wired.done("r1", "cable", "0", "off")
    for vm, _, address in ends:
        report = reported(wired, vm, NOTICE, lambda report: "Number of ports: 1\n" in report, routed(address))
        assert (address, "bond0") in OSPF.findall(report), report
    wired.done("r1", "cable", "0", "on")
    for vm, other, _ in ends:
        reported(wired, vm, NOTICE, bond_of_two(other))


def reported(wired: WiredDaemon, vm: str, seconds: float, *fits: Callable[[str], bool]) -> str:
    """Return a router's next report that fits in everything; it has begun after the call."""
    before = len(routerguest.said(wired, vm))

    def last() -> str | None:
        new = routerguest.reports(routerguest.said(wired, vm)[before:])
        return next((report for report in new if all(fit(report) for fit in fits)), None)

    try:
        report: str = wait_for(last, seconds, f"the report of {vm}")
    except BaseException:
        print(f"{vm} said last:\n{routerguest.said(wired, vm)[-6000:]}")
        raise
    return report


def same(pattern: re.Pattern[str], expected: list[tuple[str, str]]) -> Callable[[str], bool]:
    """Whether this and nothing else is found in a report."""
    return lambda report: sorted(pattern.findall(report)) == expected


def bond_of_two(other: str) -> Callable[[str], bool]:
    """Whether both links are in one aggregator, whose partner is the other router."""
    partner = f"Partner Mac Address: {names.mac(other, 0)}"

    def joined(report: str) -> bool:
        aggregators = re.findall(r"^Aggregator ID: ([0-9]+)", report, re.MULTILINE)
        return partner in report and "Number of ports: 2" in report and len(set(aggregators)) == 1

    return joined


def routed(address: str) -> Callable[[str], bool]:
    """Whether the other's address is reached over the bond."""
    route = re.compile(rf"{re.escape(address)}/32 .* bond0,")
    return lambda report: bool(route.search(report)) and " 0% packet loss" in report
