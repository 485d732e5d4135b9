"""Signals that end a command here, and that are to end what it has begun elsewhere."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

HANGUP, INTERRUPT, QUIT, KILL, TERMINATE = 1, 2, 3, 9, 15
"""Numbers of signals (signal(7)), without `signal`, which is slow to import."""
NAMES = {HANGUP: "HUP", INTERRUPT: "INT", QUIT: "QUIT", TERMINATE: "TERM"}
"""Names for kill(1) of the signals that may end a command."""


class heard_by:  # noqa: N801 -- it reads as a statement: with heard_by(...)
    """Call a function for each signal that would end this process. Use as a context manager."""

    def __init__(self, hear: Callable[[int], None]) -> None:
        self._hear = hear
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        import signal  # noqa: PLC0415 -- slow to import, needed only here

        self._before = {number: signal.signal(number, self._handle) for number in NAMES}

    def __exit__(self, *_error: object) -> None:
        import signal  # noqa: PLC0415 -- as above

        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._hear(number)
