"""The TPM of a VM: swtpm, a process beside its QEMU, with its state in the directory of the VM.

The two are connected by a pair of sockets that both inherit, so there is no path in between and nothing to wait
for. swtpm ends when QEMU closes its end (`--terminate`), also after a crash and without a daemon. Source:
swtpm(8), QEMU's docs/specs/tpm.rst.
"""

import shutil
import socket
from collections.abc import Sequence

from vmessd.core.errors import Failed, failing
from vmessd.qemu.process import ENVIRONMENT, Process

_CONTROL, _STATE = 3, 4


def executable() -> str:
    """Return the path of swtpm; raises Failed."""
    found = shutil.which("swtpm", path=ENVIRONMENT["PATH"])
    if found is None:
        raise Failed("a TPM needs the program swtpm, which is not installed", hint="apt-get install swtpm")
    return found


def command(swtpm: str) -> list[str]:
    """Return the argument vector; the state is in a directory that swtpm inherits, like its control socket."""
    return [
        *(swtpm, "socket", "--tpm2", "--tpmstate", f"dir=/proc/self/fd/{_STATE},mode=0660"),
        *("--ctrl", f"type=unixio,clientfd={_CONTROL}", "--terminate"),
    ]


def spawn(state: int, log: int, entry: Sequence[str]) -> tuple[Process, socket.socket]:
    """Start swtpm; return its process, and QEMU's end of its control socket.

    Args:
        state: the descriptor of the directory for its state.
        log: the descriptor for its messages.
        entry: a command that executes swtpm as the user of QEMU.

    Raises:
        StartFailed, Failed: it cannot be executed.
    """
    with failing("a TPM cannot be connected"):
        ours, theirs = socket.socketpair()
    with theirs:
        try:
            descriptors = {_CONTROL: theirs.fileno(), _STATE: state}
            return Process.spawn(command(executable()), log, descriptors, entry), ours
        except BaseException:
            ours.close()
            raise
