"""The verb share: lists the shared directories of a VM, adds one, or takes one away."""

from __future__ import annotations

import os

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.terminal import emit, for_each, say, tell
from vmessd.core.errors import DONE, InvalidValue, printable, quoted, shell_line
from vmessd.core.settings import SHARES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client

READ_ONLY = "ro"


def run(invocation: Invocation) -> int:
    """List shares, or change them; return the exit status."""
    if not invocation.arguments:
        return _list(invocation)
    doing, *words = invocation.arguments
    if doing == "add" and len(words) in (2, 3) and words[2:] in ([], [READ_ONLY]):
        tag, path, read_only = words[0], _resolved(words[1]), len(words) == 3
        return _change(invocation, tag, path, read_only=read_only)
    if doing == "del" and len(words) == 1:
        return _change(invocation, words[0], None, read_only=False)
    usage = f"usage: {PROGRAM} <vmname> share [add <tag> <directory> [{READ_ONLY}] | del <tag>]"
    raise InvalidValue(f"{quoted(shell_line(['share', *invocation.arguments]))} is not understood", hint=usage)


def _resolved(path: str) -> str:
    """Return the absolute path of a directory, without symbolic links; it must exist."""
    if not os.path.isdir(path):
        raise InvalidValue(f"{quoted(path, 300)} is not a directory")
    return os.path.realpath(path)


def _list(invocation: Invocation) -> int:
    def work(client: Client, vm: str) -> int:
        info = client.call("Info", vm=vm)["info"]
        found = [value for value in info["settings"] if value["name"] == SHARES]
        lines = [line for value in found for line in value["value"].split("; ") if line]
        emit(invocation, {"shares": lines}, vm)
        if verbs.JSON.flag not in invocation.options:
            for line in lines or ["none"]:
                print(f"{vm}: {printable(line)}" if len(invocation.vms) > 1 else printable(line))
        return DONE

    return for_each(invocation, work)


def _change(invocation: Invocation, tag: str, path: str | None, *, read_only: bool) -> int:
    def work(client: Client, vm: str) -> int:
        reply = client.call("Share", vm=vm, tag=tag, path=path, read_only=read_only)
        emit(invocation, reply, vm)
        if path is None:
            tell(about(vm, phrase("unshared", tag=printable(tag)), several=False))
        else:
            mount = f"mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 {tag} /mnt"
            shared = phrase("shared", path=printable(path), tag=tag, remark=", read-only" if read_only else "")
            tell(about(vm, shared, several=False))
            say(f"in the guest: {mount}")
        if reply["note"]:
            say(command(printable(reply["note"])))
        return DONE

    return for_each(invocation, work)
