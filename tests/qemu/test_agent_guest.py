"""The guest agent that Debian builds, in a guest whose power button has no effect."""

import json
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import linuxguest
import pytest
from daemons import UNIT, Daemon, own, wait_for

from vmessd.storage.vmdir import AGENT_SOCKET

pytestmark = [pytest.mark.qemu, pytest.mark.long, pytest.mark.xdist_group("linux-guest")]

BOOT_TIME = 60 * UNIT
"""Seconds that the guest may take; it takes 5 on an idle machine."""


@pytest.fixture
def vm(daemon: Daemon, tmp_path: Path) -> str:
    """A VM with the agent, which answers."""
    name, disk = own("q"), tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(64 * 2**20)
    subprocess.run(["/usr/sbin/mkfs.ext4", "-q", disk], check=True, timeout=30 * UNIT)
    options = linuxguest.options(agent=True)
    daemon.make(name, guest=None, RAM="256M", EXARGS=options, NIC_MODEL="virtio-net-pci", SMP="2")
    daemon.done(name, "hda", disk, "disk-bus", "virtio", "agent", "on", "ifadd", "1", "user", "start")
    daemon.wait_guest(name, b"disk: mounted", seconds=BOOT_TIME)
    daemon.wait_guest(name, b"ready", seconds=BOOT_TIME)
    return name


def test_the_agent_says_the_addresses_and_shuts_the_guest_down(daemon: Daemon, vm: str) -> None:
    reach = json.loads(daemon.done(vm, "addr", "--json"))
    assert "10.0.2.15" in json.dumps(reach), reach
    daemon.stop()
    daemon.start()
    assert "10.0.2.15" in daemon.done(vm, "addr")
    daemon.done(vm, "stop")
    assert daemon.status(vm)["last_exit"]["reason"] == "powered_down"
    assert b"shut down by the agent" in (daemon.root / vm / "serial.log").read_bytes()


def asked(daemon: Daemon, vm: str, command: str) -> Any:
    """Ask the agent, as a daemon does, and return its answer."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rb") as lines:
        connection.settimeout(20 * UNIT)
        connection.connect(str(daemon.root / vm / AGENT_SOCKET))
        connection.sendall(json.dumps({"execute": f"guest-fsfreeze-{command}"}).encode() + b"\n")
        return json.loads(lines.readline())["return"]


def test_file_systems_are_frozen_for_a_snapshot_and_a_copy_and_thawed(daemon: Daemon, vm: str) -> None:
    for words in (("snapshot", "take", "one"), ("clone", own("r"))):
        result = daemon.vmess(vm, *words)
        assert (result.returncode, "its agent had frozen its file systems" in result.stderr) == (0, True), (
            result
        )
        assert asked(daemon, vm, "status") == "thawed"
    daemon.stop(signal.SIGKILL)
    assert asked(daemon, vm, "freeze") > 0
    assert asked(daemon, vm, "status") == "frozen"
    daemon.start()
    wait_for(lambda: asked(daemon, vm, "status") == "thawed", what="a thaw by the next daemon")
