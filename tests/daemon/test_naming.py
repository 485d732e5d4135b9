"""VMs with the names that people have: made, listed, named by patterns, started wherever their root is."""

import json
from pathlib import Path

import pytest
from daemons import FAKE, Daemon

LONGEST = f"{'kubernetes-' * 2}node-12a"


def test_names_of_all_forms_are_made_and_listed_in_natural_order(daemon: Daemon) -> None:
    for name in ("leaf12", "leaf", "web-1", "leaf2", "administration1", "pe1x"):
        daemon.done(name, "make")
    made = ["administration1", "leaf0", "leaf2", "leaf12", "pe1x", "web-1"]
    assert daemon.vmessctl("list", "-o", "name", "--no-header").stdout.split() == made
    replies = daemon.vmessctl("leaf*", "ram", "64M", "--json").stdout.splitlines()
    assert [json.loads(reply)["vm"] for reply in replies] == ["leaf0", "leaf2", "leaf12"]
    assert [vm["name"] for vm in json.loads(daemon.done("list", "--json"))["vms"]] == made
    info = json.loads(daemon.done("leaf12", "info", "--json"))["info"]
    assert info["directory"] == f"{daemon.root}/leaf12"


def test_capitals_are_taken_as_lower_case_and_said_in_a_line(daemon: Daemon) -> None:
    result = daemon.vmessctl("Web-1", "web-1", "make")
    assert result.returncode == 0
    assert result.stderr == "VM name 'Web-1' taken as web-1\n"
    assert [file.name for file in daemon.root.iterdir()] == ["web-1"]
    assert daemon.vmessctl("--quiet", "WEB-1", "ram", "64M").stderr == ""
    assert daemon.vmessctl("WEB*", "ram", "64M").stderr == "VM name 'WEB*' taken as web*\n"
    result = daemon.vmessctl("web-1", "rename", "Web-2")
    assert (result.returncode, result.stderr) == (0, "VM name 'Web-2' taken as web-2\n")
    assert [file.name for file in daemon.root.iterdir()] == ["web-2"]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("web-", "VM name 'web-' ends with a hyphen; it must end with a letter or digit"),
        ("newvm0e0", "VM name 'newvm0e0' is the name of a TAP: interface 0 of VM newvm0 has it"),
        (
            "lab-bridge1",
            "VM name 'lab-bridge1' is not free: lab-bridge1 would be a VM and a TAP of VM lab-bridg",
        ),
    ],
)
def test_a_name_that_would_be_taken_for_something_else_is_refused_in_a_line(
    daemon: Daemon, name: str, line: str
) -> None:
    daemon.make("lab-bridg")
    daemon.make("a0")
    for words in ((name, "make"), ("a0", "rename", name)):
        result = daemon.vmessctl(*words)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.splitlines() == [f"vmessctl: {line}"]
    assert sorted(file.name for file in daemon.root.iterdir()) == ["a0", "lab-bridg"]


def test_a_long_name_in_a_root_with_a_long_path_starts(tmp_path: Path) -> None:
    """Paths of sockets in it have more than the 107 bytes of unix(7)."""
    root = tmp_path.joinpath(*["long" * 10] * 3)
    daemon = Daemon(tmp_path, root)
    daemon.arguments += ["--qemu", str(FAKE)]
    try:
        daemon.start()
        daemon.make_fake(LONGEST, "good")
        assert len(f"{root}/{LONGEST}/qmp.sock") > 200
        daemon.done(LONGEST, "start")
        assert daemon.status(LONGEST)["state"] == "running"
        daemon.done(LONGEST, "stop", "force")
    finally:
        daemon.close()


def test_a_vm_that_is_removed_is_gone_whatever_hyphens_it_has(daemon: Daemon) -> None:
    daemon.done("a-b-c", "make")
    daemon.done("a-b-c", "rm", "--yes")
    assert list(daemon.root.iterdir()) == []
