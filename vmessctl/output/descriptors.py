"""Descriptors that bytes are written to: all of the bytes, or without waiting for the reader."""

from __future__ import annotations

import os
import stat


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes; raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def unblocked(descriptor: int) -> int:
    """Return a descriptor that does not block for the same pipe or terminal; the same one for anything else.

    It is opened again, so that O_NONBLOCK does not affect others that share the old one.
    """
    if not (stat.S_ISFIFO(os.fstat(descriptor).st_mode) or os.isatty(descriptor)):
        return descriptor
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except OSError:
        return descriptor
