"""What others do to the host's links meanwhile, and what members of the socket's group may not do to them."""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable

import pytest
from daemons import FAKE, UNIT, WiredDaemon, refused, wait_for

from vmessctl.client import Client
from vmessd.core.errors import Locked

MakeWired = Callable[..., WiredDaemon]


def hanging(make_wired: MakeWired) -> WiredDaemon:
    """Start a daemon and a VM whose QEMU never answers when it is to be given a network card."""
    wired = make_wired("--qemu", str(FAKE))
    wired.start()
    wired.make_fake("leaf0", "cards,mute=netdev_add", NICS="-")
    wired.make_fake("spine0", "cards", NICS="-")
    wired.done("leaf", "spine", "start")
    return wired


def test_a_bridge_that_somebody_uses_by_now_outlives_the_failure_of_who_made_it(make_wired: MakeWired) -> None:
    wired = hanging(make_wired)
    client = wired.client("leaf", "ifadd", "2", "-", "fresh")
    wait_for(lambda: wired.wiring().get("leaf0e1") == "fresh", 5, "the bridge")
    wired.done("spine", "connect", "0", "fresh")
    assert "does not answer" in client.communicate(timeout=30 * UNIT)[1]
    assert wired.wiring() == {"fresh": None, "leaf0e0": None, "spine0e0": "fresh"}


def test_what_is_taken_back_is_never_another_link_by_that_name(make_wired: MakeWired) -> None:
    wired = hanging(make_wired)
    wired.ip("link add precious type veth peer name other")
    client = wired.client("leaf", "ifadd", "2", "-", "-")
    wait_for(lambda: "LOWER_UP" not in wired.links().get("leaf0e1", {"flags": ["LOWER_UP"]})["flags"], 5, "it")
    wired.ip("link delete leaf0e1", "link property add dev precious altname leaf0e1")
    client.communicate(timeout=30 * UNIT)
    assert {"precious", "other"} <= wired.links().keys()
    assert not wired.links()["precious"].get("ifalias")


def test_an_alias_of_any_bytes_is_put_back(wired: WiredDaemon) -> None:
    directory = wired.make("leaf0")
    wired.done("leaf", "ifadd", "1", "lab")
    wired.namespace.run("ip", "link", "set", "leaf0e0", "alias", os.fsdecode(b"\xe9" * 200))
    (directory / "NICS").unlink()
    os.mkfifo(directory / "NICS")
    assert wired.vmess("leaf", "ifadd", "1", "elsewhere").returncode == 1
    (directory / "NICS").unlink()
    assert wired.done("leaf", "ifstat") == "vmess leaf0 ifadd 1 lab\n"


def test_a_tap_is_not_deleted_before_its_qemu_has_it(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "1", "lab")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            start = pool.submit(wired.vmess, "leaf", "start")
            delete = pool.submit(wired.vmess, "net", "delete", "leaf0e0")
            assert start.result().returncode == 0
            delete.result()
            tap = wired.links()["leaf0e0"]
            assert tap["linkinfo"]["info_data"]["persist"] is True
            assert "LOWER_UP" in tap["flags"]
            wired.done("leaf", "stop", "force")
            wired.done("leaf", "ifadd", "1", "lab")


def test_other_segments_are_not_joined_to_a_bridge_of_others(wired: WiredDaemon) -> None:
    wired.ip("link add uplink type bridge", "link set uplink up")
    for words in (["uplink", "vethA0"], ["uplink", "vxlan7"]):
        result = wired.vmess("net", "vlan", *words)
        assert (result.returncode, result.stdout) == (1, "")
        assert "uplink is a bridge and not vmess's own" in result.stderr
    assert set(wired.links()) == {"uplink"}
    wired.done("net", "vlan", "uplink", "leaf0e0")  # a VM may join
    looped = wired.vmess("net", "vlan", "lab", "vethA0", "vethB0")
    assert "loop" in looped.stderr
    assert set(wired.links()) == {"uplink", "leaf0e0"}


