"""A new VM that is not whole yet."""

from __future__ import annotations

import select

from vmessctl.cli.verbs import PROGRAM
from vmessctl.client import connect
from vmessctl.output import ending
from vmessctl.output.terminal import say
from vmessd.core.errors import VmessError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from vmessctl.cli.verbs import Invocation
    from vmessctl.client import Client, Reply

HOLD_TIME = 3.0
"""Seconds for which signals wait for a reply. A daemon that hangs must not keep anybody from leaving."""


class Unfinished:
    """A VM that is deleted again if this program fails, or is ended, before the end of a `with` block."""

    def __init__(self, invocation: Invocation, client: Client, vm: str) -> None:
        self._invocation = invocation
        self._client = client
        self._vm = vm
        self._is_made = False

    def __enter__(self) -> Self:
        ending.by_exception()
        return self

    def make(self) -> Reply:
        """Make the VM, without anything in it; raises VmessError."""
        with ending.held_back():  # without the reply, nobody knows whether there is a VM to delete
            self._client.send("Make", {"vm": self._vm})
            if select.select([self._client], [], [], HOLD_TIME)[0]:
                return self._made()
        return self._made()

    def _made(self) -> Reply:
        reply, _ = self._client.receive()
        self._is_made = True
        return reply

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            return
        self._client.close()  # which ends what the daemon does for it
        if self._is_made:
            self._delete()
        elif not isinstance(error, Exception):  # a signal
            say(f"it is not known whether vmessd has made {self._vm}: {PROGRAM} {self._vm} status")

    def _delete(self) -> None:
        try:
            client = connect(self._invocation)
            client.call("Remove", vm=self._vm)
            client.close()
            say(f"{self._vm} is deleted again")
        except VmessError as error:
            say(f"{self._vm} is left as it is, and incomplete ({error.message}): {PROGRAM} {self._vm} rm")
