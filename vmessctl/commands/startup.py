"""The verb startup: the configuration that a guest gets at its start, in the way that its kind reads."""

from __future__ import annotations

import os

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.commands import passed_files
from vmessctl.commands.passed_files import STANDARD_INPUT
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import emit, for_each, say, show, tell
from vmessd.core import startup
from vmessd.core.errors import DONE, InvalidValue, counted, printable, quoted, shell_line
from vmessd.core.startup import CD, CONSOLE, Startup
from vmessd.core.words import OFF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply

WAY_OPTIONS = (verbs.AS, verbs.EXPECT, verbs.RATE)


def run(invocation: Invocation) -> int:
    """Set the startup configuration of VMs, remove it, or show it."""
    given = [option.flag for option in WAY_OPTIONS if option.flag in invocation.options]
    if not invocation.arguments:
        if given:
            raise InvalidValue(f"{given[0]} needs a file", hint=f"usage: {invocation.command.usage()}")
        return _show(invocation)
    (file,) = invocation.arguments
    if file == "none":
        if given:
            raise InvalidValue("startup none takes nothing else", hint=f"usage: {invocation.command.usage()}")
        return for_each(invocation, lambda client, vm: _set(invocation, client, vm, None, b""))
    data = passed_files.read(file, startup.LIMIT, startup.too_large)
    way = _way(invocation, file)
    way.check("standard input" if file == STANDARD_INPUT else quoted(file, 300), data)
    return for_each(invocation, lambda client, vm: _set(invocation, client, vm, way.text, data))


def _way(invocation: Invocation, file: str) -> Startup:
    """Return the way in which a guest gets the file; raises InvalidValue."""
    options, line = invocation.options, shell_line([PROGRAM.name, *invocation.vms, "startup", file])
    words = options.get(verbs.AS.flag, CD)
    if words != CONSOLE:
        for option in (verbs.EXPECT, verbs.RATE):
            if option.flag in options:
                raise InvalidValue(
                    f"{option.flag} is for a configuration that is typed on the console",
                    hint=f"{line} --as console --expect '[>#] ?$'",
                )
        if file == STANDARD_INPUT and words in startup.NAMED:
            raise InvalidValue(
                f"standard input has no name, and the file on the {words} needs one",
                hint=f"{line} --as {words}:startup-config",
            )
        return startup.of_words(words, file)
    if verbs.EXPECT.flag not in options:
        raise InvalidValue(
            "the console needs a prompt to wait for: a regular expression",
            hint=f"{line} --as console --expect '[>#] ?$'",
        )
    return startup.of_console(options[verbs.EXPECT.flag], options.get(verbs.RATE.flag))


def _set(invocation: Invocation, client: Client, vm: str, value: str | None, data: bytes) -> int:
    """Set the startup configuration of a VM, and report it."""
    passed = passed_files.sealed(data)
    try:
        parameters = {"vm": vm, "configuration": 0, "size": len(data)}
        client.send(
            "SetStartup", parameters if value is None else {**parameters, "value": value}, descriptor=passed
        )
    finally:
        os.close(passed)
    reply = client.receive()[0]
    emit(invocation, reply, vm)
    what = "none" if value is None else f"{counted(len(data), 'byte')}, {value}"
    tell(about(vm, phrase("startup", what=printable(what))))
    if client.call("Status", vm=vm)["status"]["state"] not in OFF:
        say(f"{vm} is running; startup takes effect at its next start")
    return DONE


def _show(invocation: Invocation) -> int:
    """Show the startup configuration of VMs."""

    def work(client: Client, vm: str) -> int:
        show(invocation, client.call("Startup", vm=vm), lambda reply: "\n".join(lines(reply)), vm)
        return DONE

    return for_each(invocation, work)


def lines(reply: Reply) -> list[str]:
    """Return the startup configuration of a VM for people; not its content, which may be secret."""
    found = reply.get("startup")
    if not found:
        return ["none"]
    told = [found["value"], f"{found['path']}: {counted(found['size'], 'byte')}"]
    return [printable(line) for line in (*told, *filter(None, [found.get("typed")]))]
