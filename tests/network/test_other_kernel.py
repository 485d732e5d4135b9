"""Tests that the kernel of this machine may have to skip, in a guest with Debian's own kernel."""

from pathlib import Path
from xml.etree import ElementTree as ET

import kernelguest
import pytest

SELECTION = [
    *("tests/network/test_impairments.py", "tests/network/test_wires.py"),
    *("tests/network/test_net.py", "tests/network/test_rtnetlink.py", "-k"),
    "(test_impairments and not flaps) or (makes_no_sense and (bonded or card)) or a_vlan_of or links_of_each",
]
"""Flapping is the work of QEMU, and needs no kernel in particular."""

WITHOUT_NETEM = {
    "test_c130_without_netem_one_line_says_so_and_nothing_is_left",
    "test_without_netem_the_vm_that_asked_for_it_says_so",
}


@pytest.mark.long
@pytest.mark.qemu
@pytest.mark.timeout(1800)
def test_what_this_kernel_lacks_passes_under_the_kernel_of_debian(tmp_path: Path) -> None:
    status = kernelguest.pytest_in_guest(tmp_path, *SELECTION)
    output = (tmp_path / "output").read_text(errors="replace")
    assert status == 0, output
    suite = ET.parse(tmp_path / "report.xml").getroot().find("testsuite")  # noqa: S314 -- our own
    assert suite is not None
    skipped = {case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None}
    ran = {case.get("name") for case in suite.iter("testcase")} - skipped
    assert {
        "test_c132_each_direction_of_a_cable_is_impaired_by_itself",
        "test_a_vlan_of_a_trunk_is_a_segment_without_tags",
    } <= ran, output
    assert skipped == WITHOUT_NETEM, output
