"""The one connection that has a console: how the daemon passes it, and why it was lost."""

from __future__ import annotations

import os
import select
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, Invocation
from vmessctl.client import connect
from vmessctl.commands.console import serial_port
from vmessctl.output.phrases import phrase
from vmessctl.output.terminal import complain, say
from vmessd.core.errors import DONE, Failed, Locked, Unreachable, VmessError, printable
from vmessd.core.words import Ending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply

PIECE = 1 << 16
"""Bytes read at once."""
VERDICT_TIME = 3.0
"""Seconds to wait for the daemon to say why a console ended."""


def take(invocation: Invocation) -> tuple[Reply, int, int]:
    """Return what the daemon says of the console of a VM, and the descriptors of :func:`handed`.

    Raises:
        VmessError: somebody else has it, or the VM does not run.
    """
    (vm,) = invocation.vms
    client = connect(invocation)
    seat = client.call("Console", **parameters(invocation, vm))["console"]
    return (seat, *handed(client, seat))


def parameters(invocation: Invocation, vm: str) -> dict[str, object]:
    """Return the parameters of the call that asks for a console."""
    return {"vm": vm, "steal": verbs.STEAL.flag in invocation.options, **serial_port.parameters(invocation)}


def handed(client: Client, seat: Reply) -> tuple[int, int]:
    """Return a console, which does not block, and the leash on which the daemon says why it has ended.

    The connection to the daemon is closed.
    """
    descriptors = client.descriptors(2)
    client.close()
    console, leash = descriptors[seat["console"]], descriptors[seat["leash"]]
    os.set_blocking(console, False)
    return console, leash


def _taken_over(vm: str, how: str) -> Locked:
    return Locked(f"{vm}: the console is no longer yours: {how}", hint=f"{PROGRAM} {vm} console --steal")


def _ending(leash: int, poll: select.poll) -> str:
    """Return how a console ended, in the contract's word; empty from an older vmessd."""
    return os.read(leash, 4096).decode(errors="replace") if poll.poll(VERDICT_TIME * 1000) else ""


def heard(console: int) -> bytes | None:
    """Return what the guest has printed: empty if the console has ended, None if there is nothing yet."""
    try:
        return os.read(console, PIECE)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def verdict(invocation: Invocation, vm: str, leash: int) -> int:
    """Report why the console ended; return the exit status."""
    deadline = time.monotonic() + VERDICT_TIME
    poll = select.poll()
    poll.register(leash, select.POLLIN)
    why = os.read(leash, 4096).decode(errors="replace") if poll.poll(VERDICT_TIME * 1000) else ""
    if why and _ending(leash, poll) == Ending.taken_over:
        return complain(_taken_over(vm, printable(why)))
    if why:
        again = f"{PROGRAM} {vm} console"
        return complain(Failed(f"{vm}: the console ended: {printable(why)}", hint=again))
    try:
        while True:
            status = connect(invocation).call("Status", vm=vm)["status"]
            if status["pid"] is None:
                last = status["last_exit"]
                say(f"{vm}: {printable(last['text']) if last else phrase('off', aside='')}")
                return DONE
            if time.monotonic() > deadline:
                return complain(_taken_over(vm, "it was taken over"))
            time.sleep(0.05)
    except Unreachable:
        say(f"{vm}: the console ended, and no vmessd is running to say why")
        return Failed.status
    except VmessError as error:
        return complain(error)
