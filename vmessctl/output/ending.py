"""Signals that end the client while something is half made."""

from __future__ import annotations

import sys

from vmessctl.output.foreground import KILLED


def by_exception() -> None:
    """Have SIGTERM and SIGHUP raise SystemExit, so that what is half made goes, as after Ctrl-C.

    One that is ignored, as by nohup(1), stays so.
    """
    import signal  # noqa: PLC0415 -- slow to import

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: sys.exit(KILLED + number))


class held_back:  # noqa: N801 -- it reads as a statement: with held_back()
    """Have signals wait until the end of a short block, which has to be known to be done or not."""

    def __enter__(self) -> None:
        import signal  # noqa: PLC0415 -- as above

        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))

    def __exit__(self, *_error: object) -> None:
        import signal  # noqa: PLC0415 -- as above

        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
