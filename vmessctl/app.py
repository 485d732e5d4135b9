"""Carries out what a command line asks for: talks to the daemon, asks questions, tells the outcome."""

from __future__ import annotations

import os
import sys

from vmessctl.cli import grammar, verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.output import rendering
from vmessctl.output.terminal import (
    agreed,
    complain,
    emit,
    for_each,
    hushed,
    look_at_each,
    say,
    show,
    tell,
    warn,
)
from vmessd import __version__
from vmessd.core.errors import (
    DONE,
    FORCED,
    INTERRUPTED,
    AlreadyRunning,
    InvalidValue,
    NotRunning,
    VmessError,
    printable,
    quoted,
    shell_line,
    worst,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmessctl.client import Client, Reply

    Handler = Callable[[Invocation], int]


def run(words: list[str]) -> int:
    """Carry out a command line and return its exit status; raises VmessError."""
    invocation = grammar.parse(words)
    if verbs.VERSION.flag in invocation.options:
        print(f"{PROGRAM} {__version__}")
        return DONE
    if any(grammar.is_pattern(vm) for vm in invocation.vms):
        from vmessctl.cli import patterns  # noqa: PLC0415 -- other lines need not wait for it

        client = connect(invocation)
        known = [vm["name"] for vm in client.call("List")["vms"]]
        client.close()
        invocation = patterns.filled(invocation, known)
    return _carry_out(invocation) if invocation.then is None else _in_turn(invocation)


def _carry_out(invocation: Invocation) -> int:
    still = {verbs.QUIET.flag, verbs.JSON.flag} & set(invocation.options)
    with hushed(invocation.command.reports and bool(still)):
        return HANDLERS[invocation.command.verb](invocation)


def _in_turn(line: Invocation) -> int:
    """Carry out several verbs up to the first that fails; return the exit status."""
    statuses: list[int] = []
    done: list[str] = []
    step: Invocation | None = line
    while step is not None:
        try:
            status = _carry_out(step)
        except VmessError as error:
            status = complain(error)
        except KeyboardInterrupt:
            status = INTERRUPTED
        # Whom it took force to stop is off all the same, and may be started again.
        if status not in (DONE, FORCED):
            _tell_of_failure(step, done, status)
            return status
        statuses.append(status)
        done.append(step.command.verb)
        step = step.then
    return worst(statuses)


def _tell_of_failure(step: Invocation, done: list[str], status: int) -> None:
    """Say which verb of several failed, what was done before, and how to go on from there."""
    rest, left = step.then, []
    while rest is not None:
        left.append(rest.command.verb)
        rest = rest.then
    texts = [f"{step.command.verb} {'was interrupted' if status == INTERRUPTED else 'failed'}"]
    texts += [f"done before: {', '.join(done)}"] if done else []
    texts += [f"not done: {', '.join(left)}"] if left else []
    warn(f"{PROGRAM}: {'; '.join(texts)}")
    warn(f"  hint: to go on from there: {shell_line([PROGRAM, *grammar.written(step)])}")


def _help(invocation: Invocation) -> int:
    from vmessctl.cli import helptext  # noqa: PLC0415 -- other verbs need not wait for it

    print(helptext.help_text(" ".join(invocation.arguments)))
    return DONE


def _list(invocation: Invocation) -> int:
    client = connect(invocation)
    show(invocation, client.call("List"), rendering.listing)
    client.close()
    return DONE


def _status(invocation: Invocation) -> int:
    def work(reply: Reply, vm: str) -> int:
        show(invocation, reply, rendering.status, vm)
        return NotRunning.status if rendering.is_off(reply["status"]) else DONE

    return look_at_each(invocation, work)


def _info(invocation: Invocation) -> int:
    def work(reply: Reply, vm: str) -> int:
        show(invocation, reply, rendering.info, vm)
        return DONE

    return look_at_each(invocation, work)


def _make(invocation: Invocation) -> int:
    def work(client: Client, vm: str) -> int:
        reply = client.call("Make", vm=vm)
        emit(invocation, reply, vm)
        tell(rendering.made(reply))
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


def _remove(invocation: Invocation) -> int:
    sure = verbs.YES.flag in invocation.options
    if not sure and not sys.stdin.isatty():
        raise InvalidValue(
            "rm deletes all files of a VM and nobody is there to be asked",
            hint=f"to be sure: {shell_line([PROGRAM, *invocation.vms, 'rm', verbs.YES.flag])}",
        )

    def work(client: Client, vm: str) -> int:
        info = client.call("Info", vm=vm)["info"]
        locked = any(value["name"] == "LOCK" for value in info["settings"])
        told_by_daemon = locked or info["status"]["state"] == "held"
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
    images = [drive["slot"] for drive in info["drives"] if drive["slot"] != "cdrom"]
    what = f" with {', '.join(images)}" if images else ""
    return agreed(f"Delete {vm}{what}, all of {printable(info['directory'])}?")


def _follow(invocation: Invocation) -> int:
    from vmessctl.commands import power  # noqa: PLC0415 -- other verbs need not wait for it

    return power.start(invocation) if invocation.command.verb == "start" else power.stop(invocation)


def _fleet(invocation: Invocation) -> int:
    from vmessctl.commands import fleet  # noqa: PLC0415 -- other verbs need not wait for it

    return fleet.run(invocation)


def _hands(invocation: Invocation) -> int:
    from vmessctl.commands import controls  # noqa: PLC0415 -- other verbs need not wait for it

    return controls.HANDLERS[invocation.command.verb](invocation)


def _top(invocation: Invocation) -> int:
    from vmessctl.commands import top  # noqa: PLC0415 -- other verbs need not wait for it

    return top.run(invocation)


def _watch(invocation: Invocation) -> int:
    from vmessctl.commands import watching  # noqa: PLC0415 -- other verbs need not wait for it

    return watching.run(invocation)


def _wait(invocation: Invocation) -> int:
    from vmessctl.commands import waiting  # noqa: PLC0415 -- other verbs need not wait for it

    return waiting.run(invocation)


def _why(invocation: Invocation) -> int:
    from vmessctl.commands import why  # noqa: PLC0415 -- other verbs need not wait for it

    return why.run(invocation)


def _wires(invocation: Invocation) -> int:
    from vmessctl.commands import network  # noqa: PLC0415 -- other verbs need not wait for it

    return network.HANDLERS[invocation.command.verb](invocation)


def _vnc(invocation: Invocation) -> int:
    from vmessctl.commands import vnc  # noqa: PLC0415 -- other verbs need not wait for it

    return vnc.run(invocation)


def _console(invocation: Invocation) -> int:
    from vmessctl.commands import console  # noqa: PLC0415 -- other verbs need not wait for it

    return console.run(invocation)


def _log(invocation: Invocation) -> int:
    from vmessctl.commands import logs  # noqa: PLC0415 -- other verbs need not wait for it

    return logs.run(invocation)


def _completion(invocation: Invocation) -> int:
    from vmessctl.commands import completion  # noqa: PLC0415 -- other verbs need not wait for it

    return completion.run(invocation)


HANDLERS: dict[str, Handler] = {
    "list": _list,
    "help": _help,
    "completion": _completion,
    "top": _top,
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
    "watch": _watch,
    "wait": _wait,
    "why": _why,
    **{command.verb: _set for command in verbs.COMMANDS if command.method == "Set"},
    **{command.verb: _hands for command in verbs.COMMANDS if command.method in verbs.HANDS},
    **{command.verb: _wires for command in verbs.COMMANDS if command.method in verbs.WIRES},
}
