"""The TPM of a VM: swtpm, a process beside its QEMU, with its state in the directory of the VM.

The two are connected by a pair of sockets that both inherit, so there is no path in between and nothing to wait
for. swtpm ends when QEMU closes its end (`--terminate`), also after a crash and without a daemon. Source:
swtpm(8), QEMU's docs/specs/tpm.rst.
"""

import socket
from collections.abc import Sequence
from pathlib import Path

from vmessd.core.errors import Failed, failing, printable
from vmessd.qemu import process
from vmessd.qemu.credentials import Account
from vmessd.qemu.process import Process, installed
from vmessd.storage import safefile
from vmessd.storage.contents import TPM_FILE

_CONTROL, _STATE = 3, 4
_COPY = 'umask 007; cp -- "$1" "$1.new" && sync -- "$1.new" && mv -f -- "$1.new" "$1"'


def executable() -> str:
    """Return the path of swtpm; raises Failed."""
    found = installed("swtpm")
    if found is None:
        raise Failed("a TPM needs the program swtpm, which is not installed", hint="apt-get install swtpm")
    return found


def command(swtpm: str) -> list[str]:
    """Return the argument vector; the state is in a directory that swtpm inherits, like its control socket."""
    return [
        *(swtpm, "socket", "--tpm2", "--tpmstate", f"dir=/proc/self/fd/{_STATE},mode=0660"),
        *("--ctrl", f"type=unixio,clientfd={_CONTROL}", "--terminate"),
    ]


def hand_over(place: Path, state: int, account: Account) -> None:
    """Make a state that we have written, as an import does, one that the user of QEMU owns; blocks.

    swtpm sets the mode of its state when it reads it, which only the owner of a file may, and takes a failure
    of that for a damaged state (0.7.1: SWTPM_NVRAM_LoadData_Dir in swtpm_nvstore_dir.c). The user of QEMU
    makes a copy, because we may not give files away.

    Args:
        place: the path of the directory of the state.
        state: its descriptor.
        account: who QEMU and swtpm run as.

    Raises:
        BadFile: it is not a plain file.
        Failed: the user of QEMU may not read it.
    """
    found = safefile.status(state, TPM_FILE)
    if not account.entry or found is None or found.st_uid == account.uid:
        return
    safefile.must_be_plain(state, TPM_FILE)
    if not process.succeeds([*account.entry, "/bin/sh", "-c", _COPY, "sh", str(place / TPM_FILE)]):
        where = printable(str(place / TPM_FILE))
        raise Failed(
            f"{where} does not belong to {account.name}, the user of QEMU, who cannot copy it",
            hint=f"as root: chown {account.name} {where}",
        )


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
