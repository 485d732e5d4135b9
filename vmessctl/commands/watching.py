"""The verb watch: one line for each event of a VM, as it happens."""

from __future__ import annotations

import select
import sys
import time

from vmessctl import light_json
from vmessctl.cli import verbs
from vmessctl.cli.verbs import Invocation
from vmessctl.output import rendering
from vmessctl.output.terminal import say
from vmessctl.stream import Stream
from vmessd.core.errors import UNREAD
from vmessd.core.words import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Reply


def run(invocation: Invocation) -> int:
    """Print events until Ctrl-C or until the reader of our output is gone; raises VmessError."""
    stream = Stream(invocation, "Watch", lambda: {"vms": list(invocation.vms)}, more=True)
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # POLLERR: the reader has closed its end
    while True:
        fd = stream.fileno()
        if fd is not None:
            poll.register(fd, select.POLLIN)
        limit = stream.limit()
        ready = dict(poll.poll(None if limit is None else int(1000 * limit) + 1))
        if ready.get(sys.stdout.fileno(), 0) & (select.POLLERR | select.POLLNVAL):
            return UNREAD
        replies = stream.news(ready=fd in ready)
        if fd is not None and stream.fileno() is None:
            poll.unregister(fd)
        for reply in replies:
            _show(invocation, reply)
        if replies:
            sys.stdout.flush()


def _show(invocation: Invocation, reply: Reply) -> None:
    event = reply["event"]
    if verbs.JSON.flag in invocation.options:
        print(light_json.dumps(event))
    elif event["event"] == Kind.watching:
        if sys.stderr.isatty():
            say(f"watching {', '.join(invocation.vms) or _all_vms(event)}; Ctrl-C ends it")
    elif event["event"] != Kind.now:
        print(rendering.event(event, time.strftime("%H:%M:%S", time.localtime(event["time"]))))


def _all_vms(event: Reply) -> str:
    """Return the subject of a watch of all VMs; an older vmessd does not give their number."""
    count = event.get("vms")
    return "all VMs" if count is None else f"all VMs, {count} now"
