"""The command line of dnsmasq, and its file of leases, which guests fill."""

from hypothesis import given
from hypothesis import strategies as st

from vmessd.core import nat
from vmessd.qemu import dnsmasq

LAB = nat.parse("lab0", "10.99.0.0/24")


def test_leases_are_read_and_what_else_is_there_is_not() -> None:
    text = (
        "1796054982 56:be:b0:93:29:40 10.99.0.72 web0 01:56:be:b0:93:29:40\n"
        "1796054983 56:be:b0:93:29:41 10.99.0.9 * *\n"
        "1796054983 56:be:b0:93:29:42 192.0.2.9 * *\n"
        "duid 00:01\n"
        "x 56:be:b0:93:29:40 10.99.0.72 * *\n"
        "1796054983 nonsense 10.99.0.72 * *\n"
        "1796054983 56:be:b0:93:29:41 10.99.0.999 * *\n\n"
    )
    found = [(lease.expires, lease.mac, str(lease.address)) for lease in dnsmasq.parse_leases(text, LAB)]
    assert found == [
        (1796054983, "56:be:b0:93:29:41", "10.99.0.9"),
        (1796054982, "56:be:b0:93:29:40", "10.99.0.72"),
    ]


@given(st.text())
def test_any_file_of_leases_is_read(text: str) -> None:
    assert all(lease.address in LAB.network for lease in dnsmasq.parse_leases(text, LAB))


def test_roots_and_bridges_have_other_command_lines() -> None:
    hosts = [("02:11:9b:af:00:00", "newvm0")]
    words = dnsmasq.command(LAB, "/vms", 1500, hosts)
    assert words[-1] == "--dhcp-host=02:11:9b:af:00:00,newvm0"
    assert {"--interface=lab0", "--no-hosts", "--conf-file=/dev/null", "--dhcp-ignore-names"} <= set(words)
    others = [dnsmasq.command(LAB, "/other", 1500, hosts), dnsmasq.command(LAB, "/vms", 1400, hosts)]
    assert all(other != words for other in others)
