"""The shared directories of a VM: `share add` and `share del`. A change takes effect at the next start."""

import os

from vmessd.core import shares
from vmessd.core.errors import BadFile, InvalidValue, printable, quoted
from vmessd.core.settings import BY_FILE, SHARES
from vmessd.core.shares import Share
from vmessd.qemu import virtiofsd
from vmessd.storage import shared_directories
from vmessd.storage.vmdir import VMDirectory
from vmessd.vm.host import Host


def add(directory: VMDirectory, host: Host, share: Share) -> None:
    """Share a directory; blocks. Sharing the same again changes nothing.

    Raises:
        InvalidValue: tag or path are invalid, the tag is taken, or there are too many shares.
        NotPermitted, BadFile: it is not allowed, does not exist, or is not readable for the user of QEMU.
    """
    shares.check(share)
    there = _shares(directory)
    if share in there:
        return
    if any(one.tag == share.tag for one in there):
        raise InvalidValue(
            f"VM {directory.vm} has a share {quoted(share.tag)} already",
            hint=f"vmess {directory.vm} share del {share.tag}",
        )
    if share.virtiofs:
        virtiofsd.check(host.account, host.allow_shares)
    os.close(shared_directories.opened(share, host.allow_shares, directory.vm))
    if not host.account.may_read(share.path):
        raise BadFile(
            f"directory {printable(share.path)} must be readable for {host.account.name}, the user of QEMU"
        )
    _write(directory, (*there, share))


def remove(directory: VMDirectory, tag: str) -> None:
    """Take a share away; blocks. Raises InvalidValue if there is none with this tag."""
    there = _shares(directory)
    rest = [share for share in there if share.tag != tag]
    if len(rest) == len(there):
        known = ", ".join(share.tag for share in there) or "none"
        raise InvalidValue(f"VM {directory.vm} has no share {quoted(tag)}; it has: {known}")
    _write(directory, rest)


def _shares(directory: VMDirectory) -> tuple[Share, ...]:
    found: tuple[Share, ...] = directory.read_setting(BY_FILE[SHARES]) or ()
    return found


def _write(directory: VMDirectory, wanted: tuple[Share, ...] | list[Share]) -> None:
    directory.write_setting(BY_FILE[SHARES], shares.text_of(wanted) or None)
