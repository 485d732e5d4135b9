"""The guest agent that Debian builds, in a guest whose power button has no effect."""

import json
import subprocess
from pathlib import Path

import linuxguest
import pytest
from daemons import UNIT, Daemon, own

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
