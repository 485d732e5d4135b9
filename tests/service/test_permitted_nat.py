"""NAT with the installed service: only what the administrator allows, and with no right more than it takes."""

import pytest
from booted import CONFIG, SETTINGS, Container

pytestmark = pytest.mark.slow

RANGE = "10.99.0.0/24"
CAPABILITY = "CAP_NET_BIND_SERVICE"


def dnsmasq(host: Container) -> str:
    """Return the pid of the only dnsmasq."""
    (pid,) = host.done("pgrep", "-x", "dnsmasq").split()
    return pid


def test_a_member_gives_nat_within_what_the_administrator_allows(host: Container) -> None:
    nat = ("net", "nat", "lab0")
    assert "allowed are: none" in host.vmess(*nat, RANGE, user="member").stderr
    host.tree.write(CONFIG, f'{SETTINGS}allow-nat = ["10.99.0.0/16"]\n')
    host.systemctl("reload", "vmessd.service")
    try:
        assert "NAT for 10.98.0.0/24 is not allowed" in host.vmess(*nat, "10.98.0.0/24", user="member").stderr
        said = host.vmess(*nat, RANGE, user="member").stderr
        assert "lacks CAP_NET_BIND_SERVICE" in said
        assert "systemctl edit vmessd" in said
        host.drop_in(
            "vmessd.service", f"AmbientCapabilities={CAPABILITY}", f"CapabilityBoundingSet={CAPABILITY}"
        )
        host.restart()
        host.done("vmess", *nat, RANGE, user="member")
        pid = dnsmasq(host)
        status = host.done("cat", f"/proc/{pid}/status")
        assert host.done("stat", "--format=%U", f"/proc/{pid}").strip() in ("dnsmasq", "nobody")
        assert "\nCapEff:\t0000000000001400\n" in status
        assert "\nNoNewPrivs:\t1\n" in status
        assert "inet vmess_lab0" in host.done("nft", "list", "tables")
        host.restart()
        assert dnsmasq(host) == pid
        host.done("vmess", *nat, "off", user="member")
        assert host.done("nft", "list", "ruleset") == ""
        assert host.run("pgrep", "-x", "dnsmasq").returncode == 1
        host.done("vmess", "net", "delete", "lab0")
    finally:
        host.tree.write(CONFIG, SETTINGS)
