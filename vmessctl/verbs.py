"""Carries out what a command line asks for: talks to the daemon, asks questions, tells the outcome."""

from __future__ import annotations

import os
import sys

from vmessctl import commands, render
from vmessctl.client import connect
from vmessctl.commands import PROGRAM, Invocation
from vmessctl.console import for_each, say, show
from vmessd import __version__
from vmessd.errors import DONE, AlreadyRunning, InvalidValue, NotRunning, printable, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmessctl.client import Client, Reply

    Handler = Callable[[Invocation], int]


def run(words: list[str]) -> int:
    """Carry out a command line and return its exit status; raises VmessError."""
    invocation = commands.parse(words)
    if commands.VERSION.flag in invocation.options:
        print(f"{PROGRAM} {__version__}")
        return DONE
    return HANDLERS[invocation.command.verb](invocation)


def _help(invocation: Invocation) -> int:
    print(commands.help_text(" ".join(invocation.arguments)))
    return DONE


def _list(invocation: Invocation) -> int:
    client = connect(invocation)
    show(invocation, client.call("List"), render.listing)
    client.close()
    return DONE


def _status(invocation: Invocation) -> int:
    def work(client: Client, vm: str) -> int:
        reply = client.call("Status", vm=vm)
        show(invocation, reply, render.status, vm)
        return NotRunning.status if render.is_off(reply["status"]) else DONE

    return for_each(invocation, work)


def _info(invocation: Invocation) -> int:
    def work(client: Client, vm: str) -> int:
        show(invocation, client.call("Info", vm=vm), render.info, vm)
        return DONE

    return for_each(invocation, work)


def _make(invocation: Invocation) -> int:
    def work(client: Client, vm: str) -> int:
        print(render.made(client.call("Make", vm=vm)))
        return DONE

    return for_each(invocation, work)


def _set(invocation: Invocation) -> int:
    verb, text = invocation.command.verb, " ".join(invocation.arguments)
    value: str | None = text
    if text == "none":
        value = None
    elif verb == "cdrom":
        value = _absolute(text)

    def work(client: Client, vm: str) -> int:
        note = client.call("Set", vm=vm, setting=verb, value=value)["note"]
        if note:
            say(printable(note))
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


def _remove(invocation: Invocation) -> int:
    sure = commands.YES.flag in invocation.options
    if not sure and not sys.stdin.isatty():
        raise InvalidValue("rm deletes all files of a VM and nobody is there to be asked", hint="add --yes")

    def work(client: Client, vm: str) -> int:
        info = client.call("Info", vm=vm)["info"]
        if not render.is_off(info["status"]):
            raise AlreadyRunning(
                f"VM {vm} is running; it has to be stopped for this", hint=f"{PROGRAM} {vm} stop"
            )
        if not sure and not _agreed(vm, info):
            say(f"{vm} is left as it is")
            return 1
        note = client.call("Remove", vm=vm)["note"]
        if note:
            say(printable(note))
        return DONE

    return for_each(invocation, work)


def _agreed(vm: str, info: Reply) -> bool:
    images = [drive["slot"] for drive in info["drives"] if drive["slot"] != "cdrom"]
    what = f" with {', '.join(images)}" if images else ""
    sys.stderr.write(f"Delete {vm}{what}, all of {printable(info['directory'])}? [y/N] ")
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        say("")
        raise
    if not answer:
        say("")
    return answer.strip().lower() in ("y", "yes")


def _follow(invocation: Invocation) -> int:
    from vmessctl import follow  # noqa: PLC0415 -- other verbs need not wait for it

    return follow.start(invocation) if invocation.command.verb == "start" else follow.stop(invocation)


def _fleet(invocation: Invocation) -> int:
    from vmessctl import fleet  # noqa: PLC0415 -- other verbs need not wait for it

    return fleet.run(invocation)


def _wires(invocation: Invocation) -> int:
    from vmessctl import wires  # noqa: PLC0415 -- other verbs need not wait for it

    return wires.HANDLERS[invocation.command.verb](invocation)


def _vnc(invocation: Invocation) -> int:
    from vmessctl import vnc  # noqa: PLC0415 -- other verbs need not wait for it

    return vnc.run(invocation)


def _console(invocation: Invocation) -> int:
    from vmessctl import serial  # noqa: PLC0415 -- other verbs need not wait for it

    return serial.run(invocation)


def _log(invocation: Invocation) -> int:
    from vmessctl import logs  # noqa: PLC0415 -- other verbs need not wait for it

    return logs.run(invocation)


HANDLERS: dict[str, Handler] = {
    "list": _list,
    "help": _help,
    "make": _make,
    "start": _follow,
    "stop": _follow,
    "boot": _fleet,
    "shutdown": _fleet,
    "status": _status,
    "info": _info,
    "vnc": _vnc,
    "console": _console,
    "log": _log,
    "rm": _remove,
    **{command.verb: _set for command in commands.COMMANDS if command.method == "Set"},
    **{command.verb: _wires for command in commands.COMMANDS if command.method in commands.WIRES},
}
