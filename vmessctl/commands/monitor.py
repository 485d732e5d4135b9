"""`status --monitor`, for the monitors of clusters and of networks, and `stop --by-lock`.

Both also work where no vmessd answers, and never start one. What they say then follows from the lock that QEMU
holds, and from nothing else.
"""

from __future__ import annotations

import time

from vmessctl.cli import verbs
from vmessctl.client import Client, candidates
from vmessctl.commands.by_lock import LockedVM
from vmessctl.commands.quantities import seconds
from vmessctl.output import rendering
from vmessctl.output.phrases import about, phrase
from vmessctl.output.terminal import complain, emit, say, show, tell, warn
from vmessd.core.errors import (
    DONE,
    FORCED,
    HALTED,
    UNRESPONSIVE,
    InvalidValue,
    NotRunning,
    TimedOut,
    Unreachable,
    VmessError,
    worst,
)
from vmessd.core.words import HALTS, State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Reply

PATIENCE = 5.0
"""Seconds that the daemon has to answer a monitor."""
SETTLING = 3.0
"""Seconds after which a QEMU that does not answer is reported: one that was just found does not at first."""
LOOK_EVERY = 0.5
STOP_TIME = 90.0
"""Seconds in which a VM is stopped without a daemon, if no time-out is given."""


def show_state(invocation: Invocation, vms: Sequence[str]) -> int:
    """Show whether VMs run and are well; return the exit status, which is more exact than without --monitor."""
    statuses = []
    for vm in vms:
        try:
            statuses.append(_monitor(invocation, vm))
        except VmessError as error:
            statuses.append(complain(error))
    return worst(statuses)


def _monitor(invocation: Invocation, vm: str) -> int:
    try:
        reply = _asked(invocation, vm)
    except (Unreachable, TimedOut) as error:
        try:
            locked = LockedVM(vm)
        except Unreachable:  # only root may look: what is wrong with the daemon tells more
            raise error from None
        with locked as directory:
            pid = directory.settled()
        emit(invocation, {"status": None, "pid": pid, "no daemon": error.message}, vm)
        if verbs.JSON.flag not in invocation.options:
            what = "not running" if pid is None else f"running, PID {pid}" if pid else "running"
            print(f"{vm}: {what}, by its lock; no vmessd answers")
        return NotRunning.status if pid is None else DONE
    several = len(invocation.vms) > 1
    show(invocation, reply, rendering.status if several else lambda it: rendering.status_line(it, vm), vm)
    return verdict(reply["status"])


def _asked(invocation: Invocation, vm: str) -> Reply:
    """Return what the daemon says of a VM; raises Unreachable or TimedOut if it does not answer in time."""
    client = Client(candidates(invocation.options.get(verbs.SOCKET.flag)), PATIENCE)
    try:
        due = time.monotonic() + SETTLING
        while True:
            reply = client.call("Status", vm=vm)
            if reply["status"]["state"] != State.unresponsive or time.monotonic() > due:
                return reply
            time.sleep(LOOK_EVERY)
    finally:
        client.close()


def verdict(status: Reply) -> int:
    """Return the exit status that a monitor gets for the status of a VM."""
    if rendering.is_off(status):
        return NotRunning.status
    if status["state"] == State.unresponsive:
        return UNRESPONSIVE
    return HALTED if status["state"] == State.paused and status["runstate"] in HALTS else DONE


def answers(invocation: Invocation) -> bool:
    """Tell whether a daemon answers; if not, say so."""
    try:
        client = Client(candidates(invocation.options.get(verbs.SOCKET.flag)), PATIENCE)
        client.call("Daemon")
        client.close()
    except (Unreachable, TimedOut) as error:
        warn(f"{verbs.PROGRAM}: {error.message}; VMs are stopped by their locks")
        return False
    return True


def end(invocation: Invocation, began: float) -> int:
    """Stop VMs without a daemon, one after the other; return the exit status.

    The time-out is over all of them, and counts from `began`, by the monotonic clock.
    """
    if verbs.NO_WAIT.flag in invocation.options or verbs.GRACE.flag in invocation.options:
        raise InvalidValue("without vmessd, a stop is waited for, with the grace period of the VM")
    timeout = seconds(invocation.options.get(verbs.TIMEOUT.flag)) or STOP_TIME
    statuses = []
    for vm in invocation.vms:
        try:
            with LockedVM(vm) as directory:
                pid = directory.pid()
                forced = directory.end(began + timeout, force=bool(invocation.arguments))
        except VmessError as error:
            statuses.append(complain(error))
            continue
        emit(invocation, {"pid": pid, "forced": forced}, vm)
        if forced:
            say(about(vm, phrase("forced", how=": SIGKILL")))
        elif pid is None:
            tell(about(vm, phrase("already off", text=phrase("off", aside=""))))
        else:
            tell(about(vm, phrase("stopped by lock")))
        statuses.append(FORCED if forced else DONE)
    return worst(statuses)
