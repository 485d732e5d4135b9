"""virtiofsd, the server of a directory that is shared by virtiofs: that of QEMU 7 in qemu-system-common.

It serves one connection, over which it has the guest's memory, and ends with it, also without a daemon. It
confines itself to the directory by namespaces; for these, everybody except root needs a user namespace. It
opens the directory by its path, so it only serves where all directories may be shared.
"""

import contextlib
import os
import socket
from collections.abc import Collection

from vmessd.core.errors import Failed, NotPermitted
from vmessd.qemu.credentials import Account
from vmessd.qemu.process import Process
from vmessd.storage import safefile

PROGRAM = "/usr/lib/qemu/virtiofsd"
LISTENER_FD = 3
_ENTER = ("/usr/bin/unshare", "--user", "--map-root-user", "--")


def check(account: Account, allowed: Collection[str] | None) -> None:
    """Check that a server can be started; `allowed` are directories that may be shared, None for all.

    Raises:
        Failed: this host has no such virtiofsd.
        NotPermitted: QEMU has another user, as in the service, or not all directories are allowed.
    """
    instead = "leave out the word virtiofs: the share uses 9p then"
    if account.entry or allowed is not None:
        raise NotPermitted("virtiofs needs a vmessd of your own, which may share all directories", hint=instead)
    if not os.access(PROGRAM, os.X_OK):
        raise Failed(f"there is no {PROGRAM}", hint=instead)


def serve(path: str, place: int, name: str, log: int) -> tuple[Process, socket.socket]:
    """Start the server of a directory; return its process, and a connection to it for QEMU.

    The server ends when nobody has this connection any more. `place` is a directory for its socket, which has
    the name `name` for a moment; `log` is the descriptor for what it says.

    Raises:
        Failed, StartFailed: it cannot be started.
    """
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(safefile.listener(place, name, 0o600))
        stack.callback(safefile.remove, place, name)
        connected = safefile.connect(place, name)
        connected.setblocking(True)
        source = path.replace("\\", "\\\\").replace(",", "\\,")  # an option of FUSE
        options = ["-f", f"--fd={LISTENER_FD}", "-o", f"source={source}", "-o", "log_level=err"]
        enter = () if os.geteuid() == 0 else _ENTER
        try:
            return Process.spawn([*enter, PROGRAM, *options], log, {LISTENER_FD: listening.fileno()}), connected
        except BaseException:
            connected.close()
            raise
