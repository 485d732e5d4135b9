"""The verbs list, status and info."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessctl.client import connect
from vmessctl.output import rendering
from vmessctl.output.terminal import say, show, show_each
from vmessd.core.errors import DONE, NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Reply


def list_vms(invocation: Invocation) -> int:
    """List the running VMs, then all."""
    client = connect(invocation)
    reply = client.call("List")
    show(invocation, reply, rendering.listing)
    others = reply.get("others")
    if others and verbs.JSON.flag not in invocation.options:
        say(rendering.not_vms(others))
    client.close()
    return DONE


def status(invocation: Invocation) -> int:
    """Show whether VMs run; the exit status says so as well."""

    def work(reply: Reply, vm: str) -> int:
        show(invocation, reply, rendering.status, vm)
        return NotRunning.status if rendering.is_off(reply["status"]) else DONE

    return show_each(invocation, work)


def info(invocation: Invocation) -> int:
    """Show everything known about VMs."""

    def work(reply: Reply, vm: str) -> int:
        show(invocation, reply, rendering.info, vm)
        return DONE

    return show_each(invocation, work)