def test_a_bridge_in_use_is_neither_deleted_nor_pruned(wired: WiredDaemon) -> None:
    wired.done("net", "vlan", "lab")
    wired.ip("address add 10.8.0.1/24 dev lab")
    result = wired.vmess("net", "delete", "lab")
    assert "lab is in use (an IP address of the host), so it is not deleted" in result.stderr
    wired.done("net", "prune")
    assert "lab" in wired.links()


def test_rm_and_ifadd_at_once_leave_nothing_behind(wired: WiredDaemon) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            wired.make("leaf0")
            first = pool.submit(wired.vmess, "leaf", "rm", "--yes")
            second = pool.submit(wired.vmess, "leaf", "ifadd", "2", "lab", "lab")
            first.result()
            second.result()
            assert not [link for link in wired.links() if link.startswith("leaf0")]


def test_one_call_asks_for_so_many_interfaces_and_no_more(wired: WiredDaemon) -> None:
    result = wired.vmess("net", "vlan", "lab", *(f"leaf0e{number}" for number in range(65)))
    assert (result.returncode, wired.links()) == (2, {})
    assert "65 interfaces are more than 64 at once" in result.stderr


def test_nics_cannot_be_written_larger_than_it_can_be_read(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    word = "user:" + ",".join(f"{20000 + port}:{port}" for port in range(1, 34))
    result = wired.vmess("leaf", "ifadd", "1", word)
    assert "33 forwarded ports are too many; at most 32 are allowed" in result.stderr
    wired.done("leaf", "ifadd", "29", *[word.rpartition(",")[0]] * 29)
    assert len(wired.done("leaf", "ifstat").split()) == 4 + 29


def test_a_guest_of_many_addresses_does_not_hold_up_addr(wired: WiredDaemon) -> None:
    wired.make("leaf0")
    wired.done("leaf", "ifadd", "1", "lab")
    wired.done("leaf", "start")  # a port without a carrier learns nothing
    batch = wired.directory / "fdb"
    batch.write_text(
        "".join(
            f"fdb add 06:00:00:00:{number >> 8:02x}:{number & 255:02x} dev leaf0e0 master dynamic\n"
            for number in range(5000)
        )
    )
    wired.namespace.run("bridge", "-batch", str(batch))
    assert len(wired.done("leaf", "addr").splitlines()) == 65


def test_a_list_of_ignored_links_that_is_none_is_told_before_anything_is_made(wired: WiredDaemon) -> None:
    (wired.root / "NET_IGNORE").write_bytes(b"\xff\xfe")
    result = wired.vmess("net", "add", "vethA0")
    assert (result.returncode, wired.links()) == (1, {})
    assert "NET_IGNORE is not text" in result.stderr


def test_a_daemon_that_is_to_end_finishes_or_takes_back_what_is_under_way(make_wired: MakeWired) -> None:
    wired = hanging(make_wired)
    client = wired.client("leaf", "ifadd", "2", "lab", "fresh")
    wait_for(lambda: wired.wiring().get("leaf0e1") == "fresh", 5, "the bridge")
    assert wired.stop() == 0
    client.communicate(timeout=30 * UNIT)
    assert wired.noted("leaf0") == "-"
    assert wired.wiring() == {"leaf0e0": None, "spine0e0": None}


def links_of(wired: WiredDaemon) -> dict[str, int]:
    """The links by name, with the numbers of the very ones."""
    return {name: link["ifindex"] for name, link in wired.links().items()}


def test_links_of_a_locked_vm_stay_as_they_are(wired: WiredDaemon) -> None:
    for vm in ("leaf0", "spine0"):
        wired.make(vm)
    wired.done("leaf", "spine", "ifadd", "1", "lab")
    wired.done("leaf", "lock", "for", "the", "demo")
    before = wired.wiring(), links_of(wired)
    for words in (
        ["vlan", "other", "spine0e0", "leaf0e0"],
        ["vlan", "other", "leaf0e1"],
        ["vlan", "other", "leaf0e0.5"],
        ["add", "leaf0e1"],
        ["add", "leaf0e0.5.6"],
        ["delete", "leaf0e0"],
    ):
        result = wired.vmess("net", *words)
        assert (result.returncode, words) == (7, words), result
        assert result.stderr == "vmess: VM leaf0 is locked: for the demo\n  hint: vmess leaf0 unlock\n"
        assert (wired.wiring(), links_of(wired)) == before, words
    with contextlib.closing(Client([str(wired.socket)])) as client, pytest.raises(Locked):  # behind many others
        client.call("NetVlan", bridge="other", interfaces=[*["spine0e0"] * 64, "leaf0e0"])
    assert (wired.wiring(), links_of(wired)) == before
    wired.done("net", "vlan", "lab")
    wired.done("net", "vlan", "other", "spine0e0", "nosuch0e0")
    wired.done("net", "delete", "nosuch0e0")
    (wired.root / "gone0").symlink_to(wired.root / "leaf0")  # no VM, and so no lock of one
    wired.done("net", "add", "gone0e0")
    wired.done("leaf", "unlock")
    wired.done("net", "delete", "leaf0e0")


def test_links_of_a_locked_vm_that_runs_stay_where_they_are(make_wired: MakeWired) -> None:
    wired = make_wired("--qemu", str(FAKE))
    wired.start()
    wired.make_fake("leaf0", "cards", NICS="lab")
    wired.done("leaf", "start", "lock")
    moved = (wired.root / "leaf0").rename(wired.root / "aside")
    wait_for(lambda: wired.status("leaf0")["problem"], what="the news of its directory")
    for words in (["vlan", "other", "leaf0e0"], ["delete", "leaf0e0"]):
        assert refused(wired, 7, "net", *words) == "vmess: VM leaf0 is locked"
    assert wired.wiring()["leaf0e0"] == "lab"
    moved.rename(wired.root / "leaf0")
    wait_for(lambda: wired.status("leaf0")["problem"] is None, what="the directory's return")
    assert refused(wired, 7, "net", "vlan", "other", "leaf0e0") == "vmess: VM leaf0 is locked"


def test_what_is_noted_of_a_vm_whose_directory_was_renamed_is_read_and_written_there(
    wired: WiredDaemon,
) -> None:
    wired.make("leaf0", NICS="lab user:2222:22", MACS="02:00:00:00:00:05")
    wired.done("leaf", "start")
    moved = (wired.root / "leaf0").rename(wired.root / "aside")
    wait_for(lambda: wired.status("leaf0")["problem"], what="the news of its directory")
    wired.make("leaf0", guest=None)  # another one in its place
    assert wired.done("leaf", "ifstat") == "vmess leaf0 ifadd 2 lab user:2222:22\n"
    assert wired.done("--all", "ifstat") == "vmess leaf0 ifadd 2 lab user:2222:22\n"
    wired.done("leaf", "mac", "1", "02:00:00:00:00:06")
    wired.done("leaf", "cable", "1", "off")
    assert (moved / "CABLES").read_text() == "1\n"
    wired.done("leaf", "connect", "0", "other")
    wired.done("leaf", "ifadd", "3", "other", "user:2222:22", "-")
    wired.done("leaf", "lock", "for", "the", "demo")
    said = {file: (moved / file).read_text() for file in ("NICS", "MACS", "LOCK")}
    assert said == {
        "NICS": "other user:2222:22 -\n",
        "MACS": "02:00:00:00:00:05 02:00:00:00:00:06\n",
        "LOCK": "for the demo\n",
    }
    assert not {file.name for file in (wired.root / "leaf0").iterdir()} & {*said, "CABLES"}
    assert wired.vmess("leaf", "cable", "1", "on").returncode == 7
