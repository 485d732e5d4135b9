"""TAP devices, by the ioctls of /dev/net/tun: made persistent, and never without an owner.

Source: Linux's Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h. A TAP without an
owner could be attached to by anyone.
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
_TAP, _NO_PACKET_INFORMATION = 0x0002, 0x1000
_ANY = "vmess%d"  # the kernel counts
_NUMBER = os.makedev(10, 200)  # Linux's Documentation/admin-guide/devices.txt
_REQUEST = struct.Struct("16sH22x")


@contextlib.contextmanager
def _attached(name: str) -> Iterator[tuple[int, str]]:
    """Attach to a TAP, made if need be, for the length of a `with`; yield descriptor and name.

    Raises OSError.
    """
    device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = _REQUEST.pack(os.fsencode(name), _TAP | _NO_PACKET_INFORMATION)
        given = fcntl.ioctl(device, _SET_INTERFACE, request)
        yield device, os.fsdecode(_REQUEST.unpack(given)[0].rstrip(b"\0"))
    finally:
        os.close(device)


@contextlib.contextmanager
def made(owner: int) -> Iterator[str]:
    """Make a TAP that only processes of the uid `owner` may attach to; yield the name the kernel gave it.

    It is for what is inside the `with` to give it another. When that is done it is persistent; if that fails,
    or this process dies, it is gone.

    Raises:
        OSError: EPERM without CAP_NET_ADMIN.
        Failed, NotPermitted: as :func:`check_device`.
    """
    try:
        with _attached(_ANY) as (device, name):
            fcntl.ioctl(device, _SET_OWNER, owner)
            yield name
            fcntl.ioctl(device, _SET_PERSISTENT, 1)
    except OSError:
        check_device()
        raise


def claim(name: str, owner: int) -> None:
    """Give a TAP that has no owner one; raises OSError, EBUSY if a process holds it."""
    with _attached(name) as (device, _):
        fcntl.ioctl(device, _SET_OWNER, owner)


def check_device() -> None:
    """Raise Failed where there is no /dev/net/tun, NotPermitted where this process may not open it."""
    try:
        if os.stat(DEVICE).st_rdev != _NUMBER:
            raise Failed(f"{DEVICE} is not the device it should be; TAPs need it", hint="as root: modprobe tun")
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
