"""The lock of a QEMU on its pid file: who holds it is the QEMU of this directory, whatever the file says.

QEMU locks the file for as long as it lives (QEMU, qemu_write_pidfile).
"""

from __future__ import annotations

import fcntl
import struct

NAME = "qemu.pid"
OPTION = "-pidfile"
"""The option of QEMU that names it; its path shows the VM directory."""
_FLOCK = "hhqqi4x"  # struct flock of fcntl(2): type, whence, start, length, pid


def holder(descriptor: int) -> int | None:
    """Return the PID of the process that has locked an open pid file; None where nobody has.

    0 means a process in another PID namespace (fcntl(2), F_GETLK). Raises OSError.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)
