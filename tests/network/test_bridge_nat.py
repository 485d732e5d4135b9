"""Bridges with NAT: real nft, real dnsmasq, a guest at the other end of a veth, and a network outside."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from daemons import UNIT, Namespace, WiredDaemon, refused, wait_for

from vmessd.core import names

RANGE = "10.99.0.0/24"
SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address flush dev $interface
ip address add $ip/$mask dev $interface
ip route replace default via $router
echo "bound $ip $router $dns"
"""

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        not all(map(shutil.which, ("nft", "dnsmasq", "busybox", "tcpdump"))),
        reason="needs nft, dnsmasq, busybox and tcpdump",
    ),
]


def read_proc(pid: int, name: str) -> str:
    """Return a file of a process; nothing if that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text()
    return ""


@dataclass
class Site:
    """A host with an uplink, and what is at its ends."""

    daemon: WiredDaemon
    guest: Namespace
    outside: Namespace
    script: Path

    def state(self) -> dict[str, object]:
        """Return all of the host that NAT could leave a trace in."""
        host = self.daemon.namespace
        shown = json.loads(host.run("ip", "-json", "-details", "address", "show").stdout)
        links = {
            link["ifname"]: (
                [(one["local"], one["prefixlen"]) for one in link["addr_info"] if one["scope"] != "link"],
                *(link["mtu"], link.get("master"), link.get("inet6_addr_gen_mode"), link.get("ifalias")),
            )
            for link in shown
        }
        values = host.run("sysctl", "net.ipv4.conf", "net.ipv4.ip_forward").stdout.splitlines()
        return {
            "links": links,
            "rules": host.run("nft", "list", "ruleset").stdout,
            "sysctls": sorted(line for line in values if "forward" in line or "rp_filter" in line),
            "routes": host.run("ip", "-4", "route", "show", "table", "all").stdout,
            "files": sorted(path.name for path in self.daemon.root.iterdir()),
            "servers": self.servers(),
        }

    def servers(self) -> list[int]:
        """Return the pids of the dnsmasqs of the host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.daemon.namespace.name], capture_output=True, text=True, check=True
        )
        return [pid for pid in map(int, listed.stdout.split()) if read_proc(pid, "comm") == "dnsmasq\n"]

    def server(self) -> int:
        (pid,) = self.servers()
        return pid

    def serves_with(self, word: str) -> bool:
        """Tell whether there is a dnsmasq with this argument."""
        return any(word in read_proc(pid, "cmdline").split("\0") for pid in self.servers())

    def lease(self) -> str:
        """Have the guest ask for an address, and return it."""
        asked = (
            "busybox",
            "udhcpc",
            "-f",
            "-q",
            "-n",
            "-t",
            "5",
            "-T",
            "1",
            "-i",
            "eth0",
            "-s",
            str(self.script),
        )
        said = self.guest.run(*asked).stdout.splitlines()
        (bound,) = [line.split() for line in said if line.startswith("bound ")]
        assert bound[2:] == ["10.99.0.1", "10.99.0.1"]
        return bound[1]

    def reaches(self, address: str, source: Namespace | None = None) -> bool:
        asked = ("busybox", "ping", "-c", "1", "-W", "1", address)
        return (source or self.guest).run(*asked, check=False).returncode == 0

    @contextlib.contextmanager
    def heard_outside(self, what: str) -> Iterator[list[str]]:
        """Yield a list that has what tcpdump prints of the first frame outside, after the `with`."""
        command = [*self.outside.inside, "tcpdump", "-n", "-l", "-c", "1", "-i", "out0", what]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as dump:
            heard: list[str] = []
            try:
                assert dump.stderr is not None
                while "listening on" not in dump.stderr.readline():
                    assert dump.poll() is None
                yield heard
                heard += dump.communicate(timeout=10 * UNIT)[0].splitlines()
            finally:
                dump.kill()


