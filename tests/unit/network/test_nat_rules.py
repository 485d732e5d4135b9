"""The rules of a bridge with NAT, and what is read from the lists of nft."""

import json
import shutil
import subprocess

import pytest
from daemons import UNIT

from vmessd.core import nat
from vmessd.network import nat_rules
from vmessd.qemu import nft

LAB = nat.parse("lab-0", "10.99.0.0/24")


@pytest.mark.parametrize("opened", [(), ("eth0",), ("eth0", "wlan0.7")])
def test_nft_understands_the_rules(opened: tuple[str, ...]) -> None:
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    commands = nat_rules.rules(LAB, opened)
    # Without CAP_NET_ADMIN nft cannot even check; in a namespace of its own it can.
    checked = ["unshare", "--net", "nft", "--check", "--file", "-"]
    done = subprocess.run(
        checked, input=commands, capture_output=True, text=True, timeout=20 * UNIT, check=False
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip("there are no network namespaces here")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_table_is_replaced_at_once_and_named_after_the_bridge() -> None:
    assert nat_rules.rules(LAB, ()).startswith(nat_rules.removal("lab-0") + "table inet vmess_lab-0 {")
    assert "elements" not in nat_rules.rules(LAB, ())
    assert 'elements = { "eth0", "eth1" }' in nat_rules.rules(LAB, ("eth0", "eth1"))


def test_which_links_were_opened() -> None:
    sets = [
        {"metainfo": {"version": "1.0.6"}},
        {
            "set": {
                "family": "inet",
                "name": "opened",
                "table": "vmess_lab0",
                "type": "ifname",
                "elem": ["eth0"],
            }
        },
        {"set": {"family": "inet", "name": "opened", "table": "vmess_lab1", "type": "ifname"}},
        {"set": {"family": "inet", "name": "opened", "table": "theirs", "elem": ["eth9"]}},
        {"set": {"family": "inet", "name": "others", "table": "vmess_lab0", "elem": ["eth9"]}},
    ]
    found = nat_rules.opened_links(json.dumps({"nftables": sets}))
    assert found == {"vmess_lab0": {"eth0"}, "vmess_lab1": set()}


def test_large_sets_of_others_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {("vmess_lab0", "opened"): ["eth0"], ("vmess_lab1", "opened"): []}
    asked = []

    def listed(*arguments: str) -> str:
        asked.append(arguments)
        shown = [one for one in sets if "set" not in arguments or one == arguments[-2:]]
        terse = "-t" in arguments
        entries = [
            {"set": {"table": table, "name": name} | ({} if terse else {"elem": sets[table, name]})}
            for table, name in shown
        ]
        return json.dumps({"nftables": entries})

    monkeypatch.setattr(nft, "_run", listed)
    expected = {"vmess_lab0": {"eth0"}, "vmess_lab1": set()}
    assert nft.opened_links() == expected
    assert asked == [nat_rules.NAME_SETS, nat_rules.LIST_SETS]
    asked.clear()
    sets["blocked", "countries"] = ["192.0.2.1"] * 9
    assert nft.opened_links() == expected
    assert asked[0] == nat_rules.NAME_SETS
    assert [words[-2:] for words in asked[1:]] == [("vmess_lab0", "opened"), ("vmess_lab1", "opened")]


def test_which_chain_drops_what_is_forwarded() -> None:
    docker = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}
    for chain in (docker | {"policy": "accept"}, docker | {"hook": "input"}, docker | {"family": "ip6"}):
        assert nat_rules.dropping(json.dumps({"nftables": [{"chain": chain}]})) is None
    assert nat_rules.dropping(json.dumps({"nftables": [{"chain": docker}]})) == "ip filter FORWARD"
