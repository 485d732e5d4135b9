"""Two guests on a Linux bridge, in a network namespace: the machine's own links are not touched.

`ip netns add` makes the namespace, and everything in it is started by `ip netns exec`, which becomes the
program it is given: its pid is QEMU's. `ip netns del` takes away all links of the namespace, once no
process is in it.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import netguests
import pytest
from daemons import UNIT, wait_for

pytestmark = pytest.mark.qemu

MACS = ("02:11:9b:af:00:00", "02:11:9b:af:01:00")
A0, B0 = (netguests.token(mac) for mac in MACS)

# Prints what a link receives of an EtherType, a line of hexadecimal for each frame.
LISTEN = """
import socket, sys
link, ether_type = sys.argv[1], int(sys.argv[2])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ether_type)) as receiver:
    receiver.bind((link, ether_type))
    while True:
        print(receiver.recv(2048).hex(), flush=True)
"""

# Sends a frame many times on a link.
FLOOD = """
import socket, sys
link, frame, times = sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3])
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
    sender.bind((link, 0))
    for _ in range(times):
        sender.send(frame)
"""


class Lab:
    """A network namespace and the processes in it."""

    def __init__(self, directory: Path) -> None:
        self.name = f"vmesstest-{os.getpid()}"
        self.directory = directory
        self.inside = ("ip", "netns", "exec", self.name)
        self.processes: list[subprocess.Popen[bytes]] = []

    def run(self, *words: str) -> None:
        """Run a command in the namespace to its end."""
        subprocess.run([*self.inside, *words], check=True, timeout=30 * UNIT)

    def spawn(self, *words: str, output: Path) -> "subprocess.Popen[bytes]":
        """Start a program in the namespace."""
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*self.inside, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self.processes.append(process)
        return process

    def bridge(self, name: str) -> None:
        self.run("ip", "link", "add", name, "up", "type", "bridge")

    def guest(self, number: int) -> Path:
        """Start a guest whose TAP is in bridge `left`, and return the file where its serial port prints."""
        rom = self.directory / "net.rom"
        rom.write_bytes(netguests.rom())
        tap, serial = f"newvm{number}e0", self.directory / f"serial{number}"
        self.run("ip", "tuntap", "add", "dev", tap, "mode", "tap")
        self.run("ip", "link", "set", tap, "master", "left", "up")
        self.spawn(
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-machine", "pc,accel=tcg", "-m", "16M"),
            *("-bios", str(rom), "-display", "none", "-serial", f"file:{serial}"),
            *("-netdev", f"tap,id=net0,ifname={tap},script=no,downscript=no"),
            *("-device", f"{netguests.MODEL},netdev=net0,mac={MACS[number]},id=nic0"),
            output=self.directory / f"qemu{number}.log",
        )
        return serial

    def close(self) -> None:
        """End every process of the namespace and remove it."""
        try:
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.wait(10 * UNIT)
        finally:
            subprocess.run(["ip", "netns", "del", self.name], check=True, timeout=30 * UNIT)


@pytest.fixture
def netlab(tmp_path: Path) -> Iterator[Lab]:
    """A namespace with the bridges `left` and `right`."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("there is no /dev/net/tun here")
    lab = Lab(tmp_path)
    made = subprocess.run(["ip", "netns", "add", lab.name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    with contextlib.closing(lab):
        lab.bridge("left")
        lab.bridge("right")
        yield lab


def said(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def wait_in(file: Path, what: bytes) -> None:
    wait_for(lambda: what in said(file), 10, f"{what!r} in {file.name}")


def frame_of(mac: str) -> str:
    """Return the frame that the guest with a MAC sends, in hexadecimal."""
    digits = mac.replace(":", "")
    return f"{'ff' * 6}{digits}{netguests.ETHER_TYPE:04x}{digits}".ljust(2 * 60, "0")


def heard_anew(serial: Path, seconds: float = 0.5) -> bytes:
    """Return what a guest prints from now on for a while."""
    before = len(said(serial))
    time.sleep(seconds)
    return said(serial)[before:]


def test_guests_on_one_bridge_hear_each_other(netlab: Lab, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    netlab.spawn(sys.executable, "-c", LISTEN, "left", str(netguests.ETHER_TYPE), output=frames)
    first, second = netlab.guest(0), netlab.guest(1)
    wait_in(first, B0)
    wait_in(second, A0)
    assert A0 not in said(first)
    assert B0 not in said(second)
    for mac in MACS:
        wait_in(frames, f"{frame_of(mac)}\n".encode())

    netlab.run("ip", "link", "set", "newvm1e0", "master", "right")
    time.sleep(0.2)  # what was on its way arrives
    assert heard_anew(first) == heard_anew(second) == b""
    netlab.run("ip", "link", "set", "newvm1e0", "master", "left")
    wait_for(lambda: B0 in heard_anew(first), what="hearing newvm1 again")


def test_a_guest_survives_more_frames_than_its_card_can_hold(netlab: Lab) -> None:
    first = netlab.guest(0)
    netlab.guest(1)
    wait_in(first, B0)
    stranger = "02:11:9b:af:09:05"
    netlab.run(sys.executable, "-c", FLOOD, "left", frame_of(stranger).ljust(2 * 700, "0"), "20000")
    wait_in(first, netguests.token(stranger))
    wait_for(lambda: B0 in heard_anew(first), what="hearing newvm1 after the flood")
    assert re.fullmatch(rb"R((b0|j5)\n)+", said(first)[: said(first).rindex(b"\n") + 1])
