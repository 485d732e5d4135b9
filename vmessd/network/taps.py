"""TAP devices through the ioctls of /dev/net/tun: persistent, and always with an owner.

Anybody could attach to a TAP without an owner. Sources: Linux's Documentation/networking/tuntap.rst and
include/uapi/linux/if_tun.h.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from vmessd.core.errors import Failed, NotPermitted, reason

DEVICE = "/dev/net/tun"

_SET_INTERFACE, _SET_PERSISTENT, _SET_OWNER = 0x400454CA, 0x400454CB, 0x400454CC  # TUNSET{IFF,PERSIST,OWNER}
_TAP, _NO_PACKET_INFORMATION, _MULTI_QUEUE = 0x0002, 0x1000, 0x0100
_ANY = "vmess%d"  # the kernel fills in a number
_NUMBER = os.makedev(10, 200)  # Linux's Documentation/admin-guide/devices.txt
_REQUEST = struct.Struct("16sH22x")


@contextlib.contextmanager
def _attached(name: str, *, queued: bool = False) -> Iterator[tuple[int, str]]:
    """Attach to a TAP, created if necessary, for the duration of a `with`; yield descriptor and name.

    `queued`: it has, or gets, several queues. Raises OSError, EINVAL if a TAP is not of this kind.
    """
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _TAP | _NO_PACKET_INFORMATION | (_MULTI_QUEUE if queued else 0)
        request = _REQUEST.pack(os.fsencode(name), flags)
        given = fcntl.ioctl(device, _SET_INTERFACE, request)
        yield device, os.fsdecode(_REQUEST.unpack(given)[0].rstrip(b"\0"))
    finally:
        os.close(device)


@contextlib.contextmanager
def made(owner: int, *, queued: bool = False) -> Iterator[str]:
    """Create a TAP that only processes of the uid `owner` may attach to; yield the name given by the kernel.

    The body of the `with` renames it. The TAP becomes persistent at the end of the body; it vanishes if the
    body fails or this process dies. With `queued`, processes attach to it with several queues, and only so.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN.
        Failed, NotPermitted: as :func:`check_device`.
    """
    try:
        with _attached(_ANY, queued=queued) as (device, name):
            fcntl.ioctl(device, _SET_OWNER, owner)
            yield name
            fcntl.ioctl(device, _SET_PERSISTENT, 1)
    except OSError:
        check_device()
        raise


def claim(name: str, owner: int, *, queued: bool = False) -> None:
    """Give a TAP without an owner one; raises OSError, EBUSY if a process is attached."""
    with _attached(name, queued=queued) as (device, _):
        fcntl.ioctl(device, _SET_OWNER, owner)


def check_device() -> None:
    """Raise Failed if there is no usable /dev/net/tun, NotPermitted if this process may not open it."""
    try:
        if os.stat(DEVICE).st_rdev != _NUMBER:
            raise Failed(
                f"{DEVICE} is not the TUN device (10, 200) that TAPs need", hint="as root: modprobe tun"
            )
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NotPermitted(
                f"{DEVICE} may not be opened by uid {os.geteuid()}; TAPs need it",
                hint=f'as root: chmod 0666 {DEVICE}; or use "user" in place of a bridge',
            ) from None
        raise Failed(
            f"{DEVICE} cannot be opened: {reason(error)}; TAPs need it",
            hint='as root: modprobe tun; or use "user" in place of a bridge',
        ) from None
