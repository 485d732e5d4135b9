"""Starting a VM again that ended unasked: whether, when, and what is noted of it."""

import asyncio
import dataclasses
from collections.abc import Callable

from vmessd.core.lifecycle import RESTARTS_MAX, STEADY, Policy, Reason, is_restarted, pause
from vmessd.core.models.vms import Restart
from vmessd.core.records import ExitRecord, Moment, boot_id

GIVEN_UP = f"given up after {RESTARTS_MAX} restarts"
CALLED_OFF = "its restart was called off"


def judge(record: ExitRecord, policy: Policy, *, lasted: float, ran: bool) -> ExitRecord:
    """Return the record of an end with what follows from it by the VM's restart policy.

    Args:
        record: with the restarts in a row that led to the run.
        policy: what RESTART says.
        lasted: seconds QEMU was there.
        ran: the guest did run. A first start that comes to nothing is for whoever asked to try again.
    """
    tries = 0 if lasted >= STEADY else _bounded(record.tries)
    wanted = is_restarted(policy, Reason.of(record.reason)) and (ran or record.tries > 0)
    return _decided(record, tries, wanted=wanted, note=None)


def judge_failure(record: ExitRecord, policy: Policy, words: str) -> ExitRecord:
    """Return the record of the last end after a restart that came to nothing, for lack of a bridge say."""
    if policy is Policy.no:
        return dataclasses.replace(record, again=False, note=CALLED_OFF)
    tries = _bounded(record.tries) + 1
    note = f"restart {tries} of {RESTARTS_MAX} failed: {words}"
    return _decided(record, tries, wanted=is_restarted(policy, Reason.of(record.reason)), note=note)


def is_due(record: ExitRecord) -> bool:
    """Tell whether a VM is to be started again by the record of its end, which anybody may have written."""
    return record.again and pause(record.tries) is not None


def follows(record: ExitRecord | None) -> bool:
    """Tell whether a VM is to be started again by the record of its end, which was in this boot of the host."""
    return record is not None and is_due(record) and record.when.boot == boot_id()


def later(known: ExitRecord | None, found: ExitRecord | None) -> ExitRecord | None:
    """Return the later of two ends: what is on disk may be older than what was seen."""
    if known is None or found is None:
        return known or found
    same = (found.pid, found.ticks) == (known.pid, known.ticks)
    return known if same or _order(found.when) <= _order(known.when) else found


def _order(when: Moment) -> tuple[bool, float]:
    is_now = when.boot == boot_id()
    return is_now, when.uptime if is_now else when.epoch


def _bounded(tries: int) -> int:
    return min(max(tries, 0), RESTARTS_MAX)


def _decided(record: ExitRecord, tries: int, *, wanted: bool, note: str | None) -> ExitRecord:
    again = wanted and pause(tries) is not None
    if wanted and not again:
        note = f"{GIVEN_UP}; {note}" if note else GIVEN_UP
    return dataclasses.replace(record, tries=tries, again=again, note=note)


class Pending:
    """A restart that is due after a pause. Measured by the event loop's monotonic clock."""

    def __init__(self, tries: int, due: Callable[[], None]) -> None:
        self.attempt = _bounded(tries) + 1
        """Counted from 1."""
        self.pause = pause(tries) or 0.0
        self._timer = asyncio.get_running_loop().call_later(self.pause, due)

    def report(self) -> Restart:
        """Return what is to be said of it."""
        left = self._timer.when() - asyncio.get_running_loop().time()
        return Restart(self.attempt, RESTARTS_MAX, max(0.0, left))

    def cancel(self) -> None:
        """Let it not happen."""
        self._timer.cancel()
