"""The verb vnc, which admits a VNC viewer."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessctl.cli.verbs import Invocation
from vmessctl.client import connect
from vmessctl.commands.quantities import seconds
from vmessctl.output.addresses import bracketed, is_loopback
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import show
from vmessd.core.errors import DONE, InvalidValue, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Reply


def run(invocation: Invocation) -> int:
    """Make the daemon listen for one connection, and print where."""
    parameters = {
        "port": _port(invocation),
        "address": invocation.options.get(verbs.BIND.flag),
        "timeout": seconds(invocation.options.get(verbs.TIMEOUT.flag)),
    }
    (vm,) = invocation.vms
    client = connect(invocation)
    reply = client.call("Vnc", vm=vm, **parameters)
    client.close()
    show(invocation, reply, lambda reply: about(vm, invitation(reply)), vm)
    return DONE


def invitation(reply: Reply) -> str:
    """Return where a viewer can connect; the original names the port alone for a loopback address."""
    address, port = reply["relay"]["address"], reply["relay"]["port"]
    whole = f"{bracketed(address)}:{port}"
    where = port if is_loopback(address) else whole
    return phrase("vnc", where=where, whole=whole, seconds=reply["relay"]["timeout"])


def _port(invocation: Invocation) -> int | None:
    if not invocation.arguments:
        return None
    (text,) = invocation.arguments
    if not text.isdecimal() or len(text) > 5:
        raise InvalidValue(
            f"port {quoted(text)} is not a number from 1 to 65535", hint=f"usage: {invocation.command.usage()}"
        )
    return int(text)
