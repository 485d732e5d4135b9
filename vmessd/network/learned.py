"""What bridges learn of certain MACs, as the kernel tells it at once.

Sources: rtnetlink(7), Linux's Documentation/networking/filter.rst and fdb_notify() in net/bridge/br_fdb.c.
"""

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Collection, Sequence

from vmessd.network.rtnetlink import AF_BRIDGE, Neighbour, Subscription

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which Python does not know
_INSTRUCTION = struct.Struct("=HBBI")  # struct sock_filter
_FIND_ATTRIBUTE = 0x100000000 - 0x1000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR
_FILTERED_MAX = 800  # a program has 4096 instructions at most, and each MAC takes five
_ROOM = 64 * 1024
_HEADER, _BODY = 16, 12  # sizes of struct nlmsghdr and ndmsg
_NEWNEIGH, _MAC = 28, 2  # RTM_NEWNEIGH, NDA_LLADDR


class Learned:
    """What bridges learn of certain MACs, as the kernel tells it. Close it in the end.

    The kernel is given the MACs as a filter: a guest that makes bridges learn any number of others wakes up
    nobody. Takes no privilege.
    """

    def __init__(self) -> None:
        self._told = Subscription(_ROOM)
        self._filter([])
        self._told.listen()

    def fileno(self) -> int:
        """Return the descriptor, which can be read from when there is something."""
        return self._told.socket.fileno()

    def close(self) -> None:
        """Subscribe to nothing any more."""
        self._told.close()

    def listen(self, macs: Collection[str]) -> None:
        """Hear of these MACs from now on, and of all where they are too many for the kernel."""
        self._filter(sorted(macs) if len(macs) <= _FILTERED_MAX else None)

    def read(self, most: int) -> tuple[list[Neighbour], bool]:
        """Return what was told, at most so many messages, and whether that is all there is by now.

        Where more come than are read, some get lost.
        """
        found: list[Neighbour] = []
        for _ in range(most):
            try:
                found += self._told.receive()
            except BlockingIOError:
                return found, True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
        return found, False

    def _filter(self, macs: Sequence[str] | None) -> None:
        program = learned_filter(macs)
        buffer = ctypes.create_string_buffer(program, len(program))
        described = struct.pack("HP", len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
        with contextlib.suppress(OSError):  # without it there is more to read, and that is all
            self._told.socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, described)


def learned_filter(macs: Sequence[str] | None) -> bytes:
    """Return a program for the kernel's packet filter: what bridges learn of these MACs, or of all, passes."""
    keep, drop = (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)
    program = [
        *((0x28, 0, 0, 4), (0x15, 1, 0, socket.htons(_NEWNEIGH)), drop),  # nlmsg_type, in the host's order
        *((0x30, 0, 0, _HEADER), (0x15, 1, 0, AF_BRIDGE), drop),  # ndm_family
        *((0x00, 0, 0, _HEADER + _BODY), (0x01, 0, 0, _MAC)),
        *((0x20, 0, 0, _FIND_ATTRIBUTE), (0x15, 0, 1, 0), drop),
        (0x07, 0, 0, 0),  # the attribute with the MAC begins at X; four bytes on is the MAC
    ]
    for mac in macs or ():
        high, low = struct.unpack(">HI", bytes.fromhex(mac.replace(":", "")))
        program += [(0x40, 0, 0, 6), (0x15, 0, 3, low), (0x48, 0, 0, 4), (0x15, 0, 1, high), keep]
    program.append(keep if macs is None else drop)
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)
