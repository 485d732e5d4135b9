"""Who changed what: a line of the log for each change that was made, also beside many that were refused.

What was carried out, or failed on the way, has a line of its own; how many of those there can be is bounded
by :mod:`vmessd.api.budgets`. What was refused before anything was done has a line the first time; what follows
of that kind is counted, and told in one line. So nobody can have others' lines dropped by making many.
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
"""Seconds for which refusals are counted together."""
SOON = 1.0
"""Seconds after which a change that is under way is told, and not only when it is done."""
LENGTH = 300
"""Characters of a value."""
SWITCH = "on"
"""A parameter that is told by its value alone: `on` or `off`."""
REFUSALS = (InvalidValue, NotRunning, NoSuchVM, Locked, AlreadyRunning, NotPermitted)
"""Errors that mean that nothing was done."""


class Peer(NamedTuple):
    """Who is at the other end, by SO_PEERCRED: the kernel's word and not the client's."""

    pid: int
    uid: int
    gid: int


def words(name: str, method: Method, parameters: Mapping[str, Any]) -> str:
    """Return a call in words: what it is about, and then its other parameters."""
    about = quoted("" if method.about is None else parameters[method.about], LENGTH)
    others = [
        _switched(value) if key == SWITCH else f"{key} {_shown(value, secret=key in method.secret)}"
        for key, value in parameters.items()
        if key != method.about
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
    """What is told of changing calls."""

    def __init__(self) -> None:
        self._refused: dict[int, collections.Counter[str]] = {}

    def refused(self, uid: int, name: str, line: str) -> None:
        """Tell of a refusal, or count it."""
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
    """What is told of one changing call."""

    def __init__(self, audit: Audit, peer: Peer, name: str, text: str) -> None:
        self._audit = audit
        self._peer = peer
        self._name = name
        self._line = f"uid {peer.uid}, pid {peer.pid}: {text}"
        self._told = False
        self._timer: asyncio.TimerHandle | None = None

    def begun(self) -> None:
        """Note that the call is no longer waiting for its place."""
        self._timer = asyncio.get_running_loop().call_later(SOON, self.carried_out)

    def carried_out(self) -> None:
        """Tell of the change, once."""
        self._stop()
        if not self._told:
            self._told = True
            log.info("%s", self._line)

    def ended_by(self, error: BaseException) -> None:
        """Tell how the call ended instead."""
        begun = self._timer is not None
        self._stop()
        if isinstance(error, asyncio.CancelledError) and begun:  # by the end of this daemon: who knows how far
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
