"""The verb that creates a VM, with its first disk on an image if one is named."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessctl.cli.verbs import Invocation
from vmessctl.commands import disks
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import emit, for_each, say, tell
from vmessd.core.errors import DONE, VmessError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client


def make(invocation: Invocation) -> int:
    """Create VMs."""
    image = invocation.options.get(verbs.IMAGE.flag)

    def work(client: Client, vm: str) -> int:
        reply = client.call("Make", vm=vm)
        emit(invocation, reply, vm)
        tell(about(vm, phrase("made", path=printable(reply["path"]))))
        return DONE if image is None else _with_image(invocation, client, vm, image)

    return for_each(invocation, work)


def _with_image(invocation: Invocation, client: Client, vm: str, image: str) -> int:
    """Put the first disk of a new VM on an image; if that fails, the VM is deleted again."""
    try:
        return disks.put_on_image(invocation, client, vm, image)
    except VmessError:
        client.call("Remove", vm=vm)
        say(f"{vm} is deleted again")
        raise
