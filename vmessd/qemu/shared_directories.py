"""Shared directories on the command line of QEMU: 9p over virtio, or virtiofs. Pure.

By 9p, QEMU's user owns what a guest creates. Owner, mode and type as the guest sees them are extended
attributes (security model `mapped-xattr`): otherwise a guest could leave a program on the host that runs as
QEMU's user for everybody (set-user-ID). A read-only share shows the files as they are (model `none`). By
virtiofs, modes are real. Source: `-fsdev` in qemu-system-x86_64(1).
"""

from collections.abc import Sequence

from vmessd.core.shares import Share

FIRST_FD = 32
"""The descriptor of the first share in QEMU; the others follow."""
FILE_MODE, DIRECTORY_MODE = 0o660, 0o770
"""Modes of what a guest creates, on the host, before the umask."""


MEMORY_DEFAULT = 128 * 2**20
"""The bytes that QEMU gives a machine without `-m` (`default_ram_size`)."""
_GRAIN = 8192
"""QEMU rounds the size of the memory up to a multiple of this (softmmu/vl.c)."""


def arguments(shares: Sequence[Share], memory: int) -> list[str]:
    """Return the arguments for shares whose descriptors begin with FIRST_FD; `memory` is in bytes."""
    found = []
    if any(share.virtiofs for share in shares):  # its server must see the memory of the guest
        size = -(-memory // _GRAIN) * _GRAIN
        found += ["-object", f"memory-backend-memfd,id=memory,size={size},share=on"]
        found += ["-machine", "memory-backend=memory"]
    for number, share in enumerate(shares):
        found += (_virtiofs if share.virtiofs else _9p)(number, share)
    return found


def _virtiofs(number: int, share: Share) -> list[str]:
    backend = f"socket,id=share{number},fd={FIRST_FD + number}"
    device = f"vhost-user-fs-pci,id=share{number}-device,chardev=share{number},tag={share.tag}"
    return ["-chardev", backend, "-device", device]


def _9p(number: int, share: Share) -> list[str]:
    backend = f"local,id=share{number},path=/proc/self/fd/{FIRST_FD + number},multidevs=remap"
    if share.read_only:
        backend += ",security_model=none,readonly=on"
    else:
        backend += f",security_model=mapped-xattr,fmode={FILE_MODE:04o},dmode={DIRECTORY_MODE:04o}"
    device = f"virtio-9p-pci,id=share{number}-device,fsdev=share{number},mount_tag={share.tag}"
    return ["-fsdev", backend, "-device", device]
