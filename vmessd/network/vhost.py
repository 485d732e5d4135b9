"""vhost-net: the kernel of the host carries the frames between a TAP and the queues of a virtio card.

QEMU opens the device itself; without it, QEMU ends at once (Linux, drivers/vhost/net.c; QEMU, net/tap.c).
"""

import errno
import os

from vmessd.core.errors import Failed, NotPermitted, reason

DEVICE = "/dev/vhost-net"


def check_device(vm: str) -> None:
    """Raise Failed if there is no vhost-net here, NotPermitted if this process may not use it."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        without = f"to start it without: vmess {vm} vhost none"
        if error.errno in (errno.EACCES, errno.EPERM):
            raise NotPermitted(
                f"{DEVICE} may not be opened by uid {os.geteuid()}; {vm} has vhost on",
                hint=f"as root: add the user to group kvm; {without}",
            ) from None
        raise Failed(
            f"{DEVICE} cannot be opened: {reason(error)}; {vm} has vhost on",
            hint=f"as root: modprobe vhost_net; {without}",
        ) from None
