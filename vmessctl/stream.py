"""A call that is answered for as long as somebody listens, taken up again where vmessd is started anew."""

from __future__ import annotations

import time

from vmessctl import client as wire
from vmessctl.cli.verbs import PROGRAM
from vmessctl.output.terminal import moving, say
from vmessd.core.errors import Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Client, Reply

RETURN_TIME = 20.0
"""Seconds a daemon that is gone has to come back: it may just be started anew."""
RETRY = 0.25
"""Seconds between two looks whether it is back."""


class Stream:
    """The replies to one call."""

    def __init__(
        self, invocation: Invocation, method: str, parameters: Callable[[], Mapping[str, object]], *, more: bool
    ) -> None:
        """Make the call; `parameters` are asked for again where it has to be made again. Raises Unreachable."""
        self._invocation = invocation
        self._method = method
        self._parameters = parameters
        self._more = more
        self._client: Client | None = None
        self._heard = False
        self._patience = 0.0
        self.again = False
        """It was made again: what happened before that was not told."""
        self._open()

    def _open(self) -> None:
        self._client = wire.connect(self._invocation)
        self._call()

    @property
    def is_heard(self) -> bool:
        """The call was answered, if not to the end."""
        return self._heard

    def ask(self) -> None:
        """Make the call again, on the connection there is; where it is gone, another is looked for."""
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
        """Listen no longer."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def fileno(self) -> int | None:
        """Return the descriptor to wait for; None while there is no daemon."""
        return None if self._client is None else self._client.fileno()

    def limit(self) -> float | None:
        """Return the seconds after which to call :meth:`news` also if nothing has come."""
        if self._client is None:
            return RETRY
        return None if self._heard else max(0.0, self._patience - time.monotonic())

    def news(self, *, ready: bool) -> list[Reply]:
        """Return what has come; `ready` says that something has.

        Raises:
            Unreachable: there is no daemon any more, and did not come back in time.
            TimedOut: it does not answer.
            VmessError: it answers with an error.
        """
        if self._client is None:
            self._return()
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
        moving.clear()
        say(f"{PROGRAM}: vmessd hung up; it has {RETURN_TIME:g} s to come back")

    def _return(self) -> None:
        """Make the call again, if there is somebody to make it to."""
        deadline = self._patience
        try:
            self._open()
        except Unreachable:
            self.close()
            self._patience = deadline
            if time.monotonic() >= deadline:
                raise
        else:
            self.again = True
            say(f"{PROGRAM}: vmessd is back; what happened meanwhile is not told")
