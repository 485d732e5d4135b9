"""The addresses of hosts that are peers."""

import socket

import pytest

from vmessctl.commands import peers
from vmessd.core.errors import Failed, InvalidValue

BOTH = {socket.AF_INET: "192.0.2.2", socket.AF_INET6: "2001:db8::2"}
KNOWN = {"both": BOTH, "six": {socket.AF_INET6: "2001:db8::3"}, "four": {socket.AF_INET: "192.0.2.4"}}


@pytest.fixture(autouse=True)
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        if host not in KNOWN:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, 2, 17, "", (text, 0)) for family, text in KNOWN[host].items()]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_names_have_addresses_of_one_family() -> None:
    assert peers.addresses(["both"]) == ["192.0.2.2"]
    assert peers.addresses(["both", "four"]) == ["192.0.2.2", "192.0.2.4"]
    assert peers.addresses(["both", "six"]) == ["2001:db8::2", "2001:db8::3"]
    assert peers.addresses([]) == []
    with pytest.raises(InvalidValue, match="'six' has no IPv4 address, and 'four' none of IPv6"):
        peers.addresses(["six", "four", "both"])


def test_a_name_without_an_address_is_named() -> None:
    with pytest.raises(Failed, match="host 'nobody' has no address: name or service not known"):
        peers.addresses(["both", "nobody"])
