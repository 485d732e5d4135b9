"""The log: for a person on a terminal or in a file, or for the journal.

A record is always one line, so that nothing from a guest, a file or a client can pass for a line of ours or
for a priority of the journal (`<0>`, sd-daemon(3)).
"""

import collections
import contextlib
import logging
import os
import sys
import threading
from typing import TextIO

from vmessd.core.errors import counted, printable

WRITE_TIME = 0.5
"""Seconds that the daemon waits for a line to be written."""
WAITING_MAX = 10_000
"""Lines that are kept while the log hangs."""

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class _Escaping(logging.Formatter):
    """Escapes control characters; the lines of a traceback are escaped one by one."""

    def prefix(self, record: logging.LogRecord) -> str:
        """Return what each line of a record begins with."""
        raise NotImplementedError

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        lines = [record.getMessage()]
        if record.exc_info:
            lines += self.formatException(record.exc_info).splitlines()
        prefix = self.prefix(record)
        return "\n".join(f"{prefix}{printable(line)}" for line in lines)


class PersonFormatter(_Escaping):
    """Lines for a person."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self._when = when

    def prefix(self, record: logging.LogRecord) -> str:
        """Return the time, and the level where it is worth a look."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, self._when)} {level}"


class JournalFormatter(_Escaping):
    """Lines for the journal, which adds the time itself."""

    def prefix(self, record: logging.LogRecord) -> str:
        """Return the priority in the form that the journal reads."""
        return f"<{next((number for level, number in _PRIORITIES if record.levelno >= level), 7)}>"


class PatientHandler(logging.Handler):
    """Waits for each line to be written, but not for long, since the disk of the log may hang.

    While it hangs, up to :data:`WAITING_MAX` lines are kept in memory and written in order later.
    """

    def __init__(self, stream: TextIO) -> None:
        """Start the writing thread; raises RuntimeError where it cannot be started."""
        super().__init__()
        self._stream = stream
        self._moved = threading.Condition()
        self._waiting: collections.deque[str] = collections.deque()
        self._put = self._written = self._lost = 0
        self._hangs = False
        """The wait for a line timed out, and it is not written yet."""
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; where too many wait, drop it, and report the number of dropped ones later."""
        lines = self.format(record)
        with self._moved:
            if len(self._waiting) >= WAITING_MAX:
                self._lost += 1
                return
            if self._lost:
                lines = f"{lines} ({counted(self._lost, 'line')} lost before this one: the log did not answer)"
                self._lost = 0
            self._waiting.append(lines)
            self._put += 1
            number = self._put
            self._moved.notify_all()
            if not self._hangs:
                self._hangs = not self._moved.wait_for(lambda: self._written >= number, WRITE_TIME)

    def _write(self) -> None:
        while True:
            with self._moved:
                self._moved.wait_for(lambda: self._waiting)
                lines = self._waiting.popleft()
            with contextlib.suppress(OSError, ValueError):  # the reader is gone
                self._stream.write(f"{lines}\n")
                self._stream.flush()
            with self._moved:
                self._written += 1
                self._hangs = self._hangs and self._written < self._put
                self._moved.notify_all()

    def flush(self) -> None:
        """Wait for pending lines, at most :data:`WRITE_TIME` seconds."""
        with self._moved:
            self._moved.wait_for(lambda: self._written >= self._put, WRITE_TIME)


def _handler(stream: TextIO) -> logging.Handler:
    try:
        return PatientHandler(stream)
    except RuntimeError:
        return logging.StreamHandler(stream)


def _is_journal(stream: TextIO) -> bool:
    """Tell whether a stream is connected to the journal, by JOURNAL_STREAM (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def formatter(stream: TextIO) -> logging.Formatter:
    """Return the formatter for a stream: for the journal, a terminal or a file."""
    if _is_journal(stream):
        return JournalFormatter()
    return PersonFormatter("%H:%M:%S" if stream.isatty() else "%Y-%m-%d %H:%M:%S")


def begin() -> None:
    """Send all logging to standard error."""
    handler = _handler(sys.stderr)
    handler.setFormatter(formatter(sys.stderr))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    # It warns when a client leaves before its reply is sent, which is allowed.
    logging.getLogger("asyncvarlink").setLevel(logging.ERROR)
