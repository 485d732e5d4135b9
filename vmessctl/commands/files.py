"""The verbs that create a VM directory, change its settings and drives, rename and delete it."""

from __future__ import annotations

import os
import sys

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.output import rendering
from vmessctl.output.phrases import about, command, phrase
from vmessctl.output.terminal import confirmed, emit, for_each, say, tell, warn
from vmessd.core import names
from vmessd.core.errors import DONE, AlreadyRunning, InvalidValue, printable, quoted, shell_line
from vmessd.core.names import CDROM
from vmessd.core.settings import LOCK
from vmessd.core.words import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply


def make(invocation: Invocation) -> int:
    """Create VMs."""

    def work(client: Client, vm: str) -> int:
        reply = client.call("Make", vm=vm)
        emit(invocation, reply, vm)
        tell(about(vm, phrase("made", path=printable(reply["path"])), several=False))
        return DONE

    return for_each(invocation, work)


def change(invocation: Invocation) -> int:
    """Change a setting or a drive of VMs; the verb says which."""
    verb, text = invocation.command.verb, " ".join(invocation.arguments)
    value: str | None = text
    if text == "none":
        value = None
    elif verb == CDROM:
        value = _absolute(text)

    def work(client: Client, vm: str) -> int:
        reply = client.call("Set", vm=vm, setting=verb, value=value)
        emit(invocation, reply, vm)
        done = phrase("set", verb=verb, value=printable("none" if value is None else value))
        tell(about(vm, done, several=False))
        if reply["note"]:
            say(command(printable(reply["note"])))
        return DONE

    return for_each(invocation, work)


def _absolute(path: str) -> str:
    """Return an absolute path; one with `..` is not normalised, because a link may come before it."""
    if not path:
        raise InvalidValue("cdrom '' is not a path; give the path of an ISO image, or none")
    try:
        joined = os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        raise InvalidValue(f"cdrom {quoted(path)} is relative to a directory that no longer exists") from None
    return joined if ".." in joined.split("/") else os.path.normpath(joined)


def remove(invocation: Invocation) -> int:
    """Delete VMs, after confirmation on a terminal."""
    sure = verbs.YES.flag in invocation.options
    if not sure and not sys.stdin.isatty():
        line = shell_line([PROGRAM.name, *invocation.vms, "rm", verbs.YES.flag])
        raise InvalidValue(
            "rm deletes all files of a VM, and there is no terminal on which to ask",
            hint=f"to delete without asking: {line}",
        )

    def work(client: Client, vm: str) -> int:
        info = client.call("Info", vm=vm)["info"]
        locked = any(value["name"] == LOCK for value in info["settings"])
        refused_by_daemon = locked or info["status"]["state"] == State.held
        if not rendering.is_off(info["status"]) and not refused_by_daemon:
            raise AlreadyRunning(
                f"VM {vm} is running; it must be stopped for this", hint=f"{PROGRAM} {vm} stop"
            )
        if not sure and not locked and not _confirmed(vm, info):
            warn(f"{vm} is unchanged")
            return 1
        reply = client.call("Remove", vm=vm)
        emit(invocation, reply, vm)
        tell(about(vm, phrase("rm"), several=False))
        if reply["note"]:
            say(command(printable(reply["note"])))
        return DONE

    return for_each(invocation, work)


def rename(invocation: Invocation) -> int:
    """Rename a VM."""
    new = names.parse(invocation.arguments[0])

    def work(client: Client, vm: str) -> int:
        reply = client.call("Rename", vm=vm, name=new)
        emit(invocation, reply, vm)
        tell(about(vm, phrase("rename", word=new), several=True))
        if reply["note"]:
            say(f"{new}: {printable(reply['note'])}")
        return DONE

    return for_each(invocation, work)


def _confirmed(vm: str, info: Reply) -> bool:
    images = [drive["slot"] for drive in info["drives"] if drive["slot"] != CDROM]
    disks = f", including {', '.join(images)}" if images else ""
    return confirmed(f"Delete {vm} and all files in {printable(info['directory'])}{disks}?")
