"""Cables between two QEMUs without TAPs: a datagram socket of each interface, and a link to that of the other.

QEMU makes `cable0.sock` in the directory of its VM, and sends what comes from interface 0 to `cable0.peer`, a
symbolic link to a socket in the directory of another VM. The kernel follows the link at each frame (unix(7)),
so a change of the link plugs the cable elsewhere at once, and without the link, frames go nowhere. Neither end
needs the other one to be there. Everything here blocks.
"""

import os
import re

from vmessd.core.errors import failing
from vmessd.core.wires import End
from vmessd.storage import safefile

_FILE = re.compile(r"cable[0-9]{1,2}\.(sock|peer)", re.ASCII)


def socket_file(interface: int) -> str:
    """Return the name of the socket of an interface."""
    return f"cable{interface}.sock"


def peer_file(interface: int) -> str:
    """Return the name of the link to the socket at the other end."""
    return f"cable{interface}.peer"


def is_one(file: str) -> bool:
    """Tell whether a file in a VM directory belongs to cables."""
    return _FILE.fullmatch(file) is not None


def plug(directory: int, interface: int, end: End | None) -> None:
    """Have frames of an interface go to the other end of a cable; None for nowhere. Raises Failed."""
    name = peer_file(interface)
    if end is None:
        safefile.remove(directory, name)
        return
    with failing(f"{safefile.place(directory, name)} cannot be made"):
        temporary = safefile.temporary_name(name)
        os.symlink(f"../{end.vm}/{socket_file(end.interface)}", temporary, dir_fd=directory)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def sweep(directory: int) -> None:
    """Remove what a dead QEMU leaves; raises Failed."""
    for name in filter(is_one, os.listdir(directory)):
        safefile.remove(directory, name)
