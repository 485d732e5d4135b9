"""A terminal in raw mode, where every key is for the guest."""

from __future__ import annotations

import os
import termios
import tty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any


class Raw:
    """Raw mode, which ends however the program ends. Use as a context manager."""

    def __init__(self, fd: int, leave: Callable[[], None], *, on: bool) -> None:
        self._fd = fd
        self._leave = leave
        self._on = on
        self._saved: list[Any] = []

    def __enter__(self) -> None:
        if not self._on:
            return
        import signal  # noqa: PLC0415 -- slow to import: it makes enums of its constants

        self._saved = termios.tcgetattr(self._fd)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, self._ended)
        signal.signal(signal.SIGTSTP, self._stopped)
        self._switch()

    def _switch(self) -> None:
        tty.setraw(self._fd, termios.TCSANOW)  # TCSANOW: the other actions would block on a stuck terminal

    def _restore(self) -> None:
        import contextlib  # noqa: PLC0415 -- as signal

        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)

    def _ended(self, number: int, _frame: object) -> None:
        """End by a signal as without a handler, but restore the terminal first."""
        import signal  # noqa: PLC0415

        self._leave()
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _stopped(self, number: int, _frame: object) -> None:
        """Stop as without a handler; continue in raw mode."""
        import signal  # noqa: PLC0415

        self._leave()
        self._restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._stopped)
        self._switch()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._on:
            self._restore()
