"""The verbs for a guest that runs: pause and reset it, press its keys, look at its screen; lock a VM."""

from __future__ import annotations

import os
import sys
import time

from vmessctl.cli import verbs
from vmessctl.client import connect
from vmessctl.output.terminal import agreed, emit, for_each, say, warn
from vmessd.core.errors import DONE, Failed, InvalidValue, failing, printable, quoted
from vmessd.core.settings import LOCK, STROKE_TIME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Client


ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def change(invocation: Invocation) -> int:
    """Have guests stand still, go on, or be reset; the verb says which."""
    return _plainly(invocation)


def _plainly(invocation: Invocation, longer: float = 0.0, **parameters: object) -> int:
    """Make the call of a verb that answers with nothing, and may take some seconds longer than others."""

    def work(client: Client, vm: str) -> int:
        client.wait_longer(longer)
        emit(invocation, client.call(invocation.command.method, vm=vm, **parameters), vm)
        return DONE

    return for_each(invocation, work)


def send_keys(invocation: Invocation) -> int:
    """Press keys."""
    return _plainly(invocation, len(invocation.arguments) * STROKE_TIME, keys=list(invocation.arguments))


def send_ctrl_alt_delete(invocation: Invocation) -> int:
    """Press the three keys."""
    return _plainly(invocation, keys=["ctrl-alt-delete"])


def type_text(invocation: Invocation) -> int:
    """Type a text."""
    text = _unescaped(invocation.arguments[0])
    return _plainly(invocation, len(text) * STROKE_TIME, text=text)


def _unescaped(text: str) -> str:
    r"""Return a text with \n, \t and \\ as the characters they stand for; raises InvalidValue for others."""
    typed, rest = "", text
    while rest:
        before, backslash, rest = rest.partition("\\")
        typed += before
        if backslash:
            escape, rest = rest[:1], rest[1:]
            if escape not in ESCAPES:
                raise InvalidValue(f"{quoted(backslash + escape)} stands for no key; \\n, \\t and \\\\ do")
            typed += ESCAPES[escape]
    return typed


def screenshot(invocation: Invocation) -> int:
    """Write a picture of a guest's screen to a file."""
    (vm,), named = invocation.vms, invocation.arguments
    file = named[0] if named else f"{vm}-{time.strftime('%Y%m%d-%H%M%S')}.png"
    if file == "-" and sys.stdout.isatty():
        raise InvalidValue("a picture is no text for a terminal", hint=f"vmess {vm} screenshot FILE")
    client = connect(invocation)
    client.call("Screenshot", vm=vm)
    picture = client.descriptors(1)[0]
    client.close()
    try:
        with failing(f"{printable(file)} cannot be written"):
            _copy(picture, sys.stdout.fileno() if file == "-" else _created(file))
    finally:
        os.close(picture)
    if not named:
        print(file)
    return DONE


def _created(file: str) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)


def _copy(source: int, target: int) -> None:
    while data := os.read(source, 1 << 16):
        while data:
            data = data[os.write(target, data) :]


def lock(invocation: Invocation) -> int:
    """Lock VMs."""
    return _plainly(invocation, remark=" ".join(invocation.arguments))


def unlock(invocation: Invocation) -> int:
    """Unlock VMs, after a question where there is somebody to ask."""
    sure = verbs.YES.flag in invocation.options or not sys.stdin.isatty()

    def work(client: Client, vm: str) -> int:
        values = client.call("Info", vm=vm)["info"]["settings"]
        remark = next((value["value"] for value in values if value["name"] == LOCK), None)
        if remark is None:
            say(f"{vm} is not locked")
            return DONE
        if not sure and not agreed(f"Unlock {vm}{f' ({printable(remark)})' if remark else ''}?"):
            warn(f"{vm} stays locked")
            return Failed.status
        emit(invocation, client.call("Unlock", vm=vm), vm)
        return DONE

    return for_each(invocation, work)
