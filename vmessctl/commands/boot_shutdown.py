"""The verbs boot and shutdown, which start and stop all VMs in order."""

from __future__ import annotations

import select
import time

from vmessctl.cli import verbs
from vmessctl.cli.verbs import PROGRAM, WITHIN, Invocation
from vmessctl.client import ANSWER_TIME, Client, connect, silence
from vmessctl.commands.quantities import seconds
from vmessctl.output import rendering
from vmessctl.output.phrases import phrase
from vmessctl.output.terminal import emit, is_live, status_lines, tell, warn
from vmessd.core import quantities, systemd
from vmessd.core.errors import DONE, FORCED, INTERRUPTED, Unreachable, printable, worst
from vmessd.core.words import FleetStep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.client import Reply

TICK = 1.0
RETURN_TIME = 20.0
"""Seconds to wait for a daemon that is gone, because it may just be restarting."""


def run(invocation: Invocation) -> int:
    """Boot or shut down all VMs and follow the progress; return the exit status."""
    progress = _Progress(invocation)
    try:
        return progress.follow()
    except KeyboardInterrupt:
        status_lines.leave()
        warn(f"{PROGRAM}: the {invocation.command.verb} continues; to check: {PROGRAM}")
        return INTERRUPTED


class _Progress:
    """A boot or shutdown of all VMs in progress."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        at_once = invocation.options.get(verbs.AT_ONCE.flag)
        within = seconds(invocation.options.get(WITHIN.flag), WITHIN)
        self._parameters: dict[str, object] = {} if within is None else {"within": within}
        if at_once is not None:
            self._parameters["at_once"] = quantities.at_once(at_once)
        self._live = is_live(invocation)
        self._statuses: list[int] = []
        self._going: dict[str, tuple[Reply, float]] = {}
        """VMs in transition: their last progress, and when its step began (monotonic clock)."""
        self._end: float | None = None
        """Deadline of the shutdown, by the monotonic clock."""
        self._patience: float | None = None
        """Deadline for a lost daemon to come back and answer."""

    def follow(self) -> int:
        """Follow the call until it finishes; repeat it if the daemon was restarted. Raises Unreachable."""
        while True:
            try:
                self._follow(connect(self._invocation, may_start=not systemd.is_heard()))
            except Unreachable:
                now = time.monotonic()
                self._patience = self._patience or now + RETURN_TIME
                if not systemd.is_heard() or now > self._patience:
                    raise
                self._going.clear()
                time.sleep(TICK / 2)
            else:
                return worst(self._statuses)

    def _follow(self, client: Client) -> None:
        client.send(self._invocation.command.method, self._parameters, more=True)
        due, heard = time.monotonic() + ANSWER_TIME, False
        while True:
            self._report_waiting()
            ready, _, _ = select.select([client], [], [], TICK)
            if ready:
                client.fill()
            elif not heard and time.monotonic() > due:
                raise silence()
            while client.pending():
                heard, self._patience = True, None
                progress = client.receive()[0]["progress"]
                emit(self._invocation, {"progress": progress})
                if progress["done"]:
                    status_lines.clear()
                    client.close()
                    if not self._statuses:
                        tell(phrase(f"{self._invocation.command.verb} nothing"))
                    return
                self._take(progress)

    def _take(self, progress: Reply) -> None:
        """Handle a step of one VM, and print it."""
        vm, step = progress["vm"], progress["step"]
        before = self._going.get(vm)
        if progress.get("left") is not None:
            self._end = time.monotonic() + progress["left"]
        if step in (FleetStep.starting, FleetStep.stopping):
            same = before is not None and before[0]["rung"] == progress["rung"]
            self._going[vm] = (progress, before[1] if before is not None and same else time.monotonic())
        else:
            self._going.pop(vm, None)
        if before is not None and step == FleetStep.stopping:
            line = rendering.escalation(progress)
        else:
            line = rendering.fleet_step(progress)
        if self._live and vm in self._going:
            if before is not None or step != FleetStep.stopping or not progress["text"]:
                return  # the status line shows it
            line = printable(progress["text"])
        status_lines.clear()
        if step == FleetStep.failed:
            warn(f"{PROGRAM}: {vm}: {printable(line)}")
            self._statuses.append(progress["status"] or 1)
        else:
            tell(line and f"{vm}: {line}")
            self._statuses.append(FORCED if progress["forced"] else DONE)

    def _report_waiting(self) -> None:
        """Show the VMs in transition on the terminal, and report them to the service manager."""
        now = time.monotonic()
        waits = [rendering.waiting(vm, progress, now - since) for vm, (progress, since) in self._going.items()]
        text = f"waiting for {', '.join(waits)}" if waits else ""
        status_lines.draw(
            *(
                (rendering.rung_colour(progress), f"{vm}: {rendering.under_way(progress, now - since)}")
                for vm, (progress, since) in self._going.items()
            )
        )
        left = [rendering.patience(progress, now - since) for progress, since in self._going.values()]
        if self._end is not None:
            left = [self._end - now]
        systemd.tell(systemd.status(text), *systemd.extend(max(left, default=0.0)))
