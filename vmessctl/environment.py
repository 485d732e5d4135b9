"""Environment variables and the name of the program, without `os`, whose import takes a tenth of a `status`."""

import posix
import sys


def variable(name: str) -> str | None:
    """Return the value of an environment variable; None if it is not set."""
    value = posix.environ.get(name.encode())
    return None if value is None else value.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def is_vmess() -> bool:
    """Tell whether the program was called as `vmess`, and so speaks as the original script did."""
    return sys.argv[0].rpartition("/")[2].removesuffix(".py") == "vmess"
