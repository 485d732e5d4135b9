"""The restart of a VM that was not asked to stop: whether, when, and what the exit record says about it."""

import asyncio
import dataclasses
from collections.abc import Callable

from vmessd.core.lifecycle import RESTARTS_MAX, STEADY, Policy, Reason, is_restarted, pause
from vmessd.core.models.vms import Restart
from vmessd.core.records import ExitRecord, Moment, boot_id

GIVEN_UP = f"given up after {RESTARTS_MAX} restarts"
CALLED_OFF = "its restart was called off"


def judge(record: ExitRecord, policy: Policy, *, lasted: float, ran: bool) -> ExitRecord:
    """Return the exit record with the decision about a restart.

    Args:
        record: with the number of consecutive restarts before the run.
        policy: the restart policy of the VM.
        lasted: seconds that QEMU existed.
        ran: the guest has run. A first start that fails is not repeated: its caller knows.
    """
    tries = 0 if lasted >= STEADY else _bounded(record.tries)
    wanted = is_restarted(policy, Reason.of(record.reason)) and (ran or record.tries > 0)
    return _decided(record, tries, wanted=wanted, note=None)


def judge_failure(record: ExitRecord, policy: Policy, words: str) -> ExitRecord:
    """Return the last exit record after a restart that failed, for example because a bridge is missing."""
    if policy is Policy.no:
        return dataclasses.replace(record, again=False, note=CALLED_OFF)
    tries = _bounded(record.tries) + 1
    note = f"restart {tries} of {RESTARTS_MAX} failed: {words}"
    return _decided(record, tries, wanted=is_restarted(policy, Reason.of(record.reason)), note=note)


def is_due(record: ExitRecord) -> bool:
    """Tell whether the exit record asks for a restart. Its number of tries is not trusted."""
    return record.again and pause(record.tries) is not None


def follows(record: ExitRecord | None) -> bool:
    """Tell whether the exit record asks for a restart, and was written in this boot of the host."""
    return record is not None and is_due(record) and record.when.boot == boot_id()


def later(known: ExitRecord | None, found: ExitRecord | None) -> ExitRecord | None:
    """Return the later of two exit records: the one on disk may be older than the one in memory."""
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
    """A restart after a pause, timed by the monotonic clock of the event loop."""

    def __init__(self, tries: int, due: Callable[[], None]) -> None:
        self.attempt = _bounded(tries) + 1
        """Counted from 1."""
        self.pause = pause(tries) or 0.0
        self._timer = asyncio.get_running_loop().call_later(self.pause, due)

    def report(self) -> Restart:
        """Return it as `status` shows it."""
        left = self._timer.when() - asyncio.get_running_loop().time()
        return Restart(self.attempt, RESTARTS_MAX, max(0.0, left))

    def cancel(self) -> None:
        """Cancel the restart."""
        self._timer.cancel()
