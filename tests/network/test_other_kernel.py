"""Tests that the kernel of this machine may have to skip, in a guest with Debian's own kernel."""

from pathlib import Path
from xml.etree import ElementTree as ET

import kernelguest
import pytest

pytestmark = [pytest.mark.long, pytest.mark.qemu]

SELECTIONS = {
    "impairments": ["tests/network/test_impairments.py", "-k", "not flaps"],
    "links of other kinds": ["tests/network/test_wires.py", "-k", "makes_no_sense and (bonded or card)"],
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SELECTIONS)
def test_the_tests_of_the_network_pass_under_the_kernel_of_debian(name: str, tmp_path: Path) -> None:
    status = kernelguest.pytest_in_guest(tmp_path, *SELECTIONS[name])
    output = (tmp_path / "output").read_text(errors="replace")
    print(output)
    assert status == 0, output
    suite = ET.parse(tmp_path / "report.xml").getroot().find("testsuite")  # noqa: S314 -- our own
    assert suite is not None
    ran = int(suite.get("tests", 0)) - int(suite.get("skipped", 0))
    assert ran > 0, output
    skipped = [case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None]
    assert [each for each in skipped if "without_netem" not in str(each)] == [], output
