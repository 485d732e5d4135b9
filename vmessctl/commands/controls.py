"""The verbs that control a running guest (suspend, resume, reset, keys, screenshot), lock and unlock."""

from __future__ import annotations

import os
import sys
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM
from vmessctl.client import connect
from vmessctl.commands import confirmation
from vmessctl.output.descriptors import write_all
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import emit, for_each, say, tell
from vmessd.core.errors import DONE, Failed, InvalidValue, failing, printable, quoted
from vmessd.core.settings import LOCK, STROKE_TIME

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Client


ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def change(invocation: Invocation) -> int:
    """Suspend, resume or reset guests; the verb says which."""
    return _call(invocation)


def _call(invocation: Invocation, extra_time: float = 0.0, **parameters: object) -> int:
    """Call the method of a verb for each VM; `extra_time` extends its timeout, in seconds."""

    def work(client: Client, vm: str) -> int:
        client.wait_longer(extra_time)
        emit(invocation, client.call(invocation.command.method, vm=vm, **parameters), vm)
        tell(about(vm, phrase(invocation.command.verb)))
        return DONE

    return for_each(invocation, work)


def send_keys(invocation: Invocation) -> int:
    """Press keys."""
    return _call(invocation, len(invocation.arguments) * STROKE_TIME, keys=list(invocation.arguments))


def send_ctrl_alt_delete(invocation: Invocation) -> int:
    """Press Ctrl-Alt-Delete."""
    return _call(invocation, keys=["ctrl-alt-delete"])


def type_text(invocation: Invocation) -> int:
    """Type text."""
    text = _unescaped(invocation.arguments[0])
    return _call(invocation, len(text) * STROKE_TIME, text=text)


def _unescaped(text: str) -> str:
    r"""Return text with \n, \t and \\ replaced by their characters; raises InvalidValue for other escapes."""
    typed, rest = "", text
    while rest:
        before, backslash, rest = rest.partition("\\")
        typed += before
        if backslash:
            escape, rest = rest[:1], rest[1:]
            if escape not in ESCAPES:
                raise InvalidValue(f"{quoted(backslash + escape)} is not an escape; \\n, \\t and \\\\ are")
            typed += ESCAPES[escape]
    return typed


def screenshot(invocation: Invocation) -> int:
    """Write a picture of a guest's screen to a file."""
    (vm,), named = invocation.vms, invocation.arguments
    file = named[0] if named else f"{vm}-{time.strftime('%Y%m%d-%H%M%S')}.png"
    if file == "-" and sys.stdout.isatty():
        raise InvalidValue(
            "a PNG picture cannot be shown on a terminal", hint=f"{PROGRAM} {vm} screenshot FILE"
        )
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
        write_all(target, data)


def lock(invocation: Invocation) -> int:
    """Lock VMs."""
    return _call(invocation, remark=" ".join(invocation.arguments))


def unlock(invocation: Invocation) -> int:
    """Unlock VMs, after confirmation on a terminal."""
    sure = verbs.YES.flag in invocation.options or not sys.stdin.isatty()

    def work(client: Client, vm: str) -> int:
        values = client.call("Info", vm=vm)["info"]["settings"]
        remark = next((value["value"] for value in values if value["name"] == LOCK), None)
        if remark is None:
            say(f"{vm} is not locked")
            return DONE
        question = f"Unlock {vm}{f' ({printable(remark)})' if remark else ''}?"
        if not sure and not confirmation.agrees(question, f"{vm} remains locked"):
            return Failed.status
        emit(invocation, client.call("Unlock", vm=vm), vm)
        tell(about(vm, phrase("unlock")))
        return DONE

    return for_each(invocation, work)
