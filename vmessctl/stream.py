"""A call with a stream of replies, repeated when vmessd is restarted."""

from __future__ import annotations

import time

from vmessctl import client as wire
from vmessctl.cli.verbs import PROGRAM
from vmessctl.output.terminal import say, status_lines
from vmessd.core.errors import Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Client, Reply

RETURN_TIME = 20.0
"""Seconds to wait for a daemon that is gone, because it may just be restarting."""
RETRY = 0.25
"""Seconds between attempts to reconnect."""


class Stream:
    """The replies to one call."""

    def __init__(
        self, invocation: Invocation, method: str, parameters: Callable[[], Mapping[str, object]], *, more: bool
    ) -> None:
        """Make the call; `parameters` is called again before each repetition. Raises Unreachable."""
        self._invocation = invocation
        self._method = method
        self._parameters = parameters
        self._more = more
        self._client: Client | None = None
        self._heard = False
        self._patience = 0.0
        self.again = False
        """The call was repeated, so events in between were missed."""
        self._open(may_start=True)

    def _open(self, *, may_start: bool) -> None:
        self._client = wire.connect(self._invocation, may_start=may_start)
        self._call()

    @property
    def is_heard(self) -> bool:
        """The call has had a reply."""
        return self._heard

    def ask(self) -> None:
        """Repeat the call on the same connection; reconnect if that is lost."""
        try:
            self._call()
        except Unreachable:
            self._lost()

    def _call(self) -> None:
        self._heard = False
        self._patience = time.monotonic() + wire.ANSWER_TIME
        if self._client is not None:
            self._client.send(self._method, self._parameters(), more=self._more)

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def fileno(self) -> int | None:
        """Return the descriptor to wait on; None while there is no daemon."""
        return None if self._client is None else self._client.fileno()

    def limit(self) -> float | None:
        """Return the seconds after which to call :meth:`news` even without input; None for never."""
        if self._client is None:
            return RETRY
        return None if self._heard else max(0.0, self._patience - time.monotonic())

    def news(self, *, ready: bool) -> list[Reply]:
        """Return the new replies; `ready` says that there is input.

        Raises:
            Unreachable: the daemon is gone and did not come back in time.
            TimedOut: it does not answer.
            VmessError: the reply is an error.
        """
        if self._client is None:
            self._reconnect()
            return []
        if not ready:
            if not self._heard and time.monotonic() >= self._patience:
                raise wire.silence()
            return []
        replies = []
        try:
            self._client.fill()
        except Unreachable:
            self._lost()
            return []
        while self._client.pending():
            replies.append(self._client.receive()[0])
            self._heard = True
        return replies

    def _lost(self) -> None:
        self.close()
        self._patience = time.monotonic() + RETURN_TIME
        status_lines.clear()
        say(f"{PROGRAM}: vmessd hung up; waiting {RETURN_TIME:g} s for it to come back")

    def _reconnect(self) -> None:
        """Reconnect and repeat the call; raises Unreachable after the deadline."""
        deadline = self._patience
        try:
            self._open(may_start=False)
        except Unreachable:
            self.close()
            self._patience = deadline
            if time.monotonic() >= deadline:
                raise
        else:
            self.again = True
            say(f"{PROGRAM}: vmessd is back; events in the meantime were missed")
