"""The wires of a VM that gets another name, by `rename` or by hand."""

import json
import shutil

import pytest
from daemons import WiredDaemon, lines_of, own

from vmessd.core import names

pytestmark = pytest.mark.qemu

A, B = own("a"), own("b")


def test_the_taps_go_with_the_vm(wired: WiredDaemon) -> None:
    wired.make(A)
    wired.done(A, "ifadd", "3", "lab", "-", "user:2222:22")
    wired.done(A, "mac", "1", "02:00:00:00:00:07")
    wired.done(A, "cable", "0", "off")
    before = json.loads(wired.done(A, "ifstat", "--json"))["nics"]
    assert lines_of(wired, A, "rename", B) == []
    assert wired.wiring() == {"lab": None, f"{B}e0": "lab", f"{B}e1": None}
    assert {link["ifalias"] for link in wired.links().values()} == {wired.mark()}
    assert wired.noted(B) == "lab - user:2222:22"
    after = json.loads(wired.done(B, "ifstat", "--json"))["nics"]
    same = ("index", "wire", "present", "cable", "difference")
    assert [{key: nic[key] for key in same} for nic in after] == [
        {key: nic[key] for key in same} for nic in before
    ]
    assert after[1]["mac"] == before[1]["mac"] == "02:00:00:00:00:07"
    assert after[0]["mac"] != before[0]["mac"]  # it follows from the name
    wired.done(B, "start")
    assert wired.links()[f"{B}e0"]["operstate"] != "DOWN"
    wired.done(B, "stop", "force")


def test_what_the_kernel_says_of_the_wires_is_what_goes_along(wired: WiredDaemon) -> None:
    wired.make(A)
    wired.done(A, "ifadd", "2", "lab", "lab")
    (wired.root / A / "NICS").unlink()  # as a VM of the original script
    wired.ip(f"link set {A}e1 nomaster", f"link set {A}e1 down")
    wired.done(A, "rename", B)
    assert wired.noted(B) == "lab -"
    assert wired.wiring() == {"lab": None, f"{B}e0": "lab", f"{B}e1": None}


def test_a_tap_of_the_new_name_that_is_in_the_way_is_told_and_the_rest_is_done(wired: WiredDaemon) -> None:
    wired.make(A)
    wired.done(A, "ifadd", "1", "lab")
    wired.ip(f"link add {B}e0 type bridge")
    result = wired.vmess(A, "rename", B)
    assert result.returncode == 0
    assert f"{B}: its TAPs are created at its next start: the name {B}e0 is taken by a bridge" in result.stderr
    assert wired.wiring() == {"lab": None, f"{B}e0": None}
    assert (wired.root / B).exists()
    wired.ip(f"link del {B}e0")
    wired.done(B, "start")
    assert wired.wiring() == {"lab": None, f"{B}e0": "lab"}


def test_the_longest_of_the_original_s_names_has_room_for_as_many_interfaces(wired: WiredDaemon) -> None:
    wired.make(A)
    wired.done(A, "ifadd", "11", *["user"] * 10, "lab")
    wired.done(A, "rename", "abcdefghijkl0")
    assert wired.wiring() == {"lab": None, names.tap("abcdefghijkl0", 10): "lab"}


def test_prune_deletes_the_taps_that_a_renaming_by_hand_left_behind(wired: WiredDaemon) -> None:
    foreign = ("gone0e0", "gone0e1", "gone0e2")  # without the mark of this root
    wired.make(A)
    wired.make(B)
    wired.done(A, "ifadd", "2", "lab")
    wired.done(B, "ifadd", "1", "lab")
    wired.ip(*(f"tuntap add {name} mode tap" for name in foreign))
    wired.ip(f"link set {foreign[1]} alias 'vmess: elsewhere'", f"link set {foreign[2]} alias vmess")
    (wired.root / A).rename(wired.root / "c0")
    assert lines_of(wired, "net", "prune") == [f"Deleted {A}e0", f"Deleted {A}e1"]
    assert wired.wiring() == {"lab": None, f"{B}e0": "lab", **dict.fromkeys(foreign)}
    wired.done(B, "start")
    shutil.rmtree(wired.root / B)  # it runs all the same
    assert wired.done("net", "prune") == "nothing to delete: neither a TAP without a VM nor an empty bridge\n"
    assert f"{B}e0" in wired.wiring()
    wired.done(B, "stop", "force")
    assert lines_of(wired, "net", "prune") == [f"Deleted {B}e0", "Deleted lab"]
