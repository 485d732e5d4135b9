"""Log lines: for a person on a terminal, for the journal everywhere else.

A record is one line whatever is in it, so that nothing a guest, a file or a client provides can
pass for a line of ours or for a priority of the journal's (`<0>`, sd-daemon(3)).
"""

import logging
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


class TerminalFormatter(_Escaping):
    """Lines for a person."""

    def prefix(self, record: logging.LogRecord) -> str:
        """Return the time of day, and the level where it is worth a look."""
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{self.formatTime(record, '%H:%M:%S')} {level}"


class JournalFormatter(_Escaping):
    """Lines for the journal, which knows the time itself."""

    def prefix(self, record: logging.LogRecord) -> str:
        """Return the priority as the journal reads it."""
        return f"<{next((number for level, number in _PRIORITIES if record.levelno >= level), 7)}>"


def begin(stream: TextIO | None = None) -> None:
    """Send all logging to a stream, standard error by default."""
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(TerminalFormatter() if target.isatty() else JournalFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    # It warns when a client left before its reply was sent, which is the client's good right.
    logging.getLogger("asyncvarlink").setLevel(logging.ERROR)
