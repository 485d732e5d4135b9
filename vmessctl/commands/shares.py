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

READ_ONLY, VIRTIOFS = "ro", "virtiofs"


def run(invocation: Invocation) -> int:
    """List shares, or change them; return the exit status."""
    if not invocation.arguments:
        return _list(invocation)
    doing, *words = invocation.arguments
    more = words[2:]
    if (
        doing == "add"
        and len(words) >= 2
        and set(more) <= {READ_ONLY, VIRTIOFS}
        and len(set(more)) == len(more)
    ):
        return _change(invocation, words[0], _resolved(words[1]), more)
    if doing == "del" and len(words) == 1:
        return _change(invocation, words[0], None, [])
    usage = f"usage: {PROGRAM} <vmname> share [add <tag> <directory> [{READ_ONLY}|{VIRTIOFS}] | del <tag>]"
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
        lines = [line for value in found for line in value["value"].splitlines() if line]
        emit(invocation, {"shares": lines}, vm)
        if verbs.JSON.flag not in invocation.options:
            for line in lines or ["none"]:
                print(f"{vm}: {printable(line)}" if len(invocation.vms) > 1 else printable(line))
        return DONE

    return for_each(invocation, work)


def _change(invocation: Invocation, tag: str, path: str | None, more: list[str]) -> int:
    def work(client: Client, vm: str) -> int:
        reply = client.call(
            "Share", vm=vm, tag=tag, path=path, read_only=READ_ONLY in more, virtiofs=VIRTIOFS in more
        )
        emit(invocation, reply, vm)
        if path is None:
            tell(about(vm, phrase("unshared", tag=printable(tag))))
        else:
            kind = VIRTIOFS if VIRTIOFS in more else "9p -o trans=virtio,version=9p2000.L,msize=262144"
            remark = ", read-only" if READ_ONLY in more else ""
            shared = phrase("shared", path=printable(path), tag=tag, remark=remark)
            tell(about(vm, shared))
            say(f"in the guest: mount -t {kind} {tag} /mnt")
        if reply["note"]:
            say(command(printable(reply["note"])))
        return DONE

    return for_each(invocation, work)