@pytest.fixture
def site(make_wired: Callable[..., WiredDaemon], tmp_path: Path) -> Iterator[Site]:
    """A host with a default route, a bridge with a veth, and a guest at the other end of it."""
    daemon = make_wired()
    with contextlib.closing(Namespace()) as guest, contextlib.closing(Namespace()) as outside:
        daemon.ip(
            f"link add up0 type veth peer name out0 netns {outside.name}",
            "address add 192.0.2.1/24 dev up0",
            "link set up0 up",
            "route add default via 192.0.2.9",
        )
        outside.ip(
            "address add 192.0.2.9/24 dev out0", "link set out0 up", "route add 10.99.0.0/24 via 192.0.2.1"
        )
        daemon.start()
        daemon.done("net", "vlan", "lab0", "vethA0")
        daemon.ip(f"link set vethB0 mtu 1500 netns {guest.name} name eth0")
        guest.ip("link set eth0 up")
        script = tmp_path / "bound"
        script.write_text(SCRIPT)
        script.chmod(0o755)
        yield Site(daemon, guest, outside, script)


def test_c145_guests_have_nat_dhcp_and_dns_and_the_end_leaves_no_trace(site: Site) -> None:
    site.daemon.make("web0")
    site.daemon.done("web0", "ifadd", "1", "lab0")
    site.guest.ip(f"link set eth0 address {names.mac('web0', 0)}")
    before = site.state()
    told = site.daemon.done("net", "nat", "lab0", RANGE)
    assert told == f"lab0: NAT for {RANGE}; the host is 10.99.0.1, guests get 10.99.0.2 to 10.99.0.254\n"
    address = site.lease()
    with site.heard_outside("icmp") as heard:
        assert site.reaches("192.0.2.9")
    assert "IP 192.0.2.1 > 192.0.2.9: ICMP echo request" in heard[0]
    assert address in site.guest.run("busybox", "nslookup", "web0", "10.99.0.1").stdout
    # The host's services on the bridge, and nothing else.
    assert site.reaches("10.99.0.1")
    assert not site.reaches("192.0.2.1"), "another address of the host"
    listening = site.daemon.namespace.run("ss", "-Hlnut").stdout.splitlines()
    assert sorted(line.split()[4] for line in listening) == ["0.0.0.0%lab0:67", "10.99.0.1:53", "10.99.0.1:53"]
    # The uplink forwards what belongs to the NAT, and nothing else; nobody outside begins a connection.
    forwarding = site.daemon.namespace.run("cat", "/proc/sys/net/ipv4/conf/up0/forwarding").stdout
    assert forwarding == "1\n"
    assert not site.reaches(address, site.outside)
    status = Path(f"/proc/{site.server()}/status").read_text()
    assert "\nUid:\t0\t" not in status
    assert "\nCapEff:\t0000000000001400\n" in status, "CAP_NET_BIND_SERVICE and CAP_NET_ADMIN"
    segment = next(
        one for one in json.loads(site.daemon.done("net", "--json"))["segments"] if one["bridge"] == "lab0"
    )
    assert [lease["address"] for lease in segment["nat"]["leases"]] == [address]
    assert f"net nat lab0 {RANGE}  # {address} web0\n" in site.daemon.done("net")
    assert "has NAT for" in refused(site.daemon, 1, "net", "delete", "lab0")
    site.daemon.ip("neighbour flush dev lab0")
    assert f"{address:<25} (DHCP, lab0)" in site.daemon.done("web0", "addr")
    site.daemon.done("net", "nat", "lab0", "off")
    assert site.state() == before
    assert refused(site.daemon, 1, "net", "nat", "lab0", "off") == "vmess: lab0 has no NAT"
    site.daemon.done("net", "delete", "vethA0")
    assert "eth0" not in site.guest.links(), "the other end of the pair"


