"""Frames by hand: what a guest, or a capture, does to a TAP and to a segment, in a network namespace.

A `Station` is at a TAP in place of QEMU, whose VM has to be off; a `Capture` is an AF_PACKET socket. Both
are made in a thread that is in the namespace, and work from anywhere then (network_namespaces(7)).
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple, Self, TypeVar

from daemons import wait_for

T = TypeVar("T")

BROADCAST = "ff:ff:ff:ff:ff:ff"
_CLONE_NEWNET = 0x40000000
_SET_INTERFACE = 0x400454CA  # TUNSETIFF, if_tun.h
_ALL = socket.htons(3)  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING, packet(7)


def within(namespace: str, work: Callable[[], T]) -> T:
    """Return what the work returns in a network namespace of ip-netns(8)."""
    results: list[T] = []

    def run() -> None:
        with open(f"/run/netns/{namespace}", "rb") as file:
            assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) == 0
        results.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Station:
    """Whoever is at a TAP, with a MAC. Use as a context manager."""

    def __init__(self, namespace: str, tap: str, mac: str) -> None:
        self.mac = octets(mac)
        self._device = within(namespace, lambda: os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
        fcntl.ioctl(self._device, _SET_INTERFACE, struct.pack("16sH22x", tap.encode(), 0x1002))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._device)

    def send(self, to: str, ether_type: int, payload: bytes) -> None:
        self.send_whole(octets(to) + self.mac + struct.pack(">H", ether_type) + payload)

    def send_whole(self, frame: bytes) -> None:
        os.write(self._device, frame)

    def received(self) -> list[bytes]:
        """Return the frames that came since the last call."""
        frames = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frames.append(os.read(self._device, 70000))
        return frames


class Seen(NamedTuple):
    """A frame that passed a link."""

    link: str
    sent: bool
    """By the host on that link, be it the host's own or what a bridge forwards to a port."""
    frame: bytes


class Capture:
    """All frames on all links of a namespace from now on. Use as a context manager."""

    def __init__(self, namespace: str) -> None:
        self._socket = within(namespace, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, _ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 2**20)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def seen(self) -> list[Seen]:
        """Return what passed since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (link, _, kind, *_) = self._socket.recvfrom(70000)
                found.append(Seen(link, kind == _OUTGOING, frame))
        return found


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(data + b'0') // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF - total


def with_checksum(data: bytes, place: int, before: bytes = b"") -> bytes:
    return data[:place] + struct.pack(">H", checksum(before + data)) + data[place + 2 :]


def arp(station: Station, address: str, wanted: str) -> tuple[str, int, bytes]:
    """Return a question who has an address; from 0.0.0.0 it is a probe (RFC 5227)."""
    head = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + station.mac
    return BROADCAST, 0x0806, head + socket.inet_aton(address) + bytes(6) + socket.inet_aton(wanted)


def ipv4(to: str, source: str, target: str, protocol: int, payload: bytes) -> tuple[str, int, bytes]:
    size = 20 + len(payload)
    head = struct.pack(">BBHHHBBH", 0x45, 0, size, 7, 0, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    return to, 0x0800, with_checksum(head, 10) + payload


def udp(port: int, text: bytes) -> bytes:
    return struct.pack(">HHHH", 5000, port, 8 + len(text), 0) + text  # 0: no checksum


def echo() -> bytes:
    return with_checksum(struct.pack(">BBHHH", 8, 0, 0, 1, 1) + b"vmess" * 4, 2)


def membership_query() -> bytes:
    """Return IGMP's question who is in any group (RFC 2236)."""
    return with_checksum(struct.pack(">BBH4s", 0x11, 10, 0, bytes(4)), 2)


def router_advertisement() -> tuple[str, int, bytes]:
    """Return "form an address of 2001:db8:bad::/64, and send by way of me" (RFC 4861), from fe80::666."""
    source, target = (socket.inet_pton(socket.AF_INET6, text) for text in ("fe80::666", "ff02::1"))
    said = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    said += struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 86400, 86400, 0)
    said += socket.inet_pton(socket.AF_INET6, "2001:db8:bad::") + b"\1\1" + octets("02:00:00:00:06:66")
    said = with_checksum(said, 2, source + target + struct.pack(">II", len(said), 58))
    head = struct.pack(">IHBB", 0x60000000, len(said), 58, 255)
    return "33:33:00:00:00:01", 0x86DD, head + source + target + said


def until_heard(one: Station, other: Station, *, tag: bytes = b"") -> None:
    """Wait until ports are forwarding, which takes a moment (linkwatch)."""

    def passes() -> bool:
        one.send_whole(octets(BROADCAST) + one.mac + tag + b"\x88\xb5are you there?")
        return bool(other.received())

    wait_for(passes, what="a frame at the other end")
    while other.received():
        pass


def received(station: Station, count: int) -> list[bytes]:
    """Return what a station receives until it is so many frames."""
    frames: list[bytes] = []

    def there() -> bool:
        frames.extend(station.received())
        return len(frames) >= count

    wait_for(there, what=f"{count} frames")
    return frames


# Destination and what follows the addresses: a type, or a length and an LLC header, then a mark.
EVERY_KIND = {
    **{f"reserved {last:02x}": (f"01:80:c2:00:00:{last:02x}", b"\x90\x00") for last in range(0x30)},
    "STP": ("01:80:c2:00:00:00", b"\0\x26\x42\x42\x03"),
    "PAUSE": ("01:80:c2:00:00:01", b"\x88\x08\0\1\xff\xff"),
    "LACP": ("01:80:c2:00:00:02", b"\x88\x09"),
    "802.1X": ("01:80:c2:00:00:03", b"\x88\x8e"),
    "LLDP": ("01:80:c2:00:00:0e", b"\x88\xcc"),
    "CDP": ("01:00:0c:cc:cc:cc", b"\0\x40\xaa\xaa\x03"),
    "PVST+": ("01:00:0c:cc:cc:cd", b"\0\x40\xaa\xaa\x03"),
    "IS-IS": ("01:80:c2:00:00:14", b"\0\x40\xfe\xfe\x03"),
    "tagged": (BROADCAST, b"\x81\x00\0\x64\x08\x06"),
    "priority tag": (BROADCAST, b"\x81\x00\0\0\x08\x06"),
    "double tagged": (BROADCAST, b"\x88\xa8\0\x0a\x81\x00\0\x64\x08\x06"),
    "four tags": (BROADCAST, b"\x88\xa8\0\x0a" + 2 * b"\x81\x00\0\x64" + b"\x81\x00\0\x65\x08\x06"),
    "MPLS": ("02:00:00:00:0b:01", b"\x88\x47"),
    "unknown unicast": ("02:00:00:00:0b:02", b"\x90\x00"),
    "malformed IPv4": ("02:00:00:00:0b:02", b"\x08\x00"),
    "PPPoE": (BROADCAST, b"\x88\x63"),
    "MACsec": (BROADCAST, b"\x88\xe5"),
    "to OSPF's group": ("01:00:5e:00:00:05", b"\x90\x00"),
    "to a group of neighbours": ("33:33:ff:00:00:77", b"\x90\x00"),
    "to the MAC of the TAP": ("fe:00:00:00:00:01", b"\x90\x00"),
}


def with_mark(station: Station, kind: str, number: int, size: int = 50) -> bytes:
    """Return a frame of one of these kinds by a station, with a number in it."""
    to, what = EVERY_KIND[kind]
    return octets(to) + station.mac + what + struct.pack(">Q", number) + bytes(size)
