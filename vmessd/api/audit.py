"""The audit log: one line for each change and the user who made it.

A change that was made or failed halfway has its own line; :mod:`vmessd.api.budgets` limits their number. A call
that was refused has a line the first time; further refusals of this kind are counted and summed up in one line.
So nobody can flood the log until it drops the lines of others.
"""

import asyncio
import collections
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from vmessd.core.contract import Method
from vmessd.core.errors import (
    AlreadyRunning,
    InvalidValue,
    Locked,
    NoSuchVM,
    NotPermitted,
    NotRunning,
    VmessError,
    quoted,
)

log = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds over which refusals are summed up."""
SOON = 1.0
"""Seconds after which a change in progress is logged, without waiting for its end."""
LENGTH = 300
"""Maximum characters of a value."""
SWITCH = "on"
"""A parameter that is shown by its value alone: `on` or `off`."""
REFUSALS = (InvalidValue, NotRunning, NoSuchVM, Locked, AlreadyRunning, NotPermitted)
"""Errors that mean that nothing was done."""


class Peer(NamedTuple):
    """The process at the other end, as the kernel reports it (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


def words(name: str, method: Method, parameters: Mapping[str, Any]) -> str:
    """Return a call in words: its name and subject, then the other parameters."""
    about = quoted((method.about and parameters.get(method.about)) or "", LENGTH)
    others = [
        _switched(value) if key == SWITCH else f"{key} {_shown(value, secret=key in method.secret)}"
        for key, value in parameters.items()
        if key not in (method.about, method.takes)
    ]
    return ", ".join([f"{name} {about}", *others])


def _switched(on: object) -> str:
    return "on" if on else "off"


def _shown(value: object, *, secret: bool) -> str:
    if secret:
        return f"of {len(str(value))} characters"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return quoted(" ".join(map(str, value)), LENGTH)
    return quoted(value, LENGTH)


class Audit:
    """The log of changing calls, with refusals summed up."""

    def __init__(self) -> None:
        self._refused: dict[int, collections.Counter[str]] = {}

    def refused(self, uid: int, name: str, line: str) -> None:
        """Log a refusal, or count it."""
        if uid not in self._refused:
            self._refused[uid] = collections.Counter()
            asyncio.get_running_loop().call_later(INTERVAL, self._sum_up, uid)
        counted = self._refused[uid]
        if name not in counted:
            log.info("%s", line)
        counted[name] += 1

    def _sum_up(self, uid: int) -> None:
        more = {name: number - 1 for name, number in self._refused.pop(uid).items() if number > 1}
        if more:
            kinds = ", ".join(f"{number} {name}" for name, number in sorted(more.items()))
            log.info("uid %d: more calls refused in %g s: %s", uid, INTERVAL, kinds)


class Note:
    """The log entry of one changing call."""

    def __init__(self, audit: Audit, peer: Peer, name: str, text: str) -> None:
        self._audit = audit
        self._peer = peer
        self._name = name
        self._line = f"uid {peer.uid}, pid {peer.pid}: {text}"
        self._told = False
        self._timer: asyncio.TimerHandle | None = None

    def begun(self) -> None:
        """Note that the call has its place and begins."""
        self._timer = asyncio.get_running_loop().call_later(SOON, self.carried_out)

    def carried_out(self) -> None:
        """Log the change, once."""
        self._stop()
        if not self._told:
            self._told = True
            log.info("%s", self._line)

    def ended_by(self, error: BaseException) -> None:
        """Log how the call failed."""
        begun = self._timer is not None
        self._stop()
        if isinstance(error, asyncio.CancelledError) and begun:  # the daemon ends, and the change may be made
            self.carried_out()
            return
        text = error.message if isinstance(error, VmessError) else type(error).__name__
        if not begun or (isinstance(error, REFUSALS) and not self._told):
            self._audit.refused(self._peer.uid, self._name, f"{self._line}: refused: {text}")
        else:
            log.info("%s: failed: %s", self._line, text)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
