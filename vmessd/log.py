"""Log lines: for a person on a terminal or in a file, for the journal where it listens.

A record is one line whatever is in it, so that nothing a guest, a file or a client provides can
pass for a line of ours or for a priority of the journal's (`<0>`, sd-daemon(3)).
"""

import logging
import os
import sys
from typing import TextIO

from vmessd.errors import printable

_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class _Escaping(logging.Formatter):
    """Escapes control characters; a traceback becomes lines of its own, escaped one by one."""

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
    """Lines for the journal, which knows the time itself."""

    def prefix(self, record: logging.LogRecord) -> str:
        """Return the priority as the journal reads it."""
        return f"<{next((number for level, number in _PRIORITIES if record.levelno >= level), 7)}>"


def _is_journal(stream: TextIO) -> bool:
    """Tell whether a stream leads to the journal: JOURNAL_STREAM names it (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def formatter(stream: TextIO) -> logging.Formatter:
    """Return what suits the reader at the other end of a stream."""
    if _is_journal(stream):
        return JournalFormatter()
    return PersonFormatter("%H:%M:%S" if stream.isatty() else "%Y-%m-%d %H:%M:%S")


def begin() -> None:
    """Send all logging to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(sys.stderr))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    # It warns when a client left before its reply was sent, which is the client's good right.
    logging.getLogger("asyncvarlink").setLevel(logging.ERROR)
