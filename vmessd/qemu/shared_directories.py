"""Shared directories on the command line of QEMU: 9p over virtio. Pure.

QEMU's user owns what a guest creates. Owner, mode and type as the guest sees them are extended attributes
(security model `mapped-xattr`): otherwise a guest could leave a program on the host that runs as QEMU's user
for everybody (set-user-ID). A read-only share shows the files as they are (model `none`). Source: `-fsdev` in
qemu-system-x86_64(1).
"""

from collections.abc import Sequence

from vmessd.core.shares import Share

FIRST_FD = 32
"""The descriptor of the first share in QEMU; the others follow."""
FILE_MODE, DIRECTORY_MODE = 0o660, 0o770
"""Modes of what a guest creates, on the host, before the umask."""


def arguments(shares: Sequence[Share]) -> list[str]:
    """Return the arguments for shares whose descriptors are FIRST_FD and the following."""
    found = []
    for number, share in enumerate(shares):
        backend = f"local,id=share{number},path=/proc/self/fd/{FIRST_FD + number},multidevs=remap"
        if share.read_only:
            backend += ",security_model=none,readonly=on"
        else:
            backend += f",security_model=mapped-xattr,fmode={FILE_MODE:04o},dmode={DIRECTORY_MODE:04o}"
        device = f"virtio-9p-pci,id=share{number}-device,fsdev=share{number},mount_tag={share.tag}"
        found += ["-fsdev", backend, "-device", device]
    return found
