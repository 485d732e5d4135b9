"""Environment variables and files, without `os`, whose import takes a tenth of a `status`."""

import posix
import sys


def variable(name: str) -> str | None:
    """Return the value of an environment variable; None if it is not set."""
    value = posix.environ.get(name.encode())
    return None if value is None else value.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def exists(path: str) -> bool:
    """Tell whether there is such a file; false for no path."""
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
