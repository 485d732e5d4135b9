"""The verb that creates a VM, with its first disk on an image if one is named."""

from __future__ import annotations

from vmessctl.cli import verbs
from vmessctl.cli.verbs import Invocation
from vmessctl.commands import disks
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import emit, for_each, tell
from vmessd.core.errors import DONE, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Client, Reply


def make(invocation: Invocation) -> int:
    """Create VMs."""
    image = invocation.options.get(verbs.IMAGE.flag)

    def begin(client: Client, vm: str) -> None:
        client.begin("Make", vm=vm)

    def work(client: Client, vm: str) -> int:
        if image is None:
            _report(invocation, vm, client.call("Make", vm=vm))
            return DONE
        from vmessctl.commands.unfinished import Unfinished  # noqa: PLC0415 -- slow to import

        with Unfinished(invocation, client, vm) as new:
            _report(invocation, vm, new.make())
            return disks.put_on_image(invocation, client, vm, image)

    return for_each(invocation, work, begin if image is None else None)


def _report(invocation: Invocation, vm: str, reply: Reply) -> None:
    emit(invocation, reply, vm)
    tell(about(vm, phrase("made", path=printable(reply["path"]))))
