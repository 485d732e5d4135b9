"""Notifications of the kernel about MACs that bridges learn (the forwarding database, FDB).

Sources: rtnetlink(7), Linux's Documentation/networking/filter.rst and fdb_notify() in net/bridge/br_fdb.c.
"""

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Collection, Sequence

from vmessd.network.netlink_replies import AF_BRIDGE, Neighbour
from vmessd.network.rtnetlink import Subscription

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER; Python's socket module lacks it
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_FIND_ATTRIBUTE = 0x100000000 - 0x1000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR
_FILTERED_MAX = 800  # a program has at most 4096 instructions, and each MAC takes five
_BUFFER = 64 * 1024
_HEADER, _BODY = 16, 12  # sizes of struct nlmsghdr and ndmsg
_NEWNEIGH, _MAC = 28, 2  # RTM_NEWNEIGH, NDA_LLADDR


class FDBEvents:
    """Notifications about certain MACs. Close it after use.

    The kernel filters by MAC, so a guest that makes bridges learn many other MACs does not wake the daemon.
    This needs no privilege.
    """

    def __init__(self) -> None:
        self._subscription = Subscription(_BUFFER)
        self._filter([])
        self._subscription.listen()

    def fileno(self) -> int:
        """Return the descriptor, which becomes readable when there are notifications."""
        return self._subscription.socket.fileno()

    def close(self) -> None:
        """End the subscription."""
        self._subscription.close()

    def listen(self, macs: Collection[str]) -> None:
        """Listen for these MACs from now on, or for all MACs if these are too many for a kernel filter."""
        self._filter(sorted(macs) if len(macs) <= _FILTERED_MAX else None)

    def read(self, most: int) -> tuple[list[Neighbour], bool]:
        """Read at most `most` messages; return their entries, and whether none is left.

        Messages that do not fit into the receive buffer are lost.
        """
        found: list[Neighbour] = []
        for _ in range(most):
            try:
                found += self._subscription.receive()
            except BlockingIOError:
                return found, True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        return found, False

    def _filter(self, macs: Sequence[str] | None) -> None:
        program = packet_filter(macs)
        buffer = ctypes.create_string_buffer(program, len(program))
        described = struct.pack("HP", len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
        with contextlib.suppress(OSError):  # without a filter there is only more to read
            self._subscription.socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)


def packet_filter(macs: Sequence[str] | None) -> bytes:
    """Return a BPF program that passes FDB notifications about these MACs; about all of them for None."""
    keep, drop = (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)
    program = [
        *((0x28, 0, 0, 4), (0x15, 1, 0, socket.htons(_NEWNEIGH)), drop),  # nlmsg_type, in host byte order
        *((0x30, 0, 0, _HEADER), (0x15, 1, 0, AF_BRIDGE), drop),  # ndm_family
        *((0x00, 0, 0, _HEADER + _BODY), (0x01, 0, 0, _MAC)),
        *((0x20, 0, 0, _FIND_ATTRIBUTE), (0x15, 0, 1, 0), drop),
        (0x07, 0, 0, 0),  # X is the offset of the attribute; the MAC follows 4 bytes later
    ]
    for mac in macs or ():
        high, low = struct.unpack(">HI", bytes.fromhex(mac.replace(":", "")))
        program += [(0x40, 0, 0, 6), (0x15, 0, 3, low), (0x48, 0, 0, 4), (0x15, 0, 1, high), keep]
    program.append(keep if macs is None else drop)
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
