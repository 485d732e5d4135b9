"""Directories of the host, opened for a guest without a way around the administrator's list.

QEMU gets a descriptor and no path, so what was examined is what it opens.
"""

import errno
import os
from collections.abc import Sequence

from vmessd.core import refusals
from vmessd.core.errors import BadFile, NotPermitted, printable, reason, shell_line
from vmessd.core.shares import Share

_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def opened(share: Share, allowed: Sequence[str] | None, vm: str) -> int:
    """Return a descriptor of a directory that only names it (open(2), O_PATH); the caller closes it.

    `allowed` are directories, of which it must be one or be below one; None allows all. Below an allowed
    directory, no symbolic link is followed, because somebody may replace a directory by one at any moment.

    Raises:
        NotPermitted: it is not allowed.
        BadFile: there is no such directory, or it cannot be opened.
    """
    if allowed is None:
        return _open(share, share.path, _FLAGS, None, vm)
    top = next(
        (one for one in allowed if share.path == one or share.path.startswith(f"{one.rstrip('/')}/")), None
    )
    if top is None:
        listed = ", ".join(map(printable, allowed)) or "none"
        raise NotPermitted(
            f"directory {printable(share.path)} may not be shared; allowed are: {listed}",
            hint=refusals.among("allow-shares", allowed, printable(share.path)),
        )
    directory = _open(share, top, _FLAGS, None, vm)
    for part in share.path[len(top) :].strip("/").split("/"):
        if part:
            above = directory
            try:
                directory = _open(share, part, _FLAGS | os.O_NOFOLLOW, above, vm)
            finally:
                os.close(above)
    return directory


def _open(share: Share, name: str, flags: int, above: int | None, vm: str) -> int:
    try:
        return os.open(name, flags, dir_fd=above)
    except OSError as error:
        why = reason(error)
        if above is not None and error.errno in (errno.ENOTDIR, errno.ELOOP):
            why = "a part of the path is a symbolic link, or no directory"
        hint = f"to take it away: {shell_line(['vmess', vm, 'share', 'del', share.tag])}"
        raise BadFile(f"directory {printable(share.path)}, shared as {share.tag}: {why}", hint=hint) from None
