"""The verbs that make a VM's directory, fill it with settings and drives, and delete it."""

from __future__ import annotations

import os
import sys

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.output import rendering
from vmessctl.output.terminal import agreed, emit, for_each, say, tell, warn
from vmessd.core.errors import DONE, AlreadyRunning, InvalidValue, printable, quoted, shell_line
from vmessd.core.names import CDROM
from vmessd.core.settings import LOCK
from vmessd.core.words import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply


def make(invocation: Invocation) -> int:
    """Make VMs."""

    def work(client: Client, vm: str) -> int:
        reply = client.call("Make", vm=vm)
        emit(invocation, reply, vm)
        tell(rendering.made(reply))
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
        if reply["note"]:
            say(printable(reply["note"]))
        return DONE

    return for_each(invocation, work)


def _absolute(path: str) -> str:
    """Return a path as the caller's directory makes it; `..` behind a link is left to the kernel."""
    if not path:
        raise InvalidValue("cdrom '' is no path; it has to be that of an ISO image, or none")
    try:
        joined = os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        raise InvalidValue(f"cdrom {quoted(path)} is relative to a directory that is gone") from None
    return joined if ".." in joined.split("/") else os.path.normpath(joined)


def remove(invocation: Invocation) -> int:
    """Delete VMs, after a question where there is somebody to ask."""
    sure = verbs.YES.flag in invocation.options
    if not sure and not sys.stdin.isatty():
        raise InvalidValue(
            "rm deletes all files of a VM and nobody is there to be asked",
            hint=f"to be sure: {shell_line([PROGRAM, *invocation.vms, 'rm', verbs.YES.flag])}",
        )

    def work(client: Client, vm: str) -> int:
        info = client.call("Info", vm=vm)["info"]
        locked = any(value["name"] == LOCK for value in info["settings"])
        told_by_daemon = locked or info["status"]["state"] == State.held
        if not rendering.is_off(info["status"]) and not told_by_daemon:
            raise AlreadyRunning(
                f"VM {vm} is running; it has to be stopped for this", hint=f"{PROGRAM} {vm} stop"
            )
        if not sure and not locked and not _agreed(vm, info):
            warn(f"{vm} is left as it is")
            return 1
        reply = client.call("Remove", vm=vm)
        emit(invocation, reply, vm)
        if reply["note"]:
            say(printable(reply["note"]))
        return DONE

    return for_each(invocation, work)


def _agreed(vm: str, info: Reply) -> bool:
    images = [drive["slot"] for drive in info["drives"] if drive["slot"] != CDROM]
    what = f" with {', '.join(images)}" if images else ""
    return agreed(f"Delete {vm}{what}, all of {printable(info['directory'])}?")
