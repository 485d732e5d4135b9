"""Two VM roots on one host, both with a VM of one name: neither's daemon touches the other's links."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from daemons import WiredDaemon, held_by, lines_of, processes_of, refused
from frames import within

from vmessd.network.links import Network, root_name
from vmessd.network.policy import Access

pytestmark = pytest.mark.qemu

MakeWired = Callable[..., WiredDaemon]

NOTHING_TO_DELETE = "nothing to delete: neither a TAP without a VM nor an empty bridge"


@pytest.fixture
def other(wired: WiredDaemon, tmp_path: Path) -> Iterator[WiredDaemon]:
    """A running daemon in the namespace of `wired`, with a root of its own."""
    (tmp_path / "second").mkdir()
    with closing(WiredDaemon(tmp_path / "second", wired.namespace)) as instance:
        instance.start()
        yield instance


def state_of(daemon: WiredDaemon) -> dict[str, tuple[Any, ...]]:
    """Return of all links what another root's daemon must not have changed."""
    return {
        name: (link["ifindex"], link.get("master"), link["address"], link["mtu"], link.get("ifalias"))
        for name, link in daemon.links().items()
    }


def test_c43_one_name_in_two_roots_is_one_roots_wire(wired: WiredDaemon, other: WiredDaemon) -> None:
    for daemon in (wired, other):
        daemon.make("a0")
    wired.done("a", "ifadd", "2", "lab", "-")
    wired.done("net", "vlan", "spare")
    wired.done("net", "add", "vethA0")
    wired.done("a", "start")
    wired.wait_guest("a0")
    before = state_of(wired)
    told = f"vmess: a0e0 belongs to the VM root {wired.root}, so it is left alone"

    assert refused(other, 1, "a", "ifadd", "1", "core") == told
    assert refused(other, 1, "a", "ifadd", "2", "core", "-") == told
    assert "a0 has no interfaces" in refused(other, 2, "a", "connect", "0", "core")
    assert lines_of(other, "a", "ifdel") == []
    assert lines_of(other, "net", "prune") == [NOTHING_TO_DELETE]
    for link in ("a0e0", "lab", "spare", "vethA0", "vethB0"):
        assert f"{link} belongs to the VM root {wired.root}" in refused(other, 1, "net", "delete", link)
    for words in (("lab", "vethA1"), ("core", "vethA0"), ("core", "a0e0")):
        assert f"belongs to the VM root {wired.root}" in refused(other, 1, "net", "vlan", *words)
    (other.root / "a0/NICS").write_text("lab -\n")
    assert f"Note: a0e0 belongs to the VM root {wired.root}" in lines_of(other, "a", "info")
    assert refused(other, 1, "a", "start") == told
    assert lines_of(other, "a", "ifadd", "1", "user") == []
    other.done("a", "start")
    other.done("a", "stop")
    other.done("a", "rm", "--yes")

    assert state_of(wired) == before
    assert held_by(wired.status("a0")["pid"]) == {"a0e0", "a0e1"}
    wired.stop()
    wired.start()
    os.kill(wired.pid, signal.SIGHUP)
    wired.wait_log("the settings are unchanged")
    wired.done("a", "stop")
    assert lines_of(wired, "a", "ifdel") == ["Set 'a0e0' nonpersistent", "Set 'a0e1' nonpersistent"]
    assert set(lines_of(wired, "net", "prune")) == {"Deleted lab", "Deleted spare"}


def test_c43_a_vm_joins_another_roots_bridge_and_its_daemon_deletes_it_not(
    wired: WiredDaemon, other: WiredDaemon
) -> None:
    wired.done("net", "vlan", "lab")
    other.make("b0")
    before = state_of(wired)["lab"]
    other.done("b", "ifadd", "1", "lab")
    assert wired.wiring() == {"lab": None, "b0e0": "lab"}
    assert state_of(wired)["lab"] == before
    assert lines_of(wired, "net", "show") == [
        f"vmess net vlan lab b0e0  # from another VM root: b0e0: {other.root}"
    ]
    assert lines_of(other, "net", "show") == [f"vmess net vlan lab b0e0  # from another VM root: {wired.root}"]
    [segment] = json.loads(wired.done("net", "show", "--json"))["segments"]
    assert (segment["own"], segment["ports"], segment["root"]) == (True, ["b0e0"], None)
    assert segment["foreign"] == [{"link": "b0e0", "root": str(other.root)}]
    [segment] = json.loads(other.done("net", "show", "--json"))["segments"]
    assert (segment["own"], segment["ports"], segment["root"]) == (False, ["b0e0"], str(wired.root))
    assert segment["foreign"] == []
    assert str(other.root) in refused(wired, 1, "net", "delete", "b0e0")
    other.done("b", "ifdel")
    assert lines_of(other, "net", "prune") == [NOTHING_TO_DELETE]
    assert lines_of(wired, "net", "delete", "lab") == ["Deleted lab"]