def test_c146_what_cannot_be_is_one_line_and_nothing_changes(site: Site, tmp_path: Path) -> None:
    daemon = site.daemon
    daemon.ip("link add theirs type bridge", "link add tun0 type veth peer name lab1")
    daemon.ip("link set tun0 up", "link set lab1 up")
    daemon.ip("route add 10.50.0.0/16 dev tun0", "address add 10.77.0.5/24 dev tun0")
    before = site.state()
    for words, status, message in (
        (("lab0", "192.0.2.0/24"), 1, "range 192.0.2.0/24 is in use: up0 has the address 192.0.2.1/24"),
        (
            ("lab0", "10.50.9.0/24"),
            1,
            "range 10.50.9.0/24 is in use: a route to 10.50.0.0/16 leads out of tun0",
        ),
        (("lab0", "10.77.0.0/16"), 1, "range 10.77.0.0/16 is in use: tun0 has the address 10.77.0.5/24"),
        (("theirs", RANGE), 1, "bridge theirs is not vmess's own, so it gets neither an address nor NAT"),
        (("lab1", RANGE), 1, "lab1 is a veth, not a bridge"),
        (("lab0", "fd00::/64"), 2, "range 'fd00::/64' is IPv6"),
        (("lab0", "10.99.0.7/24"), 2, "range '10.99.0.7/24' does not begin with 10.99.0.7"),
        (("nosuch", "off"), 1, "nosuch has no NAT"),
    ):
        assert message in refused(daemon, status, "net", "nat", *words)
    assert "MTU '500' is not" in refused(daemon, 2, "net", "vlan", "lab0", "--mtu", "500")
    # Something listens on the port already: dnsmasq says so, and a bridge made for it is gone.
    with subprocess.Popen([*daemon.inside, "busybox", "nc", "-l", "-p", "53"]) as other:
        wait_for(lambda: ":53 " in daemon.namespace.run("ss", "-Hlnt").stdout, what="port 53")
        said = refused(daemon, 1, "net", "nat", "lab9", RANGE)
        other.kill()
    assert "dnsmasq does not serve: failed to create listening socket for 10.99.0.1" in said
    assert site.state() == before
    (daemon.root / "NET_NAT").write_text("lab0 what\n")
    assert "NET_NAT: range 'what' is not" in refused(daemon, 1, "net", "nat", "lab0", "off")


@pytest.mark.long
@pytest.mark.parametrize("missing", ["nft", "dnsmasq"])
def test_c146_a_missing_program_is_one_line_and_nothing_changes(site: Site, missing: str) -> None:
    before = site.state()
    hidden = Path(shutil.which(missing) or "")
    namespace = site.daemon.namespace
    site.daemon.stop()
    mount = f"mount --bind /dev/null {hidden} && exec "
    site.daemon.inside = (*namespace.inside, "unshare", "--mount", "sh", "-c", f'{mount} "$@"', "sh")
    site.daemon.start()
    said = refused(site.daemon, 1, "net", "nat", "lab0", RANGE)
    assert f"the program {missing}, which is not installed" in said
    assert site.state() == before


@pytest.mark.parametrize("fails", ["sets", "chains"])
def test_c146_an_nft_that_cannot_list_leaves_nothing_half_made(site: Site, tmp_path: Path, fails: str) -> None:
    before = site.state()
    hidden = shutil.which("nft") or ""
    copy, broken = tmp_path / "nft", tmp_path / "broken"
    shutil.copy(hidden, copy)
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *{fails}*) echo no such list; exit 1;; esac\nexec {copy} "$@"\n'
    )
    for file in (copy, broken):
        file.chmod(0o755)
    site.daemon.stop()
    mount = f"mount --bind {broken} {hidden} && exec "
    site.daemon.inside = (
        *site.daemon.namespace.inside,
        "unshare",
        "--mount",
        "sh",
        "-c",
        f'{mount} "$@"',
        "sh",
    )
    site.daemon.start()
    if fails == "sets":
        assert "no such list" in refused(site.daemon, 1, "net", "nat", "lab9", RANGE)
    else:  # only a remark depends on it
        site.daemon.done("net", "nat", "lab0", RANGE)
        site.daemon.done("net", "nat", "lab0", "off")
    assert site.state() == before


@pytest.mark.long
def test_c147_nat_outlives_a_daemon_that_is_killed(site: Site) -> None:
    site.daemon.done("net", "nat", "lab0", RANGE)
    address, server = site.lease(), site.server()
    site.daemon.stop(signal.SIGKILL)
    assert site.reaches("192.0.2.9")
    assert site.lease() == address
    site.daemon.start()
    assert site.server() == server, "the same process"
    # It is watched although it is not a child.
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: [pid for pid in site.servers() if pid != server], what="the next one")
    assert site.lease() == address
    site.daemon.done("net", "nat", "lab0", "off")
    assert site.servers() == []


