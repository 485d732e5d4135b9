"""Numeric addresses: which ones only this host reaches, and how they stand before a port."""

from vmessctl.output.addresses import bracketed, is_loopback


def test_only_this_host_reaches_a_loopback_address() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("10.0.0.1", "::", "fe80::1")))


def test_an_address_with_colons_has_brackets_before_a_port() -> None:
    assert [bracketed(address) for address in ("127.0.0.1", "::1")] == ["127.0.0.1", "[::1]"]