def test_c43_only_this_roots_taps_are_counted(wired: WiredDaemon, other: WiredDaemon) -> None:
    wired.make("a0")
    wired.done("a", "ifadd", "1", "lab")
    wired.done("a", "start")

    def carried(daemon: WiredDaemon) -> set[str]:
        network = Network(Access(0, root=root_name(daemon.root)))
        return set(within(wired.namespace.name, network.traffic))

    assert carried(wired) == {"a0"}
    assert carried(other) == set()


@pytest.mark.parametrize("alias", [None, "vmess", "vmess, being unplugged"])
def test_c43_what_has_no_root_yet_is_the_next_ones(
    wired: WiredDaemon, other: WiredDaemon, alias: str | None
) -> None:
    for daemon in (wired, other):
        daemon.make("a0")
    wired.ip("link add lab up type bridge", "link set lab alias vmess", "tuntap add a0e0 mode tap user root")
    wired.ip("link set a0e0 master lab up", *([f"link set a0e0 alias '{alias}'"] if alias else []))
    other.done("a", "ifadd", "1", "lab")
    other.done("a", "start")
    assert {link["ifalias"] for link in wired.links().values()} == {other.mark()}
    assert str(other.root) in refused(wired, 1, "a", "ifadd", "1", "core")
    # As the hint says: the root is no more.
    other.done("a", "stop")
    other.stop()
    wired.ip("link set dev a0e0 alias vmess")
    wired.done("a", "ifadd", "1", "core")
    assert (wired.wiring()["a0e0"], wired.links()["a0e0"]["ifalias"]) == ("core", wired.mark())


def test_c43_a_start_takes_a_tap_of_the_originals_from_the_other_root(
    wired: WiredDaemon, other: WiredDaemon
) -> None:
    wired.make("a0")
    other.make("a0")
    wired.ip("link add lab up type bridge", "tuntap add a0e0 mode tap user root", "link set a0e0 master lab up")
    wired.done("a", "start")
    before = state_of(wired)
    assert str(wired.root) in refused(other, 1, "a", "ifadd", "1", "core")
    assert lines_of(other, "a", "ifdel") == []
    assert state_of(wired) == before


def test_c43_two_that_want_one_name_at_once_are_not_both_given_it(
    wired: WiredDaemon, other: WiredDaemon
) -> None:
    for daemon in (wired, other):
        daemon.make("a0")
    for _ in range(5):
        with ThreadPoolExecutor(2) as both:
            done = list(both.map(lambda daemon: daemon.vmess("a", "ifadd", "1", "lab"), (wired, other)))
        assert sorted(result.returncode for result in done) == [0, 1], done
        winner, loser = (wired, other) if done[0].returncode == 0 else (other, wired)
        assert wired.links()["a0e0"]["ifalias"] == winner.mark()
        assert (winner.noted("a0"), loser.noted("a0") or None) == ("lab", None)
        winner.done("a", "ifdel")
        assert "a0e0" not in wired.links()


def test_c43_a_root_is_the_same_by_any_way_to_it(make_wired: MakeWired, tmp_path: Path) -> None:
    wired = make_wired()
    wired.start()
    wired.make("a0")
    wired.done("a", "ifadd", "1", "lab")
    wired.stop()
    root, wired.root = wired.root, tmp_path / "link"
    wired.root.symlink_to(root)
    wired.start()
    assert lines_of(wired, "a", "ifdel") == ["Set 'a0e0' nonpersistent"]
    assert processes_of(root) == []


@pytest.mark.parametrize("name", ["x" * 250, "we,ird =%@\n", "\xe9" * 120])
def test_c43_any_root_fits_into_a_mark(make_wired: MakeWired, tmp_path: Path, name: str) -> None:
    first = make_wired(directory=tmp_path)
    (tmp_path / "second").mkdir()
    with closing(WiredDaemon(tmp_path / "second", first.namespace)) as second:
        first.root, second.root = tmp_path / name / "1", tmp_path / name / "2"
        for daemon in (first, second):
            daemon.start()
            daemon.make("a0")
        first.done("a", "ifadd", "1", "lab")
        alias = first.links()["a0e0"]["ifalias"]
        assert alias == first.mark()
        assert len(alias) <= 255
        assert "belongs to the VM root" in refused(second, 1, "a", "ifadd", "1", "lab")
        first.stop()
        first.start()
        first.done("a", "ifdel")