@pytest.mark.long
def test_c148_a_dnsmasq_that_is_killed_is_started_again_and_said(site: Site) -> None:
    site.daemon.done("net", "nat", "lab0", RANGE)
    address = site.lease()
    for _ in range(3):
        os.kill(site.server(), signal.SIGKILL)
        wait_for(
            lambda: "dnsmasq has ended (signal 9); tried again" in site.daemon.done("net"), what="the word"
        )
        wait_for(lambda: "has ended" not in site.daemon.done("net"), what="it to serve")
    assert site.daemon.mentions("lab0: dnsmasq has ended (signal 9); tried again 4 s later")
    assert site.lease() == address


@pytest.mark.long
def test_c149_after_a_reboot_and_meddling_the_next_start_restores_all(site: Site) -> None:
    site.daemon.done("net", "nat", "lab0", RANGE)
    whole = site.state()
    site.daemon.stop(signal.SIGKILL)
    os.kill(site.server(), signal.SIGKILL)
    host = site.daemon.namespace
    host.run("nft", "flush", "ruleset")
    site.daemon.ip("address flush dev lab0", "link set lab0 mtu 1279")
    host.run("sysctl", "-qw", "net.ipv4.conf.lab0.forwarding=0", "net.ipv4.conf.up0.forwarding=0")
    site.daemon.start()
    restored = site.state()
    assert {**restored, "servers": None} == {**whole, "servers": None}
    assert site.lease()
    # A bridge that is gone is made again, as after a reboot.
    site.daemon.stop(signal.SIGKILL)
    site.daemon.ip("link delete lab0")
    site.daemon.start()
    assert ("10.99.0.1", 24) in site.state()["links"]["lab0"][0]  # type: ignore[index]


@pytest.mark.long
def test_what_becomes_an_uplink_later_and_new_vms_are_noticed(site: Site) -> None:
    host = site.daemon.namespace

    def forwards(link: str) -> bool:
        return host.run("cat", f"/proc/sys/net/ipv4/conf/{link}/forwarding").stdout == "1\n"

    site.daemon.done("net", "nat", "lab0", RANGE)
    before = site.lease()
    site.daemon.ip("link add up1 type veth peer name out1", "link set up1 up", "link set out1 up")
    assert not forwards("up1")
    site.daemon.ip("address add 198.51.100.1/24 dev up1")
    wait_for(lambda: forwards("up1"), what="forwarding by the new uplink")
    server = site.server()
    site.daemon.make("web0")
    site.daemon.done("web0", "ifadd", "1", "lab0")
    wait_for(lambda: site.servers() not in ([], [server]), what="a dnsmasq that knows the VM")
    assert site.lease() == before
    site.daemon.done("net", "vlan", "lab0", "--mtu", "1400")
    wait_for(lambda: site.serves_with("--dhcp-option=option:mtu,1400"), what="a dnsmasq that knows the MTU")
    assert not site.daemon.mentions("has ended")
    # What became of the file of leases is said at its bridge, and the rest is shown.
    leases = site.daemon.root / "NET_LEASES.lab0"
    leases.unlink()
    os.mkfifo(leases)
    shown = site.daemon.done("net")
    assert "net vlan lab0" in shown
    assert "NET_LEASES.lab0 is a FIFO; it must be a plain file" in shown
    # The administrator has the host forward: vmess leaves it so.
    host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    site.daemon.done("net", "nat", "lab0", "off")
    assert forwards("up0")
    assert forwards("up1")
    # Somebody deletes the note: the next look takes the rest back.
    site.daemon.done("net", "nat", "lab0", RANGE)
    (site.daemon.root / "NET_NAT").unlink()
    site.daemon.done("net", "vlan", "lab0")
    wait_for(lambda: "vmess_lab0" not in host.run("nft", "list", "ruleset").stdout, what="no rules")
    assert not site.servers()
    assert "net nat" not in site.daemon.done("net")


@pytest.mark.long
def test_c155_killed_at_any_moment_nat_is_completed_or_taken_back(site: Site, seed: int) -> None:
    before, dice = site.state(), random.Random(seed)
    for _ in range(20):
        for word in (RANGE, "off"):
            client = site.daemon.client("net", "nat", "lab0", word)
            time.sleep(dice.uniform(0, 0.25))
            site.daemon.stop(signal.SIGKILL)
            client.communicate(timeout=20 * UNIT)
            site.daemon.start()
        site.daemon.vmess("net", "nat", "lab0", "off")
        assert site.state() == before
