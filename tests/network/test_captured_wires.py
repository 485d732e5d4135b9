"""Captures of interfaces on a bridge, beside what a packet socket sees, and of one that is unplugged."""

import subprocess
import time
from pathlib import Path

import pytest
from daemons import UNIT, WiredDaemon, wait_for
from frames import Capture
from wired_vms import releasing, talker

from vmessctl.commands.capture.frames import Reader
from vmessd.core import names


def test_both_directions_are_captured_as_a_packet_socket_sees_them(wired: WiredDaemon, tmp_path: Path) -> None:
    for vm in ("newvm0", "newvm1"):
        talker(wired, vm, "br0")
    file = tmp_path / "out.pcap"
    with Capture(wired.namespace.name) as witness:
        assert wired.vmess("newvm", "capture", "0", str(file), "--seconds", "0.6").returncode == 0
        seen = {one.frame for one in witness.seen() if one.link == "newvm0e0"}
    found = [frame.data for frame in Reader(None, 0).frames(file.read_bytes(), 0)]
    macs = [bytes.fromhex(names.mac(vm, 0).replace(":", "")) for vm in ("newvm0", "newvm1")]
    for mac in macs:
        assert sum(frame[6:12] == mac for frame in found) >= 3, found
    assert set(found) <= seen


def test_both_directions_of_a_cable_are_captured(wired: WiredDaemon, tmp_path: Path) -> None:
    for vm in ("newvm0", "newvm1"):
        talker(wired, vm, "-")
    wired.done("newvm0", "connect", "0", "newvm1:0")
    file = tmp_path / "out.pcap"
    assert wired.vmess("newvm", "capture", "0", str(file), "--count", "10").returncode == 0
    senders = {frame.data[6:12] for frame in Reader(None, 0).frames(file.read_bytes(), 0)}
    assert senders == {bytes.fromhex(names.mac(vm, 0).replace(":", "")) for vm in ("newvm0", "newvm1")}


def test_c124_an_interface_that_is_unplugged_ends_its_capture_and_no_other(
    wired: WiredDaemon, tmp_path: Path
) -> None:
    releasing(wired, "newvm0")
    wired.done("newvm", "ifadd", "2", "br0", "br0")
    wired.done("newvm", "start")
    wired.wait_guest("newvm0")
    first, second = (
        wired.client("newvm", "capture", str(number), str(tmp_path / f"{number}.pcap")) for number in (0, 1)
    )
    try:
        wait_for(lambda: all((tmp_path / f"{number}.pcap").exists() for number in (0, 1)), what="both captures")
        wired.done("newvm", "ifadd", "1", "br0")
        assert second.wait(20 * UNIT) == 0
        assert second.stderr is not None
        assert second.stderr.readline() == "newvm0e1: interface 1 was unplugged\n"
        time.sleep(0.3)
        assert first.poll() is None
    finally:
        for client in (first, second):
            client.kill()
            client.communicate(timeout=10 * UNIT)


@pytest.mark.long
def test_the_header_of_a_virtio_card_is_taken_off(wired: WiredDaemon, tmp_path: Path) -> None:
    """The boot ROM of the card asks for an address by DHCP."""
    wired.make("newvm0", guest=None)
    for verb, value in (("nic-model", "virtio"), ("boot-order", "net")):
        wired.done("newvm", verb, value)
    wired.done("newvm", "ifadd", "1", "br0")
    file = tmp_path / "out.pcap"
    client = wired.client("newvm", "capture", "0", str(file), "--filter", "udp port 67", "--count", "2")
    try:
        wait_for(lambda: client.poll() is not None or _waits(client), what="the wait")
        wired.done("newvm", "start")
        assert client.wait(120 * UNIT) == 0
    finally:
        client.kill()
        client.communicate(timeout=10 * UNIT)
    told = subprocess.run(
        ["tcpdump", "-n", "-r", file], capture_output=True, text=True, check=True, timeout=20 * UNIT
    )
    assert told.stdout.count("0.0.0.0.68 > 255.255.255.255.67: BOOTP/DHCP, Request") == 2


def _waits(client: "subprocess.Popen[str]") -> bool:
    assert client.stderr is not None
    return "waiting for the start" in client.stderr.readline()
