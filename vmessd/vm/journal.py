"""The journal of one VM: lines in the log for the administrator, events for `watch`."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from vmessd.core.lifecycle import RESTARTS_MAX, Event, State
from vmessd.core.models.events import Kind
from vmessd.core.models.vms import Exit
from vmessd.core.records import ExitRecord, RunRecord
from vmessd.vm.events import Events
from vmessd.vm.mailbox import EventMessage
from vmessd.vm.qemu_run import QemuRun
from vmessd.vm.restart import CALLED_OFF, Pending

log = logging.getLogger(__name__)

DOUBT_TIME = 0.5
"""Seconds after which a lost monitor connection is reported."""


def tell(events: Events, kind: Kind, vm: str, text: str, **more: Any) -> None:
    """Log and publish an event of a VM; `more` are fields of VMEvent."""
    log.info("%s: %s", vm, text)
    events.publish(kind, vm, text, **more)


class Journal:
    """Logs and publishes the events of one VM."""

    def __init__(self, vm: str, events: Events) -> None:
        self._vm = vm
        self._events = events
        self._told_state = State.stopped
        self._doubt: asyncio.TimerHandle | None = None

    def state(self, now: State, message: EventMessage) -> None:
        """Report the state of the VM after a message, if it has changed.

        A lost monitor connection is reported after a pause: mostly QEMU has ended, which is reported next.
        """
        if self._doubt is not None:
            if now is State.unresponsive:
                return
            self._doubt.cancel()
            self._doubt = None
        if now is self._told_state:
            return
        if message.event is Event.lost and now is State.unresponsive:
            loop = asyncio.get_running_loop()
            self._doubt = loop.call_later(DOUBT_TIME, self._tell_state, now, message)
        else:
            self._tell_state(now, message)

    def _tell_state(self, now: State, message: EventMessage) -> None:
        self._doubt = None
        before, self._told_state = self._told_state, now
        why = message.error.message if message.error else message.event.value
        text = f"{before.value} -> {now.value}: {why}"
        log.debug("%s: %s", self._vm, text)
        uid = message.request.uid if message.request else None
        self._events.publish(Kind.state, self._vm, text, state=now, before=before, uid=uid)

    def found(self, pid: int) -> None:
        """Report a QEMU that an earlier daemon started."""
        self._start(f"found running, pid {pid}", pid)

    def started(self, record: RunRecord) -> None:
        """Report a QEMU that has started."""
        display = f"display {record.display}" if record.display else "no display"
        self._start(f"started, pid {record.pid}, {display}, {record.accel}", record.pid)

    def _start(self, text: str, pid: int) -> None:
        tell(self._events, Kind.start, self._vm, text, pid=pid)

    def rung(self, run: QemuRun) -> None:
        """Report the rung of a stop."""
        if run.stop is not None:
            text = f"stopping: {run.stop.rung.value}"
            tell(self._events, Kind.stop, self._vm, text, pid=run.pid, uid=run.stop.uid)

    def ended(self, record: ExitRecord) -> None:
        """Report how a QEMU has ended."""
        log.info("%s: %s", self._vm, record.text)
        self._events.settle(self._vm)
        told, uid = Exit.of(record), record.asked_by
        self._events.publish(Kind.exit, self._vm, record.text, pid=record.pid, uid=uid, exit=told)

    def restart(self, pending: Pending) -> None:
        """Report that a restart is due."""
        self._policy(
            f"restart {pending.attempt} of {RESTARTS_MAX} in {pending.pause:g} s",
            logging.WARNING,
        )

    def given_up(self, note: str) -> None:
        """Report that there is no further restart, and why."""
        self._policy(note, logging.WARNING)

    def called_off(self, uid: int | None) -> None:
        """Report that a restart was cancelled."""
        self._policy(CALLED_OFF, logging.INFO, uid)

    def _policy(self, text: str, level: int, uid: int | None = None) -> None:
        log.log(level, "%s: %s", self._vm, text)
        self._events.publish(Kind.restart, self._vm, text, uid=uid)

    def failed(self, pid: int, text: str) -> None:
        """Report that something beside QEMU has failed."""
        log.warning("%s: %s", self._vm, text)
        self._events.publish(Kind.qemu, self._vm, text, pid=pid)

    def qmp(self, pid: int, name: str, data: Mapping[str, Any]) -> None:
        """Publish a QMP event, if `watch` shows it."""
        self._events.qmp(self._vm, pid, name, data)
