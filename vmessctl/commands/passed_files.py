"""Small files of this person that are passed to the daemon: read, and in memory that nobody can change."""

from __future__ import annotations

import os
import sys

from vmessd.core.errors import Failed, InvalidValue, quoted, reason

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STANDARD_INPUT = "-"


def read(path: str, limit: int, too_large: Callable[[str], InvalidValue], hint: str | None = None) -> bytes:
    """Return the content of a file, or of standard input for `-`; raises InvalidValue.

    A file with more than `limit` bytes is not read to its end, and `too_large` is called with its path, quoted.
    `hint` is for one that cannot be read.
    """
    if not path:
        raise InvalidValue("'' is not the path of a file")
    shown = "standard input" if path == STANDARD_INPUT else quoted(path, 300)
    try:
        if path == STANDARD_INPUT:
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with open(os.path.expanduser(path), "rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise InvalidValue(f"{shown} cannot be read: {reason(error)}", hint=hint) from None
    except ValueError:  # a NUL byte
        raise InvalidValue(f"{shown} is not the path of a file") from None
    if len(data) > limit:
        raise too_large(shown)
    return data


def sealed(data: bytes) -> int:
    """Return a descriptor of a memfd with this content that nobody can change any more; raises Failed."""
    import fcntl  # noqa: PLC0415 -- only this needs it

    try:
        descriptor = os.memfd_create("passed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        raise Failed(f"no memory for the files: {reason(error)}") from None
    return descriptor
