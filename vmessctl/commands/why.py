"""The verb why: how a VM's last run ended, and what happens next."""

from __future__ import annotations

import time

from vmessctl.cli.verbs import PROGRAM
from vmessctl.output import rendering
from vmessctl.output.phrases import at_boot, phrase
from vmessctl.output.terminal import show, show_each
from vmessd.core.errors import DONE, printable
from vmessd.core.words import Policy, Reason, Runstate, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Reply

INDENT = "  "


def run(invocation: Invocation) -> int:
    """Explain the state of VMs; return the exit status."""

    def work(reply: Reply, vm: str) -> int:
        show(invocation, reply, text, vm)
        return DONE

    return show_each(invocation, work)


def text(reply: Reply) -> str:
    """Return the explanation as lines of text."""
    why = reply["why"]
    status, last, end = why["status"], why["status"]["last_exit"], why["end"]
    off = rendering.is_off(status)
    lines = [rendering.status({"status": status}, may_ask_why=False), f"Next: {_next(why)}"]
    if last is None or end is None:
        lines.append("No run has ended yet" if not off else "No run is on record")
    else:
        if not off:
            lines.append("The previous run:")
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(end["when"]))
        lines += [
            f"When: {when}, {rendering.duration(last['age'])} ago",
            f"How: {printable(last['text'])}",
            *([] if last["reason"] == Reason.refused else [f"Stop asked for: {_asker(last, end)}"]),
            f"QEMU: PID {end['pid']}, {_status(last['status'])}",
        ]
        if end["tries"]:
            lines.append(f"Restarts in a row before it: {end['tries']}")
    if last is not None and end is not None:
        lines += _quoted("Last lines of QEMU", last["log"])
        lines += _quoted("Last lines of the serial console", end["console"])
    return "\n".join(lines)


def _asker(last: Reply, end: Reply) -> str:
    if last["asked_by"] is None:
        return "no"
    uid = f"uid {last['asked_by']}"
    return f"by {printable(end['user'])} ({uid})" if end["user"] else f"by {uid}"


def _status(status: int | None) -> str:
    """Return how the process ended; `status` is as in Python's subprocess."""
    if status is None:
        return "exit status unknown: it was not a child of the vmessd that saw it end"
    if status >= 0:
        return f"exit status {status}"
    import signal  # noqa: PLC0415 -- slow to import, rarely needed

    try:
        return f"ended by signal {-status}, {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


def _next(why: Reply) -> str:
    """Return what the daemon will do with the VM."""
    status, policy = why["status"], why["policy"]
    last, restart = status["last_exit"], status["restart"]
    boot = f"; {phrase(at_boot(why.get('daemon')))}" if why["autostart"] else ""
    if restart:
        when = rendering.duration(restart["due"])
        return f"starts again in {when}, restart {restart['attempt']} of {restart['limit']}"
    if status["state"] == State.stopping:
        return f"it is being stopped{boot}"
    if (status["state"], status["runstate"]) == (State.paused, Runstate.internal_error):
        ways = f"{PROGRAM} {status['name']} log says more; where KVM does not work: {PROGRAM} {status['name']}"
        return f"nothing: QEMU gave up on the guest; {ways} accel tcg stop force start"
    if (status["state"], status["runstate"]) == (State.paused, Runstate.suspended):
        return f"it is asleep (S3) until something wakes it, such as {PROGRAM} {status['name']} resume{boot}"
    if status["state"] == State.unresponsive:
        return "left alone until QEMU answers; stop force ends it"
    if status["state"] == State.held:
        return "it is left alone, and checked again until its directory is free or its QEMU is found"
    if status.get("owner"):
        return f"{printable(status['owner'])} decides about it"
    if status["state"] != State.stopped:
        if policy == Policy.no:
            return f"stays off if it ends (restart policy: no){boot}"
        return f"starts again if it ends unasked (restart policy: {policy}){boot}"
    note = f"{printable(last['note'])}: " if last and last["note"] else ""
    return f"{note}nothing until somebody starts it{boot}"


def _quoted(title: str, lines: list[str]) -> list[str]:
    if not lines:
        return [f"{title}: none"]
    return [f"{title}:", *(f"{INDENT}{printable(line)}" for line in lines)]
